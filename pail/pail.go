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
	root   cid.Cid
	fresh  *fresh // shards that an Edit made, until Stored
}

// Load returns the tree with a root. Nothing is read yet. The cache may be nil.
func Load(f clock.Fetcher, cache *Cache, root cid.Cid) Tree {
	return Tree{blocks: f, cache: cache, root: root}
}

// Empty returns the tree without keys.
func Empty(f clock.Fetcher, cache *Cache) Tree {
	return Tree{blocks: f, cache: cache, root: emptyShard.cid}
}

// Root returns the CID of the root shard.
func (t Tree) Root() cid.Cid { return t.root }

// Stored returns t without the shards that it keeps in memory because an Edit
// made them. Call it when the Fetcher can provide them.
func (t Tree) Stored() Tree {
	t.fresh = nil
	return t
}

func (t Tree) rootShard(ctx context.Context) (*shard, error) {
	if !isShardCID(t.root) {
		return nil, fmt.Errorf("pail: shard %s: %w: its CID is not DAG-CBOR with SHA2-256", t.root, ErrShard)
	}
	return t.shard(ctx, linkOf(t.root), "")
}

// shard returns the shard that a link at a prefix leads to.
func (t Tree) shard(ctx context.Context, l link, prefix string) (*shard, error) {
	s := t.fresh.get(l)
	if s == nil {
		s = t.cache.get(l)
	}
	if s == nil {
		c := l.cid()
		var err error
		if s, err = t.read(ctx, c); err != nil {
			return nil, fmt.Errorf("pail: shard %s: %w", c, err)
		}
	}
	if string(s.prefix()) != prefix {
		return nil, fmt.Errorf("pail: shard %s: %w: its prefix is %q, its place is %q", s.cid, ErrShard, s.prefix(), prefix)
	}
	return s, nil
}

func (t Tree) read(ctx context.Context, c cid.Cid) (*shard, error) {
	if c == emptyShard.cid {
		return emptyShard, nil
	}
	if t.blocks == nil {
		return nil, &clock.MissingError{CID: c}
	}
	block, err := t.blocks.Block(ctx, c)
	if err != nil {
		return nil, err
	}
	s, err := decodeShard(c, block)
	if err != nil {
		return nil, err
	}
	t.cache.put(s)
	return s, nil
}

// Get returns the value of a key, or false if there is none.
func (t Tree) Get(ctx context.Context, key string) (cid.Cid, bool, error) {
	s, err := t.rootShard(ctx)
	for depth := 0; err == nil; depth++ {
		i, ok := s.find(key[depth:])
		if !ok {
			break
		}
		there, child, value := s.entry(i).parts()
		if string(there) == key[depth:] {
			return toCID(value), value != nil, nil
		}
		if child == nil {
			break
		}
		s, err = t.shard(ctx, link(child), key[:depth+1])
	}
	return cid.Undef, false, err
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
		s, err := t.rootShard(ctx)
		if err == nil {
			_, err = t.walk(ctx, s, "", r, func(key string, value []byte) bool {
				return yield(Entry{key, toCID(value)}, nil)
			})
		}
		if err != nil {
			yield(Entry{}, err)
		}
	}
}

// walk calls visit for the entries of a range below a shard, until it returns
// false; then so does walk.
func (t Tree) walk(ctx context.Context, s *shard, prefix string, r Range, visit func(key string, value []byte) bool) (bool, error) {
	for i := range s.len() {
		if r.Descending {
			i = s.len() - 1 - i
		}
		there, child, value := s.entry(i).parts()
		key := prefix + string(there)
		visitValue := func() bool { return value == nil || !r.holds(key) || visit(key, value) }
		if !r.Descending && !visitValue() {
			return false, nil
		}
		if child != nil && r.touches(key) {
			below, err := t.shard(ctx, link(child), key)
			if err != nil {
				return false, err
			}
			if more, err := t.walk(ctx, below, key, r, visit); !more || err != nil {
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
// after the first error. Their Data is not to be changed.
func (t Tree) Shards(ctx context.Context) iter.Seq2[car.Block, error] {
	return func(yield func(car.Block, error) bool) {
		s, err := t.rootShard(ctx)
		if err == nil {
			_, err = t.walkShards(ctx, s, "", yield)
		}
		if err != nil {
			yield(car.Block{}, err)
		}
	}
}

func (t Tree) walkShards(ctx context.Context, s *shard, prefix string, yield func(car.Block, error) bool) (bool, error) {
	for i := range s.len() {
		there, child, _ := s.entry(i).parts()
		if child == nil {
			continue
		}
		below, err := t.shard(ctx, link(child), prefix+string(there))
		if err != nil {
			return false, err
		}
		if more, err := t.walkShards(ctx, below, prefix+string(there), yield); !more || err != nil {
			return false, err
		}
	}
	return yield(car.Block{CID: s.cid, Data: s.block()}, nil), nil
}

// fresh is the shards that an Edit made. A single put makes a few, a batch may
// make many.
type fresh struct {
	list   []*shard
	byLink map[link]*shard // of list if that is long
}

// longList is the number of shards from which on a map is faster than looking
// at each.
const longList = 16

func newFresh(list []*shard) *fresh {
	f := &fresh{list: list}
	if len(list) > longList {
		f.byLink = make(map[link]*shard, len(list))
		for _, s := range list {
			f.byLink[linkOf(s.cid)] = s
		}
	}
	return f
}

func (f *fresh) get(l link) *shard {
	if f == nil {
		return nil
	}
	if f.byLink != nil {
		return f.byLink[l]
	}
	for _, s := range f.list {
		if s.cid.KeyString() == string(l[:]) {
			return s
		}
	}
	return nil
}
