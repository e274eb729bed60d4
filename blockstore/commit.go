package blockstore

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"slices"
	"strings"
	"sync"

	"github.com/cockroachdb/errors/oserror"
	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/ipfs/go-cid"

	"fpnode/internal/car"
	"fpnode/internal/planted"
)

// Batch is what one commit stores, all of it or nothing.
type Batch struct {
	// CARs become readable. One whose Name is stored already changes nothing.
	CARs []CAR
	// Drop are CARs known by name whose bytes are not kept, because they bring no block.
	Drop []Name
	// Tips is the complete new set of tips. Nil leaves the tips as they are; a ledger that has tips keeps at least one.
	Tips []Meta
	// Notes are small values of the ledger's own that change together with the rest. A nil value removes one.
	Notes map[string][]byte
}

// Commit makes a batch durable if the tips are those of old, in any order. When it returns nil the batch survives a
// crash and every read sees it. A batch that changes nothing writes nothing.
//
// Errors that callers tell apart: ErrStale, ErrDiskFull, ErrPoisoned, ErrLimit. After any error but ErrPoisoned the
// batch is absent, now and after a crash. ErrPoisoned leaves open whether it is there: opening the store again tells.
// ctx is looked at once, at the start; from then on a commit runs to its end.
func (l *Ledger) Commit(ctx context.Context, old []cid.Cid, b Batch) error {
	l.commitMu.Lock()
	defer l.commitMu.Unlock()
	if err := ctx.Err(); err != nil {
		return err
	}
	if _, err := l.num(); err != nil {
		return err
	}
	if err := l.s.writable(); err != nil {
		return err
	}

	// Compare: what the batch adds to the log as it stands. Nothing below changes tips or state but this function,
	// under commitMu, so what is true here is true at the swap.
	p, err := l.plan(old, b)
	if err != nil || p == nil {
		return err
	}

	// Where the run goes: after the last one, or first in a new segment if that one is full, absent, or ends in bytes
	// that are no run. Those bytes are never overwritten or cut off; the new segment's header says that the log leaves
	// the old one before them.
	st, sealing := l.state, l.sealing
	newSegment := st.header.number == 0 || l.roll || st.end+p.size > l.s.cfg.SegmentBytes
	if !newSegment {
		// A file that was removed or cut while it is open would take commits with it.
		info, err := l.s.fs.Stat(l.segmentPath(st.header.number))
		if oserror.IsNotExist(err) || err == nil && info.Size() < st.end {
			return l.corrupt(st.header.number, st.end, adviceRestore, "it was removed or cut while the store is open")
		}
		if err != nil {
			return fmt.Errorf("looking at a segment: %w", err)
		}
		newSegment = info.Size() > st.end
	}
	buf := runBuffers.Get().(*[]byte)
	defer runBuffers.Put(buf)
	head := (*buf)[:0]
	if newSegment {
		st.header = l.nextSegment()
		st.end = 0
		if sealing, err = newSegmentSealer(l.s.cfg.Vault, &st.header); err != nil {
			return err
		}
		head = st.header.append(head)
	}

	// The run: header, metadata under the segment's key and this random nonce, CARs, checksum. All of it is in memory
	// or in pieces that are, before the first byte is written.
	r := run{off: st.end + int64(len(head)), header: runHeader{seq: st.seq + 1, chain: st.chain, metaLen: len(p.meta) + tagBytes, bodyLen: p.body}}
	rand.Read(r.header.nonce[:])
	start := len(head)
	head = r.header.append(head)
	head = sealing.aead.Seal(head, r.header.nonce[:], p.meta, sealing.ad(head[start:]))
	r.chain = chainValue(head[len(head)-tagBytes:])
	pieces := gather(head, start, p)
	if cap(pieces[0]) <= 2*oneWriteBytes {
		*buf = pieces[0]
	}

	num, err := l.ensureNumber()
	if err != nil {
		return err
	}

	// Room, before anything is touched, so that a full disk is a clean refusal and the index has space to go on.
	if err := l.s.reserve(p.size); err != nil {
		return err
	}

	// Write. A crash or an error from here to the sync leaves a run that is absent, cut off, or whole but never
	// acknowledged. It cannot pass for a good one unless it is whole, since header, metadata and all together have
	// checksums; and it cannot hide the runs before it, since it lies behind them. After an error the log goes on in
	// another segment, with another key.
	f, err := l.writer(newSegment, st.header.number)
	if err != nil {
		l.roll = l.roll || newSegment
		return writeError("opening a segment", err)
	}
	defer l.s.handles.release(f)
	if planted.AckBeforeSync {
		f.SyncData()
	}
	off := st.end
	for _, piece := range pieces {
		if n, err := f.WriteAt(piece, off); err != nil || n < len(piece) {
			if err == nil {
				err = errors.New("short write")
			}
			l.roll = true
			l.s.handles.forget(f.key)
			return writeError("writing a commit", err)
		}
		off += int64(len(piece))
	}

	// Sync: the one wait for the disk. fdatasync covers the bytes and the length of the file; a new file also needs
	// its name. Only now is the commit durable, and only a durable commit is followed by another: so on disk a damaged
	// run with a good one behind it was good once, and a bad run at the end may never have been.
	//
	// A failed sync is final. The kernel may have dropped the pages and will then say of the next sync that all is
	// well, so there is no trying again: the store refuses writes, and the next Open writes the last run once more
	// before it believes it.
	if !planted.SkipFsync && !planted.AckBeforeSync {
		l.s.syncs.Add(1)
		err := f.SyncData()
		if err == nil && newSegment {
			err = syncDir(l.s.fs, l.dir)
		}
		if err != nil {
			return l.s.poisonWith(fmt.Errorf("syncing a commit: %w: %v", ErrPoisoned, err))
		}
	}
	// COMMITTED.

	// Index and swap. The index is derived and not synced: if the machine stops here, replay does the same again from
	// the segment. If the index refuses, the store is no good for reads of this commit; it says so and must be opened
	// again, which finds the commit in the log.
	batch := l.s.index.db.NewBatch()
	defer batch.Close()
	err = errors.Join(apply(batch, num, &st, &r, &p.rec, p.keyIDs), setState(batch, num, &st))
	if err == nil {
		err = l.s.index.commit(batch)
	}
	if err != nil {
		return l.s.poisonWith(fmt.Errorf("indexing a commit: %w: %v", ErrPoisoned, err))
	}
	l.state, l.sealing, l.roll = st, sealing, false
	l.mu.Lock()
	l.tips, l.stats = p.tips, st.stats()
	tell := l.onCommit
	l.mu.Unlock()
	if tell != nil {
		tell(p.refs)
	}
	return nil
}

