package ledger

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync/atomic"

	"github.com/ipfs/go-cid"

	"fpnode/blockstore"
	"fpnode/clock"
	"fpnode/internal/car"
	"fpnode/internal/dagcbor"
	"fpnode/pail"
)

// Receipt says what a write made.
type Receipt struct {
	IDs   []string  // of the documents, in the order of the drafts
	Clock []cid.Cid // the head that holds the write
}

// Put writes documents durably. One draft becomes one put event, several become one batch event: all of them or
// none. Writing what is already there is no event and moves nothing.
//
// Puts that wait at the same time go into one CAR and one sync, each as an event on the one before. If the queue is
// full, Put waits for room. When ctx ends before the writer has begun, nothing was written; after that Put waits for
// the outcome.
//
// Errors are [*DocError], [*IDError], [*LimitError], [ErrClosed] and those of [blockstore.Ledger.Commit].
func (l *Ledger) Put(ctx context.Context, drafts ...Draft) (Receipt, error) {
	if len(drafts) == 0 {
		return Receipt{}, &DocError{Reason: "there is none to write"}
	}
	if len(drafts) > MaxPutDocs {
		return Receipt{}, &LimitError{What: "documents in one put", Size: int64(len(drafts)), Max: MaxPutDocs}
	}
	j := &job{docs: make([]Doc, len(drafts)), ids: make([]string, len(drafts)), done: make(chan error, 1)}
	for i, d := range drafts {
		if d.id == "" && !d.deleted {
			id, err := newID(l.cfg.Now(), l.cfg.Rand)
			if err != nil {
				return Receipt{}, err
			}
			d.id = id
		}
		if err := checkID(d.id); err != nil {
			return Receipt{}, err
		}
		c, block, err := d.block()
		if err != nil {
			return Receipt{}, err
		}
		j.docs[i] = Doc{ID: d.id, CID: c, Deleted: d.deleted, block: block}
		j.ids[i] = d.id
		j.bytes += len(block)
	}
	if j.bytes > MaxPutBytes {
		return Receipt{}, &LimitError{What: "documents of one put in bytes", Size: int64(j.bytes), Max: MaxPutBytes}
	}
	if err := l.submit(ctx, j); err != nil {
		return Receipt{}, err
	}
	return Receipt{IDs: j.ids, Clock: j.clock}, nil
}

// Delete writes tombstones. As in Fireproof, deleting what does not exist succeeds.
func (l *Ledger) Delete(ctx context.Context, ids ...string) (Receipt, error) {
	drafts := make([]Draft, len(ids))
	for i, id := range ids {
		drafts[i] = Tombstone(id)
	}
	return l.Put(ctx, drafts...)
}

// job is one thing the writer is asked to do: docs to put, or run to be called alone.
type job struct {
	docs  []Doc
	ids   []string
	bytes int
	run   func() error

	// A put may bring file CARs, which become durable with it, and a condition on the trie it is applied to. One
	// with CARs gets a commit of its own.
	cars []blockstore.CAR
	when func(context.Context, pail.Tree) error

	join bool // not a put, but two events that write nothing

	owner atomic.Int32 // waiting, or whoever was first to take the job
	clock []cid.Cid    // result of a put
	done  chan error   // capacity 1
}

const (
	jobWaiting = iota
	jobTaken
	jobAbandoned
)

// join makes one head, whose event has one parent, by an event on all heads and one on that, which write nothing. Two
// replicas that join the same heads make the same events.
func (l *Ledger) join(ctx context.Context) error {
	return l.submit(ctx, &job{join: true, done: make(chan error, 1)})
}

// exclusive runs f on the writer's goroutine, between commits: nothing else changes the ledger meanwhile. f must
// not call Put, Delete or Merge.
func (l *Ledger) exclusive(ctx context.Context, f func() error) error {
	return l.submit(ctx, &job{run: f, done: make(chan error, 1)})
}

// submit hands a job to the writer and waits for its outcome.
func (l *Ledger) submit(ctx context.Context, j *job) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	l.closing.RLock()
	if l.closed {
		l.closing.RUnlock()
		return ErrClosed
	}
	select {
	case l.queue <- j:
		l.closing.RUnlock()
	case <-ctx.Done():
		l.closing.RUnlock()
		return ctx.Err()
	}
	select {
	case err := <-j.done:
		return err
	case <-ctx.Done():
		if j.owner.CompareAndSwap(jobWaiting, jobAbandoned) {
			return ctx.Err()
		}
		return <-j.done
	}
}

