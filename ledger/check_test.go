package ledger

import (
	"context"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/google/go-cmp/cmp"
	"github.com/ipfs/go-cid"

	"fpnode/blockstore"
	"fpnode/clock"
	"fpnode/internal/car"
	"fpnode/pail"
)

func checkAll(t testing.TB, l *Ledger) (CheckResult, []Problem) {
	t.Helper()
	var found []Problem
	res, err := l.Check(t.Context(), func(p Problem) { found = append(found, p) }, nil)
	if err != nil {
		t.Fatal(err)
	}
	if res.Problems != len(found) {
		t.Errorf("%d problems counted, %d reported", res.Problems, len(found))
	}
	for _, p := range found {
		if p.Text == "" || p.Advice == "" {
			t.Errorf("problem without words: %+v", p)
		}
	}
	return res, found
}

func kinds(problems []Problem) map[ProblemKind]int {
	m := map[ProblemKind]int{}
	for _, p := range problems {
		m[p.Kind]++
	}
	return m
}

func TestCheckCountsWhatItVerified(t *testing.T) {
	l := newTestHome(t).ledger(t, "test", newTestKeys(t))
	if res, found := checkAll(t, l); res != (CheckResult{}) || len(found) > 0 {
		t.Errorf("empty ledger: %+v %v", res, found)
	}
	putN(t, l, 0, 10)
	if _, err := l.Delete(t.Context(), "doc-00001"); err != nil {
		t.Fatal(err)
	}
	res, found := checkAll(t, l)
	want := CheckResult{Events: 12, Verified: 12, Docs: 7} // genesis counts
	if d := cmp.Diff(want, res); d != "" || len(found) > 0 {
		t.Errorf("%s %v", d, found)
	}
}

// TestCheckFindsAStaleView changes records of the view behind the ledger's back.
func TestCheckFindsAStaleView(t *testing.T) {
	for _, tc := range []struct {
		name   string
		change func(t *testing.T, l *Ledger, b *blockstore.DerivedBatch)
		id     string
	}{
		{"another version", func(t *testing.T, l *Ledger, b *blockstore.DerivedBatch) {
			setEntry(t, l, b, "doc-00002", func(e *entry) { e.value = entryOf(t, l, "doc-00003").value })
		}, "doc-00002"},
		{"forgotten deletion", func(t *testing.T, l *Ledger, b *blockstore.DerivedBatch) {
			setEntry(t, l, b, "doc-00001", func(e *entry) { e.value, e.flags = entryOf(t, l, "doc-00003").value, 0 })
		}, "doc-00001"},
		{"flag alone", func(t *testing.T, l *Ledger, b *blockstore.DerivedBatch) {
			setEntry(t, l, b, "doc-00001", func(e *entry) { e.flags = 0 })
		}, "doc-00001"},
		{"record missing", func(t *testing.T, l *Ledger, b *blockstore.DerivedBatch) {
			b.Delete(viewKey("doc-00003"))
		}, "doc-00003"},
		{"first record missing", func(t *testing.T, l *Ledger, b *blockstore.DerivedBatch) {
			b.Delete(viewKey(pail.GenesisKey))
		}, pail.GenesisKey},
		{"record too many", func(t *testing.T, l *Ledger, b *blockstore.DerivedBatch) {
			b.Set(viewKey("doc-00002x"), appendEntry(nil, entryOf(t, l, "doc-00003")))
		}, "doc-00002x"},
		{"last record too many", func(t *testing.T, l *Ledger, b *blockstore.DerivedBatch) {
			b.Set(viewKey("zzz"), appendEntry(nil, entryOf(t, l, "doc-00003")))
		}, "zzz"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			l := newTestHome(t).ledger(t, "test", newTestKeys(t))
			putN(t, l, 0, 10)
			if _, err := l.Delete(t.Context(), "doc-00001"); err != nil {
				t.Fatal(err)
			}
			b := l.view.d.NewBatch()
			tc.change(t, l, b)
			mustSet(t, b.Commit())
			_, found := checkAll(t, l)
			if len(found) != 1 || found[0].Kind != ProblemView || found[0].ID != tc.id || found[0].Damage() {
				t.Errorf("found %v", found)
			}
		})
	}
}