// runBuffers are for the runs that are written with one call.
var runBuffers = sync.Pool{New: func() any { return new([]byte) }}

// plan is a batch compared with what is there.
type plan struct {
	rec    record
	keyIDs [][32]byte // of rec.cars
	refs   []Ref      // of rec.cars
	sealed [][]byte   // the body, in pieces
	meta   []byte     // rec encoded
	body   int64      // bytes
	size   int64      // of the run, and of a segment header
	tips   []Meta     // after the commit
}

// plan checks a batch and leaves out what is known. It returns nil if nothing is left.
func (l *Ledger) plan(old []cid.Cid, b Batch) (*plan, error) {
	if !sameTips(old, l.tips) {
		return nil, ErrStale
	}
	if len(b.CARs) > MaxCommitCARs || len(b.Drop) > MaxCommitDrops || len(b.Tips) > MaxTips {
		return nil, fmt.Errorf("commit: %w", limitf("%d CARs, %d dropped, %d tips", len(b.CARs), len(b.Drop), len(b.Tips)))
	}
	num := l.number.Load()
	p := &plan{tips: l.tips}
	fresh := make(map[string]Ref, len(b.CARs)) // by digest of the name
	for i := range b.CARs {
		c := &b.CARs[i]
		if c.sealed == nil {
			return nil, errors.New("commit: a CAR that was not accepted")
		}
		d := mustDigest(c.Ref.Name.Cid)
		if _, twice := fresh[d]; twice {
			continue
		}
		held, _, err := l.lookupName(num, c.Ref.Name)
		if err != nil {
			return nil, err
		}
		if held {
			continue
		}
		fresh[d] = c.Ref
		p.rec.cars = append(p.rec.cars, newRecordCAR(c))
		p.refs = append(p.refs, c.Ref)
		p.keyIDs = append(p.keyIDs, c.keyID)
		p.sealed = append(p.sealed, c.sealed)
		p.body += c.Ref.Size
		for _, n := range c.nodes {
			p.sealed = append(p.sealed, n.data)
			p.body += int64(len(n.data))
		}
		if p.body > MaxCommitBytes {
			return nil, fmt.Errorf("commit: %w", limitf("more than %d bytes", int64(MaxCommitBytes)))
		}
		if err := l.sealer.DecryptAt(c.keyID, c.iv, 0, nil); err != nil {
			return nil, fmt.Errorf("commit: a CAR of another ledger: %w", err)
		}
	}
	dropped := make(map[string]bool, len(b.Drop))
	for _, n := range b.Drop {
		d, ok := digest(n.Cid)
		if !ok || n.Type() != car.CodecName {
			return nil, fmt.Errorf("commit: %q is not the name of a CAR", n.Cid)
		}
		if _, held := fresh[d]; held || dropped[d] {
			continue
		}
		_, known, err := l.lookupName(num, n)
		if err != nil {
			return nil, err
		}
		if !known {
			dropped[d] = true
			p.rec.drops = append(p.rec.drops, d...)
		}
	}
	if b.Tips != nil {
		if err := l.planTips(p, b.Tips, fresh, dropped); err != nil {
			return nil, err
		}
	}
	if err := l.planNotes(p, b.Notes); err != nil {
		return nil, err
	}
	if len(p.rec.cars) == 0 && len(p.rec.drops) == 0 && len(p.rec.gone) == 0 && len(p.rec.tips) == 0 && len(p.rec.notes) == 0 {
		return nil, nil
	}
	p.meta = p.rec.append(nil)
	if len(p.meta) > maxMetadataBytes {
		return nil, fmt.Errorf("commit: %w", limitf("metadata of %d bytes", len(p.meta)))
	}
	p.size = segmentHeaderBytes + runHeaderBytes + int64(len(p.meta)) + tagBytes + p.body + runTrailerBytes
	return p, nil
}

