package node

import (
	"context"
	"iter"

	"fpnode/bitswap"
	"fpnode/blockstore"
	"fpnode/headsync"
	"fpnode/keyring"
	"fpnode/ledger"
	"fpnode/p2p"
)

// What crosses between packages that do not know each other.
var (
	_ headsync.Net      = (*p2p.Host)(nil)
	_ headsync.Fetcher  = (*bitswap.Exchange)(nil)
	_ headsync.Secrets  = (*keyring.Keys)(nil)
	_ headsync.Replica  = (*replica)(nil)
	_ blockstore.Sealer = (*keyring.Keys)(nil)
	_ blockstore.Vault  = (*keyring.Vault)(nil)
	_ bitswap.Store     = (*blockstore.Store)(nil)
	_ ledger.Opener     = (*keyring.Keys)(nil)
)

// replica is a ledger as headsync sees it: documents are merged by the
// ledger, CARs are the store's.
type replica struct {
	n    *Node
	l    *ledger.Ledger
	cars *blockstore.Ledger
}

func (n *Node) replica(ctx context.Context, e keyring.Entry) (*replica, error) {
	l, err := n.Ledger(ctx, e.Name)
	if err != nil {
		return nil, err
	}
	cars, err := n.store.Ledger(e.ID, e.Keys)
	if err != nil {
		return nil, err
	}
	return &replica{n, l, cars}, nil
}

func (r *replica) Tips() []blockstore.Meta                { return r.cars.Tips() }
func (r *replica) Refs() iter.Seq2[blockstore.Ref, error] { return r.cars.Refs() }
func (r *replica) Known(name blockstore.Name) bool        { return r.cars.Known(name) }

func (r *replica) Sealed(ctx context.Context, ref blockstore.Ref) ([]byte, error) {
	return r.cars.Sealed(ctx, ref)
}

// Accept verifies a CAR. One that is larger than a commit may be holds a file and was put together for this node alone,
// so it is opened where it is and not copied.
func (r *replica) Accept(ref blockstore.Ref, sealed []byte) (blockstore.CAR, error) {
	if len(sealed) > blockstore.MaxCARBytes {
		return r.cars.AcceptOwned(ref, sealed)
	}
	return r.cars.Accept(ref, sealed)
}

func (r *replica) Stage(ctx context.Context, cars []blockstore.CAR) error {
	return r.l.Stage(ctx, cars)
}

func (r *replica) Merge(ctx context.Context, metas []blockstore.Meta, cars []blockstore.CAR) (headsync.Merged, error) {
	res, err := r.l.Merge(ctx, metas, cars)
	if err != nil {
		return headsync.Merged{}, err
	}
	out := headsync.Merged{Accepted: res.Accepted}
	for _, w := range res.Waiting {
		out.Waiting = append(out.Waiting, w.Meta)
	}
	for _, q := range res.Quarantined {
		r.n.log.Warn("refused what a peer offers", "ledger", r.l.Name(), "meta", q.Meta, "err", q.Reason)
		out.Refused = append(out.Refused, q.Meta)
	}
	return out, nil
}
