package p2p

import "time"

// Every maximum of this package. A value over its limit is refused, dropped or
// delayed as stated; none of them grows with what a peer sends.
const (
	// MaxMessageBytes bounds one gossip message with its envelope. Senders and
	// receivers need the same value: a longer one resets the peer's stream.
	MaxMessageBytes = 64 << 10

	// maxControlBytes bounds the control part of one gossip message.
	maxControlBytes = 64 << 10

	// maxSubscriptionsPerMessage bounds the subscriptions that one message of a
	// peer may carry; the message is dropped above it.
	maxSubscriptionsPerMessage = 2048

	// maxTopics bounds the topics this host joins, maxForeignTopics those of each peer
	// that are kept in mind although this host has not joined them, and maxTopicBytes
	// the name of one.
	maxTopics        = 4096
	maxForeignTopics = 512
	maxTopicBytes    = 64

	// maxValidations bounds the messages of one topic that are checked at the same
	// time; more are dropped (gossip is a hint, the stream exchange is the delivery).
	maxValidations = 32

	// maxStreamsPerPeer and maxStreams bound the request streams served at the same
	// time for one peer and for all of them; more are reset.
	maxStreamsPerPeer = 8
	maxStreams        = 128

	// Connection watermarks: above connsHigh the connection manager closes
	// unprotected connections older than connsGrace until connsLow are left.
	connsLow   = 32
	connsHigh  = 96
	connsGrace = 20 * time.Second

	// maxConns is the hard limit of the resource manager, both directions together,
	// maxConnsPerPeer that for one peer.
	maxConns        = 128
	maxConnsPerPeer = 8

	// maxMemoryBytes is what libp2p may reserve for buffers.
	maxMemoryBytes = 512 << 20

	// maxFiles is how many file descriptors connections may use.
	maxFiles = 256

	// maxRemembered bounds the peers that are redialled: those of the
	// configuration, those added later, and those found on the local network.
	maxRemembered = 256

	// maxBlocked bounds the peers refused at the gate; the one that would be let in
	// soonest makes room.
	maxBlocked = 1024

	// maxAddrsPerPeer bounds the addresses remembered for one peer.
	maxAddrsPerPeer = 16
)

// Time limits. They are variables of a Host, so that tests can shorten them.
type timing struct {
	dial      time.Duration // one attempt to connect
	retryMin  time.Duration // first pause after a failed or lost connection
	retryMax  time.Duration // longest pause
	validator time.Duration // one check of a gossip message
}

var defaultTiming = timing{
	dial:      15 * time.Second,
	retryMin:  time.Second,
	retryMax:  time.Minute,
	validator: 5 * time.Second,
}
