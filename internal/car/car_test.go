package car

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"os"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/ipfs/go-cid"
	"pgregory.net/rapid"

	"fpnode/internal/dagcbor"
)

// golden is the first commit of every ledger, as JavaScript Fireproof 0.24.19
// wrote it.
type golden struct {
	CarCid       string
	PlaintextHex string
}

func readGolden(t testing.TB) (g golden, plain []byte) {
	t.Helper()
	b, err := os.ReadFile("testdata/golden.json")
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(b, &g); err != nil {
		t.Fatal(err)
	}
	if plain, err = hex.DecodeString(g.PlaintextHex); err != nil {
		t.Fatal(err)
	}
	return g, plain
}

var sameCID = cmp.Comparer(func(a, b cid.Cid) bool { return a == b })

func blockOf(data string) Block {
	return Block{CID: dagcbor.SumCodec(cid.Raw, []byte(data)), Data: []byte(data)}
}

func blocksOf(sections []Section) []Block {
	var blocks []Block
	for _, s := range sections {
		blocks = append(blocks, s.Block)
	}
	return blocks
}

func TestGoldenCAR(t *testing.T) {
	g, plain := readGolden(t)
	if got := NameOf(plain).String(); got != g.CarCid {
		t.Errorf("name %s, want %s", got, g.CarCid)
	}
	roots, sections, err := Read(plain)
	if err != nil {
		t.Fatal(err)
	}
	if len(roots) != 1 || len(sections) != 5 || sections[0].CID != roots[0] {
		t.Fatalf("roots %v, %d sections", roots, len(sections))
	}
	for _, s := range sections {
		if got := plain[s.Offset : s.Offset+int64(len(s.Data))]; !bytes.Equal(got, s.Data) {
			t.Errorf("%s: other bytes at offset %d", s.CID, s.Offset)
		}
	}
	if again := Append(nil, roots, blocksOf(sections)); !bytes.Equal(again, plain) {
		t.Errorf("written again: %x", again)
	}
	h, err := DecodeHeader(sections[0].Data)
	if err != nil {
		t.Fatal(err)
	}
	want := Header{Cars: [][]cid.Cid{}, Compact: [][]cid.Cid{}, Head: []cid.Cid{sections[4].CID}, HasHead: true}
	if d := cmp.Diff(want, h, sameCID); d != "" {
		t.Errorf("header (-want +got):\n%s", d)
	}
	if again := h.Encode(); !bytes.Equal(again, sections[0].Data) {
		t.Errorf("header encoded again: %x", again)
	}
}

func TestRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		blocks := rapid.SliceOfN(rapid.Custom(func(t *rapid.T) Block {
			return blockOf(rapid.StringN(0, 300, -1).Draw(t, "data"))
		}), 0, 8).Draw(t, "blocks")
		var roots []cid.Cid
		for range rapid.IntRange(0, 30).Draw(t, "roots") {
			roots = append(roots, blockOf("root").CID)
		}
		b := Append([]byte("before"), roots, blocks)
		b, ok := bytes.CutPrefix(b, []byte("before"))
		if !ok || len(b) != Size(roots, blocks) {
			t.Fatalf("%d bytes, Size says %d", len(b), Size(roots, blocks))
		}
		gotRoots, sections, err := Read(b)
		if err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(roots, gotRoots) || len(sections) != len(blocks) {
			t.Fatalf("%d roots, %d blocks; wrote %d, %d", len(gotRoots), len(sections), len(roots), len(blocks))
		}
		for i, s := range sections {
			if s.CID != blocks[i].CID || !bytes.Equal(s.Data, blocks[i].Data) {
				t.Fatalf("block %d differs", i)
			}
		}
	})
}

// Every byte of a CAR counts: whatever is changed, it is refused, or the change
// is in a root, which Read cannot judge.
func TestEveryFlippedBitIsSeen(t *testing.T) {
	_, plain := readGolden(t)
	roots, sections, err := Read(plain)
	if err != nil {
		t.Fatal(err)
	}
	for i := range plain {
		for bit := range 8 {
			bad := slices.Clone(plain)
			bad[i] ^= 1 << bit
			gotRoots, gotSections, err := Read(bad)
			if err == nil && (slices.Equal(gotRoots, roots) || !cmp.Equal(gotSections, sections, sameCID)) {
				// The codec of a CID is not covered by the hash.
				changed := false
				for k := range gotSections {
					changed = changed || gotSections[k].CID != sections[k].CID
				}
				if !changed || len(gotSections) != len(sections) {
					t.Errorf("bit %d of byte %d flipped: not seen", bit, i)
				}
			}
		}
	}
}

