//go:build interop

package interop

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/google/go-cmp/cmp"

	"fpnode/keyring"
	"fpnode/ledger"
)

const name = "written"

// jsHome is a directory that the library can use: ledgers in store/, keys in keybag/.
type jsHome struct{ dir string }

func (h jsHome) args(db string) args {
	return args{"db": db, "name": name, "base": filepath.Join(h.dir, "store"), "keybag": filepath.Join(h.dir, "keybag")}
}

func (h jsHome) ledger() string { return filepath.Join(h.dir, "store", name) }

// export writes the replica where the library finds it.
func (r *replica) export(h jsHome) ledger.ExportResult {
	r.t.Helper()
	res, err := r.l.Export(context.Background(), h.ledger(), vfs.Default, nil)
	if err != nil {
		r.t.Fatal(err)
	}
	e, err := r.ring.Lookup(name)
	if err != nil {
		r.t.Fatal(err)
	}
	if err := keyring.WriteBag(vfs.Default, filepath.Join(h.dir, "keybag"), name, e.Keys); err != nil {
		r.t.Fatal(err)
	}
	return res
}

// importFrom takes what the library wrote there.
func (r *replica) importFrom(h jsHome) {
	r.t.Helper()
	keys, err := keyring.ReadBag(vfs.Default, filepath.Join(h.dir, "keybag"), name)
	if err != nil {
		r.t.Fatal(err)
	}
	if _, err := ledger.Import(context.Background(), r.l, ledger.ImportSource{Dir: os.DirFS(h.ledger()), Opener: keys}, nil); err != nil {
		r.t.Fatal(err)
	}
}

// equal compares head, root and documents.
func (r *replica) equal(want jsState) {
	r.t.Helper()
	slices.Sort(want.Head)
	if diff := cmp.Diff(want.Head, sortedCIDs(r.l.Head())); diff != "" {
		r.t.Fatalf("head (-js +go):\n%s", diff)
	}
	if want.Root != r.root() {
		r.t.Fatalf("root: js %s, go %s", want.Root, r.root())
	}
	if diff := cmp.Diff(want.docs(r.t), r.docs()); diff != "" {
		r.t.Fatalf("documents (-js +go):\n%s", diff)
	}
}

// values have every kind of value that a document can hold.
var values = []string{
	`{"_id":"types","int":1,"neg":-5,"frac":0.5,"big":1099511627776,"beyond":9007199254740992,"huge":1e300,"t":true,"f":false,"nil":null,"s":"héllo 🎉","list":[1,[2,{"a":[]}],{}],"nested":{"a":{"b":{"c":1}}},"bytes":{"/":{"bytes":"AQIDBA"}}}`,
	`{"_id":"numbers","zero":0,"one":1.0,"tiny":5e-324,"max":1.7976931348623157e308,"e21":1e21,"third":0.3333333333333333}`,
	`{"_id":"soft","_deleted":true,"note":"deleted by a field"}`,
	`{"_id":" !\"#$%&'()*+,-./0:;<=>?@A[\\]^_` + "`" + `a{|}~","odd":"id"}`,
	`{"_id":"unicode","ключ":"значение","日本":"語"}`,
}

func doc(id string, n int) string {
	return fmt.Sprintf(`{"_id":%q,"n":%d,"group":"g%d","flag":%t}`, id, n, n%7, n%2 == 0)
}

