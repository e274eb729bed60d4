package p2p

import (
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/control"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"
)

// gate refuses connections with blocked peers, in both directions.
type gate struct {
	mu    sync.Mutex
	until map[peer.ID]time.Time
}

func newGate() *gate { return &gate{until: make(map[peer.ID]time.Time)} }

// Block closes the connections to p and refuses new ones for the given time.
func (h *Host) Block(p peer.ID, d time.Duration) {
	h.gate.block(p, time.Now().Add(d))
	// Closing waits for the transport, and callers sit in message handlers.
	h.mu.Lock()
	if h.closed {
		h.mu.Unlock()
		return
	}
	h.running.Add(1)
	h.mu.Unlock()
	go func() {
		defer h.running.Done()
		if err := h.host.Network().ClosePeer(p); err != nil {
			h.log.Debug("closing a blocked peer", "peer", p, "err", err)
		}
	}()
}

func (g *gate) block(p peer.ID, until time.Time) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.until[p] = until
	if len(g.until) <= maxBlocked {
		return
	}
	soonest := p
	for q, t := range g.until {
		if t.Before(g.until[soonest]) {
			soonest = q
		}
	}
	delete(g.until, soonest)
}

func (g *gate) allows(p peer.ID) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	until, ok := g.until[p]
	if ok && time.Now().After(until) {
		delete(g.until, p)
		ok = false
	}
	return !ok
}

func (g *gate) InterceptPeerDial(p peer.ID) bool                 { return g.allows(p) }
func (g *gate) InterceptAddrDial(p peer.ID, _ ma.Multiaddr) bool { return true }
func (g *gate) InterceptAccept(network.ConnMultiaddrs) bool      { return true }
func (g *gate) InterceptUpgraded(network.Conn) (bool, control.DisconnectReason) {
	return true, 0
}
func (g *gate) InterceptSecured(_ network.Direction, p peer.ID, _ network.ConnMultiaddrs) bool {
	return g.allows(p)
}
