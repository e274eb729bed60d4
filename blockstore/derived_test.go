package blockstore_test

import (
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/google/go-cmp/cmp"

	"fpnode/blockstore"
	"fpnode/internal/crashfs"
)

func scan(t testing.TB, seq func(func(blockstore.KV, error) bool)) []string {
	t.Helper()
	var list []string
	for kv, err := range seq {
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, string(kv.Key)+"="+string(kv.Value))
	}
	return list
}

func TestDerived(t *testing.T) {
	fs := vfs.NewMem()
	s, err := blockstore.Open(config(fs))
	if err != nil {
		t.Fatal(err)
	}
	// Before the first commit of its ledger too.
	d, other := openLedger(t, s, 1).Derived(), openLedger(t, s, 2).Derived()
	if v, ok, err := d.Get([]byte("a")); v != nil || ok || err != nil {
		t.Errorf("Get in an empty space: %q, %v, %v", v, ok, err)
	}
	if got := scan(t, d.Scan(nil, nil, false)); got != nil {
		t.Errorf("Scan of an empty space: %q", got)
	}
	for _, d := range []*blockstore.Derived{other, d} {
		b := d.NewBatch()
		for _, k := range []string{"", "a", "b", "b\x00", "b\xff", "c", "\xff", "\xff\xff"} {
			b.Set([]byte(k), []byte("v"+k))
		}
		if _, ok, _ := d.Get([]byte("a")); ok {
			t.Error("a batch is visible before Commit")
		}
		if err := b.Commit(); err != nil {
			t.Fatal(err)
		}
		if err := b.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if v, ok, err := d.Get([]byte("b")); string(v) != "vb" || !ok || err != nil {
		t.Errorf("Get: %q, %v, %v", v, ok, err)
	}
	all := []string{"=v", "a=va", "b=vb", "b\x00=vb\x00", "b\xff=vb\xff", "c=vc", "\xff=v\xff", "\xff\xff=v\xff\xff"}
	for _, tt := range []struct {
		lo, hi []byte
		want   []string
	}{
		{nil, nil, all},
		{[]byte("b"), []byte("c"), all[2:5]},
		{[]byte("b\x00"), nil, all[3:]},
		{nil, []byte("b"), all[:2]},
		{[]byte("x"), []byte("y"), nil},
		{[]byte("\xff\xff\xff"), nil, nil},
		{nil, []byte{}, nil},
	} {
		if diff := cmp.Diff(tt.want, scan(t, d.Scan(tt.lo, tt.hi, false))); diff != "" {
			t.Errorf("Scan(%q, %q) (-want +got):\n%s", tt.lo, tt.hi, diff)
		}
		reversed := slices.Clone(tt.want)
		slices.Reverse(reversed)
		if diff := cmp.Diff(reversed, scan(t, d.Scan(tt.lo, tt.hi, true))); diff != "" {
			t.Errorf("reverse Scan(%q, %q) (-want +got):\n%s", tt.lo, tt.hi, diff)
		}
	}

	snap := d.Snapshot()
	b := d.NewBatch()
	b.DeleteRange([]byte("b"), []byte("c"))
	b.Delete([]byte("\xff"))
	b.Set([]byte("b\x01"), nil)
	if err := b.Commit(); err != nil {
		t.Fatal(err)
	}
	b.Close()
	if diff := cmp.Diff(all, scan(t, snap.Scan(nil, nil, false))); diff != "" {
		t.Errorf("the snapshot changed:\n%s", diff)
	}
	if v, ok, err := snap.Get([]byte("b")); string(v) != "vb" || !ok || err != nil {
		t.Errorf("Get of the snapshot: %q, %v, %v", v, ok, err)
	}
	if err := snap.Close(); err != nil {
		t.Fatal(err)
	}
	want := []string{"=v", "a=va", "b\x01=", "c=vc", "\xff\xff=v\xff\xff"}
	if diff := cmp.Diff(want, scan(t, d.Scan(nil, nil, false))); diff != "" {
		t.Errorf("after the batch (-want +got):\n%s", diff)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}

	s = openStore(t, config(fs))
	d, other = openLedger(t, s, 1).Derived(), openLedger(t, s, 2).Derived()
	if diff := cmp.Diff(want, scan(t, d.Scan(nil, nil, false))); diff != "" {
		t.Errorf("after opening again (-want +got):\n%s", diff)
	}
	if err := d.Reset(); err != nil {
		t.Fatal(err)
	}
	if got := scan(t, d.Scan(nil, nil, false)); got != nil {
		t.Errorf("after Reset: %q", got)
	}
	if diff := cmp.Diff(all, scan(t, other.Scan(nil, nil, false))); diff != "" {
		t.Errorf("the other ledger's space (-want +got):\n%s", diff)
	}
}

// After a crash the derived space is at some batch, with all before it, and not ahead of the commits.
func TestDerivedAfterCrash(t *testing.T) {
	for seed := range uint64(6) {
		_, err := crashfs.Crashes(seed, 2, nil, func(fs vfs.FS, ack func()) {
			for range 4 {
				s, err := blockstore.Open(config(fs))
				if err != nil {
					t.Fatal(err)
				}
				l := openLedger(t, s, 1)
				d := l.Derived()
				for range 5 {
					fill(t, l, seed*100+uint64(l.Stats().Cars), 1)
					b := d.NewBatch()
					n := l.Stats().Cars
					b.Set([]byte("n"), fmt.Append(nil, n))
					b.Set(fmt.Appendf(nil, "k%04d", n), nil)
					if err := b.Commit(); err != nil {
						t.Fatal(err)
					}
					b.Close()
				}
				if err := s.Close(); err != nil {
					t.Fatal(err)
				}
			}
		}, func(c crashfs.Crash) error {
			s, err := blockstore.Open(config(c.FS))
			if err != nil {
				return err
			}
			defer s.Close()
			l, err := s.Ledger(ledgerID(1), keys)
			if err != nil {
				return err
			}
			v, _, err := l.Derived().Get([]byte("n"))
			if err != nil {
				return err
			}
			var n int64
			fmt.Sscan(string(v), &n)
			if n > l.Stats().Cars {
				return fmt.Errorf("derived data of commit %d, but the log has %d", n, l.Stats().Cars)
			}
			keys := int64(0)
			for _, err := range l.Derived().Scan([]byte("k"), []byte("l"), false) {
				if err != nil {
					return err
				}
				keys++
			}
			if keys != n {
				return fmt.Errorf("%d of %d batches are there", keys, n)
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
}

// A ledger that is being removed is whole or gone after a crash, and another is not touched.
func TestDropSurvivesCrash(t *testing.T) {
	gone := 0
	for seed := range uint64(8) {
		var cars, others []blockstore.CAR
		_, err := crashfs.Crashes(seed, 1, nil, func(fs vfs.FS, ack func()) {
			s, err := blockstore.Open(config(fs))
			if err != nil {
				t.Fatal(err)
			}
			cars = fill(t, openLedger(t, s, 1), 1, 5)
			others = fill(t, openLedger(t, s, 2), 1, 5) // the same sealed bytes
			b := openLedger(t, s, 1).Derived().NewBatch()
			b.Set([]byte("k"), []byte("v"))
			if err := b.Commit(); err != nil {
				t.Fatal(err)
			}
			b.Close()
			ack()
			if err := s.Drop(ledgerID(1)); err != nil {
				t.Fatal(err)
			}
			ack()
			if _, err := openLedger(t, s, 1).Block(ctx, cars[0].CIDs()[0]); !errors.Is(err, blockstore.ErrNotFound) {
				t.Errorf("Block of a ledger made anew: %v", err)
			}
			fill(t, openLedger(t, s, 1), 3, 2)
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
		}, func(c crashfs.Crash) error {
			if c.Acked == 0 {
				return nil
			}
			s, err := blockstore.Open(config(c.FS))
			if err != nil {
				return err
			}
			defer s.Close()
			l, err := s.Ledger(ledgerID(1), keys)
			if err != nil {
				return err
			}
			switch n := l.Stats().Cars; {
			case n == 5 && c.Acked == 1:
				if err := verify(s, l, &cars[4]); err != nil {
					return err
				}
			case n <= 2:
				gone++
				if l.Known(cars[0].Ref.Name) {
					return errors.New("a removed ledger knows its CARs")
				}
				if _, ok, _ := l.Derived().Get([]byte("k")); ok {
					return errors.New("a removed ledger has derived data")
				}
			default:
				return fmt.Errorf("%d CARs are left of a removed ledger", n)
			}
			o, err := s.Ledger(ledgerID(2), keys)
			if err != nil {
				return err
			}
			for i := range others {
				if err := verify(s, o, &others[i]); err != nil {
					return fmt.Errorf("the other ledger: %w", err)
				}
			}
			var problem error
			err = s.Check(ctx, blockstore.CheckOptions{ReadData: true}, func(p blockstore.Problem) { problem = errors.New(p.String()) }, nil)
			return errors.Join(err, problem)
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if gone == 0 {
		t.Error("no crash found the ledger gone")
	}
}
