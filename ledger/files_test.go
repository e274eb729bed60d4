package ledger

import (
	"bytes"
	"context"
	"encoding/base32"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/google/go-cmp/cmp"
	"github.com/ipfs/go-cid"

	"fpnode/blockstore"
	"fpnode/internal/car"
	"fpnode/internal/dagcbor"
)

func (h *home) putFile(id, name, contentType, content string) Receipt {
	h.tb.Helper()
	r, err := h.PutFile(context.Background(), id, name, contentType, int64(len(content)), strings.NewReader(content))
	if err != nil {
		h.tb.Fatal(err)
	}
	return r
}

func (h *home) readFile(id, name string) (FileInfo, string) {
	h.tb.Helper()
	info, r, err := h.File(context.Background(), id, name)
	if err != nil {
		h.tb.Fatal(err)
	}
	b, err := io.ReadAll(r)
	if err != nil {
		h.tb.Fatal(err)
	}
	if err := r.Close(); err != nil {
		h.tb.Fatal(err)
	}
	return info, string(b)
}

func noise(n int) string {
	b := make([]byte, n)
	rand.NewChaCha8([32]byte{byte(n), byte(n >> 8)}).Read(b)
	return string(b)
}

func TestFiles(t *testing.T) {
	h := newHome(t)
	h.cfg.Now = func() time.Time { return time.UnixMilli(1_700_000_000_123) }
	h.put(`{"_id":"doc","title":"kept"}`)
	big := noise(3<<20 + 17) // four pieces
	h.putFile("doc", "big.bin", "", big)
	h.putFile("doc", "note.txt", "text/plain", "first")
	r := h.putFile("doc", "note.txt", "text/plain", "second")
	h.putFile("doc", "empty", "x/y", "")
	h.putFile("new", "a b/ü", "text/plain", "in a new document")
	if !slices.Equal(r.IDs, []string{"doc"}) || len(r.Clock) != 1 {
		t.Errorf("receipt %+v", r)
	}
	check := func() {
		t.Helper()
		for name, want := range map[string]string{"big.bin": big, "note.txt": "second", "empty": ""} {
			info, got := h.readFile("doc", name)
			if got != want || info.Size != int64(len(want)) || info.CID != dagcbor.SumCodec(cid.Raw, []byte(want)) {
				t.Errorf("%s: %d bytes, %+v", name, len(got), info)
			}
			if !info.Modified.Equal(time.UnixMilli(1_700_000_000_123)) || info.Public || len(info.Cars) != 1 {
				t.Errorf("%s: %+v", name, info)
			}
		}
		if _, got := h.readFile("new", "a b/ü"); got != "in a new document" {
			t.Errorf("new: %q", got)
		}
		files, err := h.Files(context.Background(), "doc")
		if err != nil {
			t.Fatal(err)
		}
		var names []string
		for _, f := range files {
			names = append(names, f.Name+" "+f.Type)
		}
		wantEqual(t, "files", names, []string{"big.bin application/octet-stream", "empty x/y", "note.txt text/plain"})
		d, err := h.Get(context.Background(), "doc")
		if err != nil {
			t.Fatal(err)
		}
		if title, _ := d.Field("title"); title != "kept" {
			t.Errorf("title is %v", title)
		}
	}
	check()
	h.reopen()
	check()

	// The older version stays in the history, and its content with it.
	var contents []string
	for v, err := range h.History(context.Background(), "doc") {
		if err != nil {
			t.Fatal(err)
		}
		f, _ := v.Doc.Field("_files")
		files, _ := f.(map[string]any)
		if info, ok := parseFile("note.txt", files["note.txt"], false); ok {
			b, err := h.cars.Block(context.Background(), info.CID)
			if err != nil {
				t.Fatal(err)
			}
			contents = append(contents, string(b))
		}
	}
	wantEqual(t, "contents in the history", contents, []string{"second", "second", "first"})
}

