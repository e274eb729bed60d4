package ledger

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"fpnode/blockstore"
	"fpnode/internal/crashfs"
)

// A script is a workload whose every step is one acknowledgement, and what the ledger says after each: after[0] is
// the empty ledger, after[n] follows step n.
type script struct {
	steps []func(*home) error
	after []brief
}

// brief is a state as far as a crash could spoil it.
type brief struct {
	Head, Tips, Root string
	Docs             []string
	Changes          []string
	Both             int // versions of one document
}

func (h *home) brief() brief {
	h.tb.Helper()
	heads := textsOf(h.Head())
	slices.Sort(heads)
	b := brief{
		Head: strings.Join(heads, " "),
		Tips: strings.Join(textsOf(metaCIDs(h.Tips())), " "),
		Root: must(h.Root(context.Background())).String(),
		Docs: h.list(ListOptions{IncludeDeleted: true}),
	}
	if len(heads) == 0 {
		return b
	}
	b.Changes = h.changes(nil, 0)
	for _, err := range h.History(context.Background(), "both") {
		if err != nil && !errors.Is(err, ErrNotFound) {
			h.tb.Fatal(err)
		}
		b.Both++
	}
	return b
}

// newScript makes a workload of puts, bulks, deletions and merges, and runs it once to know what is right.
func newScript(t *testing.T) *script {
	t.Helper()
	s := &script{}
	peer, ref := newHome(t), newHome(t)
	put := func(docs ...string) {
		s.steps = append(s.steps, func(h *home) error {
			var drafts []Draft
			for _, d := range docs {
				drafts = append(drafts, draft(t, d))
			}
			_, err := h.Put(context.Background(), drafts...)
			return err
		})
	}
	merge := func() { // what the peer has by now
		cars, tips := ref.carsOf(peer), peer.Tips()
		s.steps = append(s.steps, func(h *home) error {
			var mine []blockstore.CAR
			for _, c := range cars {
				sealed := must(peer.cars.Sealed(context.Background(), c.Ref))
				mine = append(mine, must(h.cars.Accept(c.Ref, sealed)))
			}
			res, err := h.Merge(context.Background(), tips, mine)
			if err == nil && len(res.Accepted) != len(tips) {
				err = fmt.Errorf("not accepted: %v", res)
			}
			return err
		})
	}
	for i := range 4 {
		put(fmt.Sprintf(`{"_id":"both","mine":%d}`, i))
		peer.put(fmt.Sprintf(`{"_id":"both","peer":%d}`, i))
		var bulk []string
		for j := range 20 {
			bulk = append(bulk, fmt.Sprintf(`{"_id":"bulk%02d","i":%d}`, j, i))
		}
		put(bulk...)
		peer.put(fmt.Sprintf(`{"_id":"peer%d"}`, i))
		merge()
		s.steps = append(s.steps, func(h *home) error {
			_, err := h.Delete(context.Background(), fmt.Sprintf("bulk%02d", i), fmt.Sprintf("peer%d", i))
			return err
		})
		if i == 2 {
			put(fmt.Sprintf(`{"_id":"wide","text":%q}`, strings.Repeat("x", 20_000)))
		}
	}
	peer.put(`{"_id":"both","peer":"last"}`)
	merge() // and end with two heads
	s.after = append(s.after, ref.brief())
	for i, step := range s.steps {
		if err := step(ref); err != nil {
			t.Fatalf("step %d: %v", i+1, err)
		}
		s.after = append(s.after, ref.brief())
	}
	if len(ref.Head()) != 2 {
		t.Fatalf("the script ends with %d heads", len(ref.Head()))
	}
	return s
}

// check opens what is on a disk and demands that it is the state after at least acked steps and at most one more, that
// the view agrees with the events, and that writing goes on.
func (s *script) check(t *testing.T, fs vfs.FS, acked int) error {
	h, err := tryHome(t, fs, "home")
	if err != nil {
		return fmt.Errorf("opening: %w", err)
	}
	defer h.close()
	got := h.brief()
	k := slices.IndexFunc(s.after, func(b brief) bool { return b.Head == got.Head && b.Tips == got.Tips })
	if k < acked || k > acked+1 {
		return fmt.Errorf("state is that of step %d, %d were acknowledged", k, acked)
	}
	if fmt.Sprint(got) != fmt.Sprint(s.after[k]) {
		return fmt.Errorf("after step %d:\ngot  %v\nwant %v", k, got, s.after[k])
	}
	h.checkRoot()
	h.checkView()
	if _, err := h.Put(context.Background(), draft(t, `{"_id":"after"}`)); err != nil {
		return fmt.Errorf("writing afterwards: %w", err)
	}
	h.checkRoot()
	if t.Failed() {
		return errors.New("see above")
	}
	return nil
}

