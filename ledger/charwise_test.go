package ledger

import (
	"bytes"
	"encoding/json"
	"os"
	"slices"
	"strconv"
	"testing"
	"unicode/utf16"

	"pgregory.net/rapid"
)

// charwiseVector is one line of testdata/charwise/vectors.json, which the JavaScript package wrote.
type charwiseVector struct {
	Key  any
	Text string
	Back any
}

func charwiseVectors(t *testing.T) []charwiseVector {
	t.Helper()
	b, err := os.ReadFile("testdata/charwise/vectors.json")
	if err != nil {
		t.Fatal(err)
	}
	var vectors []charwiseVector
	if err := json.Unmarshal(b, &vectors); err != nil {
		t.Fatal(err)
	}
	if len(vectors) < 500 {
		t.Fatalf("%d vectors", len(vectors))
	}
	for i := range vectors {
		vectors[i].Key = vectorKey(t, vectors[i].Key)
	}
	return vectors
}

// vectorKey turns {"n":"NaN"} back into the number JSON lacks.
func vectorKey(t *testing.T, v any) any {
	t.Helper()
	switch v := v.(type) {
	case []any:
		for i := range v {
			v[i] = vectorKey(t, v[i])
		}
	case map[string]any:
		n, err := strconv.ParseFloat(v["n"].(string), 64)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	return v
}

func TestKeysEncodeAndSortAsJavaScriptDoes(t *testing.T) {
	var last []byte
	for _, v := range charwiseVectors(t) {
		got, exact, err := appendKey(nil, v.Key)
		if err != nil {
			t.Fatalf("%v: %v", v.Key, err)
		}
		want := appendCodeUnits(nil, utf16.Encode([]rune(v.Text)))
		if !bytes.Equal(got, want) {
			t.Errorf("%#v is %q, JavaScript has %q", v.Key, got, v.Text)
		}
		if bytes.Compare(last, got) > 0 {
			t.Errorf("%q sorts before its predecessor %q", got, last)
		}
		last = got
		if exact && v.Back != nil {
			t.Errorf("%#v counts as exact, JavaScript reads it back as %#v", v.Key, v.Back)
		}
		back, err := parseKey(got)
		if err != nil {
			t.Errorf("parsing %q: %v", got, err)
			continue
		}
		if exact && !equalKeys(back, v.Key) {
			t.Errorf("%#v came back as %#v", v.Key, back)
		}
	}
}

// appendCodeUnits is the definition of our byte form, written without any shortcut.
func appendCodeUnits(dst []byte, units []uint16) []byte {
	for _, u := range units {
		switch {
		case u < 0x80:
			dst = append(dst, byte(u))
		case u < 0x800:
			dst = append(dst, 0xC0|byte(u>>6), 0x80|byte(u&0x3F))
		default:
			dst = append(dst, 0xE0|byte(u>>12), 0x80|byte(u>>6&0x3F), 0x80|byte(u&0x3F))
		}
	}
	return dst
}

// drawKey draws a key, with the characters that need escaping more often than chance has them.
func drawKey(t *rapid.T, depth int) any {
	kinds := 5
	if depth == 0 {
		kinds = 4
	}
	switch rapid.IntRange(0, kinds).Draw(t, "kind") {
	case 0:
		return nil
	case 1:
		return rapid.Bool().Draw(t, "bool")
	case 2:
		return rapid.Float64().Draw(t, "float")
	case 3:
		return float64(rapid.Int64Range(-maxSafeInteger, maxSafeInteger).Draw(t, "int"))
	case 4:
		return rapid.StringOf(rapid.SampledFrom([]rune("ab!\"?@%\x00\x01é\ud7ff\ue000\uffff😀\U00010000\U0010ffff"))).Draw(t, "text")
	}
	items := make([]any, rapid.IntRange(0, 3).Draw(t, "len"))
	for i := range items {
		items[i] = drawKey(t, depth-1)
	}
	return items
}

func TestKeyRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		key := drawKey(t, 3)
		enc, exact, err := appendKey([]byte("before"), key)
		if err != nil {
			t.Fatal(err)
		}
		enc = enc[len("before"):]
		if bytes.IndexByte(enc, 0) >= 0 {
			t.Fatalf("%#v: the key form %q holds the byte that ends it", key, enc)
		}
		back, err := parseKey(enc)
		if err != nil {
			t.Fatalf("%#v: parsing %q: %v", key, enc, err)
		}
		if exact && !equalKeys(key, back) {
			t.Fatalf("%#v came back as %#v", key, back)
		}
		again, _, err := appendKey(nil, back)
		if err != nil {
			t.Fatal(err)
		}
		if exact && !bytes.Equal(again, enc) {
			t.Fatalf("%#v: %q, then %q", key, enc, again)
		}
	})
}

