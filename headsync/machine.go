package headsync

import (
	"container/heap"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p/core/peer"

	"fpnode/blockstore"
)

// machine decides what is done for one ledger. It is pure: events and the time go in
// through its methods, what is to be done comes out of take, and next says when tick
// wants to be called. It does no I/O, starts nothing and reads no clock; the same
// events give the same actions.
//
// What is known of other replicas arrives in bundles, each from one announcement or one
// exchange: metas, and refs of CARs that this replica lacks. The CARs of a bundle are
// fetched at once. When each has arrived or failed, the bundle is settled and its
// metas are merged; the replica says which are complete. One that is not waits, is
// tried again whenever something has arrived, and lets its sources be asked again,
// with growing pauses. Bundles share the fetching of a CAR and nothing else, so what
// one waits for holds up no other.
type machine struct {
	self peer.ID
	rng  *rand.Rand
	out  []action

	tips      [32]byte // digest of the replica's tips
	hasTips   bool
	heard     [32]byte // digest of the tips that were last announced, by whomever
	recent    []blockstore.Ref
	changedAt time.Time // when tips changed
	published time.Time // when they were announced by this replica
	announce  time.Time // when to announce next

	peers     map[peer.ID]*remote
	exchanges int // running

	wants   map[blockstore.Ref]*want
	due     []blockstore.Ref // wants to be fetched as soon as there is a peer and a slot
	retries retryHeap
	fetches map[peer.ID]int // running, by the peer they are for
	running int             // their sum
	checks  int             // running for CARs that came inline

	pending map[cid.Cid]*pending
	ready   []cid.Cid // pending metas for the next merge
	cars    []blockstore.CAR
	carSize int64
	merging []cid.Cid // metas of the running merge; nil if none runs
	before  [32]byte  // digest of the tips when it began
	done    fifoSet[cid.Cid]
	bad     fifoSet[blockstore.Ref]
}

// remote is a connected peer.
type remote struct {
	met        bool      // it has proved that it holds the ledger's key
	exchanging bool      // an exchange that this side opened is running
	exchangeAt time.Time // when to open one; zero: not now
	notBefore  time.Time // the earliest for that
	refusals   int       // exchanges in a row that did not work
	useless    int       // exchanges in a row that brought nothing
}

// want is a CAR that the replica lacks.
type want struct {
	sources  []peer.ID // who offered it, the first one first
	bundles  []*bundle // that wait for its outcome
	state    wantState
	inline   bool // its bytes came along and are being checked
	attempts int
}

type wantState byte

const (
	wantDue      wantState = iota // in machine.due
	wantFetching                  // in a running doFetch
	wantResting                   // in machine.retries
)

// bundle is what one announcement or exchange offered.
type bundle struct {
	from  peer.ID
	metas []cid.Cid // in machine.pending
	open  int       // wants that have had no outcome yet
	more  bool      // there is more to be had from the same peer
}

// pending is a meta that has not been merged.
type pending struct {
	meta     blockstore.Meta
	from     peer.ID
	open     int  // bundles it is in that are not settled
	queued   bool // in ready or merging
	attempts int
	tried    time.Time
	next     time.Time // when to try again; zero until it was tried
}

// What take returns is one of these.
type action interface{}

type (
	// doPublish announces the current tips and the refs.
	doPublish struct{ recent []blockstore.Ref }
	// doExchange opens an exchange; exchanged follows.
	doExchange struct{ with peer.ID }
	// doFetch obtains CARs, those in inline from there, and verifies them; fetched follows.
	doFetch struct {
		refs   []blockstore.Ref
		from   []peer.ID
		inline map[blockstore.Ref][]byte
		source peer.ID // whose offer it is about
	}
	// doMerge hands metas and verified CARs to the replica; merged follows.
	doMerge struct {
		metas []blockstore.Meta
		cars  []blockstore.CAR
	}
	// doBlame counts a fault against a peer.
	doBlame struct {
		whom peer.ID
		why  string
	}
)

