package pail

import (
	"context"
	"crypto/sha256"
	"errors"
	"slices"

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
	root    *draft // nil until something changes
	ops     int
	touched []cid.Cid // the shards that were copied, parents first
	dropped []cid.Cid // the shards that were deleted because they were empty

	// What follows is memory to be used again.
	path  []step
	text  []byte   // the encoded entries that are new
	value []byte   // of the put in progress
	spare []*draft // without entries
}

// A draft is a shard being edited.
type draft struct {
	old     cid.Cid // the shard before, undefined if it is new
	prefix  string
	entries []slot
}

// A slot is an entry of a draft.
type slot struct {
	entry entry
	child *draft // nil if the child, if any, is not being edited; else entry lacks its link
}

// A step of a path is a shard, or its draft, and the entry at which the path
// goes on.
type step struct {
	shard *shard // nil if there is a draft
	draft *draft
	at    int
}

// entry returns the entry of a step; found must have been true.
func (p *step) entry() entry {
	if p.draft != nil {
		return p.draft.entries[p.at].entry
	}
	return p.shard.entry(p.at)
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
func (t Tree) Edit() *Edit { return &Edit{tree: t} }

// reset makes e an Edit of t, whatever it was before.
func (e *Edit) reset(t Tree) {
	e.tree, e.root, e.ops = t, nil, 0
	e.touched, e.dropped = e.touched[:0], e.dropped[:0]
	e.text = e.text[:0]
	if cap(e.text) > maxSpareText {
		e.text = nil
	}
}

const (
	maxSpareText   = 64 << 10 // bytes
	maxSpareDrafts = 16
)

// Put sets the value of a key. An error, ErrKey, ErrValue or from loading a
// shard, leaves the Edit as it was.
func (e *Edit) Put(ctx context.Context, key string, value cid.Cid) error {
	if err := ValidKey(key); err != nil {
		return err
	}
	if !value.Defined() || value.ByteLen() > dagcbor.MaxCIDBytes {
		return ErrValue
	}
	e.ops++
	rest, found, err := e.descend(ctx, key)
	if err != nil {
		return err
	}
	e.value = append(e.value[:0], value.KeyString()...)
	v := e.value
	if !found {
		target, at := e.own(key)
		target.entries = slices.Insert(target.entries, at, slot{entry: e.encode(rest, nil, v)})
		return nil
	}
	there, child, old := e.path[len(e.path)-1].entry().parts()
	if string(there) == rest && string(old) == value.KeyString() {
		return nil
	}
	target, at := e.own(key)
	if string(there) == rest {
		target.entries[at].entry = e.encode(rest, child, v)
		return nil
	}
	target.entries[at] = e.split(key, len(key)-len(rest), string(there), v, old)
	return nil
}

// encode encodes an entry into e.text.
func (e *Edit) encode(key string, child, value []byte) entry {
	const overhead = 16 // more than the heads take
	if need := len(key) + len(child) + len(value) + overhead; cap(e.text)-len(e.text) < need {
		// Entries keep the memory that they are in, so it need not be copied.
		e.text = make([]byte, 0, max(need, min(2*cap(e.text), maxSpareText), 256))
	}
	start := len(e.text)
	e.text = appendEntry(e.text, key, child, value)
	return entry(e.text[start:len(e.text):len(e.text)])
}

// split makes room for a key, of which prefix characters are the prefix of a
// shard, and for the entry there whose key begins like the rest. It returns the
// entry for the first character that they share: the first of a chain of
// shards, one for each such character, whose last shard holds what is left of
// both keys. If nothing is left of one of them, its value stands beside the
// link to the last shard.
func (e *Edit) split(key string, prefix int, other string, value, otherValue []byte) slot {
	rest := key[prefix:]
	m := commonPrefix(rest, other)
	leaf := e.newDraft(key[:prefix+m], 2)
	var beside []byte
	add := func(left string, v []byte) {
		if left == "" {
			beside = v
		} else {
			leaf.entries = append(leaf.entries, slot{entry: e.encode(left, nil, v)})
		}
	}
	if rest < other {
		add(rest[m:], value)
		add(other[m:], otherValue)
	} else {
		add(other[m:], otherValue)
		add(rest[m:], value)
	}
	var unknown link
	top := slot{entry: e.encode(rest[m-1:m], unknown[:], beside), child: leaf}
	for i := m - 1; i > 0; i-- {
		parent := e.newDraft(key[:prefix+i], 1)
		parent.entries = append(parent.entries, top)
		top = slot{entry: e.encode(rest[i-1:i], unknown[:], nil), child: parent}
	}
	return top
}

func commonPrefix(a, b string) int {
	n := 0
	for n < len(a) && n < len(b) && a[n] == b[n] {
		n++
	}
	return n
}

// newDraft returns a draft without entries, with room for some.
func (e *Edit) newDraft(prefix string, room int) *draft {
	n := len(e.spare)
	if n == 0 {
		return &draft{prefix: prefix, entries: make([]slot, 0, room)}
	}
	d := e.spare[n-1]
	e.spare = e.spare[:n-1]
	d.prefix, d.entries = prefix, slices.Grow(d.entries, room)
	return d
}

// Del removes a key. If it has no value nothing changes.
//
// A shard that becomes empty is removed, and so is the entry that links to it,
// also if there is a value beside the link: that value is lost. Pail does so,
// and whoever replays its events must, to get its roots. Fireproof deletes
// with a put.
func (e *Edit) Del(ctx context.Context, key string) error {
	e.ops++
	rest, found, err := e.descend(ctx, key)
	if err != nil || !found {
		return err
	}
	there, child, value := e.path[len(e.path)-1].entry().parts()
	if string(there) != rest || value == nil {
		return nil
	}
	target, at := e.own(key)
	if child != nil {
		target.entries[at].entry = e.encode(rest, child, nil)
		return nil
	}
	for depth := len(e.path) - 1; ; depth-- {
		p := e.path[depth]
		p.draft.entries = slices.Delete(p.draft.entries, p.at, p.at+1)
		if len(p.draft.entries) > 0 || depth == 0 {
			return nil
		}
		if p.draft.old.Defined() {
			e.dropped = append(e.dropped, p.draft.old)
		}
	}
}

// descend follows key as far as it goes and leaves the way in e.path. The last
// step is at the entry that begins like rest, what is left of the key, if
// found, or else at its place.
func (e *Edit) descend(ctx context.Context, key string) (rest string, found bool, err error) {
	e.path = e.path[:0]
	p := step{draft: e.root}
	if p.draft == nil {
		if p.shard, err = e.tree.rootShard(ctx); err != nil {
			return "", false, err
		}
	}
	rest = key
	for {
		if p.draft != nil {
			p.at, found = p.draft.find(rest)
		} else {
			p.at, found = p.shard.find(rest)
		}
		e.path = append(e.path, p)
		if !found {
			return rest, false, nil
		}
		there, child, _ := p.entry().parts()
		if child == nil || string(there) == rest {
			return rest, true, nil
		}
		rest = rest[1:]
		next := step{}
		if p.draft != nil {
			next.draft = p.draft.entries[p.at].child
		}
		if next.draft == nil {
			if next.shard, err = e.tree.shard(ctx, link(child), key[:len(key)-len(rest)]); err != nil {
				return "", false, err
			}
		}
		p = next
	}
}

// find is shard.find for a draft.
func (d *draft) find(rest string) (int, bool) {
	for i := range d.entries {
		if c := d.entries[i].entry.compareFirst(rest); c >= 0 {
			return i, c == 0
		}
	}
	return len(d.entries), false
}

// own makes drafts of the shards of e.path, which key led to, and returns the
// last of them and the place in it.
func (e *Edit) own(key string) (*draft, int) {
	for i := range e.path {
		p := &e.path[i]
		if p.draft != nil {
			continue
		}
		// The prefix of the shard at depth i is as long as that.
		p.draft = e.newDraft(key[:i], p.shard.len()+1)
		p.draft.old = p.shard.cid
		for k := range p.shard.len() {
			p.draft.entries = append(p.draft.entries, slot{entry: p.shard.entry(k)})
		}
		e.touched = append(e.touched, p.shard.cid)
		if i == 0 {
			e.root = p.draft
		} else {
			up := e.path[i-1]
			up.draft.entries[up.at].child = p.draft
		}
		p.shard = nil
	}
	last := e.path[len(e.path)-1]
	return last.draft, last.at
}

// Commit hashes what has changed and returns the new tree. If its root is the
// old one there are no Additions and no Removals. It does not store anything;
// the new tree keeps the Additions until Tree.Stored.
func (e *Edit) Commit() Result {
	r := e.commit()
	e.reset(r.Tree)
	return r
}

func (e *Edit) commit() Result {
	if e.root == nil {
		return Result{Tree: e.tree}
	}
	w := writer{spare: e.spare}
	w.prepare(e.root)
	root := w.write(e.root)
	e.spare = w.spare
	if len(w.shards) == 0 {
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
	r.Tree.root = root
	r.Tree.fresh = newFresh(e.tree.fresh.without(removed, w.shards))
	return r
}

// A writer encodes and hashes the drafts of an edit.
type writer struct {
	shards    []*shard
	additions []car.Block
	removed   []cid.Cid
	spare     []*draft // to be used again
}

// prepare makes room for a draft and its descendants.
func (w *writer) prepare(d *draft) {
	drafts := d.count()
	w.shards = make([]*shard, 0, drafts)
	w.additions = make([]car.Block, 0, drafts)
	w.removed = make([]cid.Cid, 0, drafts)
}

// count returns the number of drafts.
func (d *draft) count() int {
	n := 1
	for i := range d.entries {
		if child := d.entries[i].child; child != nil {
			n += child.count()
		}
	}
	return n
}

// write makes shards of a draft and its descendants and returns its CID.
func (w *writer) write(d *draft) cid.Cid {
	s := d.shard()
	for i := range d.entries {
		if child := d.entries[i].child; child != nil {
			copy(s.entry(i)[childOffset:], w.write(child).KeyString())
		}
	}
	sum := sha256.Sum256(s.block())
	var l link
	copy(l[copy(l[:], linkPrefix):], sum[:])
	s.cid = l.cid()
	if s.cid != d.old {
		if d.old.Defined() {
			w.removed = append(w.removed, d.old)
		}
		w.shards = append(w.shards, s)
		w.additions = append(w.additions, car.Block{CID: s.cid, Data: s.block()})
	}
	if len(w.spare) < maxSpareDrafts {
		clear(d.entries)
		*d = draft{entries: d.entries[:0]}
		w.spare = append(w.spare, d)
	}
	return s.cid
}

// size returns the length of the block.
func (d *draft) size() int {
	n := len(shardHead) + dagcbor.HeadSize(len(d.prefix)) + len(d.prefix) +
		len(shardEntries) + dagcbor.HeadSize(len(d.entries)) + len(shardTail)
	for i := range d.entries {
		n += len(d.entries[i].entry)
	}
	return n
}

// shard returns the shard of a draft, without CID and without the links of
// children that are drafts.
func (d *draft) shard() *shard {
	s := newShard(d.size(), len(d.entries))
	b := append(s.mem[:0], shardHead...)
	b = dagcbor.AppendText(b, d.prefix)
	b = append(b, shardEntries...)
	b = dagcbor.AppendArray(b, len(d.entries))
	for i := range d.entries {
		s.setOffset(i, len(b))
		b = append(b, d.entries[i].entry...)
	}
	s.setOffset(len(d.entries), len(b))
	if b = append(b, shardTail...); len(b) != int(s.size) {
		panic("pail: internal error: shard of another size than foreseen")
	}
	return s
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
