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

	"fpnode/pail"
)

func TestAllDocsOptions(t *testing.T) {
	h := newHome(t)
	for _, id := range []string{"a", "b", "b1", "b1x", "b2", "c", "~"} {
		h.put(fmt.Sprintf(`{"_id":%q}`, id))
	}
	h.del("b1x")
	for _, tt := range []struct {
		name string
		o    ListOptions
		want string
	}{
		{"all", ListOptions{}, "a b b1 b2 c ~"},
		{"deleted too", ListOptions{IncludeDeleted: true}, "a b b1 b1x b2 c ~"},
		{"limit", ListOptions{Limit: 2}, "a b"},
		{"limit counts what is shown", ListOptions{From: "b1", Limit: 2}, "b1 b2"},
		{"descending", ListOptions{Descending: true, Limit: 3}, "~ c b2"},
		{"key", ListOptions{Key: "b"}, "b"},
		{"absent key", ListOptions{Key: "bb"}, ""},
		{"prefix", ListOptions{Prefix: "b"}, "b b1 b2"},
		{"prefix of the last", ListOptions{Prefix: "~"}, "~"},
		{"range includes both ends", ListOptions{From: "b1", To: "c"}, "b1 b2 c"},
		{"from", ListOptions{From: "b3"}, "c ~"},
		{"to", ListOptions{To: "b"}, "a b"},
		{"prefix in range", ListOptions{Prefix: "b", From: "b1", To: "b1z"}, "b1"},
		{"empty range", ListOptions{From: "c", To: "b"}, ""},
		{"key outside range", ListOptions{Key: "a", From: "b"}, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var ids []string
			for d, err := range h.AllDocs(t.Context(), tt.o) {
				if err != nil {
					t.Fatal(err)
				}
				ids = append(ids, d.ID)
			}
			wantEqual(t, "ids", strings.Join(ids, " "), tt.want)
		})
	}
}

func TestAllDocsIsOneSnapshot(t *testing.T) {
	h := newHome(t)
	h.put(`{"_id":"a"}`, `{"_id":"b"}`, `{"_id":"c"}`)
	var ids []string
	for d, err := range h.AllDocs(t.Context(), ListOptions{}) {
		if err != nil {
			t.Fatal(err)
		}
		ids = append(ids, d.ID)
		h.put(fmt.Sprintf(`{"_id":"d%d"}`, len(ids)))
		h.del("c")
	}
	wantEqual(t, "ids", ids, []string{"a", "b", "c"})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for _, err := range h.AllDocs(ctx, ListOptions{}) {
		if !errors.Is(err, context.Canceled) {
			t.Errorf("after the context ended: %v", err)
		}
	}
}

// changes is Changes as "id value" lines.
func (h *home) changes(since []cid.Cid, limit int) []string {
	h.tb.Helper()
	var out []string
	for c, err := range h.Changes(context.Background(), since, limit) {
		if err != nil {
			h.tb.Fatal(err)
		}
		out = append(out, toJSON(h.tb, c.Doc))
	}
	return out
}

func TestChanges(t *testing.T) {
	h := newHome(t)
	wantEqual(t, "of an empty ledger", len(h.changes(nil, 0)), 0)
	h.put(`{"_id":"a","n":1}`)
	first := h.Head()
	h.put(`{"_id":"b","n":1}`, `{"_id":"c","n":1}`, `{"_id":"b","n":2}`)
	second := h.Head()
	h.del("a")
	all := []string{`{"n":1,"_id":"c"}`, `{"n":2,"_id":"b"}`, `{"_id":"a","_deleted":true}`}
	wantEqual(t, "all", h.changes(nil, 0), all)
	wantEqual(t, "since the first", h.changes(first, 0), all)
	wantEqual(t, "since the second", h.changes(second, 0), all[2:])
	wantEqual(t, "since now", len(h.changes(h.Head(), 0)), 0)
	wantEqual(t, "the newest", h.changes(nil, 2), all[1:])
	for c, err := range h.Changes(t.Context(), second, 0) {
		if err != nil {
			t.Fatal(err)
		}
		wantEqual(t, "clock", c.Clock.String(), h.Head()[0].String())
	}
	for _, err := range h.Changes(t.Context(), someCIDs(1), 0) {
		if !errors.Is(err, ErrUnknownClock) {
			t.Errorf("unknown clock: %v", err)
		}
	}
}

// A clock that covers one of several heads still leaves the others' changes to be seen.
func TestChangesSinceOneOfTwoHeads(t *testing.T) {
	a, b := fork(t)
	own := a.Head()
	a.mergeFrom(b)
	wantEqual(t, "before the join", a.changes(own, 0), []string{`{"v":"b1","_id":"both"}`, `{"_id":"only-b"}`})
	a.put(`{"_id":"join"}`)
	wantEqual(t, "after it", a.changes(own, 0), []string{`{"v":"b1","_id":"both"}`, `{"_id":"only-b"}`, `{"_id":"join"}`})
}