// TestJSOpensGo writes ledgers with Go, lets the library open, query, change and reopen them, and takes the result back.
func TestJSOpensGo(t *testing.T) {
	content := bytes.Repeat([]byte("file content \x00\x01\xff"), 5000)
	cases := []struct {
		name  string
		write func(t *testing.T, r *replica)
		check func(t *testing.T, js *jsProcess, db string)
	}{
		{"inserts", func(t *testing.T, r *replica) {
			for i := range 20 {
				r.put(doc(fmt.Sprintf("doc-%d", i), i))
			}
		}, nil},
		{"updates and deletes", func(t *testing.T, r *replica) {
			for i := range 20 {
				r.put(doc(fmt.Sprintf("doc-%d", i%6), i))
			}
			r.del("doc-1", "doc-2")
			r.del("never-written")
			r.put(doc("doc-2", 77))
		}, nil},
		{"every value", func(t *testing.T, r *replica) { r.put(values...) }, nil},
		{"bulk", func(t *testing.T, r *replica) {
			var docs []string
			for i := range 300 {
				docs = append(docs, doc(fmt.Sprintf("b%03d", i), i))
			}
			r.put(docs...)
			r.put(docs[:40]...)
		}, nil},
		{"5,000 documents in one bulk", func(t *testing.T, r *replica) {
			var docs []string
			for i := range 5000 {
				docs = append(docs, doc(fmt.Sprintf("b%04d", i), i))
			}
			r.put(docs...)
		}, nil},
		{"automatic ids", func(t *testing.T, r *replica) {
			for i := range 30 {
				r.put(fmt.Sprintf(`{"n":%d,"group":"g%d"}`, i, i%3))
			}
		}, nil},
		{"two heads", func(t *testing.T, r *replica) {
			r.put(doc("base", 0))
			e, err := r.ring.Lookup(name)
			if err != nil {
				t.Fatal(err)
			}
			o := newReplica(t, name, e.Keys.Default())
			o.mergeFrom(r)
			for i := range 5 {
				r.put(doc("both", i))
				o.put(doc("both", 100+i))
				o.put(doc(fmt.Sprintf("o%d", i), i))
			}
			o.del("base")
			r.put(doc("base", 5))
			r.mergeFrom(o)
			if n := len(r.l.Head()); n != 2 {
				t.Fatalf("%d heads, want 2", n)
			}
		}, nil},
		{"files", func(t *testing.T, r *replica) {
			ctx := context.Background()
			r.put(doc("with-file", 1))
			for _, f := range []string{"a.bin", "b.txt"} {
				if _, err := r.l.PutFile(ctx, "with-file", f, "text/plain", int64(len(content)), bytes.NewReader(content)); err != nil {
					t.Fatal(err)
				}
			}
		}, func(t *testing.T, js *jsProcess, db string) {
			for _, f := range []string{"a.bin", "b.txt"} {
				var got struct{ Type, Text string }
				js.do("readFile", args{"db": db, "key": "with-file", "name": f}, &got)
				if got.Type != "text/plain" || got.Text != base64.StdEncoding.EncodeToString(content) {
					t.Fatalf("%s: type %q, %d characters", f, got.Type, len(got.Text))
				}
			}
		}},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			h := jsHome{t.TempDir()}
			r := newReplica(t, name)
			c.write(t, r)
			r.export(h)

			js := startJS(t)
			js.do("open", h.args("a"), nil)
			r.equal(js.state("a"))
			sameQueries(t, js, "a", r)
			if c.check != nil {
				c.check(t, js, "a")
			}
			js.do("put", args{"db": "a", "doc": json.RawMessage(`{"_id":"from-js","v":[1,2,{"x":null}]}`)}, nil)
			js.do("file", args{"db": "a", "key": "from-js", "name": "j.txt", "type": "text/x", "text": base64.StdEncoding.EncodeToString(content)}, nil)
			js.do("close", args{"db": "a"}, nil)

			// A new process reads what the last one wrote, and Go takes it back.
			js = startJS(t)
			js.do("open", h.args("a"), nil)
			reopened := js.state("a")
			if c.check != nil {
				c.check(t, js, "a")
			}
			js.do("close", args{"db": "a"}, nil)
			r.importFrom(h)
			r.equal(reopened)
			f, body, err := r.l.File(context.Background(), "from-js", "j.txt")
			if err != nil {
				t.Fatal(err)
			}
			defer body.Close()
			got, err := io.ReadAll(body)
			if err != nil || !bytes.Equal(got, content) {
				t.Fatalf("file %+v written by js: %d bytes, %v", f, len(got), err)
			}
		})
	}
}

