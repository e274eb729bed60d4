package blockstore_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"fpnode/blockstore"
)

// damagedLog is a small log of some commits, of which copies are damaged.
type damagedLog struct {
	fs    *vfs.MemFS // the undamaged home
	h     *history
	paths []string
	files [][]byte // the segments
	runs  [][]int  // offsets of the runs in each, and of its end
}

func newDamagedLog(t *testing.T, segmentBytes int64, commits int) *damagedLog {
	t.Helper()
	d := &damagedLog{fs: vfs.NewMem(), h: &history{}}
	cfg := config(d.fs)
	cfg.SegmentBytes = segmentBytes
	s, err := blockstore.Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	l := openLedger(t, s, 1)
	rng := rand.New(rand.NewPCG(5, 5))
	for i := range commits {
		c := dataCAR(t, l, block(rng, 10))
		d.h.begin(c)
		old := tipCIDs(l)
		m := blockstore.NewMeta([]blockstore.Ref{c.Ref}, old)
		note := map[string][]byte{"n": fmt.Append(nil, i+1)}
		if err := l.Commit(ctx, old, blockstore.Batch{CARs: []blockstore.CAR{c}, Tips: []blockstore.Meta{m}, Notes: note}); err != nil {
			t.Fatal(err)
		}
	}
	segments := l.Stats().Segments
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	for n := range segments {
		path := fmt.Sprintf("%s/ledgers/%s/%06d.seg", home, blockstore.LedgerText(ledgerID(1)), n+1)
		b, err := d.fs.UnsafeGetFileDataBuffer(path)
		if err != nil {
			t.Fatal(err)
		}
		d.paths = append(d.paths, path)
		d.files = append(d.files, bytes.Clone(b))
		d.runs = append(d.runs, blockstore.Runs(b))
	}
	return d
}

// bench is a store in which one damaged log after the other is opened.
type damageBench struct {
	d  *damagedLog
	fs *vfs.MemFS
	s  *blockstore.Store
}

func (d *damagedLog) bench(t *testing.T) *damageBench {
	t.Helper()
	fs := copyHome(t, d.fs)
	return &damageBench{d, fs, openStore(t, config(fs))}
}

// open opens the log with segment n replaced by b and all others as they were, with the index of the undamaged log or
// with none.
func (db *damageBench) open(t *testing.T, n int, b []byte, index bool) (*blockstore.Ledger, error) {
	t.Helper()
	names, err := db.fs.List(db.fs.PathDir(db.d.paths[0]))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		if err := db.fs.Remove(db.fs.PathDir(db.d.paths[0]) + "/" + name); err != nil {
			t.Fatal(err)
		}
	}
	for i, path := range db.d.paths {
		writeFile(t, db.fs, path, db.d.files[i])
	}
	if index {
		if _, err := db.s.Reopen(ledgerID(1), keys, false); err != nil {
			t.Fatal(err)
		}
	}
	writeFile(t, db.fs, db.d.paths[n], b)
	return db.s.Reopen(ledgerID(1), keys, index)
}

func copyHome(t testing.TB, from vfs.FS) *vfs.MemFS {
	t.Helper()
	to := vfs.NewMem()
	if ok, err := vfs.Clone(from, to, home, home); err != nil || !ok {
		t.Fatalf("Clone: %v, %v", ok, err)
	}
	return to
}

func writeFile(t testing.TB, fs vfs.FS, path string, b []byte) {
	t.Helper()
	f, err := fs.Create(path, vfs.WriteCategoryUnspecified)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.Write(bytes.Clone(b)); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
}

// wantCorrupt demands a *CorruptError about a place, with off -1 anywhere in the file.
func wantCorrupt(err error, path string, off int) error {
	var ce *blockstore.CorruptError
	if !errors.As(err, &ce) {
		return fmt.Errorf("%v, want a *CorruptError", err)
	}
	if ce.File != path || off >= 0 && ce.Offset != int64(off) || ce.Reason == "" || ce.Advice == "" {
		return fmt.Errorf("*CorruptError %v, want one at %s byte %d with advice", ce, path, off)
	}
	return nil
}

