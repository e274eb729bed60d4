package p2p

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"testing"
	"time"

	pb "github.com/libp2p/go-libp2p-pubsub/pb"
	"github.com/libp2p/go-libp2p/core/peer"
	"go.uber.org/goleak"
)

// testHost is a Host on loopback with its Run.
type testHost struct {
	*Host
	events chan seen
	stop   func()
}

type seen struct {
	peer peer.ID
	up   bool
}

func testKey(n byte) ed25519.PrivateKey {
	seed := make([]byte, ed25519.SeedSize)
	seed[0] = n
	return ed25519.NewKeyFromSeed(seed)
}

func newHost(t testing.TB, n byte, change ...func(*Config)) *testHost {
	t.Helper()
	cfg := Config{Key: testKey(n), Listen: []string{"/ip4/127.0.0.1/tcp/0"}}
	for _, f := range change {
		f(&cfg)
	}
	h, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	h.timing.retryMin = 20 * time.Millisecond
	h.timing.retryMax = 100 * time.Millisecond
	th := &testHost{Host: h, events: make(chan seen, 100)}
	stopNotify := h.Notify(func(p peer.ID, up bool) { th.events <- seen{p, up} })
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- h.Run(ctx) }()
	th.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("run: %v", err)
		}
		stopNotify()
		if err := h.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	t.Cleanup(th.stop)
	return th
}

// wait reads from c until ok, or fails after a generous time.
func wait[T any](t testing.TB, what string, c <-chan T, ok func(T) bool) T {
	t.Helper()
	limit := time.NewTimer(20 * time.Second)
	defer limit.Stop()
	for {
		select {
		case v := <-c:
			if ok(v) {
				return v
			}
		case <-limit.C:
			t.Fatalf("no %s", what)
		}
	}
}

func connect(t testing.TB, a, b *testHost) {
	t.Helper()
	if err := a.AddPeer(b.Addrs()[0]); err != nil {
		t.Fatal(err)
	}
	wait(t, "connection", a.events, func(e seen) bool { return e == seen{b.ID(), true} })
	wait(t, "connection", b.events, func(e seen) bool { return e == seen{a.ID(), true} })
}

func checkLeaks(t *testing.T) {
	t.Helper()
	goleak.VerifyNone(t, leakIgnores...)
}

// leakIgnores are goroutines that libraries start once per process and never stop.
var leakIgnores = []goleak.Option{
	goleak.IgnoreTopFunction("go.opencensus.io/stats/view.(*worker).start"),
}

func TestPeerIsRedialledAfterItsReturn(t *testing.T) {
	defer checkLeaks(t)
	a, b := newHost(t, 1), newHost(t, 2)
	defer a.stop()
	connect(t, a, b)
	addr := b.Host.host.Addrs()[0].String()
	b.stop()
	wait(t, "disconnection", a.events, func(e seen) bool { return e == seen{b.ID(), false} })
	again := newHost(t, 2, func(c *Config) { c.Listen = []string{addr} })
	defer again.stop()
	wait(t, "reconnection", a.events, func(e seen) bool { return e == seen{b.ID(), true} })
}

func TestQUIC(t *testing.T) {
	defer checkLeaks(t)
	quic := func(c *Config) { c.Listen = []string{"/ip4/127.0.0.1/udp/0/quic-v1"} }
	a, b := newHost(t, 1, quic), newHost(t, 2, quic)
	defer a.stop()
	defer b.stop()
	connect(t, a, b)
}

func TestLocalDiscoveryRemembersPeers(t *testing.T) {
	a, b := newHost(t, 1), newHost(t, 2)
	found{a.Host}.HandlePeerFound(peer.AddrInfo{ID: a.ID(), Addrs: a.host.Addrs()}) // oneself
	found{a.Host}.HandlePeerFound(peer.AddrInfo{ID: b.ID(), Addrs: b.host.Addrs()})
	wait(t, "connection", a.events, func(e seen) bool { return e == seen{b.ID(), true} })
	if n := len(a.peers); n != 1 {
		t.Errorf("%d peers remembered, want 1", n)
	}
}

func TestBadPeerAddresses(t *testing.T) {
	a := newHost(t, 1)
	for _, s := range []string{
		"", "nonsense", "/ip4/127.0.0.1/tcp/1", "/p2p/" + a.ID().String(), a.Addrs()[0],
	} {
		if err := a.AddPeer(s); err == nil {
			t.Errorf("address %q accepted", s)
		}
	}
}

