// Package p2p is the node's place on the network: one libp2p host that listens,
// dials the peers it was told about, carries gossip topics and request streams,
// and refuses peers that misbehaved.
//
// Use New first, then Run; register with Notify, Join and Handle between the two
// or at any later time. Close releases the sockets after Run has returned.
//
// It knows nothing of ledgers: topics are strings, messages and streams are bytes,
// and what they mean is decided by the function that was registered for them.
//
// Guarantees:
//   - Nothing outside the addresses given is dialled: no public bootstrap, no DHT,
//     no relay, no port mapping. Peers on the local network are looked for only if
//     Config.MDNS is set.
//   - A remembered peer is dialled until it answers, with backoff and jitter, and
//     again whenever its connection is lost.
//   - A peer cannot make the host track more than a few hundred topics that the host
//     has not joined.
//   - Every message, stream, queue and connection count is bounded, see limits.go.
package p2p

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"

	"github.com/libp2p/go-libp2p"
	pubsub "github.com/libp2p/go-libp2p-pubsub"
	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/event"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	rcmgr "github.com/libp2p/go-libp2p/p2p/host/resource-manager"
	"github.com/libp2p/go-libp2p/p2p/net/connmgr"
	quic "github.com/libp2p/go-libp2p/p2p/transport/quic"
	"github.com/libp2p/go-libp2p/p2p/transport/tcp"
	ma "github.com/multiformats/go-multiaddr"
	"github.com/prometheus/client_golang/prometheus"
)

// Config says how a Host is built. Key is required, the rest has a useful zero value.
type Config struct {
	// Key is the device's identity; the peer ID derives from its public half.
	Key ed25519.PrivateKey

	// Listen holds the multiaddrs to listen on, such as "/ip4/127.0.0.1/tcp/0".
	// Empty: TCP and QUIC on every interface, on ports the system chooses.
	Listen []string

	// Peers holds multiaddrs that end in /p2p/<id>. They are dialled as soon as Run
	// starts and redialled for as long as it runs.
	Peers []string

	// MDNS looks for other nodes on the local network, and lets them find this one.
	MDNS bool

	// UserAgent is what peers are told about this program, default "fpnode".
	UserAgent string

	// Metrics receives libp2p's collectors; nil disables them.
	Metrics prometheus.Registerer

	// Logger defaults to one that discards.
	Logger *slog.Logger
}

// Host is a libp2p host with gossip topics and request streams. Its methods are
// safe for concurrent use.
type Host struct {
	host   host.Host
	gossip *pubsub.PubSub
	log    *slog.Logger
	gate   *gate
	timing timing
	mdns   bool

	// ctx ends when Close is called; what the host started lives within it.
	ctx    context.Context
	cancel context.CancelFunc

	// running counts the goroutines that work for the host and end with it.
	running sync.WaitGroup

	// mu guards the fields below. It is not held across I/O.
	mu       sync.Mutex
	closed   bool
	topics   map[string]*topic
	serving  map[peer.ID]int // request streams being served
	served   int             // their sum
	peers    map[peer.ID]*remembered
	dialNow  chan *remembered // remembered peers that Run has yet to take up
	watchers map[int]func(peer.ID, bool)
	nextID   int
}

