package pail

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/ipfs/go-cid"
	"pgregory.net/rapid"

	"fpnode/clock"
	"fpnode/internal/car"
	"fpnode/internal/dagcbor"
)

// drawKey draws keys that share prefixes.
func drawKey(t *rapid.T) string {
	return rapid.OneOf(
		rapid.StringMatching(`[abc]{0,5}`),
		rapid.StringMatching(`test-[0-9]{1,2}`),
		rapid.StringMatching(`[ -~]{1,3}`),
	).Draw(t, "key")
}

func drawMap(t *rapid.T, most int) map[string]string {
	m := map[string]string{}
	for range rapid.IntRange(0, most).Draw(t, "size") {
		m[drawKey(t)] = rapid.SampledFrom([]string{"1", "2", "3"}).Draw(t, "value")
	}
	return m
}

// build makes a tree of a map, with the keys in a given order or a random one.
func build(t *rapid.T, store blocks, m map[string]string) Tree {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	keys = rapid.Permutation(keys).Draw(t, "order")
	tree := Empty(store, nil)
	for len(keys) > 0 {
		n := rapid.IntRange(1, len(keys)).Draw(t, "batch")
		edit := tree.Edit()
		for _, k := range keys[:n] {
			if err := edit.Put(t.Context(), k, value(m[k])); err != nil {
				t.Fatal(err)
			}
		}
		keys = keys[n:]
		tree = save(t, store, edit.Commit())
	}
	return tree
}

// save stores what an Edit made.
func save(t *rapid.T, store blocks, r Result) Tree {
	for _, b := range r.Additions {
		if dagcbor.Sum(b.Data) != b.CID {
			t.Fatalf("block %s has another hash", b.CID)
		}
		store[b.CID] = b.Data
	}
	return r.Tree.Stored()
}

func all(t *rapid.T, tree Tree, r Range) []Entry {
	var out []Entry
	for e, err := range tree.Entries(t.Context(), r) {
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, e)
	}
	return out
}

func shardsOf(t *rapid.T, tree Tree) map[cid.Cid]bool {
	set := map[cid.Cid]bool{}
	last := cid.Undef
	for b, err := range tree.Shards(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		if dagcbor.Sum(b.Data) != b.CID {
			t.Fatalf("shard %s has another hash", b.CID)
		}
		set[b.CID], last = true, b.CID
	}
	if last != tree.Root() {
		t.Fatalf("the last shard is %s, the root %s", last, tree.Root())
	}
	return set
}

var sameCID = cmp.Comparer(func(a, b cid.Cid) bool { return a == b })

func TestTreeIsAMap(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := drawMap(t, 20)
		store := blocks{}
		tree := build(t, store, m)
		// The same keys in any other order and grouping give the same root.
		if again := build(t, blocks{}, m); again.Root() != tree.Root() {
			t.Fatalf("roots %s and %s", tree.Root(), again.Root())
		}
		var want []Entry
		for k, v := range m {
			want = append(want, Entry{k, value(v)})
			if got, ok, err := tree.Get(t.Context(), k); err != nil || !ok || got != value(v) {
				t.Fatalf("Get(%q): %s, %v, %v", k, got, ok, err)
			}
		}
		for range 5 {
			k := drawKey(t)
			if _, ok, err := tree.Get(t.Context(), k); err != nil || ok != (m[k] != "") {
				t.Fatalf("Get(%q): %v, %v", k, ok, err)
			}
		}
		slices.SortFunc(want, func(a, b Entry) int { return strings.Compare(a.Key, b.Key) })
		if d := cmp.Diff(want, all(t, tree, Range{}), sameCID); d != "" {
			t.Fatal(d)
		}
		shardsOf(t, tree)
	})
}

