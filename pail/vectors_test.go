package pail

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/ipfs/go-cid"

	"fpnode/clock"
	"fpnode/internal/car"
	"fpnode/internal/dagcbor"
)

// The vectors were made by @web3-storage/pail 0.6.2 itself. A value "s" stands
// for the CID, version 1, raw, of the text s; an op is [put, key, value] or
// [del, key].
type vectors struct {
	Shards []struct {
		Name, Prefix, CID, Bytes string
		Entries                  [][2]json.RawMessage
	}
	Pail []struct {
		Name, Root  string
		Ops         [][]string
		BlocksAdded int
		BytesAdded  int
		Steps       []vectorStep
		Errors      []vectorStep
		Blocks      map[string]string
		Checkpoints [][2]any
		Entries     [][2]string
	}
	Batch []struct {
		Name                                     string
		Initial, Puts                            [][]string
		InitialRoot, Root, SequentialRoot, Error string
		Additions, Removals                      []string
	}
	CRDT []struct {
		Name                string
		Additions, Removals []string
		EventCreated        *bool
		SecondEventCreated  *bool
		Blocks              map[string]string
		Events              []struct {
			CID, Type, Root string
			Parents         []string
		}
		Evaluations []vectorEvaluation
	}
	CRDTFuzz []struct {
		Name        string
		Replicas    int
		Log         [][]json.RawMessage
		Evaluations []vectorEvaluation
	}
	FireproofGenesis struct {
		Key, DocCid, DocBytes, Root, EventCid, EventBytes string
		Additions                                         []struct{ CID, Bytes string }
	}
	FireproofLedger struct {
		Observed, Roots []string
		Blocks          map[string]string
	}
}

type vectorStep struct {
	Op                  []string
	Root, Error         string
	Additions, Removals []string
}

type vectorEvaluation struct {
	Head                []string
	Ancestor, Root      string
	Replay              []string
	Additions, Removals []string
	Entries             [][2]string
	Error               string
}

var loadVectors = sync.OnceValue(func() vectors {
	b, err := os.ReadFile("testdata/vectors.json")
	if err != nil {
		panic(err)
	}
	var v vectors
	if err := json.Unmarshal(b, &v); err != nil {
		panic(err)
	}
	return v
})

// blocks is a store of blocks in memory. It checks what is put.
type blocks map[cid.Cid][]byte

func (b blocks) Block(_ context.Context, c cid.Cid) ([]byte, error) {
	if block, ok := b[c]; ok {
		return block, nil
	}
	return nil, &clock.MissingError{CID: c}
}

func (b blocks) put(t testing.TB, added ...car.Block) {
	t.Helper()
	for _, block := range added {
		if got := dagcbor.Sum(block.Data); got != block.CID {
			t.Fatalf("block %s has the hash %s", block.CID, got)
		}
		b[block.CID] = block.Data
	}
}

func value(seed string) cid.Cid { return dagcbor.SumCodec(cid.Raw, []byte(seed)) }

func applyVector(ctx context.Context, e *Edit, op []string) error {
	if op[0] == "del" {
		return e.Del(ctx, op[1])
	}
	return e.Put(ctx, op[1], value(op[2]))
}

func texts(cids []cid.Cid) []string {
	out := make([]string, len(cids))
	for i, c := range cids {
		out[i] = c.String()
	}
	return out
}

func blockTexts(added []car.Block) []string {
	out := make([]string, len(added))
	for i, b := range added {
		out[i] = b.CID.String()
	}
	return out
}

func parseAll(t testing.TB, all []string) []cid.Cid {
	t.Helper()
	out := make([]cid.Cid, len(all))
	for i, s := range all {
		out[i] = cid.MustParse(s)
	}
	return out
}

func sorted(s []string) []string {
	s = slices.Clone(s)
	slices.Sort(s)
	return s
}

// diff compares slices, empty and nil ones being the same.
func diff[T any](t *testing.T, what string, want, got []T) {
	t.Helper()
	if len(want) == 0 && len(got) == 0 {
		return
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("%s (-want +got):\n%s", what, d)
	}
}

func entries(t *testing.T, tree Tree) [][2]string {
	t.Helper()
	var out [][2]string
	for e, err := range tree.Entries(t.Context(), Range{}) {
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, [2]string{e.Key, e.Value.String()})
	}
	return out
}

func fromHex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func encodeDraft(prefix string, entries ...entry) []byte {
	d := &draft{prefix: prefix}
	for _, e := range entries {
		d.entries = append(d.entries, slot{entry: e})
	}
	return d.shard().block()
}

