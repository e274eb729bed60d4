// Package ledger is the database: documents in a Fireproof ledger that can be written offline anywhere and merged.
//
// [Open] a [Ledger] on its store, write with [Ledger.Put] and [Ledger.Delete], read with [Ledger.Get],
// [Ledger.AllDocs] and [Ledger.Query], follow with [Ledger.Watch] and [Ledger.Changes], and look at the past with
// [Ledger.History] and [Ledger.Conflicts]. What other replicas wrote comes in through [Ledger.Merge], whoever
// brought it; ledgers of JavaScript Fireproof come in through [Import] and go out through [Ledger.Export].
//
// # Guarantees
//
//   - A write that was acknowledged is on disk: Put returns after the one durable step, [blockstore.Ledger.Commit].
//     Puts that wait together share one CAR and one sync, and each stays an event of its own.
//   - Two replicas with the same head have the same root and the same documents, the ones JavaScript Fireproof
//     computes. Merging is commutative, associative and idempotent.
//   - Nothing is merged before it is complete and verified, and one bad meta never hides a good one.
//   - No value is lost by merging. Where two replicas wrote one document without knowing of each other, the write
//     fewer steps behind its head wins; at equal distance the event with the larger CID text. Clocks play no part.
//     Conflicts and History list the others.
//   - Reads never replay history. They see every write acknowledged before they began.
//
// A Ledger is safe for concurrent use. One goroutine, started by Open and ended by Close, does all the writing.
package ledger

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ipfs/go-cid"

	"fpnode/blockstore"
	"fpnode/clock"
	"fpnode/pail"
)

var (
	// ErrNotFound is returned for a document that does not exist or was deleted.
	ErrNotFound = errors.New("document not found")
	// ErrClosed is returned by writes after Close, and ends watchers.
	ErrClosed = errors.New("ledger is closed")
	// ErrUnknownClock is returned for a clock that names an event this ledger does not hold.
	ErrUnknownClock = errors.New("clock names an event that is not in this ledger")
)

// Config says which ledger to open. Name, ID and Store are needed.
type Config struct {
	Name  string   // the local label
	ID    [32]byte // derived from the ledger's first key; the same on every replica
	Store *blockstore.Ledger

	Now           func() time.Time // for automatic ids; time.Now if nil
	Rand          io.Reader        // for automatic ids; crypto/rand if nil
	Logger        *slog.Logger     // discarded if nil
	DocCacheBytes int64            // memory for hot documents; 32 MiB if 0
}

// Ledger is an open ledger.
type Ledger struct {
	cfg   Config
	store *blockstore.Ledger
	base  *recent // reads blocks of store
	log   *slog.Logger
	view  view
	docs  *docCache

	// state is what readers see. Only the writer replaces it.
	state atomic.Pointer[state]

	// queue feeds the writer. closing guards against sending on it after Close closed it.
	queue   chan *job
	closing sync.RWMutex
	closed  bool
	done    chan struct{} // closed when the writer has returned

	// The fields below are owned by the writer.
	shards   *pail.Cache
	blocks   *overlay              // the store, and the shards of the current trie that no CAR holds yet
	behind   bool                  // the view could not follow a commit: load before the next one
	merged   bool                  // blocks has what a trie of several heads needs
	tipHeads map[cid.Cid][]cid.Cid // heads in the headers of the tips, as far as they have been read

	// indexMu guards index, which is nil until history is asked for: puts and gets do not need it.
	indexMu sync.RWMutex
	index   *clock.Index

	indexTurns *indexTurns // of the indexes of queries

	watchMu  sync.Mutex
	watchers map[*watcher]struct{}
}

