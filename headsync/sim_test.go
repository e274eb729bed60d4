package headsync_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"math/rand/v2"
	"net"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"fpnode/blockstore"
	"fpnode/headsync"
)

// A simulated network between real ledgers, in virtual time: gossip is lost, doubled
// and late; streams break anywhere; fetches bring a part; links go up and down.

type simWorld struct {
	t     testing.TB
	mu    sync.Mutex
	rng   *rand.Rand
	calm  bool // nothing goes wrong any more
	nodes []*simNode
	cut   map[[2]int]bool // links that are down, lower index first
	stats struct{ lost, doubled, broken, missing int }
}

func (w *simWorld) chance(p float64) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return !w.calm && w.rng.Float64() < p
}

func (w *simWorld) count(n *int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	*n++
}

func (w *simWorld) pause(max time.Duration) time.Duration {
	w.mu.Lock()
	defer w.mu.Unlock()
	return time.Duration(w.rng.Int64N(int64(max)))
}

func (w *simWorld) linked(a, b *simNode) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return !w.cut[[2]int{min(a.index, b.index), max(a.index, b.index)}]
}

// setLink takes a link up or down and tells both ends.
func (w *simWorld) setLink(a, b *simNode, up bool) {
	w.mu.Lock()
	key := [2]int{min(a.index, b.index), max(a.index, b.index)}
	changed := w.cut[key] == up
	w.cut[key] = !up
	w.mu.Unlock()
	if changed {
		a.tell(b.ID(), up)
		b.tell(a.ID(), up)
		if joinA, joinB := a.joined(), b.joined(); up && joinA != nil && joinB != nil {
			joinA(b.ID())
			joinB(a.ID())
		}
	}
}

// simNode is a node's Net and Fetcher.
type simNode struct {
	*testNode
	w     *simWorld
	index int
	sync  *headsync.Sync

	mu       sync.Mutex
	notify   func(peer.ID, bool)
	serve    func(context.Context, peer.ID, io.ReadWriter) error
	admitted map[peer.ID]bool
	seen     map[string]bool
	topic    struct {
		name    string
		receive func(via, origin peer.ID, data []byte) (bool, error)
		join    func(peer.ID)
	}
	served sync.WaitGroup
}

func (n *simNode) ID() peer.ID { return peer.ID(fmt.Sprintf("peer-%d", n.index)) }

func (n *simNode) tell(p peer.ID, up bool) {
	n.mu.Lock()
	f := n.notify
	n.mu.Unlock()
	if f != nil {
		f(p, up)
	}
}

func (n *simNode) joined() func(peer.ID) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.topic.join
}

func (n *simNode) find(p peer.ID) *simNode {
	for _, other := range n.w.nodes {
		if other.ID() == p {
			return other
		}
	}
	return nil
}

func (n *simNode) Notify(f func(peer.ID, bool)) func() {
	n.mu.Lock()
	n.notify = f
	n.mu.Unlock()
	for _, other := range n.w.nodes {
		if other != n && n.w.linked(n, other) {
			f(other.ID(), true)
		}
	}
	return func() {
		n.mu.Lock()
		n.notify = nil
		n.mu.Unlock()
	}
}

func (n *simNode) Join(
	name string, receive func(via, origin peer.ID, data []byte) (bool, error), joined func(peer.ID),
) (func(), error) {
	n.mu.Lock()
	n.topic.name, n.topic.receive, n.topic.join = name, receive, joined
	n.mu.Unlock()
	return func() {}, nil
}

func (n *simNode) Publish(ctx context.Context, name string, data []byte) error {
	n.pass(n.ID(), data)
	return nil
}

// pass hands a message to the neighbours, who pass it on.
func (n *simNode) pass(origin peer.ID, data []byte) {
	for _, other := range n.w.nodes {
		if other == n {
			continue
		}
		copies := 1
		switch {
		case n.w.chance(0.3):
			n.w.count(&n.w.stats.lost)
			copies = 0
		case n.w.chance(0.2):
			n.w.count(&n.w.stats.doubled)
			copies = 2
		}
		for range copies {
			time.AfterFunc(n.w.pause(300*time.Millisecond), func() {
				if !n.w.linked(n, other) {
					return
				}
				other.mu.Lock()
				again := other.seen[string(data)]
				other.seen[string(data)] = true
				receive := other.topic.receive
				other.mu.Unlock()
				if receive == nil || again && !n.w.chance(0.5) {
					return
				}
				if relay, err := receive(n.ID(), origin, slices.Clone(data)); err != nil {
					n.w.t.Errorf("node %d refused a message of node %d: %v", other.index, n.index, err)
				} else if relay && !again {
					other.pass(origin, data)
				}
			})
		}
	}
}

func (n *simNode) Handle(
	proto string, maxBytes int64, timeout time.Duration, serve func(context.Context, peer.ID, io.ReadWriter) error,
) func() {
	n.mu.Lock()
	n.serve = serve
	n.mu.Unlock()
	return func() {
		n.mu.Lock()
		n.serve = nil
		n.mu.Unlock()
		n.served.Wait()
	}
}

var errBroken = errors.New("stream broken")

// breaking is a connection that breaks after some bytes.
type breaking struct {
	net.Conn
	left int
}

func (b *breaking) Write(p []byte) (int, error) {
	if b.left -= len(p); b.left < 0 {
		b.Conn.Close()
		return 0, errBroken
	}
	return b.Conn.Write(p)
}

