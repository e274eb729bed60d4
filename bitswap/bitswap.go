// Package bitswap serves and fetches sealed CARs among peers with the bitswap
// protocol, which Kubo and Helia speak as well.
//
// Make an Exchange with New before the host dials anyone, tell it with Admit which
// peers proved that they may have what the store holds, and use Fetch for everything
// that is missing at once: a chain of fetches that depend on each other costs at
// least 20 ms for each link, by construction.
//
// Guarantees:
//   - A peer that was not admitted is neither asked nor answered, and cannot tell
//     which blocks the store holds.
//   - What Fetch yields has the Wire and the Size of its Ref: all of it was hashed.
//   - At most MaxWants blocks are asked for at a time. A peer that promised a block and
//     does not send it is replaced by another after five seconds. A fetch ends without
//     the rest when nobody has said for three seconds to have any of it, or when who
//     said so has been silent for thirty.
package bitswap

import (
	"context"
	"errors"
	"fmt"
	"log/slog"

	boxo "github.com/ipfs/boxo/bitswap"
	"github.com/ipfs/boxo/bitswap/client"
	"github.com/ipfs/boxo/bitswap/network/bsnet"
	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"
	ipld "github.com/ipfs/go-ipld-format"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/multiformats/go-multihash"

	"fpnode/blockstore"
)

// Store is what the exchange serves: blocks by multihash. blockstore.Store is one.
// Both methods return notFound's error, see Config, for a block that is not there.
type Store interface {
	WireBlock(mh multihash.Multihash) ([]byte, error)
	WireSize(mh multihash.Multihash) (int64, error)
}

// Config says how an Exchange is built. Host and Store are required.
type Config struct {
	Host  host.Host
	Store Store

	// NotFound is the error that Store wraps for a block it does not hold.
	NotFound error

	// Logger defaults to one that discards.
	Logger *slog.Logger
}

// Exchange serves and fetches blocks. Its methods are safe for concurrent use.
type Exchange struct {
	boxo  *boxo.Bitswap
	store Store
	gate  *gate
	slots chan struct{} // one for each batch under way
	huge  chan struct{} // one for the CAR above hugeBytes that is being put together
}

// New starts the exchange. Close ends it; that must come before the host's Close.
func New(cfg Config) *Exchange {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	x := &Exchange{store: cfg.Store, gate: newGate(bsnet.NewFromIpfsHost(cfg.Host)), slots: make(chan struct{}, batches), huge: make(chan struct{}, 1)}
	x.boxo = boxo.New(context.Background(), x.gate, nil, store{cfg.Store, cfg.NotFound},
		boxo.WithPeerBlockRequestFilter(func(p peer.ID, _ cid.Cid) bool { return x.Admitted(p) }),
		boxo.MaxQueuedWantlistEntriesPerPeer(maxQueuedWants),
		boxo.MaxOutstandingBytesPerPeer(maxOutstandingBytes),
		boxo.MaxCidSize(maxCIDBytes),
		boxo.WithTargetMessageSize(targetMessageBytes),
		boxo.WithWantHaveReplaceSize(haveAsBlockBytes),
		boxo.EngineBlockstoreWorkerCount(storeWorkers),
		boxo.WithClientOption(client.WithoutDuplicatedBlockStats()),
	)
	return x
}

// Admit lets p fetch from this node, and this node from p.
func (x *Exchange) Admit(p peer.ID) { x.gate.admit(p) }

// Revoke undoes Admit.
func (x *Exchange) Revoke(p peer.ID) { x.gate.revoke(p) }

// Admitted reports whether p was admitted.
func (x *Exchange) Admitted(p peer.ID) bool { return x.gate.isAdmitted(p) }

// Added says that the store has got CARs: peers that asked for them before are sent
// them now. Call it when they can be read; it does no more than a lookup.
func (x *Exchange) Added(cars ...blockstore.Ref) {
	list := make([]blocks.Block, 0, len(cars))
	for _, r := range cars {
		size := r.Size
		if r.Wire.Prefix().Codec != cid.Raw {
			// Who wants a file wants its root first.
			var err error
			if size, err = x.store.WireSize(r.Wire.Hash()); err != nil {
				continue
			}
		}
		if size > 0 && size <= leafBytes {
			list = append(list, announced{r.Wire.Cid, zeros[:size]})
		}
	}
	// It looks at the names and sizes of the blocks and reads the store when it sends.
	_ = x.boxo.Server.NotifyNewBlocks(context.Background(), list...)
}

// announced is a block of which only name and size matter.
type announced struct {
	cid  cid.Cid
	data []byte
}

var zeros [leafBytes]byte

func (a announced) Cid() cid.Cid             { return a.cid }
func (a announced) RawData() []byte          { return a.data }
func (a announced) String() string           { return a.cid.String() }
func (a announced) Loggable() map[string]any { return nil }

// Close ends all fetches and stops serving.
func (x *Exchange) Close() error { return x.boxo.Close() }

// store shows a Store to boxo, read-only and blind to codecs.
type store struct {
	Store
	notFound error
}

var errReadOnly = errors.New("bitswap: the store is read-only")

func (s store) multihash(c cid.Cid) (multihash.Multihash, error) {
	if p := c.Prefix(); p.MhType != multihash.SHA2_256 || p.MhLength != 32 {
		return nil, ipld.ErrNotFound{Cid: c}
	}
	return c.Hash(), nil
}

func (s store) failed(c cid.Cid, err error) error {
	if errors.Is(err, s.notFound) {
		return ipld.ErrNotFound{Cid: c}
	}
	return fmt.Errorf("bitswap: reading %s: %w", c, err)
}

func (s store) Has(ctx context.Context, c cid.Cid) (bool, error) {
	_, err := s.GetSize(ctx, c)
	if ipld.IsNotFound(err) {
		return false, nil
	}
	return err == nil, err
}

func (s store) Get(_ context.Context, c cid.Cid) (blocks.Block, error) {
	mh, err := s.multihash(c)
	if err != nil {
		return nil, err
	}
	b, err := s.WireBlock(mh)
	if err != nil {
		return nil, s.failed(c, err)
	}
	return blocks.NewBlockWithCid(b, c)
}

func (s store) GetSize(_ context.Context, c cid.Cid) (int, error) {
	mh, err := s.multihash(c)
	if err != nil {
		return 0, err
	}
	n, err := s.WireSize(mh)
	if err != nil {
		return 0, s.failed(c, err)
	}
	return int(n), nil
}

func (s store) DeleteBlock(context.Context, cid.Cid) error          { return errReadOnly }
func (s store) Put(context.Context, blocks.Block) error             { return errReadOnly }
func (s store) PutMany(context.Context, []blocks.Block) error       { return errReadOnly }
func (s store) AllKeysChan(context.Context) (<-chan cid.Cid, error) { return nil, errReadOnly }
