package blockstore

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"github.com/cockroachdb/pebble/v2"
)

// CheckOptions says how much Check looks at.
type CheckOptions struct {
	// ReadData reads everything: each run against its checksum, each CAR against all checks of Accept (against its wire
	// name only, in a ledger that Store.Ledger was not asked for). Without it the CARs themselves are not read.
	ReadData bool
	// Ledgers to check; nil: all.
	Ledgers [][32]byte
}

// Problem is something that is not as it should be.
type Problem struct {
	Ledger [32]byte
	File   string // "" if it is in no file
	Offset int64  // in File, in bytes
	Ref    Ref    // of the CAR concerned, zero if none is
	What   string
	Advice string
}

func (p Problem) String() string {
	if p.File == "" {
		return fmt.Sprintf("%s; %s", p.What, p.Advice)
	}
	return fmt.Sprintf("%s at byte %d: %s; %s", p.File, p.Offset, p.What, p.Advice)
}

// Check reads the logs from their beginning and compares them with themselves and with the index. It changes nothing,
// and commits and reads go on meanwhile; what is committed after its start is not looked at. Each problem is reported
// once, where it is first seen. progress, which may be nil, hears of bytes done and bytes in all. The error says that
// the check itself could not be done.
func (s *Store) Check(ctx context.Context, opts CheckOptions, report func(Problem), progress func(done, total int64)) error {
	var checkers []*checker
	var total int64
	for _, l := range s.sorted() {
		if opts.Ledgers != nil && !slices.Contains(opts.Ledgers, l.id) {
			continue
		}
		c, err := newChecker(l, opts, report)
		if err != nil {
			return fmt.Errorf("checking ledger %s: %w", ledgerText(l.id), err)
		}
		defer c.close()
		checkers = append(checkers, c)
		total += c.total
	}
	var done int64
	for _, c := range checkers {
		c.progress = func(n int64) {
			if done += n; progress != nil {
				progress(done, total)
			}
		}
		if err := c.check(ctx); err != nil {
			return fmt.Errorf("checking ledger %s: %w", ledgerText(c.l.id), err)
		}
	}
	return nil
}

// checker checks one ledger as it was at one moment.
type checker struct {
	l        *Ledger
	opts     CheckOptions
	report   func(Problem)
	progress func(int64)

	num  uint32
	st   logState
	tips []Meta
	snap *pebble.Snapshot

	total   int64
	ends    []int64 // of the log in each segment
	scratch []byte

	seq   uint64
	chain chainValue
	car   uint32 // number of the next
	known uint32 // names, with and without bytes
	lost  bool   // runs are missing, so the index cannot be compared
	tipOf map[string]Meta
	notes map[string][]byte
}

func newChecker(l *Ledger, opts CheckOptions, report func(Problem)) (*checker, error) {
	l.openMu.Lock()
	damage := l.err
	l.openMu.Unlock()
	l.commitMu.Lock()
	defer l.commitMu.Unlock()
	c := &checker{l: l, opts: opts, report: report, num: l.number.Load(), st: l.state, tips: l.Tips(),
		snap: l.s.index.db.NewSnapshot(), tipOf: make(map[string]Meta), notes: make(map[string][]byte)}
	numbers, err := l.segments()
	if err != nil {
		c.close()
		return nil, err
	}
	last := c.st.header.number
	if damage != nil { // the index is not current, and where the log ends is not known
		c.lost = true
		last = uint32(len(numbers))
	}
	c.ends = make([]int64, last+1)
	largest := int64(1)
	for n := uint32(1); n <= last; n++ {
		c.ends[n] = -1
		if info, err := l.s.fs.Stat(l.segmentPath(n)); err == nil {
			c.ends[n] = info.Size()
		}
		if n == c.st.header.number && damage == nil {
			c.ends[n] = min(c.ends[n], c.st.end)
		}
		c.total += max(0, c.ends[n])
		largest = max(largest, c.ends[n])
	}
	c.scratch = make([]byte, min(scratchBytes, largest))
	return c, nil
}

func (c *checker) close() { c.snap.Close() }

func (c *checker) problem(segment uint32, off int64, ref Ref, advice, format string, args ...any) {
	p := Problem{Ledger: c.l.id, Offset: off, Ref: ref, What: fmt.Sprintf(format, args...), Advice: advice}
	if segment > 0 {
		p.File = c.l.segmentPath(segment)
	}
	c.report(p)
}

const adviceReindex = "close the store and delete the index directory; it is made anew"

func (c *checker) check(ctx context.Context) error {
	for n := uint32(1); n < uint32(len(c.ends)); n++ {
		if err := c.segment(ctx, n); err != nil {
			return err
		}
	}
	if c.lost {
		return nil
	}
	if c.seq != c.st.seq || c.chain != c.st.chain {
		c.problem(c.st.header.number, c.st.end, Ref{}, adviceRestore, "the log ends at run %d, but %d were committed", c.seq, c.st.seq)
		return nil
	}
	return c.index()
}

