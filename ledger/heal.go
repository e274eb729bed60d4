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
	parents, _ := m.replica.Index.Parents(e)
	res, err := m.replica.Check(ctx, e)
	if errors.Is(err, clock.ErrMissing) && len(parents) > 0 {
		// Shards of the parents are gone, as after a compaction by JavaScript.
		if err = m.rebuildBelow(ctx, parents); err == nil {
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

// rebuildBelow makes the shards again from which the state of several events follows: those of their common ancestor.
func (m *merging) rebuildBelow(ctx context.Context, events []cid.Cid) error {
	a, err := m.replica.Index.CommonAncestor(events)
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
		if err := m.collectMade(ctx, e, &lost); err != nil {
			return nil, err
		}
	}
	if len(lost.blocks) == 0 {
		return nil, nil
	}
	m.res.Healed = len(lost.blocks)
	c, err := m.l.packShards(lost.blocks)
	return &c, err
}

// collectMade adds to lost the shards of an event's root that nobody brought.
func (m *merging) collectMade(ctx context.Context, e cid.Cid, lost *blockList) error {
	_, d, err := m.replica.Event(ctx, e)
	if err != nil {
		return err
	}
	// Without the cache, which can hold shards that are stored nowhere.
	collect := func() error {
		for s, err := range pail.Load(m.blocks, nil, d.Root).Shards(ctx) {
			if err != nil {
				return err
			}
			if data, ok := m.blocks.extra[s.CID]; ok {
				lost.add(s.CID, data)
			}
		}
		return nil
	}
	err = collect()
	if !errors.Is(err, clock.ErrMissing) {
		return err
	}
	shards, err := rebuild(ctx, m.replica, e)
	if errors.Is(err, clock.ErrMissing) {
		return nil // an unchecked event: its root cannot be made
	}
	if err == nil {
		err = m.keepMade(ctx, shards)
	}
	if err != nil {
		return err
	}
	return collect()
}

// mend finds out whether the trie that a catch-up arrives at can be read as far as it is new, and if not makes it
// again.
func (m *merging) mend(ctx context.Context) error {
	for _, err := range pail.Diff(ctx, m.l.trieOf(m.old), m.trie) {
		if errors.Is(err, clock.ErrMissing) {
			m.made, err = m.l.remake(ctx, m.replica, m.blocks, m.head)
			m.trie = pail.Load(m.blocks, m.l.shards, m.next.root)
			return err
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// mend makes the shards of the current trie again that the store lacks. The next commit stores them.
func (l *Ledger) mend(ctx context.Context, s *state) error {
	if len(s.head) == 0 {
		return nil
	}
	x, err := l.loadedIndex()
	if err != nil {
		return err
	}
	blocks := newOverlay(l.base)
	made, err := l.remake(ctx, &pail.Replica{Blocks: blocks, Index: x}, blocks, s.head)
	if err != nil {
		return err
	}
	l.log.Warn("shards of the current trie were lost and are made again", "shards", len(made))
	l.blocks = newOverlay(l.base)
	l.blocks.extra, l.merged = made, len(s.head) > 1
	return nil
}

// remake makes the trie at a head from the events alone, puts it into blocks, and returns the shards that the store
// lacks.
func (l *Ledger) remake(ctx context.Context, r *pail.Replica, blocks *overlay, head []cid.Cid) (map[cid.Cid][]byte, error) {
	a, err := r.Index.CommonAncestor(head)
	if err != nil {
		return nil, err
	}
	shards, err := rebuild(ctx, r, a)
	if err != nil {
		return nil, err
	}
	blocks.add(shards)
	res, err := r.Root(ctx, head)
	if err != nil {
		return nil, err
	}
	blocks.add(res.Additions)
	lost := map[cid.Cid][]byte{}
	for s, err := range res.Tree.Shards(ctx) {
		if err != nil {
			return nil, err
		}
		has, err := l.store.Has(s.CID)
		if err != nil {
			return nil, err
		}
		if !has {
			lost[s.CID] = s.Data
		}
	}
	return lost, nil
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