// encodeAgain encodes what has been decoded.
func encodeAgain(s *shard) []byte {
	var entries []entry
	for i := range s.len() {
		key, child, value := s.entry(i).parts()
		entries = append(entries, appendEntry(nil, string(key), child, value))
	}
	return encodeDraft(string(s.prefix()), entries...)
}

func TestShardVectors(t *testing.T) {
	for _, v := range loadVectors().Shards {
		t.Run(v.Name, func(t *testing.T) {
			block := fromHex(t, v.Bytes)
			c := dagcbor.Sum(block)
			if c.String() != v.CID {
				t.Fatalf("CID %s, want %s", c, v.CID)
			}
			var encoded []entry
			for _, e := range v.Entries {
				var key string
				var x struct{ Shard, Value string }
				if json.Unmarshal(e[0], &key) != nil || json.Unmarshal(e[1], &x) != nil {
					t.Fatal("bad vector")
				}
				var child, val []byte
				if x.Shard != "" {
					child = cid.MustParse(x.Shard).Bytes()
				}
				if x.Value != "" {
					val = cid.MustParse(x.Value).Bytes()
				}
				encoded = append(encoded, appendEntry(nil, key, child, val))
			}
			if got := encodeDraft(v.Prefix, encoded...); hex.EncodeToString(got) != v.Bytes {
				t.Errorf("encoded %x, want %s", got, v.Bytes)
			}
			got, err := decodeShard(c, block)
			if err != nil {
				t.Fatal(err)
			}
			if again := encodeAgain(got); string(again) != string(block) {
				t.Errorf("decoded and encoded: %x", again)
			}
		})
	}
}

func TestPailVectors(t *testing.T) {
	for _, v := range loadVectors().Pail {
		t.Run(v.Name, func(t *testing.T) {
			ctx := t.Context()
			store := blocks{}
			tree := Empty(store, NewCache(8))
			store[tree.Root()] = emptyShard.block()
			steps := v.Steps
			detailed := len(v.Blocks) > 0
			var failed []vectorStep
			blocksAdded, bytesAdded := 0, 0
			checkpoints := v.Checkpoints
			for i, op := range v.Ops {
				edit := tree.Edit()
				if err := applyVector(ctx, edit, op); err != nil {
					failed = append(failed, vectorStep{Op: op, Error: err.Error()})
					if detailed {
						if d := cmp.Diff(steps[0], failed[len(failed)-1]); d != "" {
							t.Fatalf("op %d (-want +got):\n%s", i, d)
						}
						steps = steps[1:]
					}
					continue
				}
				r := edit.Commit()
				store.put(t, r.Additions...)
				tree = r.Tree.Stored()
				blocksAdded += len(r.Additions)
				for _, b := range r.Additions {
					bytesAdded += len(b.Data)
				}
				if detailed {
					diff(t, fmt.Sprintf("op %d %q: additions", i, op), steps[0].Additions, blockTexts(r.Additions))
					diff(t, fmt.Sprintf("op %d %q: removals", i, op), steps[0].Removals, texts(r.Removals))
					if got := tree.Root().String(); got != steps[0].Root {
						t.Fatalf("op %d %q: root %s, want %s", i, op, got, steps[0].Root)
					}
					steps = steps[1:]
				}
				if len(checkpoints) > 0 && checkpoints[0][0] == float64(i+1) {
					if got := tree.Root().String(); got != checkpoints[0][1] {
						t.Fatalf("after op %d: root %s, want %s", i, got, checkpoints[0][1])
					}
					checkpoints = checkpoints[1:]
				}
			}
			if len(steps) > 0 || len(checkpoints) > 0 {
				t.Errorf("%d steps and %d checkpoints not reached", len(steps), len(checkpoints))
			}
			if !detailed {
				diff(t, "errors", v.Errors, failed)
			}
			if got := tree.Root().String(); got != v.Root {
				t.Errorf("root %s, want %s", got, v.Root)
			}
			if blocksAdded != v.BlocksAdded || bytesAdded != v.BytesAdded {
				t.Errorf("added %d blocks, %d bytes; want %d, %d", blocksAdded, bytesAdded, v.BlocksAdded, v.BytesAdded)
			}
			if v.Entries != nil {
				diff(t, "entries", v.Entries, entries(t, tree))
			}
			if detailed {
				got := map[string]string{}
				for c, b := range store {
					got[c.String()] = hex.EncodeToString(b)
				}
				if d := cmp.Diff(v.Blocks, got); d != "" {
					t.Errorf("blocks (-want +got):\n%s", d)
				}
			}
		})
	}
}

