package blockstore

import (
	"bytes"
	"fmt"

	"github.com/cockroachdb/pebble/v2"
)

// Runs are the offsets of the runs in the bytes of an undamaged segment, and of its end.
func Runs(segment []byte) []int {
	offs := []int{segmentHeaderBytes}
	for off := segmentHeaderBytes; off < len(segment); {
		h, err := parseRunHeader(segment[off:])
		if err != nil {
			panic(err)
		}
		off += int(h.size())
		offs = append(offs, off)
	}
	return offs
}

// LedgerText is a ledger id as it stands in directory names.
func LedgerText(id [32]byte) string { return ledgerText(id) }

// DumpIndex is every entry of the index but what ledgers derive, in readable form.
func (s *Store) DumpIndex() map[string]string {
	it, err := s.index.db.NewIter(nil)
	if err != nil {
		panic(err)
	}
	defer it.Close()
	m := make(map[string]string)
	for it.First(); it.Valid(); it.Next() {
		if it.Key()[0] != keyDerived {
			m[fmt.Sprintf("%q", it.Key())] = fmt.Sprintf("%x", it.Value())
		}
	}
	return m
}

// Reopen does for one ledger what Open does for all, with the index as it is or without what it has of the ledger. It
// is how a test tries thousands of damaged logs.
func (s *Store) Reopen(id [32]byte, sealer Sealer, index bool) (*Ledger, error) {
	s.mu.Lock()
	old := s.ledgers[id]
	s.mu.Unlock()
	s.handles.forget(segmentKey{dir: s.ledgerDir(id)})
	l := s.newLedger(id)
	l.sealer = sealer
	if old != nil && index {
		l.number.Store(old.number.Load())
	}
	s.mu.Lock()
	s.ledgers[id] = l
	if old != nil {
		delete(s.byNumber, old.number.Load()) // without the index the ledger gets another number
	}
	if n := l.number.Load(); n != 0 {
		s.byNumber[n] = l
	}
	s.mu.Unlock()
	l.err = l.replay()
	return l, l.err
}

// Tamper changes or removes an index entry of a ledger, of the kind with this key letter. The result puts it back.
// Which of the wire entries comes first, a CAR's, a leaf's or a node's, is chance.
func (s *Store) Tamper(id [32]byte, kind byte, remove bool) (restore func()) {
	s.mu.Lock()
	num := s.ledgers[id].number.Load()
	s.mu.Unlock()
	lo, hi := inKey(num, kind), after(inKey(num, kind))
	if kind == keyWire {
		lo, hi = []byte{keyWire}, []byte{keyWire + 1}
	}
	it, err := s.index.db.NewIter(&pebble.IterOptions{LowerBound: lo, UpperBound: hi})
	if err != nil {
		panic(err)
	}
	defer it.Close()
	var key, value []byte
	for it.First(); it.Valid(); it.Next() {
		if kind != keyWire || be32(it.Key()[len(it.Key())-4:]) == num {
			key, value = bytes.Clone(it.Key()), bytes.Clone(it.Value())
			break
		}
	}
	if key == nil {
		panic("nothing to tamper with")
	}
	if remove {
		err = s.index.db.Delete(key, pebble.NoSync)
	} else {
		bad := bytes.Clone(value)
		bad[len(bad)-1] ^= 1
		err = s.index.db.Set(key, bad, pebble.NoSync)
	}
	if err != nil {
		panic(err)
	}
	return func() {
		if err := s.index.db.Set(key, value, pebble.NoSync); err != nil {
			panic(err)
		}
	}
}
