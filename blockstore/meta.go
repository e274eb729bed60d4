package blockstore

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/ipfs/go-cid"

	"fpnode/internal/car"
	"fpnode/internal/dagcbor"
)

// Meta is the pointer to a car group: a small clock event that names the CARs of one commit and the metas it replaces.
// It is never inside a CAR. The metas that nobody has replaced are a ledger's tips.
type Meta struct {
	CID     cid.Cid
	Block   []byte    // the event, DAG-CBOR
	Parents []cid.Cid // as the event has them
	Group   []Ref     // the CARs it names, in order; Wire and Size are zero for one whose bytes are not known
}

// NewMeta makes the meta of a commit: group are its CARs, parents the metas it replaces.
func NewMeta(group []Ref, parents []cid.Cid) Meta {
	m := Meta{Group: slices.Clone(group), Parents: slices.Clone(parents)}
	slices.SortFunc(m.Parents, compareCIDs)
	m.Block = car.EncodeMeta(names(group), m.Parents)
	m.CID = dagcbor.Sum(m.Block)
	return m
}

func names(group []Ref) []cid.Cid {
	list := make([]cid.Cid, len(group))
	for i, r := range group {
		list[i] = r.Name.Cid
	}
	return list
}

func compareCIDs(a, b cid.Cid) int { return strings.Compare(a.KeyString(), b.KeyString()) }

// canonical reports whether the block is what NewMeta makes of group and parents. Then nothing else needs to be
// compared: ParseMeta would find the same.
func (m *Meta) canonical() bool {
	return len(m.Group) > 0 && len(m.Group) <= MaxGroup && slices.IsSortedFunc(m.Parents, compareCIDs) &&
		len(m.Block) <= MaxMetaBytes && bytes.Equal(car.EncodeMeta(names(m.Group), m.Parents), m.Block)
}

// ParseMeta reads a meta block. The refs of its group have only names.
func ParseMeta(block []byte) (Meta, error) {
	if len(block) > MaxMetaBytes {
		return Meta{}, limitf("meta of %d bytes", len(block))
	}
	group, parents, err := car.DecodeMeta(block)
	if err != nil {
		return Meta{}, err
	}
	if len(group) == 0 {
		return Meta{}, errors.New("meta names no CAR")
	}
	if len(group) > MaxGroup {
		return Meta{}, limitf("meta of %d CARs", len(group))
	}
	m := Meta{CID: dagcbor.Sum(block), Block: block, Parents: parents, Group: make([]Ref, len(group))}
	for i, c := range group {
		m.Group[i] = Ref{Name: Name{c}}
	}
	return m, nil
}

// own checks a meta that a caller made and returns a copy that nobody else changes.
func (m *Meta) own() (Meta, error) {
	c := Meta{CID: dagcbor.Sum(m.Block), Block: bytes.Clone(m.Block), Parents: slices.Clone(m.Parents), Group: slices.Clone(m.Group)}
	if !m.canonical() {
		var err error
		if c, err = ParseMeta(c.Block); err != nil {
			return Meta{}, err
		}
	}
	if c.CID != m.CID {
		return Meta{}, errors.New("the CID is not that of the block")
	}
	return c, nil
}

// appendMeta writes a meta for the store's own use: as the digests of its names and parents if the block is what
// NewMeta makes of them, which is a third of the size, else as the block.
func appendMeta(b []byte, m Meta) []byte {
	group, ok := digests(names(m.Group), car.CodecName)
	parents, ok2 := digests(m.Parents, cid.DagCBOR)
	if ok && ok2 && m.canonical() {
		b = dagcbor.AppendArray(b, 2)
		b = dagcbor.AppendBytes(b, group)
		return dagcbor.AppendBytes(b, parents)
	}
	return dagcbor.AppendBytes(b, m.Block)
}

func readMeta(r *dagcbor.Reader) (Meta, error) {
	if r.Kind() != dagcbor.KindArray {
		block := bytes.Clone(r.Bytes())
		if err := r.Err(); err != nil {
			return Meta{}, err
		}
		return ParseMeta(block)
	}
	if n := r.ArrayLen(); n != 2 {
		return Meta{}, fmt.Errorf("meta of %d fields", n)
	}
	names, parents := r.Bytes(), r.Bytes()
	if err := r.Err(); err != nil {
		return Meta{}, err
	}
	if len(names) == 0 || len(names) > MaxGroup*digestBytes || len(names)%digestBytes != 0 || len(parents)%digestBytes != 0 {
		return Meta{}, errors.New("meta with half a digest, or with too few or too many")
	}
	var group []Ref
	for _, c := range cidsFromDigests(car.CodecName, names) {
		group = append(group, Ref{Name: Name{c}})
	}
	return NewMeta(group, cidsFromDigests(cid.DagCBOR, parents)), nil
}

// digests joins the digests of CIDs if all are of the one codec.
func digests(list []cid.Cid, codec uint64) ([]byte, bool) {
	b := make([]byte, 0, digestBytes*len(list))
	for _, c := range list {
		d, ok := digest(c)
		if !ok || c.Type() != codec {
			return nil, false
		}
		b = append(b, d...)
	}
	return b, true
}

// cidsFromDigests takes joined digests apart.
func cidsFromDigests(codec uint64, b []byte) []cid.Cid {
	list := make([]cid.Cid, 0, len(b)/digestBytes)
	for ; len(b) > 0; b = b[digestBytes:] {
		list = append(list, cidFromDigest(codec, b[:digestBytes]))
	}
	return list
}

// sortMetas sorts by CID bytes.
func sortMetas(metas []Meta) {
	slices.SortFunc(metas, func(a, b Meta) int { return compareCIDs(a.CID, b.CID) })
}

// parseTip reads what appendMeta wrote.
func parseTip(b []byte) (Meta, error) {
	r := dagcbor.NewReader(b)
	m, err := readMeta(r)
	if err != nil {
		return m, err
	}
	return m, r.End()
}