// TestFileCAR looks at the bytes: the entry in canonical order, and the CAR as Fireproof has it.
func TestFileCAR(t *testing.T) {
	h := newHome(t)
	h.cfg.Now = func() time.Time { return time.UnixMilli(5) }
	h.putFile("doc", "b", "text/plain", "content of b")
	h.putFile("doc", "a", "text/plain", "content of a")
	files, err := h.Files(context.Background(), "doc")
	if err != nil {
		t.Fatal(err)
	}
	a, b := files[0], files[1]
	wantEqual(t, "document", h.get("doc"), fmt.Sprintf(`{"_id":"doc","_files":{"a":%s,"b":%s}}`, entryJSON(a), entryJSON(b)))
	ref, ok, err := h.cars.Ref(blockstore.Name{Cid: a.Cars[0]})
	if err != nil || !ok {
		t.Fatal(ok, err)
	}
	sealed, err := h.cars.Sealed(context.Background(), ref)
	if err != nil {
		t.Fatal(err)
	}
	entry, err := h.ring.Lookup(testLedger)
	if err != nil {
		t.Fatal(err)
	}
	plain, err := entry.Keys.Open(sealed)
	if err != nil {
		t.Fatal(err)
	}
	roots, sections, err := car.Read(plain)
	if err != nil {
		t.Fatal(err)
	}
	wantEqual(t, "roots", textsOf(roots), textsOf([]cid.Cid{b.CID, a.CID}))
	if len(sections) != 1 || sections[0].CID != a.CID || string(sections[0].Data) != "content of a" {
		t.Errorf("blocks %+v", sections)
	}
}

func entryJSON(f FileInfo) string {
	return fmt.Sprintf(`{"car":[{"/":%q}],"cid":{"/":%q},"size":%d,"type":%q,"lastModified":%d}`, f.Cars[0], f.CID, f.Size, f.Type, f.Modified.UnixMilli())
}

