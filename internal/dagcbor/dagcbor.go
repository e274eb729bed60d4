// Package dagcbor reads and writes DAG-CBOR, the encoding of every block of a
// Fireproof ledger.
//
// Use a Reader to decode a block of known shape and the Append functions to
// write one; Marshal and Unmarshal for values of unknown shape; AppendJSON and
// FromJSON at the border to people.
//
// There is exactly one encoding of a value, and only that one is read:
//
//   - integers and lengths in their shortest form, no indefinite lengths;
//   - map keys are text, sorted by length and then by bytes, none twice;
//   - floats are 64 bits wide, never NaN or infinite;
//   - the only tag is 42, a link: a byte string 00 ‖ CID;
//   - text is UTF-8; the only simple values are false, true and null;
//   - one value per block and nothing after it.
//
// So for every block b that Valid accepts, Marshal(Unmarshal(b)) is b again,
// except that a float64 with an integral value is written as JavaScript writes
// it, as an integer. Nothing is allocated for a length before the bytes it
// promises are known to be there; the limits are in limits.go.
package dagcbor

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"

	"github.com/ipfs/go-cid"
	"github.com/multiformats/go-multihash"
)

// ErrLimit is wrapped by the errors of blocks that are larger, deeper or
// fuller than limits.go allows.
var ErrLimit = errors.New("over the limit")

// A Kind is the kind of a value.
type Kind uint8

// The kinds. KindInt is a negative integer, KindUint any other.
const (
	KindNone Kind = iota // no value: at the end of the block, or after an error
	KindUint
	KindInt
	KindBytes
	KindText
	KindArray
	KindMap
	KindLink
	KindFloat
	KindBool
	KindNull
)

var kindNames = [...]string{"nothing", "unsigned integer", "negative integer", "bytes", "text", "array", "map", "link", "float", "bool", "null"}

func (k Kind) String() string { return kindNames[k] }

// A Reader takes the values of one block apart, in the order they are stored:
// MapLen, then for each entry its key with Text and its value, and so on.
//
// The first error sticks: from then on every method returns a zero value, so
// that loops end, and Err and End return that error. A Reader allocates only
// in Text and Link.
type Reader struct {
	b   []byte
	i   int // offset of the next value in b
	err error
}

// NewReader returns a Reader of b, having checked the whole of b with Valid.
// What remains to go wrong is that a value is not of the kind asked for.
func NewReader(b []byte) *Reader {
	return &Reader{b: b, err: Valid(b)}
}

// Err returns the first error, if any.
func (r *Reader) Err() error { return r.err }

// End returns the first error, or an error if a value is left unread.
func (r *Reader) End() error {
	if r.err == nil && r.i != len(r.b) {
		r.failf("%d bytes left over", len(r.b)-r.i)
	}
	return r.err
}

// Pos returns the offset of the next value in the block.
func (r *Reader) Pos() int { return r.i }

// Fail makes err the Reader's error unless it already has one. Decoders use it
// for what they themselves find wrong.
func (r *Reader) Fail(err error) { r.failf("%w", err) }

func (r *Reader) failf(format string, args ...any) {
	if r.err == nil {
		r.err = fmt.Errorf("dagcbor: at byte %d: "+format, append([]any{r.i}, args...)...)
	}
}

// Kind returns the kind of the next value without reading it.
func (r *Reader) Kind() Kind {
	if r.err != nil || r.i >= len(r.b) {
		return KindNone
	}
	switch c := r.b[r.i]; c >> 5 {
	case majorUint:
		return KindUint
	case majorNegative:
		return KindInt
	case majorBytes:
		return KindBytes
	case majorText:
		return KindText
	case majorArray:
		return KindArray
	case majorMap:
		return KindMap
	case majorTag:
		return KindLink
	default:
		switch c {
		case float64Byte:
			return KindFloat
		case nullByte:
			return KindNull
		}
		return KindBool
	}
}

// want reports whether the next value is of kind k, and fails if not.
func (r *Reader) want(k Kind) bool {
	got := r.Kind()
	if got == k && r.err == nil {
		return true
	}
	r.failf("want %v, found %v", k, got)
	return false
}

// arg reads the head of an already validated item and returns its argument.
func (r *Reader) arg() uint64 {
	n, size := headArg(r.b[r.i:])
	r.i += size
	return n
}

