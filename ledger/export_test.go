package ledger

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"path"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"
	"github.com/google/go-cmp/cmp"
	"github.com/ipfs/go-cid"
	"pgregory.net/rapid"

	"fpnode/blockstore"
	"fpnode/internal/car"
	"fpnode/internal/dagcbor"
	"fpnode/keyring"
)

const exportDir = "/export/todo"

// putN writes n small documents in n commits.
func putN(t testing.TB, l *Ledger, from, n int) {
	t.Helper()
	for i := from; i < from+n; i++ {
		d, err := FromMap(map[string]any{"_id": fmt.Sprintf("doc-%05d", i%(n/2+1)), "n": int64(i), "text": "hello"})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := l.Put(t.Context(), d); err != nil {
			t.Fatal(err)
		}
	}
}

func export(t testing.TB, l *Ledger, fsys vfs.FS) ExportResult {
	t.Helper()
	res, err := l.Export(t.Context(), exportDir, fsys, nil)
	if err != nil {
		t.Fatal(err)
	}
	return res
}

// importExport imports an exported directory into a ledger of its own under the same keys.
func importExport(t testing.TB, fsys vfs.FS, keys *keyring.Keys) (*Ledger, ImportResult) {
	t.Helper()
	l := newTestHome(t).ledger(t, "copy", keys)
	res, err := Import(t.Context(), l, ImportSource{Dir: vfsDir{fsys, exportDir}, Opener: keys}, nil)
	if err != nil {
		t.Fatal(err)
	}
	return l, res
}

