// Package headsync keeps the replicas of a ledger equal: it announces a replica's tips
// to the other members, hears theirs, finds out which CARs are missing, has them
// fetched and merged.
//
// Make a Sync with New, give it ledgers with Add, and call Run. Committed tells it of
// every commit. What it needs of the world comes through four interfaces: Net (package
// p2p), Fetcher (package bitswap), Secrets (package keyring) and Replica (package
// ledger).
//
// Three things travel. An announcement is gossip, sealed under the ledger's key, and
// carries the tips and, while they are small, the new CARs themselves. An exchange is a
// stream between two members who met or who miss something; it compares the sets of
// CARs, so that all that is missing is known at once. CARs are fetched by their Wire,
// together, never one after the other along the history.
//
// Guarantees:
//   - What others say is a hint until it is verified: a message is checked for size,
//     seal and syntax, in this order, and every CAR by Replica.Accept before it is
//     stored. Only the replica decides what is merged.
//   - A meta whose CARs are not to be had waits and is tried again; it never holds up
//     another, and what it is missing is asked of other peers.
//   - A peer without the ledger's key sees a topic's name and sealed messages. It gets
//     no block and no answer, and cannot tell a ledger this node has from one that does
//     not exist.
//   - Nothing is announced before it is durable.
//   - Every queue, message and table is bounded, see limits.go.
//
// What waits is kept in memory. After a restart the first exchange finds it again.
package headsync

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"fpnode/blockstore"
)

// Replica is this node's copy of one ledger. Its methods are safe for concurrent use.
type Replica interface {
	// Tips returns the metas that nobody has replaced.
	Tips() []blockstore.Meta
	// Refs yields the CARs whose bytes are here.
	Refs() iter.Seq2[blockstore.Ref, error]
	// Known reports whether a CAR is here, or was seen and found to bring nothing.
	Known(blockstore.Name) bool
	// Sealed returns the bytes of a CAR.
	Sealed(ctx context.Context, r blockstore.Ref) ([]byte, error)
	// Accept verifies a CAR without storing it. It refuses with *blockstore.AcceptError.
	Accept(r blockstore.Ref, sealed []byte) (blockstore.CAR, error)
	// Stage makes CARs durable without merging anything.
	Stage(ctx context.Context, cars []blockstore.CAR) error
	// Merge makes CARs durable and merges each meta that is complete. One that is already
	// part of the replica counts as accepted. The CARs of metas that wait are stored, too.
	// An error means that nothing was done.
	Merge(ctx context.Context, metas []blockstore.Meta, cars []blockstore.CAR) (Merged, error)
}

// Fetcher gets sealed CARs from peers and gives them to peers.
type Fetcher interface {
	// Admit allows traffic with a peer in both directions, Revoke ends it.
	Admit(peer.ID)
	Revoke(peer.ID)
	// Added says that CARs have become durable here, for peers that wait for them.
	Added(cars ...blockstore.Ref)
	// Fetch yields CARs as they arrive. What it has not yielded when it ends is not to
	// be had from these peers now.
	Fetch(ctx context.Context, from []peer.ID, refs []blockstore.Ref) iter.Seq2[blockstore.Ref, []byte]
}

// Net is the network, see p2p.Host for what the methods promise.
type Net interface {
	ID() peer.ID
	Notify(f func(p peer.ID, connected bool)) (stop func())
	Join(
		topic string, receive func(via, origin peer.ID, data []byte) (relay bool, err error), joined func(peer.ID),
	) (leave func(), err error)
	Publish(ctx context.Context, topic string, data []byte) error
	Handle(
		proto string, maxBytes int64, timeout time.Duration,
		serve func(ctx context.Context, p peer.ID, s io.ReadWriter) error,
	) (stop func())
	Call(ctx context.Context, p peer.ID, proto string, maxBytes int64, talk func(s io.ReadWriter) error) error
	Protect(p peer.ID, keep bool)
	Block(p peer.ID, d time.Duration)
}

