package car

import (
	"errors"
	"fmt"

	"github.com/ipfs/go-cid"

	"fpnode/internal/dagcbor"
)

// ErrHeader is wrapped by the errors of DecodeHeader.
var ErrHeader = errors.New("not a Fireproof header")

// A Header is the header block of a commit, the root of its CAR (Fireproof
// format, "Data CAR"):
//
//	{fp: {cars: [[CID…]…], meta: M, compact: [[CID…]…]}}
//
// M is {head: [CID…]} in a data store and {indexes: …} in an index store, and
// may be {}. A list of CIDs inside cars or compact is a car group: the CARs of
// one commit.
type Header struct {
	Cars    [][]cid.Cid // the car log: groups, newest first, this commit not among them
	Compact [][]cid.Cid // the groups that this commit replaces

	Head    []cid.Cid // the clock's head
	HasHead bool      // Head counts: M is {head: …}

	// Other is M as it is encoded if it is neither {} nor {head: …}.
	Other []byte
}

// DecodeHeader decodes a header block.
func DecodeHeader(block []byte) (Header, error) {
	if len(block) > MaxHeaderBytes {
		return Header{}, fmt.Errorf("%w: %d bytes: %w", ErrHeader, len(block), ErrLimit)
	}
	r := dagcbor.NewReader(block)
	var h Header
	fields(r, 1)
	r.Key("fp")
	fields(r, 3)
	r.Key("cars")
	h.Cars = readGroups(r)
	r.Key("meta")
	h.readMeta(r)
	r.Key("compact")
	h.Compact = readGroups(r)
	if err := r.End(); err != nil {
		return Header{}, fmt.Errorf("%w: %w", ErrHeader, err)
	}
	return h, nil
}

// fields enters a map of exactly n entries. With any other number the key or
// the end that follows fails, except for the names, so it is checked here.
func fields(r *dagcbor.Reader, n int) {
	if got := r.MapLen(); got != n {
		r.Fail(fmt.Errorf("want a map of %d, found %d", n, got))
	}
}

func (h *Header) readMeta(r *dagcbor.Reader) {
	raw := r.Raw()
	if r.Err() != nil {
		return
	}
	m := dagcbor.NewReader(raw)
	n := m.MapLen()
	if m.Err() != nil {
		r.Fail(fmt.Errorf("meta: %w", m.Err()))
		return
	}
	if n == 0 {
		return
	}
	if n == 1 {
		if m.Key("head"); m.Err() == nil {
			h.Head, h.HasHead = readLinks(m), true
			if err := m.End(); err != nil {
				r.Fail(fmt.Errorf("meta: %w", err))
			}
			return
		}
	}
	h.Other = append([]byte{}, raw...)
}

// Encode returns the header block.
func (h Header) Encode() []byte {
	b := dagcbor.AppendMap(nil, 1)
	b = dagcbor.AppendText(b, "fp")
	b = dagcbor.AppendMap(b, 3)
	b = dagcbor.AppendText(b, "cars")
	b = appendGroups(b, h.Cars)
	b = dagcbor.AppendText(b, "meta")
	switch {
	case h.Other != nil:
		b = append(b, h.Other...)
	case h.HasHead:
		b = dagcbor.AppendMap(b, 1)
		b = dagcbor.AppendText(b, "head")
		b = appendLinks(b, h.Head)
	default:
		b = dagcbor.AppendMap(b, 0)
	}
	b = dagcbor.AppendText(b, "compact")
	return appendGroups(b, h.Compact)
}

func readLinks(r *dagcbor.Reader) []cid.Cid {
	n := r.ArrayLen()
	links := make([]cid.Cid, 0, n)
	for range n {
		links = append(links, r.Link())
	}
	return links
}

func readGroups(r *dagcbor.Reader) [][]cid.Cid {
	n := r.ArrayLen()
	groups := make([][]cid.Cid, 0, n)
	for range n {
		groups = append(groups, readLinks(r))
	}
	return groups
}

func appendGroups(dst []byte, groups [][]cid.Cid) []byte {
	dst = dagcbor.AppendArray(dst, len(groups))
	for _, g := range groups {
		dst = appendLinks(dst, g)
	}
	return dst
}
