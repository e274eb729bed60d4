// Package clock is the Merkle clock of a Fireproof ledger: events that name
// their parents by hash, heads, and the order in which concurrent events take
// effect.
//
// Use Decode and Encode for event blocks and an Index for everything that
// needs ancestry: feed it events with Add (in any order) or Fill (from a head
// down), keep a head with Advance, and ask Replay in which order a merge
// applies the events since the heads' common ancestor.
//
// Guarantees:
//
//   - CommonAncestor and Replay give what @web3-storage/pail 0.6.2 gives, on
//     every graph on which that terminates, in time linear in the events
//     between heads and ancestor (there it may be exponential). Neither
//     depends on the order of the heads.
//   - An event counts only when all of its ancestors are there. Until then it
//     is pending, and heads, ancestors and orders are as if it did not exist.
//   - One Index has one genesis, the event without parents. A second one is
//     refused with ErrGenesis: histories without a common event do not merge.
//
// The package does no I/O of its own and starts no goroutines. An Index may be
// read by many goroutines, or changed by one.
package clock

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/ipfs/go-cid"

	"fpnode/internal/dagcbor"
	"fpnode/internal/planted"
)

// A Fetcher finds blocks.
type Fetcher interface {
	// Block returns the bytes of a block, which are known to match c and are
	// not changed by anyone. If the block is not there the error says so; the
	// Fetchers of this module wrap a *MissingError or their own ErrNotFound.
	Block(ctx context.Context, c cid.Cid) ([]byte, error)
}

// Errors. A *MissingError is an ErrMissing.
var (
	ErrMissing = errors.New("missing block")
	ErrGenesis = errors.New("two events without parents: the histories have no common beginning and cannot be merged")
	ErrEvent   = errors.New("not an event")
	ErrLimit   = errors.New("over the limit")
)

// A MissingError names an event or block that is needed and not there.
type MissingError struct{ CID cid.Cid }

func (e *MissingError) Error() string { return "missing block: " + e.CID.String() }

// Unwrap returns ErrMissing.
func (e *MissingError) Unwrap() error { return ErrMissing }

// An Event is a decoded event block:
//
//	{data: any, parents: [CID…]}
type Event struct {
	CID     cid.Cid
	Parents []cid.Cid // in the order of the block
	Data    []byte    // the encoded data field, a part of the block
}

// Decode decodes an event block whose hash is known to be c. Parents may stand
// in any order: Pail before 0.6.2 did not sort them. The CID cannot be had by
// encoding again, so keep the block.
func Decode(c cid.Cid, block []byte) (Event, error) {
	if len(block) > MaxEventBytes {
		return Event{}, fmt.Errorf("%w: %d bytes: %w", ErrEvent, len(block), ErrLimit)
	}
	r := dagcbor.NewReader(block)
	if n := r.MapLen(); n != 2 && r.Err() == nil {
		return Event{}, fmt.Errorf("%w: %d fields", ErrEvent, n)
	}
	r.Key("data")
	e := Event{CID: c, Data: r.Raw()}
	r.Key("parents")
	n := r.ArrayLen()
	if n > MaxParents {
		return Event{}, fmt.Errorf("%w: %d parents: %w", ErrEvent, n, ErrLimit)
	}
	e.Parents = make([]cid.Cid, 0, n)
	for range n {
		p := r.Link()
		if r.Err() == nil && !isEventCID(p) {
			return Event{}, fmt.Errorf("%w: parent %s is not DAG-CBOR with SHA2-256", ErrEvent, p)
		}
		e.Parents = append(e.Parents, p)
	}
	if err := r.End(); err != nil {
		return Event{}, fmt.Errorf("%w: %w", ErrEvent, err)
	}
	return e, nil
}

// Encode returns the event block with this data, which is DAG-CBOR, and these
// parents, sorted by their bytes as Pail 0.6.2 does.
func Encode(data []byte, parents []cid.Cid) (cid.Cid, []byte) {
	parents = slices.Clone(parents)
	SortBytes(parents)
	if planted.DropParent && len(parents) > 1 {
		parents = parents[:len(parents)-1]
	}
	size := 32 + len(data)
	for _, p := range parents {
		size += dagcbor.LinkSize(p.ByteLen())
	}
	b := dagcbor.AppendMap(make([]byte, 0, size), 2)
	b = dagcbor.AppendText(b, "data")
	b = append(b, data...)
	b = dagcbor.AppendText(b, "parents")
	b = dagcbor.AppendArray(b, len(parents))
	for _, p := range parents {
		b = dagcbor.AppendLink(b, p)
	}
	return dagcbor.Sum(b), b
}

// SortBytes sorts by the bytes of the CIDs, the order of parents in an event.
func SortBytes(cids []cid.Cid) {
	slices.SortFunc(cids, func(a, b cid.Cid) int { return cmp.Compare(a.KeyString(), b.KeyString()) })
}

// SortText sorts by the text of the CIDs, the order of events of equal weight.
func SortText(cids []cid.Cid) { slices.SortFunc(cids, CompareText) }

// eventPrefix is how the CID of every event begins: version 1, DAG-CBOR,
// SHA2-256, 32 bytes.
const eventPrefix = "\x01\x71\x12\x20"

// An id is the hash inside an event's CID.
type id [32]byte

func isEventCID(c cid.Cid) bool {
	s := c.KeyString()
	return len(s) == len(eventPrefix)+len(id{}) && s[:len(eventPrefix)] == eventPrefix
}

// idOf returns the hash of an event's CID; isEventCID must hold.
func idOf(c cid.Cid) id { return id([]byte(c.KeyString()[len(eventPrefix):])) }

func (h id) cid() cid.Cid {
	var b [len(eventPrefix) + len(id{})]byte
	copy(b[copy(b[:], eventPrefix):], h[:])
	c, err := cid.Cast(b[:])
	if err != nil {
		panic("clock: internal error: " + err.Error())
	}
	return c
}
