// Package car reads and writes CARv1, the container of a Fireproof commit, and
// the two small blocks that tie CARs together: the header block that is the
// root of each commit, and the meta event that points to the newest one.
//
// Use Append to make a CAR and Read to take one apart; DecodeHeader and
// DecodeMeta for the two blocks. A CARv1 is
//
//	+--------+------------------------+   +--------+-----+-------+
//	| varint | {roots: […], version:1} |   | varint | CID | bytes |  …  until the end
//	+--------+------------------------+   +--------+-----+-------+
//
// where each varint counts the bytes up to the next one, the first section is
// DAG-CBOR and a CID is binary (CARv1 specification). Read accepts only that:
// shortest varints, nothing after the last section, every CID of version 1
// with SHA2-256 and equal to the hash of its bytes. So a block that Read
// returned is the block its CID names. Nothing is allocated for a length
// before its bytes are known to be there.
package car

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"math/bits"

	"github.com/ipfs/go-cid"
	"github.com/multiformats/go-multihash"

	"fpnode/internal/dagcbor"
	"fpnode/internal/planted"
)

// Codecs of the CIDs that name whole CARs. JavaScript Fireproof 0.24 hashes
// the plain CAR; 0.19 hashed the sealed file.
const (
	CodecName    = 0x18
	CodecName019 = 0x300539
)

// Errors that Read wraps.
var (
	// ErrFormat means that the bytes are not a CARv1.
	ErrFormat = errors.New("not a CARv1")
	// ErrTruncated means that the bytes end before a section does.
	ErrTruncated = errors.New("cut off")
	// ErrHash means that the bytes of a block are not those its CID names.
	ErrHash = errors.New("block does not match its CID")
	// ErrCID means that a CID is not of version 1 with SHA2-256.
	ErrCID = errors.New("CID is not version 1 with SHA2-256")
	// ErrLimit means that the CAR is larger than limits.go allows.
	ErrLimit = errors.New("over the limit")
)

// A Block is bytes and the CID that names them.
type Block struct {
	CID  cid.Cid
	Data []byte
}

// A Section is a block inside a CAR.
type Section struct {
	Block
	Offset int64 // of Data within the CAR, in bytes
}

// NameOf returns the Name of a plain CAR: version 1, codec 0x18, SHA2-256.
func NameOf(plain []byte) cid.Cid { return dagcbor.SumCodec(CodecName, plain) }

// Append writes a CAR after dst. It trusts the CIDs of the blocks.
func Append(dst []byte, roots []cid.Cid, blocks []Block) []byte {
	dst = appendUvarint(dst, uint64(rootsSize(roots)))
	dst = dagcbor.AppendMap(dst, 2)
	dst = dagcbor.AppendText(dst, "roots")
	dst = appendLinks(dst, roots)
	dst = dagcbor.AppendText(dst, "version")
	dst = dagcbor.AppendUint(dst, 1)
	for _, b := range blocks {
		dst = appendUvarint(dst, uint64(b.CID.ByteLen()+len(b.Data)))
		dst = append(dst, b.CID.KeyString()...)
		dst = append(dst, b.Data...)
	}
	return dst
}

// Size returns how many bytes Append would write.
func Size(roots []cid.Cid, blocks []Block) int {
	n := rootsSize(roots)
	n += uvarintSize(uint64(n))
	for _, b := range blocks {
		n += SectionSize(b)
	}
	return n
}

// SectionSize returns how many bytes of a CAR one block takes.
func SectionSize(b Block) int {
	n := b.CID.ByteLen() + len(b.Data)
	return uvarintSize(uint64(n)) + n
}

func rootsSize(roots []cid.Cid) int {
	n := len("\xa2\x65roots\x67version\x01") + dagcbor.HeadSize(len(roots))
	for _, c := range roots {
		n += dagcbor.LinkSize(c.ByteLen())
	}
	return n
}

func appendLinks(dst []byte, links []cid.Cid) []byte {
	dst = dagcbor.AppendArray(dst, len(links))
	for _, c := range links {
		dst = dagcbor.AppendLink(dst, c)
	}
	return dst
}

