package ledger

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"testing"
)

// watch starts a watcher and returns a function for its next change.
func (h *home) watch() (next func() (Change, error, bool), stop func()) {
	return iter.Pull2(h.Watch(context.Background()))
}

func (h *home) watching() int {
	h.watchMu.Lock()
	defer h.watchMu.Unlock()
	return len(h.watchers)
}

func TestWatchSeesLocalAndMergedChanges(t *testing.T) {
	a, b := fork(t)
	a.put(`{"_id":"before"}`)
	next, stop := a.watch()
	defer stop()
	want := func(doc string) {
		t.Helper()
		c, err, ok := next()
		if err != nil || !ok {
			t.Fatal(err, ok)
		}
		wantEqual(t, "change", toJSON(t, c.Doc), doc)
		if !c.Clock.Defined() {
			t.Error("no clock")
		}
	}
	r := a.put(`{"_id":"x","n":1}`, `{"_id":"y"}`)
	want(`{"n":1,"_id":"x"}`)
	want(`{"_id":"y"}`)
	a.put(`{"_id":"x","n":1}`) // nothing changes
	a.del("x")
	want(`{"_id":"x","_deleted":true}`)
	a.mergeFrom(b) // "both" keeps a's value or takes b's
	if both := a.get("both"); both != `{"v":"a","_id":"both"}` {
		want(both)
	}
	want(`{"_id":"only-b"}`)
	if len(r.Clock) != 1 {
		t.Error("receipt without clock")
	}
}

// A watcher that is far behind sees the last change of every document, and then goes on.
func TestWatchNeverDropsInSilence(t *testing.T) {
	h := newHome(t)
	h.put(`{"_id":"before"}`)
	next, stop := h.watch()
	defer stop()
	const docs = 700
	for round := range 3 {
		for i := 0; i < docs; i += 100 {
			var batch []string
			for j := range 100 {
				batch = append(batch, fmt.Sprintf(`{"_id":"d%03d","round":%d}`, i+j, round))
			}
			h.put(batch...)
		}
	}
	h.put(`{"_id":"end"}`)
	last := map[string]string{}
	n := 0
	for last["end"] == "" {
		c, err, ok := next()
		if err != nil || !ok {
			t.Fatal(err, ok)
		}
		n++
		last[c.Doc.ID] = toJSON(t, c.Doc)
	}
	wantEqual(t, "documents", len(last), docs+1)
	for i := range docs {
		id := fmt.Sprintf("d%03d", i)
		wantEqual(t, id, last[id], h.get(id))
	}
	if n > 2*docs+watchBuffer {
		t.Errorf("%d changes for %d documents", n, docs)
	}
	h.put(`{"_id":"more"}`)
	c, err, _ := next()
	if err != nil {
		t.Fatal(err)
	}
	wantEqual(t, "afterwards", c.Doc.ID, "more")
}

func TestWatchEnds(t *testing.T) {
	h := newHome(t)
	h.put(`{"_id":"a"}`)
	next, stop := h.watch()
	defer stop()
	if err := h.Ledger.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err, ok := next(); !ok || !errors.Is(err, ErrClosed) {
		t.Errorf("after Close: %v %v", err, ok)
	}
	if _, _, ok := next(); ok {
		t.Error("it went on after its error")
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	g := newHome(t)
	for _, err := range g.Watch(ctx) {
		if !errors.Is(err, context.Canceled) {
			t.Errorf("after cancel: %v", err)
		}
	}
	if g.watching() != 0 {
		t.Error("a watcher was left behind")
	}
}