func TestBlockedPeerStaysOut(t *testing.T) {
	a, b := newHost(t, 1), newHost(t, 2)
	connect(t, a, b)
	b.Block(a.ID(), time.Hour)
	wait(t, "disconnection", b.events, func(e seen) bool { return e == seen{a.ID(), false} })
	if b.gate.allows(a.ID()) {
		t.Fatal("blocked peer allowed")
	}
	if err := b.host.Connect(t.Context(), peer.AddrInfo{ID: a.ID(), Addrs: a.host.Addrs()}); err == nil {
		t.Error("dialled a blocked peer")
	}
	b.gate.block(a.ID(), time.Now().Add(-time.Second)) // time served
	wait(t, "reconnection", b.events, func(e seen) bool { return e == seen{a.ID(), true} })
}

func TestGateIsBounded(t *testing.T) {
	g := newGate()
	now := time.Now()
	for i := range maxBlocked + 10 {
		g.block(peer.ID(fmt.Sprint(i)), now.Add(time.Hour+time.Duration(i)*time.Second))
	}
	if len(g.until) != maxBlocked {
		t.Errorf("%d blocked, want %d", len(g.until), maxBlocked)
	}
	if !g.allows("0") || g.allows(peer.ID(fmt.Sprint(maxBlocked+9))) {
		t.Error("the wrong peer made room")
	}
}

func TestRememberedPeersAreBounded(t *testing.T) {
	h, err := New(Config{Key: testKey(1), Listen: []string{"/ip4/127.0.0.1/tcp/0"}})
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	a := h.host.Addrs()[0]
	for i := range maxRemembered + 1 {
		err = h.remember(peer.AddrInfo{ID: peer.ID(fmt.Sprint("peer", i)), Addrs: append(h.host.Addrs()[:0:0], a)})
	}
	if !errors.Is(err, errTooManyPeers) {
		t.Errorf("got %v", err)
	}
}

type gossipMessage struct {
	via, origin peer.ID
	data        string
}

type member struct {
	got    chan gossipMessage
	joined chan peer.ID
	leave  func()
}

func join(t testing.TB, h *testHost, topic string, check func(data []byte) (bool, error)) *member {
	t.Helper()
	m := &member{got: make(chan gossipMessage, 100), joined: make(chan peer.ID, 100)}
	leave, err := h.Join(topic, func(via, origin peer.ID, data []byte) (bool, error) {
		m.got <- gossipMessage{via, origin, string(data)}
		if check != nil {
			return check(data)
		}
		return true, nil
	}, func(p peer.ID) { m.joined <- p })
	if err != nil {
		t.Fatal(err)
	}
	m.leave = leave
	return m
}

func anyOf[T any](T) bool { return true }

func TestGossipReachesThroughARelayOnce(t *testing.T) {
	defer checkLeaks(t)
	a, b, c := newHost(t, 1), newHost(t, 2), newHost(t, 3)
	defer a.stop()
	defer b.stop()
	defer c.stop()
	ma, mb, mc := join(t, a, "x", nil), join(t, b, "x", nil), join(t, c, "x", nil)
	connect(t, a, b)
	connect(t, b, c)
	for range 2 {
		wait(t, "join", mb.joined, anyOf)
	}
	wait(t, "join", ma.joined, anyOf)
	wait(t, "join", mc.joined, anyOf)
	// The relay's mesh forms at its next heartbeat; until then only the direct peer hears.
	var m gossipMessage
	for i := 0; ; i++ {
		if err := a.Publish(t.Context(), "x", fmt.Appendf(nil, "hello %d", i)); err != nil {
			t.Fatal(err)
		}
		select {
		case m = <-mc.got:
		case <-time.After(200 * time.Millisecond):
			if i < 100 {
				continue
			}
			t.Fatal("no message through the relay")
		}
		break
	}
	if m.via != b.ID() || m.origin != a.ID() {
		t.Errorf("via %s origin %s, want %s %s", m.via, m.origin, b.ID(), a.ID())
	}
	count := map[string]int{}
	for range len(mb.got) {
		m := <-mb.got
		if count[m.data]++; count[m.data] > 1 {
			t.Errorf("%q received twice", m.data)
		}
	}
	if len(ma.got) != 0 {
		t.Error("own message received")
	}
	ma.leave()
	ma.leave()
	if err := a.Publish(t.Context(), "x", nil); !errors.Is(err, ErrTopic) {
		t.Errorf("publish after leave: %v", err)
	}
}

