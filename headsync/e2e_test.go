package headsync_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	"go.uber.org/goleak"

	"fpnode/blockstore"
	"fpnode/headsync"
	"fpnode/keyring"
)

func TestPutsOnBothSidesArrive(t *testing.T) {
	a, b := openNode(t, "a", testKey()), openNode(t, "b", testKey())
	a.put(`{"_id":"before","x":1}`)
	a.up()
	b.up(a)
	waitEqual(t, a, b)
	a.put(`{"_id":"from-a","x":1}`)
	b.put(`{"_id":"from-b","x":1}`)
	waitEqual(t, a, b)
	info, err := b.db.Info(t.Context())
	if err != nil || info.Docs != 3 {
		t.Errorf("%d documents, %v", info.Docs, err)
	}
}

func TestConcurrentWritersConverge(t *testing.T) {
	nodes := []*testNode{openNode(t, "a", testKey()), openNode(t, "b", testKey()), openNode(t, "c", testKey())}
	a, b, c := nodes[0], nodes[1], nodes[2]
	a.up()
	b.up(a)
	c.up(b) // a and c meet through b only
	waitMet(t, a, b)
	waitMet(t, b, c)
	var writers sync.WaitGroup
	for _, n := range nodes {
		writers.Go(func() {
			n.putMany(0, 40)
			for i := range 10 {
				n.put(fmt.Sprintf(`{"_id":"same-%d","by":%q}`, i, n.name))
			}
		})
	}
	writers.Wait()
	waitEqual(t, nodes...)
	if info, err := c.db.Info(t.Context()); err != nil || info.Docs != 3*40+10 {
		t.Errorf("%d documents, %v", info.Docs, err)
	}
}

func TestLateJoinerCatchesUp(t *testing.T) {
	a, b := openNode(t, "a", testKey()), openNode(t, "b", testKey())
	a.putMany(0, 500)
	a.up()
	b.up(a)
	waitEqual(t, a, b)
	if n := b.cars.Stats().Cars; n < 500 {
		t.Errorf("%d CARs", n)
	}
	// It was off for a while, and wrote meanwhile.
	b.down()
	a.putMany(500, 600)
	b.putMany(0, 20)
	b.close()
	b.open()
	b.up(a)
	waitEqual(t, a, b)
}

func TestBigFileTravels(t *testing.T) {
	a, b := openNode(t, "a", testKey()), openNode(t, "b", testKey())
	a.up()
	b.up(a)
	waitMet(t, a, b)
	content := make([]byte, 5<<20+123)
	rand.NewChaCha8([32]byte{1}).Read(content)
	_, err := a.db.PutFile(t.Context(), "with-file", "big", "application/octet-stream", int64(len(content)), bytes.NewReader(content))
	if err != nil {
		t.Fatal(err)
	}
	waitEqual(t, a, b)
	var got []byte
	waitFor(t, "the file", func() bool {
		_, r, err := b.db.File(t.Context(), "with-file", "big")
		if err != nil {
			return false
		}
		defer r.Close()
		got, err = io.ReadAll(r)
		return err == nil
	}, a, b)
	if !bytes.Equal(got, content) {
		t.Error("other content")
	}
}

func TestLedgerAddedLate(t *testing.T) {
	a, b := openNode(t, "a", testKey()), openNode(t, "b", testKey())
	a.put(`{"_id":"one","x":1}`)
	a.up()
	b.up(a)
	waitEqual(t, a, b)
	if err := a.sync.Remove(a.entry.ID); err != nil {
		t.Fatal(err)
	}
	a.put(`{"_id":"two","x":1}`)
	b.put(`{"_id":"three","x":1}`)
	err := a.sync.Add(headsync.Ledger{ID: a.entry.ID, Name: "a", Secrets: a.entry.Keys, Replica: replica{a.cars, a.db}})
	if err != nil {
		t.Fatal(err)
	}
	waitEqual(t, a, b)
	b.put(`{"_id":"four","x":1}`)
	waitEqual(t, a, b)
	a.put(`{"_id":"five","x":1}`)
	waitEqual(t, a, b)
}