func TestEntriesInRange(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := drawMap(t, 20)
		tree := build(t, blocks{}, m)
		bound := func(name string) string {
			if rapid.Bool().Draw(t, name) {
				return drawKey(t)
			}
			return ""
		}
		r := Range{Prefix: bound("prefix"), From: bound("from"), After: bound("after"), To: bound("to"), Before: bound("before")}
		r.Descending = rapid.Bool().Draw(t, "descending")
		var want []string
		for k := range m {
			if strings.HasPrefix(k, r.Prefix) && k >= r.From && (r.After == "" || k > r.After) &&
				(r.To == "" || k <= r.To) && (r.Before == "" || k < r.Before) {
				want = append(want, k)
			}
		}
		slices.Sort(want)
		if r.Descending {
			slices.Reverse(want)
		}
		var got []string
		for _, e := range all(t, tree, r) {
			got = append(got, e.Key)
		}
		if d := cmp.Diff(want, got); d != "" {
			t.Fatalf("%+v of %v (-want +got):\n%s", r, m, d)
		}
		for e, err := range tree.Entries(t.Context(), r) { // stopping early
			if err != nil || e.Key != want[0] {
				t.Fatalf("first entry %v, %v; want %s", e, err, want[0])
			}
			break
		}
	})
}

// An Edit of many operations does what one Edit for each does, and its
// Additions and Removals are the difference of the sets of shards.
func TestEditOfManyOperations(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		store := blocks{}
		base := build(t, store, drawMap(t, 12))
		n := rapid.IntRange(0, 12).Draw(t, "ops")
		one, many := base, base.Edit()
		dels := rapid.Bool().Draw(t, "dels")
		for range n {
			edit := one.Edit()
			if key := drawKey(t); dels && rapid.Bool().Draw(t, "del") {
				must2(t, edit.Del(t.Context(), key), many.Del(t.Context(), key))
			} else {
				v := value(rapid.SampledFrom([]string{"1", "2", "3"}).Draw(t, "value"))
				must2(t, edit.Put(t.Context(), key, v), many.Put(t.Context(), key, v))
			}
			r := edit.Commit()
			checkDifference(t, one, r)
			one = save(t, store, r)
		}
		r := many.Commit()
		if r.Tree.Root() != one.Root() {
			t.Fatalf("roots %s and %s", r.Tree.Root(), one.Root())
		}
		checkDifference(t, base, r)

		// Without being stored the new tree is there all the same, also after
		// another edit, and the old tree is as it was.
		if d := cmp.Diff(all(t, one, Range{}), all(t, r.Tree, Range{}), sameCID); d != "" {
			t.Fatal(d)
		}
		key := drawKey(t)
		next := r.Tree.Edit()
		must2(t, next.Put(t.Context(), key, value("next")), nil)
		if v, ok, err := next.Commit().Tree.Get(t.Context(), key); err != nil || !ok || v != value("next") {
			t.Fatalf("%s, %v, %v", v, ok, err)
		}
		shardsOf(t, base)
	})
}

func must2(t *rapid.T, a, b error) {
	if a != nil || b != nil {
		t.Fatal(a, b)
	}
}

func checkDifference(t *rapid.T, before Tree, r Result) {
	old, now := shardsOf(t, before), shardsOf(t, r.Tree)
	if len(old) == 1 && old[emptyShard.cid] && len(r.Additions) == 0 {
		return
	}
	added := map[cid.Cid]bool{}
	for _, b := range r.Additions {
		if old[b.CID] || !now[b.CID] || added[b.CID] {
			t.Fatalf("addition %s", b.CID)
		}
		added[b.CID] = true
	}
	for c := range now {
		if !old[c] && !added[c] {
			t.Fatalf("%s is not among the additions", c)
		}
	}
	removed := map[cid.Cid]bool{}
	for _, c := range r.Removals {
		if now[c] || !old[c] || removed[c] {
			t.Fatalf("removal %s", c)
		}
		removed[c] = true
	}
	for c := range old {
		if !now[c] && !removed[c] {
			t.Fatalf("%s is not among the removals", c)
		}
	}
}