// Open opens a ledger and brings its view up to date with the tips of its store. The errors of a store that cannot
// be read pass through; it never takes such a store for an empty one.
func Open(ctx context.Context, cfg Config) (*Ledger, error) {
	if cfg.Store == nil {
		return nil, errors.New("ledger: Config.Store is nil")
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Rand == nil {
		cfg.Rand = rand.Reader
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.DocCacheBytes == 0 {
		cfg.DocCacheBytes = defaultDocCacheBytes
	}
	base := newRecent(cfg.Store)
	l := &Ledger{
		base:       base,
		cfg:        cfg,
		store:      cfg.Store,
		log:        cfg.Logger.With("ledger", cfg.Name),
		view:       view{d: cfg.Store.Derived()},
		docs:       newDocCache(cfg.DocCacheBytes),
		queue:      make(chan *job, writeQueue),
		done:       make(chan struct{}),
		shards:     pail.NewCache(shardCache),
		blocks:     newOverlay(base),
		tipHeads:   map[cid.Cid][]cid.Cid{},
		indexTurns: newIndexTurns(),
		watchers:   map[*watcher]struct{}{},
	}
	l.state.Store(&state{})
	if err := l.load(ctx); err != nil {
		return nil, fmt.Errorf("opening ledger %q: %w", cfg.Name, err)
	}
	go l.write()
	return l, nil
}

// Close finishes the writes that were accepted and ends the writer and all watchers. It does not close the store.
func (l *Ledger) Close() error {
	l.closing.Lock()
	if l.closed {
		l.closing.Unlock()
		return nil
	}
	l.closed = true
	close(l.queue)
	l.closing.Unlock()
	<-l.done
	l.endWatchers()
	return nil
}

// Name is the ledger's local label.
func (l *Ledger) Name() string { return l.cfg.Name }

// ID is what the ledger is called between replicas.
func (l *Ledger) ID() [32]byte { return l.cfg.ID }

// Head is the events nobody has built on, empty for a ledger nobody has written to. Two replicas with the same set
// hold the same documents.
func (l *Ledger) Head() []cid.Cid { return slices.Clone(l.state.Load().head) }

// Root is the root of the Pail of the current documents, undefined for an empty ledger.
func (l *Ledger) Root(ctx context.Context) (cid.Cid, error) { return l.state.Load().root, nil }

// Tips is the metas nobody has replaced.
func (l *Ledger) Tips() []blockstore.Meta { return slices.Clone(l.state.Load().tips) }

// Info describes a ledger.
type Info struct {
	Name  string
	ID    [32]byte
	Head  []cid.Cid
	Root  cid.Cid // undefined while nobody has written
	Docs  int     // as AllDocs lists them
	Cars  int
	Bytes int64 // of sealed CARs
	Tips  []blockstore.Meta
}

// Info is one consistent description, except that Cars and Bytes may already count a commit in progress.
func (l *Ledger) Info(ctx context.Context) (Info, error) {
	s := l.state.Load()
	st := l.store.Stats()
	return Info{
		Name:  l.cfg.Name,
		ID:    l.cfg.ID,
		Head:  slices.Clone(s.head),
		Root:  s.root,
		Docs:  int(s.docs),
		Cars:  int(st.Cars),
		Bytes: int64(st.Bytes),
		Tips:  slices.Clone(s.tips),
	}, nil
}

// Get is the current value of a document. A document that was deleted or never written is [ErrNotFound].
func (l *Ledger) Get(ctx context.Context, id string) (Doc, error) {
	d, ok, gen := l.docs.get(id)
	if ok {
		return d, nil
	}
	if err := checkID(id); err != nil {
		return Doc{}, err
	}
	e, ok, err := l.view.get(id)
	if err != nil {
		return Doc{}, fmt.Errorf("getting %.80q: %w", id, err)
	}
	if !ok || e.flags&flagTombstone != 0 {
		return Doc{}, fmt.Errorf("%.80q: %w", id, ErrNotFound)
	}
	d, err = l.doc(ctx, id, e.value)
	if err != nil {
		return Doc{}, fmt.Errorf("getting %.80q: %w", id, err)
	}
	l.docs.add(d, gen)
	return d, nil
}

// doc reads one version of a document.
func (l *Ledger) doc(ctx context.Context, id string, c cid.Cid) (Doc, error) {
	if c == tombstoneCID {
		return Doc{ID: id, CID: c, Deleted: true, block: delBlock}, nil
	}
	b, err := l.store.Block(ctx, c)
	if err != nil {
		return Doc{}, err
	}
	return newDoc(id, c, b)
}
