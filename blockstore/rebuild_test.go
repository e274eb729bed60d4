package blockstore_test

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/google/go-cmp/cmp"
	"github.com/ipfs/go-cid"

	"fpnode/blockstore"
	"fpnode/internal/car"
)

// busyLedger makes commits of every shape: several CARs, CARs known already, blocks in several CARs, a CAR over 1 MiB,
// names without bytes, several tips, notes set and removed.
func busyLedger(t testing.TB, s *blockstore.Store, n byte) (*blockstore.Ledger, []blockstore.CAR) {
	t.Helper()
	l := openLedger(t, s, n)
	rng := rand.New(rand.NewPCG(uint64(n), 2))
	var cars []blockstore.CAR
	var shared []car.Block
	for i := range 40 {
		var batch blockstore.Batch
		for range 1 + rng.IntN(3) {
			own := block(rng, 20+rng.IntN(200))
			shared = append(shared, own)
			blocks := []car.Block{own}
			if rng.IntN(2) == 0 {
				blocks = append(blocks, shared[rng.IntN(len(shared))])
			}
			if i == 20 {
				blocks = append(blocks, block(rng, 1<<20))
			}
			c := dataCAR(t, l, blocks...)
			batch.CARs = append(batch.CARs, c)
			cars = append(cars, c)
		}
		if rng.IntN(3) == 0 {
			batch.CARs = append(batch.CARs, cars[rng.IntN(len(cars))])
		}
		if rng.IntN(3) == 0 {
			batch.Drop = append(batch.Drop, blockstore.NameOf([]byte{byte(rng.IntN(8))}), cars[0].Ref.Name)
		}
		switch rng.IntN(4) {
		case 0:
			batch.Notes = map[string][]byte{fmt.Sprint(rng.IntN(4)): fmt.Append(nil, i)}
		case 1:
			batch.Notes = map[string][]byte{fmt.Sprint(rng.IntN(4)): nil, "x": fmt.Append(nil, i)}
		}
		tips := l.Tips()
		switch rng.IntN(4) {
		case 0: // no change of tips
		case 1: // one more
			batch.Tips = append(tips, blockstore.NewMeta([]blockstore.Ref{batch.CARs[0].Ref}, nil))
		default:
			var group []blockstore.Ref
			for _, c := range batch.CARs {
				group = append(group, c.Ref)
			}
			batch.Tips = []blockstore.Meta{blockstore.NewMeta(group, tipCIDs(l))}
		}
		if err := l.Commit(ctx, tipCIDs(l), batch); err != nil {
			t.Fatal(err)
		}
	}
	return l, cars
}

// state is all that a ledger answers.
func state(t testing.TB, l *blockstore.Ledger) map[string]any {
	t.Helper()
	m := map[string]any{"tips": l.Tips(), "stats": l.Stats()}
	for i := range 4 {
		v, err := l.Note(fmt.Sprint(i))
		if err != nil {
			t.Fatal(err)
		}
		m[fmt.Sprint("note ", i)] = string(v)
	}
	for i := range 8 {
		m[fmt.Sprint("dropped ", i)] = l.Known(blockstore.NameOf([]byte{byte(i)}))
	}
	var refs []blockstore.Ref
	for r, err := range l.Refs() {
		if err != nil {
			t.Fatal(err)
		}
		refs = append(refs, r)
	}
	m["refs"] = refs
	var blocks []string
	for c, err := range l.Blocks(ctx) {
		if err != nil {
			t.Fatal(err)
		}
		blocks = append(blocks, c.String())
	}
	m["blocks"] = blocks
	return m
}

