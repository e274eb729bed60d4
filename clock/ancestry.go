package clock

import (
	"errors"
	"slices"

	"github.com/ipfs/go-cid"
)

// Advance returns the head after an event has arrived: the events of head and
// e, without those that another of them has among its ancestors. The ones that
// stay keep their order, and e comes last.
//
// head must be a head, that is without events that are ancestors of one
// another. An event that is not in the Index never moves a head; neither does
// one that is already covered by it.
func (x *Index) Advance(head []cid.Cid, e cid.Cid) []cid.Cid {
	seq, ok := x.Seq(e)
	if !ok || slices.Contains(head, e) {
		return head
	}
	if next, ok := x.advanceByParents(head, e, seq); ok {
		return next
	}
	covered := x.ancestorsAmong(head, seq)
	if len(covered) == 0 {
		for _, h := range head {
			if x.IsAncestor(e, h) {
				return head
			}
		}
	}
	next := make([]cid.Cid, 0, len(head)+1)
	for _, h := range head {
		if !covered[h] {
			next = append(next, h)
		}
	}
	return append(next, e)
}

// advanceByParents is Advance for an event all of whose parents are in head,
// which takes no search: other events of head cannot be ancestors of e, or they
// would be ancestors of a parent.
func (x *Index) advanceByParents(head []cid.Cid, e cid.Cid, seq uint32) ([]cid.Cid, bool) {
	parents := x.parents(seq)
	if len(parents) == 0 {
		return nil, false
	}
	replaced := make(map[cid.Cid]bool, len(parents))
	for _, p := range parents {
		replaced[x.At(p)] = true
	}
	next := make([]cid.Cid, 0, len(head)+1)
	for _, h := range head {
		if !replaced[h] {
			next = append(next, h)
		}
	}
	if len(head)-len(next) != len(replaced) {
		return nil, false
	}
	return append(next, e), true
}

// ancestorsAmong returns the events of head that are ancestors of an event.
func (x *Index) ancestorsAmong(head []cid.Cid, of uint32) map[cid.Cid]bool {
	wanted := map[uint32]cid.Cid{}
	lowest := of
	for _, h := range head {
		if seq, ok := x.Seq(h); ok && seq < of {
			wanted[seq] = h
			lowest = min(lowest, seq)
		}
	}
	found := map[cid.Cid]bool{}
	if len(wanted) == 0 {
		return found
	}
	x.search(of, lowest, 0, func(seq uint32) bool {
		if h, ok := wanted[seq]; ok {
			found[h] = true
		}
		return len(found) < len(wanted)
	})
	return found
}

// IsAncestor reports whether a is b or an ancestor of b. It is false if either
// is not in the Index.
func (x *Index) IsAncestor(a, b cid.Cid) bool {
	from, ok := x.Seq(b)
	if !ok {
		return false
	}
	to, ok := x.Seq(a)
	if !ok || to > from {
		return false
	}
	if x.dominates(to, from) {
		return true
	}
	found := false
	x.search(from, to, x.nodes[to].height, func(seq uint32) bool {
		found = found || seq == to
		return !found
	})
	return found
}

// search calls visit for an event and its ancestors, each once, until visit
// returns false. It leaves out events numbered below lowest, and those that are
// no higher than height except lowest itself.
func (x *Index) search(from, lowest, height uint32, visit func(seq uint32) bool) {
	seen := map[uint32]struct{}{from: {}}
	stack := []uint32{from}
	for len(stack) > 0 {
		seq := stack[len(stack)-1]
		stack = stack[:len(stack)-1]
		if !visit(seq) {
			return
		}
		for _, p := range x.parents(seq) {
			if p < lowest || p != lowest && x.nodes[p].height <= height {
				continue
			}
			if _, ok := seen[p]; !ok {
				seen[p] = struct{}{}
				stack = append(stack, p)
			}
		}
	}
}

// CommonAncestor returns the event at which the histories of heads part: the
// latest one that is on every path from every head to the genesis. It is the
// head itself if there is only one.
//
// Pail finds it by growing chains of candidates; the candidate of an event is
// its immediate dominator, so the result is the nearest common ancestor of the
// heads in the dominator tree.
func (x *Index) CommonAncestor(heads []cid.Cid) (cid.Cid, error) {
	seqs, err := x.seqs(heads)
	if err != nil {
		return cid.Undef, err
	}
	return x.At(x.commonAncestor(seqs)), nil
}

func (x *Index) commonAncestor(seqs []uint32) uint32 {
	a := seqs[0]
	for _, b := range seqs[1:] {
		a = x.nca(a, b)
	}
	return a
}

var errNoHead = errors.New("clock: the head is empty")

// seqs returns the numbers of heads, of which there must be one.
func (x *Index) seqs(heads []cid.Cid) ([]uint32, error) {
	if len(heads) == 0 {
		return nil, errNoHead
	}
	seqs := make([]uint32, len(heads))
	for i, h := range heads {
		var ok bool
		if seqs[i], ok = x.Seq(h); !ok {
			return nil, &MissingError{h}
		}
	}
	return seqs, nil
}

// nca returns the nearest common ancestor in the dominator tree.
func (x *Index) nca(a, b uint32) uint32 {
	a, b = x.lift(a, x.nodes[b].depth), x.lift(b, x.nodes[a].depth)
	// INVARIANT: equal depth, so also equal depth after a jump on both sides.
	for a != b {
		if na, nb := &x.nodes[a], &x.nodes[b]; na.jump != nb.jump {
			a, b = na.jump, nb.jump
		} else {
			a, b = na.idom, nb.idom
		}
	}
	return a
}

// lift returns the ancestor of a at a depth, or a if it is not below it.
func (x *Index) lift(a, depth uint32) uint32 {
	for {
		n := &x.nodes[a]
		switch {
		case n.depth <= depth:
			return a
		case x.nodes[n.jump].depth >= depth:
			a = n.jump
		default:
			a = n.idom
		}
	}
}

func (x *Index) dominates(a, b uint32) bool { return x.lift(b, x.nodes[a].depth) == a }
