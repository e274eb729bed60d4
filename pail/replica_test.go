package pail

import (
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/ipfs/go-cid"
	"pgregory.net/rapid"

	"fpnode/clock"
	"fpnode/internal/dagcbor"
)

// Some replicas write few values to few keys, so that maps come back to earlier
// states all the time, and merge each other. Only what writes return is ever
// stored.
func TestMergedMapsAreWhole(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		store := blocks{}
		r := &Replica{Blocks: store, Index: clock.NewIndex(), Cache: NewCache(rapid.IntRange(0, 50).Draw(t, "cache"))}
		heads := make([][]cid.Cid, rapid.IntRange(1, 3).Draw(t, "replicas"))
		write := func(at int, batch bool, ops ...Op) {
			w, err := r.Put(t.Context(), heads[at], ops, batch)
			if err != nil {
				t.Fatal(err)
			}
			for _, b := range w.Additions {
				store[b.CID] = b.Data
			}
			if w.Event == nil {
				return
			}
			store[w.Event.CID] = w.Event.Data
			if _, err := r.Index.Add(w.Event.CID, heads[at]); err != nil {
				t.Fatal(err)
			}
			heads[at] = w.Head
			wholeTree(t, Load(store, nil, w.Tree.Root()))
		}
		write(0, false, Op{Key: "genesis", Value: value("g")})
		for i := range heads {
			heads[i] = heads[0]
		}
		for range rapid.IntRange(1, 25).Draw(t, "steps") {
			at := rapid.IntRange(0, len(heads)-1).Draw(t, "replica")
			key := func() string { return rapid.SampledFrom([]string{"k", "kk1", "kk2", "x"}).Draw(t, "key") }
			val := func() cid.Cid { return value(rapid.SampledFrom([]string{"1", "2", "3"}).Draw(t, "value")) }
			switch rapid.IntRange(0, 5).Draw(t, "step") {
			case 0:
				for _, c := range heads[rapid.IntRange(0, len(heads)-1).Draw(t, "from")] {
					heads[at] = r.Index.Advance(heads[at], c)
				}
			case 1:
				write(at, true, Op{Key: key(), Value: val()}, Op{Key: key(), Value: val()})
			case 2:
				write(at, false, Op{Del: true, Key: key()})
			default:
				write(at, false, Op{Key: key(), Value: val()})
			}
		}

		everything := r.Index.Leaves()
		merged, err := r.Root(t.Context(), everything)
		if err != nil {
			t.Fatal(err)
		}
		with := blocks{}
		for c, b := range store {
			with[c] = b
		}
		for _, b := range merged.Additions {
			with[b.CID] = b.Data
		}
		wholeTree(t, Load(with, nil, merged.Tree.Root()))

		slices.Reverse(everything)
		other := &Replica{Blocks: store, Index: r.Index}
		again, err := other.Root(t.Context(), everything)
		if err != nil || again.Tree.Root() != merged.Tree.Root() {
			t.Fatalf("roots %s and %s, %v", merged.Tree.Root(), again.Tree.Root(), err)
		}
		if len(everything) > 1 {
			if got := oneByOne(t, r, everything); got.Root() != merged.Tree.Root() {
				t.Fatalf("root %s, applied one by one %s", merged.Tree.Root(), got.Root())
			}
		}
		for seq := range uint32(r.Index.Len()) {
			if _, err := r.Check(t.Context(), r.Index.At(seq)); err != nil {
				t.Fatal(err)
			}
		}
	})
}

func wholeTree(t *rapid.T, tree Tree) {
	for _, err := range tree.Shards(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
	}
}

