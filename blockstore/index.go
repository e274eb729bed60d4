package blockstore

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync/atomic"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/bloom"
	"github.com/cockroachdb/pebble/v2/vfs"

	"fpnode/internal/car"
)

// index says where everything is. It is one pebble for all ledgers of a home, derived from the segments: it is written
// without a log of its own and without a sync, so after a crash it stands at some earlier commit, and what it lacks is
// replayed from there. Numbers in keys are big-endian, digests are cut to 20 bytes, [n] is the number of the ledger:
//
//	i id                     number of a ledger                                               4 bytes
//	m                        the highest number given so far                                  4 bytes
//	w digest [n]             wire block:   varints car, offset from the CAR's start, size
//	l [n] b digest           block:        varints car, offset in the plaintext CAR, size
//	l [n] c car              CAR:          name 32 ‖ wire 32 ‖ key id 32 ‖ varints, see appendCAR
//	l [n] n digest           name:         varint 1 + number of its CAR, 0 if only the name is known
//	l [n] s                  state:        how far the log is indexed, see appendState
//	l [n] t digest           tip:          as in the record
//	l [n] v key              note
//	d [n] key                what the ledger derives for itself (Derived)
//
// A state that names a place in a segment is written only after the sync of everything before that place.
type index struct {
	db    *pebble.DB
	fs    *cryptFS
	dirty atomic.Bool // something was written since Open
	*gate
}

const (
	keyLedger  = 'i'
	keyHighest = 'm'
	keyWire    = 'w'
	keyIn      = 'l'
	keyDerived = 'd'

	keyBlock = 'b'
	keyCAR   = 'c'
	keyName  = 'n'
	keyState = 's'
	keyTip   = 't'
	keyNote  = 'v'

	keyDigestBytes = 20
)

// openIndex opens the index in dir or makes it.
func openIndex(fs vfs.FS, dir string, v Vault, cacheBytes int64, log *slog.Logger) (*index, error) {
	x := &index{gate: newGate(log)}
	cache := pebble.NewCache(cacheBytes)
	defer cache.Unref() // pebble keeps its own reference
	x.fs = &cryptFS{FS: fs, vault: v, gate: x.gate, open: make(map[vfs.File]bool)}
	opts := &pebble.Options{
		FS:                          x.fs,
		Cache:                       cache,
		Logger:                      x.gate,
		FormatMajorVersion:          pebble.FormatNewest, // older ones need the system's clock at once
		DisableWAL:                  true,                // the segments are the log
		MemTableSize:                4 << 20,
		MemTableStopWritesThreshold: 4,
		L0CompactionThreshold:       4,
		L0StopWritesThreshold:       64,
		LBaseMaxBytes:               32 << 20,
		MaxOpenFiles:                96,
		CompactionConcurrencyRange:  func() (int, int) { return 1, 1 },
		EventListener: &pebble.EventListener{
			BackgroundError: x.backgroundError,
			FlushEnd:        func(i pebble.FlushInfo) { x.backgroundDone(i.Err) },
			CompactionEnd:   func(i pebble.CompactionInfo) { x.backgroundDone(i.Err) },
			DataCorruption:  func(i pebble.DataCorruptionInfo) { x.shut(i.Details) },
		},
	}
	for i := range opts.Levels {
		opts.Levels[i].FilterPolicy = bloom.FilterPolicy(10)
	}
	opts.ApplyCompressionSettings(func() pebble.DBCompressionSettings { return pebble.DBCompressionBalanced })
	if err := removeLogs(fs, dir); err != nil {
		return nil, fmt.Errorf("opening the index: %w", err)
	}
	db, err := pebble.Open(dir, opts)
	if err != nil {
		x.fs.closeAll()
		return nil, fmt.Errorf("opening the index: %w", err)
	}
	if x.db = db; x.err() != nil {
		return nil, errors.Join(errors.New("opening the index: it failed at once"), x.close())
	}
	x.opened.Store(true)
	return x, nil
}

// removeLogs removes pebble's write-ahead logs, which it makes although it does not use them. It would flush what is in
// them, nothing, and wait for that flush even if it fails again and again.
func removeLogs(fs vfs.FS, dir string) error {
	names, err := fs.List(dir)
	if err != nil {
		return err
	}
	for _, name := range names {
		if strings.HasSuffix(name, ".log") {
			if err := fs.Remove(fs.PathJoin(dir, name)); err != nil {
				return err
			}
		}
	}
	return nil
}

// close writes out what is in memory and closes. What cannot be written is replayed by the next Open.
func (x *index) close() error {
	close(x.closing)
	var err error
	if x.err() == nil && x.dirty.Load() {
		err = x.flush(context.Background())
	}
	err = errors.Join(err, x.db.Close())
	x.fs.closeAll()
	return err
}

// get returns a copy of a value.
func (x *index) get(key []byte) ([]byte, bool, error) {
	return get(x.db, key)
}

