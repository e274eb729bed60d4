package headsync

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/ipfs/go-cid"
	"github.com/multiformats/go-multihash"

	"fpnode/blockstore"
	"fpnode/internal/car"
	"fpnode/internal/dagcbor"
)

// announcement says which tips a replica has, and brings what is new.
//
// Its body is DAG-CBOR:
//
//	{cars: [bytes…], more: bool, refs: bytes, tips: [bytes…]}
//
// tips are meta blocks; refs is a table of refs, those of the tips' groups among them;
// cars are sealed CARs whose refs are in the table; more says that something did not
// fit. A ref in a table is
//
//	+----------------------+----------------------+-----------------------+
//	| SHA2-256 of Name 32B | SHA2-256 of Wire 32B | uint32 size (big end) |
//	+----------------------+----------------------+-----------------------+
//
// Name has codec 0x18; Wire is raw up to 1 MiB and DAG-PB above (blockstore.Wire).
// A device's signature has its place around the body, before the seal; version 1 has
// none, and relies on that of the gossip message.
type announcement struct {
	tips []blockstore.Meta // with the refs of their groups, as far as the table has them
	refs []blockstore.Ref
	cars [][]byte // parallel to the first of refs
	more bool
}

const (
	refBytes  = 32 + 32 + 4
	leafBytes = 1 << 20
)

// appendRef reports false for a ref that no table can hold.
func appendRef(dst []byte, r blockstore.Ref) ([]byte, bool) {
	name, ok := digestOf(r.Name.Cid, car.CodecName)
	if !ok || r.Size <= 0 || r.Size > blockstore.MaxFileCARBytes {
		return dst, false
	}
	wire, ok := digestOf(r.Wire.Cid, wireCodec(r.Size))
	if !ok {
		return dst, false
	}
	dst = append(append(dst, name...), wire...)
	return binary.BigEndian.AppendUint32(dst, uint32(r.Size)), true
}

// readRefs reads a table of at most limit refs.
func readRefs(b []byte, limit int) ([]blockstore.Ref, error) {
	if len(b)%refBytes != 0 || len(b)/refBytes > limit {
		return nil, fmt.Errorf("%w: a table of %d bytes", ErrSyntax, len(b))
	}
	refs := make([]blockstore.Ref, 0, len(b)/refBytes)
	for ; len(b) > 0; b = b[refBytes:] {
		size := int64(binary.BigEndian.Uint32(b[64:]))
		if size == 0 || size > blockstore.MaxFileCARBytes {
			return nil, fmt.Errorf("%w: a CAR of %d bytes", ErrSyntax, size)
		}
		refs = append(refs, blockstore.Ref{
			Name: blockstore.Name{Cid: cidOf(car.CodecName, b[:32])},
			Wire: blockstore.Wire{Cid: cidOf(wireCodec(size), b[32:64])},
			Size: size,
		})
	}
	return refs, nil
}

func wireCodec(size int64) uint64 {
	if size > leafBytes {
		return cid.DagProtobuf
	}
	return cid.Raw
}

func cidOf(codec uint64, digest []byte) cid.Cid {
	mh := append([]byte{multihash.SHA2_256, 32}, digest...)
	return cid.NewCidV1(codec, mh)
}

func digestOf(c cid.Cid, codec uint64) ([]byte, bool) {
	if !c.Defined() {
		return nil, false
	}
	p := c.Prefix()
	if p.Version != 1 || p.Codec != codec || p.MhType != multihash.SHA2_256 || p.MhLength != 32 {
		return nil, false
	}
	return c.Hash()[2:], true
}

func (a announcement) encode() []byte {
	var refs []byte
	for _, r := range a.refs {
		refs, _ = appendRef(refs, r)
	}
	b := dagcbor.AppendMap(nil, 4)
	b = dagcbor.AppendText(b, "cars")
	b = dagcbor.AppendArray(b, len(a.cars))
	for _, c := range a.cars {
		b = dagcbor.AppendBytes(b, c)
	}
	b = dagcbor.AppendText(b, "more")
	b = dagcbor.AppendBool(b, a.more)
	b = dagcbor.AppendText(b, "refs")
	b = dagcbor.AppendBytes(b, refs)
	b = dagcbor.AppendText(b, "tips")
	b = dagcbor.AppendArray(b, len(a.tips))
	for _, m := range a.tips {
		b = dagcbor.AppendBytes(b, m.Block)
	}
	return b
}

