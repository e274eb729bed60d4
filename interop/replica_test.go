//go:build interop || bench

package interop

import (
	"context"
	"encoding/json"
	"slices"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/ipfs/go-cid"

	"fpnode/blockstore"
	"fpnode/keyring"
	"fpnode/ledger"
)

// replica is one Go ledger in a home of its own, on a file system in memory.
type replica struct {
	t     testing.TB
	ring  *keyring.Ring
	store *blockstore.Store
	cars  *blockstore.Ledger
	l     *ledger.Ledger
}

func newReplica(t testing.TB, name string, keys ...keyring.Key) *replica {
	t.Helper()
	return newReplicaOn(t, vfs.NewMem(), "home", name, keys...)
}

func newReplicaOn(t testing.TB, fs vfs.FS, home, name string, keys ...keyring.Key) *replica {
	t.Helper()
	if err := fs.MkdirAll(home, 0o700); err != nil {
		t.Fatal(err)
	}
	ring, err := keyring.Open(fs, fs.PathJoin(home, "keys"))
	if err != nil {
		t.Fatal(err)
	}
	entry, err := ring.Lookup(name)
	if err != nil {
		if entry, err = ring.Create(name, keys); err != nil {
			t.Fatal(err)
		}
	}
	store, err := blockstore.Open(blockstore.Config{FS: fs, Dir: home, Vault: ring.Vault()})
	if err != nil {
		t.Fatal(err)
	}
	cars, err := store.Ledger(entry.ID, entry.Keys)
	if err != nil {
		t.Fatal(err)
	}
	l, err := ledger.Open(context.Background(), ledger.Config{Name: name, ID: entry.ID, Store: cars})
	if err != nil {
		t.Fatal(err)
	}
	r := &replica{t: t, ring: ring, store: store, cars: cars, l: l}
	t.Cleanup(r.close)
	return r
}

func (r *replica) close() {
	if r.l == nil {
		return
	}
	if err := r.l.Close(); err != nil {
		r.t.Error(err)
	}
	if err := r.store.Close(); err != nil {
		r.t.Error(err)
	}
	r.l = nil
}

// missingFrom fetches and verifies what the other has and this one lacks.
func (r *replica) missingFrom(o *replica) []blockstore.CAR {
	r.t.Helper()
	var cars []blockstore.CAR
	for ref, err := range o.cars.Refs() {
		if err != nil {
			r.t.Fatal(err)
		}
		if r.cars.Known(ref.Name) {
			continue
		}
		sealed, err := o.cars.Sealed(context.Background(), ref)
		if err != nil {
			r.t.Fatal(err)
		}
		c, err := r.cars.Accept(ref, sealed)
		if err != nil {
			r.t.Fatal(err)
		}
		cars = append(cars, c)
	}
	return cars
}

// mergeFrom merges the other's tips, as two peers do.
func (r *replica) mergeFrom(o *replica) {
	r.t.Helper()
	res, err := r.l.Merge(context.Background(), o.l.Tips(), r.missingFrom(o))
	if err != nil {
		r.t.Fatal(err)
	}
	if len(res.Waiting) > 0 || len(res.Quarantined) > 0 {
		r.t.Fatalf("merge left %d waiting and %d quarantined: %+v", len(res.Waiting), len(res.Quarantined), res)
	}
}

func (r *replica) put(docs ...string) ledger.Receipt {
	r.t.Helper()
	var drafts []ledger.Draft
	for _, d := range docs {
		draft, err := ledger.ParseJSON([]byte(d))
		if err != nil {
			r.t.Fatal(err)
		}
		drafts = append(drafts, draft)
	}
	rec, err := r.l.Put(context.Background(), drafts...)
	if err != nil {
		r.t.Fatal(err)
	}
	return rec
}

func (r *replica) del(ids ...string) {
	r.t.Helper()
	if _, err := r.l.Delete(context.Background(), ids...); err != nil {
		r.t.Fatal(err)
	}
}

// docs maps every id, deleted ones too, to its document as JSON with sorted keys.
func (r *replica) docs() map[string]string {
	r.t.Helper()
	m := map[string]string{}
	for d, err := range r.l.AllDocs(context.Background(), ledger.ListOptions{IncludeDeleted: true}) {
		if err != nil {
			r.t.Fatal(err)
		}
		b, err := d.MarshalJSON()
		if err != nil {
			r.t.Fatal(err)
		}
		m[d.ID] = canonical(r.t, b)
	}
	return m
}

func (r *replica) root() string {
	r.t.Helper()
	if len(r.l.Head()) == 0 {
		return ""
	}
	c, err := r.l.Root(context.Background())
	if err != nil {
		r.t.Fatal(err)
	}
	return c.String()
}

func (s jsState) docs(t testing.TB) map[string]string {
	t.Helper()
	m := map[string]string{}
	for _, d := range s.Docs {
		m[d.Key] = canonical(t, d.Value)
	}
	return m
}

// canonical rewrites JSON with sorted keys and one number form, so that two printers can be compared.
func canonical(t testing.TB, b []byte) string {
	t.Helper()
	var v any
	if err := json.Unmarshal(b, &v); err != nil {
		t.Fatalf("%v in %.200s", err, b)
	}
	out, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(out)
}

// sortedCIDs gives heads as sets.
func sortedCIDs(l []cid.Cid) []string {
	out := make([]string, len(l))
	for i, c := range l {
		out[i] = c.String()
	}
	slices.Sort(out)
	return out
}