// Read takes a CAR apart and verifies every block. The data of the sections is
// part of b.
func Read(b []byte) (roots []cid.Cid, sections []Section, err error) {
	if len(b) > MaxSizeBytes {
		return nil, nil, fmt.Errorf("CAR of %d bytes: %w", len(b), ErrLimit)
	}
	head, i, err := nextSection(b, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("CAR roots: %w", err)
	}
	if roots, err = readRoots(head); err != nil {
		return nil, nil, fmt.Errorf("CAR roots: %w", err)
	}
	for i < len(b) {
		if len(sections) == MaxBlocks {
			return nil, nil, fmt.Errorf("CAR of more than %d blocks: %w", MaxBlocks, ErrLimit)
		}
		section, end, err := nextSection(b, i)
		if err != nil {
			return nil, nil, fmt.Errorf("CAR at byte %d: %w", i, err)
		}
		block, err := readBlock(section)
		if err != nil {
			return nil, nil, fmt.Errorf("CAR at byte %d: %w", i, err)
		}
		sections = append(sections, Section{Block: block, Offset: int64(end - len(block.Data))})
		i = end
	}
	return roots, sections, nil
}

// nextSection returns the section at offset i of b and where it ends.
func nextSection(b []byte, i int) (section []byte, end int, err error) {
	n, size, err := uvarint(b[i:])
	if err != nil {
		return nil, 0, err
	}
	i += size
	if n > uint64(len(b)-i) {
		return nil, 0, ErrTruncated
	}
	end = i + int(n)
	return b[i:end:end], end, nil
}

func readRoots(head []byte) ([]cid.Cid, error) {
	if len(head) > MaxRootsBytes {
		return nil, fmt.Errorf("%d bytes: %w", len(head), ErrLimit)
	}
	r := dagcbor.NewReader(head)
	if n := r.MapLen(); n != 2 && r.Err() == nil {
		return nil, fmt.Errorf("%w: %d fields", ErrFormat, n)
	}
	r.Key("roots")
	roots := readLinks(r)
	r.Key("version")
	if v := r.Uint(); v != 1 && r.Err() == nil {
		return nil, fmt.Errorf("%w: version %d", ErrFormat, v)
	}
	if err := r.End(); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrFormat, err)
	}
	return roots, nil
}

// hashPrefix is how the hash part of every CID in a CAR must begin.
var hashPrefix = []byte{multihash.SHA2_256, sha256.Size}

// readBlock splits a section into CID and data and compares the two.
func readBlock(section []byte) (Block, error) {
	if len(section) == 0 || section[0] != 1 {
		return Block{}, ErrCID
	}
	_, size, err := uvarint(section[1:]) // the codec, any
	if err != nil {
		return Block{}, ErrCID
	}
	hash, ok := bytes.CutPrefix(section[1+size:], hashPrefix)
	if !ok {
		return Block{}, ErrCID
	}
	if len(hash) < sha256.Size {
		return Block{}, ErrTruncated
	}
	data := hash[sha256.Size:]
	c, err := cid.Cast(section[:len(section)-len(data)])
	if err != nil {
		return Block{}, fmt.Errorf("%w: %w", ErrCID, err)
	}
	if sum := sha256.Sum256(data); !bytes.Equal(sum[:], hash[:sha256.Size]) && !planted.IgnoreInnerHash {
		return Block{}, fmt.Errorf("%w: %s", ErrHash, c)
	}
	return Block{CID: c, Data: data}, nil
}

// maxUvarintBytes is the longest varint (multiformats/unsigned-varint).
const maxUvarintBytes = 9

func uvarint(b []byte) (v uint64, size int, err error) {
	for i := 0; i < maxUvarintBytes; i++ {
		if i == len(b) {
			return 0, 0, ErrTruncated
		}
		v |= uint64(b[i]&0x7f) << (7 * i)
		if b[i] < 0x80 {
			if b[i] == 0 && i > 0 {
				return 0, 0, fmt.Errorf("%w: varint not in its shortest form", ErrFormat)
			}
			return v, i + 1, nil
		}
	}
	return 0, 0, fmt.Errorf("%w: varint longer than %d bytes", ErrFormat, maxUvarintBytes)
}

func appendUvarint(dst []byte, v uint64) []byte {
	for v >= 0x80 {
		dst = append(dst, byte(v)|0x80)
		v >>= 7
	}
	return append(dst, byte(v))
}

func uvarintSize(v uint64) int { return max(1, (bits.Len64(v)+6)/7) }