// sameQueries compares rows of a few queries on fields that the cases use.
func sameQueries(t *testing.T, js *jsProcess, db string, r *replica) {
	t.Helper()
	one, g3 := any(int64(1)), any("g3")
	for _, q := range []struct {
		go_ ledger.Query
		js  args
	}{
		{ledger.Query{Field: "n"}, args{}},
		{ledger.Query{Field: "n", Descending: true, Limit: 7}, args{"descending": true, "limit": 7}},
		{ledger.Query{Field: "n", Range: &[2]any{int64(3), int64(12)}}, args{"range": []int{3, 12}}},
		{ledger.Query{Field: "n", Key: &one}, args{"key": 1}},
		{ledger.Query{Field: "group", Key: &g3}, args{"key": "g3"}},
		{ledger.Query{Field: "group", Keys: []any{"g5", "g1"}}, args{"keys": []string{"g5", "g1"}}},
		{ledger.Query{Field: "flag"}, args{}},
		{ledger.Query{Field: "absent"}, args{}},
	} {
		var want struct{ Rows []json.RawMessage }
		if err := js.try("query", args{"db": db, "field": q.go_.Field, "opts": q.js}, &want); err != nil {
			// The library cannot make an index that has no rows at all; there, Go has to find none.
			if !strings.Contains(err.Error(), "`undefined` is not supported by the IPLD") {
				t.Fatal(err)
			}
			want.Rows = nil
		}
		var got, exp []string
		for _, row := range want.Rows {
			exp = append(exp, canonical(t, row))
		}
		for row, err := range r.l.Query(context.Background(), q.go_) {
			if err != nil {
				t.Fatal(err)
			}
			b, err := row.MarshalJSON()
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, canonical(t, b))
		}
		if diff := cmp.Diff(exp, got); diff != "" {
			t.Fatalf("query %s %v (-js +go):\n%s", q.go_.Field, q.js, diff)
		}
	}
}

// TestJSOpensLadders exports what the library could not compute: two heads over rounds in which both sides merged and
// wrote. The export joins them, and the library reads and writes on.
func TestJSOpensLadders(t *testing.T) {
	key, err := keyring.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	r, o := newReplica(t, name, key), newReplica(t, name, key)
	r.put(doc("base", 0))
	o.mergeFrom(r)
	for i := range 40 {
		r.put(doc("both", i))
		o.put(doc("both", 100+i))
		r.mergeFrom(o)
		o.mergeFrom(r)
	}
	before := r.docs()
	h := jsHome{t.TempDir()}
	r.export(h)
	if diff := cmp.Diff(before, r.docs()); diff != "" {
		t.Fatalf("joining the heads changed documents:\n%s", diff)
	}
	js := startJS(t)
	js.do("open", h.args("a"), nil)
	r.equal(js.state("a"))
	js.do("put", args{"db": "a", "doc": json.RawMessage(doc("both", 7))}, nil)
	want := js.state("a")
	js.do("close", args{"db": "a"}, nil)
	r.importFrom(h)
	r.equal(want)
	o.mergeFrom(r)
	o.equal(want)
}

// TestJSOpensLongHistories exports ledgers of many commits, which the library itself could not keep without
// compacting, writes to them with the library, and exports again after one more commit: only small packs are new.
func TestJSOpensLongHistories(t *testing.T) {
	for _, commits := range []int{101, 1000, 10000} {
		t.Run(fmt.Sprint(commits), func(t *testing.T) {
			h := jsHome{t.TempDir()}
			r := newReplica(t, name)
			rng := rand.New(rand.NewPCG(uint64(commits), 1))
			for i := range commits {
				r.put(doc(fmt.Sprintf("d%d", rng.IntN(commits/2)), i))
			}
			first := r.export(h)
			js := startJS(t)
			open := h.args("a")
			open["timeout"] = 300000
			js.do("open", open, nil)
			r.equal(js.state("a"))
			js.do("put", args{"db": "a", "doc": json.RawMessage(doc("js-1", 1))}, nil)
			js.do("close", args{"db": "a"}, nil)

			js = startJS(t)
			js.do("open", open, nil)
			reopened := js.state("a")
			js.do("close", args{"db": "a"}, nil)

			// The next export merges what the library wrote first, and leaves the large packs alone.
			r.put(doc("go-1", 1))
			second := r.export(h)
			if second.Read == nil {
				t.Fatal("the library's write was not merged by the export")
			}
			if second.Bytes > 300<<10 && second.Bytes > first.Bytes/4 {
				t.Fatalf("first export wrote %d bytes, the one after two commits %d", first.Bytes, second.Bytes)
			}
			js = startJS(t)
			js.do("open", open, nil)
			got := js.state("a")
			r.equal(got)
			if want := len(reopened.Docs) + 1; len(got.Docs) != want {
				t.Fatalf("%d documents after the second export, want %d", len(got.Docs), want)
			}
		})
	}
}
