package ledger

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/ipfs/go-cid"

	"fpnode/blockstore"
	"fpnode/clock"
	"fpnode/internal/car"
	"fpnode/internal/planted"
	"fpnode/pail"
)

// MergeResult says what became of each meta of a merge.
type MergeResult struct {
	Accepted    []cid.Cid // part of the ledger now, or already before
	Waiting     []Waiting
	Quarantined []Quarantined

	Events    int // new events
	Changed   int // keys whose current value changed
	Unchecked int // new events whose root could not be computed, because shards of their parents exist nowhere
	Healed    int // shards that no CAR had brought and that were made again from the events
}

// Waiting is a meta that is not complete. Nothing of it was merged: offer it again with what is missing.
type Waiting struct {
	Meta    cid.Cid
	Missing []cid.Cid // blocks, and names of CARs (codec 0x18) that are not here
}

// Quarantined is a meta that was refused.
type Quarantined struct {
	Meta   cid.Cid
	Reason error // [clock.ErrGenesis], [pail.ErrRoot], [clock.ErrEvent], a [*LimitError], …
}

func (q Quarantined) Error() string { return fmt.Sprintf("meta %s: %v", q.Meta, q.Reason) }
func (q Quarantined) Unwrap() error { return q.Reason }

// Merge takes in what other nodes wrote: metas and the verified CARs they came with, none of which needs to be new.
// CARs may also have been stored before, by Stage, as they must be if they are more than one commit takes. When Merge
// returns, what it accepted is durable and visible.
//
// Each meta is judged alone, so that a bad one never hides a good one. It is accepted if its history is complete back
// to the genesis that this ledger has too, every event's root follows from its parents and its operation, and every
// current document is there. Which other CARs its header names does not matter. CARs are stored whatever becomes of
// the metas, except those of a quarantined one.
//
// The error is nil if every meta got its verdict.
func (l *Ledger) Merge(ctx context.Context, metas []blockstore.Meta, cars []blockstore.CAR) (MergeResult, error) {
	return l.merge(ctx, metas, cars, false)
}

// MergeJS is Merge for what a JavaScript replica wrote. Of its CARs only those are kept that bring a block which is
// not here, since a JavaScript replica writes the same blocks again and again; of the others the name is remembered.
// A meta whose own CAR is not kept makes no tip: its head joins.
func (l *Ledger) MergeJS(ctx context.Context, metas []blockstore.Meta, cars []blockstore.CAR) (MergeResult, error) {
	return l.merge(ctx, metas, cars, true)
}

// Stage makes verified CARs durable without merging anything, so that a long transfer need not stay in memory.
func (l *Ledger) Stage(ctx context.Context, cars []blockstore.CAR) error {
	return l.exclusive(ctx, func() error {
		tips := l.state.Load().tips
		if err := l.store.Commit(ctx, metaCIDs(tips), blockstore.Batch{CARs: cars, Tips: tips}); err != nil {
			return fmt.Errorf("staging CARs: %w", err)
		}
		return nil
	})
}

func (l *Ledger) merge(ctx context.Context, metas []blockstore.Meta, cars []blockstore.CAR, fromJS bool) (res MergeResult, err error) {
	err = l.exclusive(ctx, func() error {
		res, err = l.mergeNow(ctx, metas, cars, fromJS)
		return err
	})
	if err != nil {
		return MergeResult{}, fmt.Errorf("merging: %w", err)
	}
	return res, nil
}

// mergeNow is a merge from beginning to end. It runs on the writer's goroutine.
//
// Crash: nothing is durable before Commit, and Commit stores CARs, tips and note in one step. After it the view may
// be behind; Open brings it up to date from the tips.
func (l *Ledger) mergeNow(ctx context.Context, metas []blockstore.Meta, cars []blockstore.CAR, fromJS bool) (MergeResult, error) {
	if err := l.ready(ctx); err != nil {
		return MergeResult{}, err
	}
	old := l.state.Load()
	m, err := l.beginMerge(ctx, old, cars)
	if err != nil {
		return MergeResult{}, err
	}
	done := false
	defer func() {
		if !done {
			l.dropIndex() // it may hold events that did not become part of the ledger
		}
	}()
	for _, meta := range metas {
		if err := m.consider(ctx, meta); err != nil {
			return MergeResult{}, err
		}
	}

	if err := m.settle(ctx); err != nil {
		return MergeResult{}, err
	}
	batch, err := m.batch(ctx, fromJS)
	if err != nil {
		return MergeResult{}, err
	}
	if m.idle(batch) {
		done = len(m.events) == 0
		return m.res, nil
	}
	if err := l.store.Commit(ctx, metaCIDs(old.tips), batch); err != nil {
		return MergeResult{}, l.commitFailed(err)
	}
	done = true
	m.next.tips = l.store.Tips()
	m.keepTipHeads()
	if err := m.show(context.WithoutCancel(ctx)); err != nil {
		l.log.Error("view not updated", "err", err)
		l.behind = true
		return m.res, l.ready(context.WithoutCancel(ctx))
	}
	l.log.Info("merged", "metas", len(m.res.Accepted), "cars", len(batch.CARs),
		"events", m.res.Events, "changed", m.res.Changed)
	return m.res, nil
}