// Config says how a Sync is built. Net and Fetcher are required.
type Config struct {
	Net     Net
	Fetcher Fetcher
	Logger  *slog.Logger // defaults to one that discards
}

// Ledger is one ledger to keep in sync. All fields are required.
type Ledger struct {
	ID      [32]byte
	Name    string // for the log
	Secrets Secrets
	Replica Replica
}

// Sync keeps ledgers in sync. Its methods are safe for concurrent use.
type Sync struct {
	net     Net
	fetcher Fetcher
	log     *slog.Logger
	turns   chan struct{} // one for each running exchange

	// mu guards the fields below.
	mu        sync.Mutex
	rooms     map[[32]byte]*room
	start     func(*room) // nil unless Run runs
	connected map[peer.ID]bool
	faults    map[peer.ID]int
}

// New makes a Sync without ledgers.
func New(cfg Config) *Sync {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	return &Sync{
		net:       cfg.Net,
		fetcher:   cfg.Fetcher,
		log:       cfg.Logger,
		turns:     make(chan struct{}, maxServed),
		rooms:     make(map[[32]byte]*room),
		connected: make(map[peer.ID]bool),
		faults:    make(map[peer.ID]int),
	}
}

// ErrLedger is wrapped by the errors about a ledger that was added twice, or not at all,
// or is one too many.
var ErrLedger = errors.New("headsync: ledger")

// Add takes up a ledger, before Run or while it runs.
func (s *Sync) Add(l Ledger) error {
	c := newCapability(l.Secrets, l.ID)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.rooms[l.ID] != nil {
		return fmt.Errorf("%w %q is in sync already", ErrLedger, l.Name)
	}
	if len(s.rooms) >= maxLedgers {
		return fmt.Errorf("%w %q: there are %d in sync already", ErrLedger, l.Name, maxLedgers)
	}
	r := newRoom(s, l, c)
	for p := range s.connected {
		r.mail.peer(p, true)
	}
	s.rooms[l.ID] = r
	if s.start != nil {
		s.start(r)
	}
	return nil
}

// Remove gives a ledger up. When it returns, its Replica is not used any more.
func (s *Sync) Remove(id [32]byte) error {
	s.mu.Lock()
	r := s.rooms[id]
	delete(s.rooms, id)
	running := r != nil && r.stop != nil
	s.mu.Unlock()
	if r == nil {
		return fmt.Errorf("%w is not in sync", ErrLedger)
	}
	if running {
		r.stop()
		<-r.done
	}
	return nil
}

// Committed says that a ledger's replica has made CARs durable and that its tips may
// have changed. Call it after every commit, local or merged; it never blocks. The refs
// may be left out, at the cost of an exchange for whoever hears of the tips.
func (s *Sync) Committed(id [32]byte, refs ...blockstore.Ref) {
	s.mu.Lock()
	r := s.rooms[id]
	s.mu.Unlock()
	if r != nil {
		s.fetcher.Added(refs...)
		r.mail.commit(refs)
	}
}

// Status says how a ledger's sync stands.
type Status struct {
	Members []peer.ID // connected peers that have proved to hold the ledger's key
	Missing int       // CARs that are known and not here
	Waiting int       // metas that are not merged yet
}

// Status of a ledger. It is empty while Run does not run.
func (s *Sync) Status(id [32]byte) (Status, error) {
	s.mu.Lock()
	r := s.rooms[id]
	s.mu.Unlock()
	if r == nil {
		return Status{}, fmt.Errorf("%w is not in sync", ErrLedger)
	}
	if st := r.status.Load(); st != nil {
		return *st, nil
	}
	return Status{}, nil
}

// Faults returns how many messages of p did not check since it was last shut out.
func (s *Sync) Faults(p peer.ID) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.faults[p]
}

