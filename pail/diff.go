package pail

import (
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
		d := differ{ctx: ctx, a: a, b: b, emit: func(key, before, after string) bool {
			return before == after || yield(Change{key, toCID(before), toCID(after)}, nil)
		}}
		if _, err := d.shards(a.root, b.root, ""); err != nil {
			yield(Change{}, err)
		}
	}
}

type differ struct {
	ctx  context.Context
	a, b Tree
	emit func(key, before, after string) bool // binary CIDs, "" for none
}

// shards compares the subtrees at two CIDs. Like everything below it returns
// false when emit did, or with an error.
func (d *differ) shards(before, after, prefix string) (bool, error) {
	if before == after {
		return true, nil
	}
	x, err := d.a.shard(d.ctx, before, prefix)
	if err != nil {
		return false, err
	}
	y, err := d.b.shard(d.ctx, after, prefix)
	if err != nil {
		return false, err
	}
	i, j := 0, 0
	for i < len(x.entries) || j < len(y.entries) {
		var p, q entry // of the same first character; without key if there is none
		switch order := compareFirst(x.entries[i:], y.entries[j:]); {
		case order < 0:
			p, i = x.entries[i], i+1
		case order > 0:
			q, j = y.entries[j], j+1
		default:
			p, q, i, j = x.entries[i], y.entries[j], i+1, j+1
		}
		if more, err := d.entries(p, q, prefix); !more || err != nil {
			return false, err
		}
	}
	return true, nil
}

// compareFirst compares the first characters of the first entries. No entry
// comes after any other, and the empty key before.
func compareFirst(x, y []entry) int {
	rank := func(e []entry) int {
		switch {
		case len(e) == 0:
			return 1 << 8
		case e[0].key == "":
			return -1
		}
		return int(e[0].key[0])
	}
	return rank(x) - rank(y)
}

// entries compares two entries that begin with the same character, or of which
// one is the zero entry.
func (d *differ) entries(p, q entry, prefix string) (bool, error) {
	switch {
	case p.link != "" && q.link != "":
		key := prefix + p.key
		if !d.emit(key, p.value, q.value) {
			return false, nil
		}
		return d.shards(p.link, q.link, key)
	case p.link != "":
		return d.against(d.a, p, q, prefix, func(key, tree, other string) bool { return d.emit(key, tree, other) })
	case q.link != "":
		return d.against(d.b, q, p, prefix, func(key, tree, other string) bool { return d.emit(key, other, tree) })
	case p.key == q.key:
		return d.emit(prefix+p.key, p.value, q.value), nil
	}
	if q.value == "" || p.value != "" && p.key < q.key {
		return d.emit(prefix+p.key, p.value, "") && (q.value == "" || d.emit(prefix+q.key, "", q.value)), nil
	}
	return d.emit(prefix+q.key, "", q.value) && (p.value == "" || d.emit(prefix+p.key, p.value, "")), nil
}

// against compares the subtree of an entry with at most one other key.
func (d *differ) against(t Tree, subtree, other entry, prefix string, emit func(key, tree, other string) bool) (bool, error) {
	single, pending := prefix+other.key, other.value != ""
	visit := func(key, value string) bool {
		if pending && single <= key {
			pending = false
			if single == key {
				return emit(key, value, other.value)
			}
			if !emit(single, "", other.value) {
				return false
			}
		}
		return emit(key, value, "")
	}
	key := prefix + subtree.key
	if subtree.value != "" && !visit(key, subtree.value) {
		return false, nil
	}
	if more, err := t.walk(d.ctx, subtree.link, key, Range{}, visit); !more || err != nil {
		return false, err
	}
	return !pending || emit(single, "", other.value), nil
}
