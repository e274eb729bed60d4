package ledger

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"

	"github.com/ipfs/go-cid"

	"fpnode/blockstore"
	"fpnode/internal/dagcbor"
	"fpnode/internal/planted"
)

// Indexes are local and rebuildable: rows in the derived space, brought up to date by the query that needs them from
// the view's change numbers. What JavaScript keeps in idx-data is a cache of its own that it always discards.
//
//	i kind(1) name                        version(1) change(8) revision
//	x digest(16) d id                     { length(uvarint) key } …             what the document emitted
//	x digest(16) k key 00 id 00 n(4)      flags(1) CID { length exact } value   its n-th emission
//
// kind is f for a field and m for a map function; digest is the front of SHA2-256(kind ‖ name). change is the view's
// change up to which the index is complete; it is written in the same batch as the rows. key is the form that
// charwise.go draws; it holds no 00, so rows stand in JavaScript's order: by key, then id, then emission. CID is the
// document block the row was made from. If flags has bit 0, the key form is ambiguous and the key itself follows in
// DAG-CBOR, after its length. value is DAG-CBOR, absent for null.
const (
	keyIndex    = 'i'
	keyRows     = 'x'
	keyRowDoc   = 'd'
	keyRowEntry = 'k'

	indexField = 'f'
	indexMap   = 'm'

	indexVersion = 1

	rowAmbiguous = 1 << 0
)

// IndexError says which document an index cannot hold, and why. A query on that index fails until the document is
// changed; JavaScript Fireproof fails there too, without naming it.
type IndexError struct {
	ID  string
	Err error // a [*LimitError], or what is wrong with the key or value
}

func (e *IndexError) Error() string { return fmt.Sprintf("document %.80q: %v", e.ID, e.Err) }

func (e *IndexError) Unwrap() error { return e.Err }

// index is one index while its turn is held: nobody else reads or writes its head or changes its rows.
type index struct {
	kind     byte
	name     string
	revision string
	digest   [16]byte
	change   uint64 // complete up to here

	turn chan struct{}
}

// indexTurns lets one query at a time bring an index up to date. Indexes that share one wait for each other.
type indexTurns [64]chan struct{} // each of capacity 1, full while held

func newIndexTurns() *indexTurns {
	t := new(indexTurns)
	for i := range t {
		t[i] = make(chan struct{}, 1)
	}
	return t
}

// all takes every turn: nobody brings an index up to date until release is called.
func (t *indexTurns) all() (release func()) {
	for _, turn := range t {
		turn <- struct{}{}
	}
	return func() {
		for _, turn := range t {
			<-turn
		}
	}
}

func (l *Ledger) newIndex(kind byte, name, revision string) *index {
	x := &index{kind: kind, name: name, revision: revision}
	sum := sha256.Sum256(append([]byte{kind}, name...))
	x.digest = [16]byte(sum[:])
	x.turn = l.indexTurns[int(sum[16])%len(l.indexTurns)]
	return x
}

func (x *index) release() { <-x.turn }

func (x *index) headKey() []byte { return append([]byte{keyIndex, x.kind}, x.name...) }

// rows is the prefix of the index's records, or of those of one letter.
func (x *index) rows(letter ...byte) []byte {
	return append(append([]byte{keyRows}, x.digest[:]...), letter...)
}

// rowKey is the key of the n-th emission of a document.
func (x *index) rowKey(key []byte, id string, n int) []byte {
	b := make([]byte, 0, 1+len(x.digest)+1+len(key)+1+len(id)+5)
	b = append(b, keyRows)
	b = append(b, x.digest[:]...)
	b = append(b, keyRowEntry)
	b = append(b, key...)
	b = append(b, 0)
	b = append(b, id...)
	b = append(b, 0)
	return binary.BigEndian.AppendUint32(b, uint32(n))
}

