package clock

import (
	"cmp"
	"math/big"
	"math/bits"
	"slices"

	"github.com/ipfs/go-cid"
)

// Replay returns the common ancestor of heads and the events to apply to its
// state, in this order, to get the state of heads. For a single head that is
// the head itself and none.
//
// The order is that of Pail. Walk all paths from every head back to the
// ancestor: an event is not walked past if the ancestor is its only parent
// (with several parents, one of them the ancestor, Pail walks on to the
// genesis, and so do we). The weight of an event is the sum, over all paths
// that reach it, of their lengths. Heavier events come first; equal weights
// are decided by tieBreak. So on a conflict the write nearer to its head wins.
//
// There can be exponentially many paths. Instead of walking them we go through
// the events once, children before parents, and carry their number and the sum
// of their lengths:
//
//	paths(p) = Σ paths(e)             over the edges e→p, plus 1 for a head
//	sum(p)   = Σ sum(e) + paths(e)
func (x *Index) Replay(heads []cid.Cid) (ancestor cid.Cid, order []cid.Cid, err error) {
	seqs, err := x.seqs(heads)
	if err != nil {
		return cid.Undef, nil, err
	}
	tail := x.commonAncestor(seqs)
	ancestor = x.At(tail)
	if len(seqs) == 1 {
		return ancestor, nil, nil
	}
	r := x.region(seqs, tail)
	sorted, ok := r.sortByUint64()
	if !ok {
		sorted = r.sortByBig()
	}
	order = make([]cid.Cid, len(sorted))
	for i, seq := range sorted {
		order[i] = x.At(seq)
	}
	return ancestor, order, nil
}

// Walks returns how many events lie between heads and their common ancestor, and
// how many visits it takes to walk every path through them, as JavaScript does
// to find the state of several heads. For a single head both are 0.
func (x *Index) Walks(heads []cid.Cid) (events int, visits float64, err error) {
	seqs, err := x.seqs(heads)
	if err != nil || len(seqs) == 1 {
		return 0, 0, err
	}
	r := x.region(seqs, x.commonAncestor(seqs))
	paths := make([]float64, len(r.seqs))
	for _, h := range r.heads {
		paths[r.index(h)]++
	}
	for i, seq := range r.seqs {
		visits += paths[i]
		for _, p := range r.next(seq) {
			paths[r.index(p)] += paths[i]
		}
	}
	return len(r.seqs), visits, nil
}

// A region is the events that a replay walks.
type region struct {
	x     *Index
	heads []uint32
	tail  uint32
	seqs  []uint32 // children before parents: descending
	rank  []uint32 // number of events of the region in the words above each word of set
	set   []uint64 // bit for each seq
}

func (x *Index) region(heads []uint32, tail uint32) *region {
	r := &region{x: x, heads: heads, tail: tail, set: make([]uint64, slices.Max(heads)/64+1)}
	stack := slices.Clone(heads)
	for len(stack) > 0 {
		seq := stack[len(stack)-1]
		stack = stack[:len(stack)-1]
		if r.set[seq/64]&(1<<(seq%64)) != 0 {
			continue
		}
		r.set[seq/64] |= 1 << (seq % 64)
		stack = append(stack, r.next(seq)...)
	}
	r.rank = make([]uint32, len(r.set))
	for w := len(r.set) - 1; w >= 0; w-- {
		r.rank[w] = uint32(len(r.seqs))
		for word := r.set[w]; word != 0; {
			bit := 63 - bits.LeadingZeros64(word)
			word &^= 1 << bit
			r.seqs = append(r.seqs, uint32(w*64+bit))
		}
	}
	return r
}

// next returns the parents at which paths through an event go on.
func (r *region) next(seq uint32) []uint32 {
	parents := r.x.parents(seq)
	if len(parents) == 1 && parents[0] == r.tail {
		return nil
	}
	return parents
}

// index returns the place of an event in seqs.
func (r *region) index(seq uint32) int {
	above := r.set[seq/64] >> (seq % 64) >> 1
	return int(r.rank[seq/64]) + bits.OnesCount64(above)
}

// sortByUint64 returns the events in replay order, or false if a weight does
// not fit 64 bits.
func (r *region) sortByUint64() ([]uint32, bool) {
	type load struct{ paths, sum uint64 }
	loads := make([]load, len(r.seqs))
	for _, h := range r.heads {
		loads[r.index(h)].paths++
	}
	var overflow uint64
	add := func(a, b uint64) uint64 {
		sum, carry := bits.Add64(a, b, 0)
		overflow |= carry
		return sum
	}
	for i, seq := range r.seqs {
		e := loads[i]
		step := add(e.sum, e.paths)
		for _, p := range r.next(seq) {
			l := &loads[r.index(p)]
			l.paths = add(l.paths, e.paths)
			l.sum = add(l.sum, step)
		}
		if overflow != 0 {
			return nil, false
		}
	}
	type weighted struct {
		weight uint64
		seq    uint32
	}
	events := make([]weighted, len(r.seqs))
	for i, seq := range r.seqs {
		events[i] = weighted{loads[i].sum, seq}
	}
	slices.SortFunc(events, func(a, b weighted) int {
		if a.weight != b.weight {
			return cmp.Compare(b.weight, a.weight)
		}
		return r.tieBreak(a.seq, b.seq)
	})
	sorted := make([]uint32, len(events))
	for i, e := range events {
		sorted[i] = e.seq
	}
	return sorted, true
}

// sortByBig is sortByUint64 without bounds. The number of paths doubles with
// every round in which two replicas both merge and both write, so 64 such
// rounds get here. A weight has one bit for each round: 10,000 rounds since the
// ancestor take some 12 MB, 100,000 more than a gigabyte. One event that merges
// all heads and is built upon ends the count.
func (r *region) sortByBig() []uint32 {
	type load struct{ paths, sum big.Int }
	loads := make([]load, len(r.seqs))
	one := big.NewInt(1)
	for _, h := range r.heads {
		l := &loads[r.index(h)]
		l.paths.Add(&l.paths, one)
	}
	for i, seq := range r.seqs {
		e := &loads[i]
		step := new(big.Int).Add(&e.sum, &e.paths)
		for _, p := range r.next(seq) {
			l := &loads[r.index(p)]
			l.paths.Add(&l.paths, &e.paths)
			l.sum.Add(&l.sum, step)
		}
		e.paths = big.Int{} // only sums are compared
	}
	sorted := slices.Clone(r.seqs)
	slices.SortFunc(sorted, func(a, b uint32) int {
		if c := loads[r.index(b)].sum.Cmp(&loads[r.index(a)].sum); c != 0 {
			return c
		}
		return r.tieBreak(a, b)
	})
	return sorted
}

func (r *region) tieBreak(a, b uint32) int {
	return tieBreak(eventPrefix+string(r.x.ids[a][:]), eventPrefix+string(r.x.ids[b][:]))
}
