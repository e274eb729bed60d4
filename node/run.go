package node

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sync/errgroup"

	"fpnode/api"
	"fpnode/bitswap"
	"fpnode/blockstore"
	"fpnode/headsync"
	"fpnode/p2p"
)

// Network says how a node meets others. The zero value listens on all
// interfaces and looks for nobody.
type Network struct {
	// Listen holds multiaddrs to listen on; empty is TCP and QUIC on every
	// interface, on ports the system chooses.
	Listen []string
	// Peers holds multiaddrs of peers to keep a connection to.
	Peers []string
	// MDNS looks for peers on the local network, and is found there.
	MDNS bool
	// Ready is called once, when all of it runs, with the names of the
	// ledgers that are shared.
	Ready func(about api.About, ledgers []string)
}

// network is what exists while Run runs.
type network struct {
	sync   *headsync.Sync
	shared map[[32]byte]bool // guarded by Node.mu
}

// Run meets peers, shares every ledger, and serves the API on the socket of
// the home, until ctx ends. It opens from the bottom up, keeps all that runs
// in one group, and closes in reverse. Its errors are *[api.Error].
func (n *Node) Run(ctx context.Context, net Network) error {
	if err := n.run(ctx, net); err != nil {
		return explain(err)
	}
	return nil
}

func (n *Node) run(ctx context.Context, net Network) (err error) {
	closing := func(what string, f func() error) {
		if cerr := f(); cerr != nil && err == nil {
			err = fmt.Errorf("closing %s: %w", what, cerr)
		}
	}
	door, err := api.Listen(n.cfg.Home, n.api.Token())
	if err != nil {
		return err
	}
	defer closing("the api", door.Close)

	seed := n.ring.Identity().Libp2pSeed()
	host, err := p2p.New(p2p.Config{
		Key:       ed25519.NewKeyFromSeed(seed[:]),
		Listen:    net.Listen,
		Peers:     net.Peers,
		MDNS:      net.MDNS,
		UserAgent: "fpnode/" + n.cfg.Version,
		Logger:    n.log,
	})
	if err != nil {
		return err
	}
	defer closing("the network", host.Close)
	exchange := bitswap.New(bitswap.Config{
		Host:     host.Libp2p(),
		Store:    n.store,
		NotFound: blockstore.ErrNotFound,
		Logger:   n.log,
	})
	defer closing("the exchange of blocks", exchange.Close)

	up := &network{
		sync:   headsync.New(headsync.Config{Net: host, Fetcher: exchange, Logger: n.log}),
		shared: map[[32]byte]bool{},
	}
	n.mu.Lock()
	n.up = up
	n.about.API, n.about.Peer, n.about.Addrs = door.Path, host.ID().String(), reachable(host.Addrs())
	about := n.about
	n.mu.Unlock()
	defer n.down()

	var shared []string
	for _, name := range n.Names() {
		if err := n.share(ctx, name); err != nil {
			// One that cannot be opened keeps none of the others away.
			n.log.Error("not shared", "ledger", name, "err", err)
			continue
		}
		shared = append(shared, name)
	}

	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return up.sync.Run(ctx) })
	g.Go(func() error { return host.Run(ctx) })
	g.Go(func() error { return n.api.Serve(ctx, door) })
	if net.Ready != nil {
		net.Ready(about, shared)
	}
	return g.Wait()
}

// down forgets the network after it has stopped.
func (n *Node) down() {
	n.mu.Lock()
	up := n.up
	n.up = nil
	n.about.API, n.about.Peer, n.about.Addrs = "", "", nil
	n.mu.Unlock()
	for id := range up.shared {
		n.observe(id, nil)
	}
}

// reachable sorts addresses: those that others reach before loopback.
func reachable(addrs []string) []string {
	local := func(a string) int {
		if strings.HasPrefix(a, "/ip4/127.") || strings.HasPrefix(a, "/ip6/::1/") {
			return 1
		}
		return 0
	}
	slices.SortStableFunc(addrs, func(a, b string) int { return local(a) - local(b) })
	return addrs
}

// share keeps a ledger in sync with peers, if a network is up.
func (n *Node) share(ctx context.Context, name string) error {
	e, err := n.entry(name)
	if err != nil {
		return err
	}
	n.mu.Lock()
	up := n.up
	share := up != nil && !up.shared[e.ID]
	if share {
		up.shared[e.ID] = true
	}
	n.mu.Unlock()
	if !share {
		return nil
	}
	r, err := n.replica(ctx, e)
	if err == nil {
		err = up.sync.Add(headsync.Ledger{ID: e.ID, Name: name, Secrets: e.Keys, Replica: r})
	}
	if err != nil {
		n.mu.Lock()
		delete(up.shared, e.ID)
		n.mu.Unlock()
		return fmt.Errorf("sharing ledger %q: %w", name, err)
	}
	n.observe(e.ID, func(refs []blockstore.Ref) { up.sync.Committed(e.ID, refs...) })
	up.sync.Committed(e.ID) // what came between Add and observe
	return nil
}

// unshare ends what share began. When it returns the ledger is not in use by
// the network.
func (n *Node) unshare(id [32]byte) error {
	n.mu.Lock()
	up := n.up
	shared := up != nil && up.shared[id]
	if shared {
		delete(up.shared, id)
	}
	n.mu.Unlock()
	if !shared {
		return nil
	}
	n.observe(id, nil)
	if err := up.sync.Remove(id); err != nil && !errors.Is(err, headsync.ErrLedger) {
		return err
	}
	return nil
}

// observe has f told of every commit to a ledger.
func (n *Node) observe(id [32]byte, f func([]blockstore.Ref)) {
	for _, e := range n.ring.Ledgers() {
		if e.ID != id {
			continue
		}
		if cars, err := n.store.Ledger(id, e.Keys); err == nil { // the handle that is open
			cars.OnCommit(f)
		}
	}
}