// freshIndex brings the query's index up to date and returns it with a snapshot of its rows, which the caller closes.
func (l *Ledger) freshIndex(ctx context.Context, q *Query) (*index, *blockstore.Snapshot, error) {
	x := l.newIndex(indexField, q.Field, "")
	if q.Map != nil {
		x = l.newIndex(indexMap, q.Name, q.Revision)
	}
	select {
	case x.turn <- struct{}{}:
	case <-ctx.Done():
		return nil, nil, ctx.Err()
	}
	defer x.release() // also if the map function panics
	if l.state.Load().changes > 0 {
		err := l.loadIndex(x)
		if err == nil {
			err = l.followChanges(ctx, x, q.Map)
		}
		if err != nil {
			return nil, nil, fmt.Errorf("index %.80q: %w", x.name, err)
		}
	}
	return x, l.view.d.Snapshot(), nil
}

// loadIndex reads how far an index is. One that is absent, or of another definition, starts over.
func (l *Ledger) loadIndex(x *index) error {
	head, ok, err := l.view.d.Get(x.headKey())
	if err != nil {
		return fmt.Errorf("reading: %w", err)
	}
	if !ok {
		// Rows without a head are what a crash left of a first build.
		if err := l.makeRoomForIndex(x.turn); err != nil {
			return err
		}
		return l.dropRows(x)
	}
	version, change, revision, ok := parseIndexHead(head)
	if !ok || version != indexVersion || revision != x.revision || change > l.state.Load().changes {
		return l.dropRows(x)
	}
	x.change = change
	return nil
}

func (x *index) appendHead(b []byte) []byte {
	b = binary.BigEndian.AppendUint64(append(b, indexVersion), x.change)
	return append(b, x.revision...)
}

func parseIndexHead(b []byte) (version byte, change uint64, revision string, ok bool) {
	if len(b) < 9 {
		return 0, 0, "", false
	}
	return b[0], binary.BigEndian.Uint64(b[1:]), string(b[9:]), true
}

func (l *Ledger) dropRows(x *index) error {
	b := l.view.d.NewBatch()
	defer b.Close()
	b.DeleteRange(x.rows(), prefixEnd(x.rows()))
	b.Delete(x.headKey())
	if err := b.Commit(); err != nil {
		return fmt.Errorf("dropping: %w", err)
	}
	return nil
}

// prefixEnd is the first key after all that begin with p, which begins with a byte under 0xff.
func prefixEnd(p []byte) []byte {
	end := bytes.Clone(p)
	for end[len(end)-1] == 0xff {
		end = end[:len(end)-1]
	}
	end[len(end)-1]++
	return end
}

// makeRoomForIndex drops the index that is furthest behind if there are [MaxIndexes]: it was queried longest ago.
// held is the turn the caller has. Indexes that a query is using now stay.
func (l *Ledger) makeRoomForIndex(held chan struct{}) error {
	type candidate struct {
		change uint64
		key    string
	}
	var all []candidate
	for kv, err := range l.view.d.Scan([]byte{keyIndex}, []byte{keyIndex + 1}, false) {
		if err != nil {
			return fmt.Errorf("listing indexes: %w", err)
		}
		_, change, _, _ := parseIndexHead(kv.Value)
		all = append(all, candidate{change: change, key: string(kv.Key)})
	}
	if len(all) < MaxIndexes {
		return nil
	}
	slices.SortFunc(all, func(a, b candidate) int { return cmp.Compare(a.change, b.change) })
	for _, c := range all {
		if len(c.key) < 2 {
			return errors.New("malformed index record")
		}
		x := l.newIndex(c.key[1], c.key[2:], "")
		if x.turn == held {
			return l.dropRows(x)
		}
		select {
		case x.turn <- struct{}{}:
			defer x.release()
			return l.dropRows(x)
		default:
		}
	}
	return nil
}

// followChanges brings an index up to the current state. Progress is kept step by step, so an interrupted build goes
// on where it was. A commit that the view is still taking in may already show in part; every acknowledged one does.
func (l *Ledger) followChanges(ctx context.Context, x *index, fn func(Doc, func(key, value any))) error {
	to := l.state.Load()
	if x.change >= to.changes {
		return nil
	}
	s := &indexStep{l: l, x: x, fn: fn, following: x.change > 0, to: to}
	s.begin()
	defer func() { s.b.Close() }()
	for row, err := range l.view.changesAfter(x.change) {
		if err == nil {
			err = ctx.Err()
		}
		if err != nil {
			return err
		}
		if _, twice := s.done[row.id]; twice || s.b.Len() >= indexBatchBytes || len(s.done) >= indexBatchDocs {
			// What comes before this record is complete; records of an unfinished commit do not count.
			if err := s.commit(min(row.change-1, to.changes)); err != nil {
				return err
			}
		}
		if err := s.document(ctx, row.id); err != nil {
			return err
		}
	}
	return s.commit(to.changes)
}

