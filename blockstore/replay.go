package blockstore

import (
	"errors"
	"fmt"

	"github.com/cockroachdb/pebble/v2"
)

// Advice that goes with damage.
const (
	adviceRestore = "restore the file from a copy, or remove the ledger and fetch or import it again"
	adviceIndex   = "restore the ledger's files from a copy of the same time; to accept them as they are, delete the index directory"
)

func (l *Ledger) corrupt(segment uint32, off int64, advice, format string, args ...any) error {
	return &CorruptError{Ledger: l.id, File: l.segmentPath(segment), Offset: off, Reason: fmt.Sprintf(format, args...), Advice: advice}
}

// replay finds the end of the log, indexes what the index lacks, and reads the tips. If the index is current it reads
// one segment header and no more.
//
// A bad run at the very end of the log is what a commit leaves behind that a crash cut short: it was never
// acknowledged, and the log ends before it. It is damage, and reported, if a good run lies behind it (commits are
// synced one by one, so it was good once), if a later segment says that the log went on, or if the index has it (which
// hears of a run only after its sync). One whose checksum is right is neither: the vault is that of another home.
func (l *Ledger) replay() error {
	l.commitMu.Lock()
	defer l.commitMu.Unlock()
	numbers, err := l.segments()
	if err != nil {
		return fmt.Errorf("listing segments: %w", err)
	}
	st, err := l.indexedState()
	if err != nil {
		return err
	}
	for i, n := range numbers {
		if n != uint32(i+1) {
			return l.corrupt(uint32(i+1), 0, adviceRestore, "the file is missing")
		}
	}
	last := uint32(len(numbers))
	if last < st.header.number {
		return l.corrupt(st.header.number, 0, adviceIndex, "the file is missing")
	}

	// The headers first: that of a segment says where the one before it ends. From the second on st's own segment is
	// the first that matters.
	first := max(st.header.number, 1)
	l.roll = false
	headers := make(map[uint32]segmentHeader)
	for n := first; n <= last; n++ {
		h, err := l.readHeader(n)
		var bad badRun
		if errors.As(err, &bad) && n == last && n > st.header.number {
			// Perhaps a crash cut its making short. Then the first run, written with it, is not there either.
			found, err := l.anyRun(n)
			if err != nil {
				return err
			}
			if found < 0 {
				l.s.log.Warn("cut off a segment that a crash left without a commit", "ledger", ledgerText(l.id), "segment", n)
				l.roll = true
				last--
				break
			}
			return l.corrupt(n, 0, adviceRestore, "%v, but there is a run at byte %d", bad, found)
		}
		if errors.As(err, &bad) {
			return l.corrupt(n, 0, adviceRestore, "%v", bad)
		}
		if err != nil {
			return err
		}
		headers[n] = h
	}
	if st.header.number > 0 && headers[st.header.number] != st.header {
		return l.corrupt(st.header.number, 0, adviceIndex, "it is not the file that was indexed")
	}

	w := &replayer{l: l, st: st, b: l.s.index.db.NewBatch()}
	defer func() { w.b.Close() }()
	for n := first; n <= last; n++ {
		h := headers[n]
		next, more := headers[n+1]
		if err := w.segment(n, h, next, more); err != nil {
			return err
		}
	}
	if err := w.finish(); err != nil {
		return err
	}
	l.state = w.st
	if l.state.header.number > 0 {
		if l.sealing, err = newSegmentSealer(l.s.cfg.Vault, &l.state.header); err != nil {
			return err
		}
	}
	// A segment behind the last run may say where the log leaves that one; then it must not go on there.
	l.roll = l.roll || w.torn || last > w.st.header.number
	return l.loadTips()
}

// indexedState is where the index stands. An index that cannot be read is emptied, and stands at the beginning.
func (l *Ledger) indexedState() (logState, error) {
	num := l.number.Load()
	if num == 0 {
		return logState{}, nil
	}
	v, ok, err := l.s.index.get(inKey(num, keyState))
	if err != nil {
		return logState{}, err
	}
	if !ok {
		return logState{}, nil
	}
	st, err := parseState(v)
	if err == nil {
		return st, nil
	}
	l.s.log.Warn("index of a ledger cannot be read, making it anew", "ledger", ledgerText(l.id), "err", err)
	b := l.s.index.db.NewBatch()
	defer b.Close()
	if err := l.s.dropIndex(b, num); err != nil {
		return logState{}, err
	}
	return logState{}, l.s.index.commit(b)
}

