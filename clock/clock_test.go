package clock

import (
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/ipfs/go-cid"
	"pgregory.net/rapid"

	"fpnode/internal/dagcbor"
)

// TestMain makes the property tests try thousands of graphs.
func TestMain(m *testing.M) {
	flag.Parse()
	set := false
	flag.Visit(func(f *flag.Flag) { set = set || f.Name == "rapid.checks" })
	if !set {
		checks := "3000"
		if testing.Short() {
			checks = "300"
		}
		if err := flag.Set("rapid.checks", checks); err != nil {
			panic(err)
		}
	}
	os.Exit(m.Run())
}

func TestReplayIsTheWalkOfAllPaths(t *testing.T) {
	for _, size := range []struct{ least, most int }{{1, 10}, {10, 16}} {
		merges, redundant := 0, 0
		rapid.Check(t, func(t *rapid.T) {
			d := drawDAG(t, size.least, size.most)
			heads := drawHeads(t, d)
			x := d.index(t)
			budget := 200_000
			tail, err := d.naiveAncestor(heads, &budget)
			if err != nil {
				t.Skip("too many candidates")
			}
			want, err := d.naiveReplay(heads, tail, &budget)
			if err != nil {
				t.Skip("too many paths")
			}
			ancestor, order, err := x.Replay(d.set(heads...))
			if err != nil {
				t.Fatal(err)
			}
			if d.name[ancestor] != tail {
				t.Fatalf("ancestor of %v is %s, want %s", heads, d.name[ancestor], tail)
			}
			if got := d.list(order); got != strings.Join(want, " ") {
				t.Fatalf("replay of %v is %s, want %v", heads, got, want)
			}
			slices.Reverse(heads)
			again, order2, err := x.Replay(d.set(heads...))
			if err != nil || again != ancestor || !slices.Equal(order, order2) {
				t.Fatalf("another order of the heads gives %s %s, %v", d.name[again], d.list(order2), err)
			}
			inner := 0
			for _, e := range want {
				if len(d.parents[e]) > 1 {
					inner++
				}
			}
			if inner > 1 {
				merges++
			}
			if slices.Contains(want, tail) {
				redundant++ // the walk went on past the ancestor
			}
		})
		if !testing.Short() && size.least > 1 && (merges < 500 || redundant < 50) {
			t.Errorf("only %d graphs with merges among the events replayed, %d with redundant parents", merges, redundant)
		}
		t.Logf("%d graphs with merges among the events replayed, %d with redundant parents", merges, redundant)
	}
}

func TestAdvanceKeepsTheMaximalEvents(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		d := drawDAG(t, 1, 14)
		x := d.index(t)
		var head []cid.Cid
		var seen []string
		// The events arrive in any order, as heads of other replicas do.
		for _, n := range rapid.Permutation(d.names).Draw(t, "order") {
			before := slices.Clone(head)
			next := x.Advance(head, d.cids[n])
			if !slices.Equal(head, before) {
				t.Fatalf("Advance changed its argument")
			}
			head = next
			seen = append(seen, n)
			if got, want := d.sorted(head), strings.Join(d.maximal(seen), " "); got != want {
				t.Fatalf("after %v the head is %s, want %s", seen, got, want)
			}
		}
		if got, want := d.sorted(x.Leaves()), d.sorted(head); got != want {
			t.Fatalf("leaves %s, head of all events %s", got, want)
		}
	})
}

func TestIsAncestor(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		d := drawDAG(t, 1, 14)
		x := d.index(t)
		b := rapid.SampledFrom(d.names).Draw(t, "b")
		all := d.ancestors(b)
		for _, a := range d.names {
			if got := x.IsAncestor(d.cids[a], d.cids[b]); got != all[a] {
				t.Fatalf("IsAncestor(%s, %s) is %v", a, b, got)
			}
		}
	})
}

