package ledger

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"github.com/ipfs/go-cid"

	"fpnode/blockstore"
	"fpnode/clock"
	"fpnode/pail"
)

// load makes the state that belongs to the store's tips: the one the view recorded if it is of these tips, else the
// view is brought up to date, or made from nothing if it is not there or makes no sense. The store's own errors pass:
// a tip whose CAR cannot be read is never skipped.
func (l *Ledger) load(ctx context.Context) error {
	tips := l.store.Tips()
	note, err := l.store.Note(noteJoined)
	if err != nil {
		return fmt.Errorf("reading joined heads: %w", err)
	}
	joined, err := splitCIDs(note)
	if err != nil {
		return fmt.Errorf("reading joined heads: %w", err)
	}
	s, recorded, err := l.recordedState()
	if err != nil {
		return err
	}
	if s != nil && slices.Equal(recorded, metaCIDs(tips)) && slices.Equal(s.joined, joined) {
		s.tips = tips
		l.state.Store(s)
		return nil
	}
	if s != nil {
		if err = l.catchUp(ctx, s, tips, joined); err == nil || !errors.Is(err, errView) {
			return err
		}
		l.log.Warn("view is made again", "reason", err)
	}
	l.dropIndex()
	// The changes are numbered anew: no index may be written by the old numbers.
	release := l.indexTurns.all()
	defer release()
	if err := l.view.d.Reset(); err != nil {
		return fmt.Errorf("emptying the view: %w", err)
	}
	return l.catchUp(ctx, &state{}, tips, joined)
}

// errView is wrapped by errors that say that the view itself cannot be used.
var errView = errors.New("view is not usable")

// recordedState is the state record of the view, nil if there is none that can be read.
func (l *Ledger) recordedState() (s *state, tips []cid.Cid, err error) {
	b, ok, err := l.view.d.Get([]byte{keyState})
	if err != nil {
		return nil, nil, fmt.Errorf("reading the view: %w", err)
	}
	if !ok {
		return nil, nil, nil
	}
	st, tips, err := parseState(b)
	if err != nil {
		l.log.Warn("view is made again", "reason", err)
		return nil, nil, nil
	}
	return &st, tips, nil
}

// catchUp brings the view from an older state to that of the tips, as a merge does once it is durable.
func (l *Ledger) catchUp(ctx context.Context, old *state, tips []blockstore.Meta, joined []cid.Cid) error {
	l.blocks, l.merged = newOverlay(l.base), false
	heads := slices.Clone(joined)
	var tipHeads [][]cid.Cid
	for _, t := range tips {
		h, ok, err := l.storedHeader(ctx, t.Group[0].Name)
		if err != nil {
			return fmt.Errorf("reading the header of tip %s: %w", t.CID, err)
		}
		if !ok || !h.HasHead {
			return fmt.Errorf("tip %s leads to no head", t.CID)
		}
		l.tipHeads[t.CID] = h.Head
		tipHeads = append(tipHeads, h.Head)
		heads = append(heads, h.Head...)
	}
	if len(heads) == 0 {
		if len(old.head) > 0 {
			return fmt.Errorf("%w: it is of a ledger with tips", errView)
		}
		l.state.Store(&state{})
		return nil
	}
	if err := l.readyTrie(ctx, old); err != nil {
		return fmt.Errorf("%w: %w", errView, err)
	}
	m, err := l.beginMerge(ctx, old, nil)
	if err != nil {
		return fmt.Errorf("%w: %w", errView, err)
	}
	x := m.replica.Index
	// A long update that was cut off may have left records that the state does not count.
	m.old = &state{head: old.head, root: old.root, docs: old.docs, events: uint32(x.Len())}
	if m.old.changes, err = l.view.lastChange(); err != nil {
		return err
	}
	m.old.changes = max(m.old.changes, l.state.Load().changes) // watchers count on
	l.indexMu.Lock()
	m.events, err = x.Fill(ctx, m.blocks, heads)
	l.indexMu.Unlock()
	if err != nil {
		return fmt.Errorf("reading the events of the tips: %w", err)
	}
	m.recount = true
	if err := m.settle(ctx); err != nil {
		return err
	}
	m.next.tips, m.next.joined, m.next.head = tips, joined, orderHead(m.head, tipHeads)
	if err := m.mend(ctx); err != nil {
		return fmt.Errorf("reading the trie of the tips: %w", err)
	}
	return m.show(ctx)
}

