package blockstore

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"iter"
	"sync/atomic"

	"github.com/cockroachdb/pebble/v2"
	"github.com/ipfs/go-cid"
	"github.com/multiformats/go-multihash"
)

// Block returns the bytes of a block, which hash to its CID: one look into the index, one ReadAt, one decryption, one
// hash. The error is ErrNotFound or, if the bytes are damaged, a *CorruptError.
func (l *Ledger) Block(ctx context.Context, c cid.Cid) ([]byte, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	num, d, x, err := l.place(c)
	if err != nil {
		return nil, err
	}
	e, err := l.s.carAt(num, x.car)
	if err != nil {
		return nil, err
	}
	b := make([]byte, x.size)
	off := e.off + e.dataOff + x.off
	if err := l.readAt(e.seg, b, off); err != nil {
		return nil, fmt.Errorf("block %s: %w", c, err)
	}
	if err := l.sealer.DecryptAt(e.keyID, ivOf(string(e.name[:])), x.off, b); err != nil {
		return nil, fmt.Errorf("block %s: %w", c, err)
	}
	if sum := sha256.Sum256(b); string(sum[:]) != d {
		return nil, l.corrupt(e.seg, off, adviceRestore, "block %s has another hash", c)
	}
	return b, nil
}

// Has reports whether a block is stored. It reads the index only.
func (l *Ledger) Has(c cid.Cid) (bool, error) {
	_, err := l.Size(c)
	if errors.Is(err, ErrNotFound) {
		return false, nil
	}
	return err == nil, err
}

// Size is the number of bytes of a block, or ErrNotFound. It reads the index only.
func (l *Ledger) Size(c cid.Cid) (int64, error) {
	_, _, x, err := l.place(c)
	return x.size, err
}

// place finds a block in the index: the ledger's number there, the block's digest, and where it is. The error is
// ErrNotFound or that of the index.
func (l *Ledger) place(c cid.Cid) (num uint32, d string, x extent, err error) {
	if num, err = l.num(); err != nil {
		return 0, "", extent{}, err
	}
	d, ok := digest(c)
	if ok {
		x, ok, err = l.s.extent(digestKey(num, keyBlock, d))
	}
	if err == nil && !ok {
		err = fmt.Errorf("block %s: %w", c, ErrNotFound)
	}
	if err != nil {
		return 0, "", extent{}, err
	}
	return num, d, x, nil
}

// Ref completes a name. It is false if the store does not hold the CAR's bytes.
func (l *Ledger) Ref(n Name) (Ref, bool, error) {
	num, err := l.num()
	if err != nil {
		return Ref{}, false, err
	}
	return l.refOf(num, n)
}

func (l *Ledger) refOf(num uint32, n Name) (Ref, bool, error) {
	no, held, _, err := l.carNumber(num, n)
	if err != nil || !held {
		return Ref{}, false, err
	}
	e, err := l.s.carAt(num, no)
	if err != nil {
		return Ref{}, false, err
	}
	if r := e.ref(); r.Name == n {
		return r, true, nil
	}
	return Ref{}, false, nil
}

// RefByWire completes a wire name. It is false if the store does not hold the CAR.
func (l *Ledger) RefByWire(w Wire) (Ref, bool, error) {
	num, err := l.num()
	if err != nil {
		return Ref{}, false, err
	}
	d, ok := digest(w.Cid)
	if !ok {
		return Ref{}, false, nil
	}
	x, ok, err := l.s.extent(wireKey(d, num))
	if err != nil || !ok {
		return Ref{}, false, err
	}
	e, err := l.s.carAt(num, x.car)
	if err != nil {
		return Ref{}, false, err
	}
	if r := e.ref(); r.Wire == w { // else it is a leaf or node of one
		return r, true, nil
	}
	return Ref{}, false, nil
}

// Known reports whether a CAR is stored or remembered by name. An index that cannot be read knows nothing, which costs
// a transfer and loses nothing.
func (l *Ledger) Known(n Name) bool {
	num, err := l.num()
	if err != nil {
		return false
	}
	_, known, err := l.lookupName(num, n)
	if err != nil {
		l.s.log.Error("cannot tell whether a CAR is known", "ledger", ledgerText(l.id), "err", err)
	}
	return known
}

// lookupName says whether the bytes of a CAR are held, and whether its name is known at all.
func (l *Ledger) lookupName(num uint32, n Name) (held, known bool, err error) {
	_, held, known, err = l.carNumber(num, n)
	return held, known, err
}

