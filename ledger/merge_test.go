package ledger

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/ipfs/go-cid"
	"pgregory.net/rapid"

	"fpnode/blockstore"
	"fpnode/clock"
	"fpnode/internal/car"
	"fpnode/internal/dagcbor"
	"fpnode/pail"
)

// TestMergeLaws writes a random history on three replicas that now and then merge, and then delivers what the three
// made to fresh replicas: in any order, in pieces, several times. All must end equal, and equal to what Pail says of
// the head.
func TestMergeLaws(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) {
		tb := rapidTB{t, r}
		homes := []*home{newHome(tb), newHome(tb), newHome(tb)}
		defer func() {
			for _, h := range homes {
				h.close()
			}
		}()
		n := 0
		for range rapid.IntRange(1, 25).Draw(r, "steps") {
			w := homes[rapid.IntRange(0, 2).Draw(r, "writer")]
			id := rapid.SampledFrom([]string{"a", "ab", "abc", "b", "x"}).Draw(r, "id")
			n++
			switch rapid.SampledFrom([]string{"put", "put", "put", "value", "batch", "del", "merge", "merge"}).Draw(r, "step") {
			case "put":
				w.put(fmt.Sprintf(`{"_id":%q,"n":%d}`, id, n))
			case "value": // few values, so that states come back
				w.put(fmt.Sprintf(`{"_id":%q,"v":%d}`, id, rapid.IntRange(0, 1).Draw(r, "v")))
			case "batch":
				w.put(fmt.Sprintf(`{"_id":%q,"n":%d}`, id, n), fmt.Sprintf(`{"_id":"b%d","n":%d}`, n%3, n))
			case "del":
				w.del(id)
			case "merge":
				w.mergeFrom(homes[rapid.IntRange(0, 2).Draw(r, "from")])
			}
		}

		// Everything each replica ever made, to be delivered.
		var metas []blockstore.Meta
		for _, h := range homes {
			metas = append(metas, h.Tips()...)
		}
		first, second := newHome(tb), newHome(tb)
		homes = append(homes, first, second)
		var cars []blockstore.CAR
		for _, h := range homes[:3] {
			cars = append(cars, first.carsOf(h)...)
		}
		deliver := func(h *home, label string) {
			metas := rapid.Permutation(metas).Draw(r, label+" metas")
			cars := rapid.Permutation(cars).Draw(r, label+" cars")
			for len(cars) > 0 {
				k := rapid.IntRange(1, len(cars)).Draw(r, label+" piece")
				res, err := h.Merge(context.Background(), metas, cars[:k])
				if err != nil || len(res.Quarantined) > 0 {
					tb.Fatal(res, err)
				}
				if rapid.Bool().Draw(r, label+" again") {
					k = max(0, k-1)
				}
				if k == 0 {
					break
				}
				cars = cars[k:]
			}
			res, err := h.Merge(context.Background(), metas, cars)
			if err != nil || len(res.Quarantined)+len(res.Waiting) > 0 {
				tb.Fatal(res, err)
			}
		}
		deliver(first, "first")
		deliver(second, "second")
		for i, h := range homes[:3] {
			for _, o := range homes[:3] {
				if o != h {
					h.mergeFrom(o)
				}
			}
			if i == 1 {
				h.reopen()
			}
		}
		want := homes[0].dump()
		wantTips := textsOf(metaCIDs(homes[0].Tips()))
		for i, h := range homes {
			wantEqual(tb, fmt.Sprintf("replica %d", i), h.dump(), want)
			wantEqual(tb, fmt.Sprintf("tips of replica %d", i), textsOf(metaCIDs(h.Tips())), wantTips)
			h.checkView()
			h.checkRoot()
			if h.mergeFrom(homes[0]); h.Head() == nil && len(want.Head) > 0 {
				tb.Error("merging again lost the head")
			}
		}
		wantEqual(tb, "after merging again", homes[1].dump(), want)
	})
}

// rapidTB lets the helpers of this package run under rapid: failures shrink, cleanups run with the test.
type rapidTB struct {
	*testing.T
	r *rapid.T
}

func (t rapidTB) Helper()                   { t.r.Helper() }
func (t rapidTB) Error(a ...any)            { t.r.Error(a...) }
func (t rapidTB) Errorf(f string, a ...any) { t.r.Errorf(f, a...) }
func (t rapidTB) Fatal(a ...any)            { t.r.Fatal(a...) }
func (t rapidTB) Fatalf(f string, a ...any) { t.r.Fatalf(f, a...) }
func (t rapidTB) Context() context.Context  { return t.T.Context() }
func (t rapidTB) Cleanup(func())            {} // the test closes

