package p2p

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	pubsub "github.com/libp2p/go-libp2p-pubsub"
	pb "github.com/libp2p/go-libp2p-pubsub/pb"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
)

// seenFor is how long a message is remembered, so that it is handled once.
const seenFor = 2 * time.Minute

// topic is a joined topic; handle is nil until the join is complete. Host.mu guards it.
type topic struct{ handle *pubsub.Topic }

// ErrTopic is wrapped by the errors about a topic that is joined twice or not at all.
var ErrTopic = errors.New("topic")

func (h *Host) startGossip() error {
	params := pubsub.DefaultGossipSubParams()
	gossip, err := pubsub.NewGossipSub(h.ctx, h.host,
		pubsub.WithGossipSubParams(params),
		pubsub.WithMessageIdFn(messageID),
		pubsub.WithMaxMessageSize(MaxMessageBytes),
		pubsub.WithMaxControlMessageSize(maxControlBytes),
		pubsub.WithMessageSignaturePolicy(pubsub.StrictSign),
		pubsub.WithSubscriptionFilter(&subscriptions{h, make(map[peer.ID]map[string]struct{})}),
		pubsub.WithSeenMessagesTTL(seenFor),
		pubsub.WithFloodPublish(true),
		pubsub.WithPeerExchange(false),
		pubsub.WithLogger(slog.New(slog.DiscardHandler)),
		pubsub.WithRPCLogger(slog.New(slog.DiscardHandler)),
	)
	h.gossip = gossip
	return err
}

// messageID names a message by its content, so that one relayed by two peers, or
// published by two, is one message.
func messageID(m *pb.Message) string {
	s := sha256.New()
	fmt.Fprintf(s, "%d:%s", len(m.GetTopic()), m.GetTopic())
	s.Write(m.GetData())
	return string(s.Sum(nil))
}

// Join subscribes to a topic until leave is called.
//
// receive is called once for each message of another peer, possibly several at a
// time: via is the peer that handed it over, origin the one that signed it. It must
// not block. If it returns an error the message is not passed on, and via is to
// blame, since no honest peer passes on what does not check; otherwise relay says
// whether to pass it on. joined is called, one call at a time, whenever a peer turns
// out to be subscribed as well.
func (h *Host) Join(
	name string,
	receive func(via, origin peer.ID, data []byte) (relay bool, err error),
	joined func(peer.ID),
) (leave func(), err error) {
	h.mu.Lock()
	if h.closed || len(h.topics) >= maxTopics {
		h.mu.Unlock()
		return nil, fmt.Errorf("p2p: joining: %w", ErrTopic)
	}
	if h.topics[name] != nil {
		h.mu.Unlock()
		return nil, fmt.Errorf("p2p: joining twice: %w", ErrTopic)
	}
	t := &topic{} // holds the name, which the subscription filter asks for
	h.topics[name] = t
	h.mu.Unlock()
	forget := func() {
		h.mu.Lock()
		delete(h.topics, name)
		h.mu.Unlock()
	}

	check := func(_ context.Context, via peer.ID, m *pubsub.Message) pubsub.ValidationResult {
		if via == h.host.ID() {
			return pubsub.ValidationAccept
		}
		if m.GetFrom() == h.host.ID() {
			return pubsub.ValidationIgnore // our own, come back
		}
		relay, err := receive(via, m.GetFrom(), m.GetData())
		switch {
		case err != nil:
			return pubsub.ValidationReject
		case !relay:
			return pubsub.ValidationIgnore
		}
		return pubsub.ValidationAccept
	}
	err = h.gossip.RegisterTopicValidator(name, check,
		pubsub.WithValidatorTimeout(h.timing.validator), pubsub.WithValidatorConcurrency(maxValidations))
	if err != nil {
		forget()
		return nil, fmt.Errorf("p2p: joining: %w", err)
	}
	handle, err := h.gossip.Join(name)
	if err != nil {
		forget()
		return nil, fmt.Errorf("p2p: joining: %w", errors.Join(err, h.gossip.UnregisterTopicValidator(name)))
	}
	fail := func(err error) (func(), error) {
		err = errors.Join(err, handle.Close(), h.gossip.UnregisterTopicValidator(name))
		forget()
		return nil, fmt.Errorf("p2p: joining: %w", err)
	}
	events, err := handle.EventHandler()
	if err != nil {
		return fail(err)
	}
	// Messages are taken in check; a relay is a subscription without a queue.
	unsubscribe, err := handle.Relay()
	if err != nil {
		events.Cancel()
		return fail(err)
	}
	h.mu.Lock()
	if h.closed {
		h.mu.Unlock()
		unsubscribe()
		events.Cancel()
		return fail(ErrTopic)
	}
	h.running.Add(1)
	h.mu.Unlock()
	ctx, cancel := context.WithCancel(h.ctx)
	done := make(chan struct{})
	go func() {
		defer h.running.Done()
		defer close(done)
		for {
			e, err := events.NextPeerEvent(ctx)
			if err != nil {
				return
			}
			if e.Type == pubsub.PeerJoin {
				joined(e.Peer)
			}
		}
	}()
	h.mu.Lock()
	t.handle = handle
	h.mu.Unlock()
	return sync.OnceFunc(func() {
		cancel()
		<-done
		events.Cancel()
		unsubscribe()
		if err := errors.Join(h.gossip.UnregisterTopicValidator(name), handle.Close()); err != nil {
			h.log.Debug("leaving a topic", "err", err)
		}
		forget()
	}), nil
}

