package headsync

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p/core/peer"

	"fpnode/blockstore"
	"fpnode/internal/car"
)

// driven is a machine with a clock and the actions that have not been looked at.
type driven struct {
	*machine
	t       *testing.T
	now     time.Time
	actions []action
}

const me = peer.ID("m")

func drive(t *testing.T) *driven {
	d := &driven{machine: newMachine(me, rand.New(rand.NewPCG(1, 2))), t: t, now: time.Unix(1e9, 0)}
	d.start(d.now, [32]byte{}, 0)
	d.run(time.Second)
	d.actions = nil
	return d
}

// run lets time pass, calling tick whenever the machine wants it.
func (d *driven) run(by time.Duration) {
	d.t.Helper()
	end := d.now.Add(by)
	for range 10_000 {
		d.tick(d.now)
		d.actions = append(d.actions, d.take()...)
		next := d.next()
		if next.IsZero() || next.After(end) {
			d.now = end
			return
		}
		if next.After(d.now) {
			d.now = next
		}
	}
	d.t.Fatal("the machine does not come to rest")
}

// taken removes and returns the actions of one type so far.
func taken[A action](d *driven) []A {
	var got []A
	d.actions = slices.DeleteFunc(d.actions, func(a action) bool {
		v, ok := a.(A)
		if ok {
			got = append(got, v)
		}
		return ok
	})
	return got
}

// one is taken for an action that must have been decided exactly once.
func one[A action](d *driven) A {
	d.t.Helper()
	got := taken[A](d)
	if len(got) != 1 {
		d.t.Fatalf("%d of %T, want 1", len(got), *new(A))
	}
	return got[0]
}

func none[A action](d *driven) {
	d.t.Helper()
	if got := taken[A](d); len(got) > 0 {
		d.t.Fatalf("unwanted: %+v", got)
	}
}

func digest(n int) [32]byte { return [32]byte{byte(n), byte(n >> 8), 1} }

func testRef(n int) blockstore.Ref {
	d := make([]byte, 32)
	copy(d, fmt.Sprint(n))
	d[31] = 1
	name := cidOf(car.CodecName, d)
	d = slices.Clone(d)
	d[31] = 2
	return blockstore.Ref{Name: blockstore.Name{Cid: name}, Wire: blockstore.Wire{Cid: cidOf(cid.Raw, d)}, Size: 1000 + int64(n%1000)}
}

func testMeta(n int) blockstore.Meta {
	return blockstore.NewMeta([]blockstore.Ref{testRef(n)}, nil)
}

// meet makes p a member that is connected.
func (d *driven) meet(p peer.ID) {
	d.t.Helper()
	d.connected(d.now, p)
	d.run(2 * secondCall)
	one[doExchange](d)
	d.exchanged(d.now, p, true, news{}, true, nil, false)
	d.run(0)
	none[doExchange](d)
}

func (d *driven) hear(from peer.ID, n int) {
	d.announced(d.now, news{
		from: from, tips: digest(n), whole: true,
		metas: []blockstore.Meta{testMeta(n)}, missing: []blockstore.Ref{testRef(n)},
	})
	d.run(0)
}

// carOf stands for a verified CAR.
func carOf(r blockstore.Ref) blockstore.CAR { return blockstore.CAR{Ref: r} }

func TestCommitsAreAnnouncedAtOnceAndThenNotTooOften(t *testing.T) {
	d := drive(t)
	d.committed(d.now, []blockstore.Ref{testRef(1)}, digest(1), 1)
	d.run(0)
	if got := one[doPublish](d); !slices.Equal(got.recent, []blockstore.Ref{testRef(1)}) {
		t.Errorf("announced %v", got.recent)
	}
	var published int
	for i := range 100 { // one commit every 10 ms
		d.committed(d.now, []blockstore.Ref{testRef(2 + i)}, digest(2+i), 1)
		d.run(10 * time.Millisecond)
		for _, p := range taken[doPublish](d) {
			published += len(p.recent)
			if i > 20 && len(p.recent) != 20 {
				t.Errorf("%d refs in an announcement", len(p.recent))
			}
		}
	}
	d.run(announceEvery)
	for _, p := range taken[doPublish](d) {
		published += len(p.recent)
	}
	if published != 100 {
		t.Errorf("%d refs announced of 100", published)
	}
}

