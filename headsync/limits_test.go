package headsync

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"fpnode/blockstore"
)

// shutter is a Net and Fetcher that remembers who was shut out.
type shutter struct {
	Net
	Fetcher
	shut []peer.ID
}

func (s *shutter) Block(p peer.ID, _ time.Duration) { s.shut = append(s.shut, p) }
func (s *shutter) Revoke(peer.ID)                   {}

func TestGarbageShutsAPeerOut(t *testing.T) {
	net := new(shutter)
	s := New(Config{Net: net, Fetcher: net})
	for i := range maxGarbage {
		if len(net.shut) > 0 {
			t.Fatalf("shut out after %d faults", i)
		}
		s.blame("bad", "garbage")
		if i == 2 && s.Faults("bad") != 3 {
			t.Errorf("%d faults counted", s.Faults("bad"))
		}
	}
	if len(net.shut) != 1 || net.shut[0] != "bad" || s.Faults("bad") != 0 {
		t.Errorf("shut out: %v", net.shut)
	}
}

func TestCountedPeersAreBounded(t *testing.T) {
	s := New(Config{Net: new(shutter), Fetcher: new(shutter)})
	for i := range 3 * maxCounted {
		s.blame(peer.ID(fmt.Sprint(i)), "garbage")
	}
	if len(s.faults) > maxCounted {
		t.Errorf("%d peers counted", len(s.faults))
	}
}

func TestLedgersAreBounded(t *testing.T) {
	s := New(Config{Net: new(shutter), Fetcher: new(shutter)})
	for i := range maxLedgers {
		s.rooms[[32]byte{1, byte(i), byte(i >> 8)}] = nil
	}
	one := Ledger{ID: [32]byte{2}, Secrets: plainSecrets("key")}
	if err := s.Add(one); !errors.Is(err, ErrLedger) {
		t.Errorf("one too many: %v", err)
	}
	clear(s.rooms)
	if err := s.Add(one); err != nil {
		t.Fatal(err)
	}
	if err := s.Add(one); !errors.Is(err, ErrLedger) {
		t.Errorf("twice: %v", err)
	}
	if err := s.Remove(one.ID); err != nil {
		t.Error(err)
	}
	if err := s.Remove(one.ID); !errors.Is(err, ErrLedger) {
		t.Errorf("removed twice: %v", err)
	}
	if _, err := s.Status(one.ID); !errors.Is(err, ErrLedger) {
		t.Errorf("status of none: %v", err)
	}
}

func TestMailIsBounded(t *testing.T) {
	r := newRoom(New(Config{}), Ledger{}, capability{})
	for i := range 3 * maxQueuedAnnouncements {
		r.mail.announcement(news{from: peer.ID(fmt.Sprint(i))})
	}
	for i := range 3 * maxRecent {
		r.mail.commit([]blockstore.Ref{testRef(i)})
	}
	got := r.mail.take()
	if n := len(got.announcements); n != maxQueuedAnnouncements || got.announcements[n-1].from != peer.ID(fmt.Sprint(3*n-1)) {
		t.Errorf("%d announcements", n)
	}
	if n := len(got.refs); n != maxRecent || got.refs[n-1] != testRef(3*n-1) {
		t.Errorf("%d refs", n)
	}
}

func TestMailTellsOfABounce(t *testing.T) {
	for _, tc := range []struct {
		events []bool
		want   arrival
	}{
		{[]bool{true}, arrival{true, false}},
		{[]bool{true, true}, arrival{true, false}},
		{[]bool{false}, arrival{false, false}},
		{[]bool{false, true}, arrival{true, true}},
		{[]bool{true, false}, arrival{false, true}},
		{[]bool{true, false, true, true}, arrival{true, true}},
	} {
		r := newRoom(New(Config{}), Ledger{}, capability{})
		for _, up := range tc.events {
			r.mail.peer("p", up)
		}
		if got := r.mail.take().peers["p"]; got != tc.want {
			t.Errorf("%v: %+v, want %+v", tc.events, got, tc.want)
		}
	}
}

func TestExchangesAtATimeAreBounded(t *testing.T) {
	d := drive(t)
	for i := range 3 * maxServed {
		d.connected(d.now, peer.ID(fmt.Sprint("z", i)))
	}
	d.run(0)
	first := taken[doExchange](d)
	if len(first) != maxServed {
		t.Errorf("%d exchanges", len(first))
	}
	d.exchanged(d.now, first[0].with, true, news{}, true, nil, false)
	d.disconnected(first[1].with)
	d.run(0)
	if got := taken[doExchange](d); len(got) != 2 {
		t.Errorf("%d more exchanges, want 2", len(got))
	}
}

func TestInlineChecksAreBounded(t *testing.T) {
	d := drive(t)
	for i := range 2 * maxInline {
		ref := testRef(i)
		d.announced(d.now, news{
			from: "p", metas: []blockstore.Meta{testMeta(i)}, missing: []blockstore.Ref{ref},
			inline: map[blockstore.Ref][]byte{ref: {1}},
		})
	}
	d.run(0)
	checks := taken[doFetch](d)
	if len(checks) != maxInline {
		t.Errorf("%d checks", len(checks))
	}
	if len(d.due) != maxInline {
		t.Errorf("%d to be fetched", len(d.due))
	}
	for _, c := range checks {
		d.fetched(d.now, c, nil, c.refs, nil)
	}
	if d.checks != 0 {
		t.Errorf("%d checks counted", d.checks)
	}
}

func TestSourcesAreBounded(t *testing.T) {
	d := drive(t)
	for i := range 2 * maxSources {
		d.announced(d.now, news{from: peer.ID(fmt.Sprint(i)), missing: []blockstore.Ref{testRef(1)}})
	}
	if n := len(d.wants[testRef(1)].sources); n != maxSources {
		t.Errorf("%d sources", n)
	}
}