// checkRoot compares the state with what Pail computes from the events alone.
func (h *home) checkRoot() {
	h.tb.Helper()
	ctx := context.Background()
	s := h.state.Load()
	if len(s.head) == 0 {
		return
	}
	x := clock.NewIndex()
	if _, err := x.Fill(ctx, h.cars, s.head); err != nil {
		h.tb.Fatal(err)
	}
	res, err := (&pail.Replica{Blocks: h.cars, Index: x}).Root(ctx, s.head)
	if err != nil {
		h.tb.Fatal(err)
	}
	if res.Tree.Root() != s.root {
		h.tb.Errorf("root is %s, Pail computes %s", s.root, res.Tree.Root())
	}
	var want []string
	for e, err := range res.Tree.Entries(ctx, pail.Range{}) {
		if err != nil {
			h.tb.Fatal(err)
		}
		want = append(want, e.Key+" "+e.Value.String())
	}
	var got []string
	for r, err := range h.view.entries("", "", false) {
		if err != nil {
			h.tb.Fatal(err)
		}
		got = append(got, r.id+" "+r.value.String())
	}
	wantEqual(h.tb, "view against trie", got, want)
}

// fork makes two replicas with a common beginning and concurrent writes.
func fork(t testing.TB) (a, b *home) {
	t.Helper()
	a, b = newHome(t), newHome(t)
	a.put(`{"_id":"both","v":0}`, `{"_id":"base"}`)
	b.mergeFrom(a)
	a.put(`{"_id":"both","v":"a"}`)
	b.put(`{"_id":"both","v":"b1"}`)
	b.put(`{"_id":"only-b"}`)
	return a, b
}

// The write nearer to its head wins: b's "both" lies one step behind its head, a's at its own.
func TestConflictIsDecidedByDistance(t *testing.T) {
	a, b := fork(t)
	a.mergeFrom(b)
	b.mergeFrom(a)
	wantEqual(t, "winner", a.get("both"), `{"v":"a","_id":"both"}`)
	wantEqual(t, "states", a.dump(), b.dump())
	wantEqual(t, "conflicts", a.dump().Conflicts, []string{`both: {"v":"a","_id":"both"} over {"v":"b1","_id":"both"}`})
	a.put(`{"_id":"both","v":"settled"}`)
	wantEqual(t, "conflicts", len(a.dump().Conflicts), 0)
	b.mergeFrom(a)
	wantEqual(t, "states", b.dump(), a.dump())
}

// A meta whose history has a hole waits, says what is missing, and hides nobody.
func TestIncompleteMetaWaits(t *testing.T) {
	a, b := fork(t)
	c := newHome(t)
	c.mergeFrom(a)
	before := b.dump()
	c.put(`{"_id":"from-c"}`)
	hole := c.Tips()
	c.put(`{"_id":"from-c","n":2}`)

	// Of c everything but its first own commit; of a everything.
	cars := slices.DeleteFunc(b.carsOf(c), func(x blockstore.CAR) bool { return x.Ref.Name == hole[0].Group[0].Name })
	res, err := b.Merge(t.Context(), slices.Concat(c.Tips(), a.Tips()), cars)
	if err != nil {
		t.Fatal(err)
	}
	wantEqual(t, "accepted", textsOf(res.Accepted), textsOf(metaCIDs(a.Tips())))
	wantEqual(t, "waiting", len(res.Waiting), 1)
	header, blocks, _ := c.carNamed(hole[0].Group[0].Name)
	wantEqual(t, "missing", textsOf(res.Waiting[0].Missing), textsOf(header.Head))
	_ = blocks
	wantEqual(t, "from-c", b.get("from-c"), "")
	if d := b.dump(); d.Root == before.Root {
		t.Error("the good meta was hidden")
	}
	// The CARs that came are kept: only the hole has to come.
	res, err = b.Merge(t.Context(), c.Tips(), b.carsOf(c))
	if err != nil || len(res.Accepted) != 1 {
		t.Fatal(res, err)
	}
	wantEqual(t, "from-c", b.get("from-c"), `{"n":2,"_id":"from-c"}`)
	a.mergeFrom(c)
	b.mergeFrom(a)
	a.mergeFrom(b)
	wantEqual(t, "states", a.dump(), b.dump())
}

func TestMetaWithoutItsCARWaits(t *testing.T) {
	a, b := fork(t)
	res, err := b.Merge(t.Context(), a.Tips(), nil)
	if err != nil {
		t.Fatal(err)
	}
	wantEqual(t, "missing", textsOf(res.Waiting[0].Missing), []string{a.Tips()[0].Group[0].Name.String()})
}