// TestEveryCut cuts the log at every byte of its last three runs: what is whole is there, the log goes on from it, and
// what the index has seen is missed.
func TestEveryCut(t *testing.T) {
	for _, tt := range []struct {
		name         string
		segmentBytes int64
	}{{"one segment", 1 << 20}, {"segments of one run", 1}} {
		d := newDamagedLog(t, tt.segmentBytes, 5)
		last := len(d.files) - 1
		before, from := 5-(len(d.runs[last])-1), 0 // runs in the other segments, and where to begin
		if last == 0 {
			from = d.runs[0][2]
		}
		for _, index := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, index %v", tt.name, index), func(t *testing.T) {
				t.Parallel()
				bench := d.bench(t)
				for cut := from; cut < len(d.files[last]); cut += raceStride {
					l, err := bench.open(t, last, d.files[last][:cut], index)
					if index {
						if err := wantCorrupt(err, d.paths[last], -1); err != nil {
							t.Fatalf("cut at %d: %v", cut, err)
						}
						continue
					}
					if err != nil {
						t.Fatalf("cut at %d: %v", cut, err)
					}
					k := before
					for _, off := range d.runs[last][1:] {
						if cut >= off {
							k++
						}
					}
					if err := d.h.tipIs(l, k); err != nil {
						t.Fatalf("cut at %d: %v", cut, err)
					}
					// The log goes on, in a new segment if there are bytes behind its end; they never come back into it.
					c := dataCAR(t, l, block(rand.New(rand.NewPCG(99, uint64(cut))), 10))
					mustCommit(t, l, c)
					for _, index := range []bool{true, false} {
						l, err := bench.s.Reopen(ledgerID(1), keys, index)
						if err != nil {
							t.Fatalf("cut at %d, after another commit, index %v: %v", cut, index, err)
						}
						if n := l.Stats().Cars; n != int64(k)+1 {
							t.Fatalf("cut at %d, after another commit, index %v: %d CARs, want %d", cut, index, n, k+1)
						}
						if err := verify(bench.s, l, &c); err != nil {
							t.Fatalf("cut at %d, after another commit, index %v: %v", cut, index, err)
						}
					}
				}
			})
		}
	}
}

// tipIs demands that the tip is that of commit k.
func (h *history) tipIs(l *blockstore.Ledger, k int) error {
	tips := l.Tips()
	if k == 0 {
		if len(tips) > 0 {
			return fmt.Errorf("tips are %v, want none", tips)
		}
		return nil
	}
	if len(tips) != 1 || tips[0].Group[0] != h.all()[k-1].Ref {
		return fmt.Errorf("tips are %v, want that of commit %d", tips, k)
	}
	return nil
}

// TestEveryFlip flips a bit in every byte of a log: without the index, what was good once is damage, and only the last
// run may pass for one that a crash cut short. With the index nothing is scanned when opening, no read returns wrong
// bytes, and Check finds the place.
func TestEveryFlip(t *testing.T) {
	d := newDamagedLog(t, 1200, 4)
	if len(d.files) < 2 {
		t.Fatal("want several segments")
	}
	for n := range d.files {
		t.Run(fmt.Sprintf("segment %d without index", n+1), func(t *testing.T) {
			t.Parallel()
			bench := d.bench(t)
			rng := rand.New(rand.NewPCG(1, uint64(n)))
			for i := 0; i < len(d.files[n]); i += raceStride {
				b := bytes.Clone(d.files[n])
				b[i] ^= 1 << rng.IntN(8)
				l, err := bench.open(t, n, b, false)
				lastRun := n == len(d.files)-1 && i >= d.runs[n][len(d.runs[n])-2]
				if lastRun {
					if err == nil {
						err = d.h.tipIs(l, 3)
					}
				} else {
					err = wantCorrupt(err, d.paths[n], runAt(d.runs[n], i))
				}
				if err != nil {
					t.Errorf("byte %d: %v", i, err)
				}
			}
		})
		t.Run(fmt.Sprintf("segment %d with index", n+1), func(t *testing.T) {
			t.Parallel()
			bench := d.bench(t)
			rng := rand.New(rand.NewPCG(2, uint64(n)))
			for i := 0; i < len(d.files[n]); i += raceStride {
				b := bytes.Clone(d.files[n])
				b[i] ^= 1 << rng.IntN(8)
				if err := bench.flipWithIndex(t, n, i, b); err != nil {
					t.Errorf("byte %d: %v", i, err)
				}
			}
		})
	}
}

