package headsync

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"iter"
	"net"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p/core/peer"

	"fpnode/blockstore"
)

// shelf is an inventory.
type shelf struct {
	tips []blockstore.Meta
	refs []blockstore.Ref
	err  error
}

func (s *shelf) Tips() []blockstore.Meta { return s.tips }

func (s *shelf) Refs() iter.Seq2[blockstore.Ref, error] {
	return func(yield func(blockstore.Ref, error) bool) {
		for _, r := range s.refs {
			if !yield(r, nil) {
				return
			}
		}
		if s.err != nil {
			yield(blockstore.Ref{}, s.err)
		}
	}
}

func shelfOf(from, to int) *shelf {
	s := new(shelf)
	for i := from; i < to; i++ {
		s.refs = append(s.refs, testRef(i))
	}
	if to > from {
		s.tips = []blockstore.Meta{testMeta(to - 1)}
	}
	return s
}

// end is one side of an exchange that took place.
type end struct {
	offer  offer
	err    error
	proved bool
	sent   int // bytes
}

// pipe is one end of a stream, which can be tampered with on its way out.
type pipe struct {
	net.Conn
	tamper func(b []byte) []byte // nil: break the stream
	sent   int
}

func (p *pipe) Write(b []byte) (int, error) {
	p.sent += len(b)
	if p.tamper == nil {
		return p.Conn.Write(b)
	}
	changed := p.tamper(bytes.Clone(b))
	if changed == nil {
		p.Close()
		return 0, io.ErrClosedPipe
	}
	if _, err := p.Conn.Write(changed); err != nil {
		return 0, err
	}
	return len(b), nil
}

const alice, bob = peer.ID("alice"), peer.ID("bob")

// trade runs an exchange of two inventories.
func trade(t testing.TB, opening, serving capability, a, b *shelf, tamper func([]byte) []byte) (opener, server end) {
	t.Helper()
	left, right := net.Pipe()
	// A length that was tampered with can leave both waiting for the other, until the
	// time is up.
	patience := time.Minute
	if tamper != nil {
		patience = 200 * time.Millisecond
	}
	right.SetDeadline(time.Now().Add(patience))
	left.SetDeadline(time.Now().Add(patience))
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer right.Close()
		out := &pipe{Conn: right}
		defer func() { server.sent = out.sent }()
		server.offer, server.err = serveExchange(out, bob, alice, func(check func(*capability) bool) (*capability, inventory, func()) {
			if !check(&serving) {
				return nil, nil, nil
			}
			return &serving, b, func() { server.proved = true }
		})
	}()
	out := &pipe{Conn: left, tamper: tamper}
	opener.offer, opener.err = openExchange(out, &opening, alice, bob, a, func() { opener.proved = true })
	opener.sent = out.sent
	left.Close()
	<-done
	return opener, server
}

func names(refs []blockstore.Ref) []string {
	var out []string
	for _, r := range refs {
		out = append(out, r.Name.String())
	}
	slices.Sort(out)
	return out
}