// A rebuilt index is the index that grew, byte for byte, and so is one replayed from any point of the log.
func TestRebuiltIndexIsTheSame(t *testing.T) {
	fs := vfs.NewMem()
	cfg := config(fs)
	cfg.SegmentBytes = 20 << 10
	s, err := blockstore.Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	a, cars := busyLedger(t, s, 1)
	busyLedger(t, s, 2)
	want, wantState := s.DumpIndex(), state(t, a)
	unclean := copyHome(t, fs) // nothing of the index was written out
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	bare := copyHome(t, fs)
	if err := bare.RemoveAll(home + "/index"); err != nil {
		t.Fatal(err)
	}
	for name, fs := range map[string]vfs.FS{"closed": fs, "killed": unclean, "without index": bare} {
		s := openStore(t, config(fs))
		if diff := cmp.Diff(want, s.DumpIndex()); diff != "" {
			t.Errorf("%s (-grown +replayed):\n%.2000s", name, diff)
		}
		l := openLedger(t, s, 1)
		if diff := cmp.Diff(wantState, state(t, l), cmp.Comparer(cid.Cid.Equals)); diff != "" {
			t.Errorf("%s (-grown +replayed):\n%.2000s", name, diff)
		}
		for i := range cars {
			if err := verify(s, l, &cars[i]); err != nil {
				t.Errorf("%s: CAR %d: %v", name, i, err)
			}
		}
		if err := s.Check(ctx, blockstore.CheckOptions{ReadData: true}, func(p blockstore.Problem) { t.Errorf("%s: %v", name, p) }, nil); err != nil {
			t.Error(err)
		}
	}
}

// Blocks lists each block once, whatever CARs hold it, and BlocksOf and Refs agree with it.
func TestBlocksAreDistinctAndComplete(t *testing.T) {
	s := openStore(t, config(vfs.NewMem()))
	l, cars := busyLedger(t, s, 1)
	want := map[cid.Cid]bool{}
	for _, c := range cars {
		for _, b := range c.Blocks() {
			want[b.CID] = true
		}
	}
	got := map[cid.Cid]bool{}
	for c, err := range l.Blocks(ctx) {
		if err != nil {
			t.Fatal(err)
		}
		if got[c] {
			t.Errorf("%s twice", c)
		}
		got[c] = true
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("Blocks (-want +got):\n%s", diff)
	}
}

// What is known changes nothing: no write, no sync.
func TestKnownChangesNothing(t *testing.T) {
	fs := vfs.NewMem()
	s := openStore(t, config(fs))
	l, cars := busyLedger(t, s, 1)
	before := state(t, l)
	syncs, index := s.Syncs(), s.DumpIndex()
	note, err := l.Note("x")
	if err != nil {
		t.Fatal(err)
	}
	for i := range cars {
		err := l.Commit(ctx, tipCIDs(l), blockstore.Batch{
			CARs: []blockstore.CAR{cars[i]}, Drop: []blockstore.Name{cars[i].Ref.Name}, Tips: l.Tips(),
			Notes: map[string][]byte{"x": note, "never set": nil},
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if s.Syncs() != syncs {
		t.Errorf("%d syncs for nothing", s.Syncs()-syncs)
	}
	if diff := cmp.Diff(index, s.DumpIndex()); diff != "" {
		t.Errorf("the index changed:\n%s", diff)
	}
	if diff := cmp.Diff(before, state(t, l), cmp.Comparer(cid.Cid.Equals)); diff != "" {
		t.Errorf("the ledger changed:\n%s", diff)
	}
}

// A CAR known by name only is stored when its bytes come after all.
func TestDroppedThenStored(t *testing.T) {
	s := openStore(t, config(vfs.NewMem()))
	l := openLedger(t, s, 1)
	c := dataCAR(t, l, block(rand.New(rand.NewPCG(1, 1)), 10))
	if err := l.Commit(ctx, nil, blockstore.Batch{Drop: []blockstore.Name{c.Ref.Name}}); err != nil {
		t.Fatal(err)
	}
	if _, held, err := l.Ref(c.Ref.Name); held || err != nil || !l.Known(c.Ref.Name) {
		t.Fatalf("dropped: held %v, %v, known %v", held, err, l.Known(c.Ref.Name))
	}
	// A meta may name it already.
	m := blockstore.NewMeta([]blockstore.Ref{c.Ref}, nil)
	if err := l.Commit(ctx, nil, blockstore.Batch{Tips: []blockstore.Meta{m}}); err != nil {
		t.Fatal(err)
	}
	mustCommit(t, l, c)
	if err := verify(s, l, &c); err != nil {
		t.Error(err)
	}
}
