package ledger

import (
	"encoding/hex"
	"encoding/json"
	"os"
	"path"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/google/go-cmp/cmp"
	"github.com/ipfs/go-cid"

	"fpnode/blockstore"
	"fpnode/keyring"
)

// testHome is a store in memory with the secrets it needs.
type testHome struct {
	fs    vfs.FS
	ring  *keyring.Ring
	store *blockstore.Store
}

func newTestHome(t testing.TB) *testHome {
	t.Helper()
	h := &testHome{fs: vfs.NewMem()}
	var err error
	if h.ring, err = keyring.Open(h.fs, "/home/keys"); err != nil {
		t.Fatal(err)
	}
	h.open(t)
	t.Cleanup(func() {
		if err := h.store.Close(); err != nil {
			t.Errorf("closing the store: %v", err)
		}
	})
	return h
}

func (h *testHome) open(t testing.TB) {
	t.Helper()
	var err error
	h.store, err = blockstore.Open(blockstore.Config{FS: h.fs, Dir: "/home", Vault: h.ring.Vault()})
	if err != nil {
		t.Fatal(err)
	}
}

// ledger opens a ledger under keys, of which the first is pinned.
func (h *testHome) ledger(t testing.TB, name string, keys *keyring.Keys) *Ledger {
	t.Helper()
	id := keyring.IDOf(keys.Pinned().Fingerprint())
	s, err := h.store.Ledger(id, keys)
	if err != nil {
		t.Fatal(err)
	}
	l, err := Open(t.Context(), Config{Name: name, ID: id, Store: s, Now: func() time.Time { return time.Unix(1_800_000_000, 0).UTC() }})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Errorf("closing the ledger: %v", err)
		}
	})
	return l
}

func newTestKeys(t testing.TB) *keyring.Keys {
	t.Helper()
	k, err := keyring.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	keys, err := keyring.NewKeys(k)
	if err != nil {
		t.Fatal(err)
	}
	return keys
}

// fixture is one ledger directory of testdata/fireproof.
type fixture struct {
	dir   string // from testdata/fireproof
	store string // from dir
	name  string // under which the key bag has its keys; "" if the CARs are not encrypted
}

func (f fixture) keys(t testing.TB) *keyring.Keys {
	t.Helper()
	if f.name == "" {
		return newTestKeys(t)
	}
	keys, err := keyring.ReadBag(vfs.Default, path.Join(fixtures, f.dir, "keybag"), f.name)
	if err != nil {
		t.Fatal(err)
	}
	return keys
}

func (f fixture) source(keys *keyring.Keys) ImportSource {
	return ImportSource{Dir: os.DirFS(path.Join(fixtures, f.dir, f.store)), Opener: keys, Insecure: f.name == ""}
}

// load imports the fixture into a ledger of its own.
func (f fixture) load(t testing.TB) (*Ledger, ImportResult) {
	t.Helper()
	keys := f.keys(t)
	l := newTestHome(t).ledger(t, "test", keys)
	res, err := Import(t.Context(), l, f.source(keys), nil)
	if err != nil {
		t.Fatal(err)
	}
	return l, res
}

// expected is what JavaScript returned for a fixture.
type expected struct {
	Head    []string   `json:"head"`
	CarLog  [][]string `json:"carLog"`
	AllDocs *struct {
		Rows []expectedRow `json:"rows"`
	} `json:"allDocs"`
	AllDocsIncludeDeleted *struct {
		Rows []expectedRow `json:"rows"`
	} `json:"allDocsIncludeDeleted"`
	Changes *struct {
		Rows []expectedRow `json:"rows"`
	} `json:"changes"`
}

type expectedRow struct {
	Key   string         `json:"key"`
	Value map[string]any `json:"value"`
	Clock map[string]any `json:"clock"`
}

func (f fixture) expected(t testing.TB) expected {
	t.Helper()
	var e expected
	readJSON(t, path.Join(fixtures, f.dir, "expected.json"), &e)
	return e
}

func readJSON(t testing.TB, file string, v any) {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(b, v); err != nil {
		t.Fatalf("%s: %v", file, err)
	}
}

// plainDoc is a document in the JSON form of the expected files: bytes as bytesHex, and without the address that
// JavaScript adds to public files when it reads them.
func plainDoc(t testing.TB, d Doc) map[string]any {
	t.Helper()
	if d.Deleted {
		return map[string]any{"_id": d.ID, "_deleted": true}
	}
	m, err := d.Map()
	if err != nil {
		t.Fatal(err)
	}
	m["_id"] = d.ID
	b, err := json.Marshal(plainValue(m))
	if err != nil {
		t.Fatal(err)
	}
	var out map[string]any
	if err := json.Unmarshal(b, &out); err != nil {
		t.Fatal(err)
	}
	return out
}