func (n *simNode) Call(ctx context.Context, p peer.ID, proto string, maxBytes int64, talk func(io.ReadWriter) error) error {
	other := n.find(p)
	other.mu.Lock()
	serve := other.serve
	if serve != nil {
		other.served.Add(1)
	}
	other.mu.Unlock()
	if serve == nil {
		return errBroken
	}
	if !n.w.linked(n, other) {
		other.served.Done()
		return errBroken
	}
	here, there := net.Pipe()
	left := 1 << 30
	if n.w.chance(0.4) {
		n.w.count(&n.w.stats.broken)
		left = int(n.w.pause(2000))
	}
	go func() {
		defer other.served.Done()
		defer there.Close()
		serve(ctx, n.ID(), there)
	}()
	defer here.Close()
	time.Sleep(n.w.pause(100 * time.Millisecond))
	return talk(&breaking{here, left})
}

func (n *simNode) Protect(peer.ID, bool) {}
func (n *simNode) Block(p peer.ID, _ time.Duration) {
	n.w.t.Errorf("node %d shuts out %s", n.index, p)
}

func (n *simNode) Admit(p peer.ID) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.admitted[p] = true
}

func (n *simNode) Revoke(p peer.ID) {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.admitted, p)
}

func (n *simNode) Added(...blockstore.Ref) {}

func (n *simNode) Fetch(ctx context.Context, from []peer.ID, refs []blockstore.Ref) iter.Seq2[blockstore.Ref, []byte] {
	return func(yield func(blockstore.Ref, []byte) bool) {
		time.Sleep(20*time.Millisecond + n.w.pause(50*time.Millisecond))
		if n.w.chance(0.1) {
			time.Sleep(30 * time.Second) // silence
			return
		}
		for _, ref := range refs {
			for _, p := range from {
				other := n.find(p)
				other.mu.Lock()
				ok := other.admitted[n.ID()]
				other.mu.Unlock()
				if !ok || !n.w.linked(n, other) {
					continue
				}
				b, err := other.store.WireBlock(ref.Wire.Hash())
				if err != nil || n.w.chance(0.2) {
					n.w.count(&n.w.stats.missing)
					continue
				}
				if !yield(ref, slices.Clone(b)) {
					return
				}
				break
			}
		}
	}
}

func simulate(t *testing.T, seed uint64, count int) {
	synctest.Test(t, func(t *testing.T) {
		w := &simWorld{t: t, rng: rand.New(rand.NewPCG(seed, 7)), cut: make(map[[2]int]bool)}
		var names []string
		for i := range count {
			names = append(names, fmt.Sprintf("n%d", i))
			w.nodes = append(w.nodes, &simNode{
				testNode: openNode(t, names[i], testKey()), w: w, index: i,
				admitted: make(map[peer.ID]bool), seen: make(map[string]bool),
			})
		}
		ctx, cancel := context.WithCancel(t.Context())
		var running sync.WaitGroup
		for _, n := range w.nodes {
			n.sync = headsync.New(headsync.Config{Net: n, Fetcher: n, Logger: n.log})
			n.cars.OnCommit(func(cars []blockstore.Ref) { n.sync.Committed(n.entry.ID, cars...) })
			err := n.sync.Add(headsync.Ledger{
				ID: n.entry.ID, Name: n.name, Secrets: n.entry.Keys, Replica: replica{n.cars, n.db},
			})
			if err != nil {
				t.Fatal(err)
			}
			running.Go(func() {
				if err := n.sync.Run(ctx); err != nil {
					t.Error(err)
				}
			})
		}
		script := rand.New(rand.NewPCG(seed, 8))
		for step := range 60 {
			n := w.nodes[script.IntN(count)]
			switch {
			case script.IntN(4) == 0:
				a, b := w.nodes[script.IntN(count)], w.nodes[script.IntN(count)]
				if a != b {
					w.setLink(a, b, script.IntN(3) > 0)
				}
			default:
				n.put(fmt.Sprintf(`{"_id":"%s-%d","step":%d}`, n.name, step%5, step))
			}
			time.Sleep(time.Duration(script.Int64N(int64(2 * time.Second))))
		}
		w.mu.Lock()
		w.calm = true
		w.mu.Unlock()
		for i, a := range w.nodes {
			for _, b := range w.nodes[:i] {
				w.setLink(a, b, true)
			}
		}
		start := time.Now()
		equal := func() bool {
			for _, n := range w.nodes[1:] {
				if n.head() != w.nodes[0].head() {
					return false
				}
			}
			return true
		}
		for !equal() && time.Since(start) < 10*time.Minute {
			time.Sleep(100 * time.Millisecond)
		}
		took := time.Since(start)
		if !equal() {
			for _, n := range w.nodes {
				st, err := n.sync.Status(n.entry.ID)
				t.Logf("%s: head %s, %+v, %v", n.name, n.head(), st, err)
			}
			t.Errorf("seed %d: not equal after %s", seed, took)
		}
		t.Logf("seed %d: equal %s after the end of trouble; %+v", seed, took, w.stats)
		cancel()
		running.Wait()
		for _, n := range w.nodes {
			n.cars.OnCommit(nil)
			n.close()
		}
		time.Sleep(time.Hour) // lets what was in the air arrive
	})
}

func TestConvergesOverABadNetwork(t *testing.T) {
	seeds := uint64(12)
	if testing.Short() {
		seeds = 3
	}
	for seed := range seeds {
		t.Run(fmt.Sprint(seed), func(t *testing.T) { simulate(t, seed, 2+int(seed%3)) })
	}
}