// snapshot is the content of every file below a directory.
func snapshot(t testing.TB, fsys vfs.FS, dir string) map[string]string {
	t.Helper()
	m := map[string]string{}
	err := fs.WalkDir(vfsDir{fsys, dir}, ".", func(p string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := readFile(vfsDir{fsys, dir}, p, 1<<30)
		m[p] = string(b)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// same compares everything that a reader can see of two ledgers.
func same(t testing.TB, want, got *Ledger) {
	t.Helper()
	a, b := textsOf(want.Head()), textsOf(got.Head())
	slices.Sort(a)
	slices.Sort(b)
	if d := cmp.Diff(a, b); d != "" {
		t.Errorf("head: %s", d)
	}
	ra, err := want.Root(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	rb, err := got.Root(t.Context())
	if err != nil || ra != rb {
		t.Errorf("root %s, want %s (%v)", rb, ra, err)
	}
	if d := cmp.Diff(listDocs(t, want, true), listDocs(t, got, true)); d != "" {
		t.Errorf("documents: %s", d)
	}
	var problems []string
	if _, err := got.Check(t.Context(), func(p Problem) { problems = append(problems, p.String()) }, nil); err != nil || len(problems) > 0 {
		t.Errorf("check: %v %q", err, problems)
	}
}

func TestExportComesBack(t *testing.T) {
	for _, f := range fixtureLedgers {
		t.Run(f.dir, func(t *testing.T) {
			keys := f.keys(t)
			l := newTestHome(t).ledger(t, "test", keys)
			if _, err := Import(t.Context(), l, f.source(keys), nil); err != nil {
				t.Fatal(err)
			}
			disk := vfs.NewMem()
			res := export(t, l, disk)
			back, read := importExport(t, disk, keys)
			same(t, l, back)
			want := textsOf(l.Head())
			slices.Sort(want)
			got := textsOf(read.Head)
			slices.Sort(got)
			if d := cmp.Diff(want, got); d != "" {
				t.Errorf("head of the directory: %s", d)
			}
			if res.Packs != 1 || res.Docs != read.Docs || len(read.CarLog) != res.Packs+1 {
				t.Errorf("exported %+v, car log of %d groups", res, len(read.CarLog))
			}
			checkExport(t, l, disk)
			// Files keep the names by which documents call them.
			for d, err := range l.AllDocs(t.Context(), ListOptions{}) {
				if err != nil {
					t.Fatal(err)
				}
				for _, c := range fileCARs(d.block) {
					if _, err := disk.Stat(path.Join(exportDir, jsData, c.String())); err != nil {
						t.Errorf("file of %s: %v", d.ID, err)
					}
				}
			}
		})
	}
}

// checkExport checks the rules of packs and border against the ledger's store: every block, each once, in order, no
// header and no file content, no CAR of a node's commits, all within the limits. It reads only what the meta leads to.
func checkExport(t testing.TB, l *Ledger, fsys vfs.FS) {
	t.Helper()
	dir := vfsDir{fsys, exportDir}
	entries, err := readEntries(dir)
	if err != nil || len(entries) != 1 || len(entries[0].group) != 1 || len(entries[0].parents) != 0 {
		t.Fatalf("meta: %+v, %v", entries, err)
	}
	open := func(c cid.Cid) blockstore.CAR {
		b, err := readFile(dir, path.Join(jsData, c.String()+jsSuffix), 1<<30)
		if err != nil {
			t.Fatal(err)
		}
		got, err := l.store.Accept(blockstore.Ref{Name: blockstore.Name{Cid: c}}, b)
		if err != nil {
			t.Fatal(err)
		}
		return got
	}
	border := open(entries[0].group[0])
	h, ok := border.Header()
	if !ok || !h.HasHead || !sameSet(h.Head, l.Head()) || !slices.IsSortedFunc(h.Head, compareBytes) {
		t.Errorf("border shows %v, the ledger has %v", h.Head, l.Head())
	}
	if len(l.Head()) == 1 && len(border.Blocks()) != 1 {
		t.Errorf("the border holds %d blocks", len(border.Blocks()))
	}
	if len(h.Cars) > MaxPacks {
		t.Errorf("%d packs", len(h.Cars))
	}
	in := map[cid.Cid]bool{}
	var last cid.Cid
	for _, g := range h.Cars {
		if len(g) != 1 || last.Defined() && compareBytes(last, g[0]) >= 0 {
			t.Fatalf("packs are not listed one by one in the order of their names")
		}
		last = g[0]
		c := open(g[0])
		blocks, ok := packBlocks(c)
		if !ok {
			t.Fatalf("%s does not have the form of a pack", g[0])
		}
		if ph, _ := c.Header(); len(ph.Cars)+len(ph.Compact) > 0 || ph.HasHead {
			t.Errorf("header of a pack: %+v", ph)
		}
		for _, b := range blocks {
			if in[b] {
				t.Errorf("block %s is in two packs", b)
			}
			in[b] = true
		}
	}
	for _, g := range h.Compact {
		for _, p := range h.Cars {
			if groupKey(g) == groupKey(p) {
				t.Errorf("%s is listed and compacted", g[0])
			}
		}
	}
	want := 0
	for c, err := range l.store.Blocks(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		b, err := l.store.Block(t.Context(), c)
		if err != nil {
			t.Fatal(err)
		}
		if isHeader(b) || isFileBlock(c) {
			continue
		}
		want++
		if !in[c] {
			t.Errorf("no pack holds block %s", c)
		}
	}
	if want != len(in) {
		t.Errorf("the packs hold %d blocks, the ledger %d", len(in), want)
	}
}

func TestExportIsByteExact(t *testing.T) {
	keys := newTestKeys(t)
	l := newTestHome(t).ledger(t, "test", keys)
	putN(t, l, 0, 3)
	disk := vfs.NewMem()
	export(t, l, disk)
	files := snapshot(t, disk, exportDir)
	for _, sub := range []string{"data", "meta", "wal"} {
		if files[sub+"/version"] != "v0.19-file" {
			t.Errorf("%s/version is %q", sub, files[sub+"/version"])
		}
	}
	if files["wal/main.json"] != `{"fileOperations":[],"noLoaderOps":[],"operations":[]}` {
		t.Errorf("wal is %q", files["wal/main.json"])
	}
	entries, err := readEntries(vfsDir{disk, exportDir})
	if err != nil {
		t.Fatal(err)
	}
	want, err := encodeMetaFile(car.EncodeMeta(entries[0].group, nil), nil)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(string(want), files["meta/main.json"]); d != "" {
		t.Error(d)
	}
}

func TestExportOfAnEmptyLedger(t *testing.T) {
	keys := newTestKeys(t)
	l := newTestHome(t).ledger(t, "test", keys)
	disk := vfs.NewMem()
	res := export(t, l, disk)
	if res.Written != 0 || res.Packs != 0 {
		t.Errorf("%+v", res)
	}
	files := snapshot(t, disk, exportDir)
	if _, ok := files[jsMeta]; ok || len(files) != 3 {
		t.Errorf("files %v", files)
	}
	if _, err := l.MakeBorder(t.Context(), Target{}, nil); !errors.Is(err, ErrEmpty) {
		t.Errorf("border of an empty ledger: %v", err)
	}
	putN(t, l, 0, 1)
	export(t, l, disk)
	back, _ := importExport(t, disk, keys)
	same(t, l, back)
}

// TestExportAgain exports, writes one document, and exports again: the directory's large packs stay, and only small
// ones are written. An export without a change writes nothing.
func TestExportAgain(t *testing.T) {
	for _, n := range []int{101, 400} {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			keys := newTestKeys(t)
			l := newTestHome(t).ledger(t, "test", keys)
			putN(t, l, 0, n)
			disk := vfs.NewMem()
			first := export(t, l, disk)
			before := snapshot(t, disk, exportDir)

			if res := export(t, l, disk); res.Written != 0 || res.Bytes != 0 || res.Read != nil {
				t.Errorf("nothing had changed: %+v", res)
			}
			if d := cmp.Diff(before, snapshot(t, disk, exportDir)); d != "" {
				t.Error("an export without a change changed files")
			}

			var most int64
			for i := range 10 { // enough for packs to be joined
				putN(t, l, n+i, 1)
				res := export(t, l, disk)
				if res.Written != 2 || res.Read != nil {
					t.Errorf("after one more commit: %+v", res)
				}
				most = max(most, res.Bytes)
			}
			if most > 64<<10 {
				t.Errorf("one more commit wrote %d bytes, the first export %d", most, first.Bytes)
			}
			after := snapshot(t, disk, exportDir)
			for name, b := range before {
				if strings.HasSuffix(name, jsSuffix) && len(b) > 64<<10 && after[name] != b {
					t.Errorf("large pack %s was rewritten", name)
				}
			}
			checkExport(t, l, disk)
			back, _ := importExport(t, disk, keys)
			same(t, l, back)
		})
	}
}

// TestExportReadsWhatJavaScriptWrote plays a JavaScript that opened the directory and wrote: its commit lists the
// border and the packs, and the meta names nothing else.
func TestExportReadsWhatJavaScriptWrote(t *testing.T) {
	for _, compacts := range []bool{false, true} {
		t.Run(fmt.Sprintf("compacts=%v", compacts), func(t *testing.T) {
			keys := newTestKeys(t)
			l := newTestHome(t).ledger(t, "test", keys)
			putN(t, l, 0, 50)
			disk := vfs.NewMem()
			export(t, l, disk)
			packs := carFiles(t, disk)

			js, _ := importExport(t, disk, keys)
			jsCommit(t, js, keys, disk, compacts)
			putN(t, l, 100, 1) // and the ledger moved on

			res := export(t, l, disk)
			if res.Read == nil || res.Read.Cars == 0 {
				t.Fatalf("what was written there was not read: %+v", res)
			}
			if len(l.Head()) != 2 {
				t.Errorf("head %v", l.Head())
			}
			if _, err := l.Get(t.Context(), "from-js"); err != nil {
				t.Error(err)
			}
			if res.Kept == 0 {
				t.Errorf("no pack was kept: %+v", res)
			}
			for name := range packs {
				if _, err := disk.Stat(path.Join(exportDir, jsData, name)); err != nil {
					t.Errorf("a retired CAR is gone at once: %v", err)
				}
			}
			checkExport(t, l, disk)
			back, _ := importExport(t, disk, keys)
			same(t, l, back)

			// JS forgets its own commit and the old border when it reads the new one.
			entries, err := readEntries(vfsDir{disk, exportDir})
			if err != nil {
				t.Fatal(err)
			}
			h := headerOf(t, l, disk, entries[0].group[0])
			forgotten := map[string]bool{}
			for _, g := range h.Compact {
				forgotten[g[0].String()] = true
			}
			if tip := res.Read.CarLog[0][0].String(); !forgotten[tip] {
				t.Errorf("the border does not compact JavaScript's commit %s: %v", tip, texts(h.Compact))
			}
		})
	}
}

func headerOf(t testing.TB, l *Ledger, fsys vfs.FS, c cid.Cid) car.Header {
	t.Helper()
	b, err := readFile(vfsDir{fsys, exportDir}, path.Join(jsData, c.String()+jsSuffix), 1<<30)
	if err != nil {
		t.Fatal(err)
	}
	got, err := l.store.Accept(blockstore.Ref{Name: blockstore.Name{Cid: c}}, b)
	if err != nil {
		t.Fatal(err)
	}
	h, _ := got.Header()
	return h
}

func carFiles(t testing.TB, fsys vfs.FS) map[string]bool {
	t.Helper()
	names, err := fsys.List(path.Join(exportDir, jsData))
	if err != nil {
		t.Fatal(err)
	}
	m := map[string]bool{}
	for _, n := range names {
		m[n] = strings.HasSuffix(n, jsSuffix)
	}
	return m
}

// jsCommit writes one document into the directory as JavaScript would: one CAR whose header repeats the car log, then
// the meta. A compaction copies all blocks into the CAR and lists the log as compacted.
func jsCommit(t testing.TB, js *Ledger, keys *keyring.Keys, fsys vfs.FS, compacts bool) {
	t.Helper()
	entries, err := readEntries(vfsDir{fsys, exportDir})
	if err != nil {
		t.Fatal(err)
	}
	old := map[cid.Cid]bool{}
	for c, err := range js.store.Blocks(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		old[c] = true
	}
	d, err := FromMap(map[string]any{"_id": "from-js"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := js.Put(t.Context(), d); err != nil {
		t.Fatal(err)
	}
	var blocks []car.Block
	for c, err := range js.store.Blocks(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		b, err := js.store.Block(t.Context(), c)
		if err != nil {
			t.Fatal(err)
		}
		if !isHeader(b) && (compacts || !old[c]) {
			blocks = append(blocks, car.Block{CID: c, Data: b})
		}
	}
	log := append([][]cid.Cid{entries[0].group}, headerOf(t, js, fsys, entries[0].group[0]).Cars...)
	h := car.Header{Cars: log, Head: js.Head(), HasHead: true}
	if compacts {
		h.Cars, h.Compact = nil, log
	}
	root := headerBlock(h)
	plain := car.Append(nil, []cid.Cid{root.CID}, append([]car.Block{root}, blocks...))
	sealed, err := keys.Seal(plain)
	if err != nil {
		t.Fatal(err)
	}
	x := exporter{fs: fsys, dir: exportDir}
	name := car.NameOf(plain)
	if err := x.write(path.Join(jsData, name.String()+jsSuffix), sealed); err != nil {
		t.Fatal(err)
	}
	if err := x.write(jsMeta, metaJSON(t, []cid.Cid{name})); err != nil {
		t.Fatal(err)
	}
}

// TestExportRepairsTheDirectory damages packs of an export. What is listed and does not verify is packed anew.
func TestExportRepairsTheDirectory(t *testing.T) {
	for _, damage := range []string{"missing", "cut off", "flipped", "another CAR"} {
		t.Run(damage, func(t *testing.T) {
			keys := newTestKeys(t)
			l := newTestHome(t).ledger(t, "test", keys)
			disk := vfs.NewMem()
			putN(t, l, 0, 30)
			export(t, l, disk)
			putN(t, l, 30, 1)
			export(t, l, disk)
			entries, err := readEntries(vfsDir{disk, exportDir})
			if err != nil {
				t.Fatal(err)
			}
			packs := headerOf(t, l, disk, entries[0].group[0]).Cars
			if len(packs) != 2 {
				t.Fatalf("%d packs", len(packs))
			}
			file := path.Join(jsData, packs[0][0].String()+jsSuffix)
			b, err := readFile(vfsDir{disk, exportDir}, file, 1<<30)
			if err != nil {
				t.Fatal(err)
			}
			x := exporter{fs: disk, dir: exportDir}
			switch damage {
			case "missing":
				err = disk.Remove(path.Join(exportDir, file))
			case "cut off":
				err = x.write(file, b[:len(b)/2])
			case "flipped":
				b[len(b)/2] ^= 1
				err = x.write(file, b)
			case "another CAR":
				other, e := readFile(vfsDir{disk, exportDir}, path.Join(jsData, packs[1][0].String()+jsSuffix), 1<<30)
				err = errors.Join(e, x.write(file, other))
			}
			if err != nil {
				t.Fatal(err)
			}
			res := export(t, l, disk)
			if res.Written == 0 || damage != "missing" && len(res.Warnings) == 0 {
				t.Errorf("%+v", res)
			}
			checkExport(t, l, disk)
			back, _ := importExport(t, disk, keys)
			same(t, l, back)
		})
	}
}

// TestExportRefusesForeignDirectories leaves every file of a directory that is not an export of this ledger as it was.
func TestExportRefusesForeignDirectories(t *testing.T) {
	for _, tc := range []struct {
		name string
		make func(t *testing.T, l *Ledger, keys *keyring.Keys, fsys vfs.FS)
	}{
		{"another key", func(t *testing.T, _ *Ledger, _ *keyring.Keys, fsys vfs.FS) {
			other := newTestHome(t).ledger(t, "other", newTestKeys(t))
			putN(t, other, 0, 3)
			export(t, other, fsys)
		}},
		{"another key, and the meta is lost", func(t *testing.T, _ *Ledger, _ *keyring.Keys, fsys vfs.FS) {
			other := newTestHome(t).ledger(t, "other", newTestKeys(t))
			putN(t, other, 0, 3)
			export(t, other, fsys)
			if err := fsys.Remove(path.Join(exportDir, jsMeta)); err != nil {
				t.Fatal(err)
			}
		}},
		{"another genesis", func(t *testing.T, _ *Ledger, keys *keyring.Keys, fsys vfs.FS) {
			f := fixture{dir: "w_written", store: "store/no-genesis", name: "no-genesis"}
			other := newTestHome(t).ledger(t, "other", keys)
			if _, err := Import(t.Context(), other, f.source(f.keys(t)), nil); err != nil {
				t.Fatal(err)
			}
			export(t, other, fsys)
		}},
		{"a meta that cannot be read", func(t *testing.T, l *Ledger, _ *keyring.Keys, fsys vfs.FS) {
			export(t, l, fsys)
			if err := (&exporter{fs: fsys, dir: exportDir}).write(jsMeta, []byte("[{")); err != nil {
				t.Fatal(err)
			}
		}},
		{"newest CAR missing", func(t *testing.T, l *Ledger, _ *keyring.Keys, fsys vfs.FS) {
			export(t, l, fsys)
			if err := (&exporter{fs: fsys, dir: exportDir}).write(jsMeta, metaJSON(t, []cid.Cid{testCID("gone")})); err != nil {
				t.Fatal(err)
			}
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			keys := newTestKeys(t)
			l := newTestHome(t).ledger(t, "test", keys)
			putN(t, l, 0, 3)
			disk := vfs.NewMem()
			tc.make(t, l, keys, disk)
			before := snapshot(t, disk, exportDir)
			docs := listDocs(t, l, true)
			_, err := l.Export(t.Context(), exportDir, disk, nil)
			if err == nil {
				t.Fatal("the directory was taken")
			}
			var hint interface{ Hint() string }
			if !errors.As(err, &hint) || hint.Hint() == "" {
				t.Errorf("%v has no hint", err)
			}
			if d := cmp.Diff(before, snapshot(t, disk, exportDir)); d != "" {
				t.Errorf("the directory changed: %s", d)
			}
			if d := cmp.Diff(docs, listDocs(t, l, true)); d != "" {
				t.Errorf("the ledger changed: %s", d)
			}
		})
	}
}

// TestExportDeletesWhatRetiredLongAgo lets days pass between exports.
func TestExportDeletesWhatRetiredLongAgo(t *testing.T) {
	l := newTestHome(t).ledger(t, "test", newTestKeys(t))
	now := time.Unix(1_800_000_000, 0)
	l.cfg.Now = func() time.Time { return now }
	disk := vfs.NewMem()
	putN(t, l, 0, 1)
	export(t, l, disk)
	old := carFiles(t, disk)
	for i := range 10 { // enough for packs to be joined
		now = now.Add(24 * time.Hour)
		putN(t, l, i+1, 1)
		if res := export(t, l, disk); res.Deleted != 0 {
			t.Fatalf("deleted after %d days: %+v", i+1, res)
		}
	}
	for name := range old {
		if _, err := disk.Stat(path.Join(exportDir, jsData, name)); err != nil {
			t.Fatalf("gone after 10 days: %v", err)
		}
	}
	now = now.Add(RetireAfter)
	putN(t, l, 11, 1)
	res := export(t, l, disk)
	if res.Deleted == 0 {
		t.Fatalf("%+v", res)
	}
	listed := map[string]bool{"version": true}
	x := exporter{}
	x.readNotes(vfsDir{disk, exportDir})
	for _, name := range append(x.notes.Packs, x.notes.Border) {
		listed[name+jsSuffix] = true
	}
	for name := range x.notes.Retired {
		listed[name+jsSuffix] = true
	}
	for name := range carFiles(t, disk) {
		if !listed[name] {
			t.Errorf("%s is neither listed nor retired nor deleted", name)
		}
	}
	checkExport(t, l, disk)
}

// TestExportNotesCannotDeleteOthers feeds the next export notes that name files it must not touch.
func TestExportNotesCannotDeleteOthers(t *testing.T) {
	l := newTestHome(t).ledger(t, "test", newTestKeys(t))
	disk := vfs.NewMem()
	putN(t, l, 0, 1)
	export(t, l, disk)
	x := exporter{fs: disk, dir: exportDir}
	if err := x.write("precious.car", []byte("mine")); err != nil {
		t.Fatal(err)
	}
	x.readNotes(vfsDir{disk, exportDir})
	notes := fmt.Sprintf(`{"version":1,"retired":{"../precious":"2001-01-01T00:00:00Z",%q:"2001-01-01T00:00:00Z",%q:"2001-01-01T00:00:00Z"}}`,
		x.notes.Border, x.notes.Packs[0])
	if err := x.write(exportNotesFile, []byte(notes)); err != nil {
		t.Fatal(err)
	}
	before := snapshot(t, disk, exportDir)
	if res := export(t, l, disk); res.Deleted != 0 {
		t.Errorf("%+v", res)
	}
	after := snapshot(t, disk, exportDir)
	for name, b := range before {
		if name != exportNotesFile && after[name] != b {
			t.Errorf("%s changed", name)
		}
	}
}

// TestExportSurvivesCrashes takes crash clones of the directory's disk at every step of a re-export: whatever part of
// what was not synced reached the disk, the directory shows the old state or the new one, and the next export ends.
func TestExportSurvivesCrashes(t *testing.T) {
	keys := newTestKeys(t)
	l := newTestHome(t).ledger(t, "test", keys)
	base := vfs.NewCrashableMem()
	putN(t, l, 0, 20)
	old := len(listDocs(t, l, true))
	export(t, l, base)
	putN(t, l, 50, 1)
	d, err := FromMap(map[string]any{"_id": "new"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := l.Put(t.Context(), d); err != nil {
		t.Fatal(err)
	}
	start := base.CrashClone(vfs.CrashCloneCfg{})

	var clones []*vfs.MemFS
	rng := rand.New(rand.NewPCG(1, 2))
	disk := start.CrashClone(vfs.CrashCloneCfg{})
	steps := 0
	hook := errorfs.InjectorFunc(func(op errorfs.Op) error {
		if op.Kind.ReadOrWrite() == errorfs.OpIsWrite {
			steps++
			for _, percent := range []int{0, 50} {
				clones = append(clones, disk.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: percent, RNG: rng}))
			}
		}
		return nil
	})
	if _, err := l.Export(t.Context(), exportDir, errorfs.Wrap(disk, hook), nil); err != nil {
		t.Fatal(err)
	}
	if steps < 15 {
		t.Fatalf("only %d steps", steps)
	}
	clones = append(clones, disk.CrashClone(vfs.CrashCloneCfg{}))
	seen := map[int]int{}
	for i, clone := range clones {
		back, res := importExport(t, clone, keys)
		seen[res.Docs]++
		if i == len(clones)-1 && res.Docs == old {
			t.Error("what Export returned for is lost")
		}
		if res.Docs != old && res.Docs != len(listDocs(t, l, true)) {
			t.Errorf("clone %d shows %d documents", i, res.Docs)
		}
		back.Close()
		export(t, l, clone)
		checkExport(t, l, clone)
	}
	if len(seen) != 2 {
		t.Errorf("clones show %v: both the old and the new state should occur", seen)
	}
}

// TestExportSurvivesIOErrors fails each I/O of an export in turn, with several kinds of error. What is there afterwards
// is nothing or whole, and the next export ends.
func TestExportSurvivesIOErrors(t *testing.T) {
	keys := newTestKeys(t)
	l := newTestHome(t).ledger(t, "test", keys)
	putN(t, l, 0, 5)
	for _, kind := range []error{syscall.EIO, syscall.ENOSPC, syscall.EACCES} {
		for index := 0; ; index++ {
			disk := vfs.NewMem()
			n := 0
			inject := errorfs.InjectorFunc(func(op errorfs.Op) error {
				if n++; n == index+1 {
					return fmt.Errorf("injected: %w", kind)
				}
				return nil
			})
			_, err := l.Export(t.Context(), exportDir, errorfs.Wrap(disk, inject), nil)
			if err != nil && !errors.Is(err, kind) {
				t.Fatalf("operation %d failed with %v, export with %v", index, kind, err)
			}
			if _, e := readEntries(vfsDir{disk, exportDir}); e == nil {
				back, _ := importExport(t, disk, keys)
				same(t, l, back)
			} else if !errors.Is(e, fs.ErrNotExist) || err == nil {
				t.Fatalf("operation %d left %v", index, e)
			}
			export(t, l, disk)
			checkExport(t, l, disk)
			if n <= index {
				if index < 40 {
					t.Fatalf("the export has only %d operations", index)
				}
				break
			}
		}
	}
}

func TestExportCanceled(t *testing.T) {
	keys := newTestKeys(t)
	l := newTestHome(t).ledger(t, "test", keys)
	putN(t, l, 0, 5)
	disk := vfs.NewMem()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := l.Export(ctx, exportDir, disk, nil); !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	export(t, l, disk)
	back, _ := importExport(t, disk, keys)
	same(t, l, back)
}

// stageBlocks stores document-like blocks of these sizes and returns them by CID bytes.
func stageBlocks(t testing.TB, l *Ledger, sizes ...int) []car.Block {
	t.Helper()
	var blocks []car.Block
	for i, n := range sizes {
		data := append([]byte("\xa1\x63doc"), bytes.Repeat([]byte{byte(i)}, n)...)
		b := car.Block{CID: dagcbor.Sum(data), Data: data}
		c, err := l.store.Pack([]cid.Cid{b.CID}, []car.Block{b})
		if err != nil {
			t.Fatal(err)
		}
		if err := l.Stage(t.Context(), []blockstore.CAR{c}); err != nil {
			t.Fatal(err)
		}
		blocks = append(blocks, b)
	}
	slices.SortFunc(blocks, func(a, b car.Block) int { return compareBytes(a.CID, b.CID) })
	return blocks
}

func TestPacksAreCutAtTheLimit(t *testing.T) {
	l := newTestHome(t).ledger(t, "test", newTestKeys(t))
	rapid.Check(t, func(r *rapid.T) {
		const limit = 32 << 10
		blocks := stageBlocks(t, l, rapid.SliceOfN(rapid.IntRange(1, 40<<10), 1, 20).Draw(r, "sizes")...)
		cids := make([]cid.Cid, len(blocks))
		for i, b := range blocks {
			cids[i] = b.CID
		}
		m := packer{store: l.store, packBytes: limit}
		packs, err := m.cut(t.Context(), slices.Compact(cids))
		if err != nil {
			r.Fatal(err)
		}
		size := func(blocks ...cid.Cid) int {
			list := []car.Block{packRoot}
			for _, c := range blocks {
				b, err := l.store.Block(t.Context(), c)
				if err != nil {
					r.Fatal(err)
				}
				list = append(list, car.Block{CID: c, Data: b})
			}
			return car.Size([]cid.Cid{packRoot.CID}, list)
		}
		var all []cid.Cid
		for i, p := range packs {
			all = append(all, p.Blocks...)
			if len(p.Blocks) > 1 && size(p.Blocks...) > limit {
				r.Fatalf("pack %d is over the limit", i)
			}
			if i > 0 && size(append(slices.Clone(packs[i-1].Blocks), p.Blocks[0])...) <= limit {
				r.Fatalf("pack %d begins too early", i)
			}
		}
		if !slices.Equal(all, slices.Compact(cids)) {
			r.Fatal("the packs are not the blocks in their order")
		}
	})
}

// TestBorderEmitsEachPackOnce has a pack of the full class, which is emitted as soon as it is made, and small ones.
func TestBorderEmitsEachPackOnce(t *testing.T) {
	l := newTestHome(t).ledger(t, "test", newTestKeys(t))
	putN(t, l, 0, 3)
	stageBlocks(t, l, 17<<20, 100)
	var emitted []Pack
	b, err := l.MakeBorder(t.Context(), Target{}, func(c blockstore.CAR) error {
		blocks, ok := packBlocks(c)
		if !ok {
			t.Error("not a pack")
		}
		emitted = append(emitted, Pack{Ref: c.Ref, Blocks: blocks})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	slices.SortFunc(emitted, func(a, b Pack) int { return compareBytes(a.Ref.Name.Cid, b.Ref.Name.Cid) })
	if d := cmp.Diff(names(b.Next.Packs), names(emitted)); d != "" || len(emitted) == 0 {
		t.Errorf("emitted packs are not those of the border: %s", d)
	}
	again, err := l.MakeBorder(t.Context(), b.Next, func(blockstore.CAR) error {
		t.Error("a pack was made again")
		return nil
	})
	if err != nil || len(again.Added)+len(again.Retired) != 0 {
		t.Errorf("%v, %d new packs", err, len(again.Added))
	}
}

// TestBorderRefusesTooManyPacks gives a target as many full packs as JavaScript can hold, and one more.
func TestBorderRefusesTooManyPacks(t *testing.T) {
	l := newTestHome(t).ledger(t, "test", newTestKeys(t))
	putN(t, l, 0, 1)
	full := func(n int) (t Target) {
		for i := range n {
			c := testCID(fmt.Sprint("pack ", i))
			t.Packs = append(t.Packs, Pack{Ref: blockstore.Ref{Name: blockstore.Name{Cid: c}, Size: 30 << 20}, Blocks: []cid.Cid{testCID(fmt.Sprint("block ", i))}})
		}
		return t
	}
	emit := func(blockstore.CAR) error { return nil }
	if b, err := l.MakeBorder(t.Context(), full(MaxPacks-1), emit); err != nil || len(b.Next.Packs) != MaxPacks {
		t.Fatalf("at the limit: %v", err)
	}
	_, err := l.MakeBorder(t.Context(), full(MaxPacks), emit)
	var limit *LimitError
	if !errors.As(err, &limit) || limit.Max != MaxPacks {
		t.Fatalf("over the limit: %v", err)
	}
}

// TestBorderDependsOnBlocksAlone makes borders of two nodes that got the same CARs in another order and otherwise.
func TestBorderDependsOnBlocksAlone(t *testing.T) {
	a := fixture{dir: "b_concurrent/A", store: "store/shared", name: "shared"}
	b := fixture{dir: "b_concurrent/B", store: "store/shared", name: "shared"}
	emit := func(blockstore.CAR) error { return nil }
	var borders []Border
	for _, order := range [][]fixture{{a, b}, {b, a}} {
		l := newTestHome(t).ledger(t, "test", a.keys(t))
		for _, f := range order {
			if _, err := Import(t.Context(), l, f.source(f.keys(t)), nil); err != nil {
				t.Fatal(err)
			}
		}
		for range 2 {
			m, err := l.MakeBorder(t.Context(), Target{}, emit)
			if err != nil {
				t.Fatal(err)
			}
			borders = append(borders, m)
		}
	}
	for _, m := range borders[1:] {
		if m.CAR.Ref != borders[0].CAR.Ref || m.Meta.CID != borders[0].Meta.CID {
			t.Errorf("border %s, another %s", m.CAR.Ref.Name, borders[0].CAR.Ref.Name)
		}
		if d := cmp.Diff(names(borders[0].Next.Packs), names(m.Next.Packs)); d != "" {
			t.Error(d)
		}
	}
}