// Whatever the order of delivery, the same events make the same graph.
func TestAddInAnyOrder(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		d := drawDAG(t, 1, 14)
		want := d.index(t)
		x := NewIndex()
		known := map[string]bool{}
		for _, n := range rapid.Permutation(d.names).Draw(t, "order") {
			integrated, err := x.Add(d.cids[n], d.set(d.parents[n]...))
			if err != nil {
				t.Fatal(err)
			}
			for _, c := range integrated {
				for _, p := range d.parents[d.name[c]] {
					if !known[p] {
						t.Fatalf("%s was integrated before its parent %s", d.name[c], p)
					}
				}
				if known[d.name[c]] {
					t.Fatalf("%s was integrated twice", d.name[c])
				}
				known[d.name[c]] = true
			}
			if again, err := x.Add(d.cids[n], d.set(d.parents[n]...)); again != nil || err != nil {
				t.Fatalf("adding %s again: %v, %v", n, again, err)
			}
			if x.Len() != len(known) {
				t.Fatalf("%d events, %d integrated", x.Len(), len(known))
			}
			for _, c := range x.Missing() {
				if known[d.name[c]] || x.pending[c] != nil {
					t.Fatalf("%s is here and missing", d.name[c])
				}
			}
			if (x.Pending() == 0) != (len(x.Missing()) == 0) {
				t.Fatalf("%d pending, %d missing", x.Pending(), len(x.Missing()))
			}
		}
		if x.Len() != len(d.names) || x.Pending() != 0 || x.pendingLinks != 0 || len(x.waiting) != 0 {
			t.Fatalf("%d events integrated, %d pending, %d links, %d awaited", x.Len(), x.Pending(), x.pendingLinks, len(x.waiting))
		}
		sameGraph(t, d, want, x)

		filled := NewIndex()
		integrated, err := filled.Fill(t.Context(), d, want.Leaves())
		if err != nil || len(integrated) != len(d.names) {
			t.Fatalf("Fill integrated %d, %v", len(integrated), err)
		}
		sameGraph(t, d, want, filled)
	})
}

func sameGraph(t *rapid.T, d *dag, x, y *Index) {
	if !slices.Equal(x.Leaves(), y.Leaves()) {
		t.Fatalf("leaves %s and %s", d.list(x.Leaves()), d.list(y.Leaves()))
	}
	for _, n := range d.names {
		c := d.cids[n]
		h1, _ := x.Height(c)
		h2, ok := y.Height(c)
		p1, _ := x.Parents(c)
		p2, _ := y.Parents(c)
		SortBytes(p1)
		SortBytes(p2)
		if !ok || h1 != h2 || !slices.Equal(p1, p2) {
			t.Fatalf("%s: heights %d and %d, parents %s and %s", n, h1, h2, d.list(p1), d.list(p2))
		}
		seq, _ := y.Seq(c)
		if y.At(seq) != c {
			t.Fatalf("event %d is %s, not %s", seq, y.At(seq), c)
		}
	}
	heads := d.set(drawHeads(t, d)...)
	a1, o1, err1 := x.Replay(heads)
	a2, o2, err2 := y.Replay(heads)
	if a1 != a2 || !slices.Equal(o1, o2) || err1 != nil || err2 != nil {
		t.Fatalf("replay of %s differs: %s and %s, %v, %v", d.list(heads), d.list(o1), d.list(o2), err1, err2)
	}
}

// With big weights and small ones the order is the same.
func TestReplayWithBigWeights(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		d := drawDAG(t, 1, 30)
		x := d.index(t)
		seqs, err := x.seqs(d.set(drawHeads(t, d)...))
		if err != nil {
			t.Fatal(err)
		}
		r := x.region(seqs, x.commonAncestor(seqs))
		small, ok := r.sortByUint64()
		if big := r.sortByBig(); !ok || !slices.Equal(small, big) {
			t.Fatalf("orders %v and %v", small, big)
		}
	})
}

