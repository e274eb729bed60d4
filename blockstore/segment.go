package blockstore

import (
	"bytes"
	"crypto/cipher"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"strconv"
	"strings"
)

// A ledger's log is its segment files, 000001.seg and so on: append-only, each a header and then runs. A run is one
// commit, whole or not at all. Numbers are little-endian, CRCs are CRC-32C of all bytes of the header or run before
// them. Hexadecimal in the drawing is an offset.
//
//	segment header, 112 bytes
//	00  magic     8   "fpseg" 00 00 01
//	08  ledger   32   id
//	28  salt     32   random; the key of this segment's metadata follows from it
//	48  number    4   as in the file name, from 1
//	4c  prevEnd   8   where the segment before this one ends, 0 for the first. Bytes after that are no part of the log
//	54  seq       8   number of the last run before this segment, from 1, 0 for none
//	5c  chain    16   its chain value, zero for none
//	6c  crc       4
//
//	run
//	00  magic     4   "fprn"
//	04  seq       8   number of the run in its ledger
//	0c  chain    16   chain value of the run before it
//	1c  nonce    12   random
//	28  metaLen   4
//	2c  bodyLen   8
//	34  crc       4
//	38  metadata      metaLen bytes: the record of record.go under an AEAD, tag last
//	    body          bodyLen bytes: for each CAR its sealed bytes, then the dag-pb nodes over them if it is over 1 MiB
//	    crc       4
//
// The AEAD also authenticates the segment header and the run header up to its crc; a run's chain value is its tag. So
// each run vouches for all before it, and the names, refs and tips of the ledger stand nowhere in clear. The body needs
// no second seal: CARs are sealed already, and the metadata has their hashes.
const (
	segmentHeaderBytes = 0x70
	runHeaderBytes     = 0x38
	runTrailerBytes    = 4
	nonceBytes         = 12
	tagBytes           = 16
)

var (
	segmentMagic = []byte("fpseg\x00\x00\x01")
	runMagic     = []byte("fprn")

	castagnoli = crc32.MakeTable(crc32.Castagnoli)
)

// chainValue is the tag of a run's metadata.
type chainValue [tagBytes]byte

// segmentHeader is drawn above.
type segmentHeader struct {
	ledger  [32]byte
	salt    [32]byte
	number  uint32
	prevEnd int64
	seq     uint64
	chain   chainValue
}

func (h *segmentHeader) append(b []byte) []byte {
	start := len(b)
	b = append(b, segmentMagic...)
	b = append(b, h.ledger[:]...)
	b = append(b, h.salt[:]...)
	b = binary.LittleEndian.AppendUint32(b, h.number)
	b = binary.LittleEndian.AppendUint64(b, uint64(h.prevEnd))
	b = binary.LittleEndian.AppendUint64(b, h.seq)
	b = append(b, h.chain[:]...)
	return binary.LittleEndian.AppendUint32(b, crc32.Checksum(b[start:], castagnoli))
}

func parseSegmentHeader(b []byte) (h segmentHeader, err error) {
	if len(b) < segmentHeaderBytes {
		return h, errors.New("segment header is cut off")
	}
	b = b[:segmentHeaderBytes]
	if !bytes.HasPrefix(b, segmentMagic) {
		return h, errors.New("not a segment")
	}
	if crc32.Checksum(b[:0x6c], castagnoli) != binary.LittleEndian.Uint32(b[0x6c:]) {
		return h, errors.New("segment header has a wrong checksum")
	}
	copy(h.ledger[:], b[0x08:])
	copy(h.salt[:], b[0x28:])
	h.number = binary.LittleEndian.Uint32(b[0x48:])
	h.prevEnd = int64(binary.LittleEndian.Uint64(b[0x4c:]))
	h.seq = binary.LittleEndian.Uint64(b[0x54:])
	copy(h.chain[:], b[0x5c:])
	if h.number == 0 || h.prevEnd < 0 {
		return h, errors.New("segment header has impossible numbers")
	}
	return h, nil
}

// runHeader is drawn above.
type runHeader struct {
	seq     uint64
	chain   chainValue
	nonce   [nonceBytes]byte
	metaLen int
	bodyLen int64
}