// A document that is current at the head must be here; one that was superseded need not.
func TestMissingDocumentWaits(t *testing.T) {
	a, b := fork(t)
	for _, tt := range []struct {
		name  string
		docs  []string
		leave int // the document whose block is left out
		waits bool
	}{
		{"current", []string{`{"_id":"d","n":1}`, `{"_id":"d","n":2}`}, 1, true},
		{"superseded", []string{`{"_id":"e","n":1}`, `{"_id":"e","n":2}`}, 0, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := newHome(t)
			c.mergeFrom(a)
			var gone cid.Cid
			for i, d := range tt.docs {
				if i == tt.leave {
					gone, _, _ = draft(t, d).block()
				}
				c.put(d)
			}
			// A JavaScript compaction of c, without that block.
			var blocks []car.Block
			for _, x := range b.carsOf(c) {
				_, header := x.Header()
				for i, s := range x.Blocks() {
					if s.CID != gone && (i > 0 || !header) {
						blocks = append(blocks, s.Block)
					}
				}
			}
			packed, err := b.pack(car.Header{Head: c.Head(), HasHead: true}, blocks)
			if err != nil {
				t.Fatal(err)
			}
			meta := blockstore.NewMeta([]blockstore.Ref{packed.Ref}, nil)
			res, err := b.Merge(t.Context(), []blockstore.Meta{meta}, []blockstore.CAR{packed})
			if err != nil {
				t.Fatal(err)
			}
			if tt.waits {
				wantEqual(t, "missing", textsOf(res.Waiting[0].Missing), []string{gone.String()})
				return
			}
			wantEqual(t, "accepted", len(res.Accepted), 1)
			b.checkRoot()
		})
	}
}

// craft commits an event of the test's own making to a CAR that b accepts, on a's head.
func craft(t *testing.T, a, b *home, data pail.Data, parents []cid.Cid, more ...car.Block) (blockstore.Meta, blockstore.CAR) {
	t.Helper()
	c, block := clock.Encode(data.Encode(), parents)
	packed, err := b.pack(car.Header{Head: []cid.Cid{c}, HasHead: true}, append(more, car.Block{CID: c, Data: block}))
	if err != nil {
		t.Fatal(err)
	}
	return blockstore.NewMeta([]blockstore.Ref{packed.Ref}, metaCIDs(a.Tips())), packed
}

// An event whose root does not follow from its parents is refused, and nothing of it stays.
func TestWrongRootIsQuarantined(t *testing.T) {
	a, b := fork(t)
	doc, block, err := draft(t, `{"_id":"evil"}`).block()
	if err != nil {
		t.Fatal(err)
	}
	data := pail.Data{Root: must(a.Root(t.Context())), Ops: []pail.Op{{Key: "evil", Value: doc}}}
	meta, packed := craft(t, a, b, data, a.Head(), car.Block{CID: doc, Data: block})
	before, cars := b.dump(), b.cars.Stats().Cars
	res, err := b.Merge(t.Context(), append([]blockstore.Meta{meta}, a.Tips()...), append(b.carsOf(a), packed))
	if err != nil {
		t.Fatal(err)
	}
	if len(res.Quarantined) != 1 || !errors.Is(res.Quarantined[0], pail.ErrRoot) || res.Quarantined[0].Meta != meta.CID {
		t.Fatalf("quarantined %v", res.Quarantined)
	}
	wantEqual(t, "the good one beside it", textsOf(res.Accepted), textsOf(metaCIDs(a.Tips())))
	wantEqual(t, "CARs", b.cars.Stats().Cars-cars, int64(1))
	wantEqual(t, "evil", b.get("evil"), "")
	if b.dump().Root == before.Root {
		t.Error("the good meta was hidden")
	}
	b.checkRoot()
	b.checkView()
	// Its events are not known now: what builds on them is refused too.
	res, err = b.Merge(t.Context(), []blockstore.Meta{meta}, []blockstore.CAR{packed})
	if err != nil || len(res.Quarantined) != 1 {
		t.Errorf("offered again: %v %v", res, err)
	}
	a.mergeFrom(b)
	wantEqual(t, "states", a.dump(), b.dump())
}

func TestForeignGenesisIsQuarantined(t *testing.T) {
	a, b := fork(t)
	edit := pail.Empty(a.cars, nil).Edit()
	doc, block, _ := draft(t, `{"_id":"x"}`).block()
	if err := edit.Put(t.Context(), "x", doc); err != nil {
		t.Fatal(err)
	}
	res := edit.Commit()
	data := pail.Data{Root: res.Tree.Root(), Ops: []pail.Op{{Key: "x", Value: doc}}}
	meta, packed := craft(t, a, b, data, nil, append(res.Additions, car.Block{CID: doc, Data: block})...)
	before := b.dump()
	got, err := b.Merge(t.Context(), []blockstore.Meta{meta}, []blockstore.CAR{packed})
	if err != nil {
		t.Fatal(err)
	}
	if len(got.Quarantined) != 1 || !errors.Is(got.Quarantined[0], clock.ErrGenesis) {
		t.Errorf("quarantined %v", got.Quarantined)
	}
	wantEqual(t, "state", b.dump(), before)

	// An empty ledger takes it: ledgers without Fireproof's genesis exist.
	empty := newHome(t)
	if got, err = empty.Merge(t.Context(), []blockstore.Meta{meta}, []blockstore.CAR{packed}); err != nil || len(got.Accepted) != 1 {
		t.Fatal(got, err)
	}
	wantEqual(t, "document", empty.get("x"), `{"_id":"x"}`)
	empty.put(`{"_id":"y"}`)
	empty.reopen()
	wantEqual(t, "documents", empty.list(ListOptions{}), []string{`{"_id":"x"}`, `{"_id":"y"}`})
}