// Publish sends data to the peers of a joined topic. It does not wait for them.
func (h *Host) Publish(ctx context.Context, name string, data []byte) error {
	h.mu.Lock()
	var handle *pubsub.Topic
	if t := h.topics[name]; t != nil {
		handle = t.handle
	}
	h.mu.Unlock()
	if handle == nil {
		return fmt.Errorf("p2p: publishing: not joined: %w", ErrTopic)
	}
	if len(data) > MaxMessageBytes/2 {
		return fmt.Errorf("p2p: publishing: message of %d bytes is too long", len(data))
	}
	if err := handle.Publish(ctx, data); err != nil {
		return fmt.Errorf("p2p: publishing: %w", err)
	}
	return nil
}

// subscriptions decides which subscriptions of peers pubsub keeps in memory: those to
// topics this host has joined, and of each peer a limited number of others. Without
// the latter a topic joined while its members are connected would stay silent, since
// each tells its subscriptions only once.
type subscriptions struct {
	h *Host
	// foreign holds the topics kept for each peer that this host has not joined. It is
	// owned by pubsub's loop, which makes all calls of FilterIncomingSubscriptions.
	foreign map[peer.ID]map[string]struct{}
}

func (s *subscriptions) CanSubscribe(name string) bool {
	s.h.mu.Lock()
	defer s.h.mu.Unlock()
	return s.h.topics[name] != nil
}

func (s *subscriptions) FilterIncomingSubscriptions(p peer.ID, subs []*pb.RPC_SubOpts) ([]*pb.RPC_SubOpts, error) {
	if len(subs) > maxSubscriptionsPerMessage {
		return nil, pubsub.ErrTooManySubscriptions
	}
	if len(s.foreign) > maxConns {
		for q := range s.foreign {
			if s.h.host.Network().Connectedness(q) != network.Connected {
				delete(s.foreign, q)
			}
		}
	}
	theirs := s.foreign[p]
	if theirs == nil {
		theirs = make(map[string]struct{})
		s.foreign[p] = theirs
	}
	return pubsub.FilterSubscriptions(subs, func(name string) bool {
		if s.CanSubscribe(name) {
			return true
		}
		if _, ok := theirs[name]; !ok && (len(theirs) >= maxForeignTopics || len(name) > maxTopicBytes) {
			return false
		}
		theirs[name] = struct{}{}
		return true
	}), nil
}
