package headsync

import (
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p/core/peer"

	"fpnode/blockstore"
)

// room is the sync of one ledger: a machine, and the loop that feeds it and does what
// it decides.
type room struct {
	Ledger
	capability
	sync   *Sync
	mail   mail
	status atomic.Pointer[Status]

	// visits counts the calls from outside the loop that use the replica. They are let
	// in while open is set, which is while the loop runs.
	visits   sync.WaitGroup
	visitsMu sync.Mutex
	open     bool

	// stop and done are set when the room starts; Sync.mu guards them.
	stop context.CancelFunc
	done chan struct{}
}

func newRoom(s *Sync, l Ledger, c capability) *room {
	r := &room{Ledger: l, capability: c, sync: s}
	r.mail.wake = make(chan struct{}, 1)
	r.mail.peers = make(map[peer.ID]arrival)
	r.mail.joined = make(map[peer.ID]bool)
	return r
}

// enter reports whether the replica may be used; if so, leave must follow.
func (r *room) enter() bool {
	r.visitsMu.Lock()
	defer r.visitsMu.Unlock()
	if r.open {
		r.visits.Add(1)
	}
	return r.open
}

func (r *room) leave() { r.visits.Done() }

func (r *room) setOpen(open bool) {
	r.visitsMu.Lock()
	defer r.visitsMu.Unlock()
	r.open = open
}

// run is the loop. It returns when ctx has ended and all that it started has.
func (r *room) run(ctx context.Context) {
	log := r.sync.log.With("ledger", r.Name)
	r.setOpen(true)
	defer r.visits.Wait()
	defer r.setOpen(false)
	var workers sync.WaitGroup
	defer workers.Wait()
	leave, err := r.sync.net.Join(r.topic, r.receive, r.mail.join)
	if err != nil {
		log.Error("no topic, the ledger is kept in sync by exchanges alone", "err", err)
	} else {
		defer leave()
	}
	m := newMachine(r.sync.net.ID(), rand.New(rand.NewPCG(rand.Uint64(), rand.Uint64())))
	tips := r.Replica.Tips()
	m.start(time.Now(), tipsDigest(tips), len(tips))
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-r.mail.wake:
		case <-timer.C:
		}
		now := time.Now()
		r.read(m, now)
		m.tick(now)
		for _, a := range m.take() {
			switch a := a.(type) {
			case doPublish:
				if err := r.publish(ctx, a.recent); err != nil {
					log.Debug("not announced", "err", err)
				}
			case doExchange:
				workers.Go(func() { r.exchange(ctx, a.with) })
			case doFetch:
				workers.Go(func() { r.fetch(ctx, a) })
			case doMerge:
				workers.Go(func() { r.merge(ctx, a) })
			case doBlame:
				r.sync.blame(a.whom, a.why)
			}
		}
		r.status.Store(&Status{Members: m.members(), Missing: len(m.wants), Waiting: len(m.pending)})
		if t := m.next(); !t.IsZero() {
			timer.Reset(max(0, time.Until(t)))
		}
	}
}

// read feeds what is in the mail to the machine.
func (r *room) read(m *machine, now time.Time) {
	got := r.mail.take()
	for p, a := range got.peers {
		if !a.connected || a.bounced {
			m.disconnected(p)
		}
		if a.connected {
			m.connected(now, p)
		}
	}
	for p := range got.joined {
		m.joined(now, p)
	}
	for _, f := range got.results {
		f(m, now)
	}
	for _, n := range got.announcements {
		m.announced(now, n)
	}
	if got.committed {
		tips := r.Replica.Tips()
		m.committed(now, got.refs, tipsDigest(tips), len(tips))
	}
}