func (l *Ledger) carNumber(num uint32, n Name) (no uint32, held, known bool, err error) {
	key, ok := nameKey(num, n)
	if !ok || num == 0 {
		return 0, false, false, nil
	}
	v, ok, err := l.s.index.get(key)
	if err != nil || !ok {
		return 0, false, false, err
	}
	no1, size := binary.Uvarint(v)
	if size != len(v) || no1 > 1<<32 {
		return 0, false, false, errors.New("index: bad name entry")
	}
	return uint32(no1 - 1), no1 > 0, true, nil
}

// Refs lists the stored CARs in the order they were committed, as of the call.
func (l *Ledger) Refs() iter.Seq2[Ref, error] {
	return func(yield func(Ref, error) bool) {
		num, err := l.num()
		if err != nil {
			yield(Ref{}, err)
			return
		}
		prefix := inKey(num, keyCAR)
		it, err := l.s.index.db.NewIter(&pebble.IterOptions{LowerBound: prefix, UpperBound: after(prefix)})
		if err != nil {
			yield(Ref{}, fmt.Errorf("listing CARs: %w", err))
			return
		}
		defer it.Close()
		for it.First(); it.Valid(); it.Next() {
			e, err := parseCAR(it.Value())
			if err != nil {
				yield(Ref{}, err)
				return
			}
			if !yield(e.ref(), nil) {
				return
			}
		}
		if err := it.Error(); err != nil {
			yield(Ref{}, fmt.Errorf("listing CARs: %w", err))
		}
	}
}

// Sealed returns a stored CAR as others take it. Its bytes have been checked against the wire name. The error is
// ErrNotFound or, if they are damaged, a *CorruptError.
func (l *Ledger) Sealed(ctx context.Context, ref Ref) ([]byte, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	num, err := l.num()
	if err != nil {
		return nil, err
	}
	no, held, _, err := l.carNumber(num, ref.Name)
	if err != nil {
		return nil, err
	}
	if !held {
		return nil, fmt.Errorf("CAR %s: %w", ref.Wire, ErrNotFound)
	}
	e, err := l.s.carAt(num, no)
	if err != nil {
		return nil, err
	}
	return l.sealedAt(e)
}

func (l *Ledger) sealedAt(e *carEntry) ([]byte, error) {
	want := e.ref()
	b := make([]byte, e.size)
	if err := l.readAt(e.seg, b, e.off); err != nil {
		return nil, fmt.Errorf("CAR %s: %w", want.Wire, err)
	}
	if WireOf(b) != want.Wire {
		return nil, l.corrupt(e.seg, e.off, adviceRestore, "CAR %s has another hash", want.Wire)
	}
	return b, nil
}

// readAt reads from a segment. A segment that is too short is damaged: the index knows only what was synced.
func (l *Ledger) readAt(segment uint32, b []byte, off int64) error {
	f, err := l.s.handles.get(segmentKey{l.dir, segment}, false)
	if err != nil {
		return err
	}
	defer l.s.handles.release(f)
	n, err := f.ReadAt(b, off)
	if n == len(b) {
		return nil
	}
	if err == nil || isEOF(err) {
		return l.corrupt(segment, off+int64(n), adviceRestore, "it ends too early")
	}
	return err
}

// WireBlock returns the bytes behind a multihash that a bitswap peer may ask for: a sealed CAR of up to 1 MiB, or a
// leaf or node of a larger one, of any ledger. They are read from the segment and hash to it. The error is ErrNotFound
// or, if all copies are damaged, a *CorruptError.
func (s *Store) WireBlock(mh multihash.Multihash) ([]byte, error) {
	var damage error
	for at, err := range s.wire(mh) {
		if err != nil {
			return nil, err
		}
		b := make([]byte, at.size)
		err = at.l.readAt(at.e.seg, b, at.e.off+at.off)
		if err == nil {
			if sum := sha256.Sum256(b); string(sum[:]) == string(mh[2:]) {
				return b, nil
			}
			err = at.l.corrupt(at.e.seg, at.e.off+at.off, adviceRestore, "wire block has another hash")
		}
		damage = err
	}
	if damage != nil {
		return nil, damage
	}
	return nil, fmt.Errorf("wire block: %w", ErrNotFound)
}

// WireSize is the size of what WireBlock would return, or ErrNotFound. It reads the index only.
func (s *Store) WireSize(mh multihash.Multihash) (int64, error) {
	for at, err := range s.wire(mh) {
		return at.size, err
	}
	return 0, fmt.Errorf("wire block: %w", ErrNotFound)
}

