package pail

import (
	"bytes"
	"context"
	"iter"

	"github.com/ipfs/go-cid"
)

// A Change is a key whose value differs between two trees. Old or New is
// cid.Undef if the key is only in the other one.
type Change struct {
	Key      string
	Old, New cid.Cid
}

// Diff returns the changes from a to b in ascending order of keys, and ends
// after the first error. It loads only shards that differ, so it takes time in
// proportion to the changes and their depth.
func Diff(ctx context.Context, a, b Tree) iter.Seq2[Change, error] {
	return func(yield func(Change, error) bool) {
		d := differ{ctx: ctx, a: a, b: b, emit: func(key string, before, after []byte) bool {
			return bytes.Equal(before, after) || yield(Change{key, toCID(before), toCID(after)}, nil)
		}}
		if _, err := d.roots(); err != nil {
			yield(Change{}, err)
		}
	}
}

type differ struct {
	ctx  context.Context
	a, b Tree
	emit func(key string, before, after []byte) bool // binary CIDs, nil for none
}

// roots compares the trees. Like everything below it returns false when emit
// did, or with an error.
func (d *differ) roots() (bool, error) {
	if d.a.root == d.b.root {
		return true, nil
	}
	x, err := d.a.rootShard(d.ctx)
	if err != nil {
		return false, err
	}
	y, err := d.b.rootShard(d.ctx)
	if err != nil {
		return false, err
	}
	return d.shards(x, y, "")
}

// children compares the subtrees that two links lead to.
func (d *differ) children(before, after []byte, prefix string) (bool, error) {
	if bytes.Equal(before, after) {
		return true, nil
	}
	x, err := d.a.shard(d.ctx, link(before), prefix)
	if err != nil {
		return false, err
	}
	y, err := d.b.shard(d.ctx, link(after), prefix)
	if err != nil {
		return false, err
	}
	return d.shards(x, y, prefix)
}

func (d *differ) shards(x, y *shard, prefix string) (bool, error) {
	i, j := 0, 0
	for i < x.len() || j < y.len() {
		var p, q part // whose keys begin with the same character
		order := compareFirst(x, i, y, j)
		if order <= 0 {
			p.key, p.child, p.value = x.entry(i).parts()
			i++
		}
		if order >= 0 {
			q.key, q.child, q.value = y.entry(j).parts()
			j++
		}
		if more, err := d.parts(p, q, prefix); !more || err != nil {
			return false, err
		}
	}
	return true, nil
}

// compareFirst compares the first characters of two entries. The end of a
// shard comes after any other.
func compareFirst(x *shard, i int, y *shard, j int) int {
	if i == x.len() {
		return 1
	}
	if j == y.len() {
		return -1
	}
	key, _, _ := y.entry(j).parts()
	return x.entry(i).compareFirst(string(key[:min(1, len(key))]))
}

// A part is an entry taken apart, or nothing.
type part struct{ key, child, value []byte }

// parts compares two entries that begin with the same character, or one with
// nothing.
func (d *differ) parts(p, q part, prefix string) (bool, error) {
	switch {
	case p.child != nil && q.child != nil:
		key := prefix + string(p.key)
		if !d.emit(key, p.value, q.value) {
			return false, nil
		}
		return d.children(p.child, q.child, key)
	case p.child != nil:
		return d.against(d.a, p, q, prefix, func(key string, tree, other []byte) bool { return d.emit(key, tree, other) })
	case q.child != nil:
		return d.against(d.b, q, p, prefix, func(key string, tree, other []byte) bool { return d.emit(key, other, tree) })
	case bytes.Equal(p.key, q.key):
		return d.emit(prefix+string(p.key), p.value, q.value), nil
	}
	first := func() bool { return p.value == nil || d.emit(prefix+string(p.key), p.value, nil) }
	second := func() bool { return q.value == nil || d.emit(prefix+string(q.key), nil, q.value) }
	if bytes.Compare(p.key, q.key) < 0 {
		return first() && second(), nil
	}
	return second() && first(), nil
}

// against compares the subtree of a part that has a child with at most one
// other key.
func (d *differ) against(t Tree, subtree, other part, prefix string, emit func(key string, tree, other []byte) bool) (bool, error) {
	single, pending := prefix+string(other.key), other.value != nil
	visit := func(key string, value []byte) bool {
		if pending && single <= key {
			pending = false
			if single == key {
				return emit(key, value, other.value)
			}
			if !emit(single, nil, other.value) {
				return false
			}
		}
		return emit(key, value, nil)
	}
	key := prefix + string(subtree.key)
	if subtree.value != nil && !visit(key, subtree.value) {
		return false, nil
	}
	s, err := t.shard(d.ctx, link(subtree.child), key)
	if err != nil {
		return false, err
	}
	if more, err := t.walk(d.ctx, s, key, Range{}, visit); !more || err != nil {
		return false, err
	}
	return !pending || emit(single, nil, other.value), nil
}