// merging is a merge under way. Only consider adds to it, one accepted meta at a time.
type merging struct {
	l       *Ledger
	old     *state
	replica *pail.Replica
	cars    []blockstore.CAR
	headers map[blockstore.Name]car.Header // of cars

	// blocks finds what cars bring, then shards that were made again, then what the store has.
	blocks *overlay // of staged
	staged *overlay // of the ledger's blocks
	linear bool     // every new event so far has the one before as its only parent
	newest cid.Cid

	events  []cid.Cid // accepted, parents first
	head    []cid.Cid
	metas   []candidate              // accepted metas
	refused map[blockstore.Name]bool // CARs of quarantined metas
	waits   map[blockstore.Name]bool // CARs of waiting metas

	res     MergeResult
	recount bool // the view may hold records that old does not count: of an update that was cut off
	next    state
	trie    pail.Tree
	made    map[cid.Cid][]byte // shards of trie that no CAR holds
}

func (l *Ledger) beginMerge(ctx context.Context, old *state, cars []blockstore.CAR) (*merging, error) {
	x, err := l.loadedIndex()
	if err != nil {
		return nil, err
	}
	m := &merging{
		l: l, old: old, cars: cars,
		headers: map[blockstore.Name]car.Header{},
		staged:  newOverlay(l.blocks),
		head:    old.head,
		refused: map[blockstore.Name]bool{},
		waits:   map[blockstore.Name]bool{},
	}
	m.blocks = newOverlay(m.staged)
	for i := range cars {
		for _, s := range cars[i].Blocks() {
			m.staged.extra[s.CID] = s.Data
		}
		if h, ok := cars[i].Header(); ok {
			m.headers[cars[i].Ref.Name] = h
		}
	}
	m.replica = &pail.Replica{Blocks: m.blocks, Index: x, Cache: l.shards}
	return m, nil
}

// consider gives one meta its verdict. The error is for what says nothing about the meta: a store that cannot be
// read, or a context that ended.
func (m *merging) consider(ctx context.Context, meta blockstore.Meta) error {
	isMeta := func(c candidate) bool { return c.CID == meta.CID }
	isTip := func(t blockstore.Meta) bool { return t.CID == meta.CID }
	if slices.ContainsFunc(m.metas, isMeta) || slices.ContainsFunc(m.old.tips, isTip) {
		m.res.Accepted = append(m.res.Accepted, meta.CID)
		return nil
	}
	header, ok, err := m.header(ctx, meta.Group[0].Name)
	switch {
	case err != nil:
		return err
	case !ok:
		m.wait(meta, nil)
		return nil
	case !header.HasHead:
		m.quarantine(meta, errors.New("its header names no head"))
		return nil
	case len(header.Head) > MaxHeads:
		m.quarantine(meta, &LimitError{What: "head", Size: int64(len(header.Head)), Max: MaxHeads})
		return nil
	case slices.ContainsFunc(header.Head, func(c cid.Cid) bool { return c.Prefix() != tombstoneCID.Prefix() }):
		m.quarantine(meta, fmt.Errorf("%w: its head is not of DAG-CBOR blocks with SHA2-256", clock.ErrEvent))
		return nil
	}

	added, missing, err := m.complete(ctx, header.Head)
	switch {
	case len(missing) > 0:
		m.wait(meta, missing)
	case refusal(err):
		m.quarantine(meta, err)
	case err != nil:
		return err
	default:
		m.events = append(m.events, added...)
		m.metas = append(m.metas, candidate{Meta: meta, head: header.Head})
		m.res.Accepted = append(m.res.Accepted, meta.CID)
		return nil
	}
	if len(added) > 0 {
		return m.undo()
	}
	return nil
}

