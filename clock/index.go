package clock

import (
	"context"
	"fmt"
	"hash/maphash"
	"slices"

	"github.com/ipfs/go-cid"
)

// An Index is the ancestry of all events of one ledger, in memory: about 100
// bytes for each, rebuilt from the events whenever it is lost.
//
// Every event that has all of its ancestors gets a number, its seq, in the
// order of arrival; parents have smaller numbers than their children. Adding
// the same events in seq order to an empty Index gives the same numbers.
type Index struct {
	ids    []id   // by seq
	nodes  []node // by seq
	links  []uint32
	table  []uint32 // open addressing from id to seq+1, at most half full
	seed   maphash.Seed
	leaves map[uint32]struct{} // events without children

	pending      map[cid.Cid]*pendingEvent
	pendingLinks int
	waiting      map[cid.Cid][]cid.Cid // missing event → pending events that name it
}

// A node is what the Index knows of an event besides its CID.
//
// The immediate dominator of an event is the latest other event that is on
// every path from it to the genesis. It never changes, since ancestors never
// do. The dominators form a tree; jump is an ancestor in it chosen such that
// any ancestor is reached in O(log depth) steps (skew-binary jump pointers,
// Myers 1983).
type node struct {
	parents uint32 // links[parents:] up to the next node's
	height  uint32 // longest path to the genesis
	idom    uint32 // seq of the immediate dominator; of itself for the genesis
	depth   uint32 // in the dominator tree
	jump    uint32 // seq
}

// A pendingEvent waits for parents.
type pendingEvent struct {
	parents []cid.Cid
	missing int // distinct parents that are not in the Index yet
}

// NewIndex returns an empty Index.
func NewIndex() *Index {
	return &Index{
		table:   make([]uint32, 64),
		seed:    maphash.MakeSeed(),
		leaves:  map[uint32]struct{}{},
		pending: map[cid.Cid]*pendingEvent{},
		waiting: map[cid.Cid][]cid.Cid{},
	}
}

// Len returns the number of events in the Index, pending ones not counted.
func (x *Index) Len() int { return len(x.ids) }

// Has reports whether an event is in the Index with all of its ancestors.
func (x *Index) Has(c cid.Cid) bool {
	_, ok := x.Seq(c)
	return ok
}

// Seq returns the number of an event.
func (x *Index) Seq(c cid.Cid) (uint32, bool) {
	if !isEventCID(c) {
		return 0, false
	}
	return x.lookup(idOf(c))
}

// At returns the event with a number, or cid.Undef.
func (x *Index) At(seq uint32) cid.Cid {
	if int(seq) >= len(x.ids) {
		return cid.Undef
	}
	return x.ids[seq].cid()
}

// Parents returns the parents of an event, in the order they were added.
func (x *Index) Parents(c cid.Cid) ([]cid.Cid, bool) {
	seq, ok := x.Seq(c)
	if !ok {
		return nil, false
	}
	links := x.parents(seq)
	parents := make([]cid.Cid, len(links))
	for i, p := range links {
		parents[i] = x.At(p)
	}
	return parents, true
}

// Height returns the number of steps on the longest path from an event to the
// genesis.
func (x *Index) Height(c cid.Cid) (uint32, bool) {
	seq, ok := x.Seq(c)
	if !ok {
		return 0, false
	}
	return x.nodes[seq].height, true
}

// Leaves returns the events on which no other event builds, sorted by bytes:
// the head of everything that is known.
func (x *Index) Leaves() []cid.Cid {
	leaves := make([]cid.Cid, 0, len(x.leaves))
	for seq := range x.leaves {
		leaves = append(leaves, x.At(seq))
	}
	SortBytes(leaves)
	return leaves
}

// Pending returns the number of events that wait for parents.
func (x *Index) Pending() int { return len(x.pending) }

// Missing returns the events to fetch so that pending events can be
// integrated, sorted by bytes. Some of them may turn out to need others.
func (x *Index) Missing() []cid.Cid {
	var missing []cid.Cid
	for c := range x.waiting {
		if x.pending[c] == nil {
			missing = append(missing, c)
		}
	}
	SortBytes(missing)
	return missing
}

