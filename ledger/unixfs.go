package ledger

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/ipfs/go-cid"

	"fpnode/blockstore"
)

// Fireproof 0.19 attached files over 1 MiB as UnixFS: raw leaves under dag-pb nodes. We only read them.
//
//	node = link* data?       12 len link …  0a len data            (protobuf fields 2 and 1, in any order)
//	link = 0a len CID  12 len name  18 tsize
//	data = 08 type  12 len bytes  18 filesize  20 blocksize …      type 0 raw or 2 file; bytes come before the links
//
// Lengths and numbers are varints; other fields are passed over (UnixFS v1 and dag-pb specifications).

// unixfsNode is one dag-pb node of a file.
type unixfsNode struct {
	links []cid.Cid
	data  []byte // of the file, held in the node itself
	size  uint64 // of the file below
}

var errUnixFS = errors.New("not a node of a file")

func parseUnixFS(block []byte) (n unixfsNode, err error) {
	var data []byte
	seen := false
	err = protobuf(block, func(field uint64, v uint64, b []byte) error {
		switch {
		case field == 2 && b != nil:
			if len(n.links) == maxUnixFSLinks {
				return &LimitError{What: "links of one file node", Size: maxUnixFSLinks + 1, Max: maxUnixFSLinks}
			}
			var link cid.Cid
			if err := protobuf(b, func(field uint64, _ uint64, b []byte) (err error) {
				if field == 1 && b != nil {
					link, err = cid.Cast(b)
				}
				return err
			}); err != nil {
				return err
			}
			if !link.Defined() {
				return errUnixFS
			}
			n.links = append(n.links, link)
		case field == 1 && b != nil && !seen:
			data, seen = b, true
		default:
			return errUnixFS
		}
		return nil
	})
	if err != nil {
		return unixfsNode{}, err
	}
	kind := uint64(1) // a directory, unless it says otherwise
	err = protobuf(data, func(field uint64, v uint64, b []byte) error {
		switch field {
		case 1:
			kind = v
		case 2:
			n.data = b
		case 3:
			n.size = v
		}
		return nil
	})
	if err != nil || kind != 0 && kind != 2 || n.size > MaxFileBytes {
		return unixfsNode{}, errUnixFS
	}
	return n, nil
}

// protobuf calls f for every field of a message: with v for a varint, with b, never nil, for bytes.
func protobuf(msg []byte, f func(field, v uint64, b []byte) error) error {
	for len(msg) > 0 {
		tag, w := binary.Uvarint(msg)
		if w <= 0 {
			return errUnixFS
		}
		msg = msg[w:]
		v, w := binary.Uvarint(msg)
		if w <= 0 {
			return errUnixFS
		}
		msg = msg[w:]
		var b []byte
		switch tag & 7 {
		case 0:
		case 2:
			if v > uint64(len(msg)) {
				return errUnixFS
			}
			b, msg = msg[:v:v], msg[v:]
			if b == nil {
				b = []byte{}
			}
		default:
			return errUnixFS
		}
		if err := f(tag>>3, v, b); err != nil {
			return err
		}
	}
	return nil
}

// unixfsReader reads a file depth first. It holds one node of each level and one leaf.
type unixfsReader struct {
	ctx   context.Context
	store *blockstore.Ledger
	size  int64
	left  int64         // bytes that have not been read
	parts int           // blocks that have been opened
	stack [][]cid.Cid   // links that are still to be read, the deepest level last
	part  io.ReadCloser // what is being read: a leaf, or bytes of a node
}

// openUnixFS opens the file under a dag-pb block.
func (l *Ledger) openUnixFS(ctx context.Context, root cid.Cid) (*unixfsReader, error) {
	n, err := loadUnixFS(ctx, l.store, root)
	if err != nil {
		return nil, err
	}
	r := &unixfsReader{ctx: ctx, store: l.store, size: int64(n.size), left: int64(n.size)}
	r.enter(n)
	return r, nil
}

func loadUnixFS(ctx context.Context, store *blockstore.Ledger, c cid.Cid) (unixfsNode, error) {
	size, err := store.Size(c)
	if err != nil {
		return unixfsNode{}, err
	}
	if size > maxUnixFSNode {
		return unixfsNode{}, &LimitError{What: "file node in bytes", Size: size, Max: maxUnixFSNode}
	}
	block, err := store.Block(ctx, c)
	if err != nil {
		return unixfsNode{}, err
	}
	n, err := parseUnixFS(block)
	if err != nil {
		return unixfsNode{}, fmt.Errorf("block %s: %w", c, err)
	}
	return n, nil
}

func (r *unixfsReader) enter(n unixfsNode) {
	r.part = io.NopCloser(bytes.NewReader(n.data))
	r.stack = append(r.stack, n.links)
}

// Size is the length of the file, as its root says; Read fails where it is not that.
func (r *unixfsReader) Size() int64 { return r.size }

// Read implements io.Reader.
func (r *unixfsReader) Read(b []byte) (int, error) {
	for {
		n, err := r.part.Read(b)
		if r.left -= int64(n); r.left < 0 {
			return 0, fmt.Errorf("file is longer than the %d bytes it names: %w", r.size, errUnixFS)
		}
		if n > 0 || err != io.EOF {
			return n, err
		}
		if err := r.next(); err != nil {
			return 0, err
		}
	}
}

// next opens the part after the current one, or returns io.EOF.
func (r *unixfsReader) next() error {
	if err := r.ctx.Err(); err != nil {
		return err
	}
	for len(r.stack) > 0 && len(r.stack[len(r.stack)-1]) == 0 {
		r.stack = r.stack[:len(r.stack)-1]
	}
	if len(r.stack) == 0 {
		if r.left > 0 {
			return fmt.Errorf("file ends %d bytes early: %w", r.left, errUnixFS)
		}
		return io.EOF
	}
	// Blocks may be shared, so a small graph can be an endless file.
	if r.parts++; r.parts > maxUnixFSParts {
		return &LimitError{What: "blocks of one file", Size: maxUnixFSParts + 1, Max: maxUnixFSParts}
	}
	level := &r.stack[len(r.stack)-1]
	c := (*level)[0]
	*level = (*level)[1:]
	if c.Type() == cid.Raw {
		part, err := r.store.OpenBlock(r.ctx, c)
		if err != nil {
			return err
		}
		r.part = part
		return nil
	}
	n, err := loadUnixFS(r.ctx, r.store, c)
	if err != nil {
		return err
	}
	r.enter(n)
	return nil
}

// Close implements io.Closer.
func (r *unixfsReader) Close() error { return r.part.Close() }
