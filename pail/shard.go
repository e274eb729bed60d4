package pail

import (
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
// A shard is immutable once it has a cid. Before that it belongs to an Edit.
type shard struct {
	cid     cid.Cid // undefined while being edited
	old     cid.Cid // being edited: the cid before; undefined if it is new
	prefix  string
	entries []entry
}

// An entry has a value or a child or both.
type entry struct {
	key   string
	value string // binary CID, "" if none
	link  string // binary CID of the child, "" if none or while it is being edited
	child *shard // the child while it is being edited
}

// shardCIDPrefix is how the binary CID of every shard begins: version 1,
// DAG-CBOR, SHA2-256, 32 bytes.
const (
	shardCIDPrefix = "\x01\x71\x12\x20"
	shardCIDBytes  = len(shardCIDPrefix) + 32
)

// emptyShard is the root of a tree without keys. It need not be stored.
var emptyShard = func() *shard {
	s := &shard{}
	s.cid = dagcbor.Sum(s.append(nil))
	return s
}()

// The constant parts of a shard block.
const (
	shardHead    = "\xa5\x66prefix"
	shardEntries = "\x67entries"
	shardTail    = "\x67version\x01\x68keyChars\x65ascii\x6amaxKeySize\x19\x10\x00"
)

// find returns the entry whose key begins like rest, or false and the place
// where it would be.
func (s *shard) find(rest string) (int, bool) {
	if rest == "" {
		return 0, len(s.entries) > 0 && s.entries[0].key == ""
	}
	low, high := 0, len(s.entries)
	for low < high {
		mid := (low + high) / 2
		if k := s.entries[mid].key; k == "" || k[0] < rest[0] {
			low = mid + 1
		} else {
			high = mid
		}
	}
	return low, low < len(s.entries) && s.entries[low].key[0] == rest[0]
}

// size returns the length of the block.
func (s *shard) size() int {
	n := len(shardHead) + dagcbor.HeadSize(len(s.prefix)) + len(s.prefix) +
		len(shardEntries) + dagcbor.HeadSize(len(s.entries)) + len(shardTail)
	for i := range s.entries {
		e := &s.entries[i]
		n += 1 + dagcbor.HeadSize(len(e.key)) + len(e.key)
		if e.link != "" || e.child != nil {
			n += 1 + dagcbor.LinkSize(shardCIDBytes)
		}
		if e.value != "" {
			n += dagcbor.LinkSize(len(e.value))
		}
	}
	return n
}

// append writes the block. No child may be in an edit.
func (s *shard) append(dst []byte) []byte {
	dst = append(dst, shardHead...)
	dst = dagcbor.AppendText(dst, s.prefix)
	dst = append(dst, shardEntries...)
	dst = dagcbor.AppendArray(dst, len(s.entries))
	for i := range s.entries {
		e := &s.entries[i]
		dst = dagcbor.AppendArray(dst, 2)
		dst = dagcbor.AppendText(dst, e.key)
		if e.link != "" {
			n := 1
			if e.value != "" {
				n = 2
			}
			dst = dagcbor.AppendArray(dst, n)
			dst = dagcbor.AppendLinkBytes(dst, e.link)
		}
		if e.value != "" {
			dst = dagcbor.AppendLinkBytes(dst, e.value)
		}
	}
	return append(dst, shardTail...)
}

// decodeShard decodes the block with a CID. The caller checks that the
// prefix is the right one.
func decodeShard(c cid.Cid, block []byte) (*shard, error) {
	if len(block) > MaxShardBytes {
		return nil, fmt.Errorf("%w: %d bytes", ErrShard, len(block))
	}
	d := shardDecoder{r: dagcbor.NewReader(block), text: string(block)}
	s := d.shard()
	if err := d.r.End(); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrShard, err)
	}
	s.cid = c
	return s, nil
}

// A shardDecoder takes all strings of a shard out of one copy of the block.
type shardDecoder struct {
	r    *dagcbor.Reader
	text string // the block
}

func (d *shardDecoder) fail(format string, args ...any) { d.r.Fail(fmt.Errorf(format, args...)) }

// cut returns the string that the Reader has just read.
func (d *shardDecoder) cut(b []byte) string { return d.text[d.r.Pos()-len(b) : d.r.Pos()] }

func (d *shardDecoder) shard() *shard {
	s := &shard{}
	if n := d.r.MapLen(); n != 5 {
		d.fail("%d fields", n)
	}
	d.r.Key("prefix")
	s.prefix = d.cut(d.r.TextBytes())
	if err := ValidKey(s.prefix); err != nil {
		d.fail("prefix: %w", err)
	}
	d.r.Key("entries")
	n := d.r.ArrayLen()
	if n > 96 { // one for each first character, and the empty key
		d.fail("%d entries", n)
		return s
	}
	s.entries = make([]entry, 0, n)
	for range n {
		e := d.entry(s.prefix)
		if d.r.Err() != nil {
			return s
		}
		if last := len(s.entries) - 1; last >= 0 {
			if prev := s.entries[last].key; prev >= e.key || prev != "" && prev[0] == e.key[0] {
				d.fail("entry %q after %q", e.key, prev)
			}
		}
		s.entries = append(s.entries, e)
	}
	d.r.Key("version")
	if v := d.r.Uint(); v != 1 {
		d.fail("unsupported version: %d", v)
	}
	d.r.Key("keyChars")
	if chars := d.r.TextBytes(); string(chars) != "ascii" {
		d.fail("unsupported key character set: %.32q", chars)
	}
	d.r.Key("maxKeySize")
	if size := d.r.Uint(); size != MaxKeyBytes {
		d.fail("unsupported max key size: %d", size)
	}
	if len(s.entries) == 0 && s.prefix != "" {
		d.fail("no entries below the root")
	}
	return s
}

func (d *shardDecoder) entry(prefix string) entry {
	var e entry
	if n := d.r.ArrayLen(); n != 2 {
		d.fail("entry of %d parts", n)
		return e
	}
	e.key = d.cut(d.r.TextBytes())
	switch {
	case e.key == "" && prefix != "":
		d.fail("empty key below the root")
	case len(prefix)+len(e.key) > MaxKeyBytes:
		d.fail("key of %d bytes", len(prefix)+len(e.key))
	}
	if err := ValidKey(e.key); err != nil {
		d.fail("entry: %w", err)
	}
	if d.r.Kind() == dagcbor.KindLink {
		e.value = d.cut(d.r.LinkBytes())
		return e
	}
	n := d.r.ArrayLen()
	if n != 1 && n != 2 {
		d.fail("child of %d parts", n)
		return e
	}
	e.link = d.cut(d.r.LinkBytes())
	if len(e.link) != shardCIDBytes || !strings.HasPrefix(e.link, shardCIDPrefix) {
		d.fail("child is not DAG-CBOR with SHA2-256")
	}
	if len(e.key) != 1 {
		d.fail("child at the key %q", e.key)
	}
	if n == 2 {
		e.value = d.cut(d.r.LinkBytes())
	}
	return e
}