// In a ladder two replicas both merge and both write, again and again. The
// number of paths doubles each time.
func TestReplayOfLadders(t *testing.T) {
	for _, rounds := range []int{4, 60, 63, 64, 200} {
		var drawing strings.Builder
		drawing.WriteString("g -> a0,b0\n")
		for i := 1; i < rounds; i++ {
			fmt.Fprintf(&drawing, "a%d,b%d -> a%d,b%d\n", i-1, i-1, i, i)
		}
		d := draw(drawing.String())
		x := d.index(t)
		heads := d.set(fmt.Sprint("a", rounds-1), fmt.Sprint("b", rounds-1))
		ancestor, order, err := x.Replay(heads) // would not end if it walked the paths
		if err != nil {
			t.Fatal(err)
		}
		events, visits, err := x.Walks(heads)
		if err != nil {
			t.Fatal(err)
		}
		if want := 2 * (math.Pow(2, float64(rounds)) - 1); events != 2*rounds || visits != want {
			t.Errorf("%d rounds: %d events and %g visits, want %d and %g", rounds, events, visits, 2*rounds, want)
		}
		if d.name[ancestor] != "g" {
			t.Errorf("%d rounds: ancestor %s", rounds, d.name[ancestor])
		}
		// Both events of a round weigh the same; with two parents, of which
		// neither is the genesis, none but the first round stops the walk.
		var want []string
		for i := range rounds {
			pair := d.set(fmt.Sprint("a", i), fmt.Sprint("b", i))
			SortText(pair)
			want = append(want, d.name[pair[0]], d.name[pair[1]])
		}
		if got := d.list(order); got != strings.Join(want, " ") {
			t.Errorf("%d rounds: order %s, want %v", rounds, got, want)
		}
	}
}

func TestReplayNeedsKnownHeads(t *testing.T) {
	d := draw("g -> a -> b")
	x := NewIndex()
	if _, err := x.Add(d.cids["g"], nil); err != nil {
		t.Fatal(err)
	}
	if _, err := x.Add(d.cids["b"], d.set("a")); err != nil {
		t.Fatal(err)
	}
	var missing *MissingError
	if _, _, err := x.Replay(d.set("g", "b")); !errors.As(err, &missing) || missing.CID != d.cids["b"] || !errors.Is(err, ErrMissing) {
		t.Errorf("error %v", err)
	}
	if _, err := x.CommonAncestor(nil); err == nil {
		t.Error("the empty head has an ancestor")
	}
	head := d.set("g")
	if got := x.Advance(head, d.cids["b"]); !slices.Equal(got, head) {
		t.Errorf("a pending event moved the head to %s", d.list(got))
	}
	if got := d.list(x.Missing()); got != "a" {
		t.Errorf("missing %q, want a", got)
	}
	x.Forget()
	if x.Pending() != 0 || len(x.Missing()) != 0 {
		t.Error("Forget left something")
	}
}