// Run takes part in the sync of all ledgers until ctx ends. It returns when everything
// it started has.
func (s *Sync) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var running sync.WaitGroup
	start := func(r *room) { // with mu held
		ctx, stop := context.WithCancel(ctx)
		r.stop, r.done = stop, make(chan struct{})
		running.Go(func() {
			defer close(r.done)
			defer stop()
			r.run(ctx)
		})
	}
	s.mu.Lock()
	if s.start != nil {
		s.mu.Unlock()
		panic("headsync: internal error: Run called twice")
	}
	s.start = start
	for _, r := range s.rooms {
		start(r)
	}
	s.mu.Unlock()

	stopServing := s.net.Handle(RefsProtocol, maxExchangeBytes, exchangeTimeout, s.serve)
	stopNotify := s.net.Notify(s.peer)
	<-ctx.Done()
	stopNotify()
	stopServing()
	s.mu.Lock()
	s.start = nil
	s.mu.Unlock()
	running.Wait()
	return nil
}

// peer is called when a peer comes or goes.
func (s *Sync) peer(p peer.ID, connected bool) {
	if !connected {
		s.fetcher.Revoke(p)
		s.net.Protect(p, false)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if connected {
		s.connected[p] = true
	} else {
		delete(s.connected, p)
	}
	for _, r := range s.rooms {
		r.mail.peer(p, connected)
	}
}

func (s *Sync) isConnected(p peer.ID) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.connected[p]
}

// proved is called when p has shown that it holds the key of one of the ledgers.
func (s *Sync) proved(p peer.ID) {
	s.net.Protect(p, true)
	s.fetcher.Admit(p)
}

// blame counts a fault of p and shuts it out when there have been too many.
func (s *Sync) blame(p peer.ID, why string) {
	s.mu.Lock()
	if len(s.faults) >= maxCounted && s.faults[p] == 0 {
		clear(s.faults) // a crowd: every one of them begins again
	}
	s.faults[p]++
	n := s.faults[p]
	if n >= maxGarbage {
		delete(s.faults, p)
	}
	s.mu.Unlock()
	s.log.Debug("fault", "peer", p, "why", why, "count", n)
	if n >= maxGarbage {
		s.log.Info("peer shut out", "peer", p, "why", why, "for", shutOut)
		s.fetcher.Revoke(p)
		s.net.Block(p, shutOut)
	}
}

// serve answers an exchange that a peer opened.
func (s *Sync) serve(ctx context.Context, p peer.ID, stream io.ReadWriter) error {
	select {
	case s.turns <- struct{}{}:
		defer func() { <-s.turns }()
	case <-ctx.Done():
		return ctx.Err()
	}
	var r *room
	o, err := serveExchange(stream, s.net.ID(), p, func(check func(*capability) bool) (*capability, inventory, func()) {
		s.mu.Lock()
		defer s.mu.Unlock()
		for _, candidate := range s.rooms {
			if check(&candidate.capability) && candidate.enter() {
				r = candidate
				return &r.capability, r.Replica, func() { s.proved(p) }
			}
		}
		return nil, nil, nil
	})
	if r == nil {
		return err
	}
	defer r.leave()
	s.judge(p, err)
	r.exchanged(p, false, o, err, false)
	return err
}

// judge blames p for an exchange that broke the protocol.
func (s *Sync) judge(p peer.ID, err error) {
	for _, fault := range []error{ErrSeal, ErrSyntax, ErrTooLong} {
		if errors.Is(err, fault) {
			s.blame(p, fault.Error())
		}
	}
}

// lacks returns those of refs that the replica does not know, each once.
func lacks(replica Replica, refs []blockstore.Ref) []blockstore.Ref {
	seen := make(map[blockstore.Ref]bool, len(refs))
	var out []blockstore.Ref
	for _, r := range refs {
		if !seen[r] && !replica.Known(r.Name) {
			seen[r] = true
			out = append(out, r)
		}
	}
	return slices.Clip(out)
}