func TestEveryCutIsSeen(t *testing.T) {
	_, plain := readGolden(t)
	_, sections, err := Read(plain)
	if err != nil {
		t.Fatal(err)
	}
	ends := map[int]bool{}
	for _, s := range sections {
		ends[int(s.Offset)+len(s.Data)] = true
	}
	ends[int(sections[0].Offset)-sections[0].CID.ByteLen()-1] = true // after the roots
	for n := range plain {
		if _, _, err := Read(plain[:n]); (err == nil) != ends[n] {
			t.Errorf("cut after %d bytes: %v", n, err)
		}
	}
}

func TestReadRefuses(t *testing.T) {
	b := blockOf("hello")
	head := Append(nil, []cid.Cid{b.CID}, nil)
	section := func(parts ...[]byte) []byte {
		body := slices.Concat(parts...)
		return slices.Concat(head, appendUvarint(nil, uint64(len(body))), body)
	}
	identity := slices.Concat([]byte{1, 0x55, 0, 5}, b.Data)
	sha512 := slices.Concat([]byte{1, 0x55, 0x13, 64}, make([]byte, 64))
	short := slices.Concat([]byte{1, 0x55, 0x12, 20}, make([]byte, 20))
	roots := func(v any) []byte {
		m, err := dagcbor.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		return append(appendUvarint(nil, uint64(len(m))), m...)
	}
	type m = map[string]any
	for _, c := range []struct {
		name string
		car  []byte
		err  error
	}{
		{"nothing", nil, ErrTruncated},
		{"wrong hash", section(b.CID.Bytes(), []byte("hellO")), ErrHash},
		{"identity hash", section(identity), ErrCID},
		{"sha2-512", section(sha512), ErrCID},
		{"short hash", section(short), ErrCID},
		{"version 0", section(b.CID.Hash(), b.Data), ErrCID},
		{"empty section", section(), ErrCID},
		{"half a CID", section(b.CID.Bytes()[:20]), ErrTruncated},
		{"section too long", append(slices.Clone(head), 0xff, 0xff, 0x03, 1), ErrTruncated},
		{"section of 2^63", append(slices.Clone(head), 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f), ErrTruncated},
		{"varint not shortest", append(slices.Clone(head), 0x80, 0x00), ErrFormat},
		{"varint too long", append(slices.Clone(head), 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01), ErrFormat},
		{"no map", roots(1), ErrFormat},
		{"no version", roots(m{"roots": []any{}}), ErrFormat},
		{"version 2", roots(m{"roots": []any{}, "version": 2}), ErrFormat},
		{"another field", roots(m{"roots": []any{}, "version": 1, "x": 1}), ErrFormat},
		{"roots no list", roots(m{"roots": 1, "version": 1}), ErrFormat},
		{"root no CID", roots(m{"roots": []any{1}, "version": 1}), ErrFormat},
		{"long roots", append(appendUvarint(nil, MaxRootsBytes+1), make([]byte, MaxRootsBytes+1)...), ErrLimit},
	} {
		if _, _, err := Read(c.car); !errors.Is(err, c.err) {
			t.Errorf("%s: %v, want %v", c.name, err, c.err)
		}
	}
}