// segment walks the runs of a segment.
func (c *checker) segment(ctx context.Context, n uint32) error {
	l, size := c.l, c.ends[n]
	lose := func(off int64, format string, args ...any) {
		c.problem(n, off, Ref{}, adviceRestore, format, args...)
		c.lost = true
	}
	if size < 0 {
		lose(0, "the file is missing")
		return nil
	}
	h, err := l.readHeader(n)
	var bad badRun
	var corrupt *CorruptError
	switch {
	case errors.As(err, &bad):
		lose(0, "%v", bad)
		return nil
	case errors.As(err, &corrupt):
		lose(0, "%s", corrupt.Reason)
		return nil
	case err != nil:
		return err
	}
	if !c.lost && n > 1 && (h.seq != c.seq || h.chain != c.chain) {
		lose(0, "it does not go on where the segment before it ends")
	}
	end := size
	if n+1 < uint32(len(c.ends)) {
		if next, err := l.readHeader(n + 1); err == nil {
			end = next.prevEnd
		}
	}
	if end > size {
		lose(size, "it ends, but the log goes on to byte %d", end)
		end = size
	}
	sealing, err := newSegmentSealer(l.s.cfg.Vault, &h)
	if err != nil {
		return err
	}
	f, err := l.s.handles.get(segmentKey{l.dir, n}, false)
	if err != nil {
		return err
	}
	defer l.s.handles.release(f)

	w := newWindow(f, end)
	for off := int64(segmentHeaderBytes); off < end; {
		if err := ctx.Err(); err != nil {
			return err
		}
		r, err := readRun(w, &sealing, off, end)
		if err == nil && c.opts.ReadData {
			err = checkRun(w, &r, c.scratch)
		}
		if errors.As(err, &bad) {
			lose(off, "%v", bad)
			next, err := findRun(w, &sealing, off+1, end)
			if err != nil {
				return err
			}
			if next < 0 {
				return nil
			}
			c.progress(next - off)
			off = next
			continue
		}
		if err != nil {
			return err
		}
		if !c.lost && (r.header.seq != c.seq+1 || r.header.chain != c.chain) {
			lose(off, "run does not follow the one before it")
		}
		c.seq, c.chain = r.header.seq, r.chain
		rec, err := parseRecord(r.meta, r.header.bodyLen)
		if err != nil {
			lose(off, "%v", err)
		} else if err := c.record(w, n, &r, &rec); err != nil {
			return err
		}
		c.progress(r.header.size())
		off = r.end()
	}
	return nil
}

// record compares one commit with the index and its CARs with their names.
func (c *checker) record(f *window, n uint32, r *run, rec *record) error {
	off := r.body()
	for i := range rec.cars {
		k := &rec.cars[i]
		var keyID [32]byte
		if err := readFull(f, keyID[:], off+k.size-int64(len(keyID))); err != nil {
			return err
		}
		if !c.lost {
			want := carEntry{name: k.name, wire: k.wire, keyID: keyID, seg: n, run: r.off, off: off, size: k.size, dataOff: k.dataOff}
			if err := c.indexed(&want, k); err != nil {
				return err
			}
		}
		if c.opts.ReadData {
			if err := c.data(f, n, off, k); err != nil {
				return err
			}
		}
		off += k.size + k.nodesLen()
		c.car++
		c.known++
	}
	for d := rec.drops; len(d) > 0; d = d[digestBytes:] {
		c.known++
	}
	for d := rec.gone; len(d) > 0; d = d[digestBytes:] {
		delete(c.tipOf, string(d[:digestBytes]))
	}
	for _, m := range rec.tips {
		c.tipOf[mustDigest(m.CID)] = m
	}
	for k, v := range rec.notes {
		if c.notes[k] = bytes.Clone(v); len(v) == 0 {
			delete(c.notes, k)
		}
	}
	return nil
}