// receive is called for each gossip message.
func (r *room) receive(via, origin peer.ID, data []byte) (relay bool, err error) {
	if !r.enter() {
		return false, nil
	}
	defer r.leave()
	body, err := r.openAnnouncement(data)
	if errors.Is(err, ErrVersion) {
		return false, nil // perhaps of a later release
	}
	var a announcement
	if err == nil {
		a, err = decodeAnnouncement(body)
	}
	if err != nil {
		r.sync.blame(via, err.Error())
		return false, err
	}
	from := origin
	if !r.sync.isConnected(origin) {
		from = via
	}
	n := r.reduce(from, a.tips, a.refs)
	n.tips, n.whole, n.more = tipsDigest(a.tips), !a.more, a.more
	for i, sealed := range a.cars {
		if n.inline == nil {
			n.inline = make(map[blockstore.Ref][]byte)
		}
		n.inline[a.refs[i]] = sealed
	}
	r.mail.announcement(n)
	return true, nil
}

// reduce compares what a peer has with the replica.
func (r *room) reduce(from peer.ID, tips []blockstore.Meta, refs []blockstore.Ref) news {
	mine := make(map[cid.Cid]bool)
	for _, m := range r.Replica.Tips() {
		mine[m.CID] = true
	}
	n := news{from: from}
	for _, m := range tips {
		if mine[m.CID] {
			continue
		}
		n.metas = append(n.metas, m)
		for _, ref := range m.Group {
			if ref.Wire.Defined() {
				refs = append(refs, ref)
			}
		}
	}
	n.missing = lacks(r.Replica, refs)
	return n
}

// publish announces the replica's tips.
func (r *room) publish(ctx context.Context, recent []blockstore.Ref) error {
	a := compose(r.Replica.Tips(), recent, func(ref blockstore.Ref) []byte {
		b, err := r.Replica.Sealed(ctx, ref)
		if err != nil {
			return nil
		}
		return b
	})
	sealed, err := r.sealAnnouncement(a.encode())
	if err != nil {
		return err
	}
	return r.sync.net.Publish(ctx, r.topic, sealed)
}

// exchange opens an exchange with p.
func (r *room) exchange(ctx context.Context, p peer.ID) {
	ctx, cancel := context.WithTimeout(ctx, exchangeTimeout)
	defer cancel()
	select {
	case r.sync.turns <- struct{}{}:
		defer func() { <-r.sync.turns }()
	case <-ctx.Done():
		r.exchanged(p, true, offer{}, ctx.Err(), false)
		return
	}
	var o offer
	proved := false
	err := r.sync.net.Call(ctx, p, RefsProtocol, maxExchangeBytes, func(s io.ReadWriter) (err error) {
		o, err = openExchange(s, &r.capability, r.sync.net.ID(), p, r.Replica, func() {
			proved = true
			r.sync.proved(p)
		})
		return err
	})
	r.sync.judge(p, err)
	r.exchanged(p, true, o, err, !proved && ctx.Err() == nil)
}

// exchanged posts the outcome of an exchange.
func (r *room) exchanged(p peer.ID, opened bool, o offer, err error, refused bool) {
	if err != nil {
		r.sync.log.Debug("no exchange", "ledger", r.Name, "peer", p, "opened", opened, "refused", refused, "err", err)
	} else {
		r.sync.log.Debug("exchanged", "ledger", r.Name, "peer", p, "opened", opened, "equal", o.equal, "tips", len(o.tips), "refs", len(o.refs))
	}
	var n news
	if err == nil && !o.equal {
		n = r.reduce(p, o.tips, o.refs)
		n.more = o.more
	}
	r.mail.result(func(m *machine, now time.Time) { m.exchanged(now, p, opened, n, o.equal, err, refused) })
}

