package blockstore_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/vfstest"
	"github.com/ipfs/go-cid"

	"fpnode/blockstore"
	"fpnode/internal/car"
	"fpnode/internal/dagcbor"
	"fpnode/keyring"
)

// TestCommitRefuses: what cannot be right is refused and leaves no trace.
func TestCommitRefuses(t *testing.T) {
	s := openStore(t, config(vfs.NewMem()))
	l := openLedger(t, s, 1)
	rng := rand.New(rand.NewPCG(1, 1))
	fill(t, l, 1, 1)
	c := dataCAR(t, l, block(rng, 10))
	ref := []blockstore.Ref{c.Ref}
	cars := []blockstore.CAR{c}
	other := blockstore.NewMeta([]blockstore.Ref{dataCAR(t, l, block(rng, 20)).Ref}, nil)
	name019 := blockstore.Name{Cid: cid.NewCidV1(car.CodecName019, c.Ref.Name.Hash())}
	lying := blockstore.NewMeta(ref, nil)
	lying.CID = other.CID
	many := func(n int) map[string][]byte {
		notes := map[string][]byte{}
		for i := range n {
			notes[fmt.Sprint(i)] = []byte("x")
		}
		return notes
	}
	cancelled, cancel := context.WithCancel(ctx)
	cancel()
	for _, tt := range []struct {
		name  string
		ctx   context.Context
		batch blockstore.Batch
		want  error // nil for any
	}{
		{"cancelled", cancelled, blockstore.Batch{CARs: cars}, context.Canceled},
		{"no tips left", ctx, blockstore.Batch{CARs: cars, Tips: []blockstore.Meta{}}, nil},
		{"a tip whose CAR is not there", ctx, blockstore.Batch{CARs: cars, Tips: []blockstore.Meta{other}}, blockstore.ErrNotFound},
		{"a tip with another CID", ctx, blockstore.Batch{CARs: cars, Tips: []blockstore.Meta{lying}}, nil},
		{"a tip that is no meta", ctx, blockstore.Batch{CARs: cars, Tips: []blockstore.Meta{{CID: other.CID, Block: []byte{1}}}}, nil},
		{"a tip naming a 0.19 CAR", ctx, blockstore.Batch{CARs: cars, Tips: []blockstore.Meta{blockstore.NewMeta([]blockstore.Ref{{Name: name019}}, nil)}}, nil},
		{"a CAR that was not accepted", ctx, blockstore.Batch{CARs: []blockstore.CAR{{Ref: c.Ref}}}, nil},
		{"dropping what is no name", ctx, blockstore.Batch{CARs: cars, Drop: []blockstore.Name{{Cid: other.CID}}}, nil},
		{"dropping nothing", ctx, blockstore.Batch{CARs: cars, Drop: []blockstore.Name{{}}}, nil},
		{"too many CARs", ctx, blockstore.Batch{CARs: make([]blockstore.CAR, blockstore.MaxCommitCARs+1)}, blockstore.ErrLimit},
		{"too many drops", ctx, blockstore.Batch{Drop: make([]blockstore.Name, blockstore.MaxCommitDrops+1)}, blockstore.ErrLimit},
		{"too many tips", ctx, blockstore.Batch{Tips: make([]blockstore.Meta, blockstore.MaxTips+1)}, blockstore.ErrLimit},
		{"note too large", ctx, blockstore.Batch{CARs: cars, Notes: map[string][]byte{"k": make([]byte, blockstore.MaxNoteBytes+1)}}, blockstore.ErrLimit},
		{"note key too long", ctx, blockstore.Batch{CARs: cars, Notes: map[string][]byte{strings.Repeat("k", blockstore.MaxNoteKeyBytes+1): []byte("v")}}, blockstore.ErrLimit},
		{"note without a key", ctx, blockstore.Batch{CARs: cars, Notes: map[string][]byte{"": []byte("v")}}, blockstore.ErrLimit},
		{"note key not UTF-8", ctx, blockstore.Batch{CARs: cars, Notes: map[string][]byte{"\xff": []byte("v")}}, nil},
		{"too many notes", ctx, blockstore.Batch{CARs: cars, Notes: many(blockstore.MaxNotes + 1)}, blockstore.ErrLimit},
	} {
		before, syncs := s.DumpIndex(), s.Syncs()
		err := l.Commit(tt.ctx, tipCIDs(l), tt.batch)
		if err == nil || tt.want != nil && !errors.Is(err, tt.want) {
			t.Errorf("%s: %v, want an error (%v)", tt.name, err, tt.want)
		}
		if s.Syncs() != syncs || len(s.DumpIndex()) != len(before) {
			t.Errorf("%s: something was written", tt.name)
		}
	}
	mustCommit(t, l, c)
	if err := verify(s, l, &c); err != nil {
		t.Error(err)
	}
}

