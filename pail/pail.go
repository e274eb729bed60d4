// Package pail is the map from keys to CIDs inside a Fireproof ledger: a trie
// of immutable blocks called shards, and the rule by which concurrent changes
// to it merge. Its bytes are those of @web3-storage/pail 0.6.2.
//
// Use Load to read a trie by the CID of its root, Tree.Edit to change it, Diff
// to compare two of them; and a Replica to put keys into a ledger's clock, and
// to find the root that a head of several events stands for.
//
// Guarantees:
//
//   - A Tree never changes and may be read by many goroutines. It loads shards
//     when they are needed and keeps them in the Cache, which is bounded; what
//     an Edit made and nobody has stored yet is kept in the Tree until Stored.
//   - The same puts in any order give the same root, and one Edit of many
//     operations gives the root that one Edit for each would give.
//   - A Result's Additions are exactly the shards that the old tree lacks, so
//     old blocks and Additions together hold every shard of the new tree.
//   - A shard is refused unless it is the only encoding of a shard that belongs
//     where its parent put it.
package pail

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"strings"

	"github.com/ipfs/go-cid"

	"fpnode/clock"
	"fpnode/internal/car"
)

// ErrKey is what the errors of ValidKey are, by errors.Is.
var ErrKey = errors.New("key cannot be stored")

// A keyError is an ErrKey with the words that JavaScript uses.
type keyError string

func (e keyError) Error() string        { return string(e) }
func (e keyError) Is(target error) bool { return target == ErrKey }

// ValidKey returns nil if key can be stored: printable ASCII, space to tilde,
// at most MaxKeyBytes, possibly empty.
func ValidKey(key string) error {
	for i := range len(key) {
		if !printable(key[i]) {
			return keyError("key contains non-ASCII characters")
		}
	}
	if len(key) > MaxKeyBytes {
		return keyError(fmt.Sprintf("UTF-8 encoded key exceeds max size of %d bytes", MaxKeyBytes))
	}
	return nil
}

func printable(c byte) bool { return c >= ' ' && c <= '~' }

// A Tree is one state of the map. The zero Tree is not usable.
type Tree struct {
	blocks clock.Fetcher
	cache  *Cache
	root   string // binary CID
	fresh  *fresh // shards that an Edit made, until Stored
}

// Load returns the tree with a root. Nothing is read yet. The cache may be nil.
func Load(f clock.Fetcher, cache *Cache, root cid.Cid) Tree {
	return Tree{blocks: f, cache: cache, root: root.KeyString()}
}

// Empty returns the tree without keys.
func Empty(f clock.Fetcher, cache *Cache) Tree {
	return Tree{blocks: f, cache: cache, root: emptyShard.cid.KeyString()}
}

// Root returns the CID of the root shard.
func (t Tree) Root() cid.Cid { return toCID(t.root) }

// Stored returns t without the shards that it keeps in memory because an Edit
// made them. Call it when the Fetcher can provide them.
func (t Tree) Stored() Tree {
	t.fresh = nil
	return t
}

// shard returns the shard with a CID, which belongs at a prefix.
func (t Tree) shard(ctx context.Context, c, prefix string) (*shard, error) {
	s := t.fresh.get(c)
	if s == nil {
		s = t.cache.get(c)
	}
	if s == nil {
		var err error
		if s, err = t.read(ctx, c); err != nil {
			return nil, fmt.Errorf("pail: shard %s: %w", toCID(c), err)
		}
	}
	if s.prefix != prefix {
		return nil, fmt.Errorf("pail: shard %s: %w: its prefix is %q, its place is %q", toCID(c), ErrShard, s.prefix, prefix)
	}
	return s, nil
}

func (t Tree) read(ctx context.Context, c string) (*shard, error) {
	id := toCID(c)
	if id == emptyShard.cid {
		return emptyShard, nil
	}
	if t.blocks == nil {
		return nil, &clock.MissingError{CID: id}
	}
	block, err := t.blocks.Block(ctx, id)
	if err != nil {
		return nil, err
	}
	s, err := decodeShard(id, block)
	if err != nil {
		return nil, err
	}
	t.cache.put(s)
	return s, nil
}

// Get returns the value of a key, or false if there is none.
func (t Tree) Get(ctx context.Context, key string) (cid.Cid, bool, error) {
	link, rest := t.root, key
	for {
		s, err := t.shard(ctx, link, key[:len(key)-len(rest)])
		if err != nil {
			return cid.Undef, false, err
		}
		i, ok := s.find(rest)
		if !ok {
			return cid.Undef, false, nil
		}
		e := &s.entries[i]
		if e.key == rest {
			return toCID(e.value), e.value != "", nil
		}
		if e.link == "" || !strings.HasPrefix(rest, e.key) {
			return cid.Undef, false, nil
		}
		link, rest = e.link, rest[len(e.key):]
	}
}

