package dagcbor

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"unicode/utf16"
	"unicode/utf8"

	"github.com/ipfs/go-cid"
)

// The two forms that DAG-JSON adds to JSON:
//
//	link   {"/": "bafy…"}
//	bytes  {"/": {"bytes": "…"}}     base64, standard alphabet, no padding

var (
	errJSONEnd      = errors.New("the text ends inside a value")
	errJSONTrailing = errors.New("text after the value")
	errJSONNumber   = errors.New("not a number")
	errJSONInfinite = errors.New("number too large for a float64")
	errJSONEscape   = errors.New("unknown escape in a string")
	errJSONHalf     = errors.New("half a surrogate pair in a string")
	errJSONControl  = errors.New("control character in a string")
	errJSONTwice    = errors.New("name twice in an object")
	errJSONSlash    = errors.New(`{"/": …} stands for a link or for bytes, and this is neither`)
)

// AppendJSON writes a block as DAG-JSON without spaces after dst: map entries
// as they are stored, integers with all their digits, floats as JavaScript
// prints them. A map with the single key "/" that is neither of the two forms
// above is written as it stands, but FromJSON does not take it back.
func AppendJSON(dst, block []byte) ([]byte, error) {
	r := NewReader(block)
	dst = r.appendJSON(dst)
	if err := r.End(); err != nil {
		return nil, err
	}
	return dst, nil
}

func (r *Reader) appendJSON(dst []byte) []byte {
	switch r.Kind() {
	case KindUint:
		dst = strconv.AppendUint(dst, r.Uint(), 10)
	case KindInt:
		dst = appendNegative(dst, r.arg())
	case KindBytes:
		dst = append(dst, `{"/":{"bytes":"`...)
		dst = base64.RawStdEncoding.AppendEncode(dst, r.Bytes())
		dst = append(dst, `"}}`...)
	case KindText:
		dst = appendJSONText(dst, r.TextBytes())
	case KindArray:
		dst = append(dst, '[')
		for i := range r.ArrayLen() {
			if i > 0 {
				dst = append(dst, ',')
			}
			dst = r.appendJSON(dst)
		}
		dst = append(dst, ']')
	case KindMap:
		dst = append(dst, '{')
		for i := range r.MapLen() {
			if i > 0 {
				dst = append(dst, ',')
			}
			dst = append(appendJSONText(dst, r.TextBytes()), ':')
			dst = r.appendJSON(dst)
		}
		dst = append(dst, '}')
	case KindLink:
		dst = append(dst, `{"/":"`...)
		dst = append(dst, r.Link().String()...)
		dst = append(dst, `"}`...)
	case KindFloat:
		dst = appendJSONNumber(dst, r.Float())
	case KindBool:
		dst = strconv.AppendBool(dst, r.Bool())
	case KindNull:
		r.Null()
		dst = append(dst, "null"...)
	}
	return dst
}

// appendNegative writes −1−n, which need not fit an int64.
func appendNegative(dst []byte, n uint64) []byte {
	if n == math.MaxUint64 {
		return append(dst, "-18446744073709551616"...)
	}
	return strconv.AppendUint(append(dst, '-'), n+1, 10)
}

// appendJSONNumber writes v as JavaScript's Number.prototype.toString does
// (ECMA-262 §6.1.6.1.20), which is how JSON.stringify prints it.
func appendJSONNumber(dst []byte, v float64) []byte {
	abs := math.Abs(v)
	if v == 0 {
		return append(dst, '0') // also −0
	}
	if abs >= 1e-6 && abs < 1e21 {
		return strconv.AppendFloat(dst, v, 'f', -1, 64)
	}
	dst = strconv.AppendFloat(dst, v, 'e', -1, 64)
	// Go writes at least two digits of exponent, JavaScript no leading zero.
	if n := len(dst); dst[n-2] == '0' && (dst[n-3] == '-' || dst[n-3] == '+') {
		dst = append(dst[:n-2], dst[n-1])
	}
	return dst
}

// appendJSONText writes s as JSON.stringify does.
func appendJSONText(dst, s []byte) []byte {
	const hexDigits = "0123456789abcdef"
	dst = append(dst, '"')
	for _, c := range s {
		switch {
		case c == '"' || c == '\\':
			dst = append(dst, '\\', c)
		case c >= 0x20:
			dst = append(dst, c)
		case c == '\b':
			dst = append(dst, '\\', 'b')
		case c == '\t':
			dst = append(dst, '\\', 't')
		case c == '\n':
			dst = append(dst, '\\', 'n')
		case c == '\f':
			dst = append(dst, '\\', 'f')
		case c == '\r':
			dst = append(dst, '\\', 'r')
		default:
			dst = append(dst, '\\', 'u', '0', '0', hexDigits[c>>4], hexDigits[c&15])
		}
	}
	return append(dst, '"')
}