// Following from clock to clock names every document that an event wrote which the clock before did not cover.
func TestChangesMissNothing(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) {
		tb := rapidTB{t, r}
		a, b := newHome(tb), newHome(tb)
		defer a.close()
		defer b.close()
		known := map[cid.Cid]bool{}
		var since []cid.Cid
		for i := range rapid.IntRange(1, 15).Draw(r, "steps") {
			w := a
			if rapid.Bool().Draw(r, "other") {
				w = b
			}
			w.put(fmt.Sprintf(`{"_id":"d%d","n":%d}`, rapid.IntRange(0, 3).Draw(r, "id"), i))
			if rapid.Bool().Draw(r, "merge") {
				a.mergeFrom(b)
			}
			if rapid.Bool().Draw(r, "back") {
				b.mergeFrom(a)
			}
			if !rapid.Bool().Draw(r, "follow") {
				continue
			}
			want := map[string]bool{}
			for stack := a.Head(); len(stack) > 0; {
				c := stack[len(stack)-1]
				stack = stack[:len(stack)-1]
				if known[c] {
					continue
				}
				known[c] = true
				e := must(fetchEvent(tb.Context(), a.cars, c))
				for _, o := range must(readEvent(tb.Context(), a.cars, c)).Ops {
					want[o.Key] = true
				}
				stack = append(stack, e.Parents...)
			}
			delete(want, pail.GenesisKey)
			got := map[string]bool{}
			for c, err := range a.Changes(tb.Context(), since, 0) {
				if err != nil {
					tb.Fatal(err)
				}
				got[c.Doc.ID] = true
			}
			wantEqual(tb, "documents", got, want)
			since = a.Head()
		}
	})
}

func TestHistory(t *testing.T) {
	a, b := fork(t)
	a.mergeFrom(b)
	a.put(`{"_id":"both","v":"joined"}`)
	a.del("both")
	b.mergeFrom(a)
	var got []string
	var events []cid.Cid
	for v, err := range a.History(t.Context(), "both") {
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, fmt.Sprint(v.Height, " ", toJSON(t, v.Doc), " ", v.Current, " ", len(v.Parents)))
		events = append(events, v.Event)
	}
	wantEqual(t, "versions", got, []string{
		`5 {"_id":"both","_deleted":true} true 1`,
		`4 {"v":"joined","_id":"both"} false 2`,
		got[2], got[3], // concurrent, ordered by CID
		`1 {"v":0,"_id":"both"} false 1`,
	})
	both := []string{got[2], got[3]}
	slices.Sort(both)
	wantEqual(t, "concurrent", both, []string{`2 {"v":"a","_id":"both"} false 1`, `2 {"v":"b1","_id":"both"} false 1`})
	if events[0] != a.Head()[0] {
		t.Errorf("the newest version is by %s", events[0])
	}
	wantEqual(t, "on the other replica", b.dump(), a.dump())
	for _, err := range a.History(t.Context(), "nobody") {
		if !errors.Is(err, ErrNotFound) {
			t.Errorf("history of nothing: %v", err)
		}
	}
}

func TestConflicts(t *testing.T) {
	a, b := fork(t)
	a.put(`{"_id":"same","v":1}`)
	b.put(`{"_id":"same","v":1}`)
	a.del("base")
	b.put(`{"_id":"base","v":"b"}`)
	a.mergeFrom(b)
	conflicts := func(id string) (out []string) {
		for c, err := range a.Conflicts(t.Context(), id) {
			if err != nil {
				t.Fatal(err)
			}
			if !c.Winner.Current {
				t.Errorf("%s: the winner is not current", c.ID)
			}
			out = append(out, c.ID)
			for _, l := range c.Losers {
				out = append(out, toJSON(t, l.Doc))
			}
		}
		return out
	}
	winner := a.get("base")
	loser := map[string]string{"": `{"v":"b","_id":"base"}`, `{"v":"b","_id":"base"}`: `{"_id":"base","_deleted":true}`}[winner]
	wantEqual(t, "all", conflicts(""), []string{"base", loser, "both", conflicts("both")[1]})
	wantEqual(t, "of one", conflicts("base"), []string{"base", loser})
	wantEqual(t, "equal values are none", len(conflicts("same")), 0)
	a.put(`{"_id":"unrelated"}`)
	wantEqual(t, "an unrelated write leaves them", len(conflicts("base")), 2)
	a.put(`{"_id":"base","v":"settled"}`)
	wantEqual(t, "writing the document ends one", len(conflicts("base")), 0)
}
