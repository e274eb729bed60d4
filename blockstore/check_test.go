package blockstore_test

import (
	"context"
	"errors"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"fpnode/blockstore"
)

func problems(t testing.TB, s *blockstore.Store, opts blockstore.CheckOptions) []blockstore.Problem {
	t.Helper()
	var list []blockstore.Problem
	var done, total int64
	err := s.Check(ctx, opts, func(p blockstore.Problem) { list = append(list, p) }, func(d, n int64) {
		if d < done || d > n {
			t.Errorf("progress went from %d to %d of %d", done, d, n)
		}
		done, total = d, n
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(list) == 0 && (total == 0 || done < total*9/10) {
		t.Errorf("progress ended at %d of %d", done, total)
	}
	return list
}

// TestCheckFindsAWrongIndex changes one entry of each kind, or takes it away.
func TestCheckFindsAWrongIndex(t *testing.T) {
	fs := vfs.NewMem()
	cfg := config(fs)
	cfg.SegmentBytes = 20 << 10
	s := openStore(t, cfg)
	l, _ := busyLedger(t, s, 1)
	busyLedger(t, s, 2)
	if err := l.Commit(ctx, tipCIDs(l), blockstore.Batch{Notes: map[string][]byte{"a": []byte("1")}}); err != nil {
		t.Fatal(err)
	}
	for _, opts := range []blockstore.CheckOptions{{}, {ReadData: true}, {Ledgers: [][32]byte{ledgerID(1)}}} {
		if got := problems(t, s, opts); got != nil {
			t.Fatalf("%+v: problems in a good home: %v", opts, got)
		}
	}
	for _, kind := range []byte("bcntvw") {
		for _, remove := range []bool{false, true} {
			restore := s.Tamper(ledgerID(1), kind, remove)
			got := problems(t, s, blockstore.CheckOptions{})
			if len(got) == 0 {
				t.Errorf("kind %c, removed %v: no problem reported", kind, remove)
			}
			for _, p := range got {
				if p.Ledger != ledgerID(1) || p.What == "" || p.Advice == "" || p.String() == "" {
					t.Errorf("kind %c, removed %v: %+v", kind, remove, p)
				}
			}
			if got := problems(t, s, blockstore.CheckOptions{Ledgers: [][32]byte{ledgerID(2)}}); got != nil {
				t.Errorf("kind %c, removed %v: problems in the other ledger: %v", kind, remove, got)
			}
			restore()
		}
	}
	if got := problems(t, s, blockstore.CheckOptions{ReadData: true}); got != nil {
		t.Fatalf("problems after all was put right: %v", got)
	}
	cancelled, cancel := context.WithCancel(ctx)
	cancel()
	if err := s.Check(cancelled, blockstore.CheckOptions{}, func(blockstore.Problem) {}, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled Check: %v", err)
	}
}

// A ledger whose log is damaged in the middle does not open; Check names the place, and the ledgers beside it are used
// as ever.
func TestDamagedLedgerBesideGoodOnes(t *testing.T) {
	d := newDamagedLog(t, 1<<20, 5)
	fs := copyHome(t, d.fs)
	s, err := blockstore.Open(config(fs))
	if err != nil {
		t.Fatal(err)
	}
	others := fill(t, openLedger(t, s, 2), 1, 3)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	b := append([]byte(nil), d.files[0]...)
	b[d.runs[0][2]+100] ^= 4
	writeFile(t, fs, d.paths[0], b)
	if err := fs.RemoveAll(home + "/index"); err != nil {
		t.Fatal(err)
	}
	s, err = blockstore.Open(config(fs))
	if err != nil {
		t.Fatal(err)
	}
	_, err = s.Ledger(ledgerID(1), keys)
	if err := wantCorrupt(err, d.paths[0], d.runs[0][2]); err != nil {
		t.Error(err)
	}
	l := openLedger(t, s, 2)
	for i := range others {
		if err := verify(s, l, &others[i]); err != nil {
			t.Error(err)
		}
	}
	fill(t, l, 2, 2)
	got := problems(t, s, blockstore.CheckOptions{ReadData: true})
	if len(got) != 1 || got[0].File != d.paths[0] || got[0].Offset != int64(d.runs[0][2]) || got[0].Ledger != ledgerID(1) {
		t.Errorf("Check reports %v, want one problem at %s byte %d", got, d.paths[0], d.runs[0][2])
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}

	// The file is brought back from a copy, and the ledger opens.
	writeFile(t, fs, d.paths[0], d.files[0])
	s = openStore(t, config(fs))
	if err := d.h.tipIs(openLedger(t, s, 1), 5); err != nil {
		t.Error(err)
	}
}