// Whenever the machine stops, what was acknowledged is there, whole and shown, and nothing else is.
func TestCrashLosesNothing(t *testing.T) {
	s := newScript(t)
	want := 200
	if testing.Short() {
		want = 50
	}
	if n, err := strconv.Atoi(os.Getenv("FPNODE_CRASH_CLONES")); err == nil {
		want = n
	}
	crashes := 0
	for seed := 0; crashes < want; seed++ {
		n, err := crashfs.Crashes(uint64(seed), 3, nil, func(fs vfs.FS, ack func()) {
			h, err := tryHome(t, fs, "home")
			if err != nil {
				t.Fatal(err)
			}
			defer h.close()
			for i, step := range s.steps {
				if err := step(h); err != nil {
					t.Fatalf("step %d: %v", i+1, err)
				}
				ack()
			}
		}, func(c crashfs.Crash) error { return s.check(t, c.FS, c.Acked) })
		crashes += n
		if err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("%d crashes", crashes)
}

// A crash while a crash is repaired.
func TestCrashDuringRecovery(t *testing.T) {
	s := newScript(t)
	crashes := 0
	_, err := crashfs.Crashes(42, 40, nil, func(fs vfs.FS, ack func()) {
		h, err := tryHome(t, fs, "home")
		if err != nil {
			t.Fatal(err)
		}
		defer h.close()
		for _, step := range s.steps {
			if err := step(h); err != nil {
				t.Fatal(err)
			}
			ack()
		}
	}, func(c crashfs.Crash) error {
		n, err := crashfs.Crashes(uint64(c.Op), 6, c.FS, func(fs vfs.FS, _ func()) {
			if h, err := tryHome(t, fs, "home"); err == nil {
				h.close()
			}
		}, func(again crashfs.Crash) error { return s.check(t, again.FS, c.Acked) })
		crashes += n
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d crashes", crashes)
}

// Whichever file operation fails, and however: the step that was under way fails or succeeds, and after opening again
// what was acknowledged is there.
func TestEveryIOErrorIsSurvived(t *testing.T) {
	s := newScript(t)
	stride := 5
	if testing.Short() {
		stride = 41
	}
	for kind := range crashfs.Kinds {
		t.Run(kind.String(), func(t *testing.T) {
			tried := 0
			for at := 1 + int(kind); ; at += stride {
				disk := vfs.NewMem()
				fault := crashfs.NewFault(disk, kind, at)
				acked, failed := 0, false
				if h, err := tryHome(t, fault, "home"); err == nil {
					for _, step := range s.steps {
						if err := step(h); err != nil {
							failed = true
							break
						}
						acked++
					}
					fault.Heal()
					h.closeAnyway()
				} else {
					failed = true
				}
				if !fault.Fired() {
					break
				}
				fault.Heal()
				tried++
				if err := s.check(t, disk, acked); err != nil {
					t.Fatalf("%v at operation %d, failed %v: %v", kind, at, failed, err)
				}
			}
			t.Logf("%d operations", tried)
			if tried == 0 {
				t.Error("no operation failed")
			}
		})
	}
}

// On a full disk a step fails and leaves the ledger as it was; when there is room again the same step succeeds.
func TestFailedStepCanBeRepeated(t *testing.T) {
	s := newScript(t)
	for at := 60; at < 600; at += 11 {
		disk := vfs.NewMem()
		fault := crashfs.NewFault(disk, crashfs.ENOSPC, at)
		h, err := tryHome(t, fault, "home")
		if err != nil {
			continue
		}
		for i, step := range s.steps {
			err := step(h)
			if err == nil {
				continue
			}
			if errors.Is(err, blockstore.ErrPoisoned) { // it met the index or a sync: only opening again tells
				fault.Heal()
				h.closeAnyway()
				h = openHome(t, disk)
				if h.brief().Head == s.after[i+1].Head {
					continue
				}
			} else if !errors.Is(err, blockstore.ErrDiskFull) {
				t.Fatalf("operation %d, step %d: %v", at, i+1, err)
			}
			if got := h.brief(); fmt.Sprint(got) != fmt.Sprint(s.after[i]) {
				t.Fatalf("operation %d: after the failure of step %d:\ngot  %v\nwant %v", at, i+1, got, s.after[i])
			}
			fault.Heal()
			if err := step(h); err != nil {
				t.Fatalf("operation %d, step %d again: %v", at, i+1, err)
			}
		}
		wantEqual(t, "end", h.brief(), s.after[len(s.steps)])
		h.closeAnyway()
		if !fault.Fired() {
			break
		}
	}
}

// closeAnyway closes after errors, which it expects.
func (h *home) closeAnyway() {
	h.Ledger.Close()
	h.store.Close()
	h.Ledger = nil
}
