//go:build interop

package interop

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/google/go-cmp/cmp"

	"fpnode/ledger"
)

// randomKey draws a value that JavaScript can index. It leaves out what its key text cannot tell apart
// (docs/differences.md, "Rows give back the key that was emitted").
func randomKey(rng *rand.Rand, depth int) any {
	kinds := 7
	if depth == 0 {
		kinds = 6
	}
	switch rng.IntN(kinds) {
	case 0:
		return []any{nil, true, false}[rng.IntN(3)]
	case 1:
		return rng.IntN(20) - 10
	case 2:
		return float64(rng.IntN(4000)-2000) / 16
	case 3:
		return rng.NormFloat64() * 1e12
	case 4, 5:
		chars := []rune("ab!\"@% ~éß\u07ff\ud7ff\ue000\uffee😀\U00010000\U0010ffff")
		s := make([]rune, rng.IntN(4))
		for i := range s {
			s[i] = chars[rng.IntN(len(chars))]
		}
		return string(s)
	}
	items := make([]any, rng.IntN(4))
	for i := range items {
		items[i] = randomKey(rng, depth-1)
	}
	return items
}

// truthy reports whether JavaScript takes v for true; it ignores other keys, see docs/differences.md.
func truthy(v any) bool {
	switch v := v.(type) {
	case nil:
		return false
	case int:
		return v != 0
	case float64:
		return v != 0
	case string:
		return v != ""
	}
	return true
}

// TestQueriesEqualJavaScript asks both the same questions about the same random documents.
func TestQueriesEqualJavaScript(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	js, r := startJS(t), newReplica(t, name)
	js.do("open", args{"db": "a", "name": name}, nil)

	var keys []any
	write := func(n int) {
		var docs []json.RawMessage
		var texts []string
		for range n {
			k := randomKey(rng, 2)
			keys = append(keys, k)
			b, err := json.Marshal(map[string]any{"_id": fmt.Sprintf("d%02d", rng.IntN(60)), "k": k})
			if err != nil {
				t.Fatal(err)
			}
			docs, texts = append(docs, b), append(texts, string(b))
		}
		js.do("bulk", args{"db": "a", "docs": docs}, nil)
		r.put(texts...)
	}
	write(80)
	some := func() any { return keys[rng.IntN(len(keys))] }
	for i := range 120 {
		q, opts := ledger.Query{Field: "k"}, args{}
		switch rng.IntN(5) {
		case 0:
			if k := some(); truthy(k) || k == false {
				q.Key, opts["key"] = &k, k
			}
		case 1:
			list := []any{some(), some(), some()}
			q.Keys, opts["keys"] = list, list
		case 2, 3:
			q.Range = &[2]any{some(), some()}
			opts["range"] = q.Range
		}
		if rng.IntN(2) == 0 {
			q.Descending, opts["descending"] = true, true
		}
		if rng.IntN(3) == 0 {
			q.Limit = 1 + rng.IntN(10)
			opts["limit"] = q.Limit
		}
		var want struct{ Rows []json.RawMessage }
		js.do("query", args{"db": "a", "field": "k", "opts": opts}, &want)
		var exp, got []string
		for _, row := range want.Rows {
			exp = append(exp, canonical(t, row))
		}
		for row, err := range r.l.Query(context.Background(), q) {
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
			t.Fatalf("seed %d, query %d, %v (-js +go):\n%s", seed, i, opts, diff)
		}
		if i%20 == 19 { // the index has to follow
			write(5)
			js.do("del", args{"db": "a", "key": "d07"}, nil)
			r.del("d07")
		}
	}
}