// wireAt is where a wire block is.
type wireAt struct {
	l *Ledger
	e *carEntry
	extent
}

// wire finds a wire block in all ledgers that have it.
func (s *Store) wire(mh multihash.Multihash) iter.Seq2[wireAt, error] {
	return func(yield func(wireAt, error) bool) {
		if len(mh) != 2+digestBytes || mh[0] != multihash.SHA2_256 || mh[1] != digestBytes {
			return
		}
		if s.closed.Load() {
			yield(wireAt{}, ErrClosed)
			return
		}
		prefix := wireKey(string(mh[2:]), 0)[:1+keyDigestBytes]
		it, err := s.index.db.NewIter(&pebble.IterOptions{LowerBound: prefix, UpperBound: after(prefix)})
		if err != nil {
			yield(wireAt{}, fmt.Errorf("reading the index: %w", err))
			return
		}
		defer it.Close()
		for it.First(); it.Valid(); it.Next() {
			num := be32(it.Key()[len(prefix):])
			x, err := parseExtent(it.Value())
			if err != nil {
				yield(wireAt{}, err)
				return
			}
			s.mu.Lock()
			l := s.byNumber[num]
			s.mu.Unlock()
			if l == nil || l.dropped.Load() {
				continue
			}
			e, err := s.carAt(num, x.car)
			if err != nil {
				yield(wireAt{}, err)
				return
			}
			if !yield(wireAt{l, e, x}, nil) {
				return
			}
		}
		if err := it.Error(); err != nil {
			yield(wireAt{}, fmt.Errorf("reading the index: %w", err))
		}
	}
}

// Blocks lists every distinct block once, as of the call, in the order of the commits that brought them last.
func (l *Ledger) Blocks(ctx context.Context) iter.Seq2[cid.Cid, error] {
	return func(yield func(cid.Cid, error) bool) {
		if _, err := l.num(); err != nil {
			yield(cid.Undef, err)
			return
		}
		l.commitMu.Lock()
		num, st := l.number.Load(), l.state
		snap := l.s.index.db.NewSnapshot()
		l.commitMu.Unlock()
		defer snap.Close()

		no := uint32(0)
		for r, err := range l.records(ctx, st) {
			if err != nil {
				yield(cid.Undef, err)
				return
			}
			for i := range r.cars {
				for j := range r.cars[i].blocks {
					k := &r.cars[i].blocks[j]
					// A block may be in several CARs, even twice in one: the one that the index names counts.
					v, ok, err := get(snap, digestKey(num, keyBlock, string(k.digest[:])))
					if err != nil {
						yield(cid.Undef, err)
						return
					}
					if x, err := parseExtent(v); !ok || err != nil {
						yield(cid.Undef, errors.Join(errors.New("index: a block is missing"), err))
						return
					} else if x.car != no || x.off != k.off {
						continue
					}
					if !yield(k.cid(), nil) {
						return
					}
				}
				no++
			}
		}
	}
}

// BlocksOf lists the blocks of a stored CAR in their order in it, or ErrNotFound. It does not read the CAR.
func (l *Ledger) BlocksOf(ctx context.Context, n Name) ([]cid.Cid, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	num, err := l.num()
	if err != nil {
		return nil, err
	}
	no, held, _, err := l.carNumber(num, n)
	if err != nil {
		return nil, err
	}
	if !held {
		return nil, fmt.Errorf("CAR: %w", ErrNotFound)
	}
	e, err := l.s.carAt(num, no)
	if err != nil {
		return nil, err
	}
	h, err := l.readHeader(e.seg)
	if err != nil {
		return nil, l.damaged(e.seg, 0, err)
	}
	sealing, err := newSegmentSealer(l.s.cfg.Vault, &h)
	if err != nil {
		return nil, err
	}
	f, err := l.s.handles.get(segmentKey{l.dir, e.seg}, false)
	if err != nil {
		return nil, err
	}
	defer l.s.handles.release(f)
	size, err := sizeOf(f)
	if err != nil {
		return nil, err
	}
	_, rec, err := l.readRecord(f, &sealing, e.seg, e.run, size)
	if err != nil {
		return nil, err
	}
	for i := range rec.cars {
		if c := &rec.cars[i]; c.name == e.name {
			list := make([]cid.Cid, len(c.blocks))
			for j := range c.blocks {
				list[j] = c.blocks[j].cid()
			}
			return list, nil
		}
	}
	return nil, l.corrupt(e.seg, e.run, adviceIndex, "the run lacks a CAR that was indexed")
}