func newMachine(self peer.ID, rng *rand.Rand) *machine {
	return &machine{
		self: self, rng: rng,
		peers:   make(map[peer.ID]*remote),
		wants:   make(map[blockstore.Ref]*want),
		fetches: make(map[peer.ID]int),
		pending: make(map[cid.Cid]*pending),
		done:    newFIFOSet[cid.Cid](maxDone),
		bad:     newFIFOSet[blockstore.Ref](maxBad),
	}
}

// take returns the actions decided since the last call.
func (m *machine) take() []action {
	out := m.out
	m.out = nil
	return out
}

func (m *machine) do(a action) { m.out = append(m.out, a) }

// between returns a duration in [lo, hi).
func (m *machine) between(lo, hi time.Duration) time.Duration {
	return lo + time.Duration(m.rng.Int64N(int64(hi-lo)))
}

// backoff is the pause after n failures.
func (m *machine) backoff(n int) time.Duration {
	d := retryMax
	if n < 9 {
		d = min(retryMin<<n, retryMax)
	}
	return m.between(d/2, d+d/2)
}

// start is the first event.
func (m *machine) start(now time.Time, tips [32]byte, n int) {
	m.tips, m.hasTips = tips, n > 0
	m.announce = now.Add(m.between(0, greetWithin))
}

// connected: p is there. Of two peers the one with the smaller ID opens the exchange,
// and the other does if nothing has come of that.
func (m *machine) connected(now time.Time, p peer.ID) {
	if m.peers[p] != nil {
		return
	}
	r := &remote{exchangeAt: now}
	if m.self > p {
		r.exchangeAt = now.Add(secondCall)
	}
	m.peers[p] = r
}

func (m *machine) disconnected(p peer.ID) {
	if r := m.peers[p]; r != nil && r.exchanging {
		m.exchanges--
	}
	delete(m.peers, p)
}

// joined: p subscribed to the ledger's topic. It may have missed what was announced.
func (m *machine) joined(now time.Time, p peer.ID) {
	m.greet(now)
	if r := m.peers[p]; r != nil && !r.met && !r.exchanging && r.exchangeAt.IsZero() {
		r.refusals = 0
		m.wantExchange(now, p) // it was taken for a stranger
	}
}

// greet announces soon.
func (m *machine) greet(now time.Time) { m.announceAt(now, now.Add(m.between(0, greetWithin))) }

func (m *machine) announceAt(now, t time.Time) {
	if earliest := m.published.Add(announceEvery); t.Before(earliest) {
		t = earliest
	}
	if m.announce.IsZero() || t.Before(m.announce) {
		m.announce = t
	}
}

// committed: the replica made CARs durable; these are now its tips.
func (m *machine) committed(now time.Time, refs []blockstore.Ref, tips [32]byte, n int) {
	m.recent = append(m.recent, refs...)
	if over := len(m.recent) - maxRecent; over > 0 {
		m.recent = slices.Clone(m.recent[over:])
	}
	m.changed(now, tips, n)
}

// changed looks at whether the replica's tips are others than before.
func (m *machine) changed(now time.Time, tips [32]byte, n int) {
	if m.tips == tips {
		return
	}
	m.tips, m.hasTips, m.changedAt = tips, n > 0, now
	if tips == m.heard {
		// They came by an announcement, which everybody else has heard as well.
		m.recent = nil
		m.announce = now.Add(m.between(reannounceMin, reannounceMax))
		return
	}
	m.announceAt(now, now)
}

// news is what an announcement or an exchange said, reduced to what the replica lacks.
type news struct {
	from    peer.ID           // who has the CARs
	tips    [32]byte          // digest of the announced tips, if whole
	whole   bool              // metas are all of the other's tips
	metas   []blockstore.Meta // its tips that are not among ours
	missing []blockstore.Ref  // CARs the replica lacks
	inline  map[blockstore.Ref][]byte
	more    bool // there is more to be had
}

