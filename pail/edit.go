package pail

import (
	"context"
	"crypto/sha256"
	"errors"
	"slices"
	"strings"

	"github.com/ipfs/go-cid"

	"fpnode/internal/car"
	"fpnode/internal/dagcbor"
)

// ErrValue is the error of Put for a CID that no shard can hold: an undefined
// one, or one longer than dagcbor.MaxCIDBytes.
var ErrValue = errors.New("value is not a CID that can be stored")

// An Edit collects changes to a Tree, which itself stays as it is. Shards are
// copied when they first change and hashed once, at Commit. After Commit the
// Edit goes on from the new tree. It belongs to one goroutine.
type Edit struct {
	tree    Tree
	root    *shard // nil until something changes
	ops     int
	touched []cid.Cid // the shards that were copied, parents first
	dropped []cid.Cid // the shards that were deleted because they were empty
	path    []step    // scratch

	// A put touches few shards; these spare it allocations.
	touchedSpace [8]cid.Cid
	pathSpace    [8]step
}

// A step of a path is a shard and the entry at which the path goes on.
type step struct {
	shard *shard
	at    int
}

// A Result is what a Commit made.
type Result struct {
	Tree Tree

	// Additions are the shards that the old tree lacks, children before
	// parents, so that the root comes last. Their Data is not to be changed.
	Additions []car.Block

	// Removals are the shards of the old tree that the new one lacks. Old
	// heads still need them.
	Removals []cid.Cid
}

// Edit returns an Edit of t.
func (t Tree) Edit() *Edit {
	e := &Edit{tree: t}
	e.touched, e.path = e.touchedSpace[:0], e.pathSpace[:0]
	return e
}

// Put sets the value of a key. An error, ErrKey, ErrValue or from loading a
// shard, leaves the Edit as it was. The tree keeps the string key.
func (e *Edit) Put(ctx context.Context, key string, value cid.Cid) error {
	if err := ValidKey(key); err != nil {
		return err
	}
	if !value.Defined() || value.ByteLen() > dagcbor.MaxCIDBytes {
		return ErrValue
	}
	e.ops++
	rest, at, found, err := e.descend(ctx, key)
	if err != nil {
		return err
	}
	target := e.path[len(e.path)-1].shard
	v := value.KeyString()
	if found && target.entries[at].key == rest && target.entries[at].value == v {
		return nil
	}
	target = e.own()
	switch {
	case !found:
		target.entries = slices.Insert(target.entries, at, entry{key: rest, value: v})
	case target.entries[at].key == rest:
		target.entries[at].value = v
	default:
		target.entries[at] = split(key, len(key)-len(rest), target.entries[at], v)
	}
	return nil
}

// split makes room for a key and an entry with a value that share at least one
// character after the first prefix characters of the key. It returns the entry
// for that character: the first of a chain of shards, one for each character
// shared, whose last shard holds what is left of both keys. If nothing is left
// of one of them, its value stands beside the link to the last shard.
func split(key string, prefix int, other entry, value string) entry {
	rest := key[prefix:]
	m := commonPrefix(rest, other.key)
	leaf := &shard{prefix: key[:prefix+m], entries: make([]entry, 0, 2)}
	beside := ""
	for _, e := range []entry{{key: rest, value: value}, other} {
		if e.key = e.key[m:]; e.key == "" {
			beside = e.value
		} else {
			leaf.entries = append(leaf.entries, e)
		}
	}
	if len(leaf.entries) == 2 && leaf.entries[0].key > leaf.entries[1].key {
		leaf.entries[0], leaf.entries[1] = leaf.entries[1], leaf.entries[0]
	}
	link := entry{key: rest[m-1 : m], value: beside, child: leaf}
	for i := m - 1; i > 0; i-- {
		parent := &shard{prefix: key[:prefix+i], entries: []entry{link}}
		link = entry{key: rest[i-1 : i], child: parent}
	}
	return link
}

