package ledger

import (
	"bytes"
	"encoding/json"
	"errors"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/ipfs/go-cid"

	"fpnode/internal/dagcbor"
)

func blockOf(t testing.TB, d Draft) []byte {
	t.Helper()
	_, b, err := d.block()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestDocumentBlockIsCanonical(t *testing.T) {
	for _, tt := range []struct{ in, want string }{
		{`{"_id":"x"}`, `{"_id":"x"}`},
		{`{"zz":1,"a":2,"_id":"x","aaa":3,"ZZZ":4,"_aa":5,"long":6}`, `{"a":2,"zz":1,"ZZZ":4,"_aa":5,"_id":"x","aaa":3,"long":6}`},
		{`{"_id":"x","n":1.0,"m":-0,"big":9007199254740992,"max":9007199254740991,"e":1e21,"f":0.1}`,
			`{"e":1e+21,"f":0.1,"m":0,"n":1,"_id":"x","big":9007199254740992,"max":9007199254740991}`},
	} {
		b := blockOf(t, draft(t, tt.in))
		if err := dagcbor.Valid(b); err != nil {
			t.Errorf("%s: %v", tt.in, err)
		}
		d, err := newDoc("x", dagcbor.Sum(b), b)
		if err != nil {
			t.Fatal(err)
		}
		wantEqual(t, tt.in, toJSON(t, d), tt.want)
	}
}

// JavaScript has one kind of number. 2^53 and above, like fractions, are floats in the block.
func TestNumbersFollowJavaScript(t *testing.T) {
	for _, tt := range []struct {
		json string
		want any
	}{
		{"1", int64(1)}, {"1.0", int64(1)}, {"-0.0", int64(0)}, {"1e3", int64(1000)},
		{"9007199254740991", int64(1<<53 - 1)}, {"9007199254740992", float64(1 << 53)}, {"-9007199254740993", float64(-1 << 53)},
		{"0.5", 0.5}, {"1e400", nil},
	} {
		d, err := ParseJSON([]byte(`{"_id":"x","n":` + tt.json + `}`))
		if tt.want == nil {
			if err == nil {
				t.Errorf("%s was accepted", tt.json)
			}
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		b := blockOf(t, d)
		doc, err := newDoc("x", dagcbor.Sum(b), b)
		if err != nil {
			t.Fatal(err)
		}
		got, _ := doc.Field("n")
		wantEqual(t, tt.json, got, tt.want)
	}
}

func TestParseJSONRefuses(t *testing.T) {
	for _, in := range []string{
		``, `[]`, `null`, `"x"`, `{`, `{"a":1}{}`, `{"a":NaN}`, `{"a":1,"a":2}`, "{\"a\":\"\xff\"}", `{"a":"\ud800"}`,
		`{"_id":5}`, `{"_id":true}`, `{"_id":["x"]}`, strings.Repeat(`{"a":`, 200) + "1" + strings.Repeat("}", 200),
	} {
		if _, err := ParseJSON([]byte(in)); err == nil {
			t.Errorf("%.40q was accepted", in)
		}
	}
}

func TestFalsyIDMeansAutomatic(t *testing.T) {
	for _, in := range []string{`{}`, `{"_id":null}`, `{"_id":""}`, `{"_id":0}`, `{"_id":false}`} {
		if id := draft(t, in).ID(); id != "" {
			t.Errorf("%s has id %q", in, id)
		}
	}
}

func TestIDLimits(t *testing.T) {
	h := newHome(t)
	for _, id := range []string{" ", "~", strings.Repeat("x", MaxIDBytes)} {
		r := h.put(`{"_id":` + string(mustJSON(t, id)) + `}`)
		wantEqual(t, "id", r.IDs[0], id)
	}
	var bad *IDError
	for _, id := range []string{"ä", "a\n", "a\x7f", "\x00"} {
		if _, err := h.Put(t.Context(), Draft{}.WithID(id)); !errors.As(err, &bad) {
			t.Errorf("%q: %v", id, err)
		}
		if _, err := h.Get(t.Context(), id); !errors.As(err, &bad) {
			t.Errorf("get %q: %v", id, err)
		}
	}
	if _, err := h.Delete(t.Context(), ""); !errors.As(err, &bad) {
		t.Errorf("deleting no id: %v", err)
	}
	var limit *LimitError
	if _, err := h.Put(t.Context(), Draft{}.WithID(strings.Repeat("x", MaxIDBytes+1))); !errors.As(err, &limit) {
		t.Errorf("long id: %v", err)
	}
}

func TestDocumentSizeLimits(t *testing.T) {
	fits, err := FromMap(map[string]any{"_id": "x", "b": make([]byte, MaxDocBytes-32)})
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := fits.block(); err != nil {
		t.Errorf("%d bytes: %v", MaxDocBytes, err)
	}
	large, err := FromMap(map[string]any{"_id": "x", "b": make([]byte, MaxDocBytes)})
	if err != nil {
		t.Fatal(err)
	}
	var limit *LimitError
	if _, _, err := large.block(); !errors.As(err, &limit) {
		t.Errorf("over the limit: %v", err)
	}
	if _, err := ParseJSON(bytes.Repeat([]byte{' '}, 2*MaxDocBytes+1)); !errors.As(err, &limit) {
		t.Errorf("long JSON: %v", err)
	}
	h := newHome(t)
	if _, err := h.Put(t.Context(), fits, fits, fits, fits); !errors.As(err, &limit) {
		t.Errorf("four documents of 16 MiB in one put: %v", err)
	}
	if _, err := h.Put(t.Context(), make([]Draft, MaxPutDocs+1)...); !errors.As(err, &limit) {
		t.Errorf("too many documents in one put: %v", err)
	}
	if len(h.Head()) != 0 {
		t.Error("a refused put left an event")
	}
}

func TestNestingLimit(t *testing.T) {
	nest := func(n int) map[string]any {
		m := map[string]any{}
		for range n - 1 {
			m = map[string]any{"a": m}
		}
		return m
	}
	d, err := FromMap(nest(MaxDocDepth))
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := d.WithID("x").block(); err != nil {
		t.Errorf("%d levels: %v", MaxDocDepth, err)
	}
	if _, err := FromMap(nest(MaxDocDepth + 1)); err == nil {
		t.Errorf("%d levels were accepted", MaxDocDepth+1)
	}
}

func TestFromMapAgreesWithJSON(t *testing.T) {
	link := cid.MustParse("bafyreicanszdxh2xkhp3ihpunne7jnhd6zde5ppdv6mc74cihlcy2mgr6q")
	d, err := FromMap(map[string]any{
		"_id": "x", "nil": nil, "b": true, "i": 5, "i8": int8(-3), "u": uint32(7), "f": 2.0, "g": 2.5, "s": "ü", "bytes": []byte{1, 2},
		"link": link, "list": []any{1, "a", nil}, "texts": []string{"a", "b"}, "m": map[string]any{"k": 1, "a": 2},
		"at": time.Date(1970, 1, 2, 3, 4, 5, 678_900_000, time.UTC),
	})
	if err != nil {
		t.Fatal(err)
	}
	j := draft(t, `{"_id":"x","nil":null,"b":true,"i":5,"i8":-3,"u":7,"f":2,"g":2.5,"s":"ü","bytes":{"/":{"bytes":"AQI"}},
		"link":{"/":"`+link.String()+`"},"list":[1,"a",null],"texts":["a","b"],"m":{"a":2,"k":1},"at":"1970-01-02T03:04:05.678Z"}`)
	if !bytes.Equal(blockOf(t, d), blockOf(t, j)) {
		t.Errorf("blocks differ:\n%x\n%x", blockOf(t, d), blockOf(t, j))
	}
	for _, v := range []any{math.NaN(), math.Inf(1), "\xff", struct{}{}, cid.Undef, []any{math.NaN()}} {
		if _, err := FromMap(map[string]any{"v": v}); err == nil {
			t.Errorf("%#v was accepted", v)
		}
	}
}

func TestDocumentReadsBack(t *testing.T) {
	b := blockOf(t, draft(t, `{"_id":"x","n":1,"m":{"a":[1.5,null]}}`))
	d, err := newDoc("x", dagcbor.Sum(b), b)
	if err != nil {
		t.Fatal(err)
	}
	m, err := d.Map()
	if err != nil {
		t.Fatal(err)
	}
	wantEqual(t, "map", m, map[string]any{"_id": "x", "n": int64(1), "m": map[string]any{"a": []any{1.5, nil}}})
	if _, ok := d.Field("absent"); ok {
		t.Error("an absent field was found")
	}
	gone := Doc{ID: `a"b`, CID: tombstoneCID, Deleted: true, block: delBlock}
	wantEqual(t, "tombstone", toJSON(t, gone), `{"_id":"a\"b","_deleted":true}`)
	if _, err := newDoc("x", cid.Undef, []byte{0xa0}); err == nil {
		t.Error("a block that is no document was accepted")
	}
}

// The tombstone is one block for all documents (Fireproof format, document block).
func TestTombstoneBlock(t *testing.T) {
	wantEqual(t, "cid", tombstoneCID.String(), "bafyreicanszdxh2xkhp3ihpunne7jnhd6zde5ppdv6mc74cihlcy2mgr6q")
}

// Automatic ids are 48 bits of milliseconds and then random digits; Fireproof forces the low half of the second
// random byte to b.
func TestAutomaticID(t *testing.T) {
	id, err := newID(time.UnixMilli(0x01a2039c5164), bytes.NewReader([]byte{0x9d, 0x30, 0x22, 0x73, 0x84, 0x53, 0x57, 0x96, 0xc4, 0xef}))
	if err != nil {
		t.Fatal(err)
	}
	wantEqual(t, "id", id, "01a2039c-5164-79d3-b227-384535796c4e")
	h := newHome(t)
	r := h.put(`{"a":1}`, `{"_id":"b"}`, `{"a":1}`)
	if r.IDs[0] == r.IDs[2] || len(r.IDs[0]) != 36 || r.IDs[1] != "b" {
		t.Errorf("ids %q", r.IDs)
	}
	wantEqual(t, "document", h.get(r.IDs[0]), `{"a":1,"_id":"`+r.IDs[0]+`"}`)
}

func TestSoftDeletedIsTruthiness(t *testing.T) {
	h := newHome(t)
	h.put(`{"_id":"a","_deleted":true}`, `{"_id":"b","_deleted":0}`, `{"_id":"c","_deleted":"yes"}`, `{"_id":"d","_deleted":null}`,
		`{"_id":"e","_deleted":{}}`, `{"_id":"f","_deleted":""}`, `{"_id":"g","_deleted":1.5}`)
	var ids []string
	for d, err := range h.AllDocs(t.Context(), ListOptions{}) {
		if err != nil {
			t.Fatal(err)
		}
		ids = append(ids, d.ID)
	}
	wantEqual(t, "listed", ids, []string{"b", "d", "f"})
}

func mustJSON(t testing.TB, v any) []byte {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// FuzzParseJSON: whatever is accepted becomes a block that reads back as a document with the same id, and writing
// what was read gives the same block.
func FuzzParseJSON(f *testing.F) {
	f.Add([]byte(`{"_id":"x","n":1.5,"list":[null,true,{"a":"b"}]}`))
	f.Add([]byte(`{"a":{"/":{"bytes":"AQI"}},"_id":""}`))
	f.Add([]byte(`{"zzzz":1,"_ie":2,"_ic":3,"":4}`))
	f.Fuzz(func(t *testing.T, in []byte) {
		d, err := ParseJSON(in)
		if err != nil {
			return
		}
		if checkID(d.ID()) != nil {
			d = d.WithID("x")
		}
		c, b, err := d.block()
		if err != nil {
			return
		}
		doc, err := newDoc(d.ID(), c, b)
		if err != nil {
			t.Fatal(err)
		}
		m, err := doc.Map()
		if err != nil {
			t.Fatalf("%x: %v", b, err)
		}
		again, err := FromMap(m)
		if err != nil {
			t.Fatal(err)
		}
		c2, _, err := again.block()
		if err != nil || c2 != c || again.ID() != d.ID() {
			t.Fatalf("%s became %s, id %q became %q: %v", c, c2, d.ID(), again.ID(), err)
		}
	})
}