// oneByOne is the definition of the merged map: start from the ancestor's root
// and commit each operation of each event by itself.
func oneByOne(t *rapid.T, r *Replica, heads []cid.Cid) Tree {
	ancestor, order, err := r.Index.Replay(heads)
	if err != nil {
		t.Fatal(err)
	}
	_, base, err := r.Event(t.Context(), ancestor)
	if err != nil {
		t.Fatal(err)
	}
	tree := Load(r.Blocks, nil, base.Root)
	for _, c := range order {
		_, d, err := r.Event(t.Context(), c)
		if err != nil {
			t.Fatal(err)
		}
		for _, op := range d.Ops {
			edit := tree.Edit()
			if op.Del {
				must2(t, edit.Del(t.Context(), op.Key), nil)
			} else {
				must2(t, edit.Put(t.Context(), op.Key, op.Value), nil)
			}
			tree = edit.Commit().Tree
		}
	}
	return tree
}

func TestCheckFindsAWrongRoot(t *testing.T) {
	store := blocks{}
	x := clock.NewIndex()
	r := &Replica{Blocks: store, Index: x}
	g, err := r.Put(t.Context(), nil, []Op{{Key: "k", Value: value("1")}}, false)
	must(t, err)
	store.put(t, append(g.Additions, *g.Event)...)
	_, err = x.Add(g.Event.CID, nil)
	must(t, err)
	lie := Data{Root: g.Tree.Root(), Ops: []Op{{Key: "k", Value: value("2")}}}
	c, block := clock.Encode(lie.Encode(), g.Head)
	store[c] = block
	_, err = x.Add(c, g.Head)
	must(t, err)
	if _, err := r.Check(t.Context(), c); !errors.Is(err, ErrRoot) {
		t.Errorf("Check: %v", err)
	}
	if _, err := r.Check(t.Context(), g.Event.CID); err != nil {
		t.Errorf("Check of the genesis: %v", err)
	}
	if _, err := r.Check(t.Context(), dagcbor.Sum(nil)); !errors.Is(err, clock.ErrMissing) {
		t.Errorf("Check of an event that is not there: %v", err)
	}
	noData, noEvent := []byte("\xa2\x64data\x01\x67parents\x80"), []byte{0}
	store[dagcbor.Sum(noData)], store[dagcbor.Sum(noEvent)] = noData, noEvent
	if _, err := r.Check(t.Context(), dagcbor.Sum(noData)); !errors.Is(err, ErrData) {
		t.Errorf("Check of an event without map: %v", err)
	}
	if _, err := r.Check(t.Context(), dagcbor.Sum(noEvent)); !errors.Is(err, clock.ErrEvent) {
		t.Errorf("Check of no event: %v", err)
	}
}

// A put on a head of two events carries the shards of their merge, which
// nobody has stored before.
func TestPutStoresTheMerge(t *testing.T) {
	store := blocks{}
	x := clock.NewIndex()
	r := &Replica{Blocks: store, Index: x}
	write := func(head []cid.Cid, key, val string) []cid.Cid {
		w, err := r.Put(t.Context(), head, []Op{{Key: key, Value: value(val)}}, false)
		must(t, err)
		store.put(t, append(w.Additions, *w.Event)...)
		_, err = x.Add(w.Event.CID, head)
		must(t, err)
		return w.Head
	}
	g := write(nil, "g", "g")
	heads := [][]cid.Cid{g, g}
	for i := range 20 {
		for side := range heads {
			heads[side] = write(heads[side], fmt.Sprintf("aa%d-%d", i, side), "v")
		}
	}
	both := slices.Concat(heads...)
	merged, err := r.Root(t.Context(), both)
	must(t, err)
	if v, ok, err := Load(store, nil, merged.Tree.Root()).Get(t.Context(), "aa0-0"); err == nil {
		t.Fatalf("the merged map is stored already: %v, %v", v, ok)
	}
	m := write(both, "zz", "z")
	result, err := r.Root(t.Context(), m)
	must(t, err)
	n := 0
	for _, err := range result.Tree.Entries(t.Context(), Range{}) {
		must(t, err)
		n++
	}
	if n != 42 {
		t.Errorf("%d keys, want 42", n)
	}
}
