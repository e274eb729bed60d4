package blockstore

import (
	"bytes"
	"fmt"
	"iter"

	"github.com/cockroachdb/pebble/v2"
)

// Derived is a space of keys and values for what a ledger can compute from its blocks: views and indexes. It lies in
// the store's index, encrypted, and is written without a sync: after a crash it stands at some earlier batch, with all
// batches before that and none after, and never ahead of the commits made before the batch. It may also be empty, if
// the index had to be made anew. So a batch should say what it belongs to, and the reader of a Derived that is behind
// go on from there.
type Derived struct {
	l *Ledger
	r func() (pebble.Reader, error) // the database or a snapshot
}

// KV is one entry.
type KV struct {
	Key, Value []byte // valid until the iteration goes on
}

// Derived returns the ledger's derived space.
func (l *Ledger) Derived() *Derived {
	return &Derived{l: l, r: func() (pebble.Reader, error) { return l.s.index.db, nil }}
}

// space is the prefix of all keys. A ledger without a commit has none yet, and an empty space.
func (d *Derived) space() ([]byte, error) {
	num, err := d.l.num()
	if err != nil || num == 0 {
		return nil, err
	}
	return keyspace(keyDerived, num), nil
}

// Get returns a copy of the value of key.
func (d *Derived) Get(key []byte) ([]byte, bool, error) {
	space, err := d.space()
	if err != nil || space == nil {
		return nil, false, err
	}
	r, err := d.r()
	if err != nil {
		return nil, false, err
	}
	return get(r, append(space, key...))
}

// Scan walks the entries with lo ≤ key < hi in the order of their keys, or the reverse, as they are at the start of the
// iteration. A nil hi means no bound.
func (d *Derived) Scan(lo, hi []byte, reverse bool) iter.Seq2[KV, error] {
	return func(yield func(KV, error) bool) {
		space, err := d.space()
		if err != nil {
			yield(KV{}, err)
			return
		}
		if space == nil {
			return
		}
		r, err := d.r()
		if err != nil {
			yield(KV{}, err)
			return
		}
		opts := &pebble.IterOptions{LowerBound: append(bytes.Clone(space), lo...), UpperBound: after(space)}
		if hi != nil {
			opts.UpperBound = append(bytes.Clone(space), hi...)
		}
		it, err := r.NewIter(opts)
		if err != nil {
			yield(KV{}, fmt.Errorf("reading derived data: %w", err))
			return
		}
		defer it.Close()
		first, next := it.First, it.Next
		if reverse {
			first, next = it.Last, it.Prev
		}
		for ok := first(); ok; ok = next() {
			v, err := it.ValueAndErr()
			if err != nil {
				yield(KV{}, fmt.Errorf("reading derived data: %w", err))
				return
			}
			if !yield(KV{it.Key()[len(space):], v}, nil) {
				return
			}
		}
		if err := it.Error(); err != nil {
			yield(KV{}, fmt.Errorf("reading derived data: %w", err))
		}
	}
}

// Snapshot returns the space as it is now, to read from only, for several reads that must agree. Close it soon: it
// keeps what is replaced meanwhile on disk.
func (d *Derived) Snapshot() *Snapshot {
	snap := d.l.s.index.db.NewSnapshot()
	return &Snapshot{Derived{l: d.l, r: func() (pebble.Reader, error) { return snap, nil }}, snap}
}

// Snapshot is a Derived at one moment. It has Get and Scan.
type Snapshot struct {
	d    Derived
	snap *pebble.Snapshot
}

// Get is Derived.Get at the moment of the snapshot.
func (s *Snapshot) Get(key []byte) ([]byte, bool, error) { return s.d.Get(key) }

// Scan is Derived.Scan at the moment of the snapshot.
func (s *Snapshot) Scan(lo, hi []byte, reverse bool) iter.Seq2[KV, error] {
	return s.d.Scan(lo, hi, reverse)
}

// Close ends the snapshot.
func (s *Snapshot) Close() error { return s.snap.Close() }

// Reset empties the space.
func (d *Derived) Reset() error {
	b := d.NewBatch()
	defer b.Close()
	b.DeleteRange(nil, nil)
	return b.Commit()
}

// NewBatch starts a batch of changes, of which all become visible at once or none. It is not safe for concurrent use.
func (d *Derived) NewBatch() *DerivedBatch {
	return &DerivedBatch{d: d, b: d.l.s.index.db.NewBatch()}
}

// DerivedBatch is a set of changes to a Derived. Later ones win. The first error sticks and comes out of Commit.
type DerivedBatch struct {
	d     *Derived
	b     *pebble.Batch
	space []byte
	err   error
}

// key returns the whole key, valid until the next one.
func (b *DerivedBatch) key(key []byte) []byte {
	if b.space == nil && b.err == nil {
		// The first batch may come before the first commit.
		num, err := b.d.l.ensureNumber()
		if b.err = err; err == nil {
			b.space = keyspace(keyDerived, num)
		}
	}
	return append(b.space[:len(b.space):len(b.space)], key...)
}

// Set gives key a value. Both are copied.
func (b *DerivedBatch) Set(key, value []byte) {
	k := b.key(key)
	if b.err == nil {
		b.err = b.b.Set(k, value, nil)
	}
}

// Delete removes key, if it is there.
func (b *DerivedBatch) Delete(key []byte) {
	k := b.key(key)
	if b.err == nil {
		b.err = b.b.Delete(k, nil)
	}
}

// DeleteRange removes the keys with lo ≤ key < hi. A nil hi means no bound.
func (b *DerivedBatch) DeleteRange(lo, hi []byte) {
	from := b.key(lo)
	if b.err != nil {
		return
	}
	to := after(b.space)
	if hi != nil {
		to = b.key(hi)
	}
	b.err = b.b.DeleteRange(from, to, nil)
}

// Len is the size of the batch in bytes.
func (b *DerivedBatch) Len() int { return b.b.Len() }

// Commit makes the changes visible. The batch is of no use afterwards.
func (b *DerivedBatch) Commit() error {
	if b.err != nil {
		return fmt.Errorf("writing derived data: %w", b.err)
	}
	return b.d.l.s.index.commit(b.b)
}

// Close releases the batch. It must be called, after Commit too.
func (b *DerivedBatch) Close() error { return b.b.Close() }
