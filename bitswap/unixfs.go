package bitswap

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/ipfs/go-cid"
	"github.com/multiformats/go-multihash"
)

// A CAR of more than one block is a UnixFS file with raw leaves. Its inner nodes are
// DAG-PB (both formats: IPLD and UnixFS specifications), of which this much occurs:
//
//	node  = link* data            link = 0x12 len { 0x0a len CID, 0x12 len name, 0x18 tsize }
//	data  = 0x0a len unixfs       unixfs = { 0x08 2 (a file), 0x18 size, (0x20 size of a child)* }

var errNode = errors.New("not an inner node of a file")

// child is one link of an inner node and how many bytes of the file are below it.
type child struct {
	cid  cid.Cid
	size int64
}

// parseNode reads an inner node. It returns the children in order; their sizes are
// positive and add up to size.
func parseNode(block []byte) (children []child, size int64, err error) {
	if len(block) > maxNodeBytes {
		return nil, 0, fmt.Errorf("%w: %d bytes", errNode, len(block))
	}
	var sizes []int64
	var data []byte
	p := pb{rest: block}
	for p.more() {
		switch field, wire := p.tag(); {
		case field == 2 && wire == 2 && data == nil:
			c, err := parseLink(p.bytes())
			if err != nil {
				return nil, 0, err
			}
			children = append(children, child{cid: c})
		case field == 1 && wire == 2 && data == nil:
			if data = p.bytes(); len(data) == 0 {
				return nil, 0, errNode
			}
		default:
			return nil, 0, errNode
		}
	}
	if p.bad || data == nil {
		return nil, 0, errNode
	}
	p = pb{rest: data}
	file := false
	for p.more() {
		switch field, wire := p.tag(); {
		case field == 1 && wire == 0:
			file = p.varint() == 2
		case field == 3 && wire == 0:
			size = int64(p.varint())
		case field == 4 && wire == 0:
			sizes = append(sizes, int64(p.varint()))
		default:
			return nil, 0, errNode
		}
	}
	if p.bad || !file || len(sizes) != len(children) || len(sizes) == 0 {
		return nil, 0, errNode
	}
	left := size
	for i, n := range sizes {
		if n <= 0 || n > left {
			return nil, 0, fmt.Errorf("%w: sizes do not add up", errNode)
		}
		children[i].size = n
		left -= n
	}
	if left != 0 {
		return nil, 0, fmt.Errorf("%w: sizes do not add up", errNode)
	}
	return children, size, nil
}

func parseLink(b []byte) (cid.Cid, error) {
	var c cid.Cid
	p := pb{rest: b}
	for p.more() {
		switch field, wire := p.tag(); {
		case field == 1 && wire == 2:
			var err error
			if c, err = cid.Cast(p.bytes()); err != nil {
				return cid.Undef, fmt.Errorf("%w: link: %w", errNode, err)
			}
		case field == 2 && wire == 2:
			p.bytes()
		case field == 3 && wire == 0:
			p.varint()
		default:
			return cid.Undef, errNode
		}
	}
	if p.bad || !wireCID(c) {
		return cid.Undef, errNode
	}
	return c, nil
}

// wireCID reports whether c can name a wire block: version 1, raw or DAG-PB, SHA2-256.
func wireCID(c cid.Cid) bool {
	if !c.Defined() {
		return false
	}
	p := c.Prefix()
	return p.Version == 1 && p.MhType == multihash.SHA2_256 && p.MhLength == 32 &&
		(p.Codec == cid.Raw || p.Codec == cid.DagProtobuf)
}

// pb reads protocol buffers fields; after an error bad is set and all else is zero.
type pb struct {
	rest []byte
	bad  bool
}

func (p *pb) more() bool { return !p.bad && len(p.rest) > 0 }

func (p *pb) varint() uint64 {
	v, n := binary.Uvarint(p.rest)
	if p.bad || n <= 0 {
		p.bad = true
		return 0
	}
	p.rest = p.rest[n:]
	return v
}

func (p *pb) tag() (field, wire uint64) {
	v := p.varint()
	return v >> 3, v & 7
}

func (p *pb) bytes() []byte {
	n := p.varint()
	if p.bad || n > uint64(len(p.rest)) {
		p.bad = true
		return nil
	}
	b := p.rest[:n]
	p.rest = p.rest[n:]
	return b
}
