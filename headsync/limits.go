package headsync

import "time"

// Every maximum of this package. What is over a limit is refused, left out or put
// off, as stated with each.
const (
	// MaxAnnouncementBytes bounds a sealed announcement; a longer one is refused before
	// it is opened. MaxInlineBytes bounds the sealed CARs in one.
	MaxAnnouncementBytes = 32 << 10
	MaxInlineBytes       = 24 << 10

	// maxAnnouncedTips, maxAnnouncedRefs and maxAnnouncedCARs bound the parts of an
	// announcement. Of more, the first are sent and the rest is left to the exchange
	// of refs, which the announcement asks for.
	maxAnnouncedTips = 64
	maxAnnouncedRefs = 256
	maxAnnouncedCARs = 32

	// maxRecent bounds the refs of new CARs that wait to be announced; the oldest are
	// left to the exchange of refs.
	maxRecent = 128

	// maxTips bounds the tips one side of an exchange sends.
	maxTips = 4096

	// maxKeys bounds the CARs of a ledger in an exchange, maxOffers the refs one side
	// sends; of more, a part is sent and the next exchange follows when it is fetched.
	maxKeys   = 1 << 21
	maxOffers = 1 << 17

	// maxFrameBytes bounds one frame of an exchange, sealed; frameBytes is how full
	// frames of many small things are made. A meta block with 4,096 parents and a group
	// of 4,096 CARs with their refs fit a frame.
	maxFrameBytes = 1 << 20
	frameBytes    = 64 << 10

	// maxMetaBytes bounds one meta block in an announcement or exchange.
	maxMetaBytes = 512 << 10

	// maxExchangeBytes bounds what one side of an exchange may send.
	maxExchangeBytes = 64 << 20

	// maxServed bounds the exchanges that run at the same time, over all ledgers; more
	// wait.
	maxServed = 8

	// maxLedgers bounds the ledgers of a Sync.
	maxLedgers = 4096

	// maxQueuedAnnouncements bounds the announcements of a ledger that wait to be
	// looked at; the oldest are dropped.
	maxQueuedAnnouncements = 64

	// maxWants bounds the CARs of a ledger that are known to be missing; more are
	// forgotten until the next exchange. It is larger than maxOffers, so that one
	// exchange always fits.
	maxWants = 2 * maxOffers

	// maxSources bounds the peers remembered for one missing CAR.
	maxSources = 8

	// maxPending bounds the metas of a ledger that wait for CARs, maxPendingPerPeer
	// those that came from one peer; the newest are forgotten until they are announced
	// again.
	maxPending        = 1024
	maxPendingPerPeer = 256

	// maxDone bounds the metas remembered as dealt with, and maxBad the refs
	// remembered as false.
	maxDone = 4096
	maxBad  = 1024

	// maxFetches bounds the fetches of a ledger that run at the same time, maxInline
	// the announcements whose CARs are being checked; the CARs of more are fetched.
	maxFetches = 4
	maxInline  = 16

	// maxFetchBytes bounds what one fetch asks for; the rest follows in the next.
	maxFetchBytes = 1 << 30

	// storeBytes and storeCARs bound the verified CARs a fetch holds in memory before
	// they are made durable together.
	storeBytes = 4 << 20
	storeCARs  = 256

	// maxGarbage is how many messages that do not open, or offers that prove false, a
	// peer may send before it is shut out for shutOut. maxCounted bounds the peers
	// that are counted.
	maxGarbage = 16
	maxCounted = 1024
)

// Times of the protocol.
const (
	// announceEvery is the shortest time between two announcements of a ledger.
	announceEvery = 200 * time.Millisecond

	// reannounceMin and reannounceMax bound the time after which the tips are announced
	// again if nobody else did.
	reannounceMin = 30 * time.Second
	reannounceMax = 60 * time.Second

	// greetWithin spreads the announcements that answer a peer which joined the topic
	// or is behind.
	greetWithin = 500 * time.Millisecond

	// exchangeTimeout bounds one exchange of refs.
	exchangeTimeout = time.Minute

	// secondCall is how long the peer that did not open the exchange waits for the
	// other one to do so.
	secondCall = time.Second

	// retryMin and retryMax bound the pause before something that failed is tried
	// again; it doubles each time and is spread by half.
	retryMin = 250 * time.Millisecond
	retryMax = time.Minute

	// giveUpAfter is how many times a CAR is asked for and a meta is tried before it
	// is forgotten. Who has it will announce it again.
	giveUpAfter = 16

	// shutOut is how long a peer that sent too much garbage stays out.
	shutOut = 10 * time.Minute
)