func TestLimits(t *testing.T) {
	b := blockOf("")
	one := Append(nil, nil, []Block{b})
	section := one[Size(nil, nil):]
	many := append(Append(nil, nil, nil), bytes.Repeat(section, MaxBlocks)...)
	if _, s, err := Read(many); err != nil || len(s) != MaxBlocks {
		t.Errorf("%d blocks: %d, %v", MaxBlocks, len(s), err)
	}
	if _, _, err := Read(append(many, section...)); !errors.Is(err, ErrLimit) {
		t.Errorf("%d blocks: %v", MaxBlocks+1, err)
	}
	if _, err := DecodeHeader(make([]byte, MaxHeaderBytes+1)); !errors.Is(err, ErrLimit) || !errors.Is(err, ErrHeader) {
		t.Errorf("long header: %v", err)
	}
	if _, _, err := DecodeMeta(make([]byte, MaxMetaBytes+1)); !errors.Is(err, ErrLimit) || !errors.Is(err, ErrMeta) {
		t.Errorf("long meta: %v", err)
	}
	group := []cid.Cid{b.CID}
	if _, _, err := DecodeMeta(EncodeMeta(group, slices.Repeat(group, MaxParents))); err != nil {
		t.Errorf("meta of %d parents: %v", MaxParents, err)
	}
	if _, _, err := DecodeMeta(EncodeMeta(group, slices.Repeat(group, MaxParents+1))); !errors.Is(err, ErrLimit) {
		t.Errorf("meta of %d parents: %v", MaxParents+1, err)
	}
	if testing.Short() {
		return
	}
	if _, _, err := Read(make([]byte, MaxSizeBytes+1)); !errors.Is(err, ErrLimit) {
		t.Errorf("a CAR of %d bytes: %v", MaxSizeBytes+1, err)
	}
}

func TestHeaderForms(t *testing.T) {
	a, b := blockOf("a").CID, blockOf("b").CID
	for _, h := range []Header{
		{Cars: [][]cid.Cid{}, Compact: [][]cid.Cid{}},
		{Cars: [][]cid.Cid{{a}, {a, b}}, Compact: [][]cid.Cid{{b}, {}}, Head: []cid.Cid{b, a}, HasHead: true},
		{Cars: [][]cid.Cid{}, Compact: [][]cid.Cid{{a}}, Head: []cid.Cid{}, HasHead: true},
		{Cars: [][]cid.Cid{}, Compact: [][]cid.Cid{}, Other: []byte("\xa1\x67indexes\xa0")},
		{Cars: [][]cid.Cid{}, Compact: [][]cid.Cid{}, Other: []byte("\xa2\x64head\x80\x67indexes\xa0")},
	} {
		block := h.Encode()
		if err := dagcbor.Valid(block); err != nil {
			t.Fatal(err)
		}
		got, err := DecodeHeader(block)
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(h, got, sameCID); d != "" {
			t.Errorf("(-want +got):\n%s", d)
		}
	}
}

func TestDecodeHeaderRefuses(t *testing.T) {
	type m = map[string]any
	fp := func(cars, meta, compact any) any { return m{"fp": m{"cars": cars, "meta": meta, "compact": compact}} }
	none := []any{}
	for name, v := range map[string]any{
		"no map":           1,
		"no fp":            m{"x": 1},
		"more than fp":     m{"fp": 1, "x": 1},
		"no meta":          m{"fp": m{"cars": none, "compact": none}},
		"another field":    m{"fp": m{"cars": none, "compact": none, "meta": m{}, "x": 1}},
		"cars no list":     fp(1, m{}, none),
		"group no list":    fp([]any{1}, m{}, none),
		"group not of CID": fp([]any{[]any{1}}, m{}, none),
		"compact no list":  fp(none, m{}, 1),
		"meta no map":      fp(none, 1, none),
		"head no list":     fp(none, m{"head": 1}, none),
		"head not of CIDs": fp(none, m{"head": []any{"x"}}, none),
	} {
		block, err := dagcbor.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		if h, err := DecodeHeader(block); !errors.Is(err, ErrHeader) {
			t.Errorf("%s: %v, %v", name, h, err)
		}
	}
}