// size is the length of the whole run.
func (h *runHeader) size() int64 {
	return runHeaderBytes + int64(h.metaLen) + h.bodyLen + runTrailerBytes
}

func (h *runHeader) append(b []byte) []byte {
	start := len(b)
	b = append(b, runMagic...)
	b = binary.LittleEndian.AppendUint64(b, h.seq)
	b = append(b, h.chain[:]...)
	b = append(b, h.nonce[:]...)
	b = binary.LittleEndian.AppendUint32(b, uint32(h.metaLen))
	b = binary.LittleEndian.AppendUint64(b, uint64(h.bodyLen))
	return binary.LittleEndian.AppendUint32(b, crc32.Checksum(b[start:], castagnoli))
}

func parseRunHeader(b []byte) (h runHeader, err error) {
	if len(b) < runHeaderBytes {
		return h, errors.New("run header is cut off")
	}
	b = b[:runHeaderBytes]
	if !bytes.HasPrefix(b, runMagic) {
		return h, errors.New("no run here")
	}
	if crc32.Checksum(b[:0x34], castagnoli) != binary.LittleEndian.Uint32(b[0x34:]) {
		return h, errors.New("run header has a wrong checksum")
	}
	h.seq = binary.LittleEndian.Uint64(b[0x04:])
	copy(h.chain[:], b[0x0c:])
	copy(h.nonce[:], b[0x1c:])
	metaLen, bodyLen := binary.LittleEndian.Uint32(b[0x28:]), binary.LittleEndian.Uint64(b[0x2c:])
	if metaLen < tagBytes || metaLen > maxMetadataBytes+tagBytes || bodyLen > 2*MaxCommitBytes {
		return h, errors.New("run header has impossible lengths")
	}
	h.metaLen, h.bodyLen = int(metaLen), int64(bodyLen)
	return h, nil
}

// sealer seals and opens the metadata of one segment.
type segmentSealer struct {
	aead   cipher.AEAD
	header []byte // of the segment, part of what is authenticated
}

func newSegmentSealer(v Vault, h *segmentHeader) (segmentSealer, error) {
	aead, err := v.RecordAEAD(h.salt)
	if err != nil {
		return segmentSealer{}, fmt.Errorf("key of segment %d: %w", h.number, err)
	}
	if aead.NonceSize() != nonceBytes || aead.Overhead() != tagBytes {
		return segmentSealer{}, fmt.Errorf("key of segment %d: an AEAD of %d-byte nonces and %d more bytes", h.number, aead.NonceSize(), aead.Overhead())
	}
	return segmentSealer{aead, h.append(nil)}, nil
}

func (s *segmentSealer) ad(runHeader []byte) []byte {
	return append(s.header[:segmentHeaderBytes:segmentHeaderBytes], runHeader[:0x34]...)
}

// open returns the plain metadata of a run and its chain value. It decrypts in place.
func (s *segmentSealer) open(header, meta []byte) (plain []byte, chain chainValue, err error) {
	nonce := header[0x1c : 0x1c+nonceBytes]
	chain = chainValue(meta[len(meta)-tagBytes:])
	plain, err = s.aead.Open(meta[:0], nonce, meta, s.ad(header))
	if err != nil {
		return nil, chain, errSealed
	}
	return plain, chain, nil
}

// errSealed is the reason of a badRun whose metadata is changed, cut short, or sealed under another key.
var errSealed = errors.New("metadata does not authenticate")

// badRun says that there is no good run at a place: torn or damaged, which it is the rest of the log decides.
type badRun struct{ error }

// run is one run as read from a segment.
type run struct {
	off    int64 // of its header in the segment
	header runHeader
	meta   []byte // plain
	chain  chainValue
}

func (r *run) body() int64 { return r.off + runHeaderBytes + int64(r.header.metaLen) }
func (r *run) end() int64  { return r.off + r.header.size() }