// ready makes the writer's own state whole before it changes anything: the view follows the tips, and of several
// heads the shards of the merged trie are there.
func (l *Ledger) ready(ctx context.Context) error {
	if l.behind {
		if err := l.load(ctx); err != nil {
			return fmt.Errorf("bringing the view up to date: %w", err)
		}
		l.behind = false
	}
	return l.readyTrie(ctx, l.state.Load())
}

// readyTrie finds the shards of the merged trie of several heads.
func (l *Ledger) readyTrie(ctx context.Context, s *state) error {
	if len(s.head) < 2 || l.merged {
		return nil
	}
	x, err := l.loadedIndex()
	if err != nil {
		return err
	}
	res, err := (&pail.Replica{Blocks: newOverlay(l.base), Index: x, Cache: l.shards}).Root(ctx, s.head)
	if errors.Is(err, clock.ErrMissing) {
		return l.mend(ctx, s)
	}
	if err != nil {
		return fmt.Errorf("computing the merged root: %w", err)
	}
	if res.Tree.Root() != s.root {
		return fmt.Errorf("merged root is %s, the view has %s", res.Tree.Root(), s.root)
	}
	l.blocks = newOverlay(l.base)
	l.blocks.add(res.Additions)
	l.merged = true
	return nil
}

// trieOf is the trie of the current state.
func (l *Ledger) trieOf(s *state) pail.Tree {
	if len(s.head) == 0 {
		return pail.Empty(l.blocks, l.shards)
	}
	return pail.Load(l.blocks, l.shards, s.root)
}

// Trie is the Pail of the current documents, with the shards that a merge of several heads made and no CAR holds yet.
func (l *Ledger) Trie(ctx context.Context) (t pail.Tree, err error) {
	err = l.exclusive(ctx, func() error {
		if err := l.ready(ctx); err != nil {
			return err
		}
		t = l.trieOf(l.state.Load())
		return nil
	})
	return t, err
}

// ancestry is the index for a reader, who must call done and may do nothing slow before.
func (l *Ledger) ancestry() (x *clock.Index, done func(), err error) {
	for {
		l.indexMu.RLock()
		if l.index != nil {
			return l.index, l.indexMu.RUnlock, nil
		}
		l.indexMu.RUnlock()
		if _, err := l.loadedIndex(); err != nil {
			return nil, nil, err
		}
	}
}

// loadedIndex reads the index from the view if it is not in memory. Only the writer may use the result without lock.
func (l *Ledger) loadedIndex() (*clock.Index, error) {
	l.indexMu.Lock()
	defer l.indexMu.Unlock()
	if l.index != nil {
		return l.index, nil
	}
	x := clock.NewIndex()
	for e, err := range l.view.events(0) {
		if err != nil {
			return nil, fmt.Errorf("loading events: %w", err)
		}
		if int(e.seq) != x.Len() {
			return nil, fmt.Errorf("%w: event %d is missing", errView, x.Len())
		}
		if added, err := x.Add(e.cid, e.parents); err != nil || len(added) != 1 {
			return nil, fmt.Errorf("%w: event %s does not follow: %w", errView, e.cid, err)
		}
	}
	l.index = x
	return x, nil
}

// extendIndex adds events that the view has taken in, if the index is in memory.
func (l *Ledger) extendIndex(events []eventRow) {
	l.indexMu.Lock()
	defer l.indexMu.Unlock()
	if l.index == nil {
		return
	}
	for _, e := range events {
		_, err := l.index.Add(e.cid, e.parents)
		if seq, ok := l.index.Seq(e.cid); err != nil || !ok || seq != e.seq {
			l.index = nil // it is read again when somebody asks
			return
		}
	}
}

func (l *Ledger) dropIndex() {
	l.indexMu.Lock()
	defer l.indexMu.Unlock()
	l.index = nil
}

// lastChange is the highest number of a change record.
func (v *view) lastChange() (uint64, error) {
	for kv, err := range v.d.Scan([]byte{keyChange}, []byte{keyChange + 1}, true) {
		if err != nil {
			return 0, err
		}
		if len(kv.Key) != 9 {
			return 0, fmt.Errorf("%w: malformed change record", errView)
		}
		return binary.BigEndian.Uint64(kv.Key[1:]), nil
	}
	return 0, nil
}

// countListed counts the documents that AllDocs lists.
func (v *view) countListed() (uint64, error) {
	var n uint64
	for r, err := range v.entries("", "", false) {
		if err != nil {
			return 0, err
		}
		if r.listed() {
			n++
		}
	}
	return n, nil
}