func TestDiffIsTheDifferenceOfTheMaps(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		store := blocks{}
		m := drawMap(t, 14)
		a := build(t, store, m)
		b, after := a, m
		if rapid.Bool().Draw(t, "related") {
			edit := a.Edit()
			for range rapid.IntRange(0, 6).Draw(t, "ops") {
				if key := drawKey(t); rapid.Bool().Draw(t, "del") {
					must2(t, edit.Del(t.Context(), key), nil)
				} else {
					must2(t, edit.Put(t.Context(), key, value("new")), nil)
				}
			}
			b, after = save(t, store, edit.Commit()), nil
		} else {
			after = drawMap(t, 14)
			b = build(t, store, after)
		}
		var want []Change
		before, now := all(t, a, Range{}), all(t, b, Range{})
		changes := map[string]*Change{}
		change := func(k string) *Change {
			if changes[k] == nil {
				changes[k] = &Change{Key: k}
			}
			return changes[k]
		}
		for _, e := range before {
			change(e.Key).Old = e.Value
		}
		for _, e := range now {
			change(e.Key).New = e.Value
		}
		for _, c := range changes {
			if c.Old != c.New {
				want = append(want, *c)
			}
		}
		slices.SortFunc(want, func(a, b Change) int { return strings.Compare(a.Key, b.Key) })
		var got []Change
		for c, err := range Diff(t.Context(), a, b) {
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, c)
		}
		if d := cmp.Diff(want, got, sameCID); d != "" {
			t.Fatalf("(-want +got):\n%s", d)
		}
		for c, err := range Diff(t.Context(), a, b) { // stopping early
			if err != nil || c.Key != want[0].Key {
				t.Fatalf("first change %v, %v", c, err)
			}
			break
		}
	})
}

// counted counts reads.
type counted struct {
	blocks
	mu    sync.Mutex
	reads int
}

func (c *counted) Block(ctx context.Context, id cid.Cid) ([]byte, error) {
	c.mu.Lock()
	c.reads++
	c.mu.Unlock()
	return c.blocks.Block(ctx, id)
}

func TestDiffReadsOnlyWhatChanged(t *testing.T) {
	store := &counted{blocks: blocks{}}
	edit := Empty(store, nil).Edit()
	for _, k := range keysOf("hex", 5000, 1) {
		must(t, edit.Put(t.Context(), k, value("v")))
	}
	r := edit.Commit()
	store.put(t, r.Additions...)
	a := r.Tree.Stored()
	edit = a.Edit()
	must(t, edit.Put(t.Context(), keysOf("hex", 1, 1)[0], value("w")))
	r = edit.Commit()
	store.put(t, r.Additions...)
	store.reads = 0
	n := 0
	for _, err := range Diff(t.Context(), a, r.Tree.Stored()) {
		must(t, err)
		n++
	}
	if n != 1 || store.reads != 2*len(r.Additions) {
		t.Errorf("%d changes, %d reads for %d shards changed", n, store.reads, len(r.Additions))
	}
}

func TestMissingShard(t *testing.T) {
	store := blocks{}
	edit := Empty(store, nil).Edit()
	for _, k := range []string{"aa1", "aa2", "b"} {
		must(t, edit.Put(t.Context(), k, value(k)))
	}
	r := edit.Commit()
	store.put(t, r.Additions...)
	tree := r.Tree.Stored()
	leaf := r.Additions[0].CID
	delete(store, leaf)

	check := func(what string, err error) {
		t.Helper()
		var missing *clock.MissingError
		if !errors.As(err, &missing) || missing.CID != leaf || !errors.Is(err, clock.ErrMissing) {
			t.Errorf("%s: %v", what, err)
		}
	}
	_, _, err := tree.Get(t.Context(), "aa1")
	check("Get", err)
	edit = tree.Edit()
	must(t, edit.Put(t.Context(), "c", value("c")))
	check("Put", edit.Put(t.Context(), "aa3", value("x")))
	check("Del", edit.Del(t.Context(), "aa1"))
	after := edit.Commit().Tree // the failed operations did nothing
	for _, k := range []string{"b", "c"} {
		if v, ok, err := after.Get(t.Context(), k); err != nil || !ok || v != value(k) {
			t.Errorf("%s: %s, %v, %v", k, v, ok, err)
		}
	}
	_, err = last2(tree.Entries(t.Context(), Range{}))
	check("Entries", err)
	_, err = last2(tree.Shards(t.Context()))
	check("Shards", err)
	_, err = last2(Diff(t.Context(), Empty(store, nil), tree))
	check("Diff", err)
}