// A node with another key that knows everything else: addresses, topic and protocol.
func TestStrangerGetsNothing(t *testing.T) {
	other, err := keyring.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	a, b, s := openNode(t, "a", testKey()), openNode(t, "b", testKey()), openNode(t, "stranger", other)
	a.putMany(0, 5)
	a.up()
	s.up(a)
	s.put(`{"_id":"mine","x":1}`)
	b.up(a, s)
	waitEqual(t, a, b)
	waitFor(t, "the stranger to be connected", func() bool {
		return slices.Contains(s.host.Connected(), a.host.ID()) && slices.Contains(s.host.Connected(), b.host.ID())
	}, a, b, s)

	// It takes part in the members' topic and asks for a block by its name.
	topic := headsync.TopicOf(a.entry.Keys, a.entry.ID)
	heard := make(chan []byte, 100)
	leave, err := s.host.Join(topic, func(_, _ peer.ID, data []byte) (bool, error) {
		heard <- data
		return false, nil
	}, func(peer.ID) {})
	if err != nil {
		t.Fatal(err)
	}
	defer leave()
	a.put(`{"_id":"canary-document","secret":"canary-value"}`)
	waitEqual(t, a, b)
	for done := false; !done; {
		select {
		case data := <-heard:
			if bytes.Contains(data, []byte("canary")) {
				t.Error("the stranger reads an announcement")
			}
		default:
			done = true
		}
	}
	var refs []blockstore.Ref
	for r, err := range a.cars.Refs() {
		if err != nil {
			t.Fatal(err)
		}
		refs = append(refs, r)
	}
	s.swap.Admit(a.host.ID())
	s.swap.Admit(b.host.ID())
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	for ref := range s.swap.Fetch(ctx, []peer.ID{a.host.ID(), b.host.ID()}, refs) {
		t.Errorf("the stranger got %s", ref.Wire)
	}

	// An exchange with a proof under its own key is answered like one for a ledger that
	// does not exist: by nothing.
	for range 2 {
		err := s.host.Call(t.Context(), a.host.ID(), headsync.RefsProtocol, 1<<20, func(rw io.ReadWriter) error {
			junk := make([]byte, 200)
			rand.NewChaCha8([32]byte{2}).Read(junk)
			if _, err := rw.Write(junk); err != nil {
				return err
			}
			answer, err := io.ReadAll(rw)
			if len(answer) > 0 {
				t.Errorf("answered with %d bytes", len(answer))
			}
			return err
		})
		if err == nil {
			t.Error("the stream was not reset")
		}
	}
	if a.isMember(s) || s.isMember(a) || a.swap.Admitted(s.host.ID()) {
		t.Error("the stranger passes for a member")
	}

	// Garbage on the topic shuts it out.
	for i := 0; slices.Contains(a.host.Connected(), s.host.ID()); i++ {
		if err := s.host.Publish(t.Context(), topic, fmt.Appendf([]byte{1}, "garbage %100d", i)); err != nil {
			t.Fatal(err)
		}
		if i > 10_000 {
			t.Fatal("the stranger was not shut out")
		}
		time.Sleep(time.Millisecond)
	}
	if n := len(s.db.Head()); n != 1 {
		t.Errorf("head of %d", n)
	}
	a.put(`{"_id":"after","x":1}`)
	waitEqual(t, a, b)
}

func TestDownLeavesNothingRunning(t *testing.T) {
	a, b := openNode(t, "a", testKey()), openNode(t, "b", testKey())
	before := goleak.IgnoreCurrent()
	a.putMany(0, 10)
	a.up()
	b.up(a)
	waitEqual(t, a, b)
	b.put(`{"_id":"x","x":1}`)
	a.down()
	b.down()
	goleak.VerifyNone(t, before, goleak.IgnoreTopFunction("go.opencensus.io/stats/view.(*worker).start"))
}