// write is the writer. It ends when Close has closed the queue and everything in it is done.
func (l *Ledger) write() {
	defer close(l.done)
	for j := range l.queue {
		for j != nil {
			j = l.serve(j)
		}
	}
}

// serve does one job, or a group commit of it and the puts that wait behind it. It returns the job that ended the
// group, if there is one.
func (l *Ledger) serve(j *job) *job {
	if !j.owner.CompareAndSwap(jobWaiting, jobTaken) {
		return nil
	}
	if j.run != nil {
		j.done <- j.run()
		return nil
	}
	group, size := []*job{j}, j.bytes
	var next *job
gather:
	for len(j.cars) == 0 && len(group) < groupJobs && size < groupBytes {
		select {
		case k, ok := <-l.queue:
			if !ok {
				break gather
			}
			if k.run != nil || len(k.cars) > 0 || size+k.bytes > MaxPutBytes {
				next = k
				break gather
			}
			if k.owner.CompareAndSwap(jobWaiting, jobTaken) {
				group, size = append(group, k), size+k.bytes
			}
		default:
			break gather
		}
	}
	l.commitGroup(group)
	return next
}

// commitGroup is the life of a write. Every job of the group gets its outcome: its own if it could not be applied,
// else that of the one commit.
//
// Crash: before Commit returns nothing is acknowledged, and the store holds the commit whole or not at all. After
// it, the view may be behind; Open brings it up to date from the tips.
func (l *Ledger) commitGroup(jobs []*job) {
	ctx := context.Background()
	if err := l.ready(ctx); err != nil {
		settle(jobs, err)
		return
	}
	old := l.state.Load()
	g, errs := l.applyGroup(ctx, old, jobs)
	if slices.ContainsFunc(errs, func(err error) bool { return errors.Is(err, clock.ErrMissing) }) {
		if err := l.mend(ctx, old); err != nil {
			l.log.Error("lost shards cannot be made again", "err", err)
		} else {
			g, errs = l.applyGroup(ctx, old, jobs)
		}
	}
	applied := make([]*job, 0, len(jobs))
	for i, j := range jobs {
		if errs[i] != nil {
			j.done <- errs[i]
			continue
		}
		applied = append(applied, j)
	}
	if len(applied) == 0 {
		return
	}
	var err error
	if len(g.events) > 0 || len(g.files) > 0 { // else there is nothing but what is already there
		err = l.commit(ctx, old, g)
	}
	settle(applied, err)
}

// applyGroup begins a group and adds the jobs to it. The errors are those of the jobs that could not be applied.
func (l *Ledger) applyGroup(ctx context.Context, old *state, jobs []*job) (*group, []error) {
	g := l.beginGroup(old)
	errs := make([]error, len(jobs))
	for i, j := range jobs {
		errs[i] = g.apply(ctx, j)
	}
	return g, errs
}

func settle(jobs []*job, err error) {
	for _, j := range jobs {
		j.done <- err
	}
}

// group is the work of one commit before it is durable. Dropping it undoes everything.
type group struct {
	head    []cid.Cid
	trie    pail.Tree
	made    *overlay           // the shards made so far, so that the next event finds them
	loose   map[cid.Cid][]byte // shards of the starting trie that no CAR holds, as long as they are not replaced
	genesis []car.Block        // the first commit of a ledger, which goes into a CAR of its own

	docs   blockList
	shards blockList
	events []groupEvent
	files  []blockstore.CAR // of attached files, stored before the CAR whose documents name them
}

type groupEvent struct {
	car.Block
	parents []cid.Cid
	data    pail.Data
	docs    []Doc
	fresh   []bool // of each doc, whether its key had no value before the event
}

// blockList is an ordered set of blocks.
type blockList struct {
	blocks []car.Block
	has    map[cid.Cid]struct{}
}

func (b *blockList) add(c cid.Cid, data []byte) {
	if b.has == nil {
		b.has = map[cid.Cid]struct{}{}
	}
	if _, ok := b.has[c]; !ok {
		b.has[c] = struct{}{}
		b.blocks = append(b.blocks, car.Block{CID: c, Data: data})
	}
}