func last2[T any](seq func(func(T, error) bool)) (v T, err error) {
	seq(func(x T, e error) bool {
		v, err = x, e
		return true
	})
	return v, err
}

func TestValidKey(t *testing.T) {
	for _, key := range []string{"", " ", "~", strings.Repeat("k", MaxKeyBytes)} {
		if err := ValidKey(key); err != nil {
			t.Errorf("%.10q: %v", key, err)
		}
	}
	for key, text := range map[string]string{
		"é": "key contains non-ASCII characters", "\x1f": "key contains non-ASCII characters", "\x7f": "key contains non-ASCII characters", "\xff": "key contains non-ASCII characters",
		strings.Repeat("é", MaxKeyBytes):   "key contains non-ASCII characters",
		strings.Repeat("k", MaxKeyBytes+1): "UTF-8 encoded key exceeds max size of 4096 bytes",
	} {
		if err := ValidKey(key); !errors.Is(err, ErrKey) || err.Error() != text {
			t.Errorf("%.10q: %v", key, err)
		}
	}
	edit := Empty(nil, nil).Edit()
	if err := edit.Put(t.Context(), "\n", value("v")); !errors.Is(err, ErrKey) {
		t.Errorf("Put: %v", err)
	}
	for _, v := range []cid.Cid{cid.Undef, cid.NewCidV1(cid.Raw, append([]byte{0, 0x7d}, make([]byte, 125)...))} {
		if err := edit.Put(t.Context(), "k", v); !errors.Is(err, ErrValue) {
			t.Errorf("Put of %v: %v", v, err)
		}
	}
	if r := edit.Commit(); r.Tree.Root() != emptyShard.cid {
		t.Error("refused puts changed the tree")
	}
}

// The deepest tree and the largest shard that keys allow can be read back.
func TestLongestKeys(t *testing.T) {
	store := blocks{}
	edit := Empty(store, nil).Edit()
	long := strings.Repeat("k", MaxKeyBytes-1)
	var keys []string
	for c := byte(' '); c <= '~'; c++ {
		keys = append(keys, long+string(c))                               // 95 entries in the deepest shard
		keys = append(keys, string(c)+strings.Repeat("x", MaxKeyBytes-1)) // 95 long entries in the root
	}
	wide := cid.NewCidV1(cid.Raw, append([]byte{0, 0x7c}, make([]byte, 124)...))
	for _, k := range keys {
		must(t, edit.Put(t.Context(), k, wide))
	}
	r := edit.Commit()
	store.put(t, r.Additions...)
	largest := 0
	for _, b := range r.Additions {
		largest = max(largest, len(b.Data))
	}
	if largest > MaxShardBytes {
		t.Errorf("a shard of %d bytes", largest)
	}
	tree := Load(store, NewCache(10), r.Tree.Root())
	for _, k := range keys {
		if v, ok, err := tree.Get(t.Context(), k); err != nil || !ok || v != wide {
			t.Fatalf("%v, %v, %v", v, ok, err)
		}
	}
}

