package blockstore

import (
	"bytes"
	"errors"
	"fmt"
	"slices"

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
	names := make([]cid.Cid, len(group))
	for i, r := range group {
		names[i] = r.Name.Cid
	}
	block := car.EncodeMeta(names, parents)
	m, err := ParseMeta(block)
	if err != nil {
		panic("blockstore: internal error: own meta does not parse: " + err.Error())
	}
	m.Group = slices.Clone(group)
	return m
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

// appendMeta writes a meta for the store's own use: as the digests of its names and parents if the block is what
// NewMeta makes of them, which is a third of the size, else as the block.
func appendMeta(b []byte, m Meta) []byte {
	names, ok := digests(m.Group, func(r Ref) cid.Cid { return r.Name.Cid }, car.CodecName)
	parents, ok2 := digests(m.Parents, func(c cid.Cid) cid.Cid { return c }, cid.DagCBOR)
	if ok && ok2 && bytes.Equal(encodeMeta(names, parents), m.Block) {
		b = dagcbor.AppendArray(b, 2)
		b = dagcbor.AppendBytes(b, names)
		return dagcbor.AppendBytes(b, parents)
	}
	return dagcbor.AppendBytes(b, m.Block)
}

func readMeta(r *dagcbor.Reader) (Meta, error) {
	var block []byte
	if r.Kind() == dagcbor.KindArray {
		if n := r.ArrayLen(); n != 2 {
			return Meta{}, fmt.Errorf("meta of %d fields", n)
		}
		names, parents := r.Bytes(), r.Bytes()
		if len(names)%digestBytes != 0 || len(parents)%digestBytes != 0 {
			return Meta{}, errors.New("meta with half a digest")
		}
		block = encodeMeta(names, parents)
	} else {
		block = bytes.Clone(r.Bytes())
	}
	if err := r.Err(); err != nil {
		return Meta{}, err
	}
	return ParseMeta(block)
}

// digests joins the digests of CIDs if all are of the one codec.
func digests[T any](list []T, of func(T) cid.Cid, codec uint64) ([]byte, bool) {
	b := make([]byte, 0, digestBytes*len(list))
	for _, v := range list {
		c := of(v)
		d, ok := digest(c)
		if !ok || c.Type() != codec {
			return nil, false
		}
		b = append(b, d...)
	}
	return b, true
}

// encodeMeta is EncodeMeta on joined digests.
func encodeMeta(names, parents []byte) []byte {
	return car.EncodeMeta(cidsFromDigests(car.CodecName, names), cidsFromDigests(cid.DagCBOR, parents))
}

func cidsFromDigests(codec uint64, b []byte) []cid.Cid {
	list := make([]cid.Cid, 0, len(b)/digestBytes)
	for ; len(b) > 0; b = b[digestBytes:] {
		list = append(list, cidFromDigest(codec, b[:digestBytes]))
	}
	return list
}

// sortMetas sorts by CID bytes.
func sortMetas(metas []Meta) {
	slices.SortFunc(metas, func(a, b Meta) int { return bytes.Compare([]byte(a.CID.KeyString()), []byte(b.CID.KeyString())) })
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