// announced: a member announced its tips.
func (m *machine) announced(now time.Time, n news) {
	if n.whole {
		m.heard = n.tips
		if n.tips == m.tips {
			m.recent = nil
			m.announce = now.Add(m.between(reannounceMin, reannounceMax))
			return
		}
	}
	if m.add(now, n) == nothing && m.hasTips && !n.more {
		// It lacks what is here. If that has been announced, gossip does not reach it.
		if m.published.After(m.changedAt) && now.Sub(m.published) > greetWithin {
			m.wantExchange(now, n.from)
		}
		m.greet(now)
	}
}

// exchanged: an exchange with p ended, opened by this side or by the other. refused
// says that it failed because the other side did not answer the proof.
func (m *machine) exchanged(now time.Time, p peer.ID, opened bool, n news, equal bool, err error, refused bool) {
	r := m.peers[p]
	if r == nil {
		return // gone meanwhile
	}
	if opened && r.exchanging {
		r.exchanging = false
		m.exchanges--
	}
	if err != nil {
		if !opened {
			return
		}
		r.refusals++
		if refused && r.refusals >= 3 && !r.met {
			return // a stranger; it calls when it becomes a member
		}
		r.notBefore = now.Add(m.backoff(r.refusals))
		r.exchangeAt = r.notBefore
		return
	}
	r.met, r.refusals, r.exchangeAt = true, 0, time.Time{}
	got := nothing
	if !equal {
		got = m.add(now, n)
	}
	if got == nothing {
		r.useless++
	} else {
		r.useless = 0
	}
	r.notBefore = now.Add(m.backoff(r.useless))
}

// wantExchange opens an exchange with p as soon as that is allowed.
func (m *machine) wantExchange(now time.Time, p peer.ID) {
	r := m.peers[p]
	if r == nil {
		return
	}
	at := now
	if at.Before(r.notBefore) {
		at = r.notBefore
	}
	if r.exchangeAt.IsZero() || at.Before(r.exchangeAt) {
		r.exchangeAt = at
	}
}

// outcome of add.
type outcome int

const (
	nothing outcome = iota
	something
)

// add makes a bundle of news and starts on it.
func (m *machine) add(now time.Time, n news) outcome {
	b := &bundle{from: n.from, more: n.more}
	count := 0
	for _, p := range m.pending {
		if p.from == n.from {
			count++
		}
	}
	for _, meta := range n.metas {
		if m.done.has(meta.CID) {
			continue
		}
		p := m.pending[meta.CID]
		if p == nil {
			if len(m.pending) >= maxPending || count >= maxPendingPerPeer {
				continue
			}
			count++
			p = &pending{meta: meta, from: n.from}
			m.pending[meta.CID] = p
		}
		for i, r := range p.meta.Group {
			if !r.Wire.Defined() && i < len(meta.Group) {
				p.meta.Group[i] = meta.Group[i]
			}
		}
		p.open++
		b.metas = append(b.metas, meta.CID)
	}
	inline := make(map[blockstore.Ref][]byte)
	if m.checks >= maxInline {
		n.inline = nil // a flood: fetch them instead
	}
	for _, ref := range n.missing {
		if m.bad.has(ref) {
			continue
		}
		w := m.wants[ref]
		switch {
		case w == nil && len(m.wants) >= maxWants:
			b.more = true
			continue
		case w == nil:
			w = &want{state: wantDue}
			m.wants[ref] = w
			if n.inline[ref] == nil {
				m.due = append(m.due, ref)
			} else {
				w.state = wantResting // it is not fetched unless the bytes are of no use
			}
		case w.state == wantResting && !w.inline && n.inline[ref] == nil:
			w.state = wantDue
			m.due = append(m.due, ref)
		}
		if len(w.sources) < maxSources && !slices.Contains(w.sources, n.from) {
			w.sources = append(w.sources, n.from)
		}
		w.bundles = append(w.bundles, b)
		b.open++
		if n.inline[ref] != nil && !w.inline {
			w.inline = true
			inline[ref] = n.inline[ref]
		}
	}
	if len(inline) > 0 {
		refs := make([]blockstore.Ref, 0, len(inline))
		for _, ref := range n.missing {
			if inline[ref] != nil {
				refs = append(refs, ref)
			}
		}
		m.checks++
		m.do(doFetch{refs: refs, inline: inline})
	}
	if len(b.metas) == 0 && b.open == 0 {
		if b.more {
			m.wantExchange(now, b.from)
		}
		return nothing
	}
	if b.open == 0 {
		m.settle(now, b)
	}
	return something
}