// readRecord reads a run that must be good.
func (l *Ledger) readRecord(f io.ReaderAt, s *segmentSealer, segment uint32, off, limit int64) (run, record, error) {
	r, err := readRun(f, s, off, limit)
	if err != nil {
		return r, record{}, l.damaged(segment, off, err)
	}
	rec, err := parseRecord(r.meta, r.header.bodyLen)
	if err != nil {
		return r, record{}, l.corrupt(segment, off, adviceRestore, "%v", err)
	}
	return r, rec, nil
}

// damaged makes a bad run, where there must be a good one, a *CorruptError.
func (l *Ledger) damaged(segment uint32, off int64, err error) error {
	var bad badRun
	if errors.As(err, &bad) {
		return l.corrupt(segment, off, adviceRestore, "%v", bad)
	}
	return err
}

// records reads the log up to st, without the CARs.
func (l *Ledger) records(ctx context.Context, st logState) iter.Seq2[*record, error] {
	return func(yield func(*record, error) bool) {
		end := st.end
		ends := map[uint32]int64{}
		for n := st.header.number; n > 0; n-- {
			h, err := l.readHeader(n)
			if err != nil {
				yield(nil, l.damaged(n, 0, err))
				return
			}
			ends[n], end = end, h.prevEnd
		}
		for n := uint32(1); n <= st.header.number; n++ {
			if !l.segmentRecords(ctx, n, ends[n], yield) {
				return
			}
		}
	}
}

func (l *Ledger) segmentRecords(ctx context.Context, n uint32, end int64, yield func(*record, error) bool) bool {
	h, err := l.readHeader(n)
	if err != nil {
		return yield(nil, l.damaged(n, 0, err)) && false
	}
	sealing, err := newSegmentSealer(l.s.cfg.Vault, &h)
	if err != nil {
		return yield(nil, err) && false
	}
	f, err := l.s.handles.get(segmentKey{l.dir, n}, false)
	if err != nil {
		return yield(nil, err) && false
	}
	defer l.s.handles.release(f)
	for off := int64(segmentHeaderBytes); off < end; {
		if err := ctx.Err(); err != nil {
			return yield(nil, err) && false
		}
		r, rec, err := l.readRecord(f, &sealing, n, off, end)
		if err != nil {
			return yield(nil, err) && false
		}
		if !yield(&rec, nil) {
			return false
		}
		off = r.end()
	}
	return true
}

// extent reads an index entry.
func (s *Store) extent(key []byte) (extent, bool, error) {
	v, closer, err := s.index.db.Get(key)
	if errors.Is(err, pebble.ErrNotFound) {
		return extent{}, false, nil
	}
	if err != nil {
		return extent{}, false, fmt.Errorf("reading the index: %w", err)
	}
	x, err := parseExtent(v)
	return x, err == nil, errors.Join(err, closer.Close())
}

// carTable remembers where CARs are. Each slot holds the entry that was asked for last.
type carTable [carTableSlots]atomic.Pointer[tableEntry]

type tableEntry struct {
	ledger, car uint32
	carEntry
}

// carAt is the entry of a CAR that the index has.
func (s *Store) carAt(num, no uint32) (*carEntry, error) {
	slot := &s.table[(no+num*2654435761)%carTableSlots]
	if t := slot.Load(); t != nil && t.ledger == num && t.car == no {
		return &t.carEntry, nil
	}
	v, ok, err := s.index.get(carKey(num, no))
	if err != nil {
		return nil, err
	}
	if !ok {
		return nil, errors.New("index: a CAR is missing")
	}
	t := &tableEntry{ledger: num, car: no}
	if t.carEntry, err = parseCAR(v); err != nil {
		return nil, err
	}
	slot.Store(t)
	return &t.carEntry, nil
}

// countNotes is the number of notes after a change.
func (l *Ledger) countNotes(change map[string][]byte) (int, error) {
	prefix := inKey(l.number.Load(), keyNote)
	it, err := l.s.index.db.NewIter(&pebble.IterOptions{LowerBound: prefix, UpperBound: after(prefix)})
	if err != nil {
		return 0, fmt.Errorf("reading notes: %w", err)
	}
	defer it.Close()
	n := 0
	for _, v := range change {
		if len(v) > 0 {
			n++
		}
	}
	for it.First(); it.Valid(); it.Next() {
		if _, changed := change[string(it.Key()[len(prefix):])]; !changed {
			n++
		}
	}
	return n, it.Error()
}
