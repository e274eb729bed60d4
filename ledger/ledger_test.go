package ledger

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/google/go-cmp/cmp"
	"github.com/ipfs/go-cid"

	"fpnode/blockstore"
	"fpnode/keyring"
)

// home is one node's disk and what is open on it.
type home struct {
	tb    testing.TB
	fs    vfs.FS
	dir   string
	ring  *keyring.Ring
	store *blockstore.Store
	cars  *blockstore.Ledger
	*Ledger
}

const testLedger = "todo"

// testKey is the key that the homes of a test share, as two people who imported one ledger do.
var testKey = func() keyring.Key {
	k, err := keyring.NewKey()
	if err != nil {
		panic(err)
	}
	return k
}()

// newHome makes a home in memory with one empty ledger.
func newHome(tb testing.TB) *home {
	tb.Helper()
	return openHome(tb, vfs.NewMem())
}

// openHome opens the ledger on a file system that may have been used before.
func openHome(tb testing.TB, fs vfs.FS) *home {
	tb.Helper()
	return openHomeAt(tb, fs, "home")
}

func openHomeAt(tb testing.TB, fs vfs.FS, dir string) *home {
	tb.Helper()
	h, err := tryHome(tb, fs, dir)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(h.close)
	return h
}

func tryHome(tb testing.TB, fs vfs.FS, dir string) (*home, error) {
	h := &home{tb: tb, fs: fs, dir: dir}
	if err := fs.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	var err error
	if h.ring, err = keyring.Open(fs, fs.PathJoin(dir, "keys")); err != nil {
		return nil, err
	}
	entry, err := h.ring.Lookup(testLedger)
	if errors.Is(err, keyring.ErrNotFound) {
		entry, err = h.ring.Create(testLedger, []keyring.Key{testKey})
	}
	if err != nil {
		return nil, err
	}
	if h.store, err = blockstore.Open(blockstore.Config{FS: fs, Dir: dir, Vault: h.ring.Vault()}); err != nil {
		return nil, err
	}
	if h.cars, err = h.store.Ledger(entry.ID, entry.Keys); err == nil {
		h.Ledger, err = Open(context.Background(), Config{Name: testLedger, ID: entry.ID, Store: h.cars})
	}
	if err != nil {
		h.store.Close()
		return nil, err
	}
	return h, nil
}

func (h *home) close() {
	if h.Ledger == nil {
		return
	}
	if err := h.Ledger.Close(); err != nil {
		h.tb.Error(err)
	}
	if err := h.store.Close(); err != nil {
		h.tb.Error(err)
	}
	h.Ledger = nil
}

// reopen closes everything and opens it again.
func (h *home) reopen() {
	h.tb.Helper()
	h.close()
	n := openHomeAt(h.tb, h.fs, h.dir)
	*h = *n
	n.Ledger = nil // h is the one that is closed
	h.tb.Cleanup(h.close)
}

func draft(tb testing.TB, doc string) Draft {
	tb.Helper()
	d, err := ParseJSON([]byte(doc))
	if err != nil {
		tb.Fatalf("%s: %v", doc, err)
	}
	return d
}

// put writes JSON documents in one event.
func (h *home) put(docs ...string) Receipt {
	h.tb.Helper()
	var drafts []Draft
	for _, d := range docs {
		drafts = append(drafts, draft(h.tb, d))
	}
	r, err := h.Put(context.Background(), drafts...)
	if err != nil {
		h.tb.Fatal(err)
	}
	return r
}

func (h *home) del(ids ...string) {
	h.tb.Helper()
	if _, err := h.Delete(context.Background(), ids...); err != nil {
		h.tb.Fatal(err)
	}
}

// get is a document as JSON, "" if there is none.
func (h *home) get(id string) string {
	h.tb.Helper()
	d, err := h.Get(context.Background(), id)
	if errors.Is(err, ErrNotFound) {
		return ""
	}
	if err != nil {
		h.tb.Fatal(err)
	}
	return toJSON(h.tb, d)
}

func toJSON(tb testing.TB, d Doc) string {
	tb.Helper()
	b, err := json.Marshal(d)
	if err != nil {
		tb.Fatal(err)
	}
	return string(b)
}

// list is AllDocs as JSON lines.
func (h *home) list(o ListOptions) []string {
	h.tb.Helper()
	var out []string
	for d, err := range h.AllDocs(context.Background(), o) {
		if err != nil {
			h.tb.Fatal(err)
		}
		out = append(out, toJSON(h.tb, d))
	}
	return out
}

// dump is everything that two replicas with the same head must have in common.
type dump struct {
	Head      []string
	Root      string
	Docs      []string
	Count     int
	History   map[string][]string
	Conflicts []string
}

