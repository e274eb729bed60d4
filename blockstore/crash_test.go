package blockstore_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"fpnode/blockstore"
	"fpnode/internal/crashfs"
)

// history is what a workload did, for an oracle that looks at the disk while or after it runs.
type history struct {
	mu      sync.Mutex
	commits []blockstore.CAR // in order, each the only tip after its commit; the last may be under way
}

func (h *history) begin(c blockstore.CAR) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.commits = append(h.commits, c)
}

// failed takes back the last, whose commit was refused.
func (h *history) failed() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.commits = h.commits[:len(h.commits)-1]
}

func (h *history) all() []blockstore.CAR {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.commits)
}

// check opens a home and demands of it: it opens; its tip is that of commit k, acknowledged ones included; the CARs
// up to k are there and read back, none after it; the notes are those of commit k; another commit succeeds.
func (h *history) check(fs vfs.FS, acked int, deep bool) error {
	s, err := blockstore.Open(config(fs))
	if err != nil {
		return fmt.Errorf("Open: %w", err)
	}
	err = h.checkStore(s, acked, deep)
	return errors.Join(err, s.Close())
}

func (h *history) checkStore(s *blockstore.Store, acked int, deep bool) error {
	l, err := s.Ledger(ledgerID(1), keys)
	if err != nil {
		return fmt.Errorf("Ledger: %w", err)
	}
	commits := h.all()
	k := 0
	if tips := l.Tips(); len(tips) > 0 {
		k = 1 + slices.IndexFunc(commits, func(c blockstore.CAR) bool { return c.Ref == tips[0].Group[0] })
		if len(tips) != 1 || k == 0 {
			return fmt.Errorf("tips are %v, which no commit left", tips)
		}
	}
	if k < acked {
		return fmt.Errorf("tip is that of commit %d, but %d were acknowledged", k, acked)
	}
	for i := range commits {
		if i >= k {
			if l.Known(commits[i].Ref.Name) {
				return fmt.Errorf("CAR of commit %d is there, but the tip is that of %d", i+1, k)
			}
			continue
		}
		if deep || i >= k-3 {
			if err := verify(s, l, &commits[i]); err != nil {
				return fmt.Errorf("commit %d of %d: %w", i+1, k, err)
			}
		}
	}
	note, err := l.Note("n")
	if err != nil {
		return err
	}
	if want := strconv.Itoa(k); k > 0 && string(note) != want {
		return fmt.Errorf("note is %q after commit %s", note, want)
	}
	if got := l.Stats().Cars; got != int64(k) {
		return fmt.Errorf("%d CARs after commit %d", got, k)
	}
	c, err := packData(l, block(rand.New(rand.NewPCG(99, uint64(k))), 64))
	if err != nil {
		return err
	}
	if err := commitCAR(l, c); err != nil {
		return fmt.Errorf("another commit: %w", err)
	}
	return verify(s, l, &c)
}

// commit makes commit number k and tells h.
func (h *history) commit(l *blockstore.Ledger, rng *rand.Rand) error {
	size := 50 + rng.IntN(500)
	if rng.IntN(12) == 0 {
		size = 5000 + rng.IntN(10_000) // over a page, so that it can be torn in the middle
	}
	c, err := packData(l, block(rng, size), block(rng, 40))
	if err != nil {
		return err
	}
	h.begin(c)
	old := tipCIDs(l)
	m := blockstore.NewMeta([]blockstore.Ref{c.Ref}, old)
	err = l.Commit(ctx, old, blockstore.Batch{
		CARs: []blockstore.CAR{c}, Tips: []blockstore.Meta{m},
		Notes: map[string][]byte{"n": strconv.AppendInt(nil, int64(len(h.all())), 10)},
	})
	if err != nil && !errors.Is(err, blockstore.ErrPoisoned) {
		h.failed()
	}
	return err
}

// TestCommitSurvivesCrash stops the machine at thousands of moments: while a home is made, while commits run, while
// segments roll, while the index is written out, and while it is opened again.
func TestCommitSurvivesCrash(t *testing.T) {
	want := 2000 / raceStride
	if testing.Short() {
		want = 200
	}
	if n, err := strconv.Atoi(os.Getenv("FPNODE_CRASH_CLONES")); err == nil {
		want = n
	}
	var crashes atomic.Int64
	for seed := uint64(1); int(crashes.Load()) < want; seed++ {
		h := &history{}
		n, err := crashfs.Crashes(seed, 3, nil, func(fs vfs.FS, ack func()) {
			rng := rand.New(rand.NewPCG(seed, 7))
			cfg := config(fs)
			cfg.SegmentBytes = 16 << 10
			for range 3 {
				s, err := blockstore.Open(cfg)
				if err != nil {
					t.Fatalf("seed %d: Open: %v", seed, err)
				}
				l := openLedger(t, s, 1)
				for range 5 + rng.IntN(20) {
					if err := h.commit(l, rng); err != nil {
						t.Fatalf("seed %d: Commit: %v", seed, err)
					}
					ack()
				}
				if err := s.Close(); err != nil {
					t.Fatalf("seed %d: Close: %v", seed, err)
				}
			}
		}, func(c crashfs.Crash) error {
			if c.Op%10 > 0 {
				return h.check(c.FS, c.Acked, c.Op%7 == 0)
			}
			// A machine that stops again while it recovers must not lose more.
			n, err := crashfs.Crashes(seed, 4, c.FS, func(fs vfs.FS, _ func()) {
				s, err := blockstore.Open(config(fs))
				if err != nil {
					t.Errorf("seed %d: %v: Open: %v", seed, c, err)
					return
				}
				s.Close()
			}, func(again crashfs.Crash) error {
				if err := h.check(again.FS, c.Acked, false); err != nil {
					return fmt.Errorf("after %v: %w", c, err)
				}
				return nil
			})
			crashes.Add(int64(n))
			return err
		})
		crashes.Add(int64(n))
		if err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("%d crashes", crashes.Load())
}
