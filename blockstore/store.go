// Package blockstore keeps the sealed CARs of ledgers on disk, finds the blocks in them, and commits new ones.
//
// Open a home with Open and get a ledger of it with Store.Ledger. Make CARs with Ledger.Pack, or with Ledger.Accept
// from what others sent, and store them together with new tips with Ledger.Commit. Read with Ledger.Block (plaintext,
// by CID), Ledger.Sealed (a whole CAR, as others take it) and Store.WireBlock (what a bitswap peer asks for).
//
// A ledger's log is a few segment files: each commit appends one checksummed run and syncs it once, so a commit is
// whole or absent, and its CARs are there before its tips (segment.go draws the bytes, Ledger.Commit gives the
// argument). Everything else on disk is an index that is derived from the log, encrypted, and made anew when it is
// missing or behind. Names and tips stand nowhere in clear.
//
// Guarantees:
//   - What Commit returned nil for survives a killed process and a power cut, as far as the disk honours fsync.
//   - Commit compares and swaps: of two commits on the same tips one gets ErrStale.
//   - A commit cut short by a crash leaves no trace. Damage in the middle of a log is a *CorruptError that names the
//     place; nothing is repaired in silence.
//   - No CAR is stored that has not passed every check of Accept, and no block is returned that does not match its
//     CID, wherever the bytes came from.
//   - After a failed write the store works on, after a failed sync it refuses writes until opened again; reads always
//     go on.
//   - One process has a home open at a time.
//
// All methods are safe for concurrent use. Memory: the index caches (Config.CacheBytes and 16 MiB of memtables), a
// table of 32,768 CAR positions (5 MB), and for a CAR in flight twice its size.
package blockstore

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/cockroachdb/errors/oserror"
	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
)

// Config says where a home is and how it is kept.
type Config struct {
	FS    vfs.FS // nil: the operating system's
	Dir   string // of the home; made if it is missing
	Vault Vault  // keys for what the store writes for itself

	SegmentBytes int64 // a segment that is longer is followed by another; 0: 256 MiB
	// ReserveBytes is how much of the disk a commit leaves free, but not more than a twentieth of it. 0: 256 MiB,
	// negative: nothing.
	ReserveBytes int64
	CacheBytes   int64 // memory for index blocks; 0: 16 MiB
	Logger       *slog.Logger
}

// Store is an open home.
type Store struct {
	cfg     Config
	fs      vfs.FS
	dir     string
	log     *slog.Logger
	lock    io.Closer
	index   *index
	handles *handles
	table   carTable
	syncs   atomic.Int64

	closed atomic.Bool

	// poison is set by the first failed sync.
	poison atomic.Pointer[error]

	mu       sync.Mutex
	ledgers  map[[32]byte]*Ledger
	byNumber map[uint32]*Ledger
	highest  uint32 // ledger number given so far
}