func TestKeyOrder(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a := rapid.Float64().Draw(t, "a")
		b := rapid.Float64().Draw(t, "b")
		ka, _, _ := appendKey(nil, a)
		kb, _, _ := appendKey(nil, b)
		want := 0
		if a < b {
			want = -1
		}
		if a > b {
			want = 1
		}
		if got := bytes.Compare(ka, kb); got != want {
			t.Fatalf("%v %q and %v %q compare as %d", a, ka, b, kb, got)
		}
		s := rapid.String().Draw(t, "s")
		r := rapid.String().Draw(t, "r")
		ks, exact, _ := appendKey(nil, s)
		kr, exactToo, _ := appendKey(nil, r)
		if exact && exactToo {
			want := slices.Compare(utf16.Encode([]rune(s)), utf16.Encode([]rune(r)))
			if got := bytes.Compare(ks, kr); got != want {
				t.Fatalf("%q and %q compare as %d", s, r, got)
			}
		}
	})
}

func TestKeyRefused(t *testing.T) {
	deep := any([]any{})
	for range maxKeyDepth {
		deep = []any{deep}
	}
	for _, v := range []any{map[string]any{}, []byte("x"), struct{}{}, []any{map[string]any{}}, deep} {
		if _, _, err := appendKey(nil, v); err == nil {
			t.Errorf("%T was encoded", v)
		}
	}
	if _, _, err := appendKey(nil, deep.([]any)[0]); err != nil {
		t.Errorf("the deepest key: %v", err)
	}
}

func TestParseKeyRefuses(t *testing.T) {
	for _, text := range []string{"", "X", "AA", "L", "K", "KA", `KA"`, `KA"!`, `K"A!`, "KAA!", "KA!A", "FE500M5.0", "FE500M5.00000000000000000001", "FE500M5.50000000000000000000", "FE50xM5.00000000000000000000", "DE", "J\xff", "J\xed\xa0\x80"} {
		if v, err := parseKey([]byte(text)); err == nil {
			t.Errorf("%q parsed as %#v", text, v)
		}
	}
}

func FuzzParseKey(f *testing.F) {
	for _, text := range []string{"A", "B", "DaN", "DD", "FF", "FE  0M0", "FE500M5.00000000000000000000", "DE498M8.7499999999999999999999", "Ja\x01b", "K!", "KK!\"Ja??b\"FE  0M0!", "J\xed\xa0\xbd\xed\xb8\x80"} {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		v, err := parseKey(b)
		if err != nil {
			return
		}
		enc, exact, err := appendKey(nil, v)
		if err != nil {
			t.Fatalf("%q parsed as %#v, which cannot be encoded: %v", b, v, err)
		}
		back, err := parseKey(enc)
		if err != nil {
			t.Fatalf("%q: parsing it again as %q: %v", b, enc, err)
		}
		if exact && !equalKeys(v, back) {
			t.Fatalf("%#v came back as %#v", v, back)
		}
	})
}

func BenchmarkAppendKey(b *testing.B) {
	var buf []byte
	for b.Loop() {
		buf, _, _ = appendKey(buf[:0], 1234.5)
	}
}