func mustSet(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func entryOf(t *testing.T, l *Ledger, id string) entry {
	t.Helper()
	e, ok, err := l.view.get(id)
	if err != nil || !ok {
		t.Fatalf("%s: %v", id, err)
	}
	return e
}

func setEntry(t *testing.T, l *Ledger, b *blockstore.DerivedBatch, id string, change func(*entry)) {
	t.Helper()
	e := entryOf(t, l, id)
	change(&e)
	b.Set(viewKey(id), appendEntry(nil, e))
}

// TestCheckFindsWhatIsMissingOrWrong commits CARs that no merge would take, as a damaged store might hold them.
func TestCheckFindsWhatIsMissingOrWrong(t *testing.T) {
	src := newTestHome(t).ledger(t, "source", newTestKeys(t))
	putN(t, src, 0, 3)
	keep := map[cid.Cid][]byte{}
	for c, err := range src.store.Blocks(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		b, err := src.store.Block(t.Context(), c)
		if err != nil {
			t.Fatal(err)
		}
		if !isHeader(b) {
			keep[c] = b
		}
	}
	doc, err := src.Get(t.Context(), "doc-00001")
	if err != nil {
		t.Fatal(err)
	}
	head := src.Head()
	wrong := func() (cid.Cid, []byte) { // the newest event, with the root of the one before
		e, err := fetchEvent(t.Context(), src.store, head[0])
		if err != nil {
			t.Fatal(err)
		}
		before, err := readEvent(t.Context(), src.store, e.Parents[0])
		if err != nil {
			t.Fatal(err)
		}
		data, err := pail.DecodeData(e.Data)
		if err != nil {
			t.Fatal(err)
		}
		data.Root = before.Root
		return clock.Encode(data.Encode(), e.Parents)
	}
	for _, tc := range []struct {
		name   string
		change func(blocks map[cid.Cid][]byte, head []cid.Cid) []cid.Cid
		want   map[ProblemKind]int
	}{
		{"nothing", func(_ map[cid.Cid][]byte, head []cid.Cid) []cid.Cid { return head }, map[ProblemKind]int{}},
		{"the first event", func(b map[cid.Cid][]byte, head []cid.Cid) []cid.Cid {
			delete(b, pail.GenesisEvent)
			return head
		}, map[ProblemKind]int{ProblemEvent: 1}},
		{"a shard of the current root", func(b map[cid.Cid][]byte, head []cid.Cid) []cid.Cid {
			data, err := readEvent(t.Context(), src.store, head[0])
			if err != nil {
				t.Fatal(err)
			}
			delete(b, data.Root)
			return head
		}, map[ProblemKind]int{ProblemShard: 1}},
		{"a document", func(b map[cid.Cid][]byte, head []cid.Cid) []cid.Cid {
			delete(b, doc.CID)
			return head
		}, map[ProblemKind]int{ProblemDoc: 1}},
		{"a root that does not follow", func(b map[cid.Cid][]byte, head []cid.Cid) []cid.Cid {
			c, block := wrong()
			b[c] = block
			return []cid.Cid{c}
		}, map[ProblemKind]int{ProblemRoot: 1}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			h := newTestHome(t)
			keys := newTestKeys(t)
			blocks := map[cid.Cid][]byte{}
			for c, b := range keep {
				blocks[c] = b
			}
			top := tc.change(blocks, head)
			list := []car.Block{headerBlock(car.Header{Head: top, HasHead: true})}
			for c, b := range blocks {
				list = append(list, car.Block{CID: c, Data: b})
			}
			slices.SortFunc(list[1:], func(a, b car.Block) int { return compareBytes(a.CID, b.CID) })
			l := h.ledger(t, "test", keys)
			c, err := l.store.Pack([]cid.Cid{list[0].CID}, list)
			if err != nil {
				t.Fatal(err)
			}
			batch := blockstore.Batch{CARs: []blockstore.CAR{c}, Tips: []blockstore.Meta{blockstore.NewMeta([]blockstore.Ref{c.Ref}, nil)}}
			if err := l.store.Commit(t.Context(), nil, batch); err != nil {
				t.Fatal(err)
			}
			// The view stays empty: making it would fail on what is missing.
			l.state.Store(&state{head: top})
			res, found := checkAll(t, l)
			found = slices.DeleteFunc(found, func(p Problem) bool { return p.Kind == ProblemView })
			if d := cmp.Diff(tc.want, kinds(found)); d != "" {
				t.Errorf("%s\n%v", d, found)
			}
			for _, p := range found {
				if !p.Damage() {
					t.Errorf("%v is damage", p)
				}
			}
			if tc.want[ProblemEvent] == 0 && res.Events != 4 {
				t.Errorf("%+v", res)
			}
		})
	}
}