// FromJSON encodes one JSON or DAG-JSON value (RFC 8259) with JavaScript's
// rules for numbers: each is read as a float64 and then written like
// AppendNumber. A name that occurs twice in an object, text that is not UTF-8
// or has half a surrogate pair, a number beyond float64, and anything over the
// limits are errors.
func FromJSON(text []byte) ([]byte, error) {
	if len(text) > MaxSizeBytes {
		return nil, fmt.Errorf("JSON of %d bytes: %w", len(text), ErrLimit)
	}
	p := parser{in: text}
	p.space()
	err := p.value(0)
	if err == nil {
		if p.space(); p.i != len(text) {
			err = errJSONTrailing
		}
	}
	if err != nil {
		line := 1 + bytes.Count(text[:p.i], []byte("\n"))
		column := p.i - bytes.LastIndexByte(text[:p.i], '\n')
		return nil, fmt.Errorf("JSON, line %d, column %d: %w", line, column, err)
	}
	return p.out, nil
}

// A parser turns JSON into DAG-CBOR in one pass. An error is about the byte
// at i.
type parser struct {
	in    []byte
	i     int
	out   []byte
	items int
}

func (p *parser) space() {
	for p.i < len(p.in) {
		switch p.in[p.i] {
		case ' ', '\t', '\n', '\r':
			p.i++
		default:
			return
		}
	}
}

// peek returns the next byte, 0 at the end: no JSON token begins with 0.
func (p *parser) peek() byte {
	if p.i == len(p.in) {
		return 0
	}
	return p.in[p.i]
}

func (p *parser) unexpected(want string) error {
	if p.i >= len(p.in) {
		return errJSONEnd
	}
	r, size := utf8.DecodeRune(p.in[p.i:])
	if r == utf8.RuneError && size < 2 {
		return errUTF8
	}
	return fmt.Errorf("want %s, found %q", want, r)
}

func (p *parser) value(depth int) error {
	if p.items++; p.items > MaxItems {
		return fmt.Errorf("more than %d values: %w", MaxItems, ErrLimit)
	}
	switch c := p.peek(); c {
	case '{', '[':
		if depth == MaxDepth {
			return fmt.Errorf("more than %d levels: %w", MaxDepth, ErrLimit)
		}
		if c == '[' {
			return p.array(depth)
		}
		return p.object(depth)
	case '"':
		start := len(p.out)
		if err := p.text(); err != nil {
			return err
		}
		p.insertHead(start, majorText, len(p.out)-start)
		return nil
	case 't':
		return p.word("true", trueByte)
	case 'f':
		return p.word("false", falseByte)
	case 'n':
		return p.word("null", nullByte)
	case '-', '0', '1', '2', '3', '4', '5', '6', '7', '8', '9':
		return p.number()
	}
	return p.unexpected("a value")
}

func (p *parser) word(word string, encoded byte) error {
	if !bytes.HasPrefix(p.in[p.i:], []byte(word)) {
		return p.unexpected(word)
	}
	p.i += len(word)
	p.out = append(p.out, encoded)
	return nil
}

// insertHead puts the head of an item of length n before what was written
// since start.
func (p *parser) insertHead(start int, major byte, n int) {
	var head [9]byte
	p.out = slices.Insert(p.out, start, appendHead(head[:0], major, uint64(n))...)
}

func (p *parser) array(depth int) error {
	start, n := len(p.out), 0
	p.i++
	p.space()
	if p.peek() == ']' {
		p.i++
		p.insertHead(start, majorArray, 0)
		return nil
	}
	for {
		p.space()
		if err := p.value(depth + 1); err != nil {
			return err
		}
		n++
		p.space()
		switch p.peek() {
		case ',':
			p.i++
		case ']':
			p.i++
			p.insertHead(start, majorArray, n)
			return nil
		default:
			return p.unexpected("a comma or ]")
		}
	}
}

// member is one entry of an object: its key, and key and value as encoded.
// Offsets are into what was written since the object began.
type member struct {
	keyStart, keyEnd int
	start, end       int
}

func (p *parser) object(depth int) error {
	at := p.i
	base := len(p.out)
	var members []member
	p.i++
	p.space()
	if p.peek() == '}' {
		p.i++
		p.out = AppendMap(p.out, 0)
		return nil
	}
	for {
		p.space()
		if p.peek() != '"' {
			return p.unexpected("a name in quotes")
		}
		start := len(p.out)
		if err := p.text(); err != nil {
			return err
		}
		size := len(p.out) - start
		p.insertHead(start, majorText, size)
		keyEnd := len(p.out)
		p.space()
		if p.peek() != ':' {
			return p.unexpected("a colon")
		}
		p.i++
		p.space()
		if err := p.value(depth + 1); err != nil {
			return err
		}
		members = append(members, member{keyEnd - size - base, keyEnd - base, start - base, len(p.out) - base})
		p.space()
		if c := p.peek(); c == ',' {
			p.i++
			continue
		} else if c != '}' {
			return p.unexpected("a comma or }")
		}
		p.i++
		break
	}

	body := slices.Clone(p.out[base:])
	key := func(m member) []byte { return body[m.keyStart:m.keyEnd] }
	slices.SortFunc(members, func(a, b member) int { return compareKeys(key(a), key(b)) })
	for i := 1; i < len(members); i++ {
		if bytes.Equal(key(members[i-1]), key(members[i])) {
			p.i = at
			return fmt.Errorf("%q: %w", key(members[i]), errJSONTwice)
		}
	}
	p.out = p.out[:base]
	if len(members) == 1 && string(key(members[0])) == "/" {
		if err := p.slash(body[members[0].keyEnd:]); err != nil {
			p.i = at
			return err
		}
		return nil
	}
	p.out = AppendMap(p.out, len(members))
	for _, m := range members {
		p.out = append(p.out, body[m.start:m.end]...)
	}
	return nil
}

