package blockstore

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/ipfs/go-cid"

	"fpnode/internal/dagcbor"
)

// The examples of the drawings in segment.go and record.go.

func exampleSegment() segmentHeader {
	return segmentHeader{ledger: [32]byte{1}, salt: [32]byte{2}, number: 3, prevEnd: 4, seq: 5, chain: chainValue{6}}
}

func exampleRun() runHeader {
	return runHeader{seq: 7, chain: chainValue{8}, nonce: [12]byte{9}, metaLen: 100, bodyLen: 200}
}

func exampleRecord() *record {
	group := []Ref{{Name: NameOf([]byte("car"))}}
	meta := NewMeta(group, []cid.Cid{dagcbor.Sum([]byte("parent"))})
	raw := dagcbor.AppendMap(nil, 2)
	raw = dagcbor.AppendText(raw, "data")
	raw = dagcbor.AppendMap(raw, 1)
	raw = dagcbor.AppendText(raw, "dbMeta")
	raw = dagcbor.AppendBytes(raw, fmt.Appendf(nil, `{ "cars": [{"/":%q}] }`, group[0].Name))
	raw = dagcbor.AppendText(raw, "parents")
	raw = dagcbor.AppendArray(raw, 0)
	foreign, err := ParseMeta(raw)
	if err != nil {
		panic(err)
	}
	large := recordCAR{name: [32]byte{3}, size: leafBytes + 5, dataOff: 40, leaves: bytes.Repeat([]byte{4}, 64), blocks: []recordBlock{{codec: cid.Raw, digest: [32]byte{5}, off: 90, size: leafBytes - 200}}}
	large.nodes, _ = wireTree(large.leaves, large.size)
	copy(large.wire[:], large.nodes[len(large.nodes)-1].digest)
	return &record{
		cars: []recordCAR{
			{name: [32]byte{1}, wire: [32]byte{2}, size: 300, dataOff: 24, blocks: []recordBlock{
				{codec: cid.DagCBOR, digest: [32]byte{6}, off: 97, size: 50},
				{codec: cid.DagCBOR, digest: [32]byte{7}, off: 184, size: 0},
			}},
			large,
		},
		drops: bytes.Repeat([]byte{8}, 64),
		gone:  bytes.Repeat([]byte{9}, 32),
		tips:  []Meta{foreign, meta},
		notes: map[string][]byte{"b": []byte("x"), "a": nil, "cc": []byte("y")},
	}
}

// bodyLen is the body that goes with a record.
func (r *record) bodyLen() int64 {
	n := int64(0)
	for i := range r.cars {
		n += r.cars[i].size + r.cars[i].nodesLen()
	}
	return n
}

func TestSegmentFormat(t *testing.T) {
	h := exampleSegment()
	b := h.append(nil)
	want := strings.Join([]string{
		"66707365670000" + "01",
		"01" + strings.Repeat("00", 31),
		"02" + strings.Repeat("00", 31),
		"03000000", "0400000000000000", "0500000000000000",
		"06" + strings.Repeat("00", 15),
	}, "")
	if got := hex.EncodeToString(b); !strings.HasPrefix(got, want) || len(b) != segmentHeaderBytes {
		t.Errorf("segment header is %s, want %s and a checksum", got, want)
	}
	if got, err := parseSegmentHeader(b); err != nil || got != h {
		t.Errorf("read back %+v, %v", got, err)
	}

	r := exampleRun()
	b = r.append(nil)
	want = "6670726e" + "0700000000000000" + "08" + strings.Repeat("00", 15) + "09" + strings.Repeat("00", 11) + "64000000" + "c800000000000000"
	if got := hex.EncodeToString(b); !strings.HasPrefix(got, want) || len(b) != runHeaderBytes {
		t.Errorf("run header is %s, want %s and a checksum", got, want)
	}
	if got, err := parseRunHeader(b); err != nil || got != r {
		t.Errorf("read back %+v, %v", got, err)
	}
	for _, n := range []int{segmentHeaderBytes, runHeaderBytes} {
		for i := range n {
			bad := h.append(nil)
			if n == runHeaderBytes {
				bad = r.append(nil)
			}
			bad[i] ^= 1
			_, err1 := parseSegmentHeader(bad)
			_, err2 := parseRunHeader(bad)
			if err1 == nil || err2 == nil {
				t.Errorf("header with byte %d flipped is accepted", i)
			}
		}
	}
}

