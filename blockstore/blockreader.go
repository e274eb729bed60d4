package blockstore

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"

	"github.com/ipfs/go-cid"
)

// pieceBytes is how much of a large block is in memory at a time.
const pieceBytes = 1 << 20

// BlockReader reads a block of any size in constant memory. Every byte it returns has been verified: OpenBlock reads
// the block through, compares its hash and keeps those of its pieces, and Read compares each piece with that.
// It is not safe for concurrent use.
type BlockReader struct {
	l    *Ledger
	cid  cid.Cid
	e    *carEntry
	at   extent
	sums [][sha256.Size]byte // of the pieces

	off  int64  // of the next piece
	buf  []byte // for one piece
	rest []byte // of the current piece
}

// OpenBlock opens a block to be read piece by piece. The error is ErrNotFound or, if the bytes are damaged, a
// *CorruptError. Use Block for what fits in memory.
func (l *Ledger) OpenBlock(ctx context.Context, c cid.Cid) (*BlockReader, error) {
	num, d, x, err := l.place(c)
	if err != nil {
		return nil, err
	}
	e, err := l.s.carAt(num, x.car)
	if err != nil {
		return nil, err
	}
	r := &BlockReader{l: l, cid: c, e: e, at: x}
	whole := sha256.New()
	buf := make([]byte, min(pieceBytes, x.size))
	for off := int64(0); off < x.size; off += pieceBytes {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		b := buf[:min(pieceBytes, x.size-off)]
		if err := r.read(b, off); err != nil {
			return nil, err
		}
		whole.Write(b)
		r.sums = append(r.sums, sha256.Sum256(b))
	}
	if string(whole.Sum(nil)) != d {
		return nil, l.corrupt(e.seg, e.off+e.dataOff+x.off, adviceRestore, "block %s has another hash", c)
	}
	return r, nil
}

// read decrypts the stretch of the block at off. It verifies nothing.
func (r *BlockReader) read(b []byte, off int64) error {
	if err := r.l.readAt(r.e.seg, b, r.e.off+r.e.dataOff+r.at.off+off); err != nil {
		return fmt.Errorf("block %s: %w", r.cid, err)
	}
	if err := r.l.sealer.DecryptAt(r.e.keyID, ivOf(string(r.e.name[:])), r.at.off+off, b); err != nil {
		return fmt.Errorf("block %s: %w", r.cid, err)
	}
	return nil
}

// Size is the length of the block in bytes.
func (r *BlockReader) Size() int64 { return r.at.size }

// Read implements io.Reader.
func (r *BlockReader) Read(b []byte) (int, error) {
	if r.l == nil {
		return 0, errors.New("block: read after Close")
	}
	if len(b) == 0 {
		return 0, nil
	}
	if len(r.rest) == 0 {
		if r.off == r.at.size {
			return 0, io.EOF
		}
		if r.buf == nil {
			r.buf = make([]byte, min(pieceBytes, r.at.size))
		}
		piece := r.buf[:min(pieceBytes, r.at.size-r.off)]
		if err := r.read(piece, r.off); err != nil {
			return 0, err
		}
		if sha256.Sum256(piece) != r.sums[r.off/pieceBytes] {
			return 0, r.l.corrupt(r.e.seg, r.e.off+r.e.dataOff+r.at.off+r.off, adviceRestore, "block %s changed while it was read", r.cid)
		}
		r.rest = piece
		r.off += int64(len(piece))
	}
	n := copy(b, r.rest)
	r.rest = r.rest[n:]
	return n, nil
}

// Close gives the memory back.
func (r *BlockReader) Close() error {
	r.l, r.buf, r.rest = nil, nil, nil
	return nil
}