func TestRecentRefsAreBounded(t *testing.T) {
	d := drive(t)
	for i := range 2 * maxRecent {
		d.committed(d.now, []blockstore.Ref{testRef(i)}, digest(i), 1)
	}
	d.run(0)
	got := one[doPublish](d).recent
	if len(got) != maxRecent || got[maxRecent-1] != testRef(2*maxRecent-1) {
		t.Errorf("%d refs", len(got))
	}
}

func TestTipsAreAnnouncedAgain(t *testing.T) {
	d := drive(t)
	d.committed(d.now, nil, digest(1), 1)
	d.run(0)
	one[doPublish](d)
	d.run(reannounceMin - time.Millisecond)
	none[doPublish](d)
	d.run(reannounceMax - reannounceMin)
	one[doPublish](d)
	// Not if someone else has just done so.
	for range 20 {
		d.announced(d.now, news{from: "p", tips: digest(1), whole: true})
		d.run(reannounceMin - time.Second)
	}
	none[doPublish](d)
}

func TestEmptyReplicaAnnouncesNothing(t *testing.T) {
	d := drive(t)
	d.joined(d.now, "p")
	d.run(time.Hour)
	none[doPublish](d)
}

func TestMergedTipsAreAnnouncedUnlessHeard(t *testing.T) {
	d := drive(t)
	d.meet("p")
	d.hear("p", 1)
	f := one[doFetch](d)
	d.fetched(d.now, f, []blockstore.CAR{carOf(testRef(1))}, nil, nil)
	d.run(0)
	m := one[doMerge](d)
	if len(m.metas) != 1 || len(m.cars) != 1 {
		t.Fatalf("merge of %d metas and %d CARs", len(m.metas), len(m.cars))
	}
	d.committed(d.now, []blockstore.Ref{testRef(1)}, digest(1), 1)
	d.merged(d.now, Merged{Accepted: []cid.Cid{testMeta(1).CID}}, nil, digest(1), 1)
	d.run(time.Second)
	none[doPublish](d) // everybody has heard of these tips

	d.hear("p", 2)
	d.fetched(d.now, one[doFetch](d), []blockstore.CAR{carOf(testRef(2))}, nil, nil)
	d.run(0)
	one[doMerge](d)
	d.merged(d.now, Merged{Accepted: []cid.Cid{testMeta(2).CID}}, nil, digest(3), 2) // with tips of our own
	d.run(0)
	one[doPublish](d)
}

func TestOneSideOpensTheExchange(t *testing.T) {
	d := drive(t)
	d.connected(d.now, "z") // greater than me: I open
	d.run(0)
	if x := one[doExchange](d); x.with != "z" {
		t.Errorf("with %s", x.with)
	}
	d.connected(d.now, "a")
	d.run(secondCall - time.Millisecond)
	none[doExchange](d)
	d.run(time.Millisecond)
	if x := one[doExchange](d); x.with != "a" {
		t.Errorf("with %s", x.with)
	}
	d.connected(d.now, "b")
	d.exchanged(d.now, "b", false, news{}, true, nil, false) // b has opened it
	d.run(time.Minute)
	none[doExchange](d)
	if got := d.members(); !slices.Equal(got, []peer.ID{"b"}) {
		t.Errorf("members %v", got)
	}
}

func TestStrangerIsLeftAlone(t *testing.T) {
	d := drive(t)
	d.connected(d.now, "z")
	for range 3 {
		d.run(time.Minute)
		one[doExchange](d)
		d.exchanged(d.now, "z", true, news{}, false, errStranger, true)
	}
	d.run(time.Hour)
	none[doExchange](d)
	d.joined(d.now, "z") // it has become a member
	d.run(time.Minute)
	one[doExchange](d)
}

func TestFailedExchangeIsTriedAgainWithGrowingPauses(t *testing.T) {
	d := drive(t)
	d.connected(d.now, "z")
	var last time.Time
	var pauses []time.Duration
	for range 12 {
		for len(d.actions) == 0 {
			d.run(10 * time.Millisecond)
		}
		one[doExchange](d)
		if !last.IsZero() {
			pauses = append(pauses, d.now.Sub(last))
		}
		last = d.now
		d.exchanged(d.now, "z", true, news{}, false, errTooMany, false)
	}
	if pauses[0] > time.Second || pauses[10] < retryMax/2 || pauses[10] > 2*retryMax {
		t.Errorf("pauses %v", pauses)
	}
}