func TestExchangeTellsBothWhatTheyLack(t *testing.T) {
	c := testCapability(t, "key", 1)
	for _, tc := range []struct {
		name       string
		a, b       *shelf
		aGet, bGet *shelf
	}{
		{"both empty", shelfOf(0, 0), shelfOf(0, 0), nil, nil},
		{"equal", shelfOf(0, 10), shelfOf(0, 10), nil, nil},
		{"opener empty", shelfOf(0, 0), shelfOf(0, 10), shelfOf(0, 10), shelfOf(0, 0)},
		{"server empty", shelfOf(0, 10), shelfOf(0, 0), shelfOf(0, 0), shelfOf(0, 10)},
		{"opener behind", shelfOf(0, 5), shelfOf(0, 10), shelfOf(5, 10), shelfOf(0, 0)},
		{"overlap", shelfOf(0, 700), shelfOf(300, 1000), shelfOf(700, 1000), shelfOf(0, 300)},
		{"strangers to each other", shelfOf(0, 3000), shelfOf(5000, 9000), shelfOf(5000, 9000), shelfOf(0, 3000)},
	} {
		t.Run(tc.name, func(t *testing.T) {
			opener, server := trade(t, c, c, tc.a, tc.b, nil)
			if opener.err != nil || server.err != nil {
				t.Fatal(opener.err, server.err)
			}
			if !opener.proved || !server.proved {
				t.Error("the key was not proved")
			}
			if tc.aGet == nil {
				if !opener.offer.equal || !server.offer.equal {
					t.Error("not found equal")
				}
				return
			}
			if diff := cmp.Diff(names(tc.aGet.refs), names(opener.offer.refs)); diff != "" {
				t.Errorf("offered to the opener (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(names(tc.bGet.refs), names(server.offer.refs)); diff != "" {
				t.Errorf("offered to the server (-want +got):\n%s", diff)
			}
			same := cmp.Options{cmp.Comparer(func(a, b cid.Cid) bool { return a == b }), cmpopts.EquateEmpty()}
			if diff := cmp.Diff(tc.b.tips, opener.offer.tips, same); diff != "" {
				t.Errorf("tips for the opener (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(tc.a.tips, server.offer.tips, same); diff != "" {
				t.Errorf("tips for the server (-want +got):\n%s", diff)
			}
		})
	}
}

func TestExchangeCostsWhatDiffers(t *testing.T) {
	c := testCapability(t, "key", 1)
	a, b := shelfOf(0, 100_000), shelfOf(5, 100_010)
	opener, server := trade(t, c, c, a, b, nil)
	if opener.err != nil || server.err != nil {
		t.Fatal(opener.err, server.err)
	}
	if len(opener.offer.refs) != 10 || len(server.offer.refs) != 5 {
		t.Errorf("%d and %d refs", len(opener.offer.refs), len(server.offer.refs))
	}
	if opener.sent > 8*100_000+10_000 || server.sent > 10_000 {
		t.Errorf("the opener sent %d bytes, the server %d", opener.sent, server.sent)
	}
}

func TestExchangeOfTooMuchGoesOn(t *testing.T) {
	if testing.Short() {
		t.Skip("compares 270,000 CARs")
	}
	c := testCapability(t, "key", 1)
	a, b := shelfOf(0, maxOffers+7), shelfOf(maxOffers+7, 2*maxOffers+20)
	opener, server := trade(t, c, c, a, b, nil)
	if opener.err != nil || server.err != nil {
		t.Fatal(opener.err, server.err)
	}
	for name, o := range map[string]offer{"opener": opener.offer, "server": server.offer} {
		if len(o.refs) != maxOffers || !o.more {
			t.Errorf("%s: %d refs, more %v", name, len(o.refs), o.more)
		}
	}
}

// endless is an inventory of more CARs than an exchange can hold.
type endless struct{ *shelf }

func (endless) Refs() iter.Seq2[blockstore.Ref, error] {
	ref := testRef(1)
	return func(yield func(blockstore.Ref, error) bool) {
		for yield(ref, nil) {
		}
	}
}

func TestInventoryIsBounded(t *testing.T) {
	if _, err := keysOf(endless{}, make([]byte, saltBytes)); !errors.Is(err, errTooMany) {
		t.Errorf("got %v", err)
	}
}

func TestTipsOfAnySizeTravel(t *testing.T) {
	c := testCapability(t, "key", 1)
	parents := make([]cid.Cid, 4096)
	for i := range parents {
		parents[i] = testMeta(i).CID
	}
	a, b := shelfOf(0, 0), shelfOf(0, 1)
	b.tips = []blockstore.Meta{blockstore.NewMeta([]blockstore.Ref{testRef(1)}, parents)}
	for i := range 2000 {
		b.tips = append(b.tips, testMeta(i))
	}
	opener, _ := trade(t, c, c, a, b, nil)
	if opener.err != nil || len(opener.offer.tips) != len(b.tips) {
		t.Errorf("%d tips, %v", len(opener.offer.tips), opener.err)
	}
}

func TestStrangerGetsNoAnswer(t *testing.T) {
	mine := testCapability(t, "key", 1)
	for name, theirs := range map[string]capability{
		"another key": testCapability(t, "yek", 1), "another ledger": testCapability(t, "key", 2),
	} {
		opener, server := trade(t, theirs, mine, shelfOf(0, 3), shelfOf(0, 5), nil)
		if !errors.Is(server.err, errStranger) || opener.err == nil || opener.proved || server.proved {
			t.Errorf("%s: %v, %v", name, opener.err, server.err)
		}
	}
}

// A proof is worth nothing to anyone but the two it was made between.
func TestProofCannotBePassedOn(t *testing.T) {
	c := testCapability(t, "key", 1)
	salt := random(saltBytes)
	good := c.proof(salt, alice, bob)
	for name, other := range map[string][]byte{
		"to a third":   c.proof(salt, alice, "carol"),
		"from a third": c.proof(salt, "carol", bob),
		"back":         c.proof(salt, bob, alice),
		"shifted":      c.proof(salt, alice+"b", "ob"),
		"again":        c.proof(random(saltBytes), alice, bob),
	} {
		if bytes.Equal(good, other) {
			t.Errorf("%s: the proof is the same", name)
		}
	}
}

func TestExchangeThatBreaksTellsNothingFalse(t *testing.T) {
	c := testCapability(t, "key", 1)
	a, b := shelfOf(0, 20), shelfOf(10, 30)
	total := 0
	trade(t, c, c, a, b, func(p []byte) []byte { total += len(p); return p })
	for at := range total {
		sent := 0
		_, server := trade(t, c, c, a, b, func(p []byte) []byte {
			if sent+len(p) > at {
				return nil
			}
			sent += len(p)
			return p
		})
		if server.err == nil {
			t.Fatalf("cut at %d of %d: the server noticed nothing", at, total)
		}
	}
	for at := range total {
		sent := 0
		opener, server := trade(t, c, c, a, b, func(p []byte) []byte {
			if sent <= at && at < sent+len(p) {
				p[at-sent] ^= 0x10
			}
			sent += len(p)
			return p
		})
		if server.err == nil {
			t.Fatalf("byte %d flipped: %v, %v", at, opener.err, server.err)
		}
	}
}

func TestReplicaThatCannotBeReadEndsTheExchange(t *testing.T) {
	c := testCapability(t, "key", 1)
	broken := errors.New("broken disk")
	a, b := shelfOf(0, 5), shelfOf(0, 7)
	a.err = broken
	if opener, _ := trade(t, c, c, a, b, nil); !errors.Is(opener.err, broken) {
		t.Errorf("opener: %v", opener.err)
	}
	if _, server := trade(t, c, c, b, a, nil); !errors.Is(server.err, broken) {
		t.Errorf("server: %v", server.err)
	}
}

// liar opens an exchange with a good proof and then sends what it likes.
func liar(t *testing.T, frames func(w *conversation)) end {
	t.Helper()
	c := testCapability(t, "key", 1)
	left, right := net.Pipe()
	right.SetDeadline(time.Now().Add(5 * time.Second))
	var server end
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer right.Close()
		server.offer, server.err = serveExchange(right, bob, alice, func(check func(*capability) bool) (*capability, inventory, func()) {
			return &c, shelfOf(0, 5), func() { server.proved = true }
		})
	}()
	salt := random(saltBytes)
	w := newConversation(left, &c, salt, "open", "serve", alice, bob)
	go io.Copy(io.Discard, left)
	w.out.Write(append(salt, c.proof(salt, alice, bob)...))
	w.send(kindHello, make([]byte, 32))
	frames(w)
	w.flush()
	<-done // it notices, or it waits for more until the time is up
	left.Close()
	return server
}

func TestLiesInAnExchange(t *testing.T) {
	key := func(k uint64) []byte { return binary.BigEndian.AppendUint64(nil, k) }
	raw := func(w *conversation, n uint32) { w.out.Write(binary.BigEndian.AppendUint32(nil, n)) }
	for _, tc := range []struct {
		name   string
		frames func(w *conversation)
		want   error
	}{
		{"keys out of order", func(w *conversation) {
			w.send(kindKeys, append(key(2), key(1)...))
			w.send(kindEnd, nil)
		}, ErrSyntax},
		{"half a key", func(w *conversation) { w.send(kindKeys, key(1)[:7]) }, ErrSyntax},
		{"half a ref", func(w *conversation) { w.send(kindRefs, make([]byte, refBytes-1)) }, ErrSyntax},
		{"a ref of no bytes", func(w *conversation) { w.send(kindRefs, make([]byte, refBytes)) }, ErrSyntax},
		{"a meta cut off", func(w *conversation) { w.send(kindMetas, []byte{0, 0, 0, 9, 1}) }, ErrSyntax},
		{"a meta that is none", func(w *conversation) { w.send(kindMetas, []byte{0, 0, 0, 1, 0xa0, 0, 0, 0, 0}) }, ErrSyntax},
		{"a frame of no kind", func(w *conversation) { w.send('?', nil) }, ErrSyntax},
		{"hello twice", func(w *conversation) { w.send(kindHello, make([]byte, 32)) }, ErrSyntax},
		{"equal after all", func(w *conversation) { w.send(kindKeys, key(1)); w.send(kindSame, nil) }, ErrSyntax},
		{"an end with something in it", func(w *conversation) { w.send(kindEnd, []byte{1}) }, ErrSyntax},
		{"a frame too short", func(w *conversation) { raw(w, 3) }, ErrSeal},
		{"a frame too long", func(w *conversation) { raw(w, maxFrameBytes+1) }, ErrTooLong},
		{"a frame out of turn", func(w *conversation) { w.oN++; w.send(kindEnd, nil) }, ErrSeal},
		{"more than an exchange holds", func(w *conversation) {
			for range maxExchangeBytes/(maxFrameBytes/2) + 1 {
				w.send(kindMore, make([]byte, maxFrameBytes/2))
			}
		}, ErrTooLong},
		{"more tips than there can be", func(w *conversation) {
			block := testMeta(1).Block
			one := append(binary.BigEndian.AppendUint32(nil, uint32(len(block))), block...)
			one = append(one, 0, 0, 0, 0)
			for range maxTips/1000 + 1 {
				w.send(kindMetas, bytes.Repeat(one, 1000))
			}
		}, ErrSyntax},
	} {
		if server := liar(t, tc.frames); !errors.Is(server.err, tc.want) {
			t.Errorf("%s: %v, want %v", tc.name, server.err, tc.want)
		}
	}
}

func TestFramesAreBounded(t *testing.T) {
	c := testCapability(t, "key", 1)
	w := newConversation(new(bytes.Buffer), &c, random(saltBytes), "open", "serve", alice, bob)
	w.send(kindRefs, make([]byte, maxFrameBytes))
	if w.flush() == nil {
		t.Error("sent")
	}
}

func FuzzMetas(f *testing.F) {
	c := newCapability(plainSecrets("key"), [32]byte{})
	var out bytes.Buffer
	w := newConversation(&out, &c, make([]byte, saltBytes), "open", "open", alice, bob)
	w.sendMetas([]blockstore.Meta{testMeta(1), blockstore.NewMeta([]blockstore.Ref{testRef(2), testRef(3)}, []cid.Cid{testMeta(1).CID})})
	if err := w.flush(); err != nil {
		f.Fatal(err)
	}
	body, err := w.receive(kindMetas)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(body)
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, body []byte) {
		var o offer
		if err := o.addMetas(body); err != nil {
			if !errors.Is(err, ErrSyntax) {
				t.Errorf("%v", err)
			}
			return
		}
		for _, m := range o.tips {
			if !m.CID.Defined() || len(m.Group) == 0 {
				t.Errorf("meta %+v", m)
			}
		}
	})
}

func FuzzRefs(f *testing.F) {
	b, _ := appendRef(nil, testRef(1))
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		refs, err := readRefs(b, 100)
		if err != nil {
			return
		}
		var again []byte
		for _, r := range refs {
			var ok bool
			if again, ok = appendRef(again, r); !ok {
				t.Fatalf("cannot be written again: %v", r)
			}
		}
		if !bytes.Equal(again, b) {
			t.Errorf("read and written: %x, was %x", again, b)
		}
	})
}

func BenchmarkExchange(b *testing.B) {
	c := testCapability(b, "key", 1)
	for _, n := range []int{1000, 100_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			x, y := shelfOf(0, n), shelfOf(1, n+1)
			for b.Loop() {
				opener, server := trade(b, c, c, x, y, nil)
				if opener.err != nil || server.err != nil {
					b.Fatal(opener.err, server.err)
				}
			}
		})
	}
}