var sameRecord = cmp.Options{
	cmp.AllowUnexported(record{}, recordCAR{}, recordBlock{}, wireNode{}),
	cmp.Comparer(cid.Cid.Equals),
	cmp.Comparer(func(a, b []byte) bool { return bytes.Equal(a, b) }),
}

func TestRecordFormat(t *testing.T) {
	want := exampleRecord()
	b := want.append(nil)
	if err := dagcbor.Valid(b); err != nil {
		t.Fatalf("a record is not DAG-CBOR: %v", err)
	}
	got, err := parseRecord(b, want.bodyLen())
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, &got, sameRecord); diff != "" {
		t.Errorf("read back (-want +got):\n%s", diff)
	}
	for _, n := range []int64{0, want.bodyLen() - 1, want.bodyLen() + 1} {
		if _, err := parseRecord(b, n); err == nil {
			t.Errorf("a record of %d bytes is accepted with a body of %d", want.bodyLen(), n)
		}
	}
	// The meta that is our own takes its digests, the other its block.
	if own, foreign := len(appendMeta(nil, want.tips[1])), len(appendMeta(nil, want.tips[0])); own > 72 || foreign < len(want.tips[0].Block) {
		t.Errorf("metas take %d and %d bytes", own, foreign)
	}
	empty := (&record{}).append(nil)
	if got, err := parseRecord(empty, 0); err != nil || len(empty) != 1 {
		t.Errorf("an empty record is %x, read back %+v, %v", empty, got, err)
	}
}