// indexStep is the part of an update that is written together.
type indexStep struct {
	l         *Ledger
	x         *index
	fn        func(Doc, func(key, value any)) // nil for a field
	following bool                            // the index was complete up to some change before
	to        *state

	b    *blockstore.DerivedBatch
	done map[string]struct{} // documents in it

	emitted []emission // by the document at hand
	arena   []byte     // their bytes
	err     error      // what was wrong with one
}

// emission is one row on its way in: pieces of the step's arena.
type emission struct {
	key   span
	exact span // empty unless the key form is ambiguous
	value span // empty for null
}

type span struct{ from, to int }

func (s *indexStep) bytes(p span) []byte { return s.arena[p.from:p.to] }

func (s *indexStep) begin() {
	s.b, s.done = s.l.view.d.NewBatch(), map[string]struct{}{}
}

// commit writes the step, and with it up to which change the index is now complete.
func (s *indexStep) commit(change uint64) error {
	s.x.change = max(change, s.x.change)
	s.b.Set(s.x.headKey(), s.x.appendHead(nil))
	if err := s.b.Commit(); err != nil {
		return err
	}
	s.b.Close()
	s.begin()
	return nil
}

// document replaces the rows of one document by those of its current value.
func (s *indexStep) document(ctx context.Context, id string) error {
	s.done[id] = struct{}{}
	s.emitted, s.arena, s.err = s.emitted[:0], s.arena[:0], nil
	e, ok, err := s.l.view.get(id)
	if err != nil {
		return err
	}
	if planted.StaleIndex && s.following && e.event+1 < s.to.events {
		return nil
	}
	if ok && e.flags&(flagTombstone|flagHidden) == 0 {
		if err := s.emissions(ctx, id, e.value); err != nil {
			return err
		}
	}
	docKey := append(s.x.rows(keyRowDoc), id...)
	if err := s.clear(docKey, id); err != nil {
		return err
	}
	if len(s.emitted) == 0 {
		return nil
	}
	var keys []byte
	for n, em := range s.emitted {
		key := s.bytes(em.key)
		keys = append(binary.AppendUvarint(keys, uint64(len(key))), key...)
		row := append([]byte{0}, e.value.KeyString()...)
		if exact := s.bytes(em.exact); len(exact) > 0 {
			row[0] |= rowAmbiguous
			row = append(binary.AppendUvarint(row, uint64(len(exact))), exact...)
		}
		row = append(row, s.bytes(em.value)...)
		s.b.Set(s.x.rowKey(key, id, n), row)
	}
	s.b.Set(docKey, keys)
	return nil
}

// clear deletes the rows a document has, and the record that lists them.
func (s *indexStep) clear(docKey []byte, id string) error {
	keys, ok, err := s.l.view.d.Get(docKey)
	if err != nil || !ok {
		return err
	}
	for n := 0; len(keys) > 0; n++ {
		size, w := binary.Uvarint(keys)
		if w <= 0 || size > uint64(len(keys)-w) {
			return errors.New("malformed index record")
		}
		s.b.Delete(s.x.rowKey(keys[w:w+int(size)], id, n))
		keys = keys[w+int(size):]
	}
	s.b.Delete(docKey)
	return nil
}

// emissions collects what one version of a document puts into the index.
func (s *indexStep) emissions(ctx context.Context, id string, c cid.Cid) error {
	block, err := s.l.store.Block(ctx, c)
	if err != nil {
		return fmt.Errorf("document %.80q: %w", id, err)
	}
	d, err := newDoc(id, c, block)
	if err != nil {
		return nil // not a document, so it has no fields
	}
	if s.fn != nil {
		s.fn(d, s.emit)
	} else if v, ok := d.Field(s.x.name); ok && v != nil {
		s.emit(v, nil)
	}
	if s.err != nil {
		return &IndexError{ID: id, Err: s.err}
	}
	return nil
}

