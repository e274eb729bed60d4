package pail

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/ipfs/go-cid"

	"fpnode/clock"
	"fpnode/internal/car"
)

// ErrRoot is wrapped by the error of Check.
var ErrRoot = errors.New("event names a wrong root")

// errNoHead is the error for a head without events.
var errNoHead = errors.New("pail: the head is empty")

// A Replica puts the map and the clock together: it finds the state of the map
// at any head, and makes the events that change it. It belongs to one
// goroutine and changes neither the Index nor what is stored; that is for the
// caller to do, with the blocks that it returns.
type Replica struct {
	Blocks clock.Fetcher // events and shards
	Index  *clock.Index  // must hold every head that is asked about
	Cache  *Cache        // may be nil

	// merged is the Result of the last head of several events.
	mergedHead string
	merged     Result

	edit Edit // memory to be used again
}

// Event reads an event and what it says about the map.
func (r *Replica) Event(ctx context.Context, c cid.Cid) (clock.Event, Data, error) {
	block, err := r.Blocks.Block(ctx, c)
	if err != nil {
		return clock.Event{}, Data{}, fmt.Errorf("pail: event %s: %w", c, err)
	}
	e, err := clock.Decode(c, block)
	if err != nil {
		return clock.Event{}, Data{}, fmt.Errorf("pail: event %s: %w", c, err)
	}
	d, err := DecodeData(e.Data)
	if err != nil {
		return clock.Event{}, Data{}, fmt.Errorf("pail: event %s: %w", c, err)
	}
	return e, d, nil
}

// Root returns the state of the map at a head.
//
// For one event that is the root that the event names. For several it is made
// by applying, to the root of their common ancestor, the operations of the
// events since, in the order of clock.Index.Replay. The Additions, the shards
// that this root has and that of the ancestor has not, may be stored nowhere
// yet; store them with the next write.
//
// JavaScript takes blocks that a replay first adds, then removes and then adds
// again for removed; here everything that the merged root needs is kept.
func (r *Replica) Root(ctx context.Context, heads []cid.Cid) (Result, error) {
	switch len(heads) {
	case 0:
		return Result{}, errNoHead
	case 1:
		_, d, err := r.Event(ctx, heads[0])
		if err != nil {
			return Result{}, err
		}
		return Result{Tree: Load(r.Blocks, r.Cache, d.Root)}, nil
	}
	name := headName(heads)
	if name == r.mergedHead {
		return r.merged, nil
	}
	ancestor, order, err := r.Index.Replay(heads)
	if err != nil {
		return Result{}, fmt.Errorf("pail: merging %d heads: %w", len(heads), err)
	}
	_, base, err := r.Event(ctx, ancestor)
	if err != nil {
		return Result{}, err
	}
	edit := r.editOf(Load(r.Blocks, r.Cache, base.Root))
	for _, c := range order {
		_, d, err := r.Event(ctx, c)
		if err != nil {
			return Result{}, err
		}
		if err := edit.apply(ctx, d.Ops); err != nil {
			return Result{}, fmt.Errorf("pail: replaying %s: %w", c, err)
		}
	}
	r.mergedHead, r.merged = name, edit.Commit()
	return r.merged, nil
}

// editOf returns an Edit, which ends with the next call.
func (r *Replica) editOf(t Tree) *Edit {
	r.edit.reset(t)
	return &r.edit
}

// headName returns a string that is the same for the same set of events.
func headName(heads []cid.Cid) string {
	heads = slices.Clone(heads)
	clock.SortBytes(heads)
	var b strings.Builder
	for _, h := range heads {
		b.WriteString(h.KeyString())
	}
	return b.String()
}

