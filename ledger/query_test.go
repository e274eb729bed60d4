package ledger

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

// queryRows runs a query and returns its rows as JSON.
func queryRows(t testing.TB, l *Ledger, q Query) []string {
	t.Helper()
	out := []string{}
	for r, err := range l.Query(context.Background(), q) {
		if err != nil {
			t.Fatalf("query %+v: %v", q, err)
		}
		b, err := json.Marshal(r)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, string(b))
	}
	return out
}

func queryErr(l *Ledger, q Query) error {
	for _, err := range l.Query(context.Background(), q) {
		if err != nil {
			return err
		}
	}
	return nil
}

// rowKeys is "key id" of the rows.
func rowKeys(t testing.TB, l *Ledger, q Query) []string {
	t.Helper()
	out := []string{}
	for r, err := range l.Query(context.Background(), q) {
		if err != nil {
			t.Fatalf("query %+v: %v", q, err)
		}
		b, err := appendKeyJSON(nil, r.Key)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, string(b)+" "+r.ID)
	}
	return out
}

func putAll(t testing.TB, l *Ledger, docs ...map[string]any) {
	t.Helper()
	drafts := make([]Draft, len(docs))
	for i, d := range docs {
		var err error
		if drafts[i], err = FromMap(d); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := l.Put(context.Background(), drafts...); err != nil {
		t.Fatal(err)
	}
}

func key(v any) *any { return &v }

// TestQueryAnswersAsJavaScript runs the queries whose answers JavaScript Fireproof 0.24.19 wrote into
// testdata/query/index.json on the same documents. Two of them ask for what it ignores.
func TestQueryAnswersAsJavaScript(t *testing.T) {
	l := newHome(t).Ledger
	var docs []map[string]any
	for i := range 200 {
		docs = append(docs, map[string]any{
			"_id": fmt.Sprintf("p%03d", i), "age": i * 37 % 50, "name": fmt.Sprintf("n%d", i%7),
			"price": float64(i)/8 - 5, "flag": i%2 == 0, "when": []any{2024, i % 12, i % 28},
		})
	}
	putAll(t, l, docs...)
	putAll(t, l, map[string]any{"_id": "noage", "other": 1})
	putAll(t, l, map[string]any{"_id": "strage", "age": "zz", "name": "quo\"te!?\x01x"})

	maps := map[string]func(Doc, func(any, any)){
		"(doc, emit) => { if (doc.when) emit(doc.when, { p: doc.price }); }": func(d Doc, emit func(any, any)) {
			if when, ok := d.Field("when"); ok {
				price, _ := d.Field("price")
				emit(when, map[string]any{"p": price})
			}
		},
		"(doc) => doc.price": func(d Doc, emit func(any, any)) {
			if price, ok := d.Field("price"); ok {
				emit(price, nil)
			}
		},
		`(doc, emit) => { if (doc.other) emit("other", 0); }`: func(d Doc, emit func(any, any)) {
			if _, ok := d.Field("other"); ok {
				emit("other", 0)
			}
		},
	}
	type vector struct {
		Label, Field string
		Opts         struct {
			Key         any
			Keys        []any
			Range       *[2]any
			Prefix      any
			Descending  bool
			Limit       int
			IncludeDocs *bool
		}
		Rows []json.RawMessage
	}
	b, err := os.ReadFile("testdata/query/index.json")
	if err != nil {
		t.Fatal(err)
	}
	var vectors []vector
	if err := json.Unmarshal(b, &vectors); err != nil {
		t.Fatal(err)
	}
	differ := map[string]int{
		"key 0":       3, // as many as JavaScript gives, but all of key 0
		"name prefix": 29,
	}
	for _, v := range vectors {
		if v.Label == "age after update all" {
			putAll(t, l, map[string]any{"_id": "p005", "age": 999, "name": "changed"})
			if _, err := l.Delete(context.Background(), "p006"); err != nil {
				t.Fatal(err)
			}
			var more []map[string]any
			for i := range 60 {
				more = append(more, map[string]any{"_id": fmt.Sprintf("q%d", i), "age": float64(i) / 3})
			}
			putAll(t, l, more...)
		}
		q := Query{
			Keys: v.Opts.Keys, Range: v.Opts.Range, Prefix: v.Opts.Prefix, Descending: v.Opts.Descending,
			Limit: v.Opts.Limit, IncludeDocs: v.Opts.IncludeDocs == nil || *v.Opts.IncludeDocs,
		}
		if v.Opts.Key != nil {
			q.Key = &v.Opts.Key
		}
		if fn := maps[v.Field]; fn != nil {
			q.Map, q.Name = fn, v.Field
		} else {
			q.Field = v.Field
		}
		got := queryRows(t, l, q)
		if n, ok := differ[v.Label]; ok {
			if len(got) != n {
				t.Errorf("%s: %d rows, want %d: %v", v.Label, len(got), n, got)
			}
			continue
		}
		want := []string{}
		for _, r := range v.Rows {
			want = append(want, string(r))
		}
		if diff := cmp.Diff(decodeRows(t, want), decodeRows(t, got)); diff != "" {
			t.Errorf("%s (-JavaScript +ours):\n%s", v.Label, diff)
		}
	}
}

func decodeRows(t *testing.T, rows []string) []any {
	t.Helper()
	out := make([]any, len(rows))
	for i, r := range rows {
		if err := json.Unmarshal([]byte(r), &out[i]); err != nil {
			t.Fatal(err)
		}
	}
	return out
}

// TestPrefix holds the documents of JavaScript's own prefix test: everything it finds is found, and what it should find.
func TestPrefix(t *testing.T) {
	l := newHome(t).Ledger
	keys := []any{
		[]any{"n", -5}, []any{"n", 0}, []any{"n", 7}, []any{"n", "str"}, []any{"n", true}, []any{"n", nil}, []any{"n"},
		[]any{"n", 7, "x"}, []any{"n", "str", 1}, []any{"m", 1}, []any{"n", 1e300}, []any{"n", -0.5},
	}
	var docs []map[string]any
	for i, k := range append(keys, "n", "n1", "n12", "m", "nn!\"", []any{"n1", 1}, []any{}, []any{[]any{"n"}, 2}, 7, []any{7, 8}, []any{"n!", 1}, true) {
		docs = append(docs, map[string]any{"_id": fmt.Sprintf("d%02d", i), "k": k})
	}
	putAll(t, l, docs...)

	b, err := os.ReadFile("testdata/query/prefix.json")
	if err != nil {
		t.Fatal(err)
	}
	var js map[string][]any
	if err := json.Unmarshal(b, &js); err != nil {
		t.Fatal(err)
	}
	beginN := []string{`["n"]`, `["n",null]`, `["n",true]`, `["n",-5]`, `["n",-0.5]`, `["n",0]`, `["n",7]`, `["n",7,"x"]`, `["n",1e+300]`, `["n","str"]`, `["n","str",1]`}
	for _, test := range []struct {
		prefix any
		want   []string
	}{
		{"n", append([]string{`"n"`, `"n1"`, `"n12"`, `"nn!\""`}, beginN...)},
		{"n1", []string{`"n1"`, `"n12"`, `["n1",1]`}},
		{"x", []string{}},
		{[]any{"n"}, beginN},
		{[]any{"n", 7}, []string{`["n",7]`, `["n",7,"x"]`}},
		{[]any{"n", "str"}, []string{`["n","str"]`, `["n","str",1]`}},
		{[]any{"n", "s"}, []string{}},
		{[]any{[]any{"n"}}, []string{`[["n"],2]`}},
		{7, []string{`[7,8]`}},
	} {
		for _, descending := range []bool{false, true} {
			var got []string
			q := Query{Field: "k", Prefix: test.prefix, Descending: descending}
			for r, err := range l.Query(context.Background(), q) {
				if err != nil {
					t.Fatal(err)
				}
				b, err := appendKeyJSON(nil, r.Key)
				if err != nil {
					t.Fatal(err)
				}
				got = append(got, string(b))
			}
			if descending {
				slices.Reverse(got)
			}
			if diff := cmp.Diff(test.want, append([]string{}, got...)); diff != "" {
				t.Errorf("prefix %v (-want +got):\n%s", test.prefix, diff)
			}
			label, err := appendKeyJSON(nil, test.prefix)
			if err != nil {
				t.Fatal(err)
			}
			for _, k := range js[string(label)] {
				b, err := json.Marshal(k)
				if err != nil {
					t.Fatal(err)
				}
				if !slices.Contains(got, string(b)) {
					t.Errorf("prefix %s: JavaScript finds %s", label, b)
				}
			}
		}
	}
	if got := len(queryRows(t, l, Query{Field: "k", Prefix: []any{}})); got != len(keys)+5 {
		t.Errorf("%d arrays", got)
	}
}

func TestQueryOptions(t *testing.T) {
	l := newHome(t).Ledger
	putAll(t, l,
		map[string]any{"_id": "a", "k": 1}, map[string]any{"_id": "b", "k": 1}, map[string]any{"_id": "c", "k": 2, "_deleted": true},
		map[string]any{"_id": "d", "k": nil}, map[string]any{"_id": "e", "k": ""}, map[string]any{"_id": "f", "k": false},
		map[string]any{"_id": "g", "k": 0}, map[string]any{"_id": "h", "n.x": 3},
	)
	all := []string{"false f", "0 g", "1 a", "1 b", "2 c", `"" e`}
	for _, test := range []struct {
		name string
		q    Query
		want []string
	}{
		{"all", Query{}, all},
		{"key 0", Query{Key: key(0)}, []string{"0 g"}},
		{"key 0 as a float", Query{Key: key(math.Copysign(0, -1))}, []string{"0 g"}},
		{"key empty", Query{Key: key("")}, []string{`"" e`}},
		{"key false", Query{Key: key(false)}, []string{"false f"}},
		{"key null", Query{Key: key(nil)}, []string{}},
		{"keys in their order", Query{Keys: []any{2, 1}}, []string{"2 c", "1 a", "1 b"}},
		{"keys twice, descending within", Query{Keys: []any{1, 2, 1}, Descending: true}, []string{"1 b", "1 a", "2 c", "1 b", "1 a"}},
		{"keys and limit", Query{Keys: []any{1, 2}, Limit: 2}, []string{"1 a", "1 b"}},
		{"no keys", Query{Keys: []any{}}, []string{}},
		{"range", Query{Range: &[2]any{1, 2}}, []string{"1 a", "1 b", "2 c"}},
		{"range across types", Query{Range: &[2]any{true, "a"}}, []string{"0 g", "1 a", "1 b", "2 c", `"" e`}},
		{"range backwards", Query{Range: &[2]any{2, 1}}, []string{}},
		{"descending", Query{Descending: true, Limit: 3}, []string{`"" e`, "2 c", "1 b"}},
		{"limit", Query{Limit: 2}, all[:2]},
		{"limit none", Query{Limit: -1}, []string{}},
	} {
		test.q.Field = "k"
		if diff := cmp.Diff(test.want, rowKeys(t, l, test.q)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", test.name, diff)
		}
	}
	if got := rowKeys(t, l, Query{Field: "n.x"}); !slices.Equal(got, []string{"3 h"}) {
		t.Errorf("a field with a point in it: %v", got)
	}
	if got := rowKeys(t, l, Query{Field: "_id", Key: key("c")}); !slices.Equal(got, []string{`"c" c`}) {
		t.Errorf("the id as a field: %v", got)
	}
	if got := rowKeys(t, l, Query{Field: "nowhere"}); len(got) != 0 {
		t.Errorf("a field nobody has: %v", got)
	}
}

func TestMapFunction(t *testing.T) {
	l := newHome(t).Ledger
	putAll(t, l, map[string]any{"_id": "a", "tags": []any{"x", "y"}}, map[string]any{"_id": "b", "tags": []any{"y"}})
	byTag := func(d Doc, emit func(any, any)) {
		tags, _ := d.Field("tags")
		items, _ := tags.([]any)
		for i, tag := range items {
			emit(tag, i)
		}
		emit("both", 0)
		emit("both", "")
		emit("both", math.NaN())
		emit("both", []any{})
	}
	got := queryRows(t, l, Query{Map: byTag, Name: "tags"})
	want := []string{
		`{"key":"both","id":"a","value":null}`, `{"key":"both","id":"a","value":null}`, `{"key":"both","id":"a","value":null}`, `{"key":"both","id":"a","value":[]}`,
		`{"key":"both","id":"b","value":null}`, `{"key":"both","id":"b","value":null}`, `{"key":"both","id":"b","value":null}`, `{"key":"both","id":"b","value":[]}`,
		`{"key":"x","id":"a","value":null}`, `{"key":"y","id":"a","value":1}`, `{"key":"y","id":"b","value":null}`,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("rows (-want +got):\n%s", diff)
	}

	// The same name with another revision is another definition.
	byID := func(d Doc, emit func(any, any)) { emit(d.ID, nil) }
	if got := rowKeys(t, l, Query{Map: byID, Name: "tags", Revision: "2"}); !slices.Equal(got, []string{`"a" a`, `"b" b`}) {
		t.Errorf("after a new revision: %v", got)
	}
	if got := rowKeys(t, l, Query{Field: "tags"}); !slices.Equal(got, []string{`["x","y"] a`, `["y"] b`}) {
		t.Errorf("a field of the same name: %v", got)
	}
}

// TestAmbiguousKeys has keys that have one form in charwise, as vectors.json shows. They stay what they are.
func TestAmbiguousKeys(t *testing.T) {
	l := newHome(t).Ledger
	keys := []any{"\x00", "\x00\x00", "\x01", []any{"a??b"}, []any{"a!b"}, []any{"\x00", math.NaN(), math.Inf(-1)}, []any{[]any{"?%"}}}
	each := func(d Doc, emit func(any, any)) {
		n, _ := d.Field("n")
		emit(keys[n.(int64)], nil)
	}
	for i := range keys {
		putAll(t, l, map[string]any{"_id": fmt.Sprint("d", i), "n": i})
	}
	seen := 0
	for r, err := range l.Query(context.Background(), Query{Map: each, Name: "each"}) {
		if err != nil {
			t.Fatal(err)
		}
		seen++
		var n int
		fmt.Sscanf(r.ID, "d%d", &n)
		if !equalKeys(r.Key, keys[n]) {
			t.Errorf("%#v came back as %#v", keys[n], r.Key)
		}
	}
	if seen != len(keys) {
		t.Errorf("%d rows", seen)
	}
	for i, k := range keys {
		if got := rowKeys(t, l, Query{Map: each, Name: "each", Key: &k}); len(got) != 1 || !strings.HasSuffix(got[0], fmt.Sprint(" d", i)) {
			t.Errorf("key %#v: %q", k, got)
		}
	}
	if got := rowKeys(t, l, Query{Map: each, Name: "each", Prefix: "\x00"}); len(got) != 3 {
		t.Errorf("prefix U+0000: %q", got)
	}
	if got := rowKeys(t, l, Query{Map: each, Name: "each", Prefix: []any{"a!b"}}); len(got) != 1 {
		t.Errorf("prefix of an array: %q", got)
	}
}

func TestQueryRefused(t *testing.T) {
	l := newHome(t).Ledger
	putAll(t, l, map[string]any{"_id": "a", "k": 1, "obj": map[string]any{"x": 1}, "bytes": []byte("x")})
	none := func(Doc, func(any, any)) {}
	for name, q := range map[string]Query{
		"nothing":          {},
		"no name":          {Map: none},
		"field and map":    {Map: none, Name: "x", Field: "k"},
		"name alone":       {Name: "x", Field: "k"},
		"key and keys":     {Field: "k", Key: key(1), Keys: []any{1}},
		"range and prefix": {Field: "k", Range: &[2]any{1, 2}, Prefix: "x"},
		"object key":       {Field: "k", Key: key(map[string]any{})},
		"bytes in a range": {Field: "k", Range: &[2]any{[]byte{1}, 2}},
		"object prefix":    {Field: "k", Prefix: map[string]any{}},
	} {
		if err := queryErr(l, q); !errors.Is(err, ErrBadQuery) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, q := range map[string]Query{
		"object field": {Field: "obj"},
		"bytes field":  {Field: "bytes"},
		"map function": {Map: func(_ Doc, emit func(any, any)) { emit(struct{}{}, nil) }, Name: "bad"},
		"bad value":    {Map: func(_ Doc, emit func(any, any)) { emit(1, make(chan int)) }, Name: "bad value"},
		"infinite":     {Map: func(_ Doc, emit func(any, any)) { emit(1, math.Inf(1)) }, Name: "infinite"},
	} {
		var ie *IndexError
		if err := queryErr(l, q); !errors.As(err, &ie) || ie.ID != "a" {
			t.Errorf("%s: %v", name, err)
		}
	}
	// One document that an index cannot hold keeps neither the others nor, once it is changed, that one from answers.
	if got := rowKeys(t, l, Query{Field: "k"}); len(got) != 1 {
		t.Errorf("%v", got)
	}
	putAll(t, l, map[string]any{"_id": "a", "obj": "text now"})
	if got := rowKeys(t, l, Query{Field: "obj"}); len(got) != 1 {
		t.Errorf("%v", got)
	}
}

func TestIndexLimits(t *testing.T) {
	l := newHome(t).Ledger
	putAll(t, l, map[string]any{"_id": "a", "k": 1})
	emitKey := func(n int) func(Doc, func(any, any)) {
		return func(_ Doc, emit func(any, any)) { emit(strings.Repeat("x", n), nil) }
	}
	emitValue := func(n int) func(Doc, func(any, any)) {
		return func(_ Doc, emit func(any, any)) { emit(1, strings.Repeat("x", n)) }
	}
	emitMany := func(n int) func(Doc, func(any, any)) {
		return func(_ Doc, emit func(any, any)) {
			for i := range n {
				emit(i, nil)
			}
		}
	}
	for _, test := range []struct {
		name  string
		fn    func(n int) func(Doc, func(any, any))
		under int
		what  string
	}{
		{"key", emitKey, MaxIndexKeyBytes - 1, "index key in bytes"},
		{"value", emitValue, MaxIndexValueBytes - 5, "index value in bytes"},
		{"rows", emitMany, MaxIndexEmits, "rows of one document"},
	} {
		if err := queryErr(l, Query{Map: test.fn(test.under), Name: test.name, Limit: 1}); err != nil {
			t.Errorf("%s at the limit: %v", test.name, err)
		}
		var le *LimitError
		if err := queryErr(l, Query{Map: test.fn(test.under + 1), Name: test.name + " over", Limit: 1}); !errors.As(err, &le) || le.What != test.what {
			t.Errorf("%s over the limit: %v", test.name, err)
		}
	}
	for what, q := range map[string]Query{
		"name of the index in bytes": {Field: strings.Repeat("x", MaxIndexNameBytes+1)},
		"keys of one query":          {Field: "k", Keys: make([]any, MaxQueryKeys+1)},
	} {
		var le *LimitError
		if err := queryErr(l, q); !errors.As(err, &le) || le.What != what {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// TestOldestIndexGivesWay makes one index more than there may be.
func TestOldestIndexGivesWay(t *testing.T) {
	l := newHome(t).Ledger
	indexes := func() (n int, oldest bool) {
		for kv, err := range l.view.d.Scan([]byte{keyIndex}, []byte{keyIndex + 1}, false) {
			if err != nil {
				t.Fatal(err)
			}
			n++
			oldest = oldest || string(kv.Key[2:]) == "old"
		}
		return n, oldest
	}
	putAll(t, l, map[string]any{"_id": "a", "old": 1})
	queryRows(t, l, Query{Field: "old"})
	putAll(t, l, map[string]any{"_id": "b", "old": 2})
	for i := range MaxIndexes - 1 {
		queryRows(t, l, Query{Field: fmt.Sprint("f", i)})
	}
	if n, oldest := indexes(); n != MaxIndexes || !oldest {
		t.Fatalf("%d indexes, oldest among them: %v", n, oldest)
	}
	queryRows(t, l, Query{Field: "one more"})
	if n, oldest := indexes(); n != MaxIndexes || oldest {
		t.Errorf("%d indexes, oldest among them: %v", n, oldest)
	}
	if got := rowKeys(t, l, Query{Field: "old"}); !slices.Equal(got, []string{"1 a", "2 b"}) {
		t.Errorf("after it was made again: %v", got)
	}
}

// TestIndexFollows compares an index that is brought up to date now and then with one made anew, under any history.
func TestIndexFollows(t *testing.T) {
	byParts := func(d Doc, emit func(any, any)) {
		k, _ := d.Field("k")
		n, _ := k.(int64)
		for i := range n {
			emit([]any{n, i}, d.ID)
		}
	}
	rapid.Check(t, func(rt *rapid.T) {
		h, err := tryHome(t, vfs.NewMem(), "home")
		if err != nil {
			rt.Fatal(err)
		}
		defer h.close()
		l := h.Ledger
		want := map[string]int{}
		steps := rapid.IntRange(1, 12).Draw(rt, "steps")
		for step := range steps {
			var docs []map[string]any
			for range rapid.IntRange(1, 4).Draw(rt, "docs") {
				id := fmt.Sprint("d", rapid.IntRange(0, 5).Draw(rt, "id"))
				if rapid.IntRange(0, 3).Draw(rt, "delete") == 0 {
					if _, err := l.Delete(context.Background(), id); err != nil {
						rt.Fatal(err)
					}
					delete(want, id)
					continue
				}
				k := rapid.IntRange(0, 4).Draw(rt, "k")
				docs = append(docs, map[string]any{"_id": id, "k": k})
				want[id] = k
			}
			if len(docs) > 0 {
				putAll(t, l, docs...)
				for _, d := range docs {
					want[d["_id"].(string)] = d["k"].(int)
				}
			}
			if rapid.Bool().Draw(rt, "query") || step == steps-1 {
				got := rowKeys(t, l, Query{Map: byParts, Name: "parts"})
				fresh := rowKeys(t, l, Query{Map: byParts, Name: "parts", Revision: fmt.Sprint(step)})
				if diff := cmp.Diff(fresh, got); diff != "" {
					rt.Fatalf("step %d (-made anew +followed):\n%s", step, diff)
				}
				rows := 0
				for _, k := range want {
					rows += k
				}
				if len(got) != rows {
					rt.Fatalf("step %d: %d rows, want %d", step, len(got), rows)
				}
				// The two share a name, so the next query makes the first one anew: go on with it up to date.
				queryRows(t, l, Query{Map: byParts, Name: "parts"})
			}
		}
	})
}

// TestQueryIsOneMoment writes while a query is being read.
func TestQueryIsOneMoment(t *testing.T) {
	l := newHome(t).Ledger
	var docs []map[string]any
	for i := range 50 {
		docs = append(docs, map[string]any{"_id": fmt.Sprintf("d%02d", i), "k": i % 5, "v": 1})
	}
	putAll(t, l, docs...)
	n := 0
	for r, err := range l.Query(context.Background(), Query{Field: "k", Keys: []any{0, 1, 2, 3, 4}, IncludeDocs: true}) {
		if err != nil {
			t.Fatal(err)
		}
		if n == 3 {
			for i := range docs {
				docs[i] = map[string]any{"_id": docs[i]["_id"], "k": 4 - docs[i]["k"].(int), "v": 2}
			}
			putAll(t, l, docs...)
			if got := len(queryRows(t, l, Query{Field: "k", Key: key(0)})); got != 10 {
				t.Fatalf("%d rows in the middle", got)
			}
		}
		if v, _ := r.Doc.Field("v"); v != int64(1) {
			t.Fatalf("row %d is of version %v", n, v)
		}
		n++
	}
	if n != 50 {
		t.Errorf("%d rows", n)
	}
}

func TestQueryStops(t *testing.T) {
	l := newHome(t).Ledger
	var docs []map[string]any
	for i := range 100 {
		docs = append(docs, map[string]any{"_id": fmt.Sprint("d", i), "k": i})
	}
	putAll(t, l, docs...)
	n := 0
	for range l.Query(context.Background(), Query{Field: "k"}) {
		if n++; n == 3 {
			break
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	n = 0
	var last error
	for _, err := range l.Query(ctx, Query{Field: "k"}) {
		if n++; n == 3 {
			cancel()
		}
		last = err
	}
	if n != 4 || !errors.Is(last, context.Canceled) {
		t.Errorf("%d steps, %v", n, last)
	}
	if err := queryErr(l, Query{Field: "k"}); err != nil {
		t.Errorf("afterwards: %v", err)
	}
}

// TestInterruptedBuildGoesOn cancels the first build of an index from within its map function.
func TestInterruptedBuildGoesOn(t *testing.T) {
	l := newHome(t).Ledger
	const docs = indexBatchDocs + 1000
	var all []map[string]any
	for i := range docs {
		all = append(all, map[string]any{"_id": fmt.Sprintf("d%05d", i), "k": i})
	}
	putAll(t, l, all...)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	calls := 0
	fn := func(d Doc, emit func(any, any)) {
		if calls++; calls == docs-10 {
			cancel()
		}
		emit(d.ID, nil)
	}
	var err error
	for _, err = range l.Query(ctx, Query{Map: fn, Name: "slow"}) {
	}
	if !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	calls = docs
	if got := len(rowKeys(t, l, Query{Map: fn, Name: "slow"})); got != docs {
		t.Errorf("%d rows", got)
	}
	if again := calls - docs; again == 0 || again >= docs {
		t.Errorf("%d calls after the interruption", again)
	}
}

func BenchmarkQuery(b *testing.B) {
	l := newHome(b).Ledger
	var docs []map[string]any
	for i := range 10_000 {
		docs = append(docs, map[string]any{"_id": fmt.Sprintf("doc-%05d", i), "kind": fmt.Sprint("k", i%100), "n": i, "text": "a line of text, as long as they are in most documents"})
	}
	for at := 0; at < len(docs); at += 1000 {
		putAll(b, l, docs[at:at+1000]...)
	}
	revision := 0
	b.Run("first", func(b *testing.B) {
		fn := func(d Doc, emit func(any, any)) {
			if v, ok := d.Field("kind"); ok {
				emit(v, nil)
			}
		}
		for b.Loop() {
			revision++
			rowKeys(b, l, Query{Map: fn, Name: "kind", Revision: fmt.Sprint(revision), Key: key("k5")})
		}
	})
	b.Run("repeated-100-rows-with-docs", func(b *testing.B) {
		for b.Loop() {
			if n := len(rowKeys(b, l, Query{Field: "kind", Key: key("k5"), IncludeDocs: true})); n != 100 {
				b.Fatal(n)
			}
		}
	})
	b.Run("repeated-10k-rows", func(b *testing.B) {
		for b.Loop() {
			if n := len(rowKeys(b, l, Query{Field: "kind"})); n != len(docs) {
				b.Fatal(n)
			}
		}
	})
	b.Run("after-one-put", func(b *testing.B) {
		for b.Loop() {
			docs[0]["n"] = revision
			putAll(b, l, docs[0])
			revision++
			rowKeys(b, l, Query{Field: "kind", Key: key("k5")})
		}
	})
}

func TestIndexSurvivesReopening(t *testing.T) {
	h := newHome(t)
	for i := range 20 {
		h.put(fmt.Sprintf(`{"_id":"d%02d","k":%d}`, i, i%3))
	}
	calls := 0
	q := Query{Name: "counted", Key: key(1), Map: func(d Doc, emit func(any, any)) {
		calls++
		k, _ := d.Field("k")
		emit(k, nil)
	}}
	want := rowKeys(t, h.Ledger, q)
	if len(want) != 7 || calls != 20 {
		t.Fatalf("%d rows, %d calls", len(want), calls)
	}
	h.reopen()
	if diff := cmp.Diff(want, rowKeys(t, h.Ledger, q)); diff != "" || calls != 20 {
		t.Errorf("after reopening: %d calls\n%s", calls, diff)
	}
	h.put(`{"_id":"d01","k":0}`, `{"_id":"new","k":1}`)
	if got := rowKeys(t, h.Ledger, q); len(got) != 7 || got[6] != "1 new" || calls != 22 {
		t.Errorf("after a put: %q, %d calls", got, calls)
	}
}

// TestIndexIsRebuilt takes the derived data away, as a lost index directory does, and then makes the view anew under
// an index that was written by the old numbers.
func TestIndexIsRebuilt(t *testing.T) {
	h := newHome(t)
	h.put(`{"_id":"a","k":1}`, `{"_id":"b","k":2}`)
	h.put(`{"_id":"a","k":3}`)
	h.del("b")
	want := []string{"3 a"}
	if got := rowKeys(t, h.Ledger, Query{Field: "k"}); !slices.Equal(got, want) {
		t.Fatalf("%q", got)
	}
	if err := h.cars.Derived().Reset(); err != nil {
		t.Fatal(err)
	}
	h.reopen()
	if got := rowKeys(t, h.Ledger, Query{Field: "k"}); !slices.Equal(got, want) {
		t.Errorf("after losing it: %q", got)
	}

	x := h.newIndex(indexField, "k", "")
	x.change = h.state.Load().changes + 1
	b := h.view.d.NewBatch()
	b.Set(x.headKey(), x.appendHead(nil))
	b.Set(x.rowKey([]byte("A"), "ghost", 0), []byte("no row"))
	if err := b.Commit(); err != nil {
		t.Fatal(err)
	}
	b.Close()
	if got := rowKeys(t, h.Ledger, Query{Field: "k"}); !slices.Equal(got, want) {
		t.Errorf("an index from another view: %q", got)
	}
}

// TestIndexFollowsMerge edits one ledger in two homes and merges both ways.
func TestIndexFollowsMerge(t *testing.T) {
	a := newHome(t)
	b := newHome(t)
	a.put(`{"_id":"both","k":1}`, `{"_id":"del","k":1}`, `{"_id":"stays","k":1}`)
	b.mergeFrom(a)
	q := Query{Field: "k", IncludeDocs: true}
	rowKeys(t, a.Ledger, q)
	rowKeys(t, b.Ledger, q)
	for i := range 3 {
		a.put(fmt.Sprintf(`{"_id":"both","k":"a%d"}`, i))
		b.put(fmt.Sprintf(`{"_id":"both","k":"b%d"}`, i), fmt.Sprintf(`{"_id":"fromB%d","k":9}`, i))
		rowKeys(t, a.Ledger, q)
	}
	b.del("del")
	b.put(`{"_id":"last","k":0}`)
	a.mergeFrom(b)
	b.mergeFrom(a)
	got := queryRows(t, a.Ledger, q)
	if diff := cmp.Diff(got, queryRows(t, b.Ledger, q)); diff != "" {
		t.Errorf("the two differ (-a +b):\n%s", diff)
	}
	// What the documents say now is what the index must say.
	var want []string
	for d, err := range a.AllDocs(context.Background(), ListOptions{}) {
		if err != nil {
			t.Fatal(err)
		}
		if k, ok := d.Field("k"); ok {
			b, err := json.Marshal(Row{Key: k, ID: d.ID, Doc: &d})
			if err != nil {
				t.Fatal(err)
			}
			want = append(want, string(b))
		}
	}
	slices.Sort(want)
	slices.Sort(got)
	if diff := cmp.Diff(want, got); diff != "" || len(got) != 6 {
		t.Errorf("rows (-documents +index):\n%s", diff)
	}
}

// TestIndexAfterCrash crashes at many moments, with index data in every state between memory and disk, and compares
// what the index says afterwards with one made anew.
func TestIndexAfterCrash(t *testing.T) {
	fs := vfs.NewCrashableMem()
	h := openHome(t, fs)
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 1))
	wide := strings.Repeat("x", 40<<10) // fills memtables, so that some are written out
	fn := func(d Doc, emit func(any, any)) {
		k, _ := d.Field("k")
		emit(k, wide)
		emit("n", nil)
	}
	behind := 0
	for step := range 60 {
		var docs []string
		for range 4 {
			docs = append(docs, fmt.Sprintf(`{"_id":"d%d","k":%d}`, rng.IntN(20), rng.IntN(5)))
		}
		h.put(docs...)
		if rng.IntN(3) == 0 {
			h.del(fmt.Sprintf("d%d", rng.IntN(20)))
		}
		if rng.IntN(2) == 0 {
			rowKeys(t, h.Ledger, Query{Map: fn, Name: "wide"})
		}
		if step%4 != 3 {
			continue
		}
		clone := fs.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: rng.IntN(101), RNG: rng})
		c, err := tryHome(t, clone, "home")
		if err != nil {
			t.Fatalf("step %d: opening after the crash: %v", step, err)
		}
		if head, ok, err := c.view.d.Get(c.newIndex(indexMap, "wide", "").headKey()); err != nil {
			t.Fatal(err)
		} else if _, change, _, _ := parseIndexHead(head); ok && change < c.state.Load().changes {
			behind++
		}
		got := rowKeys(t, c.Ledger, Query{Map: fn, Name: "wide"})
		fresh := rowKeys(t, c.Ledger, Query{Map: fn, Name: "fresh"})
		if diff := cmp.Diff(fresh, got); diff != "" {
			t.Errorf("step %d (-made anew +after the crash):\n%s", step, diff)
		}
		c.close()
	}
	t.Logf("%d of 15 crashes left an index that was behind", behind)
}

// TestQuerySeesAcknowledgedWrites queries from several goroutines while documents are written.
func TestQuerySeesAcknowledgedWrites(t *testing.T) {
	h := newHome(t)
	var acknowledged atomic.Int64
	done := make(chan struct{})
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for ended := false; !ended; {
				select {
				case <-done:
					ended = true // once more, for the last write
				default:
				}
				least := int(acknowledged.Load())
				n := 0
				for _, err := range h.Query(context.Background(), Query{Field: "k"}) {
					if err != nil {
						t.Error(err)
						return
					}
					n++
				}
				if n < least {
					t.Errorf("%d rows, %d writes were acknowledged before", n, least)
					return
				}
			}
		})
	}
	for i := range 200 {
		h.put(fmt.Sprintf(`{"_id":"d%d","k":%d}`, i, i%7))
		acknowledged.Store(int64(i + 1))
	}
	close(done)
	wg.Wait()
}

// TestMapFunctionPanics lets the panic through, as any function does, and keeps the index usable.
func TestMapFunctionPanics(t *testing.T) {
	l := newHome(t).Ledger
	if got := rowKeys(t, l, Query{Field: "k"}); len(got) != 0 {
		t.Errorf("an empty ledger: %q", got)
	}
	putAll(t, l, map[string]any{"_id": "a", "k": 1})
	broken := true
	q := Query{Name: "m", Map: func(d Doc, emit func(any, any)) {
		if broken {
			panic("broken")
		}
		emit(d.ID, nil)
	}}
	func() {
		defer func() {
			if recover() != "broken" {
				t.Error("the panic was swallowed")
			}
		}()
		queryErr(l, q)
	}()
	broken = false
	if got := rowKeys(t, l, q); len(got) != 1 {
		t.Errorf("afterwards: %q", got)
	}
}