func commonPrefix(a, b string) int {
	n := 0
	for n < len(a) && n < len(b) && a[n] == b[n] {
		n++
	}
	return n
}

// Del removes a key. If it has no value nothing changes.
//
// A shard that becomes empty is removed, and so is the entry that links to it,
// also if there is a value beside the link: that value is lost. Pail does so,
// and whoever replays its events must, to get its roots. Fireproof deletes
// with a put.
func (e *Edit) Del(ctx context.Context, key string) error {
	e.ops++
	rest, at, found, err := e.descend(ctx, key)
	if err != nil {
		return err
	}
	target := e.path[len(e.path)-1].shard
	if !found || target.entries[at].key != rest || target.entries[at].value == "" {
		return nil
	}
	target = e.own()
	if t := &target.entries[at]; t.link != "" || t.child != nil {
		t.value = ""
		return nil
	}
	for depth := len(e.path) - 1; ; depth-- {
		s := e.path[depth].shard
		s.entries = slices.Delete(s.entries, e.path[depth].at, e.path[depth].at+1)
		if len(s.entries) > 0 || depth == 0 {
			return nil
		}
		if s.old.Defined() {
			e.dropped = append(e.dropped, s.old)
		}
	}
}

// descend follows key as far as it goes and leaves the way in e.path. In the
// last shard, rest is what is left of key, and at is the entry that begins
// like it, if found, or else its place.
func (e *Edit) descend(ctx context.Context, key string) (rest string, at int, found bool, err error) {
	s := e.root
	if s == nil {
		if s, err = e.tree.shard(ctx, e.tree.root, ""); err != nil {
			return "", 0, false, err
		}
	}
	e.path = e.path[:0]
	rest = key
	for {
		at, found = s.find(rest)
		e.path = append(e.path, step{s, at})
		if !found {
			return rest, at, false, nil
		}
		n := &s.entries[at]
		isLink := n.child != nil || n.link != ""
		if n.key == rest || !isLink || !strings.HasPrefix(rest, n.key) {
			return rest, at, true, nil
		}
		rest = rest[len(n.key):]
		if s = n.child; s == nil {
			if s, err = e.tree.shard(ctx, n.link, key[:len(key)-len(rest)]); err != nil {
				return "", 0, false, err
			}
		}
	}
}

// own makes the shards of e.path ones that the Edit may change and returns the
// last of them.
func (e *Edit) own() *shard {
	for i := range e.path {
		s := e.path[i].shard
		if !s.cid.Defined() {
			continue
		}
		mine := &shard{old: s.cid, prefix: s.prefix, entries: make([]entry, len(s.entries), len(s.entries)+1)}
		copy(mine.entries, s.entries)
		e.touched = append(e.touched, s.cid)
		e.path[i].shard = mine
		if i == 0 {
			e.root = mine
			continue
		}
		up := e.path[i-1]
		up.shard.entries[up.at].child = mine
		up.shard.entries[up.at].link = ""
	}
	return e.path[len(e.path)-1].shard
}

// Commit hashes what has changed and returns the new tree. If its root is the
// old one there are no Additions and no Removals. It does not store anything;
// the new tree keeps the Additions until Tree.Stored.
func (e *Edit) Commit() Result {
	r := e.commit()
	e.tree, e.root, e.ops, e.dropped = r.Tree, nil, 0, nil
	e.touched = e.touchedSpace[:0]
	return r
}

func (e *Edit) commit() Result {
	if e.root == nil {
		return Result{Tree: e.tree}
	}
	var w writer
	w.prepare(e.root)
	if w.write(e.root); len(w.shards) == 0 {
		return Result{Tree: e.tree}
	}
	r := Result{Additions: w.additions}
	removed := w.removed
	if e.ops == 1 {
		removed = append(removed[:0], e.touched...)
	} else if len(e.dropped) > 0 {
		// A shard that was dropped may have come to life again.
		r.Additions, removed = cancel(r.Additions, append(removed, e.dropped...))
	}
	r.Removals = removed
	e.tree.cache.replace(removed, w.shards)
	r.Tree = e.tree
	r.Tree.root = e.root.cid.KeyString()
	r.Tree.fresh = newFresh(e.tree.fresh.without(removed, w.shards))
	return r
}

