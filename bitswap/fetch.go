package bitswap

import (
	"context"
	"iter"
	"sync"
	"time"

	"github.com/ipfs/boxo/exchange"
	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p/core/peer"

	"fpnode/blockstore"
)

// Fetch yields the sealed bytes of refs as they arrive, in no particular order, each
// verified against its Wire and Size. It ends when all have arrived, when ctx ends,
// when none of the peers from is there, or when the peers stay silent; what was not
// yielded then is not to be had now. The bytes belong to the caller.
//
// The blocks are asked of every admitted peer, those named by from are the ones that
// are known to have them.
func (x *Exchange) Fetch(ctx context.Context, from []peer.ID, refs []blockstore.Ref) iter.Seq2[blockstore.Ref, []byte] {
	return func(yield func(blockstore.Ref, []byte) bool) {
		if !x.gate.anyPresent(from) {
			return
		}
		ctx, cancel := context.WithCancel(ctx)
		var workers sync.WaitGroup
		defer workers.Wait()
		defer cancel()
		f := &fetch{
			x:       x,
			session: x.boxo.NewSession(ctx),
			results: make(chan result),
		}
		for _, ref := range refs {
			switch {
			case ref.Size <= 0 || ref.Size > maxWireBytes || !wireCID(ref.Wire.Cid):
			case ref.Wire.Prefix().Codec == cid.Raw:
				f.small = append(f.small, ref)
			default:
				f.large = append(f.large, ref)
			}
		}
		f.grow = func() { workers.Go(func() { f.work(ctx) }) }
		f.workers = batchesAtFirst
		for range batchesAtFirst {
			f.grow()
		}
		go func() {
			workers.Wait()
			close(f.results)
		}()
		for r := range f.results {
			if !yield(r.ref, r.sealed) {
				cancel()
				for range f.results {
				}
				return
			}
		}
	}
}

type result struct {
	ref    blockstore.Ref
	sealed []byte
}

// fetch is one call of Fetch. Its workers take batches of small CARs, then large CARs
// one by one.
type fetch struct {
	x       *Exchange
	session exchange.Fetcher
	results chan result

	grow    func() // starts a worker
	mu      sync.Mutex
	workers int              // started
	small   []blockstore.Ref // of one raw block
	large   []blockstore.Ref // UnixFS files
}

// arrived is called when all of a batch did: this fetch may do more at a time.
func (f *fetch) arrived() {
	f.mu.Lock()
	more := f.workers < batchesPerFetch && len(f.small)+len(f.large) > 0
	if more {
		f.workers++
	}
	f.mu.Unlock()
	if more {
		f.grow()
	}
}

// next takes work off the lists. Both results are empty when there is none left.
func (f *fetch) next() (small []blockstore.Ref, large *blockstore.Ref) {
	f.mu.Lock()
	defer f.mu.Unlock()
	var size int64
	n := 0
	for n < len(f.small) && n < batchWants && (n == 0 || size+f.small[n].Size <= batchBytes) {
		size += f.small[n].Size
		n++
	}
	if n > 0 {
		small, f.small = f.small[:n], f.small[n:]
		return small, nil
	}
	if len(f.large) > 0 {
		large, f.large = &f.large[0], f.large[1:]
	}
	return nil, large
}

func (f *fetch) work(ctx context.Context) {
	for ctx.Err() == nil {
		small, large := f.next()
		switch {
		case large != nil:
			f.one(ctx, *large)
		case len(small) > 0:
			// Two refs may have the same bytes, under two names; boxo yields one block.
			byWire := make(map[cid.Cid][]blockstore.Ref, len(small))
			cids := make([]cid.Cid, 0, len(small))
			for _, ref := range small {
				if byWire[ref.Wire.Cid] == nil {
					cids = append(cids, ref.Wire.Cid)
				}
				byWire[ref.Wire.Cid] = append(byWire[ref.Wire.Cid], ref)
			}
			blocks := 0
			f.batch(ctx, cids, func(c cid.Cid, b []byte) {
				if blocks++; blocks == len(cids) {
					f.arrived()
				}
				for i, ref := range byWire[c] {
					if int64(len(b)) != ref.Size {
						continue
					}
					if i > 0 {
						b = append([]byte(nil), b...)
					}
					f.yield(ctx, ref, b)
				}
			})
		default:
			return
		}
	}
}

