package ledger

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/ipfs/go-cid"

	"fpnode/blockstore"
	"fpnode/internal/dagcbor"
)

func someCIDs(n int) []cid.Cid {
	var out []cid.Cid
	for i := range n {
		out = append(out, dagcbor.Sum(dagcbor.AppendInt(nil, int64(i))))
	}
	return out
}

func TestViewRecordsReadBack(t *testing.T) {
	c := someCIDs(9)
	e := entry{flags: flagTombstone, change: 1 << 40, event: 77, value: c[0]}
	got, err := parseEntry(appendEntry(nil, e))
	if err != nil || got != e {
		t.Errorf("entry %v became %v, %v", e, got, err)
	}
	for _, s := range []state{
		{},
		{head: c[:1], root: c[1], events: 5, changes: 1 << 33, docs: 3, tips: []blockstore.Meta{{CID: c[2]}}},
		{head: c[:3], root: c[4], tips: []blockstore.Meta{{CID: c[5]}, {CID: c[6]}}, joined: c[7:9]},
	} {
		got, tips, err := parseState(appendState(nil, &s))
		if err != nil {
			t.Fatal(err)
		}
		wantEqual(t, "tips", textsOf(tips), textsOf(metaCIDs(s.tips)))
		got.tips, s.tips = nil, nil
		if d := cmp.Diff(fmt.Sprint(s), fmt.Sprint(got)); d != "" {
			t.Error(d)
		}
	}
	id, o, err := parseOp(opKey("some id", 7, 9), []byte(c[3].KeyString()))
	if err != nil || id != "some id" || o != (op{seq: 7, n: 9, value: c[3]}) {
		t.Errorf("op: %q %v %v", id, o, err)
	}
}

func FuzzParseState(f *testing.F) {
	c := someCIDs(4)
	f.Add(appendState(nil, &state{}))
	f.Add(appendState(nil, &state{head: c[:2], root: c[2], joined: c[3:]}))
	f.Fuzz(func(t *testing.T, b []byte) {
		s, tips, err := parseState(b)
		if err != nil {
			return
		}
		for _, c := range tips {
			s.tips = append(s.tips, blockstore.Meta{CID: c})
		}
		if again := appendState(nil, &s); string(again) != string(b) {
			t.Fatalf("%x became %x", b, again)
		}
	})
}

func FuzzParseViewRecords(f *testing.F) {
	c := someCIDs(1)[0]
	f.Add(appendEntry(nil, entry{value: c}), []byte(c.KeyString()))
	f.Add(opKey("a", 1, 2), []byte(c.KeyString()))
	f.Add(eventKey(3), []byte(c.KeyString()+c.KeyString()))
	f.Fuzz(func(t *testing.T, k, v []byte) {
		parseEntry(k)
		parseEntry(v)
		parseOp(k, v)
		parseEvent(k, v)
	})
}

// history writes a few hundred events in several replicas and leaves h with several heads.
func someHistory(t *testing.T, h *home) {
	t.Helper()
	rnd := rand.New(rand.NewPCG(7, 7))
	o := newHome(t)
	for i := range 120 {
		w := h
		if rnd.IntN(2) == 0 {
			w = o
		}
		switch id := fmt.Sprintf("doc%d", rnd.IntN(30)); rnd.IntN(6) {
		case 0:
			w.del(id)
		case 1:
			w.put(fmt.Sprintf(`{"_id":%q,"n":%d,"_deleted":true}`, id, i))
		case 2:
			w.put(fmt.Sprintf(`{"_id":%q,"n":%d}`, id, i), fmt.Sprintf(`{"_id":"other%d","n":%d}`, rnd.IntN(9), i))
		default:
			w.put(fmt.Sprintf(`{"_id":%q,"n":%d}`, id, i))
		}
		switch rnd.IntN(12) {
		case 0:
			h.mergeFrom(o)
		case 1:
			o.mergeFrom(h)
		}
	}
	h.put(`{"_id":"last","by":"h"}`)
	o.put(`{"_id":"last","by":"o"}`)
	h.mergeFrom(o)
	if len(h.Head()) < 2 {
		t.Fatal("the history has one head")
	}
}

// A view that is lost, or that a crash left behind the tips, is made again and says the same.
func TestViewIsMadeAgain(t *testing.T) {
	h := newHome(t)
	someHistory(t, h)
	want := h.dump()
	for _, loss := range []struct {
		name string
		do   func(*blockstore.Derived)
	}{
		{"nothing", func(*blockstore.Derived) {}},
		{"everything", func(d *blockstore.Derived) { must(0, d.Reset()) }},
		{"the state record", func(d *blockstore.Derived) {
			change(d, func(b *blockstore.DerivedBatch) { b.Delete([]byte{keyState}) })
		}},
		{"an event record", func(d *blockstore.Derived) {
			change(d, func(b *blockstore.DerivedBatch) {
				b.Delete(eventKey(5))
				b.Set([]byte{keyState}, appendState(nil, &state{}))
			})
		}},
		{"the sense of the state record", func(d *blockstore.Derived) {
			change(d, func(b *blockstore.DerivedBatch) { b.Set([]byte{keyState}, []byte("nonsense that is long enough")) })
		}},
	} {
		t.Run(loss.name, func(t *testing.T) {
			loss.do(h.cars.Derived())
			h.reopen()
			wantEqual(t, "state", h.dump(), want)
		})
	}
}

