package ledger

import (
	"context"
	"errors"
	"sync"

	"github.com/ipfs/go-cid"

	"fpnode/blockstore"
	"fpnode/clock"
	"fpnode/internal/car"
)

// overlay is blocks that are not in the store yet, in front of it; a block that is
// nowhere is a [*clock.MissingError]. It is not safe for concurrent use while extra
// changes.
type overlay struct {
	below clock.Fetcher
	extra map[cid.Cid][]byte
}

func newOverlay(below clock.Fetcher) *overlay {
	return &overlay{below: below, extra: map[cid.Cid][]byte{}}
}

func (o *overlay) Block(ctx context.Context, c cid.Cid) ([]byte, error) {
	if b, ok := o.extra[c]; ok {
		return b, nil
	}
	b, err := o.below.Block(ctx, c)
	if errors.Is(err, blockstore.ErrNotFound) {
		return nil, &clock.MissingError{CID: c}
	}
	return b, err
}

func (o *overlay) add(blocks []car.Block) {
	for _, b := range blocks {
		o.extra[b.CID] = b.Data
	}
}

// recent is the store with the events of the last commits kept in memory, since merges and followers read those again.
// It is safe for concurrent use.
type recent struct {
	*blockstore.Ledger

	mu     sync.Mutex
	events map[cid.Cid][]byte
	ring   []cid.Cid // of events, the oldest at next
	next   int
}

func newRecent(store *blockstore.Ledger) *recent {
	return &recent{Ledger: store, events: map[cid.Cid][]byte{}}
}

func (r *recent) Block(ctx context.Context, c cid.Cid) ([]byte, error) {
	r.mu.Lock()
	b, ok := r.events[c]
	r.mu.Unlock()
	if ok {
		return b, nil
	}
	return r.Ledger.Block(ctx, c)
}

// keep remembers an event that has become durable.
func (r *recent) keep(c cid.Cid, block []byte) {
	if len(block) > recentEventBytes {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, ok := r.events[c]; ok {
		return
	}
	if len(r.ring) < recentEvents {
		r.ring = append(r.ring, c)
	} else {
		delete(r.events, r.ring[r.next])
		r.ring[r.next] = c
		r.next = (r.next + 1) % recentEvents
	}
	r.events[c] = block
}