// The same block under another codec is another CID: an event has one name.
func TestHeadUnderAnotherNameIsQuarantined(t *testing.T) {
	a, b := fork(t)
	alias := cid.NewCidV1(cid.Raw, a.Head()[0].Hash())
	packed, err := b.pack(car.Header{Head: []cid.Cid{alias}, HasHead: true}, nil)
	if err != nil {
		t.Fatal(err)
	}
	meta := blockstore.NewMeta([]blockstore.Ref{packed.Ref}, nil)
	res, err := b.Merge(t.Context(), append(a.Tips(), meta), append(b.carsOf(a), packed))
	if err != nil || len(res.Quarantined) != 1 || len(res.Accepted) != 1 || !errors.Is(res.Quarantined[0], clock.ErrEvent) {
		t.Errorf("%v %v", res, err)
	}
}

func TestHeaderWithoutHeadIsQuarantined(t *testing.T) {
	a, b := fork(t)
	packed, err := b.pack(car.Header{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	meta := blockstore.NewMeta([]blockstore.Ref{packed.Ref}, nil)
	res, err := b.Merge(t.Context(), append(a.Tips(), meta), append(b.carsOf(a), packed))
	if err != nil || len(res.Quarantined) != 1 || len(res.Accepted) != 1 {
		t.Errorf("%v %v", res, err)
	}
}

// An event that is no Pail operation, and a head that is no event, say what is wrong.
func TestNonsenseIsQuarantined(t *testing.T) {
	a, b := fork(t)
	event, block := clock.Encode(dagcbor.AppendText(nil, "nonsense"), a.Head())
	doc, docBlock, _ := draft(t, `{"_id":"x"}`).block()
	for _, x := range []car.Block{{CID: event, Data: block}, {CID: doc, Data: docBlock}} {
		packed, err := b.pack(car.Header{Head: []cid.Cid{x.CID}, HasHead: true}, []car.Block{x})
		if err != nil {
			t.Fatal(err)
		}
		meta := blockstore.NewMeta([]blockstore.Ref{packed.Ref}, nil)
		res, err := b.Merge(t.Context(), append(a.Tips(), meta), append(b.carsOf(a), packed))
		if err != nil || len(res.Quarantined) != 1 || len(res.Accepted) != 1 {
			t.Errorf("%v %v", res, err)
		}
	}
}

// Shards that JavaScript lost are made again from the events and stored.
func TestLostShardsAreHealed(t *testing.T) {
	a, b := fork(t)
	for i := range 30 {
		a.put(fmt.Sprintf(`{"_id":"long-common-prefix-%d","n":%d}`, i, i))
	}
	// What a wrote, without any of its shards.
	var blocks []car.Block
	lost := 0
	for _, x := range b.carsOf(a) {
		for i, s := range x.Blocks() {
			if i == 0 {
				continue
			}
			if strings.HasPrefix(string(s.Data), "\xa5\x66prefix") {
				lost++
				continue
			}
			blocks = append(blocks, s.Block)
		}
	}
	if lost < 30 {
		t.Fatalf("only %d shards left out", lost)
	}
	packed, err := b.pack(car.Header{Head: a.Head(), HasHead: true}, blocks)
	if err != nil {
		t.Fatal(err)
	}
	meta := blockstore.NewMeta([]blockstore.Ref{packed.Ref}, nil)
	c := newHome(t)
	for _, h := range []*home{b, c} {
		cars := []blockstore.CAR{packed}
		if h == c { // needs the genesis CAR too
			for _, x := range c.carsOf(a) {
				if _, ok := x.Header(); ok && x.Ref.Name.Cid == pail.GenesisName {
					cars = append(cars, x)
				}
			}
			for _, x := range c.carsOf(a) {
				if h, _ := x.Header(); len(h.Cars) == 1 && h.Cars[0][0] == pail.GenesisName {
					cars = append(cars, x)
				}
			}
		}
		res, err := h.Merge(t.Context(), []blockstore.Meta{meta}, cars)
		if err != nil || len(res.Accepted) != 1 {
			t.Fatal(res, err)
		}
		if res.Healed == 0 {
			t.Error("nothing was healed")
		}
		h.checkRoot()
		h.reopen()
		h.checkRoot()
		if h == c {
			for s, err := range must(h.Trie(t.Context())).Shards(t.Context()) {
				if err != nil {
					t.Fatal(err)
				}
				if ok, err := h.cars.Has(s.CID); err != nil || !ok {
					t.Errorf("shard %s of the current root is not stored", s.CID)
				}
			}
		}
		h.put(`{"_id":"goes on"}`)
		h.checkRoot()
	}
}

// A store that lacks shards of its current trie, as JavaScript leaves them, opens, is written to, and is whole again
// with the next commit, whether the loss is met while opening or while writing.
func TestShardsLostOnDiskAreMended(t *testing.T) {
	for _, heads := range []int{1, 2} {
		a, b := fork(t)
		for i := range 20 {
			a.put(fmt.Sprintf(`{"_id":"long-common-prefix-%d","n":%d}`, i, i))
		}
		if heads == 2 {
			a.mergeFrom(b)
		}
		want := a.dump()
		c := newHome(t)
		c.mustTake(a, func(b car.Block) bool { return !strings.HasPrefix(string(b.Data), "\xa5\x66prefix") })
		for range 2 { // the second time the view is there
			c.reopen()
			wantEqual(t, "state", c.dump(), want)
		}
		c.put(`{"_id":"long-common-prefix-5","n":"new"}`)
		c.reopen()
		c.put(`{"_id":"long-common-prefix-6","n":"new"}`)
		c.checkRoot()
		for s, err := range must(c.Trie(t.Context())).Shards(t.Context()) {
			if err != nil {
				t.Fatal(err)
			}
			if ok, err := c.cars.Has(s.CID); err != nil || !ok {
				t.Errorf("shard %s is not stored", s.CID)
			}
		}
	}
}

// mustTake commits the blocks of another home that keep lets through, with its head, past every check.
func (h *home) mustTake(o *home, keep func(car.Block) bool) {
	h.tb.Helper()
	var blocks []car.Block
	for _, x := range h.carsOf(o) {
		_, header := x.Header()
		for i, s := range x.Blocks() {
			if (i > 0 || !header) && keep(s.Block) {
				blocks = append(blocks, s.Block)
			}
		}
	}
	packed, err := h.pack(car.Header{Head: o.Head(), HasHead: true}, blocks)
	if err != nil {
		h.tb.Fatal(err)
	}
	tips := []blockstore.Meta{blockstore.NewMeta([]blockstore.Ref{packed.Ref}, nil)}
	if err := h.cars.Commit(h.tb.Context(), nil, blockstore.Batch{CARs: []blockstore.CAR{packed}, Tips: tips}); err != nil {
		h.tb.Fatal(err)
	}
}

// A fork from a point whose shards a compaction dropped is merged all the same.
func TestForkOlderThanCompaction(t *testing.T) {
	a, b := newHome(t), newHome(t)
	a.put(`{"_id":"x","n":0}`, `{"_id":"xy","n":0}`)
	b.mergeFrom(a)
	for i := range 5 {
		a.put(fmt.Sprintf(`{"_id":"x","n":%d}`, i+1))
	}
	b.put(`{"_id":"xy","n":"b"}`)
	// JavaScript's compaction of a: events, current shards, current documents.
	var keep []car.Block
	for s, err := range must(a.Trie(t.Context())).Shards(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		keep = append(keep, s)
	}
	x, done, err := a.ancestry()
	if err != nil {
		t.Fatal(err)
	}
	var events []cid.Cid
	for i := range x.Len() {
		events = append(events, x.At(uint32(i)))
	}
	done()
	for _, e := range events {
		keep = append(keep, car.Block{CID: e, Data: must(a.cars.Block(t.Context(), e))})
	}
	for r, err := range a.view.entries("", "", false) {
		if err != nil {
			t.Fatal(err)
		}
		keep = append(keep, car.Block{CID: r.value, Data: must(a.cars.Block(t.Context(), r.value))})
	}
	c := newHome(t)
	packed, err := c.pack(car.Header{Head: a.Head(), HasHead: true}, keep)
	if err != nil {
		t.Fatal(err)
	}
	meta := blockstore.NewMeta([]blockstore.Ref{packed.Ref}, nil)
	if res, err := c.MergeJS(t.Context(), []blockstore.Meta{meta}, []blockstore.CAR{packed}); err != nil || len(res.Accepted) != 1 {
		t.Fatal(res, err)
	}
	wantEqual(t, "compacted", c.dump().Root, a.dump().Root)
	// Of b its own commit and the documents it still has: the shards of the fork are with nobody.
	doc, block, _ := draft(t, `{"_id":"x","n":0}`).block()
	own := []blockstore.CAR{must(c.pack(car.Header{}, []car.Block{{CID: doc, Data: block}}))}
	for _, x := range c.carsOf(b) {
		if x.Ref.Name == b.Tips()[0].Group[0].Name {
			own = append(own, x)
		}
	}
	res, err := c.Merge(t.Context(), b.Tips(), own)
	if err != nil || len(res.Accepted) != 1 || res.Unchecked != 0 {
		t.Fatal(res, err)
	}
	a.mergeFrom(b)
	wantEqual(t, "root", c.dump().Root, a.dump().Root)
	wantEqual(t, "documents", c.dump().Docs, a.dump().Docs)
	c.reopen()
	wantEqual(t, "documents", c.dump().Docs, a.dump().Docs)
	c.put(`{"_id":"z"}`)
	c.checkRoot()
}

// Of JavaScript's CARs those that bring nothing are remembered by name. A head they alone lead to joins, survives a
// restart and the loss of the view, and goes into the next commit.
func TestJavaScriptMetaThatBringsNothing(t *testing.T) {
	a, b := fork(t)
	if err := b.Stage(t.Context(), b.carsOf(a)); err != nil {
		t.Fatal(err)
	}
	empty, err := b.pack(car.Header{Head: a.Head(), HasHead: true}, nil)
	if err != nil {
		t.Fatal(err)
	}
	meta := blockstore.NewMeta([]blockstore.Ref{empty.Ref}, nil)
	tips, cars := b.Tips(), b.cars.Stats().Cars
	res, err := b.MergeJS(t.Context(), []blockstore.Meta{meta}, []blockstore.CAR{empty})
	if err != nil || len(res.Accepted) != 1 {
		t.Fatal(res, err)
	}
	wantEqual(t, "tips", textsOf(metaCIDs(b.Tips())), textsOf(metaCIDs(tips)))
	wantEqual(t, "CARs", b.cars.Stats().Cars, cars)
	wantEqual(t, "known by name", b.cars.Known(empty.Ref.Name), true)
	wantEqual(t, "heads", len(b.Head()), 2)
	want := b.dump()
	b.reopen()
	wantEqual(t, "after a restart", b.dump(), want)
	if err := b.cars.Derived().Reset(); err != nil {
		t.Fatal(err)
	}
	b.reopen()
	wantEqual(t, "after the loss of the view", b.dump(), want)
	syncs := b.store.Syncs()
	if res, err = b.MergeJS(t.Context(), []blockstore.Meta{meta}, []blockstore.CAR{empty}); err != nil || len(res.Accepted) != 1 {
		t.Fatal(res, err)
	}
	wantEqual(t, "syncs of a repeated merge", b.store.Syncs(), syncs)
	b.put(`{"_id":"next"}`)
	if n := must(b.cars.Note(noteJoined)); n != nil {
		t.Errorf("the note is still there: %x", n)
	}
	a.mergeFrom(b)
	wantEqual(t, "states", a.dump(), b.dump())
}

// A meta that arrives after its successor changes nothing.
func TestOldMetaIsNoTip(t *testing.T) {
	a, b := fork(t)
	old := a.Tips()
	a.put(`{"_id":"later"}`)
	b.mergeFrom(a)
	tips, syncs := textsOf(metaCIDs(b.Tips())), b.store.Syncs()
	res, err := b.Merge(t.Context(), old, nil)
	if err != nil || len(res.Accepted) != 1 {
		t.Fatal(res, err)
	}
	wantEqual(t, "tips", textsOf(metaCIDs(b.Tips())), tips)
	wantEqual(t, "syncs", b.store.Syncs(), syncs)
}

func TestTipsDoNotDependOnOrder(t *testing.T) {
	e := someCIDs(6)
	cand := func(name byte, head []cid.Cid, parents ...cid.Cid) candidate {
		ref := blockstore.Ref{Name: blockstore.NameOf([]byte{name})}
		return candidate{Meta: blockstore.NewMeta([]blockstore.Ref{ref}, parents), head: head}
	}
	a := cand(1, e[:1])
	replaced := cand(2, e[:1], a.CID)
	both := cand(3, e[:2])
	other := cand(4, e[2:3])
	old := cand(5, e[4:5])
	all := []candidate{a, replaced, both, other, old}
	rapid.Check(t, func(r *rapid.T) {
		var got []string
		for _, c := range tipsOf(rapid.Permutation(all).Draw(r, "order"), e[:3]) {
			got = append(got, c.CID.String())
		}
		slices.Sort(got)
		want := textsOf([]cid.Cid{both.CID, other.CID})
		slices.Sort(want)
		wantEqual(t, "tips", got, want)
		got = nil
		for _, c := range tipsOf(rapid.Permutation([]candidate{a, replaced}).Draw(r, "order"), e[:1]) {
			got = append(got, c.CID.String())
		}
		wantEqual(t, "replaced", got, []string{replaced.CID.String()})
	})
}

func TestTooManyHeadsAreRefused(t *testing.T) {
	a, b := fork(t)
	packed, err := b.pack(car.Header{Head: someCIDs(MaxHeads + 1), HasHead: true}, nil)
	if err != nil {
		t.Fatal(err)
	}
	meta := blockstore.NewMeta([]blockstore.Ref{packed.Ref}, nil)
	res, err := b.Merge(t.Context(), append(a.Tips(), meta), append(b.carsOf(a), packed))
	if err != nil || len(res.Quarantined) != 1 || len(res.Accepted) != 1 {
		t.Fatal(res, err)
	}
	var limit *LimitError
	if !errors.As(res.Quarantined[0], &limit) {
		t.Errorf("reason %v", res.Quarantined[0].Reason)
	}
}

// siblings makes n commits on h's head that do not know each other.
func siblings(t *testing.T, h *home, n int) (metas []blockstore.Meta, cars []blockstore.CAR) {
	t.Helper()
	trie, head := must(h.Trie(t.Context())), h.Head()
	for i := range n {
		id := fmt.Sprintf("s%04d", i)
		doc, block, _ := Draft{}.WithID(id).block()
		edit := trie.Edit()
		if err := edit.Put(t.Context(), id, doc); err != nil {
			t.Fatal(err)
		}
		res := edit.Commit()
		data := pail.Data{Root: res.Tree.Root(), Ops: []pail.Op{{Key: id, Value: doc}}}
		meta, packed := craft(t, h, h, data, head, append(res.Additions, car.Block{CID: doc, Data: block})...)
		metas, cars = append(metas, meta), append(cars, packed)
	}
	return metas, cars
}

func TestTipsAndHeadsAreLimited(t *testing.T) {
	if testing.Short() {
		t.Skip("long")
	}
	h := newHome(t)
	h.put(`{"_id":"base"}`)
	metas, cars := siblings(t, h, MaxTips+1)
	if res, err := h.Merge(t.Context(), metas[:MaxTips], cars[:MaxTips]); err != nil || len(res.Accepted) != MaxTips {
		t.Fatal(res, err)
	}
	wantEqual(t, "tips", len(h.Tips()), MaxTips)
	before := h.Head()
	var limit *LimitError
	if _, err := h.Merge(t.Context(), metas[MaxTips:], cars[MaxTips:]); !errors.As(err, &limit) {
		t.Fatalf("one more: %v", err)
	}
	wantEqual(t, "head", textsOf(h.Head()), textsOf(before))
	h.put(`{"_id":"join"}`) // one write joins them
	wantEqual(t, "tips", len(h.Tips()), 1)
	if res, err := h.Merge(t.Context(), metas[MaxTips:], cars[MaxTips:]); err != nil || len(res.Accepted) != 1 {
		t.Fatal(res, err)
	}
	h.checkRoot()
}

func TestForeignDocumentSizeLimit(t *testing.T) {
	a, b := fork(t)
	d, err := FromMap(map[string]any{"_id": "x", "b": make([]byte, MaxForeignDocBytes)})
	if err != nil {
		t.Fatal(err)
	}
	block := append([]byte(nil), docPrefix...)
	block = dagcbor.AppendMap(block, d.count+1)
	block = append(block, d.fields[:d.at]...)
	block = dagcbor.AppendText(dagcbor.AppendText(block, "_id"), "x")
	block = append(block, d.fields[d.at:]...)
	doc := dagcbor.Sum(block)
	edit := must(a.Trie(t.Context())).Edit()
	if err := edit.Put(t.Context(), "x", doc); err != nil {
		t.Fatal(err)
	}
	made := edit.Commit()
	data := pail.Data{Root: made.Tree.Root(), Ops: []pail.Op{{Key: "x", Value: doc}}}
	meta, packed := craft(t, a, b, data, a.Head(), append(made.Additions, car.Block{CID: doc, Data: block})...)
	res, err := b.Merge(t.Context(), append(a.Tips(), meta), append(b.carsOf(a), packed))
	if err != nil || len(res.Quarantined) != 1 || len(res.Accepted) != 1 {
		t.Fatal(res, err)
	}
	var limit *LimitError
	if !errors.As(res.Quarantined[0], &limit) {
		t.Errorf("reason %v", res.Quarantined[0].Reason)
	}
}

// A merge that is cancelled changes nothing.
func TestCancelledMerge(t *testing.T) {
	a, b := fork(t)
	before := b.dump()
	for n := range 40 {
		ctx := &countdown{Context: t.Context(), left: n}
		if _, err := b.Merge(ctx, a.Tips(), b.carsOf(a)); err == nil {
			break
		}
		wantEqual(t, "state", b.dump(), before)
	}
	b.mergeFrom(a)
	a.mergeFrom(b)
	wantEqual(t, "states", b.dump(), a.dump())
}

// countdown is a context that is cancelled when it has been asked left times.
type countdown struct {
	context.Context
	left int
}

func (c *countdown) Err() error {
	if c.left--; c.left < 0 {
		return context.Canceled
	}
	return nil
}

// While others write here, merges and puts do not disturb each other.
func TestMergeBesidePuts(t *testing.T) {
	a, b := fork(t)
	stop := make(chan struct{})
	done := make(chan error)
	go func() {
		for i := 0; ; i++ {
			select {
			case <-stop:
				done <- nil
				return
			default:
			}
			if _, err := b.Put(context.Background(), must(FromMap(map[string]any{"_id": fmt.Sprint("w", i%10), "n": i}))); err != nil {
				done <- err
				return
			}
		}
	}()
	for i := range 20 {
		a.put(fmt.Sprintf(`{"_id":"a%d"}`, i))
		b.mergeFrom(a)
	}
	close(stop)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	a.mergeFrom(b)
	b.mergeFrom(a)
	wantEqual(t, "states", a.dump(), b.dump())
	b.checkRoot()
	b.checkView()
}

// The CAR of a JavaScript meta that waits is not dropped: its header is needed when the rest is there.
func TestWaitingJavaScriptMetaKeepsItsCAR(t *testing.T) {
	a, b := fork(t)
	empty, err := b.pack(car.Header{Head: a.Head(), HasHead: true}, nil)
	if err != nil {
		t.Fatal(err)
	}
	meta := []blockstore.Meta{blockstore.NewMeta([]blockstore.Ref{empty.Ref}, nil)}
	res, err := b.MergeJS(t.Context(), meta, []blockstore.CAR{empty})
	if err != nil || len(res.Waiting) != 1 {
		t.Fatal(res, err)
	}
	wantEqual(t, "missing", textsOf(res.Waiting[0].Missing), textsOf(a.Head()))
	if b.cars.Known(empty.Ref.Name) {
		t.Error("the CAR is known by name only")
	}
	if res, err = b.MergeJS(t.Context(), meta, append(b.carsOf(a), empty)); err != nil || len(res.Accepted) != 1 {
		t.Fatal(res, err)
	}
	wantEqual(t, "heads", len(b.Head()), 2)
}

// Tips that somebody committed beside the ledger fail one write, and the next one builds on them.
func TestTipsThatMovedAreFollowed(t *testing.T) {
	a, b := fork(t)
	tips := append(b.Tips(), a.Tips()...)
	if err := b.cars.Commit(t.Context(), metaCIDs(b.Tips()), blockstore.Batch{CARs: b.carsOf(a), Tips: tips}); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Put(t.Context(), draft(t, `{"_id":"x"}`)); !errors.Is(err, blockstore.ErrStale) {
		t.Fatalf("put: %v", err)
	}
	b.put(`{"_id":"x"}`)
	a.mergeFrom(b)
	wantEqual(t, "states", b.dump(), a.dump())
	wantEqual(t, "heads", len(b.Head()), 1)
	b.checkRoot()
	b.checkView()
}

// A merge larger than what it keeps in memory and writes at once ends the same.
func TestLargeMerge(t *testing.T) {
	if testing.Short() {
		t.Skip("long")
	}
	a, b := newHome(t), newHome(t)
	const docs = maxWinners + 1000
	drafts := make([]Draft, docs)
	for i := range drafts {
		drafts[i] = must(FromMap(map[string]any{"_id": hexID(i), "n": i}))
	}
	for _, part := range [][]Draft{drafts[:docs/2], drafts[docs/2:], drafts[:10]} {
		if _, err := a.Put(t.Context(), part...); err != nil {
			t.Fatal(err)
		}
	}
	res := b.mergeFrom(a)
	wantEqual(t, "changed keys", res.Changed, docs+1) // with genesis
	wantEqual(t, "documents", must(b.Info(t.Context())).Docs, docs)
	b.checkRoot()
	for _, i := range []int{0, 5, docs / 2, docs - 1} {
		wantEqual(t, "document", b.get(hexID(i)), a.get(hexID(i)))
		x := must2(b.view.get(hexID(i)))
		y := must2(a.view.get(hexID(i)))
		wantEqual(t, "event", must(b.view.event(x.event)).cid.String(), must(a.view.event(y.event)).cid.String())
	}
}

func must2[T any](v T, ok bool, err error) T {
	if !ok || err != nil {
		panic(fmt.Sprint(ok, err))
	}
	return v
}

func TestRecentEventsAreBounded(t *testing.T) {
	r := newRecent(nil)
	c := someCIDs(recentEvents + 10)
	for i := range c {
		r.keep(c[i], []byte{byte(i)})
		r.keep(c[i], []byte{byte(i)})
	}
	wantEqual(t, "kept", len(r.events), recentEvents)
	if _, ok := r.events[c[9]]; ok {
		t.Error("the oldest stayed")
	}
	if b, err := r.Block(t.Context(), c[10]); err != nil || b[0] != 10 {
		t.Errorf("%v %v", b, err)
	}
	big := someCIDs(recentEvents + 11)[recentEvents+10]
	r.keep(big, make([]byte, recentEventBytes+1))
	if _, ok := r.events[big]; ok {
		t.Error("a large event was kept")
	}
}

// While the view is made again under a watcher, the watcher misses nothing.
func TestWatcherOutlivesItsView(t *testing.T) {
	h := newHome(t)
	for i := range 20 {
		h.put(fmt.Sprintf(`{"_id":"d%d"}`, i))
	}
	next, stop := h.watch()
	defer stop()
	if err := h.cars.Derived().Reset(); err != nil {
		t.Fatal(err)
	}
	if err := h.exclusive(t.Context(), func() error { h.behind = true; return nil }); err != nil {
		t.Fatal(err)
	}
	h.put(`{"_id":"new"}`)
	for {
		c, err, ok := next()
		if err != nil || !ok {
			t.Fatal(err, ok)
		}
		if c.Doc.ID == "new" {
			break
		}
	}
	h.checkView()
}