// settle is called when every want of a bundle has had its outcome.
func (m *machine) settle(now time.Time, b *bundle) {
	for _, c := range b.metas {
		if p := m.pending[c]; p != nil {
			p.open--
			m.queue(c, p)
		}
	}
	if b.more {
		m.wantExchange(now, b.from)
	}
}

// queue puts a meta into the next merge.
func (m *machine) queue(c cid.Cid, p *pending) {
	if !p.queued {
		p.queued = true
		m.ready = append(m.ready, c)
	}
}

// fetched: the outcome of doFetch. cars are the verified ones that are not durable yet;
// stored were made durable on the way; false did not verify; the rest did not arrive.
func (m *machine) fetched(now time.Time, d doFetch, cars []blockstore.CAR, stored, false_ []blockstore.Ref) {
	if d.inline != nil {
		m.checks--
	} else {
		m.running--
		if m.fetches[d.source]--; m.fetches[d.source] == 0 {
			delete(m.fetches, d.source)
		}
	}
	got := make(map[blockstore.Ref]bool, len(stored)+len(cars))
	for _, c := range cars {
		got[c.Ref] = true
		m.carSize += c.Ref.Size
	}
	m.cars = append(m.cars, cars...)
	for _, r := range stored {
		got[r] = true
	}
	wrong := make(map[blockstore.Ref]bool, len(false_))
	for _, r := range false_ {
		wrong[r] = true
	}
	for _, ref := range d.refs {
		w := m.wants[ref]
		if w == nil {
			continue
		}
		if d.inline == nil {
			w.state = wantResting
		} else {
			w.inline = false
		}
		switch {
		case got[ref]:
			delete(m.wants, ref)
		case wrong[ref]:
			delete(m.wants, ref)
			m.bad.add(ref)
			for _, p := range w.sources {
				m.do(doBlame{p, "offered a CAR that does not verify"})
			}
		case w.state != wantResting:
			continue // it is also being fetched
		default:
			if w.attempts++; w.attempts >= giveUpAfter {
				delete(m.wants, ref)
				break
			}
			heap.Push(&m.retries, retry{now.Add(m.backoff(w.attempts)), ref})
		}
		for _, b := range w.bundles {
			if b.open--; b.open == 0 {
				m.settle(now, b)
			}
		}
		w.bundles = nil
	}
	if len(got) > 0 {
		m.retryPending(now)
	}
}

// retryPending lets the metas that wait be tried soon, since something has changed.
func (m *machine) retryPending(now time.Time) {
	for _, p := range m.pending {
		if p.next.IsZero() {
			continue
		}
		soon := p.tried.Add(time.Second)
		if soon.Before(now) {
			soon = now
		}
		if soon.Before(p.next) {
			p.next = soon
		}
	}
}

// Merged is what a replica did with metas, see Replica.
type Merged struct {
	Accepted []cid.Cid // part of the replica, now or before
	Waiting  []cid.Cid // not complete yet
	Refused  []cid.Cid // never to be accepted
}

