package blockstore

import (
	"context"
	"encoding/binary"
	"fmt"
	"time"

	"github.com/cockroachdb/pebble/v2"
)

func be32(b []byte) uint32 { return binary.BigEndian.Uint32(b) }

// finishDrop removes what is left of a ledger whose directory has been renamed: first what the index has, and only
// when that is on disk the segments, so that a crash leaves something to find and finish. A ledger of the same id may
// exist again meanwhile: it loses its part of the index, which the next Open makes anew.
func (s *Store) finishDrop(id [32]byte) error {
	s.mu.Lock()
	l := s.ledgers[id]
	delete(s.ledgers, id)
	if l != nil {
		delete(s.byNumber, l.number.Load())
	}
	s.mu.Unlock()
	if l != nil && l.number.Load() != 0 {
		b := s.index.db.NewBatch()
		defer b.Close()
		if err := s.dropIndex(b, l.number.Load()); err != nil {
			return err
		}
		if err := b.Delete(ledgerKey(id), nil); err != nil {
			return err
		}
		if err := s.index.commit(b); err != nil {
			return err
		}
		ctx, cancel := context.WithTimeout(context.Background(), dropTimeout)
		defer cancel()
		if err := s.index.flush(ctx); err != nil {
			return err
		}
	}
	if err := s.fs.RemoveAll(s.ledgerDir(id) + dropSuffix); err != nil {
		return err
	}
	return syncDir(s.fs, s.fs.PathJoin(s.dir, ledgersDir))
}

// dropTimeout is how long the removal of a ledger waits for the index, which may wait for room on the disk.
const dropTimeout = 10 * time.Second

// dropIndex deletes all that the index knows of a ledger but its number.
func (s *Store) dropIndex(b *pebble.Batch, num uint32) error {
	for _, prefix := range []byte{keyIn, keyDerived} {
		space := keyspace(prefix, num)
		if err := b.DeleteRange(space, after(space), nil); err != nil {
			return err
		}
	}
	it, err := s.index.db.NewIter(&pebble.IterOptions{LowerBound: []byte{keyWire}, UpperBound: []byte{keyWire + 1}})
	if err != nil {
		return fmt.Errorf("reading the index: %w", err)
	}
	for it.First(); it.Valid(); it.Next() {
		if k := it.Key(); be32(k[len(k)-4:]) == num {
			if err := b.Delete(k, nil); err != nil {
				it.Close()
				return err
			}
		}
	}
	return it.Close()
}