func (e *Edit) apply(ctx context.Context, ops []Op) error {
	for _, op := range ops {
		var err error
		if op.Del {
			err = e.Del(ctx, op.Key)
		} else {
			err = e.Put(ctx, op.Key, op.Value)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// A Write is what Put made.
type Write struct {
	Result
	Event *car.Block // nil if there is nothing to say
	Head  []cid.Cid  // the head afterwards: the event, or as before
}

// Put makes the event that applies ops to the map at a head, which may be
// empty. With batch it is one batch of any number of puts, none included;
// without, ops is a single operation, and if it changes nothing there is no
// event.
//
// The Additions include those of Root for this head, which replicas need too,
// but not the event. A single put on the empty head adds the shard of the empty
// map, as in every ledger that Fireproof began.
func (r *Replica) Put(ctx context.Context, heads []cid.Cid, ops []Op, batch bool) (Write, error) {
	if err := checkOps(ops, batch); err != nil {
		return Write{}, err
	}
	before := Result{Tree: Empty(r.Blocks, r.Cache)}
	if len(heads) > 0 {
		var err error
		if before, err = r.Root(ctx, heads); err != nil {
			return Write{}, err
		}
	}
	edit := r.editOf(before.Tree)
	if err := edit.apply(ctx, ops); err != nil {
		return Write{}, err
	}
	after := edit.Commit()
	if !batch && after.Tree.root == before.Tree.root {
		return Write{Result: before, Head: heads}, nil
	}
	if len(heads) == 0 {
		after = addEmpty(after, batch)
	}
	w := Write{Result: join(before, after)}
	data := Data{Batch: batch, Root: after.Tree.Root(), Ops: ops}
	c, block := clock.Encode(data.Encode(), heads)
	w.Event = &car.Block{CID: c, Data: block}
	w.Head = []cid.Cid{c}
	return w, nil
}

func checkOps(ops []Op, batch bool) error {
	if !batch && len(ops) != 1 {
		return fmt.Errorf("pail: %d operations in an event that is not a batch", len(ops))
	}
	for _, op := range ops {
		if batch && op.Del {
			return errors.New("pail: a batch cannot remove keys")
		}
	}
	return nil
}

// addEmpty makes the shard of the empty map part of the first write of a
// ledger, as Pail does. A batch leaves it out unless it is the root.
func addEmpty(r Result, batch bool) Result {
	if batch && r.Tree.root != emptyShard.cid {
		r.Removals = nil
		return r
	}
	empty := car.Block{CID: emptyShard.cid, Data: emptyShard.block()}
	r.Additions = append([]car.Block{empty}, r.Additions...)
	return r
}

// join returns what two commits did together, the second on the tree of the
// first: a shard that one of them added and the other removed counts for
// neither.
func join(first, second Result) Result {
	if len(first.Additions) == 0 && len(first.Removals) == 0 {
		return second
	}
	// INVARIANT: what one commit adds the other does not, and so for removals.
	added, removed := cancel(slices.Concat(first.Additions, second.Additions), slices.Concat(first.Removals, second.Removals))
	return Result{Tree: second.Tree, Additions: added, Removals: removed}
}

// Check computes the root of an event from its parents and its operations and
// compares it with the one that the event names; if they differ the error
// wraps ErrRoot. The Additions are then the shards of that root which the
// parents' common ancestor lacks: storing them mends a ledger whose author did
// not write them all.
func (r *Replica) Check(ctx context.Context, c cid.Cid) (Result, error) {
	e, d, err := r.Event(ctx, c)
	if err != nil {
		return Result{}, err
	}
	before := Result{Tree: Empty(r.Blocks, r.Cache)}
	if len(e.Parents) > 0 {
		if before, err = r.Root(ctx, e.Parents); err != nil {
			return Result{}, err
		}
	}
	edit := r.editOf(before.Tree)
	if err := edit.apply(ctx, d.Ops); err != nil {
		return Result{}, fmt.Errorf("pail: applying %s: %w", c, err)
	}
	result := join(before, edit.Commit())
	if got := result.Tree.Root(); got != d.Root {
		return Result{}, fmt.Errorf("pail: event %s: %w: %s, computed %s", c, ErrRoot, d.Root, got)
	}
	return result, nil
}
