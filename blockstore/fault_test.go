package blockstore_test

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/vfstest"

	"fpnode/blockstore"
	"fpnode/internal/crashfs"
)

// TestEveryFault fails every file operation of a small workload in every way, one run each, once on a new home and
// once on one that has a log of several segments and an index on disk. Whatever fails: nothing panics or hangs, what
// was acknowledged is there, what was refused is not, reads go on, a full disk is called so, no file stays open, and
// once the fault has passed the store works, at the latest after it was opened again.
func TestEveryFault(t *testing.T) {
	step := raceStride
	if testing.Short() {
		step = 7
	}
	old := oldHome(t)
	for kind := range crashfs.Kinds {
		for _, h := range []*faultHome{{fs: vfs.NewMem(), name: "new home"}, old} {
			t.Run(kind.String()+", "+h.name, func(t *testing.T) {
				t.Parallel()
				runs := 0
				for at := 1; ; at += step {
					fired, err := oneFault(t, h, kind, at)
					if err != nil {
						t.Fatalf("%v at operation %d: %v", kind, at, err)
					}
					if !fired {
						break
					}
					runs++
				}
				t.Logf("%d runs", runs)
			})
		}
	}
}

// faultHome is where a run begins.
type faultHome struct {
	name    string
	fs      *vfs.MemFS
	commits []blockstore.CAR
}

func oldHome(t *testing.T) *faultHome {
	t.Helper()
	h := &history{}
	fs := vfs.NewMem()
	rng := rand.New(rand.NewPCG(2, 2))
	for range 2 {
		cfg := config(fs)
		cfg.SegmentBytes = 3 << 10
		s, err := blockstore.Open(cfg)
		if err != nil {
			t.Fatal(err)
		}
		l := openLedger(t, s, 1)
		for range 4 {
			if err := h.commit(l, rng); err != nil {
				t.Fatal(err)
			}
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	return &faultHome{name: "old home", fs: fs, commits: h.all()}
}

func oneFault(t *testing.T, from *faultHome, kind crashfs.Kind, at int) (fired bool, err error) {
	mem := vfs.NewMem()
	if len(from.commits) > 0 {
		mem = copyHome(t, from.fs)
	}
	base, openFiles := vfstest.WithOpenFileTracking(mem)
	fault := crashfs.NewFault(base, kind, at)
	h := &history{commits: slices.Clone(from.commits)}
	acked := len(from.commits)
	done := make(chan error, 1)
	go func() { done <- faultWork(fault, h, &acked) }()
	select {
	case err = <-done:
	case <-time.After(time.Minute):
		panic("the work hangs") // with all stacks
	}
	if err != nil {
		return fault.Fired(), err
	}
	var open bytes.Buffer
	if openFiles(&open); open.Len() > 0 {
		return true, fmt.Errorf("files are still open:\n%s", &open)
	}
	if err := h.check(base, acked, true); err != nil {
		return true, fmt.Errorf("after all: %w", err)
	}
	return fault.Fired(), nil
}

func faultWork(fault *crashfs.Fault, h *history, acked *int) error {
	cfg := config(fault)
	cfg.SegmentBytes = 3 << 10
	s, err := blockstore.Open(cfg)
	if err != nil {
		if !fault.Fired() {
			return fmt.Errorf("Open without a fault: %w", err)
		}
		fault.Heal()
		if s, err = blockstore.Open(cfg); err != nil {
			return fmt.Errorf("Open after the fault: %w", err)
		}
	}
	if err := storeWork(fault, s, h, rand.New(rand.NewPCG(1, 1)), acked); err != nil {
		s.Close()
		return err
	}
	if err := s.Close(); err != nil && !fault.Fired() {
		return fmt.Errorf("Close without a fault: %w", err)
	}
	return nil
}

func storeWork(fault *crashfs.Fault, s *blockstore.Store, h *history, rng *rand.Rand, acked *int) error {
	l, err := s.Ledger(ledgerID(1), keys)
	if err != nil {
		if !fault.Fired() {
			return fmt.Errorf("Ledger without a fault: %w", err)
		}
		fault.Heal()
		if l, err = s.Ledger(ledgerID(1), keys); err != nil {
			return fmt.Errorf("Ledger after the fault: %w", err)
		}
	}
	for range 3 {
		before := len(h.all())
		err := h.commit(l, rng)
		switch {
		case err == nil:
			*acked = len(h.all())
		case !fault.Fired():
			return fmt.Errorf("Commit without a fault: %w", err)
		case errors.Is(err, blockstore.ErrPoisoned):
			if err := h.commit(l, rng); !errors.Is(err, blockstore.ErrPoisoned) {
				return fmt.Errorf("Commit on a poisoned store: %v", err)
			}
			h.failed() // the second one
		case fault.Kind == crashfs.ENOSPC && !errors.Is(err, blockstore.ErrDiskFull):
			return fmt.Errorf("Commit on a full disk: %w", err)
		}
		if fault.Kind != crashfs.EIOSticky { // then nothing can be read
			all := h.all()
			for i := max(0, min(before, *acked)-2); i < min(before, *acked); i++ {
				// The fault may hit this read; then the next is good.
				if err := verify(s, l, &all[i]); err != nil && verify(s, l, &all[i]) != nil {
					return fmt.Errorf("reading commit %d while things fail: %w", i+1, err)
				}
			}
		}
		if err != nil {
			fault.Heal()
			if errors.Is(err, blockstore.ErrPoisoned) {
				return nil
			}
			if err := h.commit(l, rng); err != nil {
				return fmt.Errorf("Commit after the fault: %w", err)
			}
			*acked = len(h.all())
		}
	}
	return nil
}
