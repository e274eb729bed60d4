package ledger

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"unicode/utf8"
)

// Index keys sort as JavaScript sorts them: Fireproof format §10, the charwise text encoding, compared by UTF-16 code
// unit. We keep that text as bytes in which each code unit takes its UTF-8 form (a code point above U+FFFF becomes two
// three-byte surrogates, as in CESU-8), so that bytes.Compare gives the same order. The text never contains U+0000.
//
//	null     A
//	false    B         true   C
//	NaN      DaN       -Inf   DD       +Inf   FF       0   "FE  0M0"
//	n > 0    F E <exponent+500, three digits> M <shortest mantissa, with a point> <20 zeros>
//	n < 0    D and the text of -n with every digit d written as 9-d
//	string   J <text>                     U+0001 is written twice, then U+0000 as U+0001
//	array    K <item> " <item> … !        an item's text with ! or " in it is escaped: ? → ?@   ! → ??   " → ?%
//
//	5            FE500M5.00000000000000000000
//	-12.5        DE498M8.7499999999999999999999
//	["a!", 0]    KJa??"FE  0M0!
//
// Objects, byte strings and links have no key form. The text of a string with U+0000 or U+0001, and of an array item
// with ?@, ?? or ?% in it, stands for several keys; appendKey reports that, and the index keeps such keys beside it.

// errKeyType is returned for a value that cannot be an index key.
var errKeyType = errors.New("only null, booleans, numbers, strings and arrays of them can be index keys")

// appendKey appends the key form of v. exact is false if other keys have the same form.
// v is nil, a bool, a number, a string or a []any of those; an integer counts as the float64 nearest to it.
func appendKey(dst []byte, v any) (_ []byte, exact bool, err error) {
	return appendKeyAt(dst, v, maxKeyDepth)
}

func appendKeyAt(dst []byte, v any, depth int) (_ []byte, exact bool, err error) {
	switch v := v.(type) {
	case nil:
		return append(dst, 'A'), true, nil
	case bool:
		if v {
			return append(dst, 'C'), true, nil
		}
		return append(dst, 'B'), true, nil
	case string:
		dst, exact = appendKeyText(append(dst, 'J'), v)
		return dst, exact, nil
	case []any:
		return appendKeyArray(dst, v, depth)
	}
	n, ok := keyNumber(v)
	if !ok {
		return dst, false, fmt.Errorf("%T: %w", v, errKeyType)
	}
	return appendKeyNumber(dst, n), true, nil
}

func appendKeyArray(dst []byte, items []any, depth int) (_ []byte, exact bool, err error) {
	if depth == 0 {
		return dst, false, fmt.Errorf("arrays nested deeper than %d: %w", maxKeyDepth, errKeyType)
	}
	exact = true
	dst = append(dst, 'K')
	for i, item := range items {
		if i > 0 {
			dst = append(dst, '"')
		}
		start := len(dst)
		var same bool
		dst, same, err = appendKeyAt(dst, item, depth-1)
		if err != nil {
			return dst, false, err
		}
		if _, ok := item.(string); ok {
			text := string(dst[start:])
			if strings.ContainsAny(text, `!"`) {
				dst = append(dst[:start], keyEscaper.Replace(text)...)
			} else if keyUnescaper.Replace(text) != text {
				same = false
			}
		}
		exact = exact && same
	}
	return append(dst, '!'), exact, nil
}

var (
	keyEscaper   = strings.NewReplacer(`?`, `?@`, `!`, `??`, `"`, `?%`)
	keyUnescaper = strings.NewReplacer(`?@`, `?`, `??`, `!`, `?%`, `"`)
)

// appendKeyText appends the code units of s. Bytes that are not UTF-8 count as U+FFFD.
func appendKeyText(dst []byte, s string) (_ []byte, exact bool) {
	exact = true
	for _, r := range s {
		switch {
		case r == 0:
			dst, exact = append(dst, 1), false
		case r == 1:
			dst, exact = append(dst, 1, 1), false
		case r < utf8.RuneSelf:
			dst = append(dst, byte(r))
		case r < 0x10000:
			dst = utf8.AppendRune(dst, r)
		default:
			dst = appendSurrogate(dst, 0xD800+(r-0x10000)>>10)
			dst = appendSurrogate(dst, 0xDC00+(r-0x10000)&0x3FF)
		}
	}
	return dst, exact
}

func appendSurrogate(dst []byte, unit rune) []byte {
	return append(dst, 0xE0|byte(unit>>12), 0x80|byte(unit>>6)&0x3F, 0x80|byte(unit)&0x3F)
}

const keyZeros = "00000000000000000000"

func appendKeyNumber(dst []byte, n float64) []byte {
	switch {
	case math.IsNaN(n):
		return append(dst, "DaN"...)
	case n == 0:
		return append(dst, "FE  0M0"...)
	case math.IsInf(n, 1):
		return append(dst, "FF"...)
	case math.IsInf(n, -1):
		return append(dst, "DD"...)
	}
	var buf [32]byte
	text := strconv.AppendFloat(buf[:0], math.Abs(n), 'e', -1, 64) // d.ddde±xx
	at := len(text) - 1
	for text[at] != 'e' {
		at--
	}
	mantissa := text[:at]
	exponent, err := strconv.Atoi(string(text[at+1:]))
	if err != nil {
		panic("ledger: internal error: exponent of " + string(text))
	}
	start := len(dst) + 1
	dst = append(dst, 'F', 'E')
	dst = strconv.AppendInt(dst, int64(exponent+500), 10) // 176 to 808: always three digits
	dst = append(dst, 'M')
	dst = append(dst, mantissa...)
	if len(mantissa) == 1 {
		dst = append(dst, '.')
	}
	dst = append(dst, keyZeros...)
	if n < 0 {
		dst[start-1] = 'D'
		flipDigits(dst[start:])
	}
	return dst
}