func TestRefusedMessageIsNotPassedOn(t *testing.T) {
	a, b, c := newHost(t, 1), newHost(t, 2), newHost(t, 3)
	bad := errors.New("bad")
	join(t, a, "x", nil)
	mb := join(t, b, "x", func(data []byte) (bool, error) {
		switch string(data) {
		case "garbage":
			return false, bad
		case "stale":
			return false, nil
		}
		return true, nil
	})
	mc := join(t, c, "x", nil)
	connect(t, a, b)
	connect(t, b, c)
	for range 2 {
		wait(t, "join", mb.joined, anyOf)
	}
	for i := 0; ; i++ {
		for _, s := range []string{"garbage", "stale", fmt.Sprint("good ", i)} {
			if err := a.Publish(t.Context(), "x", []byte(s)); err != nil {
				t.Fatal(err)
			}
		}
		select {
		case m := <-mc.got:
			if m.data == "garbage" || m.data == "stale" {
				t.Fatalf("%q was passed on", m.data)
			}
			return
		case <-time.After(200 * time.Millisecond):
			if i == 100 {
				t.Fatal("nothing was passed on")
			}
		}
	}
}

func TestForeignTopicsAreBounded(t *testing.T) {
	a := newHost(t, 1)
	f := &subscriptions{a.Host, make(map[peer.ID]map[string]struct{})}
	join(t, a, "own", nil)
	sub := func(name string) *pb.RPC_SubOpts {
		yes := true
		return &pb.RPC_SubOpts{Subscribe: &yes, Topicid: &name}
	}
	var subs []*pb.RPC_SubOpts
	for i := range maxForeignTopics + 10 {
		subs = append(subs, sub(fmt.Sprint("foreign ", i)))
	}
	subs = append(subs, sub("own"), sub(strings.Repeat("x", maxTopicBytes+1)))
	for range 2 { // the second time they are all known
		kept, err := f.FilterIncomingSubscriptions("p", subs)
		if err != nil || len(kept) != maxForeignTopics+1 {
			t.Errorf("%d kept, %v", len(kept), err)
		}
	}
	for i := range 2 * maxConns {
		if _, err := f.FilterIncomingSubscriptions(peer.ID(fmt.Sprint(i)), subs[:1]); err != nil {
			t.Fatal(err)
		}
	}
	if len(f.foreign) > maxConns+1 {
		t.Errorf("%d peers tracked", len(f.foreign))
	}
	for range maxSubscriptionsPerMessage {
		subs = append(subs, sub("own"))
	}
	if _, err := f.FilterIncomingSubscriptions("p", subs); err == nil {
		t.Error("too many subscriptions in a message were taken")
	}
}

func TestTopicsAreJoinedOnce(t *testing.T) {
	a := newHost(t, 1)
	join(t, a, "x", nil)
	if _, err := a.Join("x", nil, nil); !errors.Is(err, ErrTopic) {
		t.Errorf("joined twice: %v", err)
	}
}

// A topic joined while its other members are connected works in both directions.
func TestTopicJoinedLate(t *testing.T) {
	a, b := newHost(t, 1), newHost(t, 2)
	mb := join(t, b, "x", nil)
	first := join(t, a, "y", nil)
	join(t, b, "y", nil)
	connect(t, a, b)
	wait(t, "the first messages to be through", first.joined, anyOf)
	ma := join(t, a, "x", nil)
	wait(t, "join", mb.joined, anyOf)
	wait(t, "join", ma.joined, anyOf)
	if err := a.Publish(t.Context(), "x", []byte("from a")); err != nil {
		t.Fatal(err)
	}
	if err := b.Publish(t.Context(), "x", []byte("from b")); err != nil {
		t.Fatal(err)
	}
	wait(t, "message", ma.got, anyOf)
	wait(t, "message", mb.got, anyOf)
}

func TestTooLongAMessageIsNotPublished(t *testing.T) {
	a := newHost(t, 1)
	join(t, a, "x", nil)
	if err := a.Publish(t.Context(), "x", make([]byte, MaxMessageBytes)); err == nil {
		t.Error("published")
	}
}