// complete takes the events of a head into the index and checks that nothing is missing and nothing is wrong. added is
// what the index has to lose again if so.
func (m *merging) complete(ctx context.Context, head []cid.Cid) (added, missing []cid.Cid, err error) {
	m.l.indexMu.Lock() // readers of history wait while the new events are read
	added, err = m.replica.Index.Fill(ctx, m.blocks, head)
	m.l.indexMu.Unlock()
	if errors.Is(err, clock.ErrMissing) {
		missing, err = m.missingEvents(ctx, head)
		return nil, missing, err
	}
	if err != nil || len(added) == 0 {
		return nil, nil, err
	}
	unchecked := m.res.Unchecked
	for _, e := range added {
		if err := m.verify(ctx, e); err != nil {
			m.res.Unchecked = unchecked
			return added, nil, err
		}
	}
	missing, err = m.missingDocs(ctx, head)
	if err != nil || len(missing) > 0 {
		m.res.Unchecked = unchecked
	}
	return added, missing, err
}

// refusal says whether an error is about what a meta leads to, not about this node.
func refusal(err error) bool {
	var limit *LimitError
	return errors.As(err, &limit) || slices.ContainsFunc([]error{
		clock.ErrGenesis, clock.ErrEvent, clock.ErrLimit,
		pail.ErrRoot, pail.ErrData, pail.ErrKey, pail.ErrValue, pail.ErrShard,
	}, func(target error) bool { return errors.Is(err, target) })
}

func (m *merging) quarantine(meta blockstore.Meta, reason error) {
	m.res.Quarantined = append(m.res.Quarantined, Quarantined{Meta: meta.CID, Reason: reason})
	for _, r := range meta.Group {
		m.refused[r.Name] = true
	}
	m.l.log.Warn("meta quarantined", "meta", meta.CID, "reason", reason)
}

// wait reports what a meta lacks: blocks, and CARs of its own group that have never been here.
func (m *merging) wait(meta blockstore.Meta, missing []cid.Cid) {
	for _, r := range meta.Group {
		m.waits[r.Name] = true
		if !m.brought(r.Name) && !m.l.store.Known(r.Name) {
			missing = append(missing, r.Name.Cid)
		}
	}
	if len(missing) == 0 { // its own CAR is known by name only
		missing = []cid.Cid{meta.Group[0].Name.Cid}
	}
	m.res.Waiting = append(m.res.Waiting, Waiting{Meta: meta.CID, Missing: missing})
}

func (m *merging) brought(n blockstore.Name) bool {
	return slices.ContainsFunc(m.cars, func(c blockstore.CAR) bool { return c.Ref.Name == n })
}

// undo makes the index again without the events of a meta that was not accepted.
func (m *merging) undo() error {
	m.l.dropIndex()
	x, err := m.l.loadedIndex()
	if err != nil {
		return err
	}
	m.l.indexMu.Lock()
	defer m.l.indexMu.Unlock()
	for _, c := range m.events {
		parents, _ := m.replica.Index.Parents(c)
		if _, err := x.Add(c, parents); err != nil {
			return err
		}
	}
	m.replica = &pail.Replica{Blocks: m.blocks, Index: x, Cache: m.l.shards}
	return nil
}

// header reads the header of a CAR.
func (m *merging) header(ctx context.Context, n blockstore.Name) (car.Header, bool, error) {
	if h, ok := m.headers[n]; ok {
		return h, true, nil
	}
	return m.l.storedHeader(ctx, n)
}

// missingEvents lists the events that a head needs and that are not here.
func (m *merging) missingEvents(ctx context.Context, head []cid.Cid) ([]cid.Cid, error) {
	var missing []cid.Cid
	seen := map[cid.Cid]struct{}{}
	stack := slices.Clone(head)
	for len(stack) > 0 {
		c := stack[len(stack)-1]
		stack = stack[:len(stack)-1]
		if _, ok := seen[c]; ok || m.replica.Index.Has(c) {
			continue
		}
		seen[c] = struct{}{}
		e, err := fetchEvent(ctx, m.blocks, c)
		if errors.Is(err, clock.ErrMissing) {
			missing = append(missing, c)
			continue
		}
		if err != nil {
			return nil, err
		}
		stack = append(stack, e.Parents...)
	}
	return missing, nil
}

