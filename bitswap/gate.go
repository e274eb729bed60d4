package bitswap

import (
	"context"
	"sync"
	"time"

	boxo "github.com/ipfs/boxo/bitswap"
	"github.com/ipfs/boxo/bitswap/message"
	bspb "github.com/ipfs/boxo/bitswap/message/pb"
	"github.com/ipfs/boxo/bitswap/network"
	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p/core/peer"
)

// gate stands between the network and boxo. Boxo never hears of a peer that was not
// admitted. And it keeps account of the blocks asked of each peer: one that says it
// has a block and then does not send it would be waited for indefinitely, so its
// wants are taken back after a while, which makes boxo ask another.
type gate struct {
	network.BitSwapNetwork
	timing timing
	boxo   *boxo.Bitswap
	inner  network.Receiver // boxo, as Start was given it

	// turn is held while boxo is told of a peer, so that coming and going are told in
	// order. It is taken before mu.
	turn sync.Mutex

	mu        sync.Mutex
	admitted  map[peer.ID]bool
	connected map[peer.ID]*account
	batches   map[*batch]struct{}
}

// batch is a set of blocks that were asked for together. gate.mu guards sign.
type batch struct {
	cids map[cid.Cid]struct{}
	sign time.Time // when a peer last said that it has one of them, or sent one
}

// begin takes up a batch.
func (g *gate) begin(cids []cid.Cid, now time.Time) *batch {
	b := &batch{cids: make(map[cid.Cid]struct{}, len(cids)), sign: now}
	for _, c := range cids {
		b.cids[c] = struct{}{}
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.batches[b] = struct{}{}
	return b
}

func (g *gate) end(b *batch) {
	g.mu.Lock()
	defer g.mu.Unlock()
	delete(g.batches, b)
}

// hopeless reports whether nothing more is to be expected of a batch: nobody has given
// a sign of it for long, or for a shorter time while nobody owes a block of it.
func (g *gate) hopeless(b *batch, now time.Time) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	quiet := now.Sub(b.sign)
	if quiet <= g.timing.hope || quiet > g.timing.silence {
		return quiet > g.timing.silence
	}
	for _, a := range g.connected {
		for c := range a.asked {
			if _, ok := b.cids[c]; ok {
				return false
			}
		}
	}
	return true
}

// account is what the gate knows of a connected peer. gate.mu guards it.
type account struct {
	asked    map[cid.Cid]bool // blocks asked for and not yet sent or denied
	heard    time.Time        // when it last paid off one of asked, or was first asked
	benched  time.Time        // when its wants were taken back, else zero
	isClient bool             // boxo's client counts it as connected
}

func newGate(net network.BitSwapNetwork) *gate {
	return &gate{
		BitSwapNetwork: net,
		timing:         defaultTiming,
		admitted:       make(map[peer.ID]bool),
		connected:      make(map[peer.ID]*account),
		batches:        make(map[*batch]struct{}),
	}
}

// Start implements network.BitSwapNetwork.
func (g *gate) Start(rs ...network.Receiver) {
	if len(rs) != 1 {
		panic("bitswap: internal error: boxo registers one receiver")
	}
	g.inner = rs[0]
	g.boxo = rs[0].(*boxo.Bitswap)
	g.BitSwapNetwork.Start(receiver{g})
}

func (g *gate) isAdmitted(p peer.ID) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.admitted[p]
}

func (g *gate) admit(p peer.ID) {
	g.turn.Lock()
	defer g.turn.Unlock()
	g.mu.Lock()
	a := g.connected[p]
	ok := !g.admitted[p] && len(g.admitted) < maxAdmitted
	if ok {
		g.admitted[p] = true
	}
	if ok && a != nil {
		a.isClient = true
	}
	g.mu.Unlock()
	if ok && a != nil {
		g.inner.PeerConnected(p)
	}
}

func (g *gate) revoke(p peer.ID) {
	g.turn.Lock()
	defer g.turn.Unlock()
	g.mu.Lock()
	a := g.connected[p]
	tell := g.admitted[p] && a != nil
	delete(g.admitted, p)
	if a != nil {
		*a = account{asked: make(map[cid.Cid]bool)}
	}
	g.mu.Unlock()
	if tell {
		g.inner.PeerDisconnected(p)
	}
}

// anyPresent reports whether one of peers is admitted and connected.
func (g *gate) anyPresent(peers []peer.ID) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, p := range peers {
		if g.admitted[p] && g.connected[p] != nil {
			return true
		}
	}
	return false
}

