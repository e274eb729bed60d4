package ledger

import (
	"context"
	"errors"

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