func plainValue(v any) any {
	switch v := v.(type) {
	case map[string]any:
		out := map[string]any{}
		for k, x := range v {
			out[k] = plainValue(x)
		}
		return out
	case []any:
		out := make([]any, len(v))
		for i, x := range v {
			out[i] = plainValue(x)
		}
		return out
	case []byte:
		return map[string]any{"bytesHex": hex.EncodeToString(v)}
	case cid.Cid:
		return map[string]any{"/": v.String()}
	}
	return v
}

func withoutURLs(rows []expectedRow) []expectedRow {
	for _, r := range rows {
		files, _ := r.Value["_publicFiles"].(map[string]any)
		for _, f := range files {
			delete(f.(map[string]any), "url")
		}
	}
	return rows
}

func listDocs(t testing.TB, l *Ledger, deleted bool) (rows []expectedRow) {
	t.Helper()
	for d, err := range l.AllDocs(t.Context(), ListOptions{IncludeDeleted: deleted}) {
		if err != nil {
			t.Fatal(err)
		}
		rows = append(rows, expectedRow{Key: d.ID, Value: plainDoc(t, d)})
	}
	return rows
}

// expect compares a ledger with what JavaScript returned.
func (e expected) check(t testing.TB, l *Ledger, res ImportResult) {
	t.Helper()
	if d := cmp.Diff(e.Head, textsOf(l.Head())); d != "" {
		t.Errorf("head: %s", d)
	}
	if d := cmp.Diff(e.Head, textsOf(res.Head)); d != "" {
		t.Errorf("head in the result: %s", d)
	}
	if d := cmp.Diff(e.CarLog, texts(res.CarLog)); d != "" {
		t.Errorf("car log: %s", d)
	}
	if e.AllDocs != nil {
		deleted := false
		for _, r := range e.AllDocs.Rows {
			gone, _ := r.Value["_deleted"].(bool)
			deleted = deleted || gone
		}
		if d := cmp.Diff(withoutURLs(e.AllDocs.Rows), listDocs(t, l, deleted)); d != "" {
			t.Errorf("documents: %s", d)
		}
	}
	if e.AllDocsIncludeDeleted != nil {
		if d := cmp.Diff(withoutURLs(e.AllDocsIncludeDeleted.Rows), listDocs(t, l, true)); d != "" {
			t.Errorf("documents with deleted ones: %s", d)
		}
	}
	if e.Changes != nil {
		var rows []expectedRow
		for c, err := range l.Changes(t.Context(), nil, 0) {
			if err != nil {
				t.Fatal(err)
			}
			rows = append(rows, expectedRow{Key: c.Doc.ID, Value: plainDoc(t, c.Doc), Clock: map[string]any{"/": c.Clock.String()}})
		}
		if d := cmp.Diff(withoutURLs(e.Changes.Rows), rows); d != "" {
			t.Errorf("changes: %s", d)
		}
	}
}

var fixtureLedgers = []fixture{
	{dir: "a_basic", store: "store/basic-ledger", name: "basic-ledger"},
	{dir: "b_concurrent/base", store: "store/shared", name: "shared"},
	{dir: "b_concurrent/A", store: "store/shared", name: "shared"},
	{dir: "b_concurrent/B", store: "store/shared", name: "shared"},
	{dir: "b_concurrent/merged", store: "store/shared", name: "shared"},
	{dir: "b_concurrent/merged_put", store: "store/shared", name: "shared"},
	{dir: "c_files", store: "store/files-ledger", name: "files-ledger"},
	{dir: "d_compact_fireproof", store: "store/compact-ledger", name: "compact-ledger"},
	{dir: "d_compact_full", store: "store/compact-ledger", name: "compact-ledger"},
	{dir: "e_index", store: "store/index-ledger", name: "index-ledger"},
	{dir: "f_multipart", store: "store/multi-ledger", name: "multi-ledger"},
	{dir: "g_insecure", store: "store/plain-ledger"},
	{dir: "h_rotate", store: "store/rot-ledger", name: "rot-ledger"},
	{dir: "i_wal", store: "store/wal-ledger", name: "wal-ledger"},
	{dir: "k_types", store: "store/types-ledger", name: "types-ledger"},
	{dir: "m_remote", store: "store/up", name: "up"},
	{dir: "v019", store: "store", name: "old-ledger"},
}