// beginGroup starts from the current head. An empty ledger gets the genesis commit first, as JavaScript writes it:
// all ledgers begin with the same event, which is what lets any two of them merge.
func (l *Ledger) beginGroup(s *state) *group {
	g := &group{head: s.head, made: newOverlay(l.blocks), loose: maps.Clone(l.blocks.extra)}
	if len(s.head) > 0 {
		g.trie = pail.Load(g.made, l.shards, s.root)
		return g
	}
	blocks := pail.GenesisBlocks()[1:] // the header is made with the CAR
	e := groupEvent{Block: blocks[len(blocks)-1], data: pail.Data{Root: pail.GenesisRoot}}
	e.data.Ops = []pail.Op{{Key: pail.GenesisKey, Value: pail.GenesisDoc}}
	e.docs, e.fresh = []Doc{{ID: pail.GenesisKey, CID: pail.GenesisDoc, block: blocks[0].Data}}, []bool{true}
	g.genesis, g.events = blocks, []groupEvent{e}
	g.made.add(blocks)
	g.head, g.trie = []cid.Cid{e.CID}, pail.Load(g.made, l.shards, pail.GenesisRoot)
	return g
}

// advance moves the group to the state after an event.
func (g *group) advance(event car.Block, res pail.Result) {
	g.made.add(res.Additions)
	// Only the event that follows the merge decides which of its shards were in passing.
	for _, c := range res.Removals {
		delete(g.loose, c)
	}
	g.head, g.trie = []cid.Cid{event.CID}, res.Tree.Stored()
}

// apply adds one put to the group. If it fails, the group is as before.
func (g *group) apply(ctx context.Context, j *job) error {
	if j.when != nil {
		if err := j.when(ctx, g.trie); err != nil {
			return err
		}
	}
	if err := g.write(ctx, j.docs); err != nil {
		return err
	}
	if j.join {
		if err := g.write(ctx, nil); err != nil {
			return err
		}
	}
	g.files = append(g.files, j.cars...)
	j.clock = g.head
	return nil
}

// write makes the event of docs on the group's head: one document is a put, and no event if it changes nothing;
// several, or none, are a batch.
func (g *group) write(ctx context.Context, docs []Doc) error {
	data := pail.Data{Batch: len(docs) != 1, Ops: make([]pail.Op, len(docs))}
	fresh := make([]bool, len(docs))
	edit := g.trie.Edit()
	for i, d := range docs {
		// The trie has the shards for this at hand, the view may have to go to the disk.
		_, had, err := g.trie.Get(ctx, d.ID)
		if err != nil {
			return fmt.Errorf("putting %.80q: %w", d.ID, err)
		}
		fresh[i] = !had
		data.Ops[i] = pail.Op{Key: d.ID, Value: d.CID}
		if err := edit.Put(ctx, d.ID, d.CID); err != nil {
			return fmt.Errorf("putting %.80q: %w", d.ID, err)
		}
	}
	res := edit.Commit()
	if !data.Batch && res.Tree.Root() == g.trie.Root() {
		return nil
	}
	data.Root = res.Tree.Root()
	c, block := clock.Encode(data.Encode(), g.head)
	for _, d := range docs {
		g.docs.add(d.CID, d.block)
	}
	for _, s := range res.Additions {
		g.shards.add(s.CID, s.Data)
	}
	event := car.Block{CID: c, Data: block}
	g.events = append(g.events, groupEvent{Block: event, parents: g.head, data: data, docs: docs, fresh: fresh})
	g.advance(event, res)
	return nil
}

// commit makes a group durable and then visible.
func (l *Ledger) commit(ctx context.Context, old *state, g *group) error {
	batch := blockstore.Batch{CARs: g.files}
	if len(g.events) == 0 { // a file came back whose document is as it was
		batch.Tips = old.tips
		if err := l.store.Commit(ctx, metaCIDs(old.tips), batch); err != nil {
			return fmt.Errorf("committing: %w", err)
		}
		return nil
	}
	tips := old.tips
	if g.genesis != nil {
		c, err := l.packCommit(tips, []cid.Cid{g.events[0].CID}, g.genesis)
		if err != nil {
			return err
		}
		batch.CARs = append(batch.CARs, c)
		tips = []blockstore.Meta{blockstore.NewMeta([]blockstore.Ref{c.Ref}, nil)}
	}
	blocks := slices.Concat(g.docs.blocks, g.looseShards(), g.shards.blocks)
	for i, e := range g.events {
		if g.genesis == nil || i > 0 {
			blocks = append(blocks, e.Block)
		}
	}
	meta := tips
	if len(blocks) > 0 {
		c, err := l.packCommit(tips, g.head, blocks)
		if err != nil {
			return err
		}
		batch.CARs = append(batch.CARs, c)
		meta = []blockstore.Meta{blockstore.NewMeta([]blockstore.Ref{c.Ref}, sortedMetaCIDs(tips))}
	}
	batch.Tips = meta
	if len(old.joined) > 0 {
		batch.Notes = map[string][]byte{noteJoined: nil}
	}
	if err := l.store.Commit(ctx, metaCIDs(old.tips), batch); err != nil {
		return l.commitFailed(err)
	}

	next := *old
	next.head, next.root, next.tips, next.joined = g.head, g.trie.Root(), meta, nil
	l.blocks, l.merged = newOverlay(l.base), false
	clear(l.tipHeads)
	l.tipHeads[meta[0].CID] = g.head
	if err := l.show(ctx, next, g); err != nil {
		// The write is durable all the same. The view is made to follow from the tips, now or before the next write.
		l.log.Error("view not updated", "err", err)
		l.behind = true
		return l.ready(ctx)
	}
	return nil
}

