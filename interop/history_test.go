//go:build interop

package interop

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"fpnode/keyring"
)

// TestDifferentialHistories runs the same random puts, bulks, deletes, forks and merges through three Go and three
// JavaScript replicas and compares head, root and every document after each step. FPNODE_SEEDS (default 50) says
// how many histories, FPNODE_SEED the first.
func TestDifferentialHistories(t *testing.T) {
	js := startJS(t)
	first, count := envInt(t, "FPNODE_SEED", 1), envInt(t, "FPNODE_SEEDS", 50)
	steps := 0
	for seed := first; seed < first+count; seed++ {
		ok := t.Run("seed="+strconv.Itoa(seed), func(t *testing.T) {
			js.t = t
			steps += history(t, js, uint64(seed))
		})
		js.t = t
		if !ok {
			t.Fatalf("seed %d differs; run it alone with FPNODE_SEED=%d FPNODE_SEEDS=1", seed, seed)
		}
	}
	t.Logf("%d histories, %d steps equal", count, steps)
	if steps < 10*count {
		t.Fatalf("only %d steps could be compared in %d histories", steps, count)
	}
}

func envInt(t *testing.T, name string, def int) int {
	s := os.Getenv(name)
	if s == "" {
		return def
	}
	n, err := strconv.Atoi(s)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return n
}

// pool is small, so that ids collide, and has shared prefixes, so that shards split.
var pool = []string{"a", "ab", "abc", "abd", "b", "ba", "doc-1", "doc-10", "doc-11", "doc-2", "x y", "x", "~", "z", "zz", "zzz", "zzzz", "q"}

const replicas = 3

// history returns the number of steps in which both sides could be compared.
func history(t *testing.T, js *jsProcess, seed uint64) int {
	rng := rand.New(rand.NewPCG(seed, 0x66706e6f6465))
	key, err := keyring.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	var goSide [replicas]*replica
	var jsSide [replicas]string
	for i := range replicas {
		goSide[i] = newReplica(t, "hist", key)
		jsSide[i] = fmt.Sprintf("s%d-%d", seed, i)
		js.do("open", args{"db": jsSide[i], "name": "hist"}, nil)
	}
	defer func() {
		for _, db := range jsSide {
			js.do("close", args{"db": db}, nil)
		}
	}()

	var script []string
	n := 0
	newDoc := func() string {
		n++
		id := pool[rng.IntN(len(pool))]
		// Few distinct values, so that a document returns to an earlier state now and then.
		return fmt.Sprintf(`{"_id":%q,"v":%d,"list":[%d,null,"é"]}`, id, rng.IntN(4), rng.IntN(2))
	}
	for step := range 12 + rng.IntN(16) {
		i := rng.IntN(replicas)
		g, db := goSide[i], jsSide[i]
		switch op := rng.IntN(10); {
		case op < 4:
			doc := newDoc()
			script = append(script, fmt.Sprintf("%d put %s", i, doc))
			g.put(doc)
			js.do("put", args{"db": db, "doc": json.RawMessage(doc)}, nil)
		case op < 6:
			var docs []string
			var raw []json.RawMessage
			for range 2 + rng.IntN(4) {
				docs = append(docs, newDoc())
				raw = append(raw, json.RawMessage(docs[len(docs)-1]))
			}
			script = append(script, fmt.Sprintf("%d bulk %v", i, docs))
			g.put(docs...)
			js.do("bulk", args{"db": db, "docs": raw}, nil)
		case op < 7:
			id := pool[rng.IntN(len(pool))]
			script = append(script, fmt.Sprintf("%d del %s", i, id))
			g.del(id)
			js.do("del", args{"db": db, "key": id}, nil)
		default:
			from := (i + 1 + rng.IntN(replicas-1)) % replicas
			script = append(script, fmt.Sprintf("%d merge %d", i, from))
			g.mergeFrom(goSide[from])
			js.do("merge", args{"db": db, "from": jsSide[from]}, nil)
		}
		var want jsState
		if err := js.try("state", args{"db": db, "docs": true}, &want); err != nil {
			if !strings.Contains(strings.ToLower(err.Error()), "missing") {
				t.Fatalf("%v after\n%s", err, joinLines(script))
			}
			// The library loses blocks when a merge returns to an earlier state (ABA). Go keeps them: its own reads
			// must work, and the heads must still be the same. The JavaScript side cannot go on from here.
			var head jsState
			js.do("head", args{"db": db}, &head)
			slices.Sort(head.Head)
			if diff := cmp.Diff(head.Head, sortedCIDs(g.l.Head())); diff != "" {
				t.Fatalf("head after\n%s\n(-js +go):\n%s", joinLines(script), diff)
			}
			g.docs()
			t.Logf("seed %d ends at step %d: the library lost a block of its own", seed, step)
			return step
		}
		slices.Sort(want.Head)
		got := map[string]any{"head": sortedCIDs(g.l.Head()), "root": g.root(), "docs": g.docs()}
		exp := map[string]any{"head": want.Head, "root": want.Root, "docs": want.docs(t)}
		if want.Head == nil {
			exp["head"] = []string{}
		}
		if diff := cmp.Diff(exp, got); diff != "" {
			t.Fatalf("after step %d of\n%s\n(-js +go):\n%s", step, joinLines(script), diff)
		}
	}
	return len(script)
}

func joinLines(l []string) string {
	s := ""
	for _, x := range l {
		s += "  " + x + "\n"
	}
	return s
}