func TestImportEqualsJavaScript(t *testing.T) {
	for _, f := range fixtureLedgers {
		t.Run(f.dir, func(t *testing.T) {
			l, res := f.load(t)
			f.expected(t).check(t, l, res)
			var problems []string
			cr, err := l.Check(t.Context(), func(p Problem) { problems = append(problems, p.String()) }, nil)
			if err != nil {
				t.Fatal(err)
			}
			if len(problems) > 0 || cr.Events == 0 || cr.Docs == 0 {
				t.Errorf("check: %+v\n%s", cr, strings.Join(problems, "\n"))
			}
			t.Logf("%d cars, %d repeated, %d stale; %d events, %d unchecked; %q", res.Cars, res.Repeated, len(res.Stale), cr.Events, cr.Unchecked, res.Warnings)
		})
	}
}

// TestImportedLedgerAnswersQueriesAsJavaScript runs the queries of e_index in the two states in which JavaScript ran
// them: on the commits before the last three, and, once those are imported too, on all. So the indexes have to follow.
func TestImportedLedgerAnswersQueriesAsJavaScript(t *testing.T) {
	f := fixture{dir: "e_index", store: "store/index-ledger", name: "index-ledger"}
	var want struct {
		CarLog  [][]string
		Queries []struct {
			Label, Field string
			Opts         struct {
				Key         *any
				Keys        []any
				Range       *[2]any
				Prefix      any
				Descending  bool
				Limit       int
				IncludeDocs *bool
			}
			Result struct{ Rows []map[string]any }
		}
	}
	readJSON(t, path.Join(fixtures, f.dir, "expected.json"), &want)
	field := func(d Doc, name string) any {
		v, _ := d.Field(name)
		return v
	}
	maps := map[string]func(Doc, func(key, value any)){
		"when": func(d Doc, emit func(key, value any)) {
			if v := field(d, "when"); v != nil {
				emit(v, map[string]any{"p": field(d, "price")})
			}
		},
		"price": func(d Doc, emit func(key, value any)) {
			if v := field(d, "price"); v != nil {
				emit(v, nil)
			}
		},
		"other": func(d Doc, emit func(key, value any)) {
			if field(d, "other") != nil {
				emit("other", int64(0))
			}
		},
	}
	keys := f.keys(t)
	l := newTestHome(t).ledger(t, "test", keys)
	early := f.copyDir(t)
	early[jsMeta] = &fstest.MapFile{Data: metaJSON(t, []cid.Cid{mustParse(t, want.CarLog[3][0])})}
	for i, q := range want.Queries {
		last := i == len(want.Queries)-1
		switch {
		case i == 0:
			if _, err := Import(t.Context(), l, ImportSource{Dir: early, Opener: keys}, nil); err != nil {
				t.Fatal(err)
			}
		case last:
			if _, err := Import(t.Context(), l, f.source(keys), nil); err != nil {
				t.Fatal(err)
			}
		}
		o := q.Opts
		ours := Query{
			Field: q.Field, Key: o.Key, Keys: o.Keys, Range: o.Range, Prefix: o.Prefix,
			Descending: o.Descending, Limit: o.Limit, IncludeDocs: o.IncludeDocs == nil || *o.IncludeDocs,
		}
		if strings.Contains(q.Field, "=>") {
			for _, name := range []string{"when", "other", "price"} { // "when" mentions doc.price too
				if strings.Contains(q.Field, "doc."+name) {
					ours.Field, ours.Name, ours.Map = "", name, maps[name]
					break
				}
			}
		}
		switch q.Label {
		case "key 0", "name prefix":
			continue // JavaScript ignores these options, see docs/differences.md
		}
		rows := []map[string]any{}
		for r, err := range l.Query(t.Context(), ours) {
			if err != nil {
				t.Fatalf("%s: %v", q.Label, err)
			}
			row := map[string]any{"key": r.Key, "id": r.ID, "value": r.Value}
			if r.Doc != nil {
				row["doc"] = plainDoc(t, *r.Doc)
			}
			rows = append(rows, row)
		}
		b, err := json.Marshal(plainValue(map[string]any{"rows": anyList(rows)}))
		if err != nil {
			t.Fatal(err)
		}
		var got struct{ Rows []map[string]any }
		if err := json.Unmarshal(b, &got); err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(q.Result.Rows, got.Rows); d != "" {
			t.Errorf("%s: %s", q.Label, d)
		}
	}
}

func anyList(rows []map[string]any) []any {
	out := make([]any, len(rows))
	for i, r := range rows {
		out[i] = r
	}
	return out
}
