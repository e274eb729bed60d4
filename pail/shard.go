package pail

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"

	"github.com/ipfs/go-cid"

	"fpnode/internal/dagcbor"
)

// ErrShard is wrapped by the errors of blocks that are not shards, or not
// where they belong.
var ErrShard = errors.New("not a valid shard")

// A shard holds all keys that begin with its prefix and are not further down.
//
//	{prefix: text, entries: [E…], version: 1, keyChars: "ascii", maxKeySize: 4096}
//
//	E = [key, value]               a value
//	    [key, [shard]]             a child, whose prefix is this prefix ‖ key
//	    [key, [shard, value]]      both: the value of the key prefix ‖ key
//
// The keys in the entries are what follows the prefix. They ascend, no two
// begin with the same character, and the key of a child is one character. So
// there is a shard for every character that two keys share, and at most 95
// entries and the empty key, which only the root can have.
//
// In memory a shard is its block, and where the entries are in it, in one piece
// of memory. It never changes; an Edit works on drafts.
type shard struct {
	cid   cid.Cid
	mem   []byte // the block, and n+1 offsets into it of offsetBytes each
	size  uint32 // of the block
	count uint32 // n, the number of entries
}

// An offset is where an entry begins and the one before it ends.
const offsetBytes = 4

// A link is the binary CID of a shard: version 1, DAG-CBOR, SHA2-256.
type link [36]byte

// linkPrefix is how every link begins.
const linkPrefix = "\x01\x71\x12\x20"

func isShardCID(c cid.Cid) bool {
	s := c.KeyString()
	return len(s) == len(link{}) && strings.HasPrefix(s, linkPrefix)
}

// linkOf returns a CID as a link; isShardCID must hold.
func linkOf(c cid.Cid) (l link) {
	copy(l[:], c.KeyString())
	return l
}

func (l link) cid() cid.Cid { return toCID(l[:]) }

// toCID turns a binary CID into a cid.Cid; an empty one gives cid.Undef.
func toCID(b []byte) cid.Cid {
	if len(b) == 0 {
		return cid.Undef
	}
	c, err := cid.Cast(b)
	if err != nil {
		panic("pail: internal error: " + err.Error())
	}
	return c
}

// The constant parts of the block.
const (
	shardHead    = "\xa5\x66prefix"
	shardEntries = "\x67entries"
	shardTail    = "\x67version\x01\x68keyChars\x65ascii\x6amaxKeySize\x19\x10\x00"
)

// emptyShard is the root of a tree without keys. It need not be stored.
var emptyShard = func() *shard {
	s := new(draft).shard()
	s.cid = dagcbor.Sum(s.block())
	return s
}()

// newShard returns a shard without CID, with room for a block of some size and
// its entries.
func newShard(size, count int) *shard {
	return &shard{mem: make([]byte, size+offsetBytes*(count+1)), size: uint32(size), count: uint32(count)}
}

func (s *shard) block() []byte { return s.mem[:s.size:s.size] }

func (s *shard) prefix() []byte {
	prefix, _ := cutText(s.mem[len(shardHead):])
	return prefix
}

// len returns the number of entries.
func (s *shard) len() int { return int(s.count) }

func (s *shard) offset(i int) []byte { return s.mem[int(s.size)+offsetBytes*i:] }

func (s *shard) setOffset(i, offset int) { binary.LittleEndian.PutUint32(s.offset(i), uint32(offset)) }

func (s *shard) entry(i int) entry {
	begin, end := binary.LittleEndian.Uint32(s.offset(i)), binary.LittleEndian.Uint32(s.offset(i+1))
	return entry(s.mem[begin:end:end])
}

// find returns the entry whose key begins like rest, or false and the place
// where it would be.
func (s *shard) find(rest string) (int, bool) {
	low, high := 0, s.len()
	for low < high {
		mid := (low + high) / 2
		if s.entry(mid).compareFirst(rest) < 0 {
			low = mid + 1
		} else {
			high = mid
		}
	}
	return low, low < s.len() && s.entry(low).compareFirst(rest) == 0
}

// memory returns about how many bytes a shard takes in a Cache.
func (s *shard) memory() int { return 256 + cap(s.mem) }

// An entry is an encoded entry of a shard, known to be valid.
type entry []byte

// parts takes an entry apart. Without child, or without value, that is nil.
func (e entry) parts() (key, child, value []byte) {
	key, v := cutText(e[1:])
	switch v[0] {
	case linkByte:
		value, _ = cutLink(v)
		return key, nil, value
	case array1Byte:
		child, _ = cutLink(v[1:])
		return key, child, nil
	}
	child, v = cutLink(v[1:])
	value, _ = cutLink(v)
	return key, child, value
}

// compareFirst compares the first characters of the entry's key and of rest,
// where no character comes first.
func (e entry) compareFirst(rest string) int {
	first := func(s string) int {
		if s == "" {
			return -1
		}
		return int(s[0])
	}
	key, _ := cutText(e[1:])
	if len(key) == 0 {
		return -1 - first(rest)
	}
	return int(key[0]) - first(rest)
}

// First bytes of what stands in an entry.
const (
	linkByte   = 0xd8 // of a tag
	array1Byte = 0x81
	array2Byte = 0x82
)