func TestRecordRefuses(t *testing.T) {
	field := func(name string, value func([]byte) []byte) []byte {
		return value(dagcbor.AppendText(dagcbor.AppendMap(nil, 1), name))
	}
	carWith := func(change func(*recordCAR)) []byte {
		c := exampleRecord().cars[0]
		change(&c)
		return (&record{cars: []recordCAR{c}}).append(nil)
	}
	for name, b := range map[string][]byte{
		"empty":                     nil,
		"not a map":                 dagcbor.AppendArray(nil, 0),
		"unknown field":             field("cart", func(b []byte) []byte { return dagcbor.AppendArray(b, 0) }),
		"half a digest dropped":     field("drop", func(b []byte) []byte { return dagcbor.AppendBytes(b, make([]byte, 31)) }),
		"half a digest gone":        field("gone", func(b []byte) []byte { return dagcbor.AppendBytes(b, make([]byte, 33)) }),
		"tip is no meta":            field("tips", func(b []byte) []byte { return dagcbor.AppendBytes(dagcbor.AppendArray(b, 1), []byte{0xa0}) }),
		"tip of three fields":       field("tips", func(b []byte) []byte { return dagcbor.AppendArray(dagcbor.AppendArray(b, 1), 0) }),
		"bytes after it":            append((&record{}).append(nil), 0),
		"block outside its CAR":     carWith(func(c *recordCAR) { c.blocks[1].size = 100 }),
		"data behind its CAR":       carWith(func(c *recordCAR) { c.dataOff = 301 }),
		"CAR too large":             carWith(func(c *recordCAR) { c.size = MaxFileCARBytes + 1 }),
		"large CAR without leaves":  carWith(func(c *recordCAR) { c.size = leafBytes + 1 }),
		"small CAR with leaves":     carWith(func(c *recordCAR) { c.leaves = make([]byte, 32) }),
		"blocks with a huge length": carWith(func(c *recordCAR) { c.blocks[0].size = 1 << 62 }),
	} {
		if _, err := parseRecord(b, 300); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestIndexFormat(t *testing.T) {
	st := logState{header: exampleSegment(), end: 10, seq: 11, chain: chainValue{12}, cars: 13, bytes: 14, blocks: 15}
	if got, err := parseState(appendState(nil, &st)); err != nil || got != st {
		t.Errorf("state read back %+v, %v", got, err)
	}
	e := carEntry{name: [32]byte{1}, wire: [32]byte{2}, keyID: [32]byte{3}, seg: 4, run: 5, off: 600, size: 7, dataOff: 8}
	if got, err := parseCAR(appendCAR(nil, &e)); err != nil || got != e {
		t.Errorf("CAR entry read back %+v, %v", got, err)
	}
	x := extent{1, 2000, 3}
	if got, err := parseExtent(appendExtent(nil, x)); err != nil || got != x {
		t.Errorf("extent read back %+v, %v", got, err)
	}
	for n := range len(appendState(nil, &st)) {
		if _, err := parseState(appendState(nil, &st)[:n]); err == nil {
			t.Errorf("state cut at %d is accepted", n)
		}
	}
	for n := range len(appendCAR(nil, &e)) {
		if _, err := parseCAR(appendCAR(nil, &e)[:n]); err == nil {
			t.Errorf("CAR entry cut at %d is accepted", n)
		}
	}
	for _, k := range []struct{ in, want []byte }{{[]byte("ab"), []byte("ac")}, {[]byte("a\xff"), []byte("b")}, {[]byte("\xff\xff"), nil}} {
		if got := after(k.in); !bytes.Equal(got, k.want) {
			t.Errorf("after(%q) = %q, want %q", k.in, got, k.want)
		}
	}
}

func TestNames(t *testing.T) {
	for n, want := range map[uint32]string{1: "000001.seg", 999999: "999999.seg", 1000000: "1000000.seg"} {
		if got := segmentName(n); got != want {
			t.Errorf("segmentName(%d) = %q, want %q", n, got, want)
		}
		if got, ok := parseSegmentName(want); !ok || got != n {
			t.Errorf("parseSegmentName(%q) = %d, %v", want, got, ok)
		}
	}
	for _, bad := range []string{"", ".seg", "1.seg", "0000001.seg", "000001.SEG", "000001.seg.tmp", "-00001.seg", "4294967296.seg"} {
		if n, ok := parseSegmentName(bad); ok {
			t.Errorf("parseSegmentName(%q) = %d", bad, n)
		}
	}
	id := [32]byte{0xff, 1}
	if got, err := parseLedgerText(ledgerText(id)); err != nil || got != id {
		t.Errorf("ledger id read back %x, %v", got, err)
	}
	for _, bad := range []string{"", "a", strings.ToUpper(ledgerText(id)), ledgerText(id) + "a", strings.Repeat("1", 52), "../" + ledgerText(id)[3:]} {
		if got, err := parseLedgerText(bad); err == nil {
			t.Errorf("parseLedgerText(%q) = %x", bad, got)
		}
	}
}

func FuzzRecord(f *testing.F) {
	r := exampleRecord()
	f.Add(r.append(nil), r.bodyLen())
	f.Add([]byte{0xa0}, int64(0))
	f.Fuzz(func(t *testing.T, b []byte, bodyLen int64) {
		rec, err := parseRecord(b, bodyLen)
		if err != nil {
			return
		}
		again, err := parseRecord(rec.append(nil), bodyLen)
		if err != nil {
			t.Fatalf("what was read cannot be read again: %v", err)
		}
		if !bytes.Equal(again.append(nil), rec.append(nil)) {
			t.Fatal("writing what was read changes it")
		}
	})
}

func FuzzHeaders(f *testing.F) {
	h, r := exampleSegment(), exampleRun()
	f.Add(h.append(nil))
	f.Add(r.append(nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		if h, err := parseSegmentHeader(b); err == nil && !bytes.Equal(h.append(nil), b[:segmentHeaderBytes]) {
			t.Error("segment header is written otherwise than read")
		}
		if r, err := parseRunHeader(b); err == nil && !bytes.Equal(r.append(nil), b[:runHeaderBytes]) {
			t.Error("run header is written otherwise than read")
		}
	})
}

func FuzzIndexValues(f *testing.F) {
	st := logState{header: exampleSegment(), end: 10, seq: 11}
	e := carEntry{seg: 4, run: 5, off: 600, size: 7, dataOff: 8}
	f.Add(appendState(nil, &st))
	f.Add(appendCAR(nil, &e))
	f.Add(appendExtent(nil, extent{1, 2, 3}))
	f.Fuzz(func(t *testing.T, b []byte) {
		if s, err := parseState(b); err == nil && !bytes.Equal(appendState(nil, &s), b) {
			t.Error("state is written otherwise than read")
		}
		// Varints have longer spellings, which no index has; what is read must be written the same ever after.
		if e, err := parseCAR(b); err == nil {
			if again, err := parseCAR(appendCAR(nil, &e)); err == nil && again != e {
				t.Error("CAR entry is written otherwise than read")
			}
		}
		if x, err := parseExtent(b); err == nil {
			if again, err := parseExtent(appendExtent(nil, x)); err != nil || again != x {
				t.Error("extent is written otherwise than read")
			}
		}
		parseTip(b)
		parsePID(b)
	})
}