// Forget drops all pending events.
func (x *Index) Forget() {
	clear(x.pending)
	clear(x.waiting)
	x.pendingLinks = 0
}

// Add adds an event. If parents are missing it becomes pending; otherwise it
// is integrated, and with it every pending event that only lacked it. They are
// returned, parents first. Adding an event again does nothing.
//
// The error is ErrGenesis for a second event without parents, and ErrLimit if
// there are too many pending events; neither changes the Index.
func (x *Index) Add(c cid.Cid, parents []cid.Cid) (integrated []cid.Cid, err error) {
	if err := checkEvent(c, parents); err != nil {
		return nil, err
	}
	if x.Has(c) || x.pending[c] != nil {
		return nil, nil
	}
	if len(parents) == 0 && len(x.ids) > 0 {
		return nil, fmt.Errorf("clock: %s and %s: %w", x.At(0), c, ErrGenesis)
	}
	missing := x.missing(parents)
	if len(missing) > 0 {
		return nil, x.postpone(c, parents, missing)
	}
	if len(x.ids) >= MaxEvents || len(x.links)+len(parents) > MaxEvents {
		return nil, fmt.Errorf("clock: %d events: %w", len(x.ids), ErrLimit)
	}
	x.integrate(c, parents)
	integrated = append(integrated, c)
	for i := 0; i < len(integrated); i++ {
		integrated = x.release(integrated[i], integrated)
	}
	return integrated, nil
}

func checkEvent(c cid.Cid, parents []cid.Cid) error {
	if len(parents) > MaxParents {
		return fmt.Errorf("clock: %s: %d parents: %w", c, len(parents), ErrLimit)
	}
	if !isEventCID(c) {
		return fmt.Errorf("clock: %s: %w", c, ErrEvent)
	}
	for _, p := range parents {
		if !isEventCID(p) {
			return fmt.Errorf("clock: %s: parent %s: %w", c, p, ErrEvent)
		}
	}
	return nil
}

// missing returns the distinct parents that are not in the Index.
func (x *Index) missing(parents []cid.Cid) []cid.Cid {
	var missing []cid.Cid
	for _, p := range parents {
		if !x.Has(p) {
			missing = append(missing, p)
		}
	}
	if len(missing) > 1 {
		SortBytes(missing)
		missing = slices.Compact(missing)
	}
	return missing
}

// postpone makes an event pending.
func (x *Index) postpone(c cid.Cid, parents, missing []cid.Cid) error {
	if len(x.pending) >= MaxPending || x.pendingLinks+len(parents) > MaxPendingLinks {
		return fmt.Errorf("clock: %d pending events: %w", len(x.pending), ErrLimit)
	}
	x.pending[c] = &pendingEvent{parents: slices.Clone(parents), missing: len(missing)}
	x.pendingLinks += len(parents)
	for _, m := range missing {
		x.waiting[m] = append(x.waiting[m], c)
	}
	return nil
}

// release integrates the pending events that lacked only c, and appends them
// to integrated.
func (x *Index) release(c cid.Cid, integrated []cid.Cid) []cid.Cid {
	children := x.waiting[c]
	delete(x.waiting, c)
	for _, child := range children {
		p := x.pending[child]
		if p.missing--; p.missing > 0 {
			continue
		}
		delete(x.pending, child)
		x.pendingLinks -= len(p.parents)
		x.integrate(child, p.parents)
		integrated = append(integrated, child)
	}
	return integrated
}

// integrate gives an event its number. Its parents must be in the Index.
func (x *Index) integrate(c cid.Cid, parents []cid.Cid) {
	seq := uint32(len(x.ids))
	n := node{parents: uint32(len(x.links)), idom: seq, jump: seq}
	for i, parent := range parents {
		p, ok := x.Seq(parent)
		if !ok {
			panic("clock: internal error: integrating " + c.String() + " before " + parent.String())
		}
		x.links = append(x.links, p)
		n.height = max(n.height, x.nodes[p].height+1)
		if i == 0 {
			n.idom = p
		} else {
			n.idom = x.nca(n.idom, p)
		}
		delete(x.leaves, p)
	}
	if len(parents) > 0 {
		dom := x.nodes[n.idom]
		n.depth = dom.depth + 1
		n.jump = n.idom
		if up := x.nodes[dom.jump]; dom.depth-up.depth == up.depth-x.nodes[up.jump].depth {
			n.jump = up.jump
		}
	}
	x.ids = append(x.ids, idOf(c))
	x.nodes = append(x.nodes, n)
	x.leaves[seq] = struct{}{}
	x.insert(seq)
}

