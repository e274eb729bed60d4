package car

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/ipfs/go-cid"

	"fpnode/internal/dagcbor"
)

// ErrMeta is wrapped by the errors of DecodeMeta.
var ErrMeta = errors.New("not a Fireproof meta event")

// EncodeMeta returns the meta event that points to a car group and replaces
// the metas named by parents (Fireproof format, "Local meta file"):
//
//	{data: {dbMeta: bytes}, parents: [CID…]}
//
// dbMeta is the text {"cars":[{"/":"bae…"}]} without spaces. The parents are
// sorted by their bytes. The CID of the event is dagcbor.Sum of the block.
func EncodeMeta(group, parents []cid.Cid) []byte {
	parents = slices.Clone(parents)
	slices.SortFunc(parents, func(a, b cid.Cid) int { return strings.Compare(a.KeyString(), b.KeyString()) })

	text := []byte(`{"cars":[`)
	for i, c := range group {
		if i > 0 {
			text = append(text, ',')
		}
		text = append(text, `{"/":"`...)
		text = append(text, c.String()...)
		text = append(text, `"}`...)
	}
	text = append(text, "]}"...)

	b := dagcbor.AppendMap(nil, 2)
	b = dagcbor.AppendText(b, "data")
	b = dagcbor.AppendMap(b, 1)
	b = dagcbor.AppendText(b, "dbMeta")
	b = dagcbor.AppendBytes(b, text)
	b = dagcbor.AppendText(b, "parents")
	return appendLinks(b, parents)
}

// DecodeMeta decodes a meta event. The text inside may have spaces, names
// beside "cars" and any order; the parents may be in any order.
func DecodeMeta(block []byte) (group, parents []cid.Cid, err error) {
	if len(block) > MaxMetaBytes {
		return nil, nil, fmt.Errorf("%w: %d bytes: %w", ErrMeta, len(block), ErrLimit)
	}
	r := dagcbor.NewReader(block)
	fields(r, 2)
	r.Key("data")
	fields(r, 1)
	r.Key("dbMeta")
	text := r.Bytes()
	r.Key("parents")
	if parents = readLinks(r); len(parents) > MaxParents {
		return nil, nil, fmt.Errorf("%w: %d parents: %w", ErrMeta, len(parents), ErrLimit)
	}
	if err := r.End(); err != nil {
		return nil, nil, fmt.Errorf("%w: %w", ErrMeta, err)
	}
	if group, err = decodeGroup(text); err != nil {
		return nil, nil, fmt.Errorf("%w: %w", ErrMeta, err)
	}
	return group, parents, nil
}

func decodeGroup(text []byte) ([]cid.Cid, error) {
	b, err := dagcbor.FromJSON(text)
	if err != nil {
		return nil, err
	}
	r := dagcbor.NewReader(b)
	for range r.MapLen() {
		if r.Text() != "cars" {
			r.Skip()
			continue
		}
		group := readLinks(r)
		if r.Err() == nil && len(group) == 0 {
			return nil, errors.New("no CAR is named")
		}
		return group, r.Err()
	}
	if err := r.Err(); err != nil {
		return nil, err
	}
	return nil, errors.New(`no "cars"`)
}