func (f *fetch) yield(ctx context.Context, ref blockstore.Ref, sealed []byte) {
	select {
	case f.results <- result{ref, sealed}:
	case <-ctx.Done():
	}
}

// batch asks for blocks and calls got with each that arrives, until all have or
// nothing more comes.
func (f *fetch) batch(ctx context.Context, cids []cid.Cid, got func(cid.Cid, []byte)) {
	select {
	case f.x.slots <- struct{}{}:
	case <-ctx.Done():
		return
	}
	defer func() { <-f.x.slots }()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	arrived, err := f.session.GetBlocks(ctx, cids)
	if err != nil {
		return // the exchange is being closed
	}
	watched := f.x.gate.begin(cids, time.Now())
	defer f.x.gate.end(watched)
	tick := time.NewTicker(f.x.gate.timing.review)
	defer tick.Stop()
	for {
		select {
		case b, ok := <-arrived:
			if !ok {
				return
			}
			got(b.Cid(), b.RawData())
		case now := <-tick.C:
			f.x.gate.review(now)
			if f.x.gate.hopeless(watched, now) {
				return
			}
		}
	}
}

// one fetches a large CAR; of the largest there is one in memory at a time.
func (f *fetch) one(ctx context.Context, ref blockstore.Ref) {
	if ref.Size > hugeBytes {
		select {
		case f.x.huge <- struct{}{}:
			defer func() { <-f.x.huge }()
		case <-ctx.Done():
			return
		}
	}
	if sealed, ok := f.file(ctx, ref); ok {
		f.arrived()
		f.yield(ctx, ref, sealed)
	}
}

// file fetches a CAR that is a UnixFS file, level by level and then all leaves.
func (f *fetch) file(ctx context.Context, ref blockstore.Ref) ([]byte, bool) {
	level := []child{{ref.Wire.Cid, ref.Size}}
	for range maxDepth {
		nodes := f.blocks(ctx, level)
		if nodes == nil {
			return nil, false
		}
		var below []child
		for i, c := range level {
			children, size, err := parseNode(nodes[i])
			if err != nil || size != c.size {
				return nil, false
			}
			below = append(below, children...)
		}
		level = below
		if level[0].cid.Prefix().Codec == cid.Raw {
			return f.leaves(ctx, ref.Size, level)
		}
	}
	return nil, false
}

// blocks fetches all blocks of a level, in order, or returns nil.
func (f *fetch) blocks(ctx context.Context, level []child) [][]byte {
	out := make([][]byte, len(level))
	ok := f.spread(ctx, level, func(i int, b []byte) bool {
		out[i] = b
		return true
	})
	if !ok {
		return nil
	}
	return out
}

// leaves fetches the leaves straight into their places.
func (f *fetch) leaves(ctx context.Context, size int64, level []child) ([]byte, bool) {
	offsets := make([]int64, len(level))
	var at int64
	for i, c := range level {
		if c.size > leafBytes || c.cid.Prefix().Codec != cid.Raw {
			return nil, false
		}
		offsets[i] = at
		at += c.size
	}
	if at != size {
		return nil, false
	}
	sealed := make([]byte, size)
	ok := f.spread(ctx, level, func(i int, b []byte) bool {
		if int64(len(b)) != level[i].size {
			return false
		}
		copy(sealed[offsets[i]:], b)
		return true
	})
	return sealed, ok
}

// spread fetches the blocks of level in batches and calls place for each position;
// it reports whether all came and place took them all.
func (f *fetch) spread(ctx context.Context, level []child, place func(i int, b []byte) bool) bool {
	per := max(1, min(batchWants, batchBytes/leafBytes))
	if level[0].cid.Prefix().Codec != cid.Raw {
		per = batchWants
	}
	for lo := 0; lo < len(level); lo += per {
		part := level[lo:min(lo+per, len(level))]
		at := make(map[cid.Cid][]int, len(part))
		var cids []cid.Cid
		for i, c := range part {
			if at[c.cid] == nil {
				cids = append(cids, c.cid)
			}
			at[c.cid] = append(at[c.cid], lo+i)
		}
		placed, good := 0, true
		f.batch(ctx, cids, func(c cid.Cid, b []byte) {
			for _, i := range at[c] {
				good = place(i, b) && good
				placed++
			}
		})
		if placed != len(part) || !good {
			return false
		}
	}
	return true
}
