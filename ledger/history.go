package ledger

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"

	"github.com/ipfs/go-cid"

	"fpnode/blockstore"
	"fpnode/clock"
	"fpnode/pail"
)

// Version is one value a document has had.
type Version struct {
	Event   cid.Cid   // that wrote it
	Parents []cid.Cid // what the event built on
	Height  uint32    // steps from the genesis; a version built on another is higher
	Doc     Doc       // Deleted for a deletion
	Current bool      // the value Get returns; exactly one version of a document is current
	Missing bool      // Doc has no fields because its block is not here: a compaction by JavaScript drops old values
}

// History yields every version of a document, newest first: by height, at equal height by the text of the event's
// CID, so that two replicas with the same head list the same. An id nobody has written is [ErrNotFound].
func (l *Ledger) History(ctx context.Context, id string) iter.Seq2[Version, error] {
	return func(yield func(Version, error) bool) {
		versions, err := l.versions(id)
		if err != nil {
			yield(Version{}, fmt.Errorf("history of %.80q: %w", id, err))
			return
		}
		for _, v := range versions {
			out, err := l.readVersion(ctx, id, v)
			if err == nil {
				err = ctx.Err()
			}
			if err != nil {
				yield(Version{}, fmt.Errorf("history of %.80q: %w", id, err))
				return
			}
			if !yield(out, nil) {
				return
			}
		}
	}
}

// Conflict is a document that replicas wrote without knowing of each other, and that nobody has written since.
type Conflict struct {
	ID     string
	Winner Version   // the value Get returns
	Losers []Version // the others, newest first
}

// Conflicts yields the documents in conflict in the order of their ids, or only id unless it is "". A conflict is two
// or more writes of a document none of which knew another, with values that differ; writing the document once more
// ends it, and any of the losing values can be what is written.
//
// The winner was chosen by Pail's rule, the same on every replica: from the point where the histories parted, writes
// are applied in the order of their distance from the heads, the nearest last, and at equal distance in the order of
// the events' CIDs as text. So the write nearer to its head wins. Clocks on walls play no part.
func (l *Ledger) Conflicts(ctx context.Context, id string) iter.Seq2[Conflict, error] {
	return func(yield func(Conflict, error) bool) {
		fail := func(err error) { yield(Conflict{}, fmt.Errorf("listing conflicts: %w", err)) }
		emit := func(id string, ops []op) bool {
			c, ok, err := l.conflict(ctx, id, ops)
			if err == nil {
				err = ctx.Err()
			}
			if err != nil {
				fail(err)
				return false
			}
			return !ok || yield(c, nil)
		}
		if id != "" {
			ops, err := l.view.ops(id)
			if err != nil {
				fail(err)
				return
			}
			emit(id, ops)
			return
		}
		var cur string
		var ops []op
		for r, err := range l.view.allOps() {
			if err != nil {
				fail(err)
				return
			}
			if r.id != cur {
				if len(ops) > 1 && !emit(cur, ops) {
					return
				}
				cur, ops = r.id, ops[:0]
			}
			ops = append(ops, r.op)
		}
		if len(ops) > 1 {
			emit(cur, ops)
		}
	}
}

// version is a Version before its document is read.
type version struct {
	op
	event   cid.Cid
	parents []cid.Cid
	height  uint32
	current bool
}

// versions lists a document's versions, newest first.
func (l *Ledger) versions(id string) ([]version, error) {
	if err := checkID(id); err != nil {
		return nil, err
	}
	ops, err := l.view.ops(id)
	if err != nil {
		return nil, err
	}
	if len(ops) == 0 {
		return nil, ErrNotFound
	}
	return l.placeOps(id, ops)
}

// placeOps adds to ops where their events stand, and sorts them newest first.
func (l *Ledger) placeOps(id string, ops []op) ([]version, error) {
	e, _, err := l.view.get(id) // no document that has ops lacks an entry
	if err != nil {
		return nil, err
	}
	x, done, err := l.ancestry()
	if err != nil {
		return nil, err
	}
	defer done()
	out := make([]version, len(ops))
	for i, o := range ops {
		v := version{op: o, event: x.At(o.seq)}
		height, ok := x.Height(v.event)
		if !ok {
			return nil, fmt.Errorf("event %d: %w", o.seq, clock.ErrMissing)
		}
		v.height = height
		v.parents, _ = x.Parents(v.event)
		out[i] = v
	}
	slices.SortFunc(out, func(a, b version) int {
		return cmp.Or(cmp.Compare(b.height, a.height), clock.CompareText(b.event, a.event), cmp.Compare(b.n, a.n))
	})
	for i := range out {
		// Of several events that wrote the value the newest, so that every replica names the same.
		if out[i].value == e.value {
			out[i].current = true
			break
		}
	}
	return out, nil
}

// conflict says whether ops, all that was ever written to a document, leave it in conflict.
func (l *Ledger) conflict(ctx context.Context, id string, ops []op) (Conflict, bool, error) {
	if id == pail.GenesisKey || len(ops) < 2 {
		return Conflict{}, false, nil
	}
	versions, err := l.placeOps(id, ops)
	if err != nil {
		return Conflict{}, false, err
	}
	latest, err := l.unseen(versions)
	if err != nil || len(latest) < 2 {
		return Conflict{}, false, err
	}
	c := Conflict{ID: id}
	var winner cid.Cid
	for _, v := range versions {
		if v.current {
			winner = v.value
			if c.Winner, err = l.readVersion(ctx, id, v); err != nil {
				return Conflict{}, false, err
			}
		}
	}
	for _, v := range latest {
		if v.value == winner {
			continue
		}
		out, err := l.readVersion(ctx, id, v)
		if err != nil {
			return Conflict{}, false, err
		}
		c.Losers = append(c.Losers, out)
	}
	return c, len(c.Losers) > 0, nil
}

// unseen keeps the versions, sorted newest first, that no other version's event has among its ancestors. Of several
// ops of one batch the last counts.
func (l *Ledger) unseen(versions []version) ([]version, error) {
	x, done, err := l.ancestry()
	if err != nil {
		return nil, err
	}
	defer done()
	var out []version
	for _, v := range versions {
		if !slices.ContainsFunc(out, func(o version) bool { return x.IsAncestor(v.event, o.event) }) {
			out = append(out, v)
		}
	}
	return out, nil
}

func (l *Ledger) readVersion(ctx context.Context, id string, v version) (Version, error) {
	out := Version{Event: v.event, Parents: v.parents, Height: v.height, Current: v.current}
	d, err := l.doc(ctx, id, v.value)
	if errors.Is(err, blockstore.ErrNotFound) && !v.current {
		out.Missing, out.Doc = true, Doc{ID: id, CID: v.value}
		return out, nil
	}
	out.Doc = d
	return out, err
}