// What one meta waits for does not hold up another.
func TestBadMetaDoesNotBlockAGoodOne(t *testing.T) {
	d := drive(t)
	d.meet("bad")
	d.meet("good")
	d.hear("bad", 1)
	stuck := one[doFetch](d) // never ends
	d.hear("good", 2)
	f := one[doFetch](d)
	if !slices.Equal(f.refs, []blockstore.Ref{testRef(2)}) || f.source != "good" {
		t.Fatalf("fetch %v for %s", f.refs, f.source)
	}
	d.fetched(d.now, f, []blockstore.CAR{carOf(testRef(2))}, nil, nil)
	d.run(0)
	m := one[doMerge](d)
	if len(m.metas) != 1 || m.metas[0].CID != testMeta(2).CID {
		t.Fatalf("merge of %v", m.metas)
	}
	d.merged(d.now, Merged{Accepted: []cid.Cid{m.metas[0].CID}}, nil, digest(2), 1)

	// The bad one is settled without its CAR, tried, and waits.
	d.fetched(d.now, stuck, nil, nil, nil)
	d.run(0)
	m = one[doMerge](d)
	d.merged(d.now, Merged{Waiting: []cid.Cid{m.metas[0].CID}}, nil, digest(2), 1)
	d.run(10 * time.Second)
	if len(taken[doFetch](d)) == 0 {
		t.Error("the missing CAR is not asked for again")
	}
	if len(taken[doExchange](d)) == 0 {
		t.Error("nobody is asked what is missing")
	}
}

func TestEmptyOffersHoldHalfOfTheFetches(t *testing.T) {
	d := drive(t)
	d.meet("bad")
	d.meet("good")
	for i := range 20 {
		d.hear("bad", i)
	}
	if got := len(taken[doFetch](d)); got != maxFetches/2 {
		t.Errorf("%d fetches for one peer", got)
	}
	d.hear("good", 100)
	if f := one[doFetch](d); f.source != "good" {
		t.Errorf("fetch for %s", f.source)
	}
	for i := range 20 {
		d.hear("good", 200+i)
	}
	if d.running > maxFetches {
		t.Errorf("%d fetches", d.running)
	}
}

func TestInlineCARNeedsNoFetchAndNoPeer(t *testing.T) {
	d := drive(t)
	ref := testRef(1)
	d.announced(d.now, news{
		from: "p", tips: digest(1), whole: true, metas: []blockstore.Meta{testMeta(1)},
		missing: []blockstore.Ref{ref}, inline: map[blockstore.Ref][]byte{ref: {1}},
	})
	d.run(0)
	f := one[doFetch](d)
	if f.inline[ref] == nil || len(f.from) > 0 {
		t.Fatalf("fetch %+v", f)
	}
	d.fetched(d.now, f, []blockstore.CAR{carOf(ref)}, nil, nil)
	d.run(0)
	one[doMerge](d)
	if len(d.wants) != 0 || d.running != 0 {
		t.Errorf("%d wants, %d fetches", len(d.wants), d.running)
	}
}

// A CAR that is being fetched arrives inside an announcement.
func TestInlineCAROvertakesAFetch(t *testing.T) {
	d := drive(t)
	d.meet("p")
	ref := testRef(1)
	d.hear("p", 1)
	slow := one[doFetch](d)
	d.announced(d.now, news{
		from: "q", tips: digest(1), whole: true, metas: []blockstore.Meta{testMeta(1)},
		missing: []blockstore.Ref{ref}, inline: map[blockstore.Ref][]byte{ref: {1}},
	})
	d.run(0)
	d.fetched(d.now, one[doFetch](d), []blockstore.CAR{carOf(ref)}, nil, nil)
	d.run(0)
	if m := one[doMerge](d); len(m.metas) != 1 {
		t.Errorf("%d metas", len(m.metas))
	}
	d.merged(d.now, Merged{Accepted: []cid.Cid{testMeta(1).CID}}, nil, digest(1), 1)
	d.fetched(d.now, slow, nil, nil, nil)
	d.run(time.Minute)
	none[doFetch](d)
	if d.running != 0 || len(d.wants)+len(d.pending) != 0 {
		t.Errorf("%d running, %d wants, %d pending", d.running, len(d.wants), len(d.pending))
	}
}

func TestFalseOfferIsBlamedAndNotFetchedAgain(t *testing.T) {
	d := drive(t)
	d.meet("bad")
	d.hear("bad", 1)
	d.fetched(d.now, one[doFetch](d), nil, nil, []blockstore.Ref{testRef(1)})
	d.run(0)
	if b := one[doBlame](d); b.whom != "bad" {
		t.Errorf("blamed %s", b.whom)
	}
	d.merged(d.now, Merged{Waiting: []cid.Cid{testMeta(1).CID}}, nil, digest(0), 0)
	d.hear("bad", 1)
	d.run(time.Minute)
	none[doFetch](d)
}