func (h *home) dump() dump {
	h.tb.Helper()
	ctx := context.Background()
	d := dump{Head: textsOf(h.Head()), Docs: h.list(ListOptions{IncludeDeleted: true}), History: map[string][]string{}}
	slices.Sort(d.Head)
	info, err := h.Info(ctx)
	if err != nil {
		h.tb.Fatal(err)
	}
	d.Root, d.Count = info.Root.String(), info.Docs
	if n := len(h.list(ListOptions{})); n != info.Docs {
		h.tb.Errorf("Info counts %d documents, AllDocs lists %d", info.Docs, n)
	}
	for doc, err := range h.AllDocs(ctx, ListOptions{IncludeDeleted: true}) {
		if err != nil {
			h.tb.Fatal(err)
		}
		current := 0
		for v, err := range h.History(ctx, doc.ID) {
			if err != nil {
				h.tb.Fatal(err)
			}
			if v.Current {
				current++
				if v.Doc.CID != doc.CID {
					h.tb.Errorf("%s: current version is %s, document is %s", doc.ID, v.Doc.CID, doc.CID)
				}
			}
			text := "missing"
			if !v.Missing {
				text = toJSON(h.tb, v.Doc)
			}
			d.History[doc.ID] = append(d.History[doc.ID], fmt.Sprint(v.Height, v.Event, text, v.Current))
		}
		if current != 1 {
			h.tb.Errorf("%s has %d current versions", doc.ID, current)
		}
	}
	for c, err := range h.Conflicts(ctx, "") {
		if err != nil {
			h.tb.Fatal(err)
		}
		s := c.ID + ": " + toJSON(h.tb, c.Winner.Doc) + " over"
		for _, l := range c.Losers {
			s += " " + toJSON(h.tb, l.Doc)
		}
		d.Conflicts = append(d.Conflicts, s)
	}
	return d
}

func textsOf(cids []cid.Cid) []string {
	out := make([]string, len(cids))
	for i, c := range cids {
		out[i] = c.String()
	}
	return out
}

// carsOf is all CARs of a home as h accepts them from a peer.
func (h *home) carsOf(o *home) []blockstore.CAR {
	h.tb.Helper()
	var out []blockstore.CAR
	for ref, err := range o.cars.Refs() {
		if err != nil {
			h.tb.Fatal(err)
		}
		if h.cars.Known(ref.Name) {
			continue
		}
		sealed, err := o.cars.Sealed(context.Background(), ref)
		if err != nil {
			h.tb.Fatal(err)
		}
		c, err := h.cars.Accept(ref, sealed)
		if err != nil {
			h.tb.Fatal(err)
		}
		out = append(out, c)
	}
	return out
}

// mergeFrom takes over what another home has, as a peer does. Everything must be accepted.
func (h *home) mergeFrom(o *home) MergeResult {
	h.tb.Helper()
	res, err := h.Merge(context.Background(), o.Tips(), h.carsOf(o))
	if err != nil {
		h.tb.Fatal(err)
	}
	if len(res.Waiting) > 0 || len(res.Quarantined) > 0 {
		h.tb.Fatalf("waiting %v, quarantined %v", res.Waiting, res.Quarantined)
	}
	return res
}

func wantEqual(tb testing.TB, what string, got, want any) {
	tb.Helper()
	if d := cmp.Diff(want, got); d != "" {
		tb.Errorf("%s (-want +got):\n%s", what, d)
	}
}

func TestPutGetDelete(t *testing.T) {
	h := newHome(t)
	r := h.put(`{"_id":"a","n":1}`)
	wantEqual(t, "ids", r.IDs, []string{"a"})
	wantEqual(t, "get", h.get("a"), `{"n":1,"_id":"a"}`)
	h.put(`{"_id":"a","n":2.5,"list":[null,true,"x"]}`)
	wantEqual(t, "get", h.get("a"), `{"n":2.5,"_id":"a","list":[null,true,"x"]}`)
	h.put(`{"_id":"b"}`, `{"_id":"c","_deleted":true}`)
	h.del("a", "never")
	wantEqual(t, "get", h.get("a"), "")
	wantEqual(t, "soft deletion hides from lists only", h.get("c"), `{"_id":"c","_deleted":true}`)
	wantEqual(t, "docs", h.list(ListOptions{}), []string{`{"_id":"b"}`})
	wantEqual(t, "all", h.list(ListOptions{IncludeDeleted: true}), []string{
		`{"_id":"a","_deleted":true}`, `{"_id":"b"}`, `{"_id":"c","_deleted":true}`, `{"_id":"never","_deleted":true}`,
	})
	before := h.dump()
	h.reopen()
	wantEqual(t, "after a restart", h.dump(), before)
}
