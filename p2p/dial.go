package p2p

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/peerstore"
	"github.com/libp2p/go-libp2p/p2p/discovery/mdns"
	"github.com/libp2p/go-libp2p/p2p/net/swarm"
	ma "github.com/multiformats/go-multiaddr"
)

// mdnsService names fpnode in local discovery (RFC 6763).
const mdnsService = "_fpnode._udp"

// remembered is a peer the host keeps a connection to. addrs is guarded by Host.mu.
type remembered struct {
	id    peer.ID
	addrs []ma.Multiaddr
	wake  chan struct{} // holds one token when something changed
}

func (r *remembered) poke() {
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// ErrAddr is wrapped by the errors about addresses that are none, or that cannot be
// used.
var ErrAddr = errors.New("p2p: bad address")

// AddPeer remembers a peer by a multiaddr that ends in /p2p/<id>: Run dials it and
// redials it when the connection is lost.
func (h *Host) AddPeer(addr string) error {
	info, err := peer.AddrInfoFromString(addr)
	if err != nil {
		return fmt.Errorf("%w of a peer, %q: %v", ErrAddr, addr, err)
	}
	if len(info.Addrs) == 0 {
		return fmt.Errorf("%w of a peer, %q: it has no transport part", ErrAddr, addr)
	}
	if info.ID == h.host.ID() {
		return fmt.Errorf("%w of a peer, %q: it is this node's own", ErrAddr, addr)
	}
	return h.remember(*info)
}

var errTooManyPeers = errors.New("p2p: too many remembered peers")

func (h *Host) remember(info peer.AddrInfo) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	r := h.peers[info.ID]
	if r == nil {
		if len(h.peers) >= maxRemembered {
			return errTooManyPeers
		}
		r = &remembered{id: info.ID, wake: make(chan struct{}, 1)}
		h.peers[info.ID] = r
		h.dialNow <- r // never blocks: one entry per remembered peer
	}
	for _, a := range info.Addrs {
		if !ma.Contains(r.addrs, a) {
			r.addrs = append(r.addrs, a)
		}
	}
	if over := len(r.addrs) - maxAddrsPerPeer; over > 0 {
		r.addrs = r.addrs[over:]
	}
	r.poke()
	return nil
}

// redial keeps one peer connected until ctx ends.
func (h *Host) redial(ctx context.Context, r *remembered) {
	pause := h.timing.retryMin
	for {
		if h.host.Network().Connectedness(r.id) == network.Connected {
			pause = h.timing.retryMin
			select {
			case <-ctx.Done():
				return
			case <-r.wake:
			}
			continue
		}
		h.mu.Lock()
		addrs := append([]ma.Multiaddr(nil), r.addrs...)
		h.mu.Unlock()
		// The swarm has a backoff of its own; this loop is the one that counts.
		if s, ok := h.host.Network().(*swarm.Swarm); ok {
			s.Backoff().Clear(r.id)
		}
		h.host.Peerstore().AddAddrs(r.id, addrs, peerstore.ConnectedAddrTTL)
		dial, cancel := context.WithTimeout(ctx, h.timing.dial)
		err := h.host.Connect(dial, peer.AddrInfo{ID: r.id, Addrs: addrs})
		cancel()
		if err == nil {
			h.log.Debug("connected", "peer", r.id)
			continue
		}
		if ctx.Err() != nil {
			return
		}
		h.log.Debug("dial failed", "peer", r.id, "retry", pause, "err", err)
		timer := time.NewTimer(pause/2 + rand.N(pause))
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-timer.C:
		}
		pause = min(2*pause, h.timing.retryMax)
	}
}

// startMDNS announces this host on the local network and remembers those it hears of.
func (h *Host) startMDNS() (stop func(), err error) {
	service := mdns.NewMdnsService(h.host, mdnsService, found{h})
	if err := service.Start(); err != nil {
		return nil, err
	}
	return func() {
		if err := service.Close(); err != nil {
			h.log.Debug("closing local discovery", "err", err)
		}
	}, nil
}

type found struct{ h *Host }

// HandlePeerFound is called by mdns.
func (f found) HandlePeerFound(info peer.AddrInfo) {
	if info.ID == f.h.host.ID() {
		return
	}
	if err := f.h.remember(info); err != nil {
		f.h.log.Debug("local peer not remembered", "peer", info.ID, "err", err)
	}
}