// cutText returns the text at the beginning of b and what follows.
func cutText(b []byte) (text, rest []byte) {
	n, size := int(b[0]&31), 1
	switch n {
	case 24:
		n, size = int(b[1]), 2
	case 25:
		n, size = int(b[1])<<8|int(b[2]), 3
	}
	return b[size : size+n], b[size+n:]
}

// cutLink returns the binary CID in the link at the beginning of b and what
// follows.
func cutLink(b []byte) (c, rest []byte) {
	n, size := int(b[2]&31), 3
	if n == 24 {
		n, size = int(b[3]), 4
	}
	return b[size+1 : size+n], b[size+n:]
}

// appendEntry encodes an entry. child and value may be nil, but not both.
func appendEntry(dst []byte, key string, child, value []byte) []byte {
	dst = append(dst, array2Byte)
	dst = dagcbor.AppendText(dst, key)
	if child != nil {
		if value != nil {
			dst = append(dst, array2Byte)
		} else {
			dst = append(dst, array1Byte)
		}
		dst = dagcbor.AppendLinkBytes(dst, child)
	}
	if value != nil {
		dst = dagcbor.AppendLinkBytes(dst, value)
	}
	return dst
}

// childOffset is where the child's CID begins in the entry of a child: after
// array, text of one character, array, tag, and head and zero of the bytes.
const childOffset = 1 + 2 + 1 + 2 + 2 + 1

// decodeShard decodes the block with a CID, of which it keeps a copy. The
// caller checks that the prefix is the right one.
func decodeShard(c cid.Cid, block []byte) (*shard, error) {
	if len(block) > MaxShardBytes {
		return nil, fmt.Errorf("%w: %d bytes", ErrShard, len(block))
	}
	if !isShardCID(c) {
		return nil, fmt.Errorf("%w: its CID is not DAG-CBOR with SHA2-256", ErrShard)
	}
	var offsets [maxEntries + 1]int
	r := dagcbor.NewReader(block)
	n := decodeBlock(r, &offsets)
	if err := r.End(); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrShard, err)
	}
	s := newShard(len(block), n)
	s.cid = c
	copy(s.mem, block)
	for i := range n + 1 {
		s.setOffset(i, offsets[i])
	}
	return s, nil
}

// maxEntries is one for each first character, and the empty key.
const maxEntries = 96

// decodeBlock checks a block, finds its entries and returns their number.
func decodeBlock(r *dagcbor.Reader, offsets *[maxEntries + 1]int) int {
	fail := func(format string, args ...any) { r.Fail(fmt.Errorf(format, args...)) }
	if n := r.MapLen(); n != 5 {
		fail("%d fields", n)
	}
	r.Key("prefix")
	prefix := r.TextBytes()
	if err := ValidKey(string(prefix)); err != nil {
		fail("prefix: %w", err)
	}
	r.Key("entries")
	n := r.ArrayLen()
	if n > maxEntries {
		fail("%d entries", n)
		return 0
	}
	if n == 0 && len(prefix) > 0 {
		fail("no entries below the root")
	}
	offsets[0] = r.Pos()
	var last []byte
	for i := range n {
		key := decodeEntry(r, len(prefix))
		if r.Err() != nil {
			return 0
		}
		if i > 0 && (len(key) == 0 || len(last) > 0 && last[0] >= key[0]) {
			fail("entry %q after %q", key, last)
		}
		last = key
		offsets[i+1] = r.Pos()
	}
	r.Key("version")
	if v := r.Uint(); v != 1 {
		fail("unsupported version: %d", v)
	}
	r.Key("keyChars")
	if chars := r.TextBytes(); string(chars) != "ascii" {
		fail("unsupported key character set: %.32q", chars)
	}
	r.Key("maxKeySize")
	if size := r.Uint(); size != MaxKeyBytes {
		fail("unsupported max key size: %d", size)
	}
	return n
}

// decodeEntry checks an entry below a prefix of some length and returns its
// key.
func decodeEntry(r *dagcbor.Reader, prefix int) (key []byte) {
	fail := func(format string, args ...any) { r.Fail(fmt.Errorf(format, args...)) }
	if n := r.ArrayLen(); n != 2 {
		fail("entry of %d parts", n)
	}
	key = r.TextBytes()
	switch {
	case len(key) == 0 && prefix > 0:
		fail("empty key below the root")
	case prefix+len(key) > MaxKeyBytes:
		fail("key of %d bytes", prefix+len(key))
	}
	if err := ValidKey(string(key)); err != nil {
		fail("entry: %w", err)
	}
	if r.Kind() == dagcbor.KindLink {
		r.LinkBytes()
		return key
	}
	n := r.ArrayLen()
	if n != 1 && n != 2 {
		fail("child of %d parts", n)
	}
	if child := r.LinkBytes(); len(child) != len(link{}) || !bytes.HasPrefix(child, []byte(linkPrefix)) {
		fail("child is not DAG-CBOR with SHA2-256")
	}
	if len(key) != 1 {
		fail("child at the key %q", key)
	}
	if n == 2 {
		r.LinkBytes()
	}
	return key
}
