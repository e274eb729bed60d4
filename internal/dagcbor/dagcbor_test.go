package dagcbor

import (
	"bytes"
	"encoding/hex"
	"errors"
	"math"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/ipfs/go-cid"
	"pgregory.net/rapid"
)

var (
	cidRaw = SumCodec(cid.Raw, []byte("x"))
	cidV0  = cid.NewCidV0(cidRaw.Hash())
)

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.ReplaceAll(s, " ", ""))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func link(c cid.Cid) string { return hex.EncodeToString(AppendLink(nil, c)) }

// Encodings of RFC 8949 appendix A that DAG-CBOR has, and of our own.
var encodings = []struct {
	hex   string
	value any
	json  string
}{
	{"00", int64(0), "0"},
	{"17", int64(23), "23"},
	{"1818", int64(24), "24"},
	{"18ff", int64(255), "255"},
	{"190100", int64(256), "256"},
	{"19ffff", int64(65535), "65535"},
	{"1a00010000", int64(65536), "65536"},
	{"1affffffff", int64(math.MaxUint32), "4294967295"},
	{"1b0000000100000000", int64(1 << 32), "4294967296"},
	{"1b001fffffffffffff", int64(1<<53 - 1), "9007199254740991"},
	{"1b7fffffffffffffff", int64(math.MaxInt64), "9223372036854775807"},
	{"1b8000000000000000", uint64(1 << 63), "9223372036854775808"},
	{"20", int64(-1), "-1"},
	{"3863", int64(-100), "-100"},
	{"3b7fffffffffffffff", int64(math.MinInt64), "-9223372036854775808"},
	{"fb3ff199999999999a", 1.1, "1.1"},
	{"fb7e37e43c8800759c", 1e300, "1e+300"},
	{"fbc010666666666666", -4.1, "-4.1"},
	{"fb3eb0c6f7a0b5ed8d", 1e-6, "0.000001"},
	{"fb3e7ad7f29abcaf48", 1e-7, "1e-7"},
	{"fb4340000000000000", float64(1 << 53), "9007199254740992"},
	{"fb444b1ae4d6e2ef50", 1e21, "1e+21"},
	{"f4", false, "false"},
	{"f5", true, "true"},
	{"f6", nil, "null"},
	{"40", []byte{}, `{"/":{"bytes":""}}`},
	{"4401020304", []byte{1, 2, 3, 4}, `{"/":{"bytes":"AQIDBA"}}`},
	{"60", "", `""`},
	{"62225c", `"\`, `"\"\\"`},
	{"63e6b0b4", "水", `"水"`},
	{"64f0908591", "𐅑", `"𐅑"`},
	{"67080a0d0c09001f", "\b\n\r\f\t\x00\x1f", `"\b\n\r\f\t\u0000\u001f"`},
	{"80", []any{}, "[]"},
	{"8301820203820405", []any{int64(1), []any{int64(2), int64(3)}, []any{int64(4), int64(5)}}, "[1,[2,3],[4,5]]"},
	{"a0", map[string]any{}, "{}"},
	{"a26161016162820203", map[string]any{"a": int64(1), "b": []any{int64(2), int64(3)}}, `{"a":1,"b":[2,3]}`},
	{"a3 6162 01 626161 02 626162 03", map[string]any{"b": int64(1), "aa": int64(2), "ab": int64(3)}, `{"b":1,"aa":2,"ab":3}`},
	{link(cidRaw), cidRaw, `{"/":"` + cidRaw.String() + `"}`},
	{link(cidV0), cidV0, `{"/":"` + cidV0.String() + `"}`},
}

func TestEncodings(t *testing.T) {
	for _, e := range encodings {
		b := unhex(t, e.hex)
		if err := Valid(b); err != nil {
			t.Errorf("%s: %v", e.hex, err)
			continue
		}
		v, err := Unmarshal(b)
		if err != nil {
			t.Errorf("%s: %v", e.hex, err)
		}
		if d := cmp.Diff(e.value, v, cmp.Comparer(func(a, b cid.Cid) bool { return a == b })); d != "" {
			t.Errorf("%s (-want +got):\n%s", e.hex, d)
		}
		if again, err := Marshal(v); err != nil || !bytes.Equal(again, b) {
			t.Errorf("%s marshalled again: %x, %v", e.hex, again, err)
		}
		json, err := AppendJSON([]byte("> "), b)
		if err != nil || string(json) != "> "+e.json {
			t.Errorf("%s as JSON: %s, %v; want %s", e.hex, json, err, e.json)
		}
		if f, ok := v.(int64); ok && (f > maxSafeInteger || f < -maxSafeInteger) {
			continue // JavaScript reads such integers as floats
		}
		if _, ok := v.(uint64); ok {
			continue
		}
		if back, err := FromJSON([]byte(e.json)); err != nil || !bytes.Equal(back, b) {
			t.Errorf("%s from JSON %s: %x, %v", e.hex, e.json, back, err)
		}
	}
}

func TestIntegersBeyondInt64(t *testing.T) {
	b := unhex(t, "3bffffffffffffffff")
	if err := Valid(b); err != nil {
		t.Fatal(err)
	}
	if json, err := AppendJSON(nil, b); err != nil || string(json) != "-18446744073709551616" {
		t.Errorf("JSON %s, %v", json, err)
	}
	b = unhex(t, "3b8000000000000000")
	if json, err := AppendJSON(nil, b); err != nil || string(json) != "-9223372036854775809" {
		t.Errorf("JSON %s, %v", json, err)
	}
	if v, err := Unmarshal(b); err == nil {
		t.Errorf("unmarshalled to %v", v)
	}
}

func TestValidRefuses(t *testing.T) {
	for _, c := range []struct {
		hex string
		err error
	}{
		{"", errTruncated},
		{"1817", errNotMinimal},
		{"1900ff", errNotMinimal},
		{"1a0000ffff", errNotMinimal},
		{"1b00000000ffffffff", errNotMinimal},
		{"3817", errNotMinimal},
		{"5817" + strings.Repeat("00", 23), errNotMinimal},
		{"7817" + strings.Repeat("61", 23), errNotMinimal},
		{"9800", errNotMinimal},
		{"b800", errNotMinimal},
		{"18", errTruncated},
		{"1b00000000000000", errTruncated},
		{"4201", errTruncated},
		{"6261", errTruncated},
		{"5bffffffffffffffff", errTruncated},
		{"7bffffffffffffffff", errTruncated},
		{"9bffffffffffffffff", errTruncated},
		{"bbffffffffffffffff", errTruncated},
		{"9affffffff00", errTruncated},
		{"8100ff", errTrailing},
		{"0000", errTrailing},
		{"82 00", errTruncated},
		{"a1 6161", errTruncated},
		{"5f4100ff", errIndefinite},
		{"7f6161ff", errIndefinite},
		{"9f00ff", errIndefinite},
		{"bf616100ff", errIndefinite},
		{"ff", errIndefinite},
		{"1c", errReserved},
		{"fc", errReserved},
		{"a1 00 00", errKeyKind},
		{"a1 4161 00", errKeyKind},
		{"a2 6161 00 6161 00", errKeyTwice},
		{"a2 6162 00 6161 00", errKeyOrder},
		{"a2 626161 00 6162 00", errKeyOrder},
		{"61ff", errUTF8},
		{"63eda080", errUTF8},
		{"a1 61ff 00", errUTF8},
		{"f7", errSimple},
		{"f0", errSimple},
		{"f820", errSimple},
		{"f93c00", errSimple},
		{"fa3f800000", errSimple},
		{"fb7ff8000000000000", errFloat},
		{"fb7ff0000000000000", errFloat},
		{"fbfff0000000000000", errFloat},
		{"c000", errTag},
		{"d82b4100", errTag},
		{"d82a", errTruncated},
		{"d82a00", errLink},
		{"d82a40", errLink},
		{"d82a4100", errLink},
		{"d82a4101", errLink},
		{"d82a5825" + "01" + hex.EncodeToString(cidRaw.Bytes()), errLink},
		{"d82a5824" + "00" + hex.EncodeToString(cidRaw.Bytes()[:35]), errLink},
		{"d82a5826" + "00" + hex.EncodeToString(cidRaw.Bytes()) + "00", errLink},
		{"d82a5825" + "00" + "02" + hex.EncodeToString(cidRaw.Bytes()[1:]), errLink},
		{"d82a5826" + "00" + "01d500" + hex.EncodeToString(cidRaw.Bytes()[2:]), errLink},
	} {
		b := unhex(t, c.hex)
		if err := Valid(b); !errors.Is(err, c.err) {
			t.Errorf("%s: %v, want %v", c.hex, err, c.err)
		}
		if v, err := Unmarshal(b); err == nil {
			t.Errorf("%s unmarshalled to %v", c.hex, v)
		}
		if json, err := AppendJSON(nil, b); err == nil {
			t.Errorf("%s as JSON: %s", c.hex, json)
		}
	}
}

func TestLimits(t *testing.T) {
	nested := func(n int) []byte { return append(bytes.Repeat([]byte{0x81}, n-1), 0x80) }
	if err := Valid(nested(MaxDepth)); err != nil {
		t.Error(err)
	}
	if err := Valid(nested(MaxDepth + 1)); !errors.Is(err, ErrLimit) {
		t.Errorf("%d levels: %v", MaxDepth+1, err)
	}
	many := func(n int) []byte { return append(AppendArray(nil, n), make([]byte, n)...) }
	if err := Valid(many(MaxItems - 1)); err != nil {
		t.Error(err)
	}
	if err := Valid(many(MaxItems)); !errors.Is(err, ErrLimit) {
		t.Errorf("%d values: %v", MaxItems+1, err)
	}
	if err := Valid(AppendBytes(nil, make([]byte, MaxSizeBytes-5))); err != nil {
		t.Error(err)
	}
	if err := Valid(AppendBytes(nil, make([]byte, MaxSizeBytes-4))); !errors.Is(err, ErrLimit) {
		t.Errorf("%d bytes: %v", MaxSizeBytes+1, err)
	}
	long := AppendLinkBytes(nil, "\x01\x55\x00\x7c"+strings.Repeat("x", MaxCIDBytes-4))
	if err := Valid(long); err != nil {
		t.Error(err)
	}
	longer := AppendLinkBytes(nil, "\x01\x55\x00\x7d"+strings.Repeat("x", MaxCIDBytes-3))
	if err := Valid(longer); !errors.Is(err, ErrLimit) {
		t.Errorf("a CID of %d bytes: %v", MaxCIDBytes+1, err)
	}

	var deep any = []any{}
	for range MaxDepth - 1 {
		deep = []any{deep}
	}
	if _, err := Marshal(deep); err != nil {
		t.Error(err)
	}
	for _, v := range []any{[]any{deep}, map[string]any{"": deep}} {
		if _, err := Marshal(v); !errors.Is(err, ErrLimit) {
			t.Errorf("marshalling %d levels: %v", MaxDepth+1, err)
		}
	}

	brackets := func(n int) []byte { return []byte(strings.Repeat("[", n) + strings.Repeat("]", n)) }
	if _, err := FromJSON(brackets(MaxDepth)); err != nil {
		t.Error(err)
	}
	if _, err := FromJSON(brackets(MaxDepth + 1)); !errors.Is(err, ErrLimit) {
		t.Errorf("JSON of %d levels: %v", MaxDepth+1, err)
	}
	if _, err := FromJSON([]byte("[" + strings.Repeat("0,", MaxItems) + "0]")); !errors.Is(err, ErrLimit) {
		t.Errorf("JSON of too many values: %v", err)
	}
	if _, err := FromJSON(make([]byte, MaxSizeBytes+1)); !errors.Is(err, ErrLimit) {
		t.Errorf("JSON of too many bytes: %v", err)
	}
}

func TestMarshalAsJavaScriptDoes(t *testing.T) {
	for _, c := range []struct {
		value any
		hex   string
	}{
		{3.0, "03"},
		{math.Copysign(0, -1), "00"},
		{float32(0.5), "fb3fe0000000000000"},
		{float64(1<<53 - 1), "1b001fffffffffffff"},
		{float64(-(1<<53 - 1)), "3b001ffffffffffffe"},
		{float64(1 << 53), "fb4340000000000000"},
		{uint64(math.MaxUint64), "1bffffffffffffffff"},
		{[]any{int(-1), int8(-1), int16(-1), int32(-1), int64(-1), uint(1), uint8(1), uint16(1), uint32(1)}, "89" + "2020202020" + "01010101"},
		{map[string]any{"doc": map[string]any{"_id": "a", "n": 1}}, "a1 63646f63 a2 616e 01 635f6964 6161"},
		{map[string]any{"del": true}, "a1 6364656c f5"},
	} {
		if b, err := Marshal(c.value); err != nil || !bytes.Equal(b, unhex(t, c.hex)) {
			t.Errorf("%v: %x, %v; want %s", c.value, b, err, c.hex)
		}
	}
	for _, v := range []any{
		math.NaN(), math.Inf(1), float32(math.Inf(-1)), "\xff", map[string]any{"\xff": 1},
		cid.Undef, struct{}{}, []any{math.NaN()}, map[string]any{"a": make(chan int)},
	} {
		if b, err := Marshal(v); err == nil {
			t.Errorf("%v marshalled to %x", v, b)
		}
	}
	if tombstone := Sum(unhex(t, "a16364656cf5")).String(); tombstone != "bafyreicanszdxh2xkhp3ihpunne7jnhd6zde5ppdv6mc74cihlcy2mgr6q" {
		t.Errorf("CID of Fireproof's tombstone is %s", tombstone)
	}
}

func TestFromJSON(t *testing.T) {
	for _, c := range []struct{ json, hex string }{
		{" \t\r\n1 ", "01"},
		{"1.0", "01"},
		{"-0", "00"},
		{"-0.0", "00"},
		{"1e2", "1864"},
		{"10E-1", "01"},
		{"1e-400", "00"},
		{"0.5", "fb3fe0000000000000"},
		{"9007199254740991", "1b001fffffffffffff"},
		{"9007199254740992", "fb4340000000000000"},
		{"9007199254740993", "fb4340000000000000"},
		{"1e21", "fb444b1ae4d6e2ef50"},
		{`"\u0041\/\b\f\n\r\t\"\\"`, "69 41 2f 08 0c 0a 0d 09 22 5c"},
		{`"\ud834\udd1e"`, "64 f09d849e"},
		{`"\uD834\uDD1E"`, "64 f09d849e"},
		{`"\u00e9é"`, "64 c3a9c3a9"},
		{`{"bb":1,"a":2,"ba":3}`, "a3 6161 02 626261 03 626262 01"},
		{`{ "a" : [ 1 , { } , [ ] ] }`, "a1 6161 83 01 a0 80"},
		{`{"/":1,"a":2}`, "a2 612f 01 6161 02"},
		{`[{"/":{"bytes":"AQID"}}]`, "81 43010203"},
	} {
		if b, err := FromJSON([]byte(c.json)); err != nil || !bytes.Equal(b, unhex(t, c.hex)) {
			t.Errorf("%s: %x, %v; want %s", c.json, b, err, c.hex)
		}
	}
	for _, c := range []struct {
		json string
		err  error
	}{
		{"", errJSONEnd},
		{" ", errJSONEnd},
		{"[1", errJSONEnd},
		{`"a`, errJSONEnd},
		{`"a\`, errJSONEnd},
		{`"\u12`, errJSONEnd},
		{`{"a"`, errJSONEnd},
		{"1 2", errJSONTrailing},
		{"[]]", errJSONTrailing},
		{"01", errJSONTrailing},
		{"-", errJSONNumber},
		{"1.", errJSONNumber},
		{"1e", errJSONNumber},
		{"1e+", errJSONNumber},
		{"-a", errJSONNumber},
		{"1e400", errJSONInfinite},
		{"-1e400", errJSONInfinite},
		{`"\x"`, errJSONEscape},
		{`"\u00zz"`, errJSONEscape},
		{`"\ud800"`, errJSONHalf},
		{`"\udc00"`, errJSONHalf},
		{`"\ud800\u0041"`, errJSONHalf},
		{`"\ud800\ud800"`, errJSONHalf},
		{"\"\n\"", errJSONControl},
		{"\"\xff\"", errUTF8},
		{"\xff", errUTF8},
		{`{"a":1,"a":2}`, errJSONTwice},
		{`{"a":1,"\u0061":2}`, errJSONTwice},
		{`{"/":"not a CID"}`, errJSONSlash},
		{`{"/":1}`, errJSONSlash},
		{`{"/":{}}`, errJSONSlash},
		{`{"/":{"bytes":1}}`, errJSONSlash},
		{`{"/":{"bytes":"AQ=="}}`, errJSONSlash},
		{`{"/":{"bytes":"AR"}}`, errJSONSlash},
		{`{"/":{"bytes":"A\nQ"}}`, errJSONSlash},
		{`{"/":{"bytes":"AQ","x":1}}`, errJSONSlash},
	} {
		if b, err := FromJSON([]byte(c.json)); !errors.Is(err, c.err) {
			t.Errorf("%s: %x, %v; want %v", c.json, b, err, c.err)
		}
	}
	for _, json := range []string{"NaN", "nul", "tru", "+1", ".5", "'a'", "[1,]", "[,1]", `{"a":1,}`, `{a:1}`, `{"a" 1}`, "\ufeff1", "undefined", "0x1"} {
		if b, err := FromJSON([]byte(json)); err == nil {
			t.Errorf("%s: %x", json, b)
		}
	}
	_, err := FromJSON([]byte("{\n  \"a\": tru\n}"))
	if err == nil || !strings.Contains(err.Error(), "line 2, column 8") {
		t.Errorf("place of an error: %v", err)
	}
}

func TestReader(t *testing.T) {
	b, err := Marshal(map[string]any{"a": []any{1, -2, 0.5, true, nil}, "bb": []byte("x"), "ccc": cidRaw, "dddd": "text"})
	if err != nil {
		t.Fatal(err)
	}
	r := NewReader(b)
	if n := r.MapLen(); n != 4 {
		t.Fatalf("%d entries", n)
	}
	r.Key("a")
	if n := r.ArrayLen(); n != 5 {
		t.Fatalf("%d elements", n)
	}
	if u := r.Uint(); u != 1 {
		t.Error(u)
	}
	if i := r.Int(); i != -2 {
		t.Error(i)
	}
	if f := r.Float(); f != 0.5 {
		t.Error(f)
	}
	if !r.Bool() {
		t.Error("false")
	}
	r.Null()
	r.Skip()
	if x := r.Bytes(); string(x) != "x" {
		t.Errorf("%q", x)
	}
	if k := r.Text(); k != "ccc" {
		t.Error(k)
	}
	if c := r.Link(); c != cidRaw {
		t.Error(c)
	}
	r.Key("dddd")
	if k := r.Kind(); k != KindText {
		t.Error(k)
	}
	if raw := r.Raw(); string(raw) != "\x64text" {
		t.Errorf("%q", raw)
	}
	if err := r.End(); err != nil {
		t.Error(err)
	}
	if k := r.Kind(); k != KindNone {
		t.Errorf("%v after the end", k)
	}
	if r.Raw() != nil || r.Err() == nil {
		t.Error("read a value after the end")
	}
}

func TestReaderErrorSticks(t *testing.T) {
	reads := map[string]func(*Reader){
		"MapLen": func(r *Reader) { r.MapLen() }, "ArrayLen": func(r *Reader) { r.ArrayLen() },
		"Text": func(r *Reader) { r.Text() }, "Bytes": func(r *Reader) { r.Bytes() },
		"Uint": func(r *Reader) { r.Uint() }, "Int": func(r *Reader) { r.Int() },
		"Float": func(r *Reader) { r.Float() }, "Bool": func(r *Reader) { r.Bool() },
		"Null": func(r *Reader) { r.Null() }, "Link": func(r *Reader) { r.Link() },
		"Key": func(r *Reader) { r.Key("a") },
	}
	kinds := map[string]string{
		"MapLen": "a0", "ArrayLen": "80", "Text": "60", "Bytes": "40", "Uint": "00", "Int": "20",
		"Float": "fb3fe0000000000000", "Bool": "f4", "Null": "f6", "Link": link(cidRaw), "Key": "6161",
	}
	for name, read := range reads {
		for kind, encoded := range kinds {
			r := NewReader(unhex(t, encoded))
			read(r)
			fits := name == kind || name == "Int" && kind == "Uint" || name == "Text" && kind == "Key"
			if (r.Err() == nil) != fits {
				t.Errorf("%s of a %s: %v", name, kind, r.Err())
			}
			if !fits {
				first := r.Err()
				r.Fail(errors.New("second"))
				r.Skip()
				if r.End() != first {
					t.Errorf("%s of a %s: first %v, then %v", name, kind, first, r.End())
				}
			}
		}
	}
	r := NewReader(unhex(t, "820102"))
	r.ArrayLen()
	r.Uint()
	if err := r.End(); err == nil {
		t.Error("End with a value left")
	}
	if r := NewReader(unhex(t, "8201")); r.ArrayLen() != 0 || r.Kind() != KindNone || r.End() == nil {
		t.Error("reading an invalid block")
	}
}

// drawValue draws what Unmarshal returns.
func drawValue(t *rapid.T, depth int) any {
	kinds := 9
	if depth == 0 {
		kinds = 7
	}
	switch rapid.IntRange(0, kinds-1).Draw(t, "kind") {
	case 0:
		return nil
	case 1:
		return rapid.Bool().Draw(t, "bool")
	case 2:
		return rapid.Int64().Draw(t, "int")
	case 3:
		return rapid.Float64Range(-1e300, 1e300).Filter(func(f float64) bool { return f != math.Trunc(f) }).Draw(t, "float")
	case 4:
		return rapid.String().Draw(t, "text")
	case 5:
		return rapid.SliceOf(rapid.Byte()).Draw(t, "bytes")
	case 6:
		return rapid.SampledFrom([]cid.Cid{cidRaw, cidV0, Sum(nil)}).Draw(t, "link")
	case 7:
		a := make([]any, rapid.IntRange(0, 4).Draw(t, "length"))
		for i := range a {
			a[i] = drawValue(t, depth-1)
		}
		return a
	}
	m := map[string]any{}
	for range rapid.IntRange(0, 4).Draw(t, "length") {
		m[rapid.StringN(0, 3, -1).Draw(t, "key")] = drawValue(t, depth-1)
	}
	return m
}

func TestMarshalRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		v := drawValue(t, 3)
		b, err := Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		if err := Valid(b); err != nil {
			t.Fatal(err)
		}
		back, err := Unmarshal(b)
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(v, back, cmp.Comparer(func(a, b cid.Cid) bool { return a == b })); d != "" {
			t.Fatal(d)
		}
	})
}

