package ledger

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"io"
	"os"
	"slices"
	"testing"

	"github.com/ipfs/go-cid"

	"fpnode/blockstore"
	"fpnode/internal/car"
	"fpnode/internal/dagcbor"
)

type unixfsVector struct {
	Name, Root string
	Content    []byte
	Blocks     []struct {
		CID  string
		Data []byte
	}
}

func unixfsVectors(t testing.TB) []unixfsVector {
	t.Helper()
	b, err := os.ReadFile("testdata/unixfs/vectors.json")
	if err != nil {
		t.Fatal(err)
	}
	var out []unixfsVector
	if err := json.Unmarshal(b, &out); err != nil {
		t.Fatal(err)
	}
	return out
}

// storeFile stores blocks as the CAR of a file, and a document that names it.
func (h *home) storeFile(id string, root cid.Cid, blocks []car.Block) {
	h.tb.Helper()
	ctx := context.Background()
	putAll(h.tb, h.Ledger, map[string]any{"_id": id, "_files": map[string]any{"f": map[string]any{"cid": root, "size": 1, "type": "x/y"}}})
	c, err := h.cars.Pack([]cid.Cid{root}, blocks)
	if err != nil {
		h.tb.Fatal(err)
	}
	if _, err := h.Merge(ctx, nil, []blockstore.CAR{c}); err != nil {
		h.tb.Fatal(err)
	}
}

func (h *home) readContent(id string) ([]byte, error) {
	_, r, err := h.File(context.Background(), id, "f")
	if err != nil {
		return nil, err
	}
	defer r.Close()
	return io.ReadAll(r)
}

func TestFilesOf019(t *testing.T) {
	h := newHome(t)
	for _, v := range unixfsVectors(t) {
		var blocks []car.Block
		for _, b := range v.Blocks {
			block := car.Block{CID: mustParse(t, b.CID), Data: b.Data}
			if !slices.ContainsFunc(blocks, func(o car.Block) bool { return o.CID == block.CID }) {
				blocks = append(blocks, block)
			}
		}
		h.storeFile(v.Name, mustParse(t, v.Root), blocks)
		got, err := h.readContent(v.Name)
		if err != nil || !bytes.Equal(got, v.Content) {
			t.Errorf("%s: %d bytes, %v", v.Name, len(got), err)
		}
		info, r, err := h.File(context.Background(), v.Name, "f")
		if err != nil {
			t.Fatal(err)
		}
		r.Close()
		if info.Size != int64(len(v.Content)) {
			t.Errorf("%s: size %d", v.Name, info.Size)
		}
	}
}

func field(b []byte, n byte, v []byte) []byte {
	b = append(b, n<<3|2)
	b = binary.AppendUvarint(b, uint64(len(v)))
	return append(b, v...)
}

// fileNode makes a node over children that are size bytes long together.
func fileNode(size uint64, children ...cid.Cid) car.Block {
	var b []byte
	for _, c := range children {
		b = field(b, 2, field(nil, 1, c.Bytes()))
	}
	b = field(b, 1, binary.AppendUvarint([]byte{0x08, 2, 0x18}, size))
	return car.Block{CID: dagcbor.SumCodec(cid.DagProtobuf, b), Data: b}
}

func TestFilesOf019Refused(t *testing.T) {
	leaf := car.Block{CID: dagcbor.SumCodec(cid.Raw, []byte("leaf")), Data: []byte("leaf")}
	empty := car.Block{CID: dagcbor.SumCodec(cid.Raw, nil)}
	// endless shares its blocks: 256 links on each of two levels to a block of nothing, 65,536 and some parts.
	endless := []car.Block{empty, fileNode(0, slices.Repeat([]cid.Cid{empty.CID}, 256)...)}
	endless = append(endless, fileNode(0, slices.Repeat([]cid.Cid{endless[1].CID}, 256)...))
	top := func(b []car.Block) cid.Cid { return b[len(b)-1].CID }
	wide := func(n int) []car.Block {
		return []car.Block{leaf, fileNode(uint64(4*n), slices.Repeat([]cid.Cid{leaf.CID}, n)...)}
	}
	junk := car.Block{CID: dagcbor.SumCodec(cid.DagProtobuf, []byte("junk")), Data: []byte("junk")}
	big := car.Block{Data: field(nil, 1, make([]byte, maxUnixFSNode))}
	big.CID = dagcbor.SumCodec(cid.DagProtobuf, big.Data)
	var le *LimitError
	is := func(target error) func(error) bool { return func(err error) bool { return errors.Is(err, target) } }
	limit := func(err error) bool { return errors.As(err, &le) }
	for _, test := range []struct {
		name   string
		blocks []car.Block
		want   func(error) bool // nil: it can be read
	}{
		{"endless", endless, limit},
		{"as wide as may be", wide(maxUnixFSLinks), nil},
		{"too wide", wide(maxUnixFSLinks + 1), limit},
		{"too large a node", []car.Block{big}, limit},
		{"too large a file", []car.Block{leaf, fileNode(MaxFileBytes+1, leaf.CID)}, is(errUnixFS)},
		{"longer than it says", []car.Block{leaf, fileNode(3, leaf.CID)}, is(errUnixFS)},
		{"shorter than it says", []car.Block{leaf, fileNode(5, leaf.CID)}, is(errUnixFS)},
		{"no node", []car.Block{junk}, is(errUnixFS)},
		{"a part is missing", []car.Block{fileNode(9, dagcbor.SumCodec(cid.Raw, []byte("elsewhere")))}, is(blockstore.ErrNotFound)},
	} {
		h := newHome(t)
		h.storeFile("doc", top(test.blocks), test.blocks)
		_, err := h.readContent("doc")
		if test.want == nil && err != nil || test.want != nil && (err == nil || !test.want(err)) {
			t.Errorf("%s: %v", test.name, err)
		}
	}
}

func FuzzUnixFS(f *testing.F) {
	for _, v := range unixfsVectors(f) {
		for _, b := range v.Blocks {
			f.Add(b.Data)
		}
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		n, err := parseUnixFS(b)
		if err != nil {
			return
		}
		if n.size > MaxFileBytes || len(n.links) > maxUnixFSLinks || len(n.data) > len(b) {
			t.Fatalf("%+v", n)
		}
	})
}