// TestCheckReportsDamagedBlocks flips bytes all over the segment while the ledger is open. Check ends and names each.
func TestCheckReportsDamagedBlocks(t *testing.T) {
	h := newTestHome(t)
	l := h.ledger(t, "test", newTestKeys(t))
	putN(t, l, 0, 30)
	var segments []string
	walk(t, h.fs, "/home/ledgers", func(name string) {
		if strings.HasSuffix(name, ".seg") {
			segments = append(segments, name)
		}
	})
	if len(segments) == 0 {
		t.Fatal("no segment")
	}
	damaged := 0
	for _, name := range segments {
		info, err := h.fs.Stat(name)
		if err != nil {
			t.Fatal(err)
		}
		f, err := h.fs.OpenReadWrite(name, vfs.WriteCategoryUnspecified)
		if err != nil {
			t.Fatal(err)
		}
		b := make([]byte, 1)
		for at := int64(500); at < info.Size(); at += 700 {
			if _, err := f.ReadAt(b, at); err != nil {
				t.Fatal(err)
			}
			b[0] ^= 0x10
			if _, err := f.WriteAt(b, at); err != nil {
				t.Fatal(err)
			}
			damaged++
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
	}
	_, found := checkAll(t, l)
	if len(found) == 0 {
		t.Fatalf("%d bytes were flipped and nothing was found", damaged)
	}
	for _, p := range found {
		if p.Kind == ProblemView {
			t.Errorf("damage is called a stale view: %v", p)
		}
	}
}

func walk(t *testing.T, fsys vfs.FS, dir string, f func(string)) {
	t.Helper()
	names, err := fsys.List(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range names {
		p := path.Join(dir, n)
		info, err := fsys.Stat(p)
		if err != nil {
			t.Fatal(err)
		}
		if info.IsDir() {
			walk(t, fsys, p, f)
		} else {
			f(p)
		}
	}
}

// TestCheckNamesFilesThatNeverCame imports a ledger whose file CARs JavaScript did not bring along.
func TestCheckNamesFilesThatNeverCame(t *testing.T) {
	f := fixture{dir: "c_files", store: "store/files-ledger", name: "files-ledger"}
	keys := f.keys(t)
	m := f.copyDir(t)
	for name := range m {
		if strings.HasPrefix(name, jsData+"/baem") && !strings.HasSuffix(name, jsSuffix) {
			delete(m, name)
		}
	}
	l := newTestHome(t).ledger(t, "test", keys)
	imported, err := Import(t.Context(), l, ImportSource{Dir: m, Opener: keys}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if len(imported.Stale) != 3 {
		t.Errorf("stale CARs: %v", imported.Stale)
	}
	res, found := checkAll(t, l)
	if kinds(found)[ProblemFile] != res.Files || res.Files != 4 || len(found) != 4 || found[0].Damage() {
		t.Errorf("%+v %v", res, found)
	}
}

func TestCheckCanceled(t *testing.T) {
	l := newTestHome(t).ledger(t, "test", newTestKeys(t))
	putN(t, l, 0, 5)
	for stop := 1; stop < 8; stop++ {
		ctx, cancel := context.WithCancel(t.Context())
		n := 0
		_, err := l.Check(ctx, func(p Problem) { t.Errorf("found %v", p) }, func(Progress) {
			if n++; n == stop {
				cancel()
			}
		})
		if !errors.Is(err, context.Canceled) {
			t.Errorf("stopped at step %d: %v", stop, err)
		}
		cancel()
	}
}

// TestCheckBesideWrites checks while the ledger is written. What it finds must not depend on the race.
func TestCheckBesideWrites(t *testing.T) {
	l := newTestHome(t).ledger(t, "test", newTestKeys(t))
	putN(t, l, 0, 20)
	stop := make(chan struct{})
	done := make(chan error, 1)
	go func() {
		for i := 0; ; i++ {
			select {
			case <-stop:
				done <- nil
				return
			default:
			}
			d, err := FromMap(map[string]any{"_id": fmt.Sprintf("w%d", i%50), "i": int64(i)})
			if err == nil {
				_, err = l.Put(context.Background(), d)
			}
			if err != nil {
				done <- err
				return
			}
		}
	}()
	for range 5 {
		if _, found := checkAll(t, l); len(found) > 0 {
			t.Errorf("found %v", found)
		}
	}
	close(stop)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}