// decodeAnnouncement reads a body. What it returns refers to it.
func decodeAnnouncement(body []byte) (announcement, error) {
	var a announcement
	fail := func(err error) (announcement, error) {
		return announcement{}, fmt.Errorf("%w: announcement: %v", ErrSyntax, err)
	}
	r := dagcbor.NewReader(body)
	if n := r.MapLen(); n != 4 && r.Err() == nil {
		return fail(fmt.Errorf("%d fields", n))
	}
	r.Key("cars")
	n := r.ArrayLen()
	if n > maxAnnouncedCARs {
		return fail(fmt.Errorf("%d CARs", n))
	}
	for range n {
		a.cars = append(a.cars, r.Bytes())
	}
	r.Key("more")
	a.more = r.Bool()
	r.Key("refs")
	table := r.Bytes()
	r.Key("tips")
	n = r.ArrayLen()
	if n > maxAnnouncedTips {
		return fail(fmt.Errorf("%d tips", n))
	}
	var blocks [][]byte
	for range n {
		blocks = append(blocks, r.Bytes())
	}
	if err := r.End(); err != nil {
		return fail(err)
	}
	var err error
	if a.refs, err = readRefs(table, maxAnnouncedRefs); err != nil {
		return announcement{}, err
	}
	if len(a.cars) > len(a.refs) {
		return fail(fmt.Errorf("%d CARs and %d refs", len(a.cars), len(a.refs)))
	}
	for i, c := range a.cars {
		if int64(len(c)) != a.refs[i].Size || blockstore.WireOf(c) != a.refs[i].Wire {
			return fail(errors.New("a CAR is not the one of its ref"))
		}
	}
	if a.tips, err = parseMetas(blocks, a.refs); err != nil {
		return announcement{}, err
	}
	return a, nil
}

// parseMetas reads meta blocks and fills in the refs of their groups.
func parseMetas(blocks [][]byte, refs []blockstore.Ref) ([]blockstore.Meta, error) {
	byName := make(map[blockstore.Name]blockstore.Ref, len(refs))
	for _, r := range refs {
		byName[r.Name] = r
	}
	metas := make([]blockstore.Meta, 0, len(blocks))
	for _, b := range blocks {
		if len(b) > maxMetaBytes {
			return nil, fmt.Errorf("%w: a meta of %d bytes", ErrSyntax, len(b))
		}
		m, err := blockstore.ParseMeta(b)
		if err != nil {
			return nil, fmt.Errorf("%w: %v", ErrSyntax, err)
		}
		for i, r := range m.Group {
			if full, ok := byName[r.Name]; ok {
				m.Group[i] = full
			}
		}
		metas = append(metas, m)
	}
	return metas, nil
}

// compose makes the announcement of tips. recent are refs of new CARs, oldest first;
// sealed returns the bytes of one, or nil, and is called for those that may fit.
func compose(tips []blockstore.Meta, recent []blockstore.Ref, sealed func(blockstore.Ref) []byte) announcement {
	var a announcement
	const frame = 64 // of the map and its fields
	left := maxPaddedBytes - 4 - frame
	inline := MaxInlineBytes
	listed := make(map[blockstore.Name]bool)
	list := func(r blockstore.Ref) bool {
		if listed[r.Name] {
			return true
		}
		if _, ok := appendRef(nil, r); !ok || len(a.refs) == maxAnnouncedRefs || left < refBytes {
			return false
		}
		listed[r.Name] = true
		a.refs = append(a.refs, r)
		left -= refBytes
		return true
	}

	// The tips come first: without them the rest is of no use.
	var tipRefs []blockstore.Ref
	for _, m := range tips {
		refs := len(tipRefs) + len(m.Group)
		if len(a.tips) == maxAnnouncedTips || refs > maxAnnouncedRefs || len(m.Block)+5+refs*refBytes > left {
			a.more = true
			continue
		}
		a.tips = append(a.tips, m)
		tipRefs = append(tipRefs, m.Group...)
		left -= len(m.Block) + 5
	}

	// Then the newest CARs themselves, as many as fit beside the refs of the tips and
	// of the other new CARs.
	reserve := refBytes * min(len(tipRefs)+len(recent), maxAnnouncedRefs)
	for i := len(recent) - 1; i >= 0 && len(a.cars) < maxAnnouncedCARs; i-- {
		r := recent[i]
		need := int(r.Size) + 5
		if listed[r.Name] || r.Size > MaxInlineBytes || need > inline || need+reserve > left {
			continue
		}
		b := sealed(r)
		if int64(len(b)) != r.Size || !list(r) {
			continue
		}
		a.cars = append(a.cars, b)
		inline -= need
		left -= need
	}
	for _, r := range tipRefs {
		if !list(r) {
			a.more = true
		}
	}
	for i := len(recent) - 1; i >= 0; i-- {
		if !list(recent[i]) {
			a.more = true
		}
	}
	return a
}
