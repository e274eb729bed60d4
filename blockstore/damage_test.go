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

// A small log of some commits, and tools to damage copies of it.
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

// home returns a copy of the home in which segment n holds b, with or without its index.
func (d *damagedLog) home(t *testing.T, n int, b []byte, index bool) *vfs.MemFS {
	t.Helper()
	fs := copyHome(t, d.fs)
	if !index {
		if err := fs.RemoveAll(home + "/index"); err != nil {
			t.Fatal(err)
		}
	}
	writeFile(t, fs, d.paths[n], b)
	return fs
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

// openDamaged opens a damaged home and its ledger. The error is that of the ledger.
func openDamaged(t *testing.T, fs vfs.FS) (*blockstore.Store, *blockstore.Ledger, error) {
	t.Helper()
	s, err := blockstore.Open(config(fs))
	if err != nil {
		t.Fatalf("Open: %v", err)
	}
	l, err := s.Ledger(ledgerID(1), keys)
	return s, l, err
}

// wantCorrupt demands a *CorruptError about a place.
func wantCorrupt(err error, path string, off int) error {
	var ce *blockstore.CorruptError
	if !errors.As(err, &ce) {
		return fmt.Errorf("%v, want a *CorruptError", err)
	}
	if ce.File != path || ce.Offset != int64(off) || ce.Reason == "" || ce.Advice == "" {
		return fmt.Errorf("*CorruptError %v, want one at %s byte %d with advice", ce, path, off)
	}
	return nil
}

// TestEveryCut cuts the log at every byte of its last three runs.
func TestEveryCut(t *testing.T) {
	for _, tt := range []struct {
		name         string
		segmentBytes int64
	}{{"one segment", 1 << 20}, {"segments of one run", 1}} {
		d := newDamagedLog(t, tt.segmentBytes, 5)
		for _, index := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, index %v", tt.name, index), func(t *testing.T) {
				t.Parallel()
				last := len(d.files) - 1
				from := 0
				whole := 5 - (len(d.runs[last]) - 1) // runs before the last segment
				if last == 0 {
					from, whole = d.runs[0][2], 2
				}
				step := 1
				if testing.Short() {
					step = 5
				}
				for cut := from; cut < len(d.files[last]); cut += step {
					fs := d.home(t, last, d.files[last][:cut], index)
					s, _, err := openDamaged(t, fs)
					if index {
						// All of it was synced once, the index says.
						var ce *blockstore.CorruptError
						if !errors.As(err, &ce) {
							t.Fatalf("cut at %d: %v, want a *CorruptError", cut, err)
						}
						s.Close()
						continue
					}
					if err != nil {
						t.Fatalf("cut at %d: %v", cut, err)
					}
					k := whole
					for i, off := range d.runs[last] {
						if cut >= off && last > 0 {
							k = whole + i
						} else if cut >= off {
							k = i
						}
					}
					if err := d.h.tipIs(s, k); err != nil {
						t.Fatalf("cut at %d: %v", cut, err)
					}
					s.Close()
					if err := d.h.check(fs, k, false); err != nil {
						t.Fatalf("cut at %d, opened again: %v", cut, err)
					}
					// The log goes on in a new segment; what is after the cut in the old one stays out of it.
					if err := d.reopenAfterCut(fs, k); err != nil {
						t.Fatalf("cut at %d, opened a third time: %v", cut, err)
					}
				}
			})
		}
	}
}

// reopenAfterCut opens a home that was cut and then written to, from the log alone.
func (d *damagedLog) reopenAfterCut(fs vfs.FS, k int) error {
	if err := fs.RemoveAll(home + "/index"); err != nil {
		return err
	}
	s, err := blockstore.Open(config(fs))
	if err != nil {
		return err
	}
	defer s.Close()
	l, err := s.Ledger(ledgerID(1), keys)
	if err != nil {
		return err
	}
	if n := l.Stats().Cars; n != int64(k)+1 {
		return fmt.Errorf("%d CARs, want %d", n, k+1)
	}
	return nil
}

// tipIs demands that the tip is that of commit k.
func (h *history) tipIs(s *blockstore.Store, k int) error {
	l, err := s.Ledger(ledgerID(1), keys)
	if err != nil {
		return err
	}
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
	step := 1
	if testing.Short() {
		step = 7
	}
	for n := range d.files {
		t.Run(fmt.Sprintf("segment %d without index", n+1), func(t *testing.T) {
			t.Parallel()
			rng := rand.New(rand.NewPCG(1, uint64(n)))
			for i := 0; i < len(d.files[n]); i += step {
				b := bytes.Clone(d.files[n])
				b[i] ^= 1 << rng.IntN(8)
				s, _, err := openDamaged(t, d.home(t, n, b, false))
				lastRun := n == len(d.files)-1 && i >= d.runs[n][len(d.runs[n])-2]
				if lastRun {
					if err == nil {
						err = d.h.tipIs(s, 3)
					}
				} else {
					err = wantCorrupt(err, d.paths[n], runAt(d.runs[n], i))
				}
				if err != nil {
					t.Errorf("byte %d: %v", i, err)
				}
				s.Close()
			}
		})
		t.Run(fmt.Sprintf("segment %d with index", n+1), func(t *testing.T) {
			t.Parallel()
			rng := rand.New(rand.NewPCG(2, uint64(n)))
			for i := 0; i < len(d.files[n]); i += step {
				b := bytes.Clone(d.files[n])
				b[i] ^= 1 << rng.IntN(8)
				if err := d.flipWithIndex(t, n, i, b); err != nil {
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

func (d *damagedLog) flipWithIndex(t *testing.T, n, i int, b []byte) error {
	s, l, err := openDamaged(t, d.home(t, n, b, true))
	defer s.Close()
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
	cars := fill(t, openLedger(t, s, 1), 1, 300)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	names, err := mem.List(home + "/index")
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(names)
	rounds := 12
	if testing.Short() {
		rounds = 3
	}
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