// readRun reads the run at off of a segment whose log may reach to limit, without the body. The error is a badRun if
// the bytes are no run, any other if they could not be read.
func readRun(f io.ReaderAt, s *segmentSealer, off, limit int64) (run, error) {
	r := run{off: off}
	var head [runHeaderBytes]byte
	if off+runHeaderBytes > limit {
		return r, badRun{errors.New("run header is cut off")}
	}
	if err := readFull(f, head[:], off); err != nil {
		return r, err
	}
	var err error
	if r.header, err = parseRunHeader(head[:]); err != nil {
		return r, badRun{err}
	}
	if r.end() > limit {
		return r, badRun{errors.New("run is cut off")}
	}
	sealed := make([]byte, r.header.metaLen)
	if err := readFull(f, sealed, off+runHeaderBytes); err != nil {
		return r, err
	}
	if r.meta, r.chain, err = s.open(head[:], sealed); err != nil {
		return r, badRun{err}
	}
	return r, nil
}

// checkRun reads the whole run again and compares its checksum.
func checkRun(f io.ReaderAt, r *run, scratch []byte) error {
	sum := uint32(0)
	end := r.end() - runTrailerBytes
	for off := r.off; off < end; {
		b := scratch[:min(int64(len(scratch)), end-off)]
		if err := readFull(f, b, off); err != nil {
			return err
		}
		sum = crc32.Update(sum, castagnoli, b)
		off += int64(len(b))
	}
	var trailer [runTrailerBytes]byte
	if err := readFull(f, trailer[:], end); err != nil {
		return err
	}
	if sum != binary.LittleEndian.Uint32(trailer[:]) {
		return badRun{errors.New("run has a wrong checksum")}
	}
	return nil
}

// findRun looks for any run header with a right checksum from off on, in a part of a segment that is no run. It returns
// -1 if there is none. With a sealer the metadata must authenticate too.
func findRun(f io.ReaderAt, s *segmentSealer, off, size int64) (int64, error) {
	const window = 1 << 20
	buf := make([]byte, max(0, min(window+runHeaderBytes, size-off)))
	for ; off < size; off += window {
		b := buf[:min(int64(len(buf)), size-off)]
		if err := readFull(f, b, off); err != nil {
			return -1, err
		}
		for i := 0; i < len(b); i++ {
			n := bytes.Index(b[i:], runMagic)
			if n < 0 {
				break
			}
			i += n
			if _, err := parseRunHeader(b[i:]); err != nil {
				continue
			}
			if s == nil {
				return off + int64(i), nil
			}
			_, err := readRun(f, s, off+int64(i), size)
			var bad badRun
			if err == nil {
				return off + int64(i), nil
			} else if !errors.As(err, &bad) {
				return -1, err
			}
		}
	}
	return -1, nil
}

// window reads a file from front to back with few system calls, ahead of what is asked for. Like the file it may be
// read at any place. It is not safe for concurrent use.
type window struct {
	io.ReaderAt
	off int64
	buf []byte
}

// newWindow returns a window on a file of size bytes.
func newWindow(f io.ReaderAt, size int64) *window {
	return &window{ReaderAt: f, buf: make([]byte, 0, max(1, min(scratchBytes, size)))}
}

func (w *window) ReadAt(b []byte, off int64) (int, error) {
	if len(b) > cap(w.buf) {
		return w.ReaderAt.ReadAt(b, off)
	}
	if off < w.off || off+int64(len(b)) > w.off+int64(len(w.buf)) {
		n, err := w.ReaderAt.ReadAt(w.buf[:cap(w.buf)], off)
		if n < len(b) {
			return copy(b, w.buf[:n]), err
		}
		w.off, w.buf = off, w.buf[:n]
	}
	return copy(b, w.buf[off-w.off:]), nil
}

// scratchBytes is how much of a log is in memory at once while it is read.
const scratchBytes = 1 << 20

// readFull fills b from off. The caller knows that the file is long enough.
func readFull(f io.ReaderAt, b []byte, off int64) error {
	n, err := f.ReadAt(b, off)
	if n == len(b) {
		return nil
	}
	if err == nil {
		err = errors.New("short read")
	}
	return fmt.Errorf("reading %d bytes at %d: %w", len(b), off, err)
}

func segmentName(n uint32) string { return fmt.Sprintf("%06d.seg", n) }

// parseSegmentName is the inverse of segmentName.
func parseSegmentName(s string) (uint32, bool) {
	digits, ok := strings.CutSuffix(s, ".seg")
	n, err := strconv.ParseUint(digits, 10, 32)
	return uint32(n), ok && err == nil && segmentName(uint32(n)) == s
}