// runAt is where the run that byte i belongs to begins, 0 for the segment header.
func runAt(runs []int, i int) int {
	at := 0
	for _, off := range runs {
		if off <= i {
			at = off
		}
	}
	return at
}

func (db *damageBench) flipWithIndex(t *testing.T, n, i int, b []byte) error {
	d, s := db.d, db.s
	l, err := db.open(t, n, b, true)
	if n == len(d.files)-1 && i < d.runs[n][0] {
		return wantCorrupt(err, d.paths[n], 0) // the one header that is read
	}
	if err != nil {
		return err
	}
	for k, c := range d.h.all() {
		for _, want := range c.Blocks() {
			got, err := l.Block(ctx, want.CID)
			if err == nil && !bytes.Equal(got, want.Data) {
				return fmt.Errorf("block of commit %d: wrong bytes without an error", k+1)
			}
		}
		if sealed, err := l.Sealed(ctx, c.Ref); err == nil && !bytes.Equal(sealed, c.Sealed()) {
			return fmt.Errorf("CAR of commit %d: wrong bytes without an error", k+1)
		}
		if sealed, err := s.WireBlock(c.Ref.Wire.Hash()); err == nil && !bytes.Equal(sealed, c.Sealed()) {
			return fmt.Errorf("wire block of commit %d: wrong bytes without an error", k+1)
		}
	}
	var problems []blockstore.Problem
	report := func(p blockstore.Problem) { problems = append(problems, p) }
	if err := s.Check(context.Background(), blockstore.CheckOptions{ReadData: true}, report, nil); err != nil {
		return err
	}
	at := int64(runAt(d.runs[n], i))
	if !slices.ContainsFunc(problems, func(p blockstore.Problem) bool { return p.File == d.paths[n] && p.Offset == at }) {
		return fmt.Errorf("Check reports %v, want a problem at %s byte %d", problems, d.paths[n], at)
	}
	return nil
}

// TestDamagedIndex flips bits and cuts pieces of the index. It is derived: whatever happens to it, at the latest after
// closing and opening the home again everything is there, and nothing wrong is ever read.
func TestDamagedIndex(t *testing.T) {
	mem := vfs.NewMem()
	s, err := blockstore.Open(config(mem))
	if err != nil {
		t.Fatal(err)
	}
	cars := fill(t, openLedger(t, s, 1), 1, 100)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	names, err := mem.List(home + "/index")
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(names)
	rounds := 12 / raceStride
	rng := rand.New(rand.NewPCG(3, 3))
	noticed := 0
	for _, name := range names {
		path := home + "/index/" + name
		whole, err := mem.UnsafeGetFileDataBuffer(path)
		if err != nil {
			t.Fatal(err)
		}
		for round := range rounds {
			fs := copyHome(t, mem)
			b := bytes.Clone(whole)
			what := "removed"
			switch {
			case round == 0 || len(b) == 0:
				if err := fs.Remove(path); err != nil {
					t.Fatal(err)
				}
			case round == 1:
				b = b[:rng.IntN(len(b))]
				what = fmt.Sprintf("cut to %d of %d bytes", len(b), len(whole))
				writeFile(t, fs, path, b)
			default:
				i := rng.IntN(len(b))
				b[i] ^= 1 << rng.IntN(8)
				what = fmt.Sprintf("flipped at %d of %d bytes", i, len(b))
				writeFile(t, fs, path, b)
			}
			for try := 1; ; try++ {
				err := readAll(t, fs, cars)
				if err == nil {
					break
				}
				noticed++
				if try == 2 {
					t.Errorf("%s %s: opened twice, still %v", name, what, err)
					break
				}
			}
		}
	}
	t.Logf("%d files, %d damages were noticed while reading", len(names), noticed)
}

func readAll(t *testing.T, fs vfs.FS, cars []blockstore.CAR) (err error) {
	s, err := blockstore.Open(config(fs))
	if err != nil {
		return err
	}
	defer s.Close()
	l, err := s.Ledger(ledgerID(1), keys)
	if err != nil {
		return err
	}
	for i := range cars {
		if err := verify(s, l, &cars[i]); err != nil {
			return err
		}
	}
	c, err := packData(l, block(rand.New(rand.NewPCG(8, 8)), 30))
	if err != nil {
		return err
	}
	return commitCAR(l, c)
}