// indexed compares what the index says of a CAR.
func (c *checker) indexed(want *carEntry, k *recordCAR) error {
	differ := func(what string) {
		c.problem(want.seg, want.off, k.ref(), adviceReindex, "the index has another %s", what)
	}
	v, ok, err := get(c.snap, carKey(c.num, c.car))
	if err != nil {
		return err
	}
	if e, err := parseCAR(v); !ok || err != nil || e != *want {
		differ("place for a CAR")
		return nil
	}
	if v, _, err = get(c.snap, digestKey(c.num, keyName, string(k.name[:]))); err != nil {
		return err
	}
	if !bytes.Equal(v, binary.AppendUvarint(nil, uint64(c.car)+1)) {
		differ("CAR under a name")
	}
	// Of several copies the last is indexed, so the entry is this one or a later CAR's, which is compared there.
	check := func(key []byte, want extent, what string) error {
		v, ok, err := get(c.snap, key)
		if err != nil {
			return err
		}
		if x, err := parseExtent(v); !ok || err != nil || x.car < want.car || x.car >= c.st.cars || x.car == want.car && x != want {
			differ(what)
		}
		return nil
	}
	last := make(map[[digestBytes]byte]int, len(k.blocks))
	for i := range k.blocks {
		last[k.blocks[i].digest] = i
	}
	for i := range k.blocks {
		b := &k.blocks[i]
		if last[b.digest] != i {
			continue
		}
		if err := check(digestKey(c.num, keyBlock, string(b.digest[:])), extent{c.car, b.off, b.size}, "place for a block"); err != nil {
			return err
		}
	}
	leaves := make(map[string]int64, len(k.leaves)/digestBytes) // where the last of equal leaves begins
	for j := 0; j < len(k.leaves); j += digestBytes {
		leaves[string(k.leaves[j:j+digestBytes])] = int64(j/digestBytes) * leafBytes
	}
	for leaf, at := range leaves {
		if err := check(wireKey(leaf, c.num), extent{c.car, at, min(leafBytes, k.size-at)}, "place for a wire leaf"); err != nil {
			return err
		}
	}
	at := k.size
	for _, node := range k.nodes {
		if err := check(wireKey(node.digest, c.num), extent{c.car, at, int64(len(node.data))}, "place for a wire block"); err != nil {
			return err
		}
		at += int64(len(node.data))
	}
	if len(k.nodes) > 0 { // the last of them is the wire name
		return nil
	}
	return check(wireKey(string(k.wire[:]), c.num), extent{c.car, 0, k.size}, "place for a wire name")
}

// data reads a CAR and makes all checks again.
func (c *checker) data(f *window, n uint32, off int64, k *recordCAR) error {
	damaged := func(format string, args ...any) {
		c.problem(n, off, k.ref(), adviceRestore, format, args...)
	}
	sealed := make([]byte, k.size)
	if err := readFull(f, sealed, off); err != nil {
		return err
	}
	at := off + k.size
	for _, node := range k.nodes {
		b := make([]byte, len(node.data))
		if err := readFull(f, b, at); err != nil {
			return err
		}
		if !bytes.Equal(b, node.data) {
			damaged("a dag-pb node of a CAR is another")
		}
		at += int64(len(b))
	}
	if c.l.sealer == nil {
		if WireOf(sealed) != k.ref().Wire {
			damaged("a CAR has another hash")
		}
		return nil
	}
	got, err := c.l.AcceptOwned(k.ref(), sealed)
	if err != nil {
		damaged("%v", err)
		return nil
	}
	if again := newRecordCAR(&got); again.dataOff != k.dataOff || !slices.Equal(again.blocks, k.blocks) {
		damaged("the directory of a CAR is another")
	}
	return nil
}

// index compares what the index says of the whole ledger.
func (c *checker) index() error {
	if c.num == 0 {
		return nil
	}
	for _, kind := range []struct {
		key  byte
		want int
		what string
	}{{keyCAR, int(c.car), "CARs"}, {keyName, int(c.known), "names"}, {keyTip, len(c.tipOf), "tips"}, {keyNote, len(c.notes), "notes"}} {
		n, err := count(c.snap, inKey(c.num, kind.key))
		if err != nil {
			return err
		}
		if n != kind.want {
			c.problem(0, 0, Ref{}, adviceReindex, "the index has %d %s, the log %d", n, kind.what, kind.want)
		}
	}
	for d, m := range c.tipOf {
		v, _, err := get(c.snap, tipKey(c.num, d))
		if err != nil {
			return err
		}
		if !bytes.Equal(v, appendMeta(nil, m)) {
			c.problem(0, 0, Ref{}, adviceReindex, "the index has another tip")
		}
	}
	for k, want := range c.notes {
		v, _, err := get(c.snap, append(inKey(c.num, keyNote), k...))
		if err != nil {
			return err
		}
		if !bytes.Equal(v, want) {
			c.problem(0, 0, Ref{}, adviceReindex, "the index has another note")
		}
	}
	for _, m := range c.tips {
		if _, ok := c.tipOf[mustDigest(m.CID)]; !ok {
			c.problem(0, 0, Ref{}, adviceReindex, "a tip is not in the log")
		}
	}
	return nil
}

func count(r pebble.Reader, prefix []byte) (int, error) {
	it, err := r.NewIter(&pebble.IterOptions{LowerBound: prefix, UpperBound: after(prefix)})
	if err != nil {
		return 0, fmt.Errorf("reading the index: %w", err)
	}
	n := 0
	for it.First(); it.Valid(); it.Next() {
		n++
	}
	return n, errors.Join(it.Error(), it.Close())
}