// slash writes what {"/": v} stands for; v is encoded.
func (p *parser) slash(v []byte) error {
	r := NewReader(v)
	if r.Kind() == KindText {
		c, err := cid.Decode(r.Text())
		if err != nil {
			return errJSONSlash
		}
		if c.ByteLen() > MaxCIDBytes {
			return fmt.Errorf("CID of %d bytes: %w", c.ByteLen(), ErrLimit)
		}
		if !validCID(c.Bytes()) {
			return errJSONSlash
		}
		p.out = AppendLink(p.out, c)
		return nil
	}
	if r.MapLen() != 1 {
		return errJSONSlash
	}
	r.Key("bytes")
	text := r.TextBytes()
	if r.End() != nil {
		return errJSONSlash
	}
	b, err := base64.RawStdEncoding.Strict().AppendDecode(nil, text)
	if err != nil || bytes.ContainsAny(text, "\r\n") {
		return errJSONSlash
	}
	p.out = AppendBytes(p.out, b)
	return nil
}

// text reads a string and writes its bytes, without a head.
func (p *parser) text() error {
	p.i++
	for p.i < len(p.in) {
		c := p.in[p.i]
		switch {
		case c == '"':
			p.i++
			return nil
		case c == '\\':
			if err := p.escape(); err != nil {
				return err
			}
		case c < 0x20:
			return errJSONControl
		case c < utf8.RuneSelf:
			p.out = append(p.out, c)
			p.i++
		default:
			r, size := utf8.DecodeRune(p.in[p.i:])
			if r == utf8.RuneError && size == 1 {
				return errUTF8
			}
			p.out = append(p.out, p.in[p.i:p.i+size]...)
			p.i += size
		}
	}
	return errJSONEnd
}

func (p *parser) escape() error {
	if p.i+1 >= len(p.in) {
		return errJSONEnd
	}
	c := p.in[p.i+1]
	switch c {
	case '"', '\\', '/':
	case 'b':
		c = '\b'
	case 'f':
		c = '\f'
	case 'n':
		c = '\n'
	case 'r':
		c = '\r'
	case 't':
		c = '\t'
	case 'u':
		return p.unicodeEscape()
	default:
		return errJSONEscape
	}
	p.out = append(p.out, c)
	p.i += 2
	return nil
}

// unicodeEscape reads \uXXXX, or two of them that are a surrogate pair.
func (p *parser) unicodeEscape() error {
	r, err := p.hex4(p.i)
	if err != nil {
		return err
	}
	size := 6
	if utf16.IsSurrogate(r) {
		if !bytes.HasPrefix(p.in[p.i+6:], []byte(`\u`)) {
			return errJSONHalf
		}
		low, err := p.hex4(p.i + 6)
		if err != nil {
			return err
		}
		if r = utf16.DecodeRune(r, low); r == utf8.RuneError {
			return errJSONHalf
		}
		size = 12
	}
	p.out = utf8.AppendRune(p.out, r)
	p.i += size
	return nil
}

// hex4 reads the \uXXXX at offset at.
func (p *parser) hex4(at int) (rune, error) {
	if at+6 > len(p.in) {
		return 0, errJSONEnd
	}
	var r rune
	for _, c := range p.in[at+2 : at+6] {
		r <<= 4
		switch {
		case c >= '0' && c <= '9':
			r |= rune(c - '0')
		case c >= 'a' && c <= 'f':
			r |= rune(c - 'a' + 10)
		case c >= 'A' && c <= 'F':
			r |= rune(c - 'A' + 10)
		default:
			return 0, errJSONEscape
		}
	}
	return r, nil
}

func (p *parser) digits() bool {
	start := p.i
	for c := p.peek(); c >= '0' && c <= '9'; c = p.peek() {
		p.i++
	}
	return p.i > start
}

// number reads a number by the grammar of RFC 8259 §6, which is narrower than
// that of strconv.ParseFloat.
func (p *parser) number() error {
	start := p.i
	if p.peek() == '-' {
		p.i++
	}
	if p.peek() == '0' {
		p.i++
	} else if !p.digits() {
		return errJSONNumber
	}
	if p.peek() == '.' {
		p.i++
		if !p.digits() {
			return errJSONNumber
		}
	}
	if c := p.peek(); c == 'e' || c == 'E' {
		p.i++
		if c := p.peek(); c == '+' || c == '-' {
			p.i++
		}
		if !p.digits() {
			return errJSONNumber
		}
	}
	v, err := strconv.ParseFloat(string(p.in[start:p.i]), 64)
	if err != nil { // only ErrRange is left
		p.i = start
		return errJSONInfinite
	}
	p.out = AppendNumber(p.out, v)
	return nil
}