// fetch obtains and verifies CARs, and makes them durable in portions; the last portion
// is left to the merge of the metas that wait for it.
func (r *room) fetch(ctx context.Context, d doFetch) {
	var held []blockstore.CAR
	var heldBytes int64
	var stored, wrong []blockstore.Ref
	take := func(ref blockstore.Ref, sealed []byte) error {
		if r.Replica.Known(ref.Name) {
			stored = append(stored, ref)
			return nil
		}
		c, err := r.Replica.Accept(ref, sealed)
		if err != nil {
			var refused *blockstore.AcceptError
			if errors.As(err, &refused) && refused.Check != "key" {
				wrong = append(wrong, ref)
			}
			r.sync.log.Debug("CAR refused", "ledger", r.Name, "err", err)
			return nil
		}
		held, heldBytes = append(held, c), heldBytes+c.Ref.Size
		if heldBytes < storeBytes && len(held) < storeCARs {
			return nil
		}
		if err := r.Replica.Stage(ctx, held); err != nil {
			return err
		}
		for _, c := range held {
			stored = append(stored, c.Ref)
		}
		held, heldBytes = nil, 0
		return nil
	}
	err := func() error {
		if d.inline != nil {
			for _, ref := range d.refs {
				if err := take(ref, d.inline[ref]); err != nil {
					return err
				}
			}
			return nil
		}
		for ref, sealed := range r.sync.fetcher.Fetch(ctx, d.from, d.refs) {
			if err := take(ref, sealed); err != nil {
				return err
			}
		}
		return nil
	}()
	if err != nil {
		held = nil
		if ctx.Err() == nil {
			r.sync.log.Error("fetched CARs not stored", "ledger", r.Name, "err", err)
		}
	}
	r.mail.result(func(m *machine, now time.Time) { m.fetched(now, d, held, stored, wrong) })
}

// merge hands metas and CARs to the replica.
func (r *room) merge(ctx context.Context, d doMerge) {
	began := time.Now()
	res, err := r.Replica.Merge(ctx, d.metas, d.cars)
	switch {
	case err == nil:
		r.sync.log.Debug("merged", "ledger", r.Name, "cars", len(d.cars), "accepted", len(res.Accepted),
			"waiting", len(res.Waiting), "refused", len(res.Refused), "elapsed", time.Since(began))
	case ctx.Err() == nil:
		r.sync.log.Error("not merged", "ledger", r.Name, "cars", len(d.cars), "metas", len(d.metas), "err", err)
	}
	tips := r.Replica.Tips()
	digest, n := tipsDigest(tips), len(tips)
	r.mail.result(func(m *machine, now time.Time) { m.merged(now, res, err, digest, n) })
}

// mail is what waits for a room's loop. Putting something in never blocks.
type mail struct {
	wake chan struct{} // holds a token when there is something

	mu sync.Mutex
	letters
}

type letters struct {
	peers         map[peer.ID]arrival
	joined        map[peer.ID]bool
	announcements []news // at most maxQueuedAnnouncements, the newest
	results       []func(*machine, time.Time)
	committed     bool
	refs          []blockstore.Ref // at most maxRecent, the newest
}

// arrival is a peer that came or went; bounced if more than once.
type arrival struct{ connected, bounced bool }

func (b *mail) put(f func(*letters)) {
	b.mu.Lock()
	f(&b.letters)
	b.mu.Unlock()
	select {
	case b.wake <- struct{}{}:
	default:
	}
}

func (b *mail) take() letters {
	b.mu.Lock()
	defer b.mu.Unlock()
	got := b.letters
	b.letters = letters{peers: make(map[peer.ID]arrival), joined: make(map[peer.ID]bool)}
	return got
}

func (b *mail) peer(p peer.ID, connected bool) {
	b.put(func(l *letters) {
		old, again := l.peers[p]
		l.peers[p] = arrival{connected, again && (old.bounced || old.connected != connected)}
	})
}

func (b *mail) join(p peer.ID) { b.put(func(l *letters) { l.joined[p] = true }) }

func (b *mail) announcement(n news) {
	b.put(func(l *letters) {
		if len(l.announcements) == maxQueuedAnnouncements {
			l.announcements = append(l.announcements[:0], l.announcements[1:]...)
		}
		l.announcements = append(l.announcements, n)
	})
}

// result is bounded by the number of calls that are running.
func (b *mail) result(f func(*machine, time.Time)) {
	b.put(func(l *letters) { l.results = append(l.results, f) })
}

func (b *mail) commit(refs []blockstore.Ref) {
	b.put(func(l *letters) {
		l.committed = true
		l.refs = append(l.refs, refs...)
		if over := len(l.refs) - maxRecent; over > 0 {
			l.refs = append([]blockstore.Ref(nil), l.refs[over:]...)
		}
	})
}