// planTips finds which tips come and which go.
func (l *Ledger) planTips(p *plan, tips []Meta, fresh map[string]Ref, dropped map[string]bool) error {
	num := l.number.Load()
	if len(tips) == 0 && len(l.tips) > 0 {
		return errors.New("commit: a ledger does not lose all its tips")
	}
	have := make(map[cid.Cid]Meta, len(l.tips))
	for _, m := range l.tips {
		have[m.CID] = m
	}
	keep := make(map[cid.Cid]bool, len(tips))
	p.tips = make([]Meta, 0, len(tips))
	for _, m := range tips {
		if keep[m.CID] {
			continue
		}
		keep[m.CID] = true
		if known, ok := have[m.CID]; ok {
			p.tips = append(p.tips, known)
			continue
		}
		own, err := m.own()
		if err != nil {
			return fmt.Errorf("commit: tip: %w", err)
		}
		for i := range own.Group {
			g := &own.Group[i]
			d, ok := digest(g.Name.Cid)
			if !ok || g.Name.Type() != car.CodecName {
				return fmt.Errorf("commit: tip names a CAR %s, which is no Fireproof name", g.Name)
			}
			if ref, ok := fresh[d]; ok {
				*g = ref
				continue
			}
			ref, held, err := l.refOf(num, g.Name)
			if err != nil {
				return err
			}
			if held {
				*g = ref
				continue
			}
			*g = Ref{Name: g.Name}
			if _, known, err := l.lookupName(num, g.Name); err != nil {
				return err
			} else if !known && !dropped[d] {
				return fmt.Errorf("commit: tip names CAR %s: %w", g.Name, ErrNotFound)
			}
		}
		p.tips = append(p.tips, own)
		p.rec.tips = append(p.rec.tips, own)
	}
	for _, m := range l.tips {
		if !keep[m.CID] {
			p.rec.gone = append(p.rec.gone, mustDigest(m.CID)...)
		}
	}
	sortMetas(p.tips)
	sortMetas(p.rec.tips)
	return nil
}