// missingDocs compares the documents at a head with the current ones and lists those that are not here.
func (m *merging) missingDocs(ctx context.Context, head []cid.Cid) (missing []cid.Cid, err error) {
	if planted.MergeWithoutClosure {
		return nil, nil
	}
	there, err := m.root(ctx, head)
	var gone *clock.MissingError
	if errors.As(err, &gone) {
		return []cid.Cid{gone.CID}, nil
	}
	if err != nil {
		return nil, err
	}
	for c, err := range pail.Diff(ctx, m.l.trieOf(m.old), there.Tree) {
		if errors.As(err, &gone) { // a shard that rebuilding did not give: only below an unchecked event
			return append(missing, gone.CID), nil
		}
		if err != nil {
			return nil, err
		}
		if !c.New.Defined() || c.New == tombstoneCID {
			continue
		}
		size := int64(len(m.staged.extra[c.New]))
		if size == 0 {
			size, err = m.l.store.Size(c.New)
		}
		if errors.Is(err, blockstore.ErrNotFound) {
			missing = append(missing, c.New)
			continue
		}
		if err != nil {
			return nil, err
		}
		if size > MaxForeignDocBytes {
			return nil, &LimitError{What: "document in bytes", Size: size, Max: MaxForeignDocBytes}
		}
	}
	return missing, nil
}

// root is the trie at a head. If shards of the heads' common ancestor are gone they are made again from the events.
func (m *merging) root(ctx context.Context, head []cid.Cid) (pail.Result, error) {
	res, err := m.replica.Root(ctx, head)
	if !errors.Is(err, clock.ErrMissing) {
		return res, err
	}
	if err := m.rebuildBelow(ctx, head); err != nil {
		return pail.Result{}, err
	}
	return m.replica.Root(ctx, head)
}

// settle computes the new head and its trie.
func (m *merging) settle(ctx context.Context) error {
	changed := len(m.events) > 0 || m.recount
	if changed {
		m.head = m.replica.Index.Leaves() // the index holds what was accepted and nothing else
	}
	if len(m.head) > MaxHeads {
		return &LimitError{What: "heads after the merge", Size: int64(len(m.head)), Max: MaxHeads}
	}
	m.next = *m.old
	m.trie, m.made = m.l.trieOf(m.old), m.l.blocks.extra
	if changed {
		res, err := m.root(ctx, m.head)
		if err != nil {
			return fmt.Errorf("computing the merged root: %w", err)
		}
		m.next.root = res.Tree.Root()
		m.made = map[cid.Cid][]byte{}
		for _, b := range res.Additions {
			m.made[b.CID] = b.Data
		}
		m.trie = res.Tree
	}
	return nil
}

// batch decides what becomes durable: CARs, healed shards, tips and the note.
func (m *merging) batch(ctx context.Context, fromJS bool) (blockstore.Batch, error) {
	var b blockstore.Batch
	kept := map[blockstore.Name]bool{}
	for _, c := range m.cars {
		if kept[c.Ref.Name] || m.l.store.Known(c.Ref.Name) || m.refusedCAR(c.Ref.Name) {
			continue
		}
		brings, err := m.brings(c, fromJS)
		if err != nil {
			return b, err
		}
		if !brings {
			if !m.waits[c.Ref.Name] { // its header will be needed when the meta comes again
				b.Drop = append(b.Drop, c.Ref.Name)
			}
			continue
		}
		b.CARs, kept[c.Ref.Name] = append(b.CARs, c), true
	}
	healed, err := m.heal(ctx)
	if err != nil {
		return b, err
	}
	if healed != nil {
		b.CARs = append(b.CARs, *healed)
	}

	candidates, err := m.l.tipCandidates(ctx, m.old)
	if err != nil {
		return b, err
	}
	for _, c := range m.metas {
		ok, err := m.canBeTip(c, kept)
		if err != nil {
			return b, err
		}
		if ok {
			candidates = append(candidates, c)
		}
	}
	var tipHeads [][]cid.Cid
	for _, c := range tipsOf(candidates, m.head) {
		b.Tips = append(b.Tips, c.Meta)
		tipHeads = append(tipHeads, c.head)
		m.l.tipHeads[c.CID] = c.head
	}
	if len(b.Tips) > MaxTips {
		return b, &LimitError{What: "tips after the merge", Size: int64(len(b.Tips)), Max: MaxTips}
	}
	m.next.joined = nil
	led := map[cid.Cid]bool{}
	for _, h := range slices.Concat(tipHeads...) {
		led[h] = true
	}
	for _, h := range m.head {
		if !led[h] {
			m.next.joined = append(m.next.joined, h)
		}
	}
	m.next.head = orderHead(m.head, tipHeads)
	if !slices.Equal(m.next.joined, m.old.joined) {
		b.Notes = map[string][]byte{noteJoined: joinCIDs(m.next.joined)}
	}
	return b, nil
}

