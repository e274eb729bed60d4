package ledger

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"iter"

	"github.com/ipfs/go-cid"

	"fpnode/blockstore"
	"fpnode/pail"
)

// The view is what reads read: the current value of every key, beside what is needed to explain it. It lives in the
// derived space of the ledger's store and is written without a sync after each commit, so after a crash it may be
// behind the tips, never ahead. [Open] brings it up to date or rebuilds it.
//
//	v id                    flags(1) change(8) event(4) CID         the current value of a key
//	e seq(4)                CID ‖ CIDs of the parents               events, parents before children, from 0 without gaps
//	h id 00 seq(4) op(4)    CID                                     every value that event seq gave to the key
//	g change(8)             id                                      the keys in the order of their last change
//	s                       state, see appendState                  what the rest belongs to
//
// The first byte of a key is the letter; numbers are big-endian; CIDs are binary. An id holds no byte under 0x20, so
// 00 ends it. Letters i and x belong to the indexes (index.go).
//
// A key has exactly one g record, the one its v record names. change counts up by one for every key that an update
// touches, so a follower that has seen change n reads g from n+1 on and misses nothing.
const (
	keyView   = 'v'
	keyEvent  = 'e'
	keyOp     = 'h'
	keyChange = 'g'
	keyState  = 's'
)

// Flags of a view entry.
const (
	flagTombstone   = 1 << 0 // the value is the tombstone
	flagSoftDeleted = 1 << 1 // the document has a truthy _deleted field
	flagHidden      = 1 << 2 // the genesis document, and keys that a del event removed
)

const cidBytes = 36 // of an event: CIDv1, DAG-CBOR, SHA2-256

// entry is the view's record of one key.
type entry struct {
	flags  byte
	change uint64 // number of its last change
	event  uint32 // the event whose value it is
	value  cid.Cid
}

// listed says whether AllDocs shows the document by default.
func (e entry) listed() bool { return e.flags == 0 }

// view reads and writes the records drawn above. It is safe for concurrent readers beside one writer.
type view struct {
	d *blockstore.Derived
}

func viewKey(id string) []byte { return append([]byte{keyView}, id...) }

func eventKey(seq uint32) []byte { return binary.BigEndian.AppendUint32([]byte{keyEvent}, seq) }

func changeKey(n uint64) []byte { return binary.BigEndian.AppendUint64([]byte{keyChange}, n) }

func opPrefix(id string) []byte {
	return append(append([]byte{keyOp}, id...), 0)
}

func opKey(id string, seq, op uint32) []byte {
	k := binary.BigEndian.AppendUint32(opPrefix(id), seq)
	return binary.BigEndian.AppendUint32(k, op)
}

func appendEntry(b []byte, e entry) []byte {
	b = append(b, e.flags)
	b = binary.BigEndian.AppendUint64(b, e.change)
	b = binary.BigEndian.AppendUint32(b, e.event)
	return append(b, e.value.KeyString()...)
}

func parseEntry(b []byte) (entry, error) {
	if len(b) < 13 {
		return entry{}, errors.New("view entry is too short")
	}
	c, err := cid.Cast(b[13:])
	if err != nil {
		return entry{}, fmt.Errorf("view entry: %w", err)
	}
	return entry{flags: b[0], change: binary.BigEndian.Uint64(b[1:]), event: binary.BigEndian.Uint32(b[9:]), value: c}, nil
}

// get is the entry of one key.
func (v *view) get(id string) (entry, bool, error) {
	b, ok, err := v.d.Get(viewKey(id))
	if err != nil || !ok {
		return entry{}, false, err
	}
	e, err := parseEntry(b)
	return e, err == nil, err
}

// entries walks the keys in [from, to) in order, "" meaning no bound, over one snapshot.
func (v *view) entries(from, to string, reverse bool) iter.Seq2[viewRow, error] {
	return func(yield func(viewRow, error) bool) {
		hi := []byte{keyView + 1}
		if to != "" {
			hi = viewKey(to)
		}
		for kv, err := range v.d.Scan(viewKey(from), hi, reverse) {
			if err != nil {
				yield(viewRow{}, err)
				return
			}
			e, err := parseEntry(kv.Value)
			if !yield(viewRow{id: string(kv.Key[1:]), entry: e}, err) || err != nil {
				return
			}
		}
	}
}