// readHeader reads the header of a segment. The error is a badRun if there is none.
func (l *Ledger) readHeader(n uint32) (h segmentHeader, err error) {
	f, err := l.s.handles.get(segmentKey{l.dir, n}, false)
	if err != nil {
		return h, fmt.Errorf("opening a segment: %w", err)
	}
	defer l.s.handles.release(f)
	size, err := sizeOf(f)
	if err != nil {
		return h, err
	}
	if size < segmentHeaderBytes {
		return h, badRun{errors.New("segment header is cut off")}
	}
	var b [segmentHeaderBytes]byte
	if err := readFull(f, b[:], 0); err != nil {
		return h, err
	}
	if h, err = parseSegmentHeader(b[:]); err != nil {
		return h, badRun{err}
	}
	if h.ledger != l.id || h.number != n {
		return h, l.corrupt(n, 0, adviceRestore, "it is segment %d of ledger %s", h.number, ledgerText(h.ledger))
	}
	return h, nil
}

// anyRun finds a run header in a segment without a header.
func (l *Ledger) anyRun(n uint32) (int64, error) {
	f, err := l.s.handles.get(segmentKey{l.dir, n}, false)
	if err != nil {
		return -1, fmt.Errorf("opening a segment: %w", err)
	}
	defer l.s.handles.release(f)
	size, err := sizeOf(f)
	if err != nil {
		return -1, err
	}
	return findRun(f, nil, 0, size)
}

func sizeOf(f *handle) (int64, error) {
	info, err := f.Stat()
	if err != nil {
		return 0, fmt.Errorf("sizing a segment: %w", err)
	}
	return info.Size(), nil
}

// replayer indexes runs.
type replayer struct {
	l    *Ledger
	st   logState
	b    *pebble.Batch
	f    *window // of the segment
	torn bool    // the last segment ends in bytes that are no run

	runs    int
	bytes   int64
	lastOff int64 // of the last run that was not indexed
	scratch []byte
}

// segment indexes the runs of one segment that the state does not have yet.
func (w *replayer) segment(n uint32, h, next segmentHeader, more bool) error {
	l := w.l
	f, err := l.s.handles.get(segmentKey{l.dir, n}, false)
	if err != nil {
		return fmt.Errorf("opening a segment: %w", err)
	}
	defer l.s.handles.release(f)
	size, err := sizeOf(f)
	if err != nil {
		return err
	}
	off := int64(segmentHeaderBytes)
	if n == w.st.header.number {
		off = w.st.end
	} else if h.prevEnd != w.st.end || h.seq != w.st.seq || h.chain != w.st.chain {
		return l.corrupt(n, 0, adviceRestore, "it does not go on where the segment before it ends")
	}
	if off > size {
		return l.corrupt(n, size, adviceIndex, "it ends, but %d bytes were indexed", off)
	}
	limit := size
	if more {
		if limit = next.prevEnd; limit > size {
			return l.corrupt(n, size, adviceRestore, "it ends, but the log goes on to byte %d", limit)
		}
	}
	if off == limit {
		return nil
	}
	sealing, err := newSegmentSealer(l.s.cfg.Vault, &h)
	if err != nil {
		return err
	}
	if want := min(scratchBytes, limit-off); int64(len(w.scratch)) < want {
		w.scratch = make([]byte, want)
	}
	w.f = newWindow(f, limit-off)
	for off < limit {
		r, err := readRun(w.f, &sealing, off, limit)
		if err == nil && (r.header.seq != w.st.seq+1 || r.header.chain != w.st.chain) {
			err = badRun{errors.New("run does not follow the one before it")}
		}
		if err == nil {
			err = checkRun(w.f, &r, w.scratch)
		}
		var bad badRun
		if errors.As(err, &bad) && bad.error == errSealed {
			// Neither a crash nor damage leaves a right checksum behind.
			whole, err := w.whole(off, limit)
			if err != nil {
				return err
			}
			if whole {
				return fmt.Errorf("%s: %w", l.segmentPath(n), ErrVault)
			}
		}
		switch {
		case errors.As(err, &bad) && more:
			return l.corrupt(n, off, adviceRestore, "%v, and the log goes on", bad)
		case errors.As(err, &bad):
			found, err := findRun(w.f, &sealing, off+1, size)
			if err != nil {
				return err
			}
			if found >= 0 {
				return l.corrupt(n, off, adviceRestore, "%v, but there is a good run at byte %d", bad, found)
			}
			l.s.log.Warn("cut off a commit that a crash left unfinished", "ledger", ledgerText(l.id), "segment", n, "offset", off, "bytes", size-off)
			w.torn = true
			return nil
		case err != nil:
			return err
		}
		if err := w.run(h, &r); err != nil {
			return err
		}
		off = r.end()
	}
	return nil
}