// All operations of a sequence in one Edit give the root of one Edit for each.
func TestPailVectorsInOneEdit(t *testing.T) {
	for _, v := range loadVectors().Pail {
		t.Run(v.Name, func(t *testing.T) {
			edit := Empty(nil, nil).Edit()
			for _, op := range v.Ops {
				if err := applyVector(t.Context(), edit, op); err != nil && !errors.Is(err, ErrKey) {
					t.Fatal(err)
				}
			}
			if got := edit.Commit().Tree.Root().String(); got != v.Root {
				t.Errorf("root %s, want %s", got, v.Root)
			}
		})
	}
}

func TestBatchVectors(t *testing.T) {
	for _, v := range loadVectors().Batch {
		t.Run(v.Name, func(t *testing.T) {
			ctx := t.Context()
			store := blocks{}
			edit := Empty(store, nil).Edit()
			for _, op := range v.Initial {
				if err := applyVector(ctx, edit, op); err != nil {
					t.Fatal(err)
				}
			}
			first := edit.Commit()
			store.put(t, first.Additions...)
			if got := first.Tree.Root().String(); got != v.InitialRoot {
				t.Fatalf("initial root %s, want %s", got, v.InitialRoot)
			}
			edit = first.Tree.Stored().Edit()
			failed := ""
			for _, op := range v.Puts {
				if err := applyVector(ctx, edit, op); err != nil {
					failed = err.Error()
				}
			}
			if failed != v.Error {
				t.Errorf("error %q, want %q", failed, v.Error)
			}
			r := edit.Commit()
			if got := r.Tree.Root().String(); got != v.Root || v.Root != v.SequentialRoot {
				t.Errorf("root %s, want %s", got, v.Root)
			}
			diff(t, "additions", v.Additions, blockTexts(r.Additions))
			diff(t, "removals", v.Removals, texts(r.Removals))
		})
	}
}

// newReplica returns a Replica of a store, with every event in it.
func newReplica(t testing.TB, store blocks, heads ...cid.Cid) *Replica {
	t.Helper()
	x := clock.NewIndex()
	if _, err := x.Fill(t.Context(), store, heads); err != nil {
		t.Fatal(err)
	}
	return &Replica{Blocks: store, Index: x, Cache: NewCache(100)}
}

// evaluate compares what a head stands for. Where JavaScript loses blocks (the
// "ABA" vectors) everything is compared but what follows from the loss.
func evaluate(t *testing.T, r *Replica, v vectorEvaluation) {
	t.Helper()
	ctx := t.Context()
	heads := parseAll(t, v.Head)
	ancestor, order, err := r.Index.Replay(heads)
	if err != nil {
		t.Fatal(err)
	}
	if ancestor.String() != v.Ancestor {
		t.Errorf("ancestor %s, want %s", ancestor, v.Ancestor)
	}
	if common, err := r.Index.CommonAncestor(heads); err != nil || common != ancestor {
		t.Errorf("CommonAncestor is %s, %v, Replay's is %s", common, err, ancestor)
	}
	diff(t, "replay", v.Replay, texts(order))
	result, err := r.Root(ctx, heads)
	if err != nil {
		t.Fatal(err)
	}
	if got := result.Tree.Root().String(); got != v.Root {
		t.Errorf("root %s, want %s", got, v.Root)
	}
	if v.Error != "" {
		if !strings.HasPrefix(v.Error, "missing block: ") {
			t.Errorf("unexpected error in the vector: %s", v.Error)
		}
		if len(heads) == 1 { // JavaScript stored an event, but not all of its map
			if result, err = r.Check(ctx, heads[0]); err != nil {
				t.Fatal(err)
			}
		}
		whole(t, r.Blocks, result)
		return
	}
	diff(t, "entries", v.Entries, entries(t, result.Tree))
	if v.Additions != nil {
		diff(t, "additions", v.Additions, sorted(blockTexts(result.Additions)))
		diff(t, "removals", v.Removals, sorted(texts(result.Removals)))
	}
}

// whole fails unless the old blocks and the additions hold the whole tree.
func whole(t *testing.T, f clock.Fetcher, r Result) {
	t.Helper()
	all := blocks{}
	for c, b := range f.(blocks) {
		all[c] = b
	}
	all.put(t, r.Additions...)
	for _, err := range Load(all, nil, r.Tree.Root()).Shards(t.Context()) {
		if err != nil {
			t.Error(err)
		}
	}
}