type viewRow struct {
	id string
	entry
}

// changesAfter walks the keys whose last change is later than n, in that order, over one snapshot.
func (v *view) changesAfter(n uint64) iter.Seq2[changeRow, error] {
	return func(yield func(changeRow, error) bool) {
		for kv, err := range v.d.Scan(changeKey(n+1), []byte{keyChange + 1}, false) {
			if err != nil {
				yield(changeRow{}, err)
				return
			}
			if len(kv.Key) != 9 {
				yield(changeRow{}, errors.New("view: malformed change record"))
				return
			}
			if !yield(changeRow{change: binary.BigEndian.Uint64(kv.Key[1:]), id: string(kv.Value)}, nil) {
				return
			}
		}
	}
}

type changeRow struct {
	change uint64
	id     string
}

// op is one value that an event gave to a key.
type op struct {
	seq, n uint32 // event, and place among its ops
	value  cid.Cid
}

// ops lists every value ever given to a key, in the order in which the events arrived here.
func (v *view) ops(id string) ([]op, error) {
	prefix := opPrefix(id)
	var out []op
	for kv, err := range v.d.Scan(prefix, append(bytes.Clone(prefix[:len(prefix)-1]), 1), false) {
		if err != nil {
			return nil, err
		}
		_, o, err := parseOp(kv.Key, kv.Value)
		if err != nil {
			return nil, err
		}
		out = append(out, o)
	}
	return out, nil
}

// allOps walks the ops of every key, key by key.
func (v *view) allOps() iter.Seq2[opRow, error] {
	return func(yield func(opRow, error) bool) {
		for kv, err := range v.d.Scan([]byte{keyOp}, []byte{keyOp + 1}, false) {
			if err != nil {
				yield(opRow{}, err)
				return
			}
			id, o, err := parseOp(kv.Key, kv.Value)
			if !yield(opRow{id: id, op: o}, err) || err != nil {
				return
			}
		}
	}
}

type opRow struct {
	id string
	op
}

func parseOp(key, value []byte) (string, op, error) {
	i := bytes.IndexByte(key, 0)
	if i < 1 || len(key) != i+9 {
		return "", op{}, errors.New("view: malformed operation record")
	}
	c, err := cid.Cast(value)
	if err != nil {
		return "", op{}, fmt.Errorf("view: operation record: %w", err)
	}
	return string(key[1:i]), op{
		seq:   binary.BigEndian.Uint32(key[i+1:]),
		n:     binary.BigEndian.Uint32(key[i+5:]),
		value: c,
	}, nil
}

// events walks the event records from seq on.
func (v *view) events(seq uint32) iter.Seq2[eventRow, error] {
	return func(yield func(eventRow, error) bool) {
		for kv, err := range v.d.Scan(eventKey(seq), []byte{keyEvent + 1}, false) {
			if err != nil {
				yield(eventRow{}, err)
				return
			}
			r, err := parseEvent(kv.Key, kv.Value)
			if !yield(r, err) || err != nil {
				return
			}
		}
	}
}

type eventRow struct {
	seq     uint32
	cid     cid.Cid
	parents []cid.Cid
}

// event is one event record.
func (v *view) event(seq uint32) (eventRow, error) {
	k := eventKey(seq)
	b, ok, err := v.d.Get(k)
	if err != nil {
		return eventRow{}, err
	}
	if !ok {
		return eventRow{}, fmt.Errorf("view: no event %d", seq)
	}
	return parseEvent(k, b)
}

func parseEvent(key, value []byte) (eventRow, error) {
	if len(key) != 5 || len(value) == 0 || len(value)%cidBytes != 0 {
		return eventRow{}, errors.New("view: malformed event record")
	}
	r := eventRow{seq: binary.BigEndian.Uint32(key[1:])}
	var err error
	if r.cid, err = cid.Cast(value[:cidBytes]); err != nil {
		return eventRow{}, fmt.Errorf("view: event record: %w", err)
	}
	for b := value[cidBytes:]; len(b) > 0; b = b[cidBytes:] {
		p, err := cid.Cast(b[:cidBytes])
		if err != nil {
			return eventRow{}, fmt.Errorf("view: event record: %w", err)
		}
		r.parents = append(r.parents, p)
	}
	return r, nil
}