func TestStreams(t *testing.T) {
	defer checkLeaks(t)
	a, b := newHost(t, 1), newHost(t, 2)
	defer a.stop()
	defer b.stop()
	connect(t, a, b)
	b.Handle("/echo", 100, time.Minute, func(_ context.Context, p peer.ID, s io.ReadWriter) error {
		if p != a.ID() {
			t.Errorf("peer %s", p)
		}
		buf := make([]byte, 5)
		if _, err := io.ReadFull(s, buf); err != nil {
			return err
		}
		_, err := s.Write(buf)
		return err
	})
	var answer []byte
	err := a.Call(t.Context(), b.ID(), "/echo", 5, func(s io.ReadWriter) error {
		if _, err := s.Write([]byte("hello")); err != nil {
			return err
		}
		var err error
		answer, err = io.ReadAll(io.LimitReader(s, 5))
		return err
	})
	if err != nil || string(answer) != "hello" {
		t.Fatalf("got %q, %v", answer, err)
	}

	// The caller's own budget.
	err = a.Call(t.Context(), b.ID(), "/echo", 4, func(s io.ReadWriter) error {
		if _, err := s.Write([]byte("hello")); err != nil {
			return err
		}
		_, err := io.ReadFull(s, make([]byte, 5))
		return err
	})
	if !errors.Is(err, ErrTooLong) {
		t.Errorf("over the budget: %v", err)
	}

	// A protocol nobody serves, a peer that is not there.
	if err := a.Call(t.Context(), b.ID(), "/none", 4, func(io.ReadWriter) error { return nil }); err == nil {
		t.Error("unknown protocol answered")
	}
	if err := a.Call(t.Context(), "nobody", "/echo", 4, func(io.ReadWriter) error { return nil }); err == nil {
		t.Error("unknown peer answered")
	}
}

func TestStreamOfASilentPeerEnds(t *testing.T) {
	a, b := newHost(t, 1), newHost(t, 2)
	connect(t, a, b)
	served := make(chan error, 1)
	b.Handle("/slow", 100, 50*time.Millisecond, func(_ context.Context, _ peer.ID, s io.ReadWriter) error {
		_, err := s.Read(make([]byte, 1))
		served <- err
		return err
	})
	err := a.Call(t.Context(), b.ID(), "/slow", 100, func(s io.ReadWriter) error {
		if _, err := s.Write(nil); err != nil {
			return err
		}
		_, err := s.Read(make([]byte, 1)) // both wait for the other
		return err
	})
	if err == nil {
		t.Error("the caller's read succeeded")
	}
	if err := wait(t, "end of the handler", served, anyOf); err == nil {
		t.Error("the handler's read succeeded")
	}
}

func TestStopEndsWhatIsServed(t *testing.T) {
	a, b := newHost(t, 1), newHost(t, 2)
	connect(t, a, b)
	began, ended := make(chan bool, 1), false
	stop := b.Handle("/hold", 100, time.Minute, func(_ context.Context, _ peer.ID, s io.ReadWriter) error {
		began <- true
		_, err := s.Read(make([]byte, 1))
		ended = true
		return err
	})
	result := make(chan error, 1)
	go func() {
		result <- a.Call(t.Context(), b.ID(), "/hold", 100, func(s io.ReadWriter) error {
			if _, err := s.Write(nil); err != nil {
				return err
			}
			_, err := s.Read(make([]byte, 1))
			return err
		})
	}()
	wait(t, "stream", began, anyOf)
	stop()
	if !ended {
		t.Error("still being served")
	}
	if err := wait(t, "end", result, anyOf); err == nil {
		t.Error("the caller's read succeeded")
	}
}

func TestStreamsServedAreBounded(t *testing.T) {
	a, b := newHost(t, 1), newHost(t, 2)
	connect(t, a, b)
	release := make(chan struct{})
	b.Handle("/hold", 100, time.Minute, func(_ context.Context, _ peer.ID, s io.ReadWriter) error {
		if _, err := s.Write([]byte{1}); err != nil {
			return err
		}
		<-release
		return nil
	})
	results := make(chan error, maxStreamsPerPeer+1)
	for range maxStreamsPerPeer + 1 {
		go func() {
			results <- a.Call(t.Context(), b.ID(), "/hold", 100, func(s io.ReadWriter) error {
				if _, err := io.ReadFull(s, make([]byte, 1)); err != nil {
					return err
				}
				<-release
				return nil
			})
		}()
	}
	// Exactly one is refused while the others are held.
	if err := wait(t, "refusal", results, anyOf); err == nil {
		t.Error("the first to end was not refused")
	}
	close(release)
	for range maxStreamsPerPeer {
		if err := wait(t, "result", results, anyOf); err != nil {
			t.Error(err)
		}
	}
}