// planNotes finds which notes change.
func (l *Ledger) planNotes(p *plan, notes map[string][]byte) error {
	for k, v := range notes {
		if k == "" || len(k) > MaxNoteKeyBytes || len(v) > MaxNoteBytes {
			return fmt.Errorf("commit: note %q of %d bytes: %w", k[:min(len(k), MaxNoteKeyBytes)], len(v), ErrLimit)
		}
		if strings.ToValidUTF8(k, "") != k {
			return errors.New("commit: a note's key is not UTF-8")
		}
		was, err := l.Note(k)
		if err != nil {
			return err
		}
		if bytes.Equal(was, v) {
			continue
		}
		if p.rec.notes == nil {
			p.rec.notes = make(map[string][]byte)
		}
		p.rec.notes[k] = v
	}
	if len(p.rec.notes) == 0 {
		return nil
	}
	n, err := l.countNotes(p.rec.notes)
	if err != nil {
		return err
	}
	if n > MaxNotes {
		return fmt.Errorf("commit: %w", limitf("more than %d notes", MaxNotes))
	}
	return nil
}

// sameTips compares two sets.
func sameTips(old []cid.Cid, tips []Meta) bool {
	if len(old) != len(tips) {
		return false
	}
	have := make(map[cid.Cid]bool, len(old))
	for _, c := range old {
		have[c] = true
	}
	return !slices.ContainsFunc(tips, func(m Meta) bool { return !have[m.CID] })
}

// nextSegment is the header of the segment that follows the last one, or takes its place if that has no run.
func (l *Ledger) nextSegment() segmentHeader {
	h := segmentHeader{ledger: l.id, number: l.state.header.number + 1, prevEnd: l.state.end, seq: l.state.seq, chain: l.state.chain}
	rand.Read(h.salt[:])
	return h
}

// gather adds the body and the checksum to head, whose run begins at start. A small run becomes one piece, so that it
// is written with one call; a large one stays where it is.
func gather(head []byte, start int, p *plan) [][]byte {
	sum := crc32.Checksum(head[start:], castagnoli)
	for _, b := range p.sealed {
		sum = crc32.Update(sum, castagnoli, b)
	}
	trailer := binary.LittleEndian.AppendUint32(nil, sum)
	if p.size <= oneWriteBytes {
		for _, b := range p.sealed {
			head = append(head, b...)
		}
		return [][]byte{append(head, trailer...)}
	}
	pieces := append([][]byte{head}, p.sealed...)
	return append(pieces, trailer)
}

// writer returns a handle to append with: to the last segment, or to a new file under number in place of whatever is
// there, which holds no run that counts.
func (l *Ledger) writer(newSegment bool, number uint32) (*handle, error) {
	key := segmentKey{l.dir, number}
	if !newSegment {
		return l.s.handles.get(key, true)
	}
	if number == 1 {
		if err := makeDir(l.s.fs, l.dir); err != nil {
			return nil, err
		}
	}
	l.s.handles.forget(key)
	path := l.segmentPath(number)
	f, err := l.s.fs.Create(path, vfs.WriteCategoryUnspecified)
	if err != nil {
		return nil, err
	}
	if err := errors.Join(ownerOnly(l.s.fs, path, fileMode), f.Close()); err != nil {
		return nil, err
	}
	return l.s.handles.get(key, true)
}

// reserve refuses a write of n bytes that would leave less than the reserve. It is a courtesy: the write itself is
// where a full disk is found out for certain.
func (s *Store) reserve(n int64) error {
	if s.cfg.ReserveBytes < 0 {
		return nil
	}
	u, err := s.fs.GetDiskUsage(s.dir)
	if err != nil {
		return nil
	}
	keep := min(uint64(s.cfg.ReserveBytes), u.TotalBytes/20)
	if u.AvailBytes < uint64(n)+keep {
		return fmt.Errorf("%d bytes free, of which %d are the reserve: %w", u.AvailBytes, keep, ErrDiskFull)
	}
	return nil
}

// poisonWith makes err the reason for which every later write is refused, if it is the first, and returns it.
func (s *Store) poisonWith(err error) error {
	if s.poison.CompareAndSwap(nil, &err) {
		s.log.Error("the store takes no more writes until it is opened again", "err", err)
	}
	return err
}