// refusedCAR says whether a CAR belongs to quarantined metas only.
func (m *merging) refusedCAR(n blockstore.Name) bool {
	return m.refused[n] && !slices.ContainsFunc(m.metas, func(c candidate) bool {
		return slices.ContainsFunc(c.Group, func(r blockstore.Ref) bool { return r.Name == n })
	})
}

// brings says whether a CAR is to be kept. From a node everything is; from JavaScript, what holds a block beside its
// header that is not here.
func (m *merging) brings(c blockstore.CAR, fromJS bool) (bool, error) {
	if !fromJS {
		return true, nil
	}
	_, hasHeader := c.Header()
	for i, s := range c.Blocks() {
		if i == 0 && hasHeader {
			continue
		}
		has, err := m.l.store.Has(s.CID)
		if err != nil || !has {
			return true, err
		}
	}
	return false, nil
}

// idle says whether a batch would change nothing.
func (m *merging) idle(b blockstore.Batch) bool {
	return len(b.CARs) == 0 && len(b.Drop) == 0 && b.Notes == nil && slices.Equal(metaCIDs(b.Tips), metaCIDs(m.old.tips))
}

// show brings the merge into the view: new events, then the keys whose value differs between the old and the new
// trie, whichever event gave it to them. A merge can also bring an older value back.
func (m *merging) show(ctx context.Context) error {
	before := m.l.trieOf(m.old)
	m.l.blocks = newOverlay(m.l.base)
	m.l.blocks.extra, m.l.merged = m.made, len(m.next.head) > 1
	u := m.l.newUpdate(ctx, m.next)
	defer u.close()
	winners := map[string]op{}
	for _, c := range m.events {
		e, data, err := m.replica.Event(ctx, c)
		if err != nil {
			return err
		}
		if block, ok := m.staged.extra[c]; ok {
			m.l.base.keep(c, bytes.Clone(block)) // its CAR need not stay in memory
		}
		seq, err := u.event(c, e.Parents, data)
		if err != nil {
			return err
		}
		if err := u.flush(viewBatchBytes); err != nil {
			return err
		}
		for _, o := range data.Ops {
			if _, ok := winners[o.Key]; ok || len(winners) < maxWinners {
				winners[o.Key] = op{seq: seq, value: o.Value}
			}
		}
	}
	changed := u.next.changes
	for c, err := range pail.Diff(ctx, before, m.trie) {
		if err != nil {
			return err
		}
		if planted.ForgetTombstone && c.New == tombstoneCID {
			continue
		}
		k := newValue{id: c.Key, value: c.New, block: m.staged.extra[c.New]}
		k.fresh = !c.Old.Defined() && !m.recount // else a cut-off update may have written it
		w, ok := winners[c.Key]
		if !ok || w.value != c.New {
			if w, err = m.winner(u, c); err != nil {
				return err
			}
		}
		k.event = w.seq
		if err := u.change(k); err != nil {
			return err
		}
	}
	m.res.Events, m.res.Changed = len(m.events), int(u.next.changes-changed)
	if m.recount {
		if err := u.flush(1); err != nil {
			return err
		}
		var err error
		if u.next.docs, err = m.l.view.countListed(); err != nil {
			return err
		}
	}
	return u.finish()
}

// winner finds the newest event that gave a key the value it now has.
func (m *merging) winner(u *update, c pail.Change) (op, error) {
	if err := u.flush(1); err != nil {
		return op{}, err
	}
	ops, err := m.l.view.ops(c.Key)
	if err != nil {
		return op{}, err
	}
	for _, o := range slices.Backward(ops) {
		if o.value == c.New {
			return o, nil
		}
	}
	return op{}, nil
}