// TestFileIsOneCommit counts syncs, and compares what is there after each with what the document says.
func TestFileIsOneCommit(t *testing.T) {
	h := newHome(t)
	h.put(`{"_id":"doc"}`)
	before := h.store.Syncs()
	h.putFile("doc", "f", "text/plain", noise(100_000))
	if got := h.store.Syncs() - before; got != 1 {
		t.Errorf("%d syncs for one file", got)
	}
	before = h.store.Syncs()
	if _, err := h.PutFile(context.Background(), "doc", "g", "", 10, strings.NewReader("short")); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("a short file: %v", err)
	}
	if _, err := h.PutFile(context.Background(), "doc", "g", "", 3, strings.NewReader("long")); err == nil {
		t.Error("a long file was taken")
	}
	if _, err := h.PutFile(context.Background(), "doc", "g", "", 3, io.MultiReader(strings.NewReader("abc"), errReader{})); !errors.Is(err, errBroken) {
		t.Errorf("a broken reader: %v", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := h.PutFile(ctx, "doc", "g", "", 3, strings.NewReader("abc")); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	files, err := h.Files(context.Background(), "doc")
	if err != nil || len(files) != 1 || h.store.Syncs() != before {
		t.Errorf("%d files, %d syncs, %v", len(files), h.store.Syncs()-before, err)
	}
}

var errBroken = errors.New("broken")

type errReader struct{}

func (errReader) Read([]byte) (int, error) { return 0, errBroken }

// TestFilesAtOnce attaches files to one document from many goroutines while others write it.
func TestFilesAtOnce(t *testing.T) {
	h := newHome(t)
	const n = 12
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			content := fmt.Sprint("content ", i)
			if _, err := h.PutFile(context.Background(), "doc", fmt.Sprintf("f%02d", i), "text/plain", int64(len(content)), strings.NewReader(content)); err != nil {
				t.Error(err)
			}
		})
		wg.Go(func() {
			if _, err := h.Put(context.Background(), draft(t, fmt.Sprintf(`{"_id":"other%d"}`, i))); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	files, err := h.Files(context.Background(), "doc")
	if err != nil || len(files) != n {
		t.Fatalf("%d files, %v", len(files), err)
	}
	for i, f := range files {
		if _, got := h.readFile("doc", f.Name); got != fmt.Sprint("content ", i) {
			t.Errorf("%s: %q", f.Name, got)
		}
	}
	if docs := h.list(ListOptions{}); len(docs) != n+1 {
		t.Errorf("%d documents", len(docs))
	}
}

// TestFilesTravel merges a document with a file, first without the CAR of the file.
func TestFilesTravel(t *testing.T) {
	a, b := newHome(t), newHome(t)
	a.putFile("doc", "f", "text/plain", "over there")
	info, _ := a.readFile("doc", "f")
	var without, with []blockstore.CAR
	for _, c := range b.carsOf(a) {
		with = append(with, c)
		if c.Ref.Name.Cid != info.Cars[0] {
			without = append(without, c)
		}
	}
	if len(with) != len(without)+1 {
		t.Fatalf("%d CARs, %d without the file", len(with), len(without))
	}
	if res, err := b.Merge(context.Background(), a.Tips(), without); err != nil || len(res.Waiting) > 0 {
		t.Fatalf("%+v %v", res, err)
	}
	if _, _, err := b.File(context.Background(), "doc", "f"); !errors.Is(err, ErrNoContent) {
		t.Errorf("before the content: %v", err)
	}
	if _, err := b.Merge(context.Background(), nil, with); err != nil {
		t.Fatal(err)
	}
	if _, got := b.readFile("doc", "f"); got != "over there" {
		t.Errorf("%q", got)
	}

	// A replica that lacks the content can be given the file again: the document is as it was, so only the CAR is new.
	c := newHome(t)
	if _, err := c.Merge(context.Background(), a.Tips(), without); err != nil {
		t.Fatal(err)
	}
	head := textsOf(c.Head())
	c.cfg.Now = func() time.Time { return info.Modified }
	c.putFile("doc", "f", "text/plain", "over there")
	wantEqual(t, "head", textsOf(c.Head()), head)
	if _, got := c.readFile("doc", "f"); got != "over there" {
		t.Errorf("%q", got)
	}
}

func TestFilesOfJavaScript(t *testing.T) {
	b, err := dagcbor.FromJSON([]byte(`{
		"_files": {
			"ok": {"car": [{"/":"baembeidkpcsaxcvkrcri7ny2yfdf54rijtg2fmummrdepfazfxw5qagogi"}], "cid": {"/":"bafkreiawgz5kznt2jiaxzdnivokwqlglheegg6apoekn3ifa4dcvmrghyq"}, "size": 6, "type": "text/plain", "lastModified": 5},
			"bare": {"cid": {"/":"bafkreiawgz5kznt2jiaxzdnivokwqlglheegg6apoekn3ifa4dcvmrghyq"}, "size": 6},
			"no cid": {"size": 6, "type": "text/plain"},
			"text": "x"
		},
		"_publicFiles": {"ok": {"car": {"/":"baembeicwfibbhz64bistrqvacdts6n547i3rsrrf42q62da5oex4aqvi5y"}, "cid": {"/":"bafkreidid6dszgew4qucgpk4f3tc2ii3vvr6kmuswkkjh7bnwghoowe6gq"}, "size": 7, "type": "text/plain", "lastModified": 7}}
	}`))
	if err != nil {
		t.Fatal(err)
	}
	d, err := parseFields(b)
	if err != nil {
		t.Fatal(err)
	}
	h := newHome(t)
	if _, err := h.Put(context.Background(), d.WithID("js")); err != nil {
		t.Fatal(err)
	}
	files, err := h.Files(context.Background(), "js")
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, f := range files {
		got = append(got, fmt.Sprint(f.Name, " ", f.Type, " ", f.Size, " ", len(f.Cars), " ", f.Public))
	}
	want := []string{"bare  6 0 false", "ok text/plain 6 1 false", "ok text/plain 7 1 true"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("files (-want +got):\n%s", diff)
	}
	// Adding a file leaves even the entries alone that are none.
	h.putFile("js", "mine", "text/plain", "x")
	after, err := h.Get(context.Background(), "js")
	if err != nil {
		t.Fatal(err)
	}
	v, _ := after.Field("_files")
	if m := v.(map[string]any); len(m) != 5 || m["text"] != "x" {
		t.Errorf("_files is now %v", m)
	}
}

func TestFileRefused(t *testing.T) {
	h := newHome(t)
	h.put(`{"_id":"odd","_files":"a text"}`, `{"_id":"doc"}`)
	for name, test := range map[string]struct {
		id, file, contentType string
		size                  int64
		want                  any
	}{
		"no name":      {"doc", "", "", 1, new(*DocError)},
		"bad name":     {"doc", "\xff", "", 1, new(*DocError)},
		"long name":    {"doc", strings.Repeat("x", MaxFileNameBytes+1), "", 1, new(*LimitError)},
		"long type":    {"doc", "f", strings.Repeat("x", MaxFileNameBytes+1), 1, new(*LimitError)},
		"no size":      {"doc", "f", "", -1, new(*DocError)},
		"too large":    {"doc", "f", "", MaxFileBytes + 1, new(*LimitError)},
		"bad id":       {"ü", "f", "", 1, new(*IDError)},
		"no id":        {"", "f", "", 1, new(*IDError)},
		"_files other": {"odd", "f", "", 1, new(*DocError)},
	} {
		_, err := h.PutFile(context.Background(), test.id, test.file, test.contentType, test.size, strings.NewReader("x"))
		if err == nil || !errors.As(err, test.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, _, err := h.File(context.Background(), "nobody", "f"); !errors.Is(err, ErrNotFound) {
		t.Errorf("no document: %v", err)
	}
	if _, _, err := h.File(context.Background(), "doc", "f"); !errors.Is(err, ErrNoFile) {
		t.Errorf("no file: %v", err)
	}
	if _, err := h.Files(context.Background(), "nobody"); !errors.Is(err, ErrNotFound) {
		t.Errorf("no document: %v", err)
	}
}

func TestTooManyFiles(t *testing.T) {
	h := newHome(t)
	files := map[string]any{}
	for i := range MaxFiles {
		files[fmt.Sprintf("f%04d", i)] = map[string]any{}
	}
	putAll(t, h.Ledger, map[string]any{"_id": "full", "_files": files})
	var le *LimitError
	if _, err := h.PutFile(context.Background(), "full", "one more", "", 1, strings.NewReader("x")); !errors.As(err, &le) {
		t.Errorf("one more: %v", err)
	}
	h.putFile("full", "f0000", "", "in the place of another")
}

// TestFileMemory measures the peak that PutFile and File state, on a file that is large beside everything else.
func TestFileMemory(t *testing.T) {
	const size = 32 << 20
	h := openHomeAt(t, vfs.Default, filepath.Join(t.TempDir(), "home")) // a file system in memory would count
	defer debug.SetGCPercent(debug.SetGCPercent(5))
	put := peak(func() {
		if _, err := h.PutFile(context.Background(), "doc", "f", "", size, &zeros{left: size}); err != nil {
			t.Fatal(err)
		}
	})
	if limit := uint64(size + filePeak); put > limit {
		t.Errorf("PutFile of %d MiB takes %d MiB, the limit is %d", size>>20, put>>20, limit>>20)
	}
	get := peak(func() {
		_, r, err := h.File(context.Background(), "doc", "f")
		if err != nil {
			t.Fatal(err)
		}
		if n, err := io.Copy(io.Discard, r); err != nil || n != size {
			t.Fatal(n, err)
		}
	})
	if get > filePeak {
		t.Errorf("reading %d MiB takes %d MiB, the limit is %d", size>>20, get>>20, filePeak>>20)
	}
	t.Logf("put %d MiB: peak %d MiB; read: peak %d MiB", size>>20, put>>20, get>>20)
}

type zeros struct{ left int }

func (z *zeros) Read(b []byte) (int, error) {
	if z.left == 0 {
		return 0, io.EOF
	}
	n := min(len(b), z.left)
	clear(b[:n])
	z.left -= n
	return n, nil
}

// peak is how much the heap grows at most while f runs.
func peak(f func()) uint64 {
	runtime.GC()
	heap := func() uint64 {
		sample := []metrics.Sample{{Name: "/memory/classes/heap/objects:bytes"}}
		metrics.Read(sample)
		return sample[0].Value.Uint64()
	}
	base := heap()
	done, top := make(chan struct{}), make(chan uint64)
	go func() {
		var most uint64
		for {
			most = max(most, heap())
			select {
			case <-done:
				top <- most
				return
			default:
				runtime.Gosched()
			}
		}
	}()
	f()
	close(done)
	return max(<-top, base) - base
}

// TestDamagedFile flips one byte of a stored file: nothing of it is read.
func TestDamagedFile(t *testing.T) {
	h := newHome(t)
	content := noise(2<<20 + 5)
	h.putFile("doc", "f", "", content)
	_, r, err := h.File(context.Background(), "doc", "f")
	if err != nil {
		t.Fatal(err)
	}
	first := make([]byte, 100)
	if _, err := io.ReadFull(r, first); err != nil || string(first) != content[:100] {
		t.Fatalf("%v", err)
	}
	h.flip(600 << 10) // in the second MiB
	rest, err := io.ReadAll(r)
	var ce *blockstore.CorruptError
	if !errors.As(err, &ce) || !bytes.HasPrefix([]byte(content[100:]), rest) {
		t.Errorf("read on after damage: %d bytes, %v", len(rest), err)
	}
	if _, _, err := h.File(context.Background(), "doc", "f"); !errors.As(err, &ce) {
		t.Errorf("opened after damage: %v", err)
	}
}

// flip changes the byte so far before the end of the log.
func (h *home) flip(beforeEnd int64) {
	h.tb.Helper()
	text := base32.NewEncoding("abcdefghijklmnopqrstuvwxyz234567").WithPadding(base32.NoPadding)
	id := h.ID()
	f, err := h.fs.OpenReadWrite(h.fs.PathJoin(h.dir, "ledgers", text.EncodeToString(id[:]), "000001.seg"), vfs.WriteCategoryUnspecified)
	if err != nil {
		h.tb.Fatal(err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		h.tb.Fatal(err)
	}
	b := make([]byte, 1)
	if _, err := f.ReadAt(b, info.Size()-beforeEnd); err != nil {
		h.tb.Fatal(err)
	}
	b[0] ^= 1
	if _, err := f.WriteAt(b, info.Size()-beforeEnd); err != nil {
		h.tb.Fatal(err)
	}
}