// merged: the outcome of doMerge.
func (m *machine) merged(now time.Time, res Merged, err error, tips [32]byte, n int) {
	batch := m.merging
	m.merging = nil
	if err != nil {
		// The CARs are lost from memory. Whoever offered them offers them again.
		for _, p := range m.members() {
			m.peers[p].notBefore = now.Add(m.backoff(4))
			m.wantExchange(now, p)
		}
		res = Merged{Waiting: batch}
	}
	settled := make(map[cid.Cid]bool, len(batch))
	for _, c := range res.Accepted {
		settled[c] = true
		delete(m.pending, c)
		m.done.add(c)
	}
	for _, c := range res.Refused {
		settled[c] = true
		if p := m.pending[c]; p != nil {
			m.do(doBlame{p.from, "offered a commit that does not verify"})
		}
		delete(m.pending, c)
		m.done.add(c)
	}
	for _, c := range batch {
		p := m.pending[c]
		if p == nil || settled[c] {
			continue
		}
		p.queued = false
		p.tried = now
		if p.attempts++; p.attempts >= giveUpAfter {
			delete(m.pending, c)
			continue
		}
		p.next = now.Add(m.backoff(p.attempts))
		m.askAbout(now, p)
	}
	if len(res.Accepted) > 0 {
		m.retryPending(now)
		if tips == m.before {
			m.greet(now) // they brought nothing: whoever announced them lacks what is here
		}
	}
	m.changed(now, tips, n)
}

// members returns the peers that have proved to be members, sorted.
func (m *machine) members() []peer.ID {
	var list []peer.ID
	for p, r := range m.peers {
		if r.met {
			list = append(list, p)
		}
	}
	slices.Sort(list)
	return list
}

// askAbout opens an exchange because of a meta that is not complete: first with the
// peer that offered it, then with the others in turn.
func (m *machine) askAbout(now time.Time, p *pending) {
	if r := m.peers[p.from]; r != nil && p.attempts <= 2 {
		m.wantExchange(now, p.from)
		return
	}
	if all := m.members(); len(all) > 0 {
		m.wantExchange(now, all[p.attempts%len(all)])
	}
}

// tick does what is due.
func (m *machine) tick(now time.Time) {
	for len(m.retries) > 0 && !m.retries[0].at.After(now) {
		r := heap.Pop(&m.retries).(retry)
		if w := m.wants[r.ref]; w != nil && w.state == wantResting && !w.inline {
			w.state = wantDue
			m.due = append(m.due, r.ref)
		}
	}
	m.startExchanges(now)
	for m.startFetch() {
	}
	var again []cid.Cid
	for c, p := range m.pending {
		if p.open == 0 && !p.queued && !p.next.IsZero() && !p.next.After(now) {
			again = append(again, c)
		}
	}
	slices.SortFunc(again, func(a, b cid.Cid) int { return strings.Compare(a.KeyString(), b.KeyString()) })
	for _, c := range again {
		m.queue(c, m.pending[c])
	}
	m.startMerge()
	if !m.announce.IsZero() && !m.announce.After(now) {
		m.publish(now)
	}
}

func (m *machine) publish(now time.Time) {
	m.announce = now.Add(m.between(reannounceMin, reannounceMax))
	if !m.hasTips {
		return
	}
	m.published, m.heard = now, m.tips
	m.do(doPublish{m.recent})
	m.recent = nil
}

func (m *machine) startExchanges(now time.Time) {
	var with []peer.ID
	for p, r := range m.peers {
		if !r.exchanging && !r.exchangeAt.IsZero() && !r.exchangeAt.After(now) {
			with = append(with, p)
		}
	}
	slices.Sort(with)
	for _, p := range with {
		if m.exchanges >= maxServed {
			return
		}
		r := m.peers[p]
		r.exchanging, r.exchangeAt = true, time.Time{}
		m.exchanges++
		m.do(doExchange{p})
	}
}