// MapLen enters a map and returns the number of its entries. They follow as
// key, value, key, value, the keys in canonical order.
func (r *Reader) MapLen() int {
	if !r.want(KindMap) {
		return 0
	}
	return int(r.arg())
}

// ArrayLen enters an array and returns the number of its elements.
func (r *Reader) ArrayLen() int {
	if !r.want(KindArray) {
		return 0
	}
	return int(r.arg())
}

// Text reads a text.
func (r *Reader) Text() string { return string(r.TextBytes()) }

// TextBytes reads a text without copying it: the result is part of the block.
func (r *Reader) TextBytes() []byte {
	if !r.want(KindText) {
		return nil
	}
	n := int(r.arg())
	r.i += n
	return r.b[r.i-n : r.i : r.i]
}

// Key reads a text and fails unless it is name.
func (r *Reader) Key(name string) {
	at := r.i
	if k := r.TextBytes(); r.err == nil && string(k) != name {
		r.i = at
		r.failf("want key %q, found %q", name, k)
	}
}

// Bytes reads a byte string without copying it: the result is part of the
// block.
func (r *Reader) Bytes() []byte {
	if !r.want(KindBytes) {
		return nil
	}
	n := int(r.arg())
	r.i += n
	return r.b[r.i-n : r.i : r.i]
}

// Uint reads an integer that is not negative.
func (r *Reader) Uint() uint64 {
	if !r.want(KindUint) {
		return 0
	}
	return r.arg()
}

// Int reads an integer that fits 64 bits with a sign.
func (r *Reader) Int() int64 {
	k := r.Kind()
	if k != KindInt && !r.want(KindUint) {
		return 0
	}
	at := r.i
	n := r.arg()
	if n > math.MaxInt64 {
		r.i = at
		r.failf("integer does not fit 64 bits")
		return 0
	}
	if k == KindInt {
		return -1 - int64(n)
	}
	return int64(n)
}

// Float reads a float.
func (r *Reader) Float() float64 {
	if !r.want(KindFloat) {
		return 0
	}
	r.i += 9
	return math.Float64frombits(binary.BigEndian.Uint64(r.b[r.i-8:]))
}

// Bool reads a bool.
func (r *Reader) Bool() bool {
	if !r.want(KindBool) {
		return false
	}
	r.i++
	return r.b[r.i-1] == trueByte
}

// Null reads a null.
func (r *Reader) Null() {
	if r.want(KindNull) {
		r.i++
	}
}

// Link reads a link.
func (r *Reader) Link() cid.Cid {
	b := r.LinkBytes()
	if r.err != nil {
		return cid.Undef
	}
	c, err := cid.Cast(b)
	if err != nil {
		r.failf("link: %v", err)
		return cid.Undef
	}
	return c
}

// LinkBytes reads a link and returns the binary CID, a part of the block.
func (r *Reader) LinkBytes() []byte {
	if !r.want(KindLink) {
		return nil
	}
	r.arg() // the tag
	n := int(r.arg())
	r.i += n
	return r.b[r.i-n+1 : r.i : r.i]
}

// Skip reads a value of any kind and forgets it.
func (r *Reader) Skip() { r.Raw() }

// Raw reads a value of any kind and returns its encoding, a part of the block.
func (r *Reader) Raw() []byte {
	if r.err != nil {
		return nil
	}
	if r.i >= len(r.b) {
		r.failf("want a value, found nothing")
		return nil
	}
	start := r.i
	for left := 1; left > 0; left-- {
		c := r.b[r.i]
		n := r.arg()
		switch c >> 5 {
		case majorBytes, majorText:
			r.i += int(n)
		case majorArray:
			left += int(n)
		case majorMap:
			left += 2 * int(n)
		case majorTag:
			left++
		}
	}
	return r.b[start:r.i:r.i]
}

// Sum returns the CID of a block: version 1, codec dag-cbor, SHA2-256.
func Sum(block []byte) cid.Cid {
	return SumCodec(cid.DagCBOR, block)
}

// SumCodec returns the CID of a block of any codec: version 1, SHA2-256.
func SumCodec(codec uint64, block []byte) cid.Cid {
	h, err := multihash.Sum(block, multihash.SHA2_256, -1)
	if err != nil {
		panic("dagcbor: internal error: sha2-256: " + err.Error())
	}
	return cid.NewCidV1(codec, h)
}