// parents returns the seqs of an event's parents.
func (x *Index) parents(seq uint32) []uint32 {
	end := uint32(len(x.links))
	if int(seq)+1 < len(x.nodes) {
		end = x.nodes[seq+1].parents
	}
	return x.links[x.nodes[seq].parents:end]
}

// The hash table holds seq+1 so that 0 means empty. The seed keeps anyone from
// choosing events that collide.

func (x *Index) slot(h id) int {
	return int(maphash.Bytes(x.seed, h[:]) & uint64(len(x.table)-1))
}

func (x *Index) lookup(h id) (uint32, bool) {
	for i := x.slot(h); x.table[i] != 0; i = (i + 1) & (len(x.table) - 1) {
		if seq := x.table[i] - 1; x.ids[seq] == h {
			return seq, true
		}
	}
	return 0, false
}

func (x *Index) insert(seq uint32) {
	if 2*len(x.ids) > len(x.table) {
		x.table = make([]uint32, 2*len(x.table))
		for s := range seq {
			x.place(s)
		}
	}
	x.place(seq)
}

func (x *Index) place(seq uint32) {
	i := x.slot(x.ids[seq])
	for x.table[i] != 0 {
		i = (i + 1) & (len(x.table) - 1)
	}
	x.table[i] = seq + 1
}

// Fill adds the events of heads and all of their ancestors that are not in the
// Index, reading them from f, and returns what was integrated, parents first.
// If one cannot be had or is no event, or if there would be two events without
// parents, the Index stays as it was.
func (x *Index) Fill(ctx context.Context, f Fetcher, heads []cid.Cid) (integrated []cid.Cid, err error) {
	found := map[cid.Cid][]cid.Cid{} // new event → parents
	order, genesis, err := x.walk(ctx, f, heads, found)
	if err != nil {
		return nil, err
	}
	if genesis.Defined() && len(x.ids) > 0 {
		return nil, fmt.Errorf("clock: %s and %s: %w", x.At(0), genesis, ErrGenesis)
	}
	for _, c := range order {
		added, err := x.Add(c, found[c])
		if err != nil {
			return integrated, err // only MaxEvents is left
		}
		integrated = append(integrated, added...)
	}
	return integrated, nil
}

// walk reads the events that heads need and returns them parents first, and
// the one without parents if it is among them.
func (x *Index) walk(ctx context.Context, f Fetcher, heads []cid.Cid, found map[cid.Cid][]cid.Cid) (order []cid.Cid, genesis cid.Cid, err error) {
	// An event is on the stack until its parents are done. next counts the
	// parents looked at.
	type visit struct {
		c    cid.Cid
		next int
	}
	var stack []visit
	push := func(c cid.Cid) error {
		if _, ok := found[c]; ok || x.Has(c) {
			return nil
		}
		block, err := f.Block(ctx, c)
		if err != nil {
			return fmt.Errorf("clock: reading event %s: %w", c, err)
		}
		e, err := Decode(c, block)
		if err != nil {
			return fmt.Errorf("clock: %s: %w", c, err)
		}
		if err := checkEvent(c, e.Parents); err != nil {
			return err
		}
		if len(e.Parents) == 0 {
			if genesis.Defined() {
				return fmt.Errorf("clock: %s and %s: %w", genesis, c, ErrGenesis)
			}
			genesis = c
		}
		found[c] = e.Parents
		stack = append(stack, visit{c: c})
		return nil
	}
	for _, h := range heads {
		if err := push(h); err != nil {
			return nil, cid.Undef, err
		}
		for len(stack) > 0 {
			top := &stack[len(stack)-1]
			if parents := found[top.c]; top.next < len(parents) {
				top.next++
				if err := push(parents[top.next-1]); err != nil {
					return nil, cid.Undef, err
				}
				continue
			}
			order = append(order, top.c)
			stack = stack[:len(stack)-1]
		}
	}
	return order, genesis, nil
}