// A writer encodes and hashes the shards of an edit.
type writer struct {
	buf       []byte // what is left of the last allocation
	left      int    // bytes yet to be written
	shards    []*shard
	additions []car.Block
	removed   []cid.Cid
}

// prepare makes room for a shard of an edit and its descendants.
func (w *writer) prepare(s *shard) {
	n := w.count(s)
	w.shards = make([]*shard, 0, n)
	w.additions = make([]car.Block, 0, n)
	w.removed = make([]cid.Cid, 0, n)
}

// count adds the size of the blocks to left and returns their number.
func (w *writer) count(s *shard) int {
	n := 1
	w.left += s.size()
	for i := range s.entries {
		if child := s.entries[i].child; child != nil {
			n += w.count(child)
		}
	}
	return n
}

// maxAlloc is the largest piece of memory that blocks share: keeping one of
// them keeps all.
const maxAlloc = 64 << 10

// write gives a shard and its descendants their CIDs.
func (w *writer) write(s *shard) {
	for i := range s.entries {
		n := &s.entries[i]
		if n.child != nil {
			w.write(n.child)
			n.link, n.child = n.child.cid.KeyString(), nil
		}
	}
	size := s.size()
	if cap(w.buf) < size {
		w.buf = make([]byte, 0, max(size, min(w.left, maxAlloc)))
	}
	w.left -= size
	block := s.append(w.buf)
	block = block[:size:size]
	w.buf = w.buf[size:cap(w.buf)][:0]

	var id [shardCIDBytes]byte
	copy(id[:], shardCIDPrefix)
	sum := sha256.Sum256(block)
	copy(id[len(shardCIDPrefix):], sum[:])
	c, err := cid.Cast(id[:])
	if err != nil {
		panic("pail: internal error: " + err.Error())
	}
	if s.cid = c; c == s.old {
		return
	}
	if s.old.Defined() {
		w.removed = append(w.removed, s.old)
		s.old = cid.Undef
	}
	w.shards = append(w.shards, s)
	w.additions = append(w.additions, car.Block{CID: c, Data: block})
}

// cancel takes the shards that are in both lists out of both.
func cancel(added []car.Block, removed []cid.Cid) ([]car.Block, []cid.Cid) {
	return addedOnly(added, removed), removedOnly(removed, added)
}

// addedOnly returns the blocks that are not in removed.
func addedOnly(added []car.Block, removed []cid.Cid) []car.Block {
	gone := make(map[cid.Cid]bool, len(removed))
	for _, c := range removed {
		gone[c] = true
	}
	var only []car.Block
	for _, b := range added {
		if !gone[b.CID] {
			only = append(only, b)
		}
	}
	return only
}

// removedOnly returns the CIDs that are not in added.
func removedOnly(removed []cid.Cid, added []car.Block) []cid.Cid {
	back := make(map[cid.Cid]bool, len(added))
	for _, b := range added {
		back[b.CID] = true
	}
	var only []cid.Cid
	for _, c := range removed {
		if !back[c] {
			only = append(only, c)
		}
	}
	return only
}

// without returns shards and those of f that are not in removed.
func (f *fresh) without(removed []cid.Cid, shards []*shard) []*shard {
	if f == nil {
		return shards
	}
	gone := make(map[cid.Cid]bool, len(removed))
	for _, c := range removed {
		gone[c] = true
	}
	for _, s := range f.list {
		if !gone[s.cid] {
			shards = append(shards, s)
		}
	}
	return shards
}