// commitFailed explains a commit that the store did not take. Tips that moved under us mean that somebody wrote to the
// store beside this ledger: the next write begins by following.
func (l *Ledger) commitFailed(err error) error {
	l.behind = l.behind || errors.Is(err, blockstore.ErrStale)
	return fmt.Errorf("committing: %w", err)
}

// show brings a group into the view.
func (l *Ledger) show(ctx context.Context, next state, g *group) error {
	u := l.newUpdate(ctx, next)
	defer u.close()
	var last map[string]int // of keys written more than once, the op that counts
	var changes []newValue
	for _, e := range g.events {
		seq, err := u.event(e.CID, e.parents, e.data)
		if err != nil {
			return err
		}
		l.base.keep(e.CID, e.Data)
		for i, d := range e.docs {
			k := newValue{id: d.ID, value: d.CID, event: seq, block: d.block, fresh: e.fresh[i]}
			if i, ok := last[d.ID]; ok {
				k.fresh = changes[i].fresh
				changes[i].id = ""
			}
			if last == nil {
				last = make(map[string]int, len(g.events)+len(e.docs))
			}
			last[d.ID] = len(changes)
			changes = append(changes, k)
		}
	}
	for _, k := range changes {
		if k.id == "" {
			continue
		}
		if err := u.change(k); err != nil {
			return err
		}
	}
	return u.finish()
}

// looseShards is the shards of a merged trie that this commit is the first to need: what it did not replace.
func (g *group) looseShards() []car.Block {
	if len(g.loose) == 0 {
		return nil
	}
	var out []car.Block
	for c, data := range g.loose {
		out = append(out, car.Block{CID: c, Data: data})
	}
	return sortBlocks(out)
}

// packCommit builds the CAR of one commit: header, then the blocks as they come. The header names the groups of the
// metas it replaces, in the order of their first CID's bytes; that is a record for people who look, not a work list.
func (l *Ledger) packCommit(replaced []blockstore.Meta, head []cid.Cid, blocks []car.Block) (blockstore.CAR, error) {
	h := car.Header{Cars: [][]cid.Cid{}, Compact: [][]cid.Cid{}, Head: head, HasHead: true}
	for _, m := range replaced {
		names := make([]cid.Cid, len(m.Group))
		for i, r := range m.Group {
			names[i] = r.Name.Cid
		}
		h.Cars = append(h.Cars, names)
	}
	slices.SortFunc(h.Cars, func(a, b []cid.Cid) int { return cmp.Compare(a[0].KeyString(), b[0].KeyString()) })
	return l.pack(h, blocks)
}

// packShards builds a CAR of shards that were made again from events. Like a pack it shows no head, so whoever gets
// it learns blocks and nothing else.
func (l *Ledger) packShards(shards []car.Block) (blockstore.CAR, error) {
	return l.pack(car.Header{}, sortBlocks(shards))
}

// pack builds and seals a CAR of a header block and other blocks.
func (l *Ledger) pack(h car.Header, blocks []car.Block) (blockstore.CAR, error) {
	header := h.Encode()
	root := car.Block{CID: dagcbor.Sum(header), Data: header}
	c, err := l.store.Pack([]cid.Cid{root.CID}, append([]car.Block{root}, blocks...))
	if err != nil {
		return blockstore.CAR{}, fmt.Errorf("packing: %w", err)
	}
	return c, nil
}

// sortBlocks sorts by the bytes of the CIDs, in place.
func sortBlocks(blocks []car.Block) []car.Block {
	slices.SortFunc(blocks, func(a, b car.Block) int { return cmp.Compare(a.CID.KeyString(), b.CID.KeyString()) })
	return blocks
}

func metaCIDs(metas []blockstore.Meta) []cid.Cid {
	out := make([]cid.Cid, len(metas))
	for i, m := range metas {
		out[i] = m.CID
	}
	return out
}

func sortedMetaCIDs(metas []blockstore.Meta) []cid.Cid {
	out := metaCIDs(metas)
	clock.SortBytes(out)
	return out
}