// The meta of a ledger that JavaScript Fireproof 0.24.19 wrote.
func TestMeta(t *testing.T) {
	b, err := os.ReadFile("testdata/meta.json")
	if err != nil {
		t.Fatal(err)
	}
	var metas []struct {
		CID, Data string
		Parents   []string
	}
	if err := json.Unmarshal(b, &metas); err != nil {
		t.Fatal(err)
	}
	if len(metas) == 0 {
		t.Fatal("no metas")
	}
	for _, m := range metas {
		text, err := dagcbor.FromJSON([]byte(`{"/":{"bytes":"` + trimPad(m.Data[1:]) + `"}}`))
		if err != nil {
			t.Fatal(err)
		}
		block := dagcbor.NewReader(text).Bytes()
		if got := dagcbor.Sum(block).String(); got != m.CID {
			t.Errorf("CID %s, want %s", got, m.CID)
		}
		group, parents, err := DecodeMeta(block)
		if err != nil {
			t.Fatal(err)
		}
		if len(group) == 0 || len(parents) != len(m.Parents) || group[0].Type() != CodecName {
			t.Errorf("group %v, parents %v", group, parents)
		}
		slices.Reverse(parents)
		if again := EncodeMeta(group, parents); !bytes.Equal(again, block) {
			t.Errorf("encoded again: %x, want %x", again, block)
		}
	}
}

func trimPad(s string) string { return string(bytes.TrimRight([]byte(s), "=")) }

func TestDecodeMetaForms(t *testing.T) {
	c := blockOf("a").CID
	meta := func(text string) []byte {
		b, err := dagcbor.Marshal(map[string]any{"data": map[string]any{"dbMeta": []byte(text)}, "parents": []any{}})
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	if g, _, err := DecodeMeta(meta(` { "x": [1], "cars" : [ {"/": "` + c.String() + `"} ] } `)); err != nil || len(g) != 1 || g[0] != c {
		t.Errorf("%v, %v", g, err)
	}
	for _, text := range []string{"", "[]", "{}", `{"cars":[]}`, `{"cars":1}`, `{"cars":["x"]}`, `{"cars":[{"/":"x"}]}`, `{"car":[]}`, `{"cars":[]} x`} {
		if g, _, err := DecodeMeta(meta(text)); !errors.Is(err, ErrMeta) {
			t.Errorf("%s: %v, %v", text, g, err)
		}
	}
	type m = map[string]any
	for _, v := range []any{1, m{}, m{"data": 1, "parents": []any{}}, m{"data": m{"dbMeta": "{}"}, "parents": []any{}}, m{"data": m{"dbMeta": []byte("{}"), "x": 1}, "parents": []any{}}, m{"data": m{"dbMeta": []byte("{}")}, "parents": 1}} {
		block, err := dagcbor.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		if g, _, err := DecodeMeta(block); !errors.Is(err, ErrMeta) {
			t.Errorf("%v: %v, %v", v, g, err)
		}
	}
}

func FuzzRead(f *testing.F) {
	_, plain := readGolden(f)
	f.Add(plain)
	f.Add(Append(nil, nil, []Block{blockOf("a"), blockOf("")}))
	f.Fuzz(func(t *testing.T, b []byte) {
		roots, sections, err := Read(b)
		if err != nil {
			return
		}
		if again := Append(nil, roots, blocksOf(sections)); !bytes.Equal(again, b) || len(again) != Size(roots, blocksOf(sections)) {
			t.Errorf("%x written again: %x", b, again)
		}
	})
}

func FuzzDecodeHeader(f *testing.F) {
	_, plain := readGolden(f)
	_, sections, err := Read(plain)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(sections[0].Data)
	f.Add(Header{Other: []byte("\xa1\x67indexes\xa0"), Cars: [][]cid.Cid{{blockOf("a").CID}}}.Encode())
	f.Fuzz(func(t *testing.T, b []byte) {
		if h, err := DecodeHeader(b); err == nil && !bytes.Equal(h.Encode(), b) {
			t.Errorf("%x encoded again: %x", b, h.Encode())
		}
	})
}

func FuzzDecodeMeta(f *testing.F) {
	c := blockOf("a").CID
	f.Add(EncodeMeta([]cid.Cid{c}, []cid.Cid{c, blockOf("b").CID}))
	f.Fuzz(func(t *testing.T, b []byte) {
		group, parents, err := DecodeMeta(b)
		if err != nil {
			return
		}
		g, p, err := DecodeMeta(EncodeMeta(group, parents))
		if err != nil || !slices.Equal(g, group) || len(p) != len(parents) {
			t.Errorf("%x encoded again: %v, %v, %v", b, g, p, err)
		}
	})
}