func TestSecondGenesisIsRefused(t *testing.T) {
	d := draw("g -> a\nx -> y\na,y -> m")
	x := NewIndex()
	for _, n := range []string{"g", "a"} {
		if _, err := x.Add(d.cids[n], d.set(d.parents[n]...)); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := x.Add(d.cids["x"], nil); !errors.Is(err, ErrGenesis) {
		t.Errorf("Add: %v", err)
	}
	if _, err := x.Fill(t.Context(), d, d.set("y")); !errors.Is(err, ErrGenesis) {
		t.Errorf("Fill: %v", err)
	}
	if x.Len() != 2 || x.Pending() != 0 {
		t.Errorf("%d events and %d pending after refusing", x.Len(), x.Pending())
	}
	empty := NewIndex()
	if _, err := empty.Fill(t.Context(), d, d.set("m")); !errors.Is(err, ErrGenesis) || empty.Len() != 0 {
		t.Errorf("Fill of both: %v, %d events", err, empty.Len())
	}
}

func TestFillIsAllOrNothing(t *testing.T) {
	d := draw("g -> a -> b -> c\na -> d")
	delete(d.blocks, d.cids["b"])
	x := NewIndex()
	_, err := x.Fill(t.Context(), d, d.set("d", "c"))
	var missing *MissingError
	if !errors.As(err, &missing) || missing.CID != d.cids["b"] {
		t.Errorf("error %v, want that b is missing", err)
	}
	if x.Len() != 0 || x.Pending() != 0 {
		t.Errorf("%d events, %d pending", x.Len(), x.Pending())
	}
	// Events that were pending come in with those that Fill finds.
	if _, err := x.Add(d.cids["d"], d.set("a")); err != nil {
		t.Fatal(err)
	}
	integrated, err := x.Fill(t.Context(), d, d.set("a"))
	if err != nil || d.list(integrated) != "g a d" {
		t.Errorf("integrated %s, %v", d.list(integrated), err)
	}
}

func TestAdvanceVectors(t *testing.T) {
	var v struct {
		Clock []struct {
			Head   []string
			Event  string
			Result []string
		}
		ClockEvents map[string]struct{ CID, Bytes string }
	}
	readVectors(t, &v)
	d := &dag{parents: map[string][]string{}, cids: map[string]cid.Cid{}, name: map[cid.Cid]string{}}
	for n, e := range v.ClockEvents {
		c := cid.MustParse(e.CID)
		d.cids[n], d.name[c] = c, n
	}
	x := NewIndex()
	for n, e := range v.ClockEvents {
		block, err := hex.DecodeString(e.Bytes)
		if err != nil {
			t.Fatal(err)
		}
		event, err := Decode(d.cids[n], block)
		if err != nil {
			t.Fatal(err)
		}
		if c, again := Encode(event.Data, event.Parents); c != event.CID || string(again) != string(block) {
			t.Errorf("%s encoded again: %s %x", n, c, again)
		}
		if n == "x" {
			continue
		}
		if _, err := x.Add(event.CID, event.Parents); err != nil {
			t.Fatal(err)
		}
	}
	if len(v.Clock) != 17 {
		t.Fatalf("%d vectors", len(v.Clock))
	}
	for _, c := range v.Clock {
		if c.Event == "x" {
			// x has no parents. JavaScript takes it into the head and can
			// never merge that head; we refuse it.
			if _, err := x.Add(d.cids["x"], nil); !errors.Is(err, ErrGenesis) {
				t.Errorf("adding a second genesis: %v", err)
			}
			continue
		}
		slices.Sort(c.Result)
		if got := d.sorted(x.Advance(d.set(c.Head...), d.cids[c.Event])); got != strings.Join(c.Result, " ") {
			t.Errorf("advance of %v by %s: %s, want %v", c.Head, c.Event, got, c.Result)
		}
	}
}

// The graphs of the merge vectors: ancestor and order of replay.
func TestReplayVectors(t *testing.T) {
	var v struct {
		CRDT []struct {
			Name        string
			Blocks      map[string]string
			Evaluations []struct {
				Head, Replay    []string
				Ancestor, Error string
			}
		}
	}
	readVectors(t, &v)
	parse := func(all []string) []cid.Cid {
		out := make([]cid.Cid, len(all))
		for i, s := range all {
			out[i] = cid.MustParse(s)
		}
		return out
	}
	evaluations := 0
	for _, w := range v.CRDT {
		d := &dag{blocks: map[cid.Cid][]byte{}}
		for c, b := range w.Blocks {
			block, err := hex.DecodeString(b)
			if err != nil {
				t.Fatal(err)
			}
			d.blocks[cid.MustParse(c)] = block
		}
		for _, e := range w.Evaluations {
			x := NewIndex()
			if _, err := x.Fill(t.Context(), d, parse(e.Head)); err != nil {
				var missing *MissingError
				if !errors.As(err, &missing) || missing.Error() != e.Error {
					t.Errorf("%s: error %v, want %q", w.Name, err, e.Error)
				}
				continue
			}
			evaluations++
			ancestor, order, err := x.Replay(parse(e.Head))
			if err != nil || ancestor.String() != e.Ancestor || !slices.Equal(order, parse(e.Replay)) {
				t.Errorf("%s: replay of %v: %s, %v, %v", w.Name, e.Head, ancestor, order, err)
			}
		}
	}
	if evaluations < 40 {
		t.Errorf("only %d evaluations", evaluations)
	}
}

func readVectors(t *testing.T, v any) {
	t.Helper()
	b, err := os.ReadFile("../pail/testdata/vectors.json")
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(b, v); err != nil {
		t.Fatal(err)
	}
}

func TestCompareTextIsTheOrderOfStrings(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		gen := rapid.Custom(func(t *rapid.T) cid.Cid {
			if rapid.IntRange(0, 9).Draw(t, "version") == 0 {
				c := dagcbor.Sum([]byte{rapid.Byte().Draw(t, "v0")})
				return cid.NewCidV0(c.Hash())
			}
			codec := rapid.SampledFrom([]uint64{cid.DagCBOR, cid.Raw, 0x300539}).Draw(t, "codec")
			h := append([]byte{0x12, 32}, rapid.SliceOfN(rapid.SampledFrom([]byte{0, 1, 0x7f, 0x80, 0xd0, 0xd7, 0xff}), 32, 32).Draw(t, "hash")...)
			return cid.NewCidV1(codec, h)
		})
		a, b := gen.Draw(t, "a"), gen.Draw(t, "b")
		if rapid.Bool().Draw(t, "near") {
			h := slices.Clone([]byte(a.Hash()))
			h[2+rapid.IntRange(0, 31).Draw(t, "byte")] ^= 1 << rapid.IntRange(0, 7).Draw(t, "bit")
			if a.Version() == 1 {
				b = cid.NewCidV1(a.Type(), h)
			}
		}
		if got, want := sign(CompareText(a, b)), strings.Compare(a.String(), b.String()); got != want {
			t.Fatalf("CompareText(%s, %s) is %d, want %d", a, b, got, want)
		}
	})
}