// startFetch fetches, in one call, everything that is due of what one peer offered
// first: from the peers that offered it, or from all members if those are gone. A peer
// whose offers turn out to be empty holds half of the slots at most.
func (m *machine) startFetch() bool {
	if len(m.due) == 0 || m.running >= maxFetches || m.carSize > 4*storeBytes {
		return false
	}
	all := m.members()
	if len(all) == 0 {
		return false
	}
	var d doFetch
	var size int64
	from := make(map[peer.ID]bool)
	var later []blockstore.Ref
	for _, ref := range m.due {
		w := m.wants[ref]
		if w == nil || w.state != wantDue {
			continue
		}
		source := w.sources[0]
		if m.fetches[source] >= maxFetches/2 || len(d.refs) > 0 && (source != d.source || size+ref.Size > maxFetchBytes) {
			later = append(later, ref)
			continue
		}
		d.source = source
		size += ref.Size
		w.state = wantFetching
		d.refs = append(d.refs, ref)
		for _, p := range w.sources {
			from[p] = true
		}
	}
	m.due = later
	if len(d.refs) == 0 {
		return false
	}
	for _, p := range all {
		if from[p] {
			d.from = append(d.from, p)
		}
	}
	if len(d.from) == 0 {
		d.from = all
	}
	m.fetches[d.source]++
	m.running++
	m.do(d)
	return true
}

func (m *machine) startMerge() {
	if m.merging != nil || len(m.ready)+len(m.cars) == 0 {
		return
	}
	d := doMerge{cars: m.cars}
	m.before = m.tips
	m.merging = make([]cid.Cid, 0, len(m.ready))
	for _, c := range m.ready {
		if p := m.pending[c]; p != nil {
			d.metas = append(d.metas, p.meta)
			m.merging = append(m.merging, c)
		}
	}
	m.ready, m.cars, m.carSize = nil, nil, 0
	m.do(d)
}

// next says when tick should be called although nothing has happened; zero: never.
func (m *machine) next() time.Time {
	var t time.Time
	sooner := func(u time.Time) {
		if !u.IsZero() && (t.IsZero() || u.Before(t)) {
			t = u
		}
	}
	sooner(m.announce)
	if len(m.retries) > 0 {
		sooner(m.retries[0].at)
	}
	if m.exchanges < maxServed {
		for _, r := range m.peers {
			if !r.exchanging {
				sooner(r.exchangeAt)
			}
		}
	}
	for _, p := range m.pending {
		if p.open == 0 && !p.queued {
			sooner(p.next)
		}
	}
	return t
}

// retry is a want that is to be tried again.
type retry struct {
	at  time.Time
	ref blockstore.Ref
}

type retryHeap []retry

func (h retryHeap) Len() int           { return len(h) }
func (h retryHeap) Less(i, j int) bool { return h[i].at.Before(h[j].at) }
func (h retryHeap) Swap(i, j int)      { h[i], h[j] = h[j], h[i] }
func (h *retryHeap) Push(x any)        { *h = append(*h, x.(retry)) }
func (h *retryHeap) Pop() any {
	old := *h
	x := old[len(old)-1]
	*h = old[:len(old)-1]
	return x
}

// fifoSet is a set that forgets its oldest members.
type fifoSet[T comparable] struct {
	in    map[T]struct{}
	order []T
	at    int // oldest in order, once it is full
	limit int
}

func newFIFOSet[T comparable](limit int) fifoSet[T] {
	return fifoSet[T]{in: make(map[T]struct{}), limit: limit}
}

func (s *fifoSet[T]) has(v T) bool {
	_, ok := s.in[v]
	return ok
}

func (s *fifoSet[T]) add(v T) {
	if s.has(v) {
		return
	}
	s.in[v] = struct{}{}
	if len(s.order) < s.limit {
		s.order = append(s.order, v)
		return
	}
	delete(s.in, s.order[s.at])
	s.order[s.at] = v
	s.at = (s.at + 1) % s.limit
}