// emit takes one row.
func (s *indexStep) emit(key, value any) {
	if s.err == nil {
		s.err = s.add(key, value)
	}
}

// add appends one row to the arena. As in Fireproof, a falsy value counts as null.
func (s *indexStep) add(key, value any) error {
	if len(s.emitted) == MaxIndexEmits {
		return &LimitError{What: "rows of one document", Size: MaxIndexEmits + 1, Max: MaxIndexEmits}
	}
	var em emission
	start := len(s.arena)
	arena, exact, err := appendKey(s.arena, key)
	if err != nil {
		return err
	}
	em.key = span{start, len(arena)}
	if size := len(arena) - start; size > MaxIndexKeyBytes {
		return &LimitError{What: "index key in bytes", Size: int64(size), Max: MaxIndexKeyBytes}
	}
	start = len(arena)
	if !exact {
		b, err := dagcbor.Marshal(storedKey(key))
		if err != nil {
			return fmt.Errorf("key: %w", err)
		}
		arena = append(arena, b...)
	}
	em.exact = span{start, len(arena)}
	start = len(arena)
	if !falsy(value) {
		b, err := dagcbor.Marshal(value)
		if err != nil {
			return fmt.Errorf("value: %w", err)
		}
		if len(b) > MaxIndexValueBytes {
			return &LimitError{What: "index value in bytes", Size: int64(len(b)), Max: MaxIndexValueBytes}
		}
		arena = append(arena, b...)
	}
	em.value = span{start, len(arena)}
	s.arena = arena
	s.emitted = append(s.emitted, em)
	return nil
}

// falsy says whether JavaScript takes v for false.
func falsy(v any) bool {
	switch v := v.(type) {
	case nil:
		return true
	case bool:
		return !v
	case string:
		return v == ""
	}
	n, ok := keyNumber(v)
	return ok && (n == 0 || math.IsNaN(n))
}

// storedKey is a key as values DAG-CBOR can hold: numbers that it lacks become bytes, which no key has.
func storedKey(key any) any {
	switch key := key.(type) {
	case string:
		return strings.ToValidUTF8(key, "\ufffd")
	case []any:
		out := make([]any, len(key))
		for i, item := range key {
			out[i] = storedKey(item)
		}
		return out
	}
	if n, ok := keyNumber(key); ok {
		if math.IsNaN(n) || math.IsInf(n, 0) {
			return appendKeyNumber(nil, n)
		}
		return n
	}
	return key
}

// loadedKey undoes storedKey.
func loadedKey(v any) (any, error) {
	switch v := v.(type) {
	case []byte:
		return parseKeyNumber(v)
	case []any:
		for i := range v {
			item, err := loadedKey(v[i])
			if err != nil {
				return nil, err
			}
			v[i] = item
		}
	}
	return v, nil
}

// indexRow is one row as it is read.
type indexRow struct {
	key       any
	ambiguous bool // other keys have the same form
	id        string
	doc       cid.Cid
	value     []byte // DAG-CBOR, empty for null
}

// parseRow takes apart a record whose key had the prefix rows(keyRowEntry). It aliases value.
func parseRow(key, value []byte) (indexRow, error) {
	bad := errors.New("malformed index row")
	form, rest, ok := bytes.Cut(key, []byte{0})
	if !ok || len(rest) < 5 || len(value) == 0 {
		return indexRow{}, bad
	}
	r := indexRow{id: string(rest[:len(rest)-5]), ambiguous: value[0]&rowAmbiguous != 0}
	n, c, err := cid.CidFromBytes(value[1:])
	if err != nil {
		return indexRow{}, bad
	}
	r.doc, r.value = c, value[1+n:]
	if !r.ambiguous {
		r.key, err = parseKey(form)
		return r, err
	}
	size, w := binary.Uvarint(r.value)
	if w <= 0 || size > uint64(len(r.value)-w) {
		return indexRow{}, bad
	}
	v, err := dagcbor.Unmarshal(r.value[w : w+int(size)])
	if err != nil {
		return indexRow{}, bad
	}
	r.key, err = loadedKey(v)
	r.value = r.value[w+int(size):]
	return r, err
}