func TestCRDTVectors(t *testing.T) {
	for _, v := range loadVectors().CRDT {
		t.Run(v.Name, func(t *testing.T) {
			store := blocks{}
			for c, b := range v.Blocks {
				store.put(t, car.Block{CID: cid.MustParse(c), Data: fromHex(t, b)})
			}
			for _, e := range v.Evaluations {
				x := clock.NewIndex()
				heads := parseAll(t, e.Head)
				if _, err := x.Fill(t.Context(), store, heads); err != nil {
					var missing *clock.MissingError
					if !errors.As(err, &missing) || missing.Error() != e.Error {
						t.Errorf("error %v, want %q", err, e.Error)
					}
					continue
				}
				evaluate(t, &Replica{Blocks: store, Index: x}, e)
			}
			if strings.Contains(v.Name, "missing ancestor") {
				return
			}
			r := &Replica{Blocks: store, Index: clock.NewIndex()}
			for _, e := range v.Events {
				event, data, err := r.Event(t.Context(), cid.MustParse(e.CID))
				if err != nil {
					t.Fatal(err)
				}
				if _, err := r.Index.Add(event.CID, event.Parents); err != nil {
					t.Fatal(err)
				}
				diff(t, "parents", sorted(e.Parents), sorted(texts(event.Parents)))
				if data.Root.String() != e.Root {
					t.Errorf("root %s, want %s", data.Root, e.Root)
				}
				block := store[event.CID]
				if c, again := clock.Encode(data.Encode(), event.Parents); c != event.CID || string(again) != string(block) {
					t.Errorf("event encoded again: %x, want %x", again, block)
				}
				if strings.Contains(v.Name, "redundant") && len(event.Parents) > 1 {
					continue // its author did not compute the root
				}
				if _, err := r.Check(t.Context(), event.CID); err != nil {
					t.Error(err)
				}
			}
		})
	}
}

// The events that JavaScript made, made again, with the same blocks.
func TestCRDTWrites(t *testing.T) {
	find := func(name string) (r *Replica, additions, removals []string) {
		for _, v := range loadVectors().CRDT {
			if strings.HasPrefix(v.Name, name) {
				return &Replica{Blocks: blocks{}, Index: clock.NewIndex()}, v.Additions, v.Removals
			}
		}
		t.Fatalf("no vector %q", name)
		return
	}
	put := func(r *Replica, heads []cid.Cid, batch bool, ops ...Op) Write {
		w, err := r.Put(t.Context(), heads, ops, batch)
		if err != nil {
			t.Fatal(err)
		}
		r.Blocks.(blocks).put(t, w.Additions...)
		if w.Event != nil {
			r.Blocks.(blocks).put(t, *w.Event)
			if _, err := r.Index.Add(w.Event.CID, heads); err != nil {
				t.Fatal(err)
			}
		}
		return w
	}
	t.Run("genesis", func(t *testing.T) {
		r, additions, removals := find("genesis put")
		w := put(r, nil, false, Op{Key: "base", Value: value("g")})
		diff(t, "additions", additions, blockTexts(w.Additions))
		diff(t, "removals", removals, texts(w.Removals))
	})
	t.Run("same value", func(t *testing.T) {
		r, _, _ := find("put of same value")
		g := put(r, nil, false, Op{Key: "base", Value: value("g")})
		again := put(r, g.Head, false, Op{Key: "base", Value: value("g")})
		if again.Event != nil || !slices.Equal(again.Head, g.Head) || len(again.Additions) > 0 {
			t.Errorf("a put that changes nothing made %v", again)
		}
	})
	t.Run("batch", func(t *testing.T) {
		r, additions, _ := find("batch on empty head")
		w := put(r, nil, true, Op{Key: "a", Value: value("1")}, Op{Key: "ab", Value: value("2")})
		diff(t, "additions", additions, blockTexts(w.Additions))
		again := put(r, w.Head, true, Op{Key: "a", Value: value("1")})
		if again.Event == nil || again.Tree.Root() != w.Tree.Root() {
			t.Errorf("a batch that changes nothing made %v", again)
		}
	})
}