func sign(n int) int { return min(1, max(-1, n)) }

func TestDecodeRefuses(t *testing.T) {
	parent := dagcbor.Sum(nil)
	good := func(data, parents any) []byte {
		b, err := dagcbor.Marshal(map[string]any{"data": data, "parents": parents})
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	if _, err := Decode(parent, good(1, []any{parent})); err != nil {
		t.Fatal(err)
	}
	many := make([]any, MaxParents+1)
	for i := range many {
		many[i] = parent
	}
	if _, err := Decode(parent, good(1, many[1:])); err != nil {
		t.Errorf("an event with %d parents: %v", MaxParents, err)
	}
	three, _ := dagcbor.Marshal(map[string]any{"data": 1, "parents": []any{}, "x": 1})
	other, _ := dagcbor.Marshal(map[string]any{"data": 1, "peers": []any{}})
	for name, block := range map[string][]byte{
		"too many parents": good(1, many),
		"parent not a CID": good(1, []any{1}),
		"parent is raw":    good(1, []any{dagcbor.SumCodec(cid.Raw, nil)}),
		"no list":          good(1, "none"),
		"three fields":     three,
		"another field":    other,
		"not a map":        {1},
		"nothing":          nil,
		"too long":         make([]byte, MaxEventBytes+1),
		"trailing":         append(good(1, []any{}), 0),
	} {
		if e, err := Decode(parent, block); !errors.Is(err, ErrEvent) {
			t.Errorf("%s: decoded %v, %v", name, e, err)
		}
	}
}

func FuzzDecode(f *testing.F) {
	d := draw("g -> a,b -> c")
	for _, b := range d.blocks {
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, block []byte) {
		c := dagcbor.Sum(block)
		e, err := Decode(c, block)
		if err != nil {
			return
		}
		again, b := Encode(e.Data, e.Parents)
		if slices.IsSortedFunc(e.Parents, func(a, b cid.Cid) int { return strings.Compare(a.KeyString(), b.KeyString()) }) {
			if again != c || string(b) != string(block) {
				t.Errorf("%x decoded and encoded: %x", block, b)
			}
			return
		}
		if second, err := Decode(again, b); err != nil || len(second.Parents) != len(e.Parents) {
			t.Errorf("%x encoded with sorted parents: %v", block, err)
		}
	})
}

