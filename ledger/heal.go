package ledger

import (
	"context"
	"errors"
	"slices"

	"github.com/ipfs/go-cid"

	"fpnode/blockstore"
	"fpnode/clock"
	"fpnode/internal/car"
	"fpnode/pail"
)

// verify computes the root of an event from its parents and its operation. The shards that come out and that nobody
// brought are kept: the current ones among them will be stored, so that what JavaScript lost is mended.
func (m *merging) verify(ctx context.Context, e cid.Cid) error {
	res, err := m.replica.Check(ctx, e)
	if errors.Is(err, clock.ErrMissing) {
		// Shards of the parents are gone, as after a compaction by JavaScript.
		if err = m.rebuildParents(ctx, e); err == nil {
			res, err = m.replica.Check(ctx, e)
		}
	}
	if errors.Is(err, clock.ErrMissing) {
		m.res.Unchecked++
		return nil
	}
	if err != nil {
		return err
	}
	parents, _ := m.replica.Index.Parents(e)
	m.linear = (m.newest == cid.Undef || m.linear) && (len(parents) == 0 || len(parents) == 1 && parents[0] == m.newest)
	m.newest = e
	if m.linear {
		// Nothing else will be computed from the parent, so what it alone needed need not stay in memory.
		for _, c := range res.Removals {
			delete(m.blocks.extra, c)
		}
	}
	return m.keepMade(ctx, res.Additions)
}

// rebuildParents makes the shards again from which the root of an event follows.
func (m *merging) rebuildParents(ctx context.Context, e cid.Cid) error {
	parents, _ := m.replica.Index.Parents(e)
	if len(parents) == 0 {
		return &clock.MissingError{CID: e}
	}
	a, err := m.replica.Index.CommonAncestor(parents)
	if err != nil {
		return err
	}
	shards, err := rebuild(ctx, m.replica, a)
	if err != nil {
		return err
	}
	return m.keepMade(ctx, shards)
}

// keepMade keeps blocks that are neither stored nor staged.
func (m *merging) keepMade(ctx context.Context, blocks []car.Block) error {
	for _, b := range blocks {
		if _, ok := m.staged.extra[b.CID]; ok {
			continue
		}
		has, err := m.l.store.Has(b.CID)
		if err != nil {
			return err
		}
		if !has {
			m.blocks.extra[b.CID] = b.Data
		}
	}
	return nil
}

// heal packs the shards of the new state that nobody brought and that this merge had to make again. JavaScript loses
// shards when a replay returns to an earlier state, and drops historic ones when it compacts. The states that count
// are the heads, which others build on, and their common ancestor, from which the merged state is computed.
func (m *merging) heal(ctx context.Context) (*blockstore.CAR, error) {
	if len(m.blocks.extra) == 0 || len(m.events) == 0 {
		return nil, nil
	}
	states := slices.Clone(m.head)
	if a, err := m.replica.Index.CommonAncestor(m.head); err == nil && len(m.head) > 1 {
		states = append(states, a)
	}
	var lost blockList
	for _, e := range states {
		_, d, err := m.replica.Event(ctx, e)
		if err != nil {
			return nil, err
		}
		for s, err := range pail.Load(m.blocks, m.l.shards, d.Root).Shards(ctx) {
			if errors.Is(err, clock.ErrMissing) {
				break // unchecked: it cannot be made either
			}
			if err != nil {
				return nil, err
			}
			if data, ok := m.blocks.extra[s.CID]; ok {
				lost.add(s.CID, data)
			}
		}
	}
	if len(lost.blocks) == 0 {
		return nil, nil
	}
	m.res.Healed = len(lost.blocks)
	c, err := m.l.packShards(lost.blocks)
	return &c, err
}

// rootAt is the trie at a head. If shards of the heads' common ancestor are gone they are made again from the events
// and put into blocks.
func rootAt(ctx context.Context, r *pail.Replica, blocks *overlay, head []cid.Cid) (pail.Result, error) {
	res, err := r.Root(ctx, head)
	if !errors.Is(err, clock.ErrMissing) {
		return res, err
	}
	a, err := r.Index.CommonAncestor(head)
	if err != nil {
		return pail.Result{}, err
	}
	shards, err := rebuild(ctx, r, a)
	if err != nil {
		return pail.Result{}, err
	}
	blocks.add(shards)
	return r.Root(ctx, head)
}

// rebuild makes the shards of an event's root from the events alone: the operations since the genesis, in the order
// in which Pail applies them, on the empty trie. If that does not give the root which the event names, the shards are
// reported missing.
func rebuild(ctx context.Context, r *pail.Replica, e cid.Cid) ([]car.Block, error) {
	var ops [][]pail.Op // newest first
	var want cid.Cid
	for at := e; ; {
		ev, data, err := r.Event(ctx, at)
		if err != nil {
			return nil, err
		}
		if at == e {
			want = data.Root
		}
		ops = append(ops, data.Ops)
		if len(ev.Parents) == 0 {
			break
		}
		ancestor, order, err := r.Index.Replay(ev.Parents)
		if err != nil {
			return nil, err
		}
		for _, c := range slices.Backward(order) {
			_, data, err := r.Event(ctx, c)
			if err != nil {
				return nil, err
			}
			ops = append(ops, data.Ops)
		}
		at = ancestor
	}
	edit := pail.Empty(r.Blocks, r.Cache).Edit()
	for _, list := range slices.Backward(ops) {
		for _, o := range list {
			var err error
			if o.Del {
				err = edit.Del(ctx, o.Key)
			} else {
				err = edit.Put(ctx, o.Key, o.Value)
			}
			if err != nil {
				return nil, err
			}
		}
	}
	res := edit.Commit()
	if res.Tree.Root() != want {
		return nil, &clock.MissingError{CID: want}
	}
	return res.Additions, nil
}