// An Entry is a key and its value.
type Entry struct {
	Key   string
	Value cid.Cid
}

// A Range selects keys. Bounds that are "" do not bound; the zero Range selects
// all.
type Range struct {
	Prefix     string
	From       string // at least
	After      string // more than
	To         string // at most
	Before     string // less than
	Descending bool
}

// Entries returns the entries of a range in ascending order of the bytes of
// their keys, or in descending order. It ends after the first error.
func (t Tree) Entries(ctx context.Context, r Range) iter.Seq2[Entry, error] {
	return func(yield func(Entry, error) bool) {
		_, err := t.walk(ctx, t.root, "", r, func(key, value string) bool {
			return yield(Entry{key, toCID(value)}, nil)
		})
		if err != nil {
			yield(Entry{}, err)
		}
	}
}

// walk calls visit for the entries of a range below a shard, until it returns
// false; then so does walk.
func (t Tree) walk(ctx context.Context, link, prefix string, r Range, visit func(key, value string) bool) (bool, error) {
	s, err := t.shard(ctx, link, prefix)
	if err != nil {
		return false, err
	}
	for i := range s.entries {
		e := &s.entries[i]
		if r.Descending {
			e = &s.entries[len(s.entries)-1-i]
		}
		key := prefix + e.key
		visitValue := func() bool { return e.value == "" || !r.holds(key) || visit(key, e.value) }
		if !r.Descending && !visitValue() {
			return false, nil
		}
		if e.link != "" && r.touches(key) {
			if more, err := t.walk(ctx, e.link, key, r, visit); !more || err != nil {
				return false, err
			}
		}
		if r.Descending && !visitValue() {
			return false, nil
		}
	}
	return true, nil
}

// holds reports whether a key is in the range.
func (r *Range) holds(key string) bool {
	return strings.HasPrefix(key, r.Prefix) &&
		key >= r.From && (r.After == "" || key > r.After) &&
		(r.To == "" || key <= r.To) && (r.Before == "" || key < r.Before)
}

// touches reports whether keys that begin with prefix may be in the range.
func (r *Range) touches(prefix string) bool {
	reaches := func(low string) bool { return prefix >= low || strings.HasPrefix(low, prefix) }
	return (strings.HasPrefix(prefix, r.Prefix) || strings.HasPrefix(r.Prefix, prefix)) &&
		reaches(r.From) && reaches(r.After) &&
		(r.To == "" || prefix <= r.To) && (r.Before == "" || prefix < r.Before)
}

// Shards returns every shard of the tree, children before parents, and ends
// after the first error.
func (t Tree) Shards(ctx context.Context) iter.Seq2[car.Block, error] {
	return func(yield func(car.Block, error) bool) {
		if _, err := t.walkShards(ctx, t.root, "", yield); err != nil {
			yield(car.Block{}, err)
		}
	}
}

func (t Tree) walkShards(ctx context.Context, link, prefix string, yield func(car.Block, error) bool) (bool, error) {
	s, err := t.shard(ctx, link, prefix)
	if err != nil {
		return false, err
	}
	for i := range s.entries {
		if e := &s.entries[i]; e.link != "" {
			if more, err := t.walkShards(ctx, e.link, prefix+e.key, yield); !more || err != nil {
				return false, err
			}
		}
	}
	// INVARIANT: a shard has one encoding, so this is the block that was read.
	block := s.append(make([]byte, 0, s.size()))
	return yield(car.Block{CID: s.cid, Data: block}, nil), nil
}

// toCID turns a binary CID into a cid.Cid; "" gives cid.Undef.
func toCID(c string) cid.Cid {
	if c == "" {
		return cid.Undef
	}
	id, err := cid.Cast([]byte(c))
	if err != nil {
		panic("pail: internal error: " + err.Error())
	}
	return id
}

// fresh is the shards that an Edit made. A single put makes a few, a batch may
// make many.
type fresh struct {
	list  []*shard
	byCID map[string]*shard // of list if that is long
}

// longList is the number of shards from which on a map is faster than looking
// at each.
const longList = 16

func newFresh(list []*shard) *fresh {
	f := &fresh{list: list}
	if len(list) > longList {
		f.byCID = make(map[string]*shard, len(list))
		for _, s := range list {
			f.byCID[s.cid.KeyString()] = s
		}
	}
	return f
}

func (f *fresh) get(c string) *shard {
	if f == nil {
		return nil
	}
	if f.byCID != nil {
		return f.byCID[c]
	}
	for _, s := range f.list {
		if s.cid.KeyString() == c {
			return s
		}
	}
	return nil
}