// New builds a host and begins to listen. It dials nobody before Run.
func New(cfg Config) (*Host, error) {
	if len(cfg.Key) != ed25519.PrivateKeySize {
		return nil, errors.New("p2p: no identity key")
	}
	key, err := crypto.UnmarshalEd25519PrivateKey(cfg.Key)
	if err != nil {
		return nil, fmt.Errorf("p2p: identity key: %w", err)
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.UserAgent == "" {
		cfg.UserAgent = "fpnode"
	}
	if len(cfg.Listen) == 0 {
		cfg.Listen = []string{
			"/ip4/0.0.0.0/tcp/0", "/ip6/::/tcp/0",
			"/ip4/0.0.0.0/udp/0/quic-v1", "/ip6/::/udp/0/quic-v1",
		}
	}
	listen := make([]ma.Multiaddr, 0, len(cfg.Listen))
	for _, s := range cfg.Listen {
		a, err := ma.NewMultiaddr(s)
		if err != nil {
			return nil, fmt.Errorf("%w to listen on, %q: %v", ErrAddr, s, err)
		}
		listen = append(listen, a)
	}

	resources, err := newResourceManager(cfg.Metrics)
	if err != nil {
		return nil, fmt.Errorf("p2p: resource limits: %w", err)
	}
	conns, err := connmgr.NewConnManager(connsLow, connsHigh, connmgr.WithGracePeriod(connsGrace))
	if err != nil {
		return nil, fmt.Errorf("p2p: connection limits: %w", err)
	}
	h := &Host{
		log:      cfg.Logger,
		gate:     newGate(),
		timing:   defaultTiming,
		mdns:     cfg.MDNS,
		topics:   make(map[string]*topic),
		serving:  make(map[peer.ID]int),
		peers:    make(map[peer.ID]*remembered),
		dialNow:  make(chan *remembered, maxRemembered),
		watchers: make(map[int]func(peer.ID, bool)),
	}
	opts := []libp2p.Option{
		libp2p.Identity(key),
		libp2p.ListenAddrs(listen...),
		libp2p.Transport(tcp.NewTCPTransport),
		libp2p.Transport(quic.NewTransport),
		libp2p.DefaultSecurity,
		libp2p.DefaultMuxers,
		libp2p.ResourceManager(resources),
		libp2p.ConnectionManager(conns),
		libp2p.ConnectionGater(h.gate),
		libp2p.UserAgent(cfg.UserAgent),
		libp2p.DisableRelay(),
		libp2p.DisableIdentifyAddressDiscovery(),
	}
	if cfg.Metrics == nil {
		opts = append(opts, libp2p.DisableMetrics())
	} else {
		opts = append(opts, libp2p.PrometheusRegisterer(cfg.Metrics))
	}
	h.host, err = libp2p.New(opts...)
	if err != nil {
		return nil, fmt.Errorf("p2p: %w", errors.Join(err, conns.Close(), resources.Close()))
	}
	h.ctx, h.cancel = context.WithCancel(context.Background())
	if err := h.startGossip(); err != nil {
		h.cancel()
		return nil, fmt.Errorf("p2p: gossip: %w", errors.Join(err, h.host.Close()))
	}
	for _, s := range cfg.Peers {
		if err := h.AddPeer(s); err != nil {
			return nil, errors.Join(err, h.Close())
		}
	}
	return h, nil
}

func newResourceManager(metrics prometheus.Registerer) (network.ResourceManager, error) {
	scaling := rcmgr.DefaultLimits
	libp2p.SetDefaultServiceLimits(&scaling)
	limits := rcmgr.PartialLimitConfig{
		System: rcmgr.ResourceLimits{
			Conns: maxConns, ConnsInbound: maxConns, ConnsOutbound: maxConns, FD: maxFiles, Memory: maxMemoryBytes,
		},
		PeerDefault: rcmgr.ResourceLimits{
			Conns: maxConnsPerPeer, ConnsInbound: maxConnsPerPeer, ConnsOutbound: maxConnsPerPeer,
		},
	}.Build(scaling.Scale(maxMemoryBytes, maxFiles))
	var opts []rcmgr.Option
	if metrics == nil {
		opts = append(opts, rcmgr.WithMetricsDisabled())
	}
	return rcmgr.NewResourceManager(rcmgr.NewFixedLimiter(limits), opts...)
}

// ID is this host's peer ID.
func (h *Host) ID() peer.ID { return h.host.ID() }

// Addrs returns the addresses at which this host listens, each with its peer ID, in
// the form that Config.Peers takes.
func (h *Host) Addrs() []string {
	suffix := "/p2p/" + h.host.ID().String()
	var out []string
	for _, a := range h.host.Addrs() {
		out = append(out, a.String()+suffix)
	}
	return out
}

// Libp2p is the host underneath, for package bitswap alone.
func (h *Host) Libp2p() host.Host { return h.host }

// Connected returns the peers connected now.
func (h *Host) Connected() []peer.ID { return h.host.Network().Peers() }

// Protect keeps the connection to p when connections have to be closed, or stops to.
func (h *Host) Protect(p peer.ID, keep bool) {
	if keep {
		h.host.ConnManager().Protect(p, "fpnode")
		return
	}
	h.host.ConnManager().Unprotect(p, "fpnode")
}

// Notify calls f once for every peer that is connected now and then, for as long as
// Run runs, whenever a peer comes (true) or goes (false), one call at a time. It may
// be told twice that a peer is there. f must not block nor call back into the Host.
// stop ends it; when stop returns, f is not
// running and will not be called again.
func (h *Host) Notify(f func(p peer.ID, connected bool)) (stop func()) {
	h.mu.Lock()
	defer h.mu.Unlock()
	id := h.nextID
	h.nextID++
	h.watchers[id] = f
	for _, p := range h.host.Network().Peers() {
		f(p, true)
	}
	return func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		delete(h.watchers, id)
	}
}

// Run dials and redials the remembered peers and tells the functions of Notify who
// is there, until ctx ends. It returns when everything it started has.
func (h *Host) Run(ctx context.Context) error {
	events, err := h.host.EventBus().Subscribe(new(event.EvtPeerConnectednessChanged))
	if err != nil {
		return fmt.Errorf("p2p: watching connections: %w", err)
	}
	defer events.Close()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(h.ctx, cancel)()
	var dialers sync.WaitGroup
	defer dialers.Wait()
	if h.mdns {
		stop, err := h.startMDNS()
		if err != nil {
			// A machine without multicast is no reason to stay offline.
			h.log.Warn("local discovery unavailable", "err", err)
		} else {
			defer stop()
		}
	}
	// Connections made before the subscription. A function may hear of them a second
	// time, as Notify says.
	h.mu.Lock()
	for _, p := range h.host.Network().Peers() {
		h.tell(p, true)
	}
	h.mu.Unlock()
	for {
		select {
		case <-ctx.Done():
			cancel()
			return nil
		case r := <-h.dialNow:
			dialers.Go(func() { h.redial(ctx, r) })
		case e := <-events.Out():
			changed := e.(event.EvtPeerConnectednessChanged)
			h.mu.Lock()
			switch changed.Connectedness {
			case network.Connected:
				h.tell(changed.Peer, true)
			case network.NotConnected:
				h.tell(changed.Peer, false)
				if r := h.peers[changed.Peer]; r != nil {
					r.poke()
				}
			}
			h.mu.Unlock()
		}
	}
}

// tell is called with mu held.
func (h *Host) tell(p peer.ID, connected bool) {
	ids := make([]int, 0, len(h.watchers))
	for id := range h.watchers {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	for _, id := range ids {
		h.watchers[id](p, connected)
	}
}

// Close closes every connection and socket and waits for the functions given to
// Handle. Call it after Run has returned.
func (h *Host) Close() error {
	h.mu.Lock()
	h.closed = true
	h.mu.Unlock()
	h.cancel()
	err := h.host.Close()
	h.running.Wait()
	if err != nil {
		return fmt.Errorf("p2p: closing: %w", err)
	}
	return nil
}