func FuzzValid(f *testing.F) {
	for _, e := range encodings {
		f.Add(unhex(f, e.hex))
	}
	f.Add(unhex(f, "fb4008000000000000"))
	f.Add(unhex(f, "3bffffffffffffffff"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if Valid(b) != nil {
			if v, err := Unmarshal(b); err == nil {
				t.Errorf("%x is not valid and unmarshals to %v", b, v)
			}
			return
		}
		r := NewReader(b)
		if raw := r.Raw(); !bytes.Equal(raw, b) || r.End() != nil {
			t.Errorf("%x skipped: %x, %v", b, raw, r.End())
		}
		if _, err := AppendJSON(nil, b); err != nil {
			t.Errorf("%x as JSON: %v", b, err)
		}
		v, err := Unmarshal(b)
		if err != nil {
			if !hasWideNegative(b) {
				t.Errorf("%x: %v", b, err)
			}
			return
		}
		again, err := Marshal(v)
		if err != nil {
			t.Fatalf("%x: %v", b, err)
		}
		if !bytes.Equal(again, b) && !hasIntegralFloat(b) {
			t.Errorf("%x marshalled again: %x", b, again)
		}
	})
}

// hasWideNegative reports whether some integer is below MinInt64.
func hasWideNegative(b []byte) bool {
	for i := range b {
		if b[i] == 0x3b && i+1 < len(b) && b[i+1] >= 0x80 {
			return true
		}
	}
	return false
}