// TestCommitTakesTheLimits: what is exactly as large as allowed goes in and comes out, also from the log alone.
func TestCommitTakesTheLimits(t *testing.T) {
	fs := vfs.NewMem()
	s, err := blockstore.Open(config(fs))
	if err != nil {
		t.Fatal(err)
	}
	l := openLedger(t, s, 1)
	c := dataCAR(t, l, block(rand.New(rand.NewPCG(1, 1)), 10))
	batch := blockstore.Batch{CARs: []blockstore.CAR{c}, Notes: map[string][]byte{strings.Repeat("k", blockstore.MaxNoteKeyBytes): bytes.Repeat([]byte{7}, blockstore.MaxNoteBytes)}}
	for i := range blockstore.MaxNotes - 1 {
		batch.Notes[fmt.Sprint(i)] = []byte{1}
	}
	for i := range blockstore.MaxTips {
		batch.Tips = append(batch.Tips, blockstore.NewMeta([]blockstore.Ref{c.Ref}, []cid.Cid{dagcbor.Sum(fmt.Append(nil, i))}))
	}
	for i := range blockstore.MaxCommitDrops {
		batch.Drop = append(batch.Drop, blockstore.NameOf(fmt.Append(nil, i)))
	}
	if err := l.Commit(ctx, nil, batch); err != nil {
		t.Fatal(err)
	}
	if err := l.Commit(ctx, tipCIDs(l), blockstore.Batch{Notes: map[string][]byte{"one more": []byte("v")}}); !errors.Is(err, blockstore.ErrLimit) {
		t.Errorf("one note more: %v, want ErrLimit", err)
	}
	// One goes, one comes.
	if err := l.Commit(ctx, tipCIDs(l), blockstore.Batch{Notes: map[string][]byte{"one more": []byte("v"), "0": nil}}); err != nil {
		t.Error(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := fs.RemoveAll(home + "/index"); err != nil {
		t.Fatal(err)
	}
	s = openStore(t, config(fs))
	l = openLedger(t, s, 1)
	if n := len(l.Tips()); n != blockstore.MaxTips {
		t.Errorf("%d tips, want %d", n, blockstore.MaxTips)
	}
	if v, err := l.Note(strings.Repeat("k", blockstore.MaxNoteKeyBytes)); err != nil || len(v) != blockstore.MaxNoteBytes {
		t.Errorf("note of %d bytes, %v", len(v), err)
	}
	if !l.Known(batch.Drop[0]) || !l.Known(batch.Drop[len(batch.Drop)-1]) {
		t.Error("a dropped name is not known")
	}
}

// A group of MaxGroup CARs, and a meta that another program wrote, with its own spelling.
func TestMetas(t *testing.T) {
	s := openStore(t, config(vfs.NewMem()))
	l := openLedger(t, s, 1)
	c := dataCAR(t, l, block(rand.New(rand.NewPCG(1, 1)), 10))
	text := fmt.Sprintf(`{ "cars" : [ {"/":%q} ] }`, c.Ref.Name)
	b := dagcbor.AppendMap(nil, 2)
	b = dagcbor.AppendText(b, "data")
	b = dagcbor.AppendMap(b, 1)
	b = dagcbor.AppendText(b, "dbMeta")
	b = dagcbor.AppendBytes(b, []byte(text))
	b = dagcbor.AppendText(b, "parents")
	b = dagcbor.AppendArray(b, 0)
	foreign, err := blockstore.ParseMeta(b)
	if err != nil {
		t.Fatal(err)
	}
	own := blockstore.NewMeta([]blockstore.Ref{c.Ref}, nil)
	if own.CID == foreign.CID {
		t.Fatal("the foreign meta is our own")
	}
	if err := l.Commit(ctx, nil, blockstore.Batch{CARs: []blockstore.CAR{c}, Tips: []blockstore.Meta{foreign, own}}); err != nil {
		t.Fatal(err)
	}
	for _, m := range l.Tips() {
		want := own
		if m.CID == foreign.CID {
			want = foreign
		}
		if !bytes.Equal(m.Block, want.Block) || len(m.Group) != 1 || m.Group[0] != c.Ref {
			t.Errorf("tip %+v, want block %q and group %v", m, want.Block, c.Ref)
		}
	}

	group := make([]blockstore.Ref, blockstore.MaxGroup+1)
	for i := range group {
		group[i] = blockstore.Ref{Name: blockstore.NameOf(fmt.Append(nil, i))}
	}
	if _, err := blockstore.ParseMeta(blockstore.NewMeta(group[1:], nil).Block); err != nil {
		t.Errorf("a group of MaxGroup: %v", err)
	}
	names := make([]cid.Cid, len(group))
	for i := range group {
		names[i] = group[i].Name.Cid
	}
	if _, err := blockstore.ParseMeta(car.EncodeMeta(names, nil)); !errors.Is(err, blockstore.ErrLimit) {
		t.Errorf("a group of MaxGroup+1: %v, want ErrLimit", err)
	}
	if _, err := blockstore.ParseMeta(make([]byte, blockstore.MaxMetaBytes+1)); !errors.Is(err, blockstore.ErrLimit) {
		t.Errorf("a meta of MaxMetaBytes+1: %v, want ErrLimit", err)
	}
	if _, err := blockstore.ParseMeta(car.EncodeMeta(nil, nil)); err == nil {
		t.Error("a meta that names no CAR is accepted")
	}
}

// TestConcurrentUse: writers race for the tips of a few ledgers while readers read what is committed and a check runs.
func TestConcurrentUse(t *testing.T) {
	cfg := config(vfs.NewMem())
	cfg.SegmentBytes = 8 << 10
	s := openStore(t, cfg)
	const ledgers, writers, commits = 3, 4, 12
	type stored struct {
		l *blockstore.Ledger
		c blockstore.CAR
	}
	var mu sync.Mutex
	var all []stored
	var stale atomic.Int64
	var wg, readers sync.WaitGroup
	for n := range byte(ledgers) {
		l := openLedger(t, s, n)
		for w := range writers {
			wg.Go(func() {
				rng := rand.New(rand.NewPCG(uint64(n), uint64(w)))
				for range commits {
					c, err := packData(l, block(rng, 100))
					if err != nil {
						t.Error(err)
						return
					}
					for {
						err := commitCAR(l, c)
						if err == nil {
							break
						}
						if !errors.Is(err, blockstore.ErrStale) {
							t.Error(err)
							return
						}
						stale.Add(1)
					}
					mu.Lock()
					all = append(all, stored{l, c})
					mu.Unlock()
				}
			})
		}
	}
	done := make(chan struct{})
	for range 2 {
		readers.Go(func() {
			rng := rand.New(rand.NewPCG(7, 7))
			for {
				select {
				case <-done:
					return
				default:
				}
				mu.Lock()
				var one stored
				if len(all) > 0 {
					one = all[rng.IntN(len(all))]
				}
				mu.Unlock()
				if one.l == nil {
					continue
				}
				if err := verify(s, one.l, &one.c); err != nil {
					t.Error(err)
					return
				}
				for _, err := range one.l.Blocks(ctx) {
					if err != nil {
						t.Error(err)
						return
					}
				}
				one.l.Stats()
				one.l.Tips()
			}
		})
	}
	readers.Go(func() {
		for {
			select {
			case <-done:
				return
			default:
			}
			if err := s.Check(ctx, blockstore.CheckOptions{ReadData: true}, func(p blockstore.Problem) { t.Error(p) }, nil); err != nil {
				t.Error(err)
				return
			}
		}
	})
	wg.Wait()
	close(done)
	readers.Wait()
	for _, o := range all {
		if err := verify(s, o.l, &o.c); err != nil {
			t.Error(err)
		}
	}
	if len(all) != ledgers*writers*commits {
		t.Errorf("%d commits, want %d", len(all), ledgers*writers*commits)
	}
	if s.Syncs() != int64(len(all)) {
		t.Errorf("%d commits synced %d times", len(all), s.Syncs())
	}
	t.Logf("%d commits were stale", stale.Load())
}

// TestManyLedgersFewFiles: open files do not grow with ledgers and segments.
func TestManyLedgersFewFiles(t *testing.T) {
	base, openFiles := vfstest.WithOpenFileTracking(vfs.NewMem())
	cfg := config(base)
	cfg.SegmentBytes = 1
	s := openStore(t, cfg)
	var cars []blockstore.CAR
	const ledgers = 120
	for n := range byte(ledgers) {
		cars = append(cars, fill(t, openLedger(t, s, n), uint64(n), 2)...)
	}
	for n := range byte(ledgers) {
		for i := range 2 {
			if err := verify(s, openLedger(t, s, n), &cars[int(n)*2+i]); err != nil {
				t.Fatal(err)
			}
		}
	}
	var b bytes.Buffer
	openFiles(&b)
	if n := strings.Count(b.String(), "blockstore.(*handles).get"); n > 48 || n == 0 {
		t.Errorf("%d segments are open", n)
	}
	if got := len(s.Ledgers()); got != ledgers {
		t.Errorf("Ledgers lists %d, want %d", got, ledgers)
	}
}

// TestTidyDirectory: what is in a home is what home.go says, and strange files do no harm.
func TestTidyDirectory(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "home")
	cfg := blockstore.Config{Dir: dir, Vault: vault{}}
	s, err := blockstore.Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	cars := fill(t, openLedger(t, s, 1), 1, 2)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	var names []string
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		names = append(names, e.Name())
	}
	if got, want := strings.Join(names, " "), "VERSION index ledgers repo.lock"; got != want {
		t.Errorf("a closed home has %s, want %s", got, want)
	}
	for _, name := range []string{"ledgers/notes.txt", "ledgers/" + blockstore.LedgerText(ledgerID(1)) + "/1.seg", "ledgers/" + blockstore.LedgerText(ledgerID(1)) + "/.DS_Store", "index/readme"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("?"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	s = openStore(t, cfg)
	for i := range cars {
		if err := verify(s, openLedger(t, s, 1), &cars[i]); err != nil {
			t.Error(err)
		}
	}
}

func TestClosed(t *testing.T) {
	s, err := blockstore.Open(config(vfs.NewMem()))
	if err != nil {
		t.Fatal(err)
	}
	l := openLedger(t, s, 1)
	c := fill(t, l, 1, 1)[0]
	d := l.Derived()
	for range 2 {
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	_, err1 := l.Block(ctx, c.CIDs()[0])
	_, err2 := l.Has(c.CIDs()[0])
	_, err3 := l.Sealed(ctx, c.Ref)
	_, err4 := s.WireBlock(c.Ref.Wire.Hash())
	_, err5 := s.WireSize(c.Ref.Wire.Hash())
	_, err6 := s.Ledger(ledgerID(2), keys)
	_, _, err7 := d.Get([]byte("k"))
	_, err8 := l.Note("k")
	_, _, err9 := l.RefByWire(c.Ref.Wire)
	err10 := commitCAR(l, c)
	err11 := s.Drop(ledgerID(1))
	for i, err := range []error{err1, err2, err3, err4, err5, err6, err7, err8, err9, err10, err11} {
		if !errors.Is(err, blockstore.ErrClosed) {
			t.Errorf("call %d after Close: %v, want ErrClosed", i+1, err)
		}
	}
	for _, err := range l.Refs() {
		if !errors.Is(err, blockstore.ErrClosed) {
			t.Errorf("Refs after Close: %v, want ErrClosed", err)
		}
	}
	for _, err := range l.Blocks(ctx) {
		if !errors.Is(err, blockstore.ErrClosed) {
			t.Errorf("Blocks after Close: %v, want ErrClosed", err)
		}
	}
}

// A segment that somebody removes or cuts while the store is open takes no more commits; one that somebody adds to is
// left where the log ends.
func TestSegmentTamperedWhileOpen(t *testing.T) {
	path := home + "/ledgers/" + blockstore.LedgerText(ledgerID(1)) + "/000001.seg"
	for _, what := range []string{"removed", "cut", "longer"} {
		fs := vfs.NewMem()
		s := openStore(t, config(fs))
		l := openLedger(t, s, 1)
		cars := fill(t, l, 1, 3)
		b, err := fs.UnsafeGetFileDataBuffer(path)
		if err != nil {
			t.Fatal(err)
		}
		b = bytes.Clone(b)
		switch what {
		case "removed":
			err = fs.Remove(path)
		case "cut":
			writeFile(t, fs, path, b[:len(b)-1])
		case "longer":
			var f vfs.File
			if f, err = fs.OpenReadWrite(path, vfs.WriteCategoryUnspecified); err == nil {
				_, err = f.WriteAt([]byte("more"), int64(len(b)))
				f.Close()
			}
		}
		if err != nil {
			t.Fatal(err)
		}
		c := dataCAR(t, l, block(rand.New(rand.NewPCG(5, 5)), 10))
		err = commitCAR(l, c)
		if what != "longer" {
			var ce *blockstore.CorruptError
			if !errors.As(err, &ce) || ce.File != path {
				t.Errorf("%s: %v, want a *CorruptError", what, err)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", what, err)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		if err := fs.RemoveAll(home + "/index"); err != nil {
			t.Fatal(err)
		}
		if err := readAll(t, fs, append(cars, c)); err != nil {
			t.Errorf("%s, from the log alone: %v", what, err)
		}
	}
}

// What one ledger sealed another does not store.
func TestCARsStayInTheirLedger(t *testing.T) {
	s := openStore(t, config(vfs.NewMem()))
	other, err := keyring.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	otherKeys, err := keyring.NewKeys(other)
	if err != nil {
		t.Fatal(err)
	}
	l, err := s.Ledger(ledgerID(2), otherKeys)
	if err != nil {
		t.Fatal(err)
	}
	c := dataCAR(t, openLedger(t, s, 1), block(rand.New(rand.NewPCG(5, 5)), 10))
	if err := commitCAR(l, c); !errors.Is(err, keyring.ErrKeyUnknown) {
		t.Errorf("Commit of a CAR of another ledger: %v, want ErrKeyUnknown", err)
	}
}