func TestRefusedMetaIsBlamedAndNotMergedAgain(t *testing.T) {
	d := drive(t)
	d.meet("bad")
	d.hear("bad", 1)
	d.fetched(d.now, one[doFetch](d), []blockstore.CAR{carOf(testRef(1))}, nil, nil)
	d.run(0)
	one[doMerge](d)
	d.merged(d.now, Merged{Refused: []cid.Cid{testMeta(1).CID}}, nil, digest(0), 0)
	d.run(0)
	if b := one[doBlame](d); b.whom != "bad" {
		t.Errorf("blamed %s", b.whom)
	}
	d.announced(d.now, news{from: "bad", tips: digest(1), whole: true, metas: []blockstore.Meta{testMeta(1)}})
	d.run(time.Minute)
	none[doMerge](d)
}

func TestWaitingMetaIsTriedWhenSomethingArrives(t *testing.T) {
	d := drive(t)
	d.meet("p")
	d.announced(d.now, news{from: "p", tips: digest(1), whole: true, metas: []blockstore.Meta{testMeta(1)}})
	d.run(0)
	one[doMerge](d)
	for range 6 { // let the pause grow
		d.merged(d.now, Merged{Waiting: []cid.Cid{testMeta(1).CID}}, nil, digest(0), 0)
		for !slices.ContainsFunc(d.actions, func(a action) bool { _, ok := a.(doMerge); return ok }) {
			d.run(100 * time.Millisecond)
		}
		one[doMerge](d)
	}
	d.merged(d.now, Merged{Waiting: []cid.Cid{testMeta(1).CID}}, nil, digest(0), 0)
	d.hear("p", 2)
	d.fetched(d.now, one[doFetch](d), []blockstore.CAR{carOf(testRef(2))}, nil, nil)
	d.run(0)
	one[doMerge](d)
	d.merged(d.now, Merged{Accepted: []cid.Cid{testMeta(2).CID}}, nil, digest(2), 1)
	d.run(time.Second)
	if m := one[doMerge](d); len(m.metas) != 1 || m.metas[0].CID != testMeta(1).CID {
		t.Errorf("merge of %v", m.metas)
	}
}

func TestGivesUpInTheEnd(t *testing.T) {
	d := drive(t)
	d.meet("p")
	d.hear("p", 1)
	for range 100 {
		d.run(10 * time.Second)
		for _, f := range taken[doFetch](d) {
			d.fetched(d.now, f, nil, nil, nil)
		}
		for range taken[doMerge](d) {
			d.merged(d.now, Merged{Waiting: []cid.Cid{testMeta(1).CID}}, nil, digest(0), 0)
		}
		for _, x := range taken[doExchange](d) {
			d.exchanged(d.now, x.with, true, news{from: x.with}, false, nil, false)
		}
	}
	if len(d.wants)+len(d.pending) != 0 {
		t.Errorf("%d wants, %d pending", len(d.wants), len(d.pending))
	}
	// And takes it up when it is offered anew.
	d.hear("p", 1)
	one[doFetch](d)
}

func TestFailedMergeLosesNothing(t *testing.T) {
	d := drive(t)
	d.meet("p")
	d.hear("p", 1)
	d.fetched(d.now, one[doFetch](d), []blockstore.CAR{carOf(testRef(1))}, nil, nil)
	d.run(0)
	one[doMerge](d)
	d.merged(d.now, Merged{}, blockstore.ErrDiskFull, digest(0), 0)
	d.run(time.Minute)
	one[doExchange](d)
	d.exchanged(d.now, "p", true, news{
		from: "p", metas: []blockstore.Meta{testMeta(1)}, missing: []blockstore.Ref{testRef(1)},
	}, false, nil, false)
	d.run(0)
	d.fetched(d.now, one[doFetch](d), []blockstore.CAR{carOf(testRef(1))}, nil, nil)
	d.run(time.Minute)
	if got := taken[doMerge](d); len(got) == 0 {
		t.Error("not merged")
	}
}

func TestPeerThatIsBehindIsToldAndThenCalled(t *testing.T) {
	d := drive(t)
	d.meet("p")
	d.committed(d.now, nil, digest(5), 1)
	d.run(time.Minute)
	taken[doPublish](d)
	d.announced(d.now, news{from: "p", tips: digest(1), whole: true}) // nothing that is not here
	d.run(greetWithin)
	one[doPublish](d)
	one[doExchange](d) // it has been announced before: gossip may not reach it
}

