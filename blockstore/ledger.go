package blockstore

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/cockroachdb/errors/oserror"
	"github.com/cockroachdb/pebble/v2"
)

// Ledger is the log and the blocks of one ledger. Get it from Store.Ledger.
type Ledger struct {
	s      *Store
	id     [32]byte
	dir    string
	sealer Sealer // set by the first Store.Ledger

	openMu sync.Mutex
	err    error // why the log cannot be used, if it cannot

	dropped atomic.Bool
	number  atomic.Uint32 // in the index, 0 before the first commit

	// commitMu is held through a commit or replay, the I/O included. It guards the fields down to mu.
	commitMu sync.Mutex
	state    logState
	sealing  segmentSealer // of state.header
	roll     bool          // the last segment ends in bytes that are no run: go on in another

	mu       sync.RWMutex
	tips     []Meta // sorted by CID bytes
	stats    Stats
	onCommit func(cars []Ref)
}

// ID is the ledger's id.
func (l *Ledger) ID() [32]byte { return l.id }

// Tips are the metas that nobody has replaced, sorted by the bytes of their CIDs. The slice is the caller's; what the
// metas hold must not be changed.
func (l *Ledger) Tips() []Meta {
	l.mu.RLock()
	defer l.mu.RUnlock()
	return slices.Clone(l.tips)
}

// OnCommit has f called after every commit from now on, with the refs of the CARs it added, when commit and tips are
// durable and readable. There is one f; nil ends the calls. It runs inside Commit, so it must neither block nor commit.
func (l *Ledger) OnCommit(f func(cars []Ref)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.onCommit = f
}

// Note returns a note as the last commit that named it left it, and nil if there is none.
func (l *Ledger) Note(key string) ([]byte, error) {
	num, err := l.num()
	if err != nil || num == 0 {
		return nil, err
	}
	v, _, err := l.s.index.get(append(inKey(num, keyNote), key...))
	return v, err
}

// Stats is what a ledger holds.
type Stats struct {
	Cars     int64 // sealed CARs
	Bytes    int64 // of them, sealed
	Blocks   int64 // in them; a block in two CARs counts twice
	Segments int   // files of the log
}

// Stats counts what the ledger holds, without reading it.
func (l *Ledger) Stats() Stats {
	l.mu.RLock()
	defer l.mu.RUnlock()
	return l.stats
}

func (s *logState) stats() Stats {
	return Stats{Cars: int64(s.cars), Bytes: int64(s.bytes), Blocks: int64(s.blocks), Segments: int(s.header.number)}
}

// num is the ledger's number in the index, 0 if nothing was ever committed.
func (l *Ledger) num() (uint32, error) {
	if l.s.closed.Load() {
		return 0, ErrClosed
	}
	if l.dropped.Load() {
		return 0, fmt.Errorf("ledger was removed: %w", ErrNotFound)
	}
	return l.number.Load(), nil
}

// ensureNumber gives the ledger a number in the index, if it has none, and returns it.
func (l *Ledger) ensureNumber() (uint32, error) {
	if n, err := l.num(); n != 0 || err != nil {
		return n, err
	}
	l.s.mu.Lock()
	defer l.s.mu.Unlock()
	if n := l.number.Load(); n != 0 {
		return n, nil
	}
	n := l.s.highest + 1
	v := binary.BigEndian.AppendUint32(nil, n)
	b := l.s.index.db.NewBatch()
	defer b.Close()
	if err := errors.Join(b.Set(ledgerKey(l.id), v, nil), b.Set([]byte{keyHighest}, v, nil)); err != nil {
		return 0, fmt.Errorf("numbering a ledger: %w", err)
	}
	if err := l.s.index.commit(b); err != nil {
		return 0, fmt.Errorf("numbering a ledger: %w", err)
	}
	l.s.highest = n
	l.s.byNumber[n] = l
	l.number.Store(n)
	return n, nil
}

// segments lists the segment numbers of the ledger's directory in order, none if it does not exist.
func (l *Ledger) segments() ([]uint32, error) {
	names, err := l.s.fs.List(l.dir)
	if oserror.IsNotExist(err) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var numbers []uint32
	for _, name := range names {
		if n, ok := parseSegmentName(name); ok {
			numbers = append(numbers, n)
		} else {
			l.s.log.Warn("not a segment", "ledger", ledgerText(l.id), "file", name)
		}
	}
	slices.Sort(numbers)
	return numbers, nil
}

func (l *Ledger) segmentPath(n uint32) string { return l.s.fs.PathJoin(l.dir, segmentName(n)) }

// resolve completes the refs of a meta's group from what is stored.
func (l *Ledger) resolve(num uint32, m *Meta) error {
	for i := range m.Group {
		r, ok, err := l.refOf(num, m.Group[i].Name)
		if err != nil {
			return err
		}
		if ok {
			m.Group[i] = r
		} else {
			m.Group[i] = Ref{Name: m.Group[i].Name}
		}
	}
	return nil
}

// loadTips reads the tips from the index.
func (l *Ledger) loadTips() error {
	num := l.number.Load()
	prefix := inKey(num, keyTip)
	it, err := l.s.index.db.NewIter(&pebble.IterOptions{LowerBound: prefix, UpperBound: after(prefix)})
	if err != nil {
		return fmt.Errorf("reading tips: %w", err)
	}
	defer it.Close()
	var tips []Meta
	for it.First(); it.Valid(); it.Next() {
		m, err := parseTip(it.Value())
		if err != nil {
			return fmt.Errorf("reading tips: %w", err)
		}
		if err := l.resolve(num, &m); err != nil {
			return fmt.Errorf("reading tips: %w", err)
		}
		tips = append(tips, m)
	}
	if err := it.Error(); err != nil {
		return fmt.Errorf("reading tips: %w", err)
	}
	sortMetas(tips)
	l.mu.Lock()
	l.tips, l.stats = tips, l.state.stats()
	l.mu.Unlock()
	return nil
}