// state is one version of the ledger. It is never changed: the writer replaces it.
type state struct {
	head    []cid.Cid // events nobody has built on; see headOf for the order
	root    cid.Cid   // of the merged trie; undefined while head is empty
	tips    []blockstore.Meta
	joined  []cid.Cid // heads that joined ours without a tip; see merge.go
	events  uint32    // event records
	changes uint64    // number of the last change
	docs    uint64    // documents AllDocs lists
}

const stateVersion = 1

// appendState writes the record s: version(1) events(4) changes(8) docs(8), then root, head, tips and joined, each
// as a count(4) and that many CIDs of 36 bytes.
func appendState(b []byte, s *state) []byte {
	b = append(b, stateVersion)
	b = binary.BigEndian.AppendUint32(b, s.events)
	b = binary.BigEndian.AppendUint64(b, s.changes)
	b = binary.BigEndian.AppendUint64(b, s.docs)
	var root []cid.Cid
	if s.root.Defined() {
		root = []cid.Cid{s.root}
	}
	b = appendCIDs(b, root)
	b = appendCIDs(b, s.head)
	b = appendCIDs(b, metaCIDs(s.tips))
	return appendCIDs(b, s.joined)
}

// parseState reads the record s. It holds the tips' CIDs only.
func parseState(b []byte) (s state, tips []cid.Cid, err error) {
	if len(b) < 21 || b[0] != stateVersion {
		return state{}, nil, errors.New("view: state record of another version")
	}
	s.events = binary.BigEndian.Uint32(b[1:])
	s.changes = binary.BigEndian.Uint64(b[5:])
	s.docs = binary.BigEndian.Uint64(b[13:])
	b = b[21:]
	var root []cid.Cid
	for _, l := range []*[]cid.Cid{&root, &s.head, &tips, &s.joined} {
		if *l, b, err = parseCIDs(b); err != nil {
			return state{}, nil, fmt.Errorf("view: state record: %w", err)
		}
	}
	if len(b) > 0 || len(root) > 1 || (len(root) == 0) != (len(s.head) == 0) {
		return state{}, nil, errors.New("view: malformed state record")
	}
	if len(root) == 1 {
		s.root = root[0]
	}
	return s, tips, nil
}

func appendCIDs(b []byte, l []cid.Cid) []byte {
	b = binary.BigEndian.AppendUint32(b, uint32(len(l)))
	for _, c := range l {
		b = append(b, c.KeyString()...)
	}
	return b
}

func parseCIDs(b []byte) (l []cid.Cid, rest []byte, err error) {
	if len(b) < 4 {
		return nil, nil, errors.New("truncated list")
	}
	n := int(binary.BigEndian.Uint32(b))
	b = b[4:]
	if n > len(b)/cidBytes {
		return nil, nil, errors.New("truncated list")
	}
	for range n {
		c, err := cid.Cast(b[:cidBytes])
		if err != nil {
			return nil, nil, err
		}
		l, b = append(l, c), b[cidBytes:]
	}
	return l, b, nil
}

// newValue is a key whose current value an update replaces.
type newValue struct {
	id    string
	value cid.Cid // undefined if the key is gone, which only a del event does and Fireproof never writes
	event uint32
	block []byte // the value's block where it is at hand
	fresh bool   // the key had no value before
}

// update collects what one transition changes in the view. Its order is: events, changes, finish.
type update struct {
	ctx   context.Context
	l     *Ledger
	b     *blockstore.DerivedBatch
	size  int
	next  state
	hot   []Doc        // current values to be put into the cache, by batch
	cold  []string     // keys to be dropped from it
	notes []changeNote // for watchers; at most watchBuffer+1
	index []eventRow   // for the ancestry index, if it is loaded
}

func (l *Ledger) newUpdate(ctx context.Context, next state) *update {
	return &update{ctx: ctx, l: l, b: l.view.d.NewBatch(), next: next}
}

// close releases what was not written.
func (u *update) close() { u.b.Close() }