func change(d *blockstore.Derived, f func(*blockstore.DerivedBatch)) {
	b := d.NewBatch()
	defer b.Close()
	f(b)
	if err := b.Commit(); err != nil {
		panic(err)
	}
}

// At every point of a history, going back to the view of any earlier point and opening gives the present.
func TestViewCatchesUpFromAnyPoint(t *testing.T) {
	h, o := newHome(t), newHome(t)
	var past [][]blockstore.KV
	save := func() {
		var all []blockstore.KV
		for kv, err := range h.cars.Derived().Scan(nil, nil, false) {
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, blockstore.KV{Key: append([]byte(nil), kv.Key...), Value: append([]byte(nil), kv.Value...)})
		}
		past = append(past, all)
	}
	for i := range 12 {
		save()
		h.put(fmt.Sprintf(`{"_id":"a","h":%d}`, i), fmt.Sprintf(`{"_id":"h%d"}`, i))
		if i%3 == 1 {
			h.del("a")
		}
		o.put(fmt.Sprintf(`{"_id":"a","o":%d}`, i))
		if i%2 == 0 {
			h.mergeFrom(o)
		}
		if i == 8 {
			o.mergeFrom(h)
		}
	}
	save()
	want, present := h.dump(), past[len(past)-1]
	for i, records := range past {
		for _, cut := range []string{"before it", "after its events", "among its keys"} {
			d := h.cars.Derived()
			if err := d.Reset(); err != nil {
				t.Fatal(err)
			}
			change(d, func(b *blockstore.DerivedBatch) {
				for _, kv := range records {
					b.Set(kv.Key, kv.Value)
				}
				if cut != "before it" {
					halfway(b, records, present, cut == "among its keys")
				}
			})
			h.reopen()
			wantEqual(t, fmt.Sprintf("from point %d, cut off %s", i, cut), h.dump(), want)
			h.checkView()
		}
	}
}

// halfway leaves a view as an update from one state to another does that is cut off after its events, or after every
// second of its keys.
func halfway(b *blockstore.DerivedBatch, from, to []blockstore.KV, keys bool) {
	old := map[string][]byte{}
	for _, kv := range from {
		old[string(kv.Key)] = kv.Value
	}
	n := 0
	for _, kv := range to {
		switch kv.Key[0] {
		case keyEvent, keyOp:
			b.Set(kv.Key, kv.Value)
		case keyView:
			was, had := old[string(kv.Key)]
			if n++; !keys || n%2 == 0 || string(was) == string(kv.Value) {
				continue
			}
			if had {
				e := must(parseEntry(was))
				b.Delete(changeKey(e.change))
			}
			b.Set(kv.Key, kv.Value)
			b.Set(changeKey(must(parseEntry(kv.Value)).change), kv.Key[1:])
		}
	}
}

// checkView checks what the view promises about itself.
func (h *home) checkView() {
	h.tb.Helper()
	changes := map[uint64]string{}
	for r, err := range h.view.changesAfter(0) {
		if err != nil {
			h.tb.Fatal(err)
		}
		changes[r.change] = r.id
	}
	n := 0
	for r, err := range h.view.entries("", "", false) {
		if err != nil {
			h.tb.Fatal(err)
		}
		n++
		if changes[r.change] != r.id {
			h.tb.Errorf("%s changed last in %d, which is recorded of %q", r.id, r.change, changes[r.change])
		}
		e, err := h.view.event(r.event)
		if err != nil {
			h.tb.Fatal(err)
		}
		data, err := readEvent(h.tb.Context(), h.cars, e.cid)
		if err != nil {
			h.tb.Fatal(err)
		}
		found := false
		for _, o := range data.Ops {
			found = found || o.Key == r.id && o.Value == r.value
		}
		if !found {
			h.tb.Errorf("%s: event %s did not write its value", r.id, e.cid)
		}
	}
	if len(changes) != n {
		h.tb.Errorf("%d change records for %d keys", len(changes), n)
	}
	if s := h.state.Load(); len(changes) > 0 && changes[s.changes] == "" {
		h.tb.Errorf("no change has the last number %d", s.changes)
	}
}

func TestDocCache(t *testing.T) {
	c := newDocCache(16 * 4 * (hotDocOverhead + 100))
	doc := func(id string, n int) Doc { return Doc{ID: id, CID: someCIDs(n + 1)[n], block: make([]byte, 50)} }
	_, ok, gen := c.get("a")
	if ok {
		t.Fatal("found in an empty cache")
	}
	c.set([]Doc{doc("a", 1)}, nil)
	c.add(doc("a", 0), gen) // read before the update
	if d, ok, _ := c.get("a"); !ok || d.CID != doc("a", 1).CID {
		t.Error("a reader put back an older value")
	}
	c.set(nil, []string{"a"})
	if _, ok, _ := c.get("a"); ok {
		t.Error("a dropped key was found")
	}
	for i := range 1000 {
		c.set([]Doc{doc(fmt.Sprint(i), 0)}, nil)
	}
	var bytes, n int64
	for i := range c.parts {
		bytes += c.parts[i].bytes
		n += int64(len(c.parts[i].docs))
	}
	if bytes > 16*4*(hotDocOverhead+100) || n == 0 {
		t.Errorf("%d bytes in %d entries", bytes, n)
	}
	c.set([]Doc{{ID: "big", block: make([]byte, 1<<20)}}, nil)
	if _, ok, _ := c.get("big"); ok {
		t.Error("a document as large as the cache was kept")
	}
}