// review benches the peers that have owed a block for too long, if there is one left
// that does not, and takes those back whose time on the bench is over.
func (g *gate) review(now time.Time) {
	g.turn.Lock()
	defer g.turn.Unlock()
	var bench, back []peer.ID
	g.mu.Lock()
	good := 0
	for p, a := range g.connected {
		switch {
		case !g.admitted[p]:
		case a.isClient && len(a.asked) > 0 && now.Sub(a.heard) > g.timing.patience:
			bench = append(bench, p)
		case a.isClient:
			good++
		case now.Sub(a.benched) > g.timing.bench:
			back = append(back, p)
		}
	}
	if good+len(back) == 0 {
		bench = nil
	}
	for _, p := range bench {
		a := g.connected[p]
		a.isClient, a.benched = false, now
		clear(a.asked)
	}
	for _, p := range back {
		g.connected[p].isClient = true
	}
	g.mu.Unlock()
	for _, p := range bench {
		g.boxo.Client.PeerDisconnected(p)
	}
	for _, p := range back {
		g.boxo.Client.PeerConnected(p)
	}
}

// settle takes what p answered off the accounts.
func (g *gate) settle(p peer.ID, m message.BitSwapMessage) {
	blocks, denied, haves := m.Blocks(), m.DontHaves(), m.Haves()
	now := time.Now()
	g.mu.Lock()
	defer g.mu.Unlock()
	sign := func(c cid.Cid) {
		for b := range g.batches {
			if _, ok := b.cids[c]; ok {
				b.sign = now
			}
		}
	}
	for _, b := range blocks {
		sign(b.Cid())
		for _, a := range g.connected {
			delete(a.asked, b.Cid())
		}
	}
	for _, c := range haves {
		sign(c)
	}
	if len(blocks)+len(denied) == 0 {
		return
	}
	a := g.connected[p]
	if a == nil {
		return
	}
	a.heard = now
	for _, c := range denied {
		delete(a.asked, c)
	}
}

// charge enters what is about to be asked of p.
func (g *gate) charge(p peer.ID, m message.BitSwapMessage) {
	g.mu.Lock()
	defer g.mu.Unlock()
	a := g.connected[p]
	if a == nil {
		return
	}
	for _, e := range m.Wantlist() {
		switch {
		case e.Cancel:
			delete(a.asked, e.Cid)
		case e.WantType == bspb.Message_Wantlist_Block:
			if len(a.asked) == 0 {
				a.heard = time.Now()
			}
			a.asked[e.Cid] = true // bounded by MaxWants
		}
	}
}

// NewMessageSender implements network.BitSwapNetwork.
func (g *gate) NewMessageSender(ctx context.Context, p peer.ID, o *network.MessageSenderOpts) (network.MessageSender, error) {
	s, err := g.BitSwapNetwork.NewMessageSender(ctx, p, o)
	if err != nil {
		return nil, err
	}
	return sender{s, g, p}, nil
}

// sender keeps the account of one peer.
type sender struct {
	network.MessageSender
	g *gate
	p peer.ID
}

func (s sender) SendMsg(ctx context.Context, m message.BitSwapMessage) error {
	s.g.charge(s.p, m)
	return s.MessageSender.SendMsg(ctx, m)
}

// receiver passes on what concerns admitted peers.
type receiver struct{ g *gate }

func (r receiver) ReceiveMessage(ctx context.Context, p peer.ID, m message.BitSwapMessage) {
	if !r.g.isAdmitted(p) {
		return
	}
	r.g.settle(p, m)
	r.g.inner.ReceiveMessage(ctx, p, m)
}

func (r receiver) ReceiveError(err error) { r.g.inner.ReceiveError(err) }

func (r receiver) PeerConnected(p peer.ID) {
	r.g.turn.Lock()
	defer r.g.turn.Unlock()
	r.g.mu.Lock()
	tell := r.g.admitted[p]
	r.g.connected[p] = &account{asked: make(map[cid.Cid]bool), isClient: tell}
	r.g.mu.Unlock()
	if tell {
		r.g.inner.PeerConnected(p)
	}
}

func (r receiver) PeerDisconnected(p peer.ID) {
	r.g.turn.Lock()
	defer r.g.turn.Unlock()
	r.g.mu.Lock()
	delete(r.g.connected, p)
	tell := r.g.admitted[p]
	r.g.mu.Unlock()
	if tell {
		r.g.inner.PeerDisconnected(p)
	}
}
