package blockstore

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"github.com/ipfs/go-cid"

	"fpnode/internal/dagcbor"
)

// record is what one commit says: the metadata of a run in memory. Encoded it is a DAG-CBOR map, in which what is
// empty is left out:
//
//	{ cars:  [[name, wire, size, dataOff, blocks] or [name, wire, size, dataOff, blocks, leaves] …],
//	  drop:  bytes,              names known without their bytes, digests joined
//	  gone:  bytes,              tips that were replaced, digests joined
//	  tips:  [meta …],           tips that are new: bytes, or [names, parents] with digests joined
//	  notes: {key: bytes …} }    empty bytes remove a note
//
// name and wire are digests; dataOff is where the ciphertext begins in the sealed bytes; leaves, of a CAR over 1 MiB,
// are the digests of its 1 MiB pieces joined. blocks is the directory of the plaintext CAR, for each block
//
//	codec varint | digest 32 | bytes between this block's data and the one before, varint | length varint
//
// The CARs lie in the body in this order. The key id of a CAR is the last 32 bytes of its sealed form and its IV the
// fold of its name (Fireproof format), so neither is here.
type record struct {
	cars  []recordCAR
	drops []byte
	gone  []byte
	tips  []Meta
	notes map[string][]byte
}

type recordCAR struct {
	name    [digestBytes]byte
	wire    [digestBytes]byte
	size    int64
	dataOff int64
	blocks  []recordBlock
	leaves  []byte
	nodes   []wireNode // follows from leaves and size
}

// nodesLen is the number of bytes after the sealed ones in the body.
func (c *recordCAR) nodesLen() int64 {
	n := 0
	for _, node := range c.nodes {
		n += len(node.data)
	}
	return int64(n)
}

func (c *recordCAR) ref() Ref {
	return Ref{Name: nameFromDigest(c.name[:]), Wire: wireFromDigest(c.wire[:], c.size), Size: c.size}
}

type recordBlock struct {
	codec  uint64
	digest [digestBytes]byte
	off    int64 // of the data in the plaintext CAR
	size   int64
}

func (b *recordBlock) cid() cid.Cid { return cidFromDigest(b.codec, b.digest[:]) }

// newRecordCAR is the record of an accepted CAR.
func newRecordCAR(c *CAR) recordCAR {
	r := recordCAR{size: c.Ref.Size, dataOff: c.dataOff, nodes: c.nodes}
	copy(r.name[:], mustDigest(c.Ref.Name.Cid))
	copy(r.wire[:], mustDigest(c.Ref.Wire.Cid))
	if len(c.nodes) > 0 {
		r.leaves = c.leaves
	}
	r.blocks = c.blocks
	return r
}

// mustDigest is the digest of a CID that is known to be SHA2-256.
func mustDigest(c cid.Cid) string {
	d, ok := digest(c)
	if !ok {
		panic("blockstore: internal error: CID is not version 1 with SHA2-256")
	}
	return d
}

func (r *record) append(b []byte) []byte {
	fields := 0
	for _, present := range []bool{len(r.cars) > 0, len(r.drops) > 0, len(r.gone) > 0, len(r.tips) > 0, len(r.notes) > 0} {
		if present {
			fields++
		}
	}
	b = dagcbor.AppendMap(b, fields)
	if len(r.cars) > 0 {
		b = dagcbor.AppendText(b, "cars")
		b = dagcbor.AppendArray(b, len(r.cars))
		for i := range r.cars {
			b = r.cars[i].append(b)
		}
	}
	if len(r.drops) > 0 {
		b = dagcbor.AppendText(b, "drop")
		b = dagcbor.AppendBytes(b, r.drops)
	}
	if len(r.gone) > 0 {
		b = dagcbor.AppendText(b, "gone")
		b = dagcbor.AppendBytes(b, r.gone)
	}
	if len(r.tips) > 0 {
		b = dagcbor.AppendText(b, "tips")
		b = dagcbor.AppendArray(b, len(r.tips))
		for _, m := range r.tips {
			b = appendMeta(b, m)
		}
	}
	if len(r.notes) > 0 {
		b = dagcbor.AppendText(b, "notes")
		b = dagcbor.AppendMap(b, len(r.notes))
		for _, k := range sortedNoteKeys(r.notes) {
			b = dagcbor.AppendText(b, k)
			b = dagcbor.AppendBytes(b, r.notes[k])
		}
	}
	return b
}

// sortedNoteKeys sorts as DAG-CBOR maps do.
func sortedNoteKeys(notes map[string][]byte) []string {
	keys := make([]string, 0, len(notes))
	for k := range notes {
		keys = append(keys, k)
	}
	slices.SortFunc(keys, func(a, b string) int {
		if len(a) != len(b) {
			return len(a) - len(b)
		}
		if a < b {
			return -1
		}
		return 1
	})
	return keys
}

