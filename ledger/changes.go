package ledger

import (
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

// ListOptions narrows AllDocs. The zero value lists every document.
type ListOptions struct {
	Key            string // only this one
	Prefix         string // only ids that begin with it
	From, To       string // only ids between them, both included; "" is no bound
	Descending     bool
	Limit          int  // 0 is no limit
	IncludeDeleted bool // tombstones too, and documents with a truthy _deleted field
}

// AllDocs yields the current documents in the order of their ids, over one snapshot of the ledger. Unlike
// JavaScript Fireproof 0.24, which reads only limit and includeDeleted, it honours every option.
func (l *Ledger) AllDocs(ctx context.Context, o ListOptions) iter.Seq2[Doc, error] {
	return func(yield func(Doc, error) bool) {
		from, to := o.bounds()
		n := 0
		for r, err := range l.view.entries(from, to, o.Descending) {
			if err == nil {
				err = ctx.Err()
			}
			if err != nil {
				yield(Doc{}, fmt.Errorf("listing documents: %w", err))
				return
			}
			if r.flags&flagHidden != 0 || (!o.IncludeDeleted && !r.listed()) {
				continue
			}
			d, ok := l.docs.peek(r.id, r.value)
			if !ok {
				if d, err = l.doc(ctx, r.id, r.value); err != nil {
					yield(Doc{}, fmt.Errorf("listing documents: %w", err))
					return
				}
			}
			if !yield(d, nil) {
				return
			}
			if n++; n == o.Limit {
				return
			}
		}
	}
}

// bounds is the options as one half-open range of ids. An id ends before 0x7f, so id+"\x00" is the next one.
func (o ListOptions) bounds() (from, to string) {
	from = o.From
	if o.To != "" {
		to = o.To + "\x00"
	}
	narrow := func(lo, hi string) {
		from = max(from, lo)
		if to == "" || hi < to {
			to = hi
		}
	}
	if o.Prefix != "" {
		narrow(o.Prefix, o.Prefix+"\x7f")
	}
	if o.Key != "" {
		narrow(o.Key, o.Key+"\x00")
	}
	return from, to
}

// Changes yields, oldest first, every document written by an event that since does not know: for each the newest
// such event and the value it wrote. since is a clock from a Receipt, a Change or Head; nil asks for everything. A
// limit keeps the newest so many; 0 is no limit.
//
// The order is JavaScript's: depth first from each head in turn, ops of a batch from the last to the first, the first
// sighting of an id counting, and then everything reversed. The value is the event's own, which on a conflict need not
// be the one Get returns. In one point this differs on purpose: JavaScript leaves out a list of parents (or the whole
// head) as soon as one of them is in since, and with it what the others hold; here exactly the events are left out
// that since or its ancestors name. An unknown event in since is [ErrUnknownClock].
func (l *Ledger) Changes(ctx context.Context, since []cid.Cid, limit int) iter.Seq2[Change, error] {
	return func(yield func(Change, error) bool) {
		rows, err := l.changedSince(ctx, since, limit)
		if err != nil {
			yield(Change{}, fmt.Errorf("listing changes: %w", err))
			return
		}
		for _, r := range slices.Backward(rows) {
			d, err := l.doc(ctx, r.id, r.value)
			if errors.Is(err, blockstore.ErrNotFound) {
				// A compaction by JavaScript dropped this value, which it does only to values that are not current.
				d, err = l.currentDoc(ctx, r.id)
			}
			if err == nil {
				err = ctx.Err()
			}
			if err != nil {
				yield(Change{}, fmt.Errorf("listing changes: %w", err))
				return
			}
			if !yield(Change{Doc: d, Clock: r.event}, nil) {
				return
			}
		}
	}
}

// currentDoc is the current value of a document, also if that is a tombstone.
func (l *Ledger) currentDoc(ctx context.Context, id string) (Doc, error) {
	e, ok, err := l.view.get(id)
	if err != nil {
		return Doc{}, err
	}
	if !ok {
		return Doc{}, ErrNotFound
	}
	return l.doc(ctx, id, e.value)
}

type changedRow struct {
	id    string
	value cid.Cid
	event cid.Cid
}

// changedSince is the rows of Changes, newest first.
func (l *Ledger) changedSince(ctx context.Context, since []cid.Cid, limit int) ([]changedRow, error) {
	order, err := l.eventsSince(l.state.Load().head, since)
	if err != nil {
		return nil, err
	}
	var rows []changedRow
	seen := map[string]struct{}{pail.GenesisKey: {}}
	for _, e := range order {
		data, err := readEvent(ctx, l.base, e)
		if err != nil {
			return nil, err
		}
		for _, o := range slices.Backward(data.Ops) {
			if _, ok := seen[o.Key]; ok || o.Del {
				continue
			}
			seen[o.Key] = struct{}{}
			rows = append(rows, changedRow{id: o.Key, value: o.Value, event: e})
			if len(rows) == limit {
				return rows, nil
			}
		}
	}
	return rows, nil
}

// eventsSince lists the events of head that are neither in since nor among its ancestors, in the order of
// JavaScript's depth-first walk.
func (l *Ledger) eventsSince(head, since []cid.Cid) ([]cid.Cid, error) {
	x, done, err := l.ancestry()
	if err != nil {
		return nil, err
	}
	defer done()
	known, err := ancestorsOf(x, since)
	if err != nil {
		return nil, err
	}
	var order []cid.Cid
	stack := slices.Clone(head)
	slices.Reverse(stack)
	for len(stack) > 0 {
		e := stack[len(stack)-1]
		stack = stack[:len(stack)-1]
		seq, ok := x.Seq(e)
		if !ok {
			return nil, &clock.MissingError{CID: e}
		}
		if known.has(seq) {
			continue
		}
		known.add(seq)
		order = append(order, e)
		parents, _ := x.Parents(e)
		for _, p := range slices.Backward(parents) {
			stack = append(stack, p)
		}
	}
	return order, nil
}

// ancestorsOf is the set of events that a clock covers.
func ancestorsOf(x *clock.Index, since []cid.Cid) (seqSet, error) {
	set := make(seqSet, (x.Len()+63)/64)
	stack := slices.Clone(since)
	for _, c := range since {
		if !x.Has(c) {
			return nil, fmt.Errorf("%s: %w", c, ErrUnknownClock)
		}
	}
	for len(stack) > 0 {
		e := stack[len(stack)-1]
		stack = stack[:len(stack)-1]
		seq, ok := x.Seq(e)
		if !ok || set.has(seq) {
			continue
		}
		set.add(seq)
		parents, _ := x.Parents(e)
		stack = append(stack, parents...)
	}
	return set, nil
}

// seqSet is a set of events by number.
type seqSet []uint64

func (s seqSet) has(n uint32) bool { return s[n/64]&(1<<(n%64)) != 0 }
func (s seqSet) add(n uint32)      { s[n/64] |= 1 << (n % 64) }

// readEvent reads an event's operation.
func readEvent(ctx context.Context, f clock.Fetcher, c cid.Cid) (pail.Data, error) {
	e, err := fetchEvent(ctx, f, c)
	if err != nil {
		return pail.Data{}, err
	}
	data, err := pail.DecodeData(e.Data)
	if err != nil {
		return pail.Data{}, fmt.Errorf("event %s: %w", c, err)
	}
	return data, nil
}

func fetchEvent(ctx context.Context, f clock.Fetcher, c cid.Cid) (clock.Event, error) {
	b, err := f.Block(ctx, c)
	if err != nil {
		return clock.Event{}, fmt.Errorf("reading event %s: %w", c, err)
	}
	return clock.Decode(c, b)
}
