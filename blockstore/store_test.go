package blockstore_test

import (
	"errors"
	"math/rand/v2"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/google/go-cmp/cmp"
	"github.com/ipfs/go-cid"

	"fpnode/blockstore"
)

func TestCommitAndReadBack(t *testing.T) {
	fs := vfs.NewMem()
	s, err := blockstore.Open(config(fs))
	if err != nil {
		t.Fatal(err)
	}
	l := openLedger(t, s, 1)
	cars := fill(t, l, 1, 50)
	for i := range cars {
		if err := verify(s, l, &cars[i]); err != nil {
			t.Fatalf("CAR %d: %v", i, err)
		}
	}
	tips := l.Tips()
	stats := l.Stats()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}

	s = openStore(t, config(fs))
	l = openLedger(t, s, 1)
	for i := range cars {
		if err := verify(s, l, &cars[i]); err != nil {
			t.Fatalf("after reopening, CAR %d: %v", i, err)
		}
	}
	if diff := cmp.Diff(tips, l.Tips(), cmp.Comparer(cid.Cid.Equals)); diff != "" {
		t.Errorf("tips after reopening (-before +after):\n%s", diff)
	}
	if l.Stats() != stats {
		t.Errorf("Stats = %+v, before reopening %+v", l.Stats(), stats)
	}
	if n := s.Syncs(); n != 0 {
		t.Errorf("opening synced %d times", n)
	}
	fill(t, l, 2, 3)
	if n := s.Syncs(); n != 3 {
		t.Errorf("3 commits synced %d times", n)
	}
}

func TestCommitIsCompareAndSwap(t *testing.T) {
	s := openStore(t, config(vfs.NewMem()))
	l := openLedger(t, s, 1)
	fill(t, l, 1, 2)
	old := tipCIDs(l)
	fill(t, l, 2, 1)
	c := dataCAR(t, l, block(rand.New(rand.NewPCG(3, 3)), 10))
	m := blockstore.NewMeta([]blockstore.Ref{c.Ref}, old)
	err := l.Commit(ctx, old, blockstore.Batch{CARs: []blockstore.CAR{c}, Tips: []blockstore.Meta{m}})
	if !errors.Is(err, blockstore.ErrStale) {
		t.Fatalf("Commit on replaced tips: %v, want ErrStale", err)
	}
	if l.Known(c.Ref.Name) {
		t.Error("a refused commit stored its CAR")
	}
}