func flipDigits(text []byte) {
	for i, c := range text {
		if '0' <= c && c <= '9' {
			text[i] = '0' + '9' - c
		}
	}
}

// keyNumber returns the number JavaScript would see in v.
func keyNumber(v any) (float64, bool) {
	switch v := v.(type) {
	case float64:
		return v, true
	case int64:
		return float64(v), true
	case int:
		return float64(v), true
	case uint64:
		return float64(v), true
	case float32:
		return float64(v), true
	case int32:
		return float64(v), true
	case uint32:
		return float64(v), true
	}
	return 0, false
}

// parseKey is the inverse of appendKey for exact keys; of the others it returns one of the keys with that form.
// Numbers come back as documents hold them: int64 for integers up to 2^53-1, else float64.
func parseKey(b []byte) (any, error) {
	v, rest, err := parseKeyItem(b, false, maxKeyDepth)
	if err != nil {
		return nil, err
	}
	if len(rest) > 0 {
		return nil, errKeyForm
	}
	return v, nil
}

var errKeyForm = errors.New("malformed index key")

// parseKeyItem parses one value; in an array a scalar ends at " or !, else with b.
func parseKeyItem(b []byte, inArray bool, depth int) (v any, rest []byte, err error) {
	if len(b) == 0 || depth < 0 {
		return nil, nil, errKeyForm
	}
	if b[0] == 'K' {
		return parseKeyArray(b[1:], depth-1)
	}
	text := b
	if inArray {
		end := 0
		for end < len(b) && b[end] != '"' && b[end] != '!' {
			end++
		}
		text, rest = b[:end], b[end:]
		if len(text) == 0 {
			return nil, nil, errKeyForm
		}
	}
	switch text[0] {
	case 'A', 'B', 'C':
		if len(text) != 1 {
			return nil, nil, errKeyForm
		}
		switch text[0] {
		case 'A':
			return nil, rest, nil
		case 'B':
			return false, rest, nil
		}
		return true, rest, nil
	case 'D', 'F':
		v, err = parseKeyNumber(text)
		return v, rest, err
	case 'J':
		s, ok := keyText(text[1:])
		if !ok {
			return nil, nil, errKeyForm
		}
		if inArray {
			s = keyUnescaper.Replace(s)
		}
		return s, rest, nil
	}
	return nil, nil, errKeyForm
}

func parseKeyArray(b []byte, depth int) (any, []byte, error) {
	items := []any{}
	if len(b) > 0 && b[0] == '!' {
		return items, b[1:], nil
	}
	for {
		item, rest, err := parseKeyItem(b, true, depth)
		if err != nil {
			return nil, nil, err
		}
		items = append(items, item)
		if len(rest) == 0 {
			return nil, nil, errKeyForm
		}
		if rest[0] == '!' {
			return items, rest[1:], nil
		}
		b = rest[1:]
		if rest[0] != '"' {
			return nil, nil, errKeyForm
		}
	}
}

func parseKeyNumber(text []byte) (any, error) {
	switch string(text) {
	case "DaN":
		return math.NaN(), nil
	case "DD":
		return math.Inf(-1), nil
	case "FF":
		return math.Inf(1), nil
	case "FE  0M0":
		return int64(0), nil
	}
	// sign, E, three digits, M, d.ddd, twenty zeros
	if len(text) < 8+len(keyZeros) || text[1] != 'E' || text[5] != 'M' || text[7] != '.' {
		return nil, errKeyForm
	}
	var buf [64]byte
	digits := append(buf[:0], text...)
	if text[0] == 'D' {
		flipDigits(digits)
	}
	exponent, err := strconv.ParseUint(string(digits[2:5]), 10, 16)
	if err != nil {
		return nil, errKeyForm
	}
	mantissa := strings.TrimRight(string(digits[6:]), "0")
	n, err := strconv.ParseFloat(mantissa+"e"+strconv.Itoa(int(exponent)-500), 64)
	if err != nil {
		return nil, errKeyForm
	}
	if text[0] == 'D' {
		n = -n
	}
	if !bytes.Equal(appendKeyNumber(buf[:0], n), text) {
		return nil, errKeyForm
	}
	if n == math.Trunc(n) && math.Abs(n) <= maxSafeInteger {
		return int64(n), nil
	}
	return n, nil
}

const maxSafeInteger = 1<<53 - 1

// keyText undoes appendKeyText for text without U+0000 and U+0001.
func keyText(b []byte) (string, bool) {
	if utf8.Valid(b) {
		return string(b), true
	}
	var s strings.Builder
	s.Grow(len(b))
	for len(b) > 0 {
		if len(b) >= 6 {
			high, okHigh := surrogate(b, 0xD800)
			low, okLow := surrogate(b[3:], 0xDC00)
			if okHigh && okLow {
				s.WriteRune(0x10000 + high<<10 + low)
				b = b[6:]
				continue
			}
		}
		r, size := utf8.DecodeRune(b)
		if r == utf8.RuneError && size <= 1 {
			return "", false
		}
		s.WriteRune(r)
		b = b[size:]
	}
	return s.String(), true
}

// surrogate returns the ten bits of the surrogate at the front of b, if it is one of the half that base begins.
func surrogate(b []byte, base rune) (rune, bool) {
	if b[0] != 0xED || b[1]&0xC0 != 0x80 || b[2]&0xC0 != 0x80 {
		return 0, false
	}
	unit := 0xD000 | rune(b[1]&0x3F)<<6 | rune(b[2]&0x3F)
	if unit&^0x3FF != base {
		return 0, false
	}
	return unit & 0x3FF, true
}