// Open opens a home, makes it if it is missing, and brings the index up to date with the logs. Errors that callers
// tell apart: *LockedError, *VersionError, *ModeError, *CorruptError, ErrDiskFull. A damaged ledger does not keep the
// others from opening: Store.Ledger reports it.
func Open(cfg Config) (*Store, error) {
	if cfg.FS == nil {
		cfg.FS = vfs.Default
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.SegmentBytes == 0 {
		cfg.SegmentBytes = defaultSegmentBytes
	}
	if cfg.ReserveBytes == 0 {
		cfg.ReserveBytes = defaultReserveBytes
	}
	if cfg.CacheBytes == 0 {
		cfg.CacheBytes = defaultCacheBytes
	}
	dir := cfg.Dir
	if onDisk(cfg.FS) {
		abs, err := filepath.Abs(dir)
		if err != nil {
			return nil, fmt.Errorf("opening the store: %w", err)
		}
		dir = abs
	}
	if err := makeDir(cfg.FS, dir); err != nil {
		return nil, writeError("making the home", err)
	}
	lock, err := lockHome(cfg.FS, dir)
	if err != nil {
		return nil, err
	}
	s := &Store{
		cfg: cfg, fs: cfg.FS, dir: dir, log: cfg.Logger, lock: lock,
		handles:  newHandles(cfg.FS),
		ledgers:  make(map[[32]byte]*Ledger),
		byNumber: make(map[uint32]*Ledger),
	}
	if err := s.open(); err != nil {
		return nil, errors.Join(err, s.release())
	}
	return s, nil
}

// open does what needs the lock.
func (s *Store) open() error {
	err := s.load()
	if s.index == nil || !s.index.corrupt.Load() {
		return err
	}
	s.log.Warn("index is damaged, making it anew")
	s.index.close() // what it says is known
	s.index = nil
	if err := s.fs.RemoveAll(s.fs.PathJoin(s.dir, indexDir)); err != nil {
		return writeError("removing the damaged index", err)
	}
	s.ledgers, s.byNumber, s.highest = make(map[[32]byte]*Ledger), make(map[uint32]*Ledger), 0
	for i := range s.table {
		s.table[i].Store(nil)
	}
	return s.load()
}

// load opens the index and brings it up to date with the logs.
func (s *Store) load() error {
	if err := checkVersion(s.fs, s.dir); err != nil {
		return err
	}
	for _, sub := range []string{ledgersDir, indexDir} {
		if err := makeDir(s.fs, s.fs.PathJoin(s.dir, sub)); err != nil {
			return writeError("making the home", err)
		}
	}
	if err := s.openIndex(); err != nil {
		return err
	}
	if err := s.readNumbers(); err != nil {
		return err
	}
	names, err := s.fs.List(s.fs.PathJoin(s.dir, ledgersDir))
	if err != nil {
		return fmt.Errorf("listing the ledgers: %w", err)
	}
	slices.Sort(names)
	for _, name := range names {
		id, err := parseLedgerText(strings.TrimSuffix(name, dropSuffix))
		if err != nil {
			s.log.Warn("not a ledger", "dir", name)
			continue
		}
		if strings.HasSuffix(name, dropSuffix) {
			if err := s.finishDrop(id); err != nil { // the next Open will
				s.log.Warn("ledger is not removed yet", "ledger", ledgerText(id), "err", err)
			}
		}
	}
	for _, name := range names {
		if id, err := parseLedgerText(name); err == nil && s.ledgers[id] == nil {
			s.ledgers[id] = s.newLedger(id)
		}
	}
	for _, l := range s.sorted() {
		if l.err = l.replay(); l.err != nil {
			s.log.Error("ledger cannot be opened", "ledger", ledgerText(l.id), "err", l.err)
		}
	}
	return nil
}

// openIndex opens the index, or makes it anew if it cannot be read. On a full disk it is made in memory, so that what
// is stored stays readable.
func (s *Store) openIndex() error {
	dir := s.fs.PathJoin(s.dir, indexDir)
	var err error
	if s.index, err = openIndex(s.fs, dir, s.cfg.Vault, s.cfg.CacheBytes, s.log); err == nil {
		return nil
	}
	if !diskFull(err) {
		s.log.Warn("index cannot be opened, making it anew", "err", err)
		if err := s.fs.RemoveAll(dir); err != nil {
			return fmt.Errorf("removing the damaged index: %w", err)
		}
		if err := makeDir(s.fs, dir); err != nil {
			return writeError("making the index", err)
		}
		if s.index, err = openIndex(s.fs, dir, s.cfg.Vault, s.cfg.CacheBytes, s.log); err == nil {
			return nil
		}
	}
	if !diskFull(err) {
		return err
	}
	s.log.Warn("no room for the index on disk, making it in memory", "err", err)
	s.index, err = openIndex(vfs.NewMem(), "/", s.cfg.Vault, s.cfg.CacheBytes, s.log)
	return err
}

// readNumbers reads which ledgers the index knows.
func (s *Store) readNumbers() error {
	b, ok, err := s.index.get([]byte{keyHighest})
	if err != nil {
		return err
	}
	if ok && len(b) == 4 {
		s.highest = be32(b)
	}
	it, err := s.index.db.NewIter(&pebble.IterOptions{LowerBound: []byte{keyLedger}, UpperBound: []byte{keyLedger + 1}})
	if err != nil {
		return fmt.Errorf("reading the index: %w", err)
	}
	for it.First(); it.Valid(); it.Next() {
		if len(it.Key()) != 33 || len(it.Value()) != 4 {
			continue
		}
		l := s.newLedger([32]byte(it.Key()[1:]))
		l.number.Store(be32(it.Value()))
		s.ledgers[l.id] = l
		s.byNumber[l.number.Load()] = l
	}
	if err := it.Close(); err != nil {
		return fmt.Errorf("reading the index: %w", err)
	}
	return nil
}

// Close writes out what the index has in memory and unlocks the home. No other method may be running; those called
// afterwards return ErrClosed. An error is worth a log line, no more: what was committed is durable.
func (s *Store) Close() error {
	if s.closed.Swap(true) {
		return nil
	}
	return s.release()
}

// release closes whatever is open.
func (s *Store) release() error {
	var err error
	if s.index != nil {
		err = s.index.close()
		if s.index.corrupt.Load() {
			err = errors.Join(err, s.fs.RemoveAll(s.fs.PathJoin(s.dir, indexDir)))
		}
	}
	err = errors.Join(err, s.handles.close())
	if rmErr := s.fs.Remove(s.fs.PathJoin(s.dir, pidFile)); rmErr != nil && !oserror.IsNotExist(rmErr) {
		err = errors.Join(err, rmErr)
	}
	return errors.Join(err, s.lock.Close())
}

// Ledger returns a ledger of the home, empty if it is new: its directory is made by the first commit. The same id gives
// the same Ledger, which keeps the sealer of the first call. The error is a *CorruptError if its log is damaged.
func (s *Store) Ledger(id [32]byte, sealer Sealer) (*Ledger, error) {
	if s.closed.Load() {
		return nil, ErrClosed
	}
	s.mu.Lock()
	l := s.ledgers[id]
	if l == nil {
		l = s.newLedger(id)
		s.ledgers[id] = l
	}
	s.mu.Unlock()

	l.openMu.Lock()
	defer l.openMu.Unlock()
	if l.err != nil { // what went wrong when the store was opened may have passed
		if l.err = l.replay(); l.err != nil {
			return nil, fmt.Errorf("opening ledger %s: %w", ledgerText(id), l.err)
		}
	}
	if l.sealer == nil {
		l.sealer = sealer
	}
	return l, nil
}

// Ledgers are the ids of the ledgers that have something stored, sorted.
func (s *Store) Ledgers() [][32]byte {
	var ids [][32]byte
	for _, l := range s.sorted() {
		if l.Stats().Segments > 0 {
			ids = append(ids, l.id)
		}
	}
	return ids
}

// sorted is all ledgers by id.
func (s *Store) sorted() []*Ledger {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.SortedFunc(maps.Values(s.ledgers), func(a, b *Ledger) int { return bytes.Compare(a.id[:], b.id[:]) })
}

// Drop removes a ledger and all it has stored. Its handle is dead afterwards: every method fails or finds nothing.
// A crash in between leaves it as it was, or removed by the next Open.
func (s *Store) Drop(id [32]byte) error {
	if s.closed.Load() {
		return ErrClosed
	}
	s.mu.Lock()
	l := s.ledgers[id]
	delete(s.ledgers, id)
	s.mu.Unlock()
	if l == nil {
		return nil
	}
	l.commitMu.Lock()
	defer l.commitMu.Unlock()
	l.dropped.Store(true)

	dir := s.ledgerDir(id)
	if _, err := s.fs.Stat(dir); err == nil {
		// From here on the ledger is gone: after the rename is durable there is no way back, before it no change.
		if err := s.fs.Rename(dir, dir+dropSuffix); err != nil {
			return fmt.Errorf("removing ledger %s: %w", ledgerText(id), err)
		}
		if err := syncDir(s.fs, s.fs.PathJoin(s.dir, ledgersDir)); err != nil {
			return fmt.Errorf("removing ledger %s: %w", ledgerText(id), err)
		}
	} else if !oserror.IsNotExist(err) {
		return fmt.Errorf("removing ledger %s: %w", ledgerText(id), err)
	}
	s.handles.forget(segmentKey{dir: dir})
	s.mu.Lock()
	s.ledgers[id] = l // for finishDrop to find its number
	s.mu.Unlock()
	if err := s.finishDrop(id); err != nil {
		return fmt.Errorf("removing ledger %s: %w", ledgerText(id), err)
	}
	return nil
}

func (s *Store) ledgerDir(id [32]byte) string {
	return s.fs.PathJoin(s.dir, ledgersDir, ledgerText(id))
}

func (s *Store) newLedger(id [32]byte) *Ledger {
	return &Ledger{s: s, id: id, dir: s.ledgerDir(id)}
}

// Syncs counts the syncs of segments since Open: one for each commit.
func (s *Store) Syncs() int64 { return s.syncs.Load() }

// writable is the reason why the store takes no writes, if there is one.
func (s *Store) writable() error {
	if p := s.poison.Load(); p != nil {
		return *p
	}
	return s.index.err()
}