func (c *recordCAR) append(b []byte) []byte {
	fields := 5
	if len(c.leaves) > 0 {
		fields = 6
	}
	b = dagcbor.AppendArray(b, fields)
	b = dagcbor.AppendBytes(b, c.name[:])
	b = dagcbor.AppendBytes(b, c.wire[:])
	b = dagcbor.AppendUint(b, uint64(c.size))
	b = dagcbor.AppendUint(b, uint64(c.dataOff))

	var dir []byte
	end := int64(0)
	for i := range c.blocks {
		k := &c.blocks[i]
		dir = binary.AppendUvarint(dir, k.codec)
		dir = append(dir, k.digest[:]...)
		dir = binary.AppendUvarint(dir, uint64(k.off-end))
		dir = binary.AppendUvarint(dir, uint64(k.size))
		end = k.off + k.size
	}
	b = dagcbor.AppendBytes(b, dir)
	if len(c.leaves) > 0 {
		b = dagcbor.AppendBytes(b, c.leaves)
	}
	return b
}

// parseRecord reads what append wrote and bounds every number by the body of bodyLen bytes. Slices are parts of b.
func parseRecord(b []byte, bodyLen int64) (rec record, err error) {
	r := dagcbor.NewReader(b)
	left := bodyLen
	for range r.MapLen() {
		switch key := r.Text(); key {
		case "cars":
			for range r.ArrayLen() {
				c, err := readRecordCAR(r)
				if err != nil {
					return rec, err
				}
				if left -= c.size + c.nodesLen(); left < 0 {
					return rec, errors.New("record: CARs are larger than the body")
				}
				rec.cars = append(rec.cars, c)
			}
		case "drop":
			rec.drops = r.Bytes()
		case "gone":
			rec.gone = r.Bytes()
		case "tips":
			for range r.ArrayLen() {
				m, err := readMeta(r)
				if err != nil {
					return rec, fmt.Errorf("record: %w", err)
				}
				rec.tips = append(rec.tips, m)
			}
		case "notes":
			rec.notes = make(map[string][]byte)
			for range r.MapLen() {
				k := r.Text()
				rec.notes[k] = r.Bytes()
			}
		default:
			if r.Err() == nil {
				return rec, fmt.Errorf("record: unknown field %q", key)
			}
		}
	}
	if err := r.End(); err != nil {
		return rec, fmt.Errorf("record: %w", err)
	}
	if len(rec.drops)%digestBytes != 0 || len(rec.gone)%digestBytes != 0 {
		return rec, errors.New("record: half a digest")
	}
	if left != 0 {
		return rec, errors.New("record: CARs are smaller than the body")
	}
	return rec, nil
}

func readRecordCAR(r *dagcbor.Reader) (c recordCAR, err error) {
	fields := r.ArrayLen()
	if r.Err() == nil && fields != 5 && fields != 6 {
		return c, fmt.Errorf("record: CAR of %d fields", fields)
	}
	name, wire := r.Bytes(), r.Bytes()
	size, dataOff, dir := r.Uint(), r.Uint(), r.Bytes()
	if fields == 6 {
		c.leaves = r.Bytes()
	}
	if err := r.Err(); err != nil {
		return c, fmt.Errorf("record: %w", err)
	}
	if len(name) != digestBytes || len(wire) != digestBytes {
		return c, errors.New("record: CAR with a name of another length")
	}
	if size > MaxFileCARBytes || dataOff > size {
		return c, errors.New("record: CAR of an impossible size")
	}
	if large := size > leafBytes; large != (fields == 6) || large && int64(len(c.leaves)) != digestBytes*((int64(size)+leafBytes-1)/leafBytes) {
		return c, errors.New("record: CAR with too many or too few leaves")
	}
	copy(c.name[:], name)
	copy(c.wire[:], wire)
	c.size, c.dataOff = int64(size), int64(dataOff)
	if len(c.leaves) > 0 {
		c.nodes, _ = wireTree(c.leaves, c.size)
	}
	c.blocks, err = readDirectory(dir, c.size-c.dataOff)
	return c, err
}

// readDirectory reads the directory of a CAR of plainMax bytes at most.
func readDirectory(dir []byte, plainMax int64) ([]recordBlock, error) {
	const smallest = 1 + digestBytes + 1 + 1
	blocks := make([]recordBlock, 0, min(len(dir)/smallest, MaxBlocks))
	end := uint64(0)
	for len(dir) > 0 {
		if len(blocks) == MaxBlocks {
			return nil, limitf("record: directory of more than %d blocks", MaxBlocks)
		}
		var k recordBlock
		codec, n := binary.Uvarint(dir)
		if n <= 0 || len(dir) < n+digestBytes {
			return nil, errors.New("record: directory is cut off")
		}
		k.codec = codec
		copy(k.digest[:], dir[n:])
		dir = dir[n+digestBytes:]
		gap, n := binary.Uvarint(dir)
		if n <= 0 {
			return nil, errors.New("record: directory is cut off")
		}
		dir = dir[n:]
		size, n := binary.Uvarint(dir)
		if n <= 0 {
			return nil, errors.New("record: directory is cut off")
		}
		dir = dir[n:]
		if gap > uint64(plainMax) || size > uint64(plainMax) || end+gap+size > uint64(plainMax) {
			return nil, errors.New("record: a block is outside its CAR")
		}
		k.off, k.size = int64(end+gap), int64(size)
		end += gap + size
		blocks = append(blocks, k)
	}
	return blocks, nil
}