// whole says whether a run lies at off with its checksum, whatever its metadata is sealed under.
func (w *replayer) whole(off, limit int64) (bool, error) {
	r := run{off: off}
	var head [runHeaderBytes]byte
	if err := readFull(w.f, head[:], off); err != nil {
		return false, err
	}
	var err error
	if r.header, err = parseRunHeader(head[:]); err != nil || r.end() > limit {
		return false, nil
	}
	err = checkRun(w.f, &r, w.scratch)
	if errors.As(err, new(badRun)) {
		return false, nil
	}
	return err == nil, err
}

// run indexes one good run.
func (w *replayer) run(h segmentHeader, r *run) error {
	rec, err := parseRecord(r.meta, r.header.bodyLen)
	if err != nil { // it authenticates, so it is what was written
		return w.l.corrupt(h.number, r.off, "a newer release may be able to read it", "%v", err)
	}
	keyIDs := make([][32]byte, len(rec.cars))
	at := r.body()
	for i := range rec.cars {
		c := &rec.cars[i]
		if err := readFull(w.f, keyIDs[i][:], at+c.size-int64(len(keyIDs[i]))); err != nil {
			return err
		}
		at += c.size + c.nodesLen()
	}
	// What is in the batch has a good run behind it, so it was synced and the index may have it.
	if w.b.Len() > replayBatchBytes {
		if err := w.commit(); err != nil {
			return err
		}
	}
	num, err := w.l.ensureNumber()
	if err != nil {
		return err
	}
	w.st.header = h
	if err := apply(w.b, num, &w.st, r, &rec, keyIDs); err != nil {
		return fmt.Errorf("indexing a commit: %w", err)
	}
	w.runs++
	w.bytes += r.header.size()
	w.lastOff = r.off
	return nil
}

func (w *replayer) commit() error {
	if err := setState(w.b, w.l.number.Load(), &w.st); err != nil {
		return fmt.Errorf("indexing a commit: %w", err)
	}
	if err := w.l.s.index.commit(w.b); err != nil {
		return err
	}
	w.b.Close()
	w.b = w.l.s.index.db.NewBatch()
	return nil
}

// finish makes the last run durable, which may be one that was written but never synced, and hands the rest to the
// index.
func (w *replayer) finish() error {
	if w.runs == 0 {
		return nil
	}
	if err := w.harden(); err != nil {
		return writeError("syncing the last commit", err)
	}
	if err := w.commit(); err != nil {
		return err
	}
	w.l.s.log.Info("replayed the log", "ledger", ledgerText(w.l.id), "commits", w.runs, "bytes", w.bytes)
	return nil
}

// harden writes the last run once more where it is and syncs it. Syncing alone would not do: if the sync of its commit
// failed, the kernel may hold its pages as clean although they never reached the disk.
func (w *replayer) harden() error {
	l := w.l
	f, err := l.s.handles.get(segmentKey{l.dir, w.st.header.number}, true)
	if err != nil {
		return err
	}
	defer l.s.handles.release(f)
	off := w.lastOff
	first := off == segmentHeaderBytes
	if first {
		off = 0
	}
	for off < w.st.end {
		b := w.scratch[:min(int64(len(w.scratch)), w.st.end-off)]
		if err := readFull(f.File, b, off); err != nil {
			return err
		}
		_, err := f.WriteAt(b, off)
		if diskFull(err) { // as a disk that never overwrites may say; then the sync must do
			break
		}
		if err != nil {
			return err
		}
		off += int64(len(b))
	}
	if err := f.SyncData(); err != nil {
		return err
	}
	if first {
		return syncDir(l.s.fs, l.dir)
	}
	return nil
}