// Every operation of the fuzz logs, replayed, gives the events and heads that
// JavaScript got.
func TestCRDTFuzzVectors(t *testing.T) {
	for _, v := range loadVectors().CRDTFuzz {
		t.Run(v.Name, func(t *testing.T) {
			ctx := t.Context()
			store := blocks{}
			r := &Replica{Blocks: store, Index: clock.NewIndex(), Cache: NewCache(100)}
			put := func(heads []cid.Cid, batch bool, ops ...Op) Write {
				w, err := r.Put(ctx, heads, ops, batch)
				if err != nil {
					t.Fatal(err)
				}
				store.put(t, w.Additions...)
				if w.Event == nil {
					return w
				}
				store.put(t, *w.Event)
				if _, err := r.Index.Add(w.Event.CID, heads); err != nil {
					t.Fatal(err)
				}
				if next := r.Index.Advance(heads, w.Event.CID); !slices.Equal(next, w.Head) {
					t.Fatalf("Advance gives %v, Put %v", next, w.Head)
				}
				return w
			}
			g := put(nil, false, Op{Key: "base", Value: value("g")})
			heads := make([][]cid.Cid, v.Replicas)
			for i := range heads {
				heads[i] = g.Head
			}
			for i, raw := range v.Log {
				var kind string
				var a int
				must(t, json.Unmarshal(raw[0], &kind))
				must(t, json.Unmarshal(raw[1], &a))
				switch kind {
				case "merge":
					var b int
					var want []string
					must(t, json.Unmarshal(raw[2], &b))
					must(t, json.Unmarshal(raw[3], &want))
					for _, c := range heads[b] {
						heads[a] = r.Index.Advance(heads[a], c)
					}
					diff(t, fmt.Sprintf("op %d: head", i), sorted(want), sorted(texts(heads[a])))
				case "put", "batch":
					var ops []Op
					rest := raw[3:]
					if kind == "put" {
						var key, seed string
						must(t, json.Unmarshal(raw[2], &key))
						must(t, json.Unmarshal(raw[3], &seed))
						ops, rest = []Op{{Key: key, Value: value(seed)}}, raw[4:]
					} else {
						var puts [][2]string
						must(t, json.Unmarshal(raw[2], &puts))
						for _, p := range puts {
							ops = append(ops, Op{Key: p[0], Value: value(p[1])})
						}
					}
					var event, root string
					must(t, json.Unmarshal(rest[0], &event))
					must(t, json.Unmarshal(rest[1], &root))
					w := put(heads[a], kind == "batch", ops...)
					if w.Event == nil || w.Event.CID.String() != event || w.Tree.Root().String() != root {
						t.Fatalf("op %d: event and root are not %s and %s", i, event, root)
					}
					heads[a] = w.Head
				default:
					t.Fatalf("unknown operation %q", kind)
				}
			}
			for _, e := range v.Evaluations {
				evaluate(t, r, e)
			}
		})
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// The events of put, bulk and del in a real ledger of Fireproof 0.24.19.
func TestFireproofLedgerVector(t *testing.T) {
	v := loadVectors().FireproofLedger
	store := blocks{}
	for c, b := range v.Blocks {
		store.put(t, car.Block{CID: cid.MustParse(c), Data: fromHex(t, b)})
	}
	doc := func(doc any) cid.Cid {
		b, err := dagcbor.Marshal(doc)
		must(t, err)
		c := dagcbor.Sum(b)
		if _, ok := store[c]; !ok {
			t.Fatalf("document %v is not in the vector", doc)
		}
		return c
	}
	type m = map[string]any
	steps := []struct {
		batch bool
		ops   []Op
	}{
		{false, []Op{{Key: GenesisKey, Value: GenesisDoc}}},
		{false, []Op{{Key: "doc-1", Value: doc(m{"doc": m{"_id": "doc-1", "a": 1}})}}},
		{true, []Op{{Key: "b1", Value: doc(m{"doc": m{"_id": "b1", "x": 1}})}, {Key: "b2", Value: doc(m{"doc": m{"_id": "b2", "x": 2}})}}},
		{false, []Op{{Key: "doc-1", Value: doc(m{"del": true})}}},
	}
	r := newReplica(t, store, parseAll(t, v.Observed[3:])...)
	var head []cid.Cid
	for i, s := range steps {
		w, err := r.Put(t.Context(), head, s.ops, s.batch)
		must(t, err)
		if w.Event.CID.String() != v.Observed[i] || w.Tree.Root().String() != v.Roots[i] {
			t.Errorf("step %d: event %s with root %s, want %s with %s", i, w.Event.CID, w.Tree.Root(), v.Observed[i], v.Roots[i])
		}
		head = w.Head
	}
}