func TestNewMemberOfTheTopicIsGreeted(t *testing.T) {
	d := drive(t)
	d.committed(d.now, nil, digest(5), 1)
	d.run(5 * time.Second)
	one[doPublish](d)
	for range 10 {
		d.joined(d.now, "p")
	}
	d.run(greetWithin)
	one[doPublish](d)
}

func TestNoPeerNoFetch(t *testing.T) {
	d := drive(t)
	d.meet("p")
	d.disconnected("p")
	d.hear("q", 1)
	d.run(time.Hour)
	none[doFetch](d)
	d.meet("p")
	if f := one[doFetch](d); !slices.Equal(f.from, []peer.ID{"p"}) {
		t.Errorf("from %v", f.from)
	}
}

func TestPendingMetasAreBounded(t *testing.T) {
	d := drive(t)
	var metas []blockstore.Meta
	for i := range maxPendingPerPeer + 10 {
		metas = append(metas, testMeta(i))
	}
	d.announced(d.now, news{from: "p", metas: metas})
	if len(d.pending) != maxPendingPerPeer {
		t.Errorf("%d pending of one peer", len(d.pending))
	}
	for i := range 10 {
		for j := range metas {
			metas[j] = testMeta(1000*(i+1) + j)
		}
		d.announced(d.now, news{from: peer.ID(fmt.Sprint(i)), metas: metas})
	}
	if len(d.pending) != maxPending {
		t.Errorf("%d pending", len(d.pending))
	}
}

func TestWantsAreBounded(t *testing.T) {
	d := drive(t)
	d.meet("p")
	d.exchanges = maxServed // so that none is opened now
	refs := make([]blockstore.Ref, maxWants+5)
	for i := range refs {
		refs[i] = testRef(i)
	}
	d.announced(d.now, news{from: "p", missing: refs})
	if len(d.wants) != maxWants {
		t.Errorf("%d wants", len(d.wants))
	}
	d.run(0)
	var size int64
	for _, f := range taken[doFetch](d) {
		for _, r := range f.refs {
			size += r.Size
		}
		if size > maxFetchBytes {
			t.Errorf("a fetch of %d bytes", size)
		}
	}
}

func TestSameEventsSameActions(t *testing.T) {
	script := func() []string {
		d := drive(t)
		for _, p := range []peer.ID{"a", "b", "x", "y"} {
			d.connected(d.now, p)
		}
		d.run(5 * time.Second)
		for i, x := range taken[doExchange](d) {
			d.exchanged(d.now, x.with, true, news{
				from: x.with, metas: []blockstore.Meta{testMeta(i), testMeta(i + 1)}, missing: []blockstore.Ref{testRef(i), testRef(i + 1)},
			}, false, nil, false)
		}
		d.run(time.Second)
		var log []string
		for range 20 {
			for _, f := range taken[doFetch](d) {
				log = append(log, fmt.Sprint(d.now, f.refs, f.from))
				d.fetched(d.now, f, nil, nil, nil)
			}
			for _, m := range taken[doMerge](d) {
				res := Merged{}
				for _, meta := range m.metas {
					res.Waiting = append(res.Waiting, meta.CID)
				}
				log = append(log, fmt.Sprint(d.now, res.Waiting))
				d.merged(d.now, res, nil, digest(0), 0)
			}
			for _, x := range taken[doExchange](d) {
				log = append(log, fmt.Sprint(d.now, x.with))
				d.exchanged(d.now, x.with, true, news{}, false, errTooMany, false)
			}
			d.run(3 * time.Second)
		}
		return log
	}
	first := script()
	if len(first) < 20 {
		t.Fatalf("only %d actions", len(first))
	}
	for range 5 {
		if diff := cmp.Diff(first, script()); diff != "" {
			t.Fatalf("another run differs:\n%s", diff)
		}
	}
}

func TestFIFOSetForgetsTheOldest(t *testing.T) {
	s := newFIFOSet[int](3)
	for i := range 10 {
		s.add(i)
		s.add(i)
	}
	for i := range 10 {
		if got := s.has(i); got != (i >= 7) {
			t.Errorf("%d: %v", i, got)
		}
	}
	if len(s.in) != 3 {
		t.Errorf("%d members", len(s.in))
	}
}