// event records an event and its ops, and gives it the next sequence number.
func (u *update) event(c cid.Cid, parents []cid.Cid, data pail.Data) (uint32, error) {
	seq := u.next.events
	u.next.events++
	value := append(make([]byte, 0, cidBytes*(1+len(parents))), c.KeyString()...)
	for _, p := range parents {
		value = append(value, p.KeyString()...)
	}
	u.set(eventKey(seq), value)
	for i, o := range data.Ops {
		if o.Del {
			continue
		}
		u.set(opKey(o.Key, seq, uint32(i)), []byte(o.Value.KeyString()))
	}
	u.index = append(u.index, eventRow{seq: seq, cid: c, parents: parents})
	return seq, nil
}

// change records a key's new current value.
func (u *update) change(k newValue) error {
	var old entry
	var had bool
	var err error
	if !k.fresh {
		if old, had, err = u.l.view.get(k.id); err != nil {
			return fmt.Errorf("reading the view: %w", err)
		}
	}
	if had {
		u.delete(changeKey(old.change))
		if old.listed() {
			u.next.docs--
		}
	}
	e := entry{event: k.event, value: k.value}
	if !k.value.Defined() {
		e.flags, e.value = flagTombstone|flagHidden, tombstoneCID
		u.cold = append(u.cold, k.id)
	} else if e.flags, err = u.flags(k); err != nil {
		return err
	}
	u.next.changes++
	e.change = u.next.changes
	if e.listed() {
		u.next.docs++
	}
	u.set(viewKey(k.id), appendEntry(nil, e))
	u.set(changeKey(e.change), []byte(k.id))
	if e.flags&flagHidden == 0 && len(u.notes) <= watchBuffer {
		u.notes = append(u.notes, changeNote{change: e.change, event: e.event, id: k.id, value: e.value})
	}
	return u.flush(viewBatchBytes)
}

// flags looks at a key's new value, and prepares what the cache gets.
func (u *update) flags(k newValue) (byte, error) {
	switch {
	case k.id == pail.GenesisKey:
		u.cold = append(u.cold, k.id)
		return flagHidden, nil
	case k.value == tombstoneCID:
		u.cold = append(u.cold, k.id)
		return flagTombstone, nil
	}
	if k.block == nil {
		b, err := u.l.store.Block(u.ctx, k.value)
		var damage *blockstore.CorruptError
		if errors.Is(err, blockstore.ErrNotFound) || errors.As(err, &damage) {
			// One document that was lost on disk does not keep the others from being read. Get reports it.
			u.l.log.Error("document cannot be read", "cid", k.value, "err", err)
			u.cold = append(u.cold, k.id)
			return 0, nil
		}
		if err != nil {
			return 0, fmt.Errorf("reading document %.80q: %w", k.id, err)
		}
		k.block = b
	}
	d, err := newDoc(k.id, k.value, k.block)
	if err != nil {
		// A foreign writer stored something else under the key. It stays readable as far as JavaScript can
		// read it, that is not at all: Get reports it.
		u.cold = append(u.cold, k.id)
		return 0, nil
	}
	u.hot = append(u.hot, d)
	if d.softDeleted() {
		return flagSoftDeleted, nil
	}
	return 0, nil
}

func (u *update) set(key, value []byte) {
	u.size += len(key) + len(value) + 16
	u.b.Set(key, value)
}

func (u *update) delete(key []byte) {
	u.size += len(key) + 16
	u.b.Delete(key)
}

// flush writes what has been collected if it is at least min bytes. A crash between two parts leaves an old state
// record beside newer entries, which Open repairs by coming up to date again.
func (u *update) flush(min int) error {
	if u.size < min {
		return nil
	}
	if err := u.b.Commit(); err != nil {
		return fmt.Errorf("updating the view: %w", err)
	}
	u.l.docs.set(u.hot, u.cold)
	u.close()
	u.b, u.size, u.hot, u.cold = u.l.view.d.NewBatch(), 0, nil, nil
	return nil
}

// finish writes the state record, which makes the update whole, and shows the new state to readers and watchers.
func (u *update) finish() error {
	u.set([]byte{keyState}, appendState(nil, &u.next))
	if err := u.flush(0); err != nil {
		return err
	}
	u.l.extendIndex(u.index)
	next := u.next
	u.l.state.Store(&next)
	u.l.publish(u.notes)
	return nil
}