// eventOf makes an event CID out of a number.
func eventOf(n int) cid.Cid { return dagcbor.Sum(fmt.Append(nil, n)) }

func TestPendingIsBounded(t *testing.T) {
	x := NewIndex()
	missing := []cid.Cid{eventOf(-1)}
	for i := range MaxPending {
		if _, err := x.Add(eventOf(i), missing); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := x.Add(eventOf(MaxPending), missing); !errors.Is(err, ErrLimit) {
		t.Errorf("one more: %v", err)
	}
	x.Forget()
	wide := make([]cid.Cid, MaxParents)
	for i := range wide {
		wide[i] = eventOf(-1 - i)
	}
	var err error
	added := 0
	for err == nil {
		if _, err = x.Add(eventOf(added), wide); err == nil {
			added++
		}
	}
	if !errors.Is(err, ErrLimit) || added != MaxPendingLinks/MaxParents {
		t.Errorf("%d events of %d parents, then %v", added, MaxParents, err)
	}
	if _, err := NewIndex().Add(eventOf(0), append(wide, eventOf(1))); !errors.Is(err, ErrLimit) {
		t.Errorf("an event of %d parents: %v", MaxParents+1, err)
	}
	if _, err := x.Add(dagcbor.SumCodec(cid.Raw, nil), nil); !errors.Is(err, ErrEvent) {
		t.Errorf("an event that is not DAG-CBOR: %v", err)
	}
}

func TestIndexTakesAboutHundredBytesPerEvent(t *testing.T) {
	const n = 100_000
	heap := func() uint64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	before := heap()
	x := NewIndex()
	for i, parent := 0, []cid.Cid(nil); i < n; i++ {
		if _, err := x.Add(eventOf(i), parent); err != nil {
			t.Fatal(err)
		}
		parent = []cid.Cid{eventOf(i)}
	}
	if each := (heap() - before) / n; each > 140 {
		t.Errorf("%d bytes for each event", each)
	} else {
		t.Logf("%d bytes for each event", each)
	}
	runtime.KeepAlive(x)
}

// branches returns an Index with a genesis and two branches of n events.
func branches(b *testing.B, n int) (*Index, []cid.Cid) {
	x := NewIndex()
	add := func(c cid.Cid, parents ...cid.Cid) cid.Cid {
		if _, err := x.Add(c, parents); err != nil {
			b.Fatal(err)
		}
		return c
	}
	g := add(eventOf(0))
	heads := []cid.Cid{g, g}
	for i := 1; i <= n; i++ {
		heads[0] = add(eventOf(i), heads[0])
		heads[1] = add(eventOf(-i), heads[1])
	}
	return x, heads
}

func BenchmarkCommonAncestor(b *testing.B) {
	x, heads := branches(b, 100_000)
	for b.Loop() {
		if _, err := x.CommonAncestor(heads); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkReplay(b *testing.B) {
	for _, n := range []int{1_000, 10_000, 100_000} {
		b.Run(fmt.Sprintf("2x%d", n), func(b *testing.B) {
			x, heads := branches(b, n)
			b.ReportAllocs()
			for b.Loop() {
				if _, _, err := x.Replay(heads); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkAdd(b *testing.B) {
	const n = 100_000
	r := rand.New(rand.NewPCG(1, 2))
	cids := make([]cid.Cid, n)
	parents := make([][]cid.Cid, n)
	for i := range cids {
		cids[i] = eventOf(i)
		for range min(i, 1+r.IntN(2)) {
			parents[i] = append(parents[i], cids[max(0, i-1-r.IntN(8))])
		}
	}
	b.ReportAllocs()
	for b.Loop() {
		x := NewIndex()
		for i, c := range cids {
			if _, err := x.Add(c, parents[i]); err != nil {
				b.Fatal(err)
			}
		}
	}
	b.ReportMetric(float64(b.N)*n/b.Elapsed().Seconds(), "events/s")
}