func get(r pebble.Reader, key []byte) ([]byte, bool, error) {
	v, closer, err := r.Get(key)
	if errors.Is(err, pebble.ErrNotFound) {
		return nil, false, nil
	}
	if err != nil {
		return nil, false, fmt.Errorf("reading the index: %w", err)
	}
	v = bytes.Clone(v)
	return v, true, closer.Close()
}

// commit applies a batch. It is not synced.
func (x *index) commit(b *pebble.Batch) error {
	if err := x.err(); err != nil {
		return err
	}
	x.dirty.Store(true)
	if err := b.Commit(pebble.NoSync); err != nil {
		return fmt.Errorf("writing the index: %w", err)
	}
	return nil
}

func (x *index) flush(ctx context.Context) error {
	flushed, err := x.db.AsyncFlush()
	if err != nil {
		return fmt.Errorf("flushing the index: %w", err)
	}
	select {
	case <-flushed:
		return nil
	case <-x.broken:
		return x.err()
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Keys.

func ledgerKey(id [32]byte) []byte { return append([]byte{keyLedger}, id[:]...) }

func keyspace(prefix byte, num uint32) []byte {
	return binary.BigEndian.AppendUint32(append(make([]byte, 0, 48), prefix), num)
}

func inKey(num uint32, kind byte) []byte { return append(keyspace(keyIn, num), kind) }

func digestKey(num uint32, kind byte, d string) []byte {
	return append(inKey(num, kind), d[:keyDigestBytes]...)
}

func carKey(num, no uint32) []byte {
	return binary.BigEndian.AppendUint32(inKey(num, keyCAR), no)
}

func wireKey(d string, num uint32) []byte {
	b := append(make([]byte, 0, 32), keyWire)
	b = append(b, d[:keyDigestBytes]...)
	return binary.BigEndian.AppendUint32(b, num)
}

// after is the first key behind all that begin with prefix.
func after(prefix []byte) []byte {
	end := bytes.Clone(prefix)
	for i := len(end) - 1; i >= 0; i-- {
		if end[i]++; end[i] != 0 {
			return end[:i+1]
		}
	}
	return nil
}

// Values.

// logState is how far a log reaches, and what is in it. The index keeps one for each ledger.
type logState struct {
	header segmentHeader // of the last segment; number 0: there is none
	end    int64         // of its last run
	seq    uint64        // of its last run
	chain  chainValue

	cars   uint32 // stored, and so the number of the next
	bytes  uint64 // sealed
	blocks uint64 // in all CARs, a block in two of them twice
}

func appendState(b []byte, s *logState) []byte {
	b = s.header.append(b)
	b = binary.BigEndian.AppendUint64(b, uint64(s.end))
	b = binary.BigEndian.AppendUint64(b, s.seq)
	b = append(b, s.chain[:]...)
	b = binary.BigEndian.AppendUint32(b, s.cars)
	b = binary.BigEndian.AppendUint64(b, s.bytes)
	return binary.BigEndian.AppendUint64(b, s.blocks)
}

func parseState(b []byte) (s logState, err error) {
	if len(b) != segmentHeaderBytes+8+8+tagBytes+4+8+8 {
		return s, errors.New("index: state of another length")
	}
	if s.header, err = parseSegmentHeader(b); err != nil {
		return s, fmt.Errorf("index: state: %w", err)
	}
	b = b[segmentHeaderBytes:]
	s.end = int64(binary.BigEndian.Uint64(b))
	s.seq = binary.BigEndian.Uint64(b[8:])
	s.chain = chainValue(b[16:])
	s.cars = binary.BigEndian.Uint32(b[32:])
	s.bytes = binary.BigEndian.Uint64(b[36:])
	s.blocks = binary.BigEndian.Uint64(b[44:])
	return s, nil
}

// carEntry is where a CAR is and what is needed to read from it.
type carEntry struct {
	name    [digestBytes]byte
	wire    [digestBytes]byte
	keyID   [32]byte
	seg     uint32
	run     int64 // offset of its run in the segment
	off     int64 // offset of the sealed bytes in the segment
	size    int64 // of the sealed bytes
	dataOff int64 // of the ciphertext in them
}

func (e *carEntry) ref() Ref {
	return Ref{Name: nameFromDigest(e.name[:]), Wire: wireFromDigest(e.wire[:], e.size), Size: e.size}
}

func appendCAR(b []byte, e *carEntry) []byte {
	b = append(b, e.name[:]...)
	b = append(b, e.wire[:]...)
	b = append(b, e.keyID[:]...)
	b = binary.AppendUvarint(b, uint64(e.seg))
	b = binary.AppendUvarint(b, uint64(e.run))
	b = binary.AppendUvarint(b, uint64(e.off-e.run))
	b = binary.AppendUvarint(b, uint64(e.size))
	return binary.AppendUvarint(b, uint64(e.dataOff))
}

func parseCAR(b []byte) (e carEntry, err error) {
	if len(b) < 3*32 {
		return e, errors.New("index: CAR entry is cut off")
	}
	copy(e.name[:], b)
	copy(e.wire[:], b[32:])
	copy(e.keyID[:], b[64:])
	var v [5]int64
	if err := uvarints(b[96:], v[:]); err != nil {
		return e, fmt.Errorf("index: CAR entry: %w", err)
	}
	e.seg, e.run, e.off, e.size, e.dataOff = uint32(v[0]), v[1], v[1]+v[2], v[3], v[4]
	return e, nil
}

// extent is a stretch of a CAR: of its plaintext for a block, from the start of its sealed bytes for a wire block.
type extent struct {
	car       uint32
	off, size int64
}

func appendExtent(b []byte, e extent) []byte {
	b = binary.AppendUvarint(b, uint64(e.car))
	b = binary.AppendUvarint(b, uint64(e.off))
	return binary.AppendUvarint(b, uint64(e.size))
}

func parseExtent(b []byte) (extent, error) {
	var v [3]int64
	if err := uvarints(b, v[:]); err != nil {
		return extent{}, fmt.Errorf("index: extent: %w", err)
	}
	return extent{uint32(v[0]), v[1], v[2]}, nil
}

// uvarints reads exactly len(dst) varints.
func uvarints(b []byte, dst []int64) error {
	for i := range dst {
		v, n := binary.Uvarint(b)
		if n <= 0 || v > 1<<62 {
			return errors.New("bad varint")
		}
		dst[i] = int64(v)
		b = b[n:]
	}
	if len(b) > 0 {
		return errors.New("bytes left over")
	}
	return nil
}

// apply adds one run to the index. Commit and replay both come here, so that a rebuilt index is the one that grew.
// st is the state before the run and becomes the state after it.
func apply(b *pebble.Batch, num uint32, st *logState, r *run, rec *record, keyIDs [][32]byte) error {
	var sets setter
	sets.b = b
	off := r.body()
	for i := range rec.cars {
		c := &rec.cars[i]
		no := st.cars
		e := carEntry{name: c.name, wire: c.wire, keyID: keyIDs[i], seg: st.header.number, run: r.off, off: off, size: c.size, dataOff: c.dataOff}
		sets.set(carKey(num, no), appendCAR(sets.value(), &e))
		sets.set(digestKey(num, keyName, string(c.name[:])), binary.AppendUvarint(sets.value(), uint64(no)+1))
		for j := range c.blocks {
			k := &c.blocks[j]
			sets.set(digestKey(num, keyBlock, string(k.digest[:])), appendExtent(sets.value(), extent{no, k.off, k.size}))
		}
		if len(c.nodes) == 0 {
			sets.set(wireKey(string(c.wire[:]), num), appendExtent(sets.value(), extent{no, 0, c.size}))
		}
		for j := 0; j < len(c.leaves); j += digestBytes {
			at := int64(j/digestBytes) * leafBytes
			sets.set(wireKey(string(c.leaves[j:j+digestBytes]), num), appendExtent(sets.value(), extent{no, at, min(leafBytes, c.size-at)}))
		}
		at := c.size
		for _, n := range c.nodes {
			sets.set(wireKey(n.digest, num), appendExtent(sets.value(), extent{no, at, int64(len(n.data))}))
			at += int64(len(n.data))
		}
		off += c.size + c.nodesLen()
		st.cars++
		st.bytes += uint64(c.size)
		st.blocks += uint64(len(c.blocks))
	}
	for d := rec.drops; len(d) > 0; d = d[digestBytes:] {
		sets.set(digestKey(num, keyName, string(d[:digestBytes])), binary.AppendUvarint(sets.value(), 0))
	}
	for d := rec.gone; len(d) > 0; d = d[digestBytes:] {
		sets.del(tipKey(num, string(d[:digestBytes])))
	}
	for _, m := range rec.tips {
		sets.set(tipKey(num, mustDigest(m.CID)), appendMeta(sets.value(), m))
	}
	for k, v := range rec.notes {
		if len(v) == 0 {
			sets.del(append(inKey(num, keyNote), k...))
			continue
		}
		sets.set(append(inKey(num, keyNote), k...), v)
	}
	st.end, st.seq, st.chain = r.end(), r.header.seq, r.chain
	return sets.err
}

// setState ends a batch of runs.
func setState(b *pebble.Batch, num uint32, st *logState) error {
	return b.Set(inKey(num, keyState), appendState(nil, st), nil)
}

// setter collects the first error of many writes and reuses one buffer for their values.
type setter struct {
	b   *pebble.Batch
	buf []byte
	err error
}

func (s *setter) value() []byte { return s.buf[:0] }

func (s *setter) set(key, value []byte) {
	if cap(value) > cap(s.buf) {
		s.buf = value
	}
	if err := s.b.Set(key, value, nil); err != nil && s.err == nil {
		s.err = err
	}
}

func (s *setter) del(key []byte) {
	if err := s.b.Delete(key, nil); err != nil && s.err == nil {
		s.err = err
	}
}

func tipKey(num uint32, d string) []byte { return append(inKey(num, keyTip), d...) }

// nameKey is the key of a name, and false for a CID that is none.
func nameKey(num uint32, n Name) ([]byte, bool) {
	d, ok := digest(n.Cid)
	if !ok || n.Type() != car.CodecName {
		return nil, false
	}
	return digestKey(num, keyName, d), true
}