// hasIntegralFloat reports whether some float may be written as an integer.
func hasIntegralFloat(b []byte) bool {
	for i := range b {
		if b[i] == float64Byte && i+9 <= len(b) {
			f, _ := Unmarshal(b[i : i+9])
			if v, ok := f.(float64); ok && v == math.Trunc(v) {
				return true
			}
		}
	}
	return false
}

func FuzzFromJSON(f *testing.F) {
	for _, e := range encodings {
		f.Add([]byte(e.json))
	}
	f.Add([]byte(`{"a":{"/":{"bytes":"AQ"}},"b":"\ud834\udd1e","c":-1.5e-7}`))
	f.Fuzz(func(t *testing.T, json []byte) {
		b, err := FromJSON(json)
		if err != nil {
			return
		}
		if err := Valid(b); err != nil {
			t.Fatalf("%s encoded to %x: %v", json, b, err)
		}
		text, err := AppendJSON(nil, b)
		if err != nil {
			t.Fatal(err)
		}
		if again, err := FromJSON(text); err != nil || !bytes.Equal(again, b) {
			t.Errorf("%s, printed %s: %x, %v", json, text, again, err)
		}
	})
}

// A CID is taken for valid exactly if the CID library takes it.
func FuzzLink(f *testing.F) {
	f.Add(cidRaw.Bytes())
	f.Add(cidV0.Bytes())
	f.Add([]byte("\x01\x55\x00\x00"))
	f.Add([]byte("\x01\x55\x80\x00\x00"))
	f.Fuzz(func(t *testing.T, c []byte) {
		if len(c) > MaxCIDBytes {
			return
		}
		_, err := cid.Cast(c)
		if got := Valid(AppendLinkBytes(nil, string(c))); (got == nil) != (err == nil) {
			t.Errorf("%x: %v, the library says %v", c, got, err)
		}
	})
}

func BenchmarkValid(b *testing.B) {
	var list []any
	for i := range 100 {
		list = append(list, map[string]any{"_id": "document", "n": i, "text": "some text", "ref": cidRaw})
	}
	block, err := Marshal(list)
	if err != nil {
		b.Fatal(err)
	}
	b.SetBytes(int64(len(block)))
	b.ReportAllocs()
	for b.Loop() {
		if err := Valid(block); err != nil {
			b.Fatal(err)
		}
	}
}