func TestDecodeShardRefuses(t *testing.T) {
	v, s := value("v"), dagcbor.Sum([]byte("shard"))
	type m = map[string]any
	shardOf := func(change m) []byte {
		fields := m{"prefix": "", "entries": []any{}, "version": 1, "keyChars": "ascii", "maxKeySize": 4096}
		for k, v := range change {
			fields[k] = v
			if v == nil {
				delete(fields, k)
			}
		}
		b, err := dagcbor.Marshal(fields)
		must(t, err)
		return b
	}
	decode := func(b []byte) error {
		_, err := decodeShard(dagcbor.Sum(b), b)
		return err
	}
	list := func(e ...any) []any { return e }
	must(t, decode(shardOf(nil)))
	must(t, decode(shardOf(m{"prefix": "p", "entries": list(list("a", list(s)), list("b", v), list("c", list(s, v)))})))
	must(t, decode(shardOf(m{"entries": list(list("", v), list("abc", v))})))
	for name, b := range map[string][]byte{
		"empty":              nil,
		"too long":           make([]byte, MaxShardBytes+1),
		"no map":             {1},
		"field missing":      shardOf(m{"version": nil}),
		"field too many":     shardOf(m{"x": 1}),
		"version 2":          shardOf(m{"version": 2}),
		"other characters":   shardOf(m{"keyChars": "utf8"}),
		"other key size":     shardOf(m{"maxKeySize": 4095}),
		"prefix not ASCII":   shardOf(m{"prefix": "é", "entries": list(list("a", v))}),
		"prefix not text":    shardOf(m{"prefix": 1}),
		"empty below root":   shardOf(m{"prefix": "p"}),
		"empty key below":    shardOf(m{"prefix": "p", "entries": list(list("", v))}),
		"not sorted":         shardOf(m{"entries": list(list("b", v), list("a", v))}),
		"twice":              shardOf(m{"entries": list(list("a", v), list("a", v))}),
		"empty key twice":    shardOf(m{"entries": list(list("", v), list("", v))}),
		"same first":         shardOf(m{"entries": list(list("ab", v), list("ac", v))}),
		"link and same":      shardOf(m{"entries": list(list("a", list(s)), list("ac", v))}),
		"long link key":      shardOf(m{"entries": list(list("ab", list(s)))}),
		"empty link key":     shardOf(m{"entries": list(list("", list(s)))}),
		"link to raw":        shardOf(m{"entries": list(list("a", list(v)))}),
		"link to CIDv0":      shardOf(m{"entries": list(list("a", list(cid.NewCidV0(v.Hash()))))}),
		"three links":        shardOf(m{"entries": list(list("a", list(s, v, v)))}),
		"no link":            shardOf(m{"entries": list(list("a", list()))}),
		"value not link":     shardOf(m{"entries": list(list("a", 1))}),
		"entry of one":       shardOf(m{"entries": list(list("a"))}),
		"entry of three":     shardOf(m{"entries": list(list("a", v, v))}),
		"key not text":       shardOf(m{"entries": list(list(1, v))}),
		"key not ASCII":      shardOf(m{"entries": list(list("\x7f", v))}),
		"key too long":       shardOf(m{"entries": list(list(strings.Repeat("k", MaxKeyBytes+1), v))}),
		"prefix and key":     shardOf(m{"prefix": "p", "entries": list(list(strings.Repeat("k", MaxKeyBytes), v))}),
		"entries not a list": shardOf(m{"entries": 1}),
		"too many entries":   shardOf(m{"entries": slices.Repeat(list(list("a", v)), 97)}),
		"trailing":           append(shardOf(nil), 0),
	} {
		if err := decode(b); !errors.Is(err, ErrShard) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// A shard that is valid, but for another place in the tree.
func TestShardInTheWrongPlace(t *testing.T) {
	store := blocks{}
	block := encodeDraft("b", appendEntry(nil, "x", nil, value("v").Bytes()))
	c := dagcbor.Sum(block)
	rootBlock := encodeDraft("", appendEntry(nil, "a", c.Bytes(), nil))
	store.put(t, car.Block{CID: c, Data: block}, car.Block{CID: dagcbor.Sum(rootBlock), Data: rootBlock})
	for _, cache := range []*Cache{nil, NewCache(10)} {
		tree := Load(store, cache, dagcbor.Sum(rootBlock))
		for range 2 {
			if _, _, err := tree.Get(t.Context(), "ax"); !errors.Is(err, ErrShard) {
				t.Errorf("Get: %v", err)
			}
		}
		if _, _, err := Load(store, cache, c).Get(t.Context(), "bx"); !errors.Is(err, ErrShard) {
			t.Errorf("Get from a root with a prefix: %v", err)
		}
	}
}

func FuzzDecodeShard(f *testing.F) {
	for _, v := range loadVectors().Shards {
		f.Add(fromHex(f, v.Bytes))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := decodeShard(dagcbor.Sum(b), b)
		if err != nil {
			return
		}
		if again := encodeAgain(s); string(again) != string(b) {
			t.Errorf("%x encoded again: %x", b, again)
		}
	})
}

func FuzzDecodeData(f *testing.F) {
	for _, d := range []Data{
		{Root: GenesisRoot, Ops: []Op{{Key: "k", Value: value("v")}}},
		{Root: GenesisRoot, Ops: []Op{{Key: "k", Del: true}}},
		{Root: GenesisRoot, Batch: true},
		{Root: GenesisRoot, Batch: true, Ops: []Op{{Key: "k", Value: value("v")}, {Key: "", Value: value("w")}}},
	} {
		b := d.Encode()
		if got, err := DecodeData(b); err != nil || string(got.Encode()) != string(b) {
			f.Fatalf("%v: %v, %v", d, got, err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if d, err := DecodeData(b); err == nil && string(d.Encode()) != string(b) {
			t.Errorf("%x encoded again: %x", b, d.Encode())
		}
	})
}

func TestDecodeDataRefuses(t *testing.T) {
	v, root := value("v"), GenesisRoot
	type m = map[string]any
	for name, d := range map[string]any{
		"no map":           1,
		"empty":            m{},
		"no type":          m{"key": "k", "root": root, "value": v},
		"type of batch":    m{"key": "k", "root": root, "type": "batch", "value": v},
		"put without":      m{"key": "k", "root": root, "type": "put"},
		"del with value":   m{"key": "k", "root": root, "type": "del", "value": v},
		"unknown type":     m{"key": "k", "root": root, "type": "x", "value": v},
		"five fields":      m{"key": "k", "root": root, "type": "put", "value": v, "x": 1},
		"root raw":         m{"key": "k", "root": v, "type": "put", "value": v},
		"root no link":     m{"key": "k", "root": 1, "type": "put", "value": v},
		"value no link":    m{"key": "k", "root": root, "type": "put", "value": "v"},
		"key not ASCII":    m{"key": "é", "root": root, "type": "put", "value": v},
		"key no text":      m{"key": 1, "root": root, "type": "put", "value": v},
		"ops no list":      m{"ops": 1, "root": root, "type": "batch"},
		"ops of put":       m{"ops": []any{}, "root": root, "type": "put"},
		"op no map":        m{"ops": []any{1}, "root": root, "type": "batch"},
		"del in batch":     m{"ops": []any{m{"key": "k", "type": "del"}}, "root": root, "type": "batch"},
		"del and value":    m{"ops": []any{m{"key": "k", "type": "del", "value": v}}, "root": root, "type": "batch"},
		"bad key in batch": m{"ops": []any{m{"key": "\n", "type": "put", "value": v}}, "root": root, "type": "batch"},
		"many nulls":       m{"ops": make([]any, 1<<19), "root": root, "type": "batch"},
	} {
		b, err := dagcbor.Marshal(d)
		must(t, err)
		if got, err := DecodeData(b); !errors.Is(err, ErrData) {
			t.Errorf("%s: %v, %v", name, got, err)
		}
	}
	if _, err := DecodeData(make([]byte, MaxDataBytes+1)); !errors.Is(err, ErrData) {
		t.Errorf("too long: %v", err)
	}
}

func TestPutRefuses(t *testing.T) {
	r := &Replica{Blocks: blocks{}, Index: clock.NewIndex()}
	put := Op{Key: "k", Value: value("v")}
	for name, ops := range map[string][]Op{"none": nil, "two": {put, put}} {
		if w, err := r.Put(t.Context(), nil, ops, false); err == nil {
			t.Errorf("%s: %v", name, w)
		}
	}
	if w, err := r.Put(t.Context(), nil, []Op{{Del: true, Key: "k"}}, true); err == nil {
		t.Errorf("del in a batch: %v", w)
	}
	if w, err := r.Put(t.Context(), nil, []Op{{Key: "é", Value: value("v")}}, false); !errors.Is(err, ErrKey) {
		t.Errorf("bad key: %v, %v", w, err)
	}
	if _, err := r.Root(t.Context(), nil); err == nil {
		t.Error("the empty head has a root")
	}
	if w, err := r.Put(t.Context(), nil, []Op{{Del: true, Key: "k"}}, false); err != nil || w.Event != nil || len(w.Additions) > 0 {
		t.Errorf("del in an empty ledger: %v, %v", w, err)
	}
	if w, err := r.Put(t.Context(), nil, nil, true); err != nil || w.Event == nil || len(w.Additions) != 1 || w.Tree.Root() != emptyShard.cid {
		t.Errorf("empty batch in an empty ledger: %v, %v", w, err)
	}
}

func TestCacheIsBounded(t *testing.T) {
	store := &counted{blocks: blocks{}}
	for _, size := range []int{0, 1, 7, 64} {
		cache := NewCache(size)
		tree := Empty(store, cache)
		for i, k := range keysOf("hex", 600, 1) {
			edit := tree.Edit()
			must(t, edit.Put(t.Context(), k, value("v")))
			r := edit.Commit()
			store.put(t, r.Additions...)
			tree = r.Tree.Stored()
			if n := cache.Len(); n > size || cache.sizeBytes > size*shardBytes {
				t.Fatalf("%d shards, %d bytes in a cache of %d", n, cache.sizeBytes, size)
			}
			checkRings(t, cache)
			if i%50 == 0 {
				for e, err := range tree.Entries(t.Context(), Range{}) {
					if err != nil || e.Value != value("v") {
						t.Fatal(e, err)
					}
				}
			}
		}
	}
	cache := NewCache(1 << 20)
	tree := filledIn(t, cache)
	store.reads = 0
	for range 100 {
		edit := tree.Edit()
		must(t, edit.Put(t.Context(), "key", value(fmt.Sprint(rand.Int()))))
		tree = edit.Commit().Tree.Stored()
	}
	if store.reads != 0 {
		t.Errorf("%d reads of what a large cache has", store.reads)
	}
	for i := range 3 * maxReplaced {
		edit := tree.Edit()
		must(t, edit.Put(t.Context(), "key", value(fmt.Sprint(i))))
		tree = edit.Commit().Tree.Stored()
	}
	if cache.replaced != maxReplaced {
		t.Errorf("%d replaced shards, want %d", cache.replaced, maxReplaced)
	}
	checkRings(t, cache)
}

func filledIn(t testing.TB, cache *Cache) Tree {
	edit := Empty(nil, cache).Edit()
	for _, k := range keysOf("hex", 200, 1) {
		must(t, edit.Put(t.Context(), k, value("v")))
	}
	return edit.Commit().Tree.Stored()
}

func checkRings(t *testing.T, c *Cache) {
	t.Helper()
	n, size := 0, 0
	for ring := range int32(2) {
		length := 0
		for i := c.cells[ring].next; i != ring; i = c.cells[i].next {
			length++
			size += c.cells[i].sizeBytes
			if c.cells[c.cells[i].next].prev != i || c.cells[i].ring != ring || c.byLink[linkOf(c.cells[i].shard.cid)] != i {
				t.Fatalf("cell %d is not where it belongs", i)
			}
		}
		if ring == replaced && length != c.replaced {
			t.Fatalf("%d replaced shards, counted %d", length, c.replaced)
		}
		n += length
	}
	if n != len(c.byLink) || size != c.sizeBytes {
		t.Fatalf("%d shards of %d bytes, counted %d of %d", n, size, len(c.byLink), c.sizeBytes)
	}
}

// Readers of old and new trees, while one goroutine goes on editing.
func TestReadersBesideAnEditor(t *testing.T) {
	cache := NewCache(50)
	var mu sync.Mutex
	store := &locked{blocks: blocks{}}
	trees := []Tree{Empty(store, cache)}
	current := func(i int) Tree {
		mu.Lock()
		defer mu.Unlock()
		return trees[i%len(trees)]
	}
	var readers sync.WaitGroup
	keys := keysOf("time", 200, 1)
	for r := range 3 {
		readers.Go(func() {
			for i := range 200 {
				tree := current(i * (r + 1))
				n := 0
				for e, err := range tree.Entries(t.Context(), Range{}) {
					if err != nil || e.Value != value(e.Key) {
						t.Errorf("%v, %v", e, err)
						return
					}
					n++
				}
			}
		})
	}
	for _, k := range keys {
		edit := current(len(trees) - 1).Edit()
		must(t, edit.Put(t.Context(), k, value(k)))
		r := edit.Commit()
		if len(trees)%2 == 0 {
			store.add(t, r.Additions)
			r.Tree = r.Tree.Stored()
		}
		store.add(t, r.Additions)
		mu.Lock()
		trees = append(trees, r.Tree)
		mu.Unlock()
	}
	readers.Wait()
	for i, tree := range trees {
		n := 0
		for _, err := range tree.Entries(t.Context(), Range{}) {
			must(t, err)
			n++
		}
		if n != i {
			t.Errorf("tree %d has %d keys", i, n)
		}
	}
}

type locked struct {
	mu sync.Mutex
	blocks
}

func (l *locked) Block(ctx context.Context, c cid.Cid) ([]byte, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.blocks.Block(ctx, c)
}

func (l *locked) add(t testing.TB, added []car.Block) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.blocks.put(t, added...)
}

func TestGenesis(t *testing.T) {
	v := loadVectors().FireproofGenesis
	r := &Replica{Blocks: blocks{}, Index: clock.NewIndex()}
	w, err := r.Put(t.Context(), nil, []Op{{Key: GenesisKey, Value: GenesisDoc}}, false)
	must(t, err)
	for _, c := range []struct{ what, want, got string }{
		{"key", v.Key, GenesisKey},
		{"document", v.DocCid, GenesisDoc.String()},
		{"root", v.Root, GenesisRoot.String()},
		{"root of the put", v.Root, w.Tree.Root().String()},
		{"event", v.EventCid, GenesisEvent.String()},
		{"event of the put", v.EventCid, w.Event.CID.String()},
		{"event bytes", v.EventBytes, fmt.Sprintf("%x", w.Event.Data)},
	} {
		if c.want != c.got {
			t.Errorf("%s %s, want %s", c.what, c.got, c.want)
		}
	}
	for i, b := range w.Additions {
		if b.CID.String() != v.Additions[i].CID || fmt.Sprintf("%x", b.Data) != v.Additions[i].Bytes {
			t.Errorf("addition %d is %s", i, b.CID)
		}
	}
	all := GenesisBlocks()
	for _, b := range all {
		if dagcbor.Sum(b.Data) != b.CID {
			t.Errorf("block %s has the hash %s", b.CID, dagcbor.Sum(b.Data))
		}
	}
	plain := car.Append(nil, []cid.Cid{GenesisHeader}, all)
	if name := car.NameOf(plain); name != GenesisName {
		t.Errorf("CAR %s, want %s", name, GenesisName)
	}
}
