package blockstore_test

import (
	"math/rand/v2"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/google/go-cmp/cmp"

	"fpnode/blockstore"
)

func TestOnCommitTellsWhatWasAdded(t *testing.T) {
	s := openStore(t, config(vfs.NewMem()))
	l := openLedger(t, s, 1)
	var told []blockstore.Ref
	l.OnCommit(func(cars []blockstore.Ref) {
		for _, r := range cars {
			if _, ok, err := l.Ref(r.Name); !ok || err != nil {
				t.Errorf("told of %s before it is readable: %v", r.Name, err)
			}
		}
		if len(l.Tips()) == 0 {
			t.Error("told before the tips are swapped")
		}
		told = append(told, cars...)
	})
	var want []blockstore.Ref
	for _, c := range fill(t, l, 1, 3) {
		want = append(want, c.Ref)
	}
	// A CAR that is there already is not news.
	old := dataCAR(t, l, block(rand.New(rand.NewPCG(9, 9)), 10))
	for range 2 {
		if err := l.Commit(ctx, tipCIDs(l), blockstore.Batch{CARs: []blockstore.CAR{old}}); err != nil {
			t.Fatal(err)
		}
	}
	want = append(want, old.Ref)
	same := cmp.Comparer(func(a, b blockstore.Ref) bool { return a == b })
	if diff := cmp.Diff(want, told, same); diff != "" {
		t.Errorf("told (-want +got):\n%s", diff)
	}
	l.OnCommit(nil)
	fill(t, l, 2, 1)
	if len(told) != len(want) {
		t.Error("told after the end")
	}
}
