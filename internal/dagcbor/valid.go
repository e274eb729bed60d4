package dagcbor

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"unicode/utf8"

	"github.com/multiformats/go-multihash"
)

// The first byte of an item is major type (3 bits) ‖ info (5 bits); RFC 8949
// §3. Info below 24 is the argument itself, 24 to 27 say that it follows in 1,
// 2, 4 or 8 bytes.
const (
	majorUint     = 0
	majorNegative = 1
	majorBytes    = 2
	majorText     = 3
	majorArray    = 4
	majorMap      = 5
	majorTag      = 6

	falseByte   = 0xf4
	trueByte    = 0xf5
	nullByte    = 0xf6
	float64Byte = 0xfb

	linkTag = 42
)

var (
	errTruncated  = errors.New("block ends inside a value")
	errNotMinimal = errors.New("integer not in its shortest form")
	errIndefinite = errors.New("indefinite length")
	errReserved   = errors.New("reserved head")
	errKeyKind    = errors.New("map key is not text")
	errKeyOrder   = errors.New("map keys not sorted")
	errKeyTwice   = errors.New("map key twice")
	errUTF8       = errors.New("text is not UTF-8")
	errSimple     = errors.New("value is neither false, true, null nor a 64-bit float")
	errFloat      = errors.New("float is NaN or infinite")
	errTag        = errors.New("tag is not 42, a link")
	errLink       = errors.New("link is not a byte string 00 ‖ CID")
	errTrailing   = errors.New("bytes after the value")
)

// headArg decodes the head of a validated item: its argument and the size of
// the head. For floats the argument is the bits.
func headArg(b []byte) (arg uint64, size int) {
	switch info := b[0] & 31; info {
	default:
		return uint64(info), 1
	case 24:
		return uint64(b[1]), 2
	case 25:
		return uint64(binary.BigEndian.Uint16(b[1:])), 3
	case 26:
		return uint64(binary.BigEndian.Uint32(b[1:])), 5
	case 27:
		return binary.BigEndian.Uint64(b[1:]), 9
	}
}

// checkedArg is headArg for bytes that nobody has looked at.
func checkedArg(b []byte) (arg uint64, size int, err error) {
	info := b[0] & 31
	switch {
	case info < 24:
		return uint64(info), 1, nil
	case info == 31:
		return 0, 0, errIndefinite
	case info > 27:
		return 0, 0, errReserved
	case len(b) < 1+1<<(info-24):
		return 0, 0, errTruncated
	}
	arg, size = headArg(b)
	// least is the smallest argument that needs this many bytes.
	least := [4]uint64{24, 1 << 8, 1 << 16, 1 << 32}[info-24]
	if arg < least && b[0] != float64Byte {
		return 0, 0, errNotMinimal
	}
	return arg, size, nil
}

// container is an array or map being checked.
type container struct {
	left    int // items left: elements, or keys and values
	isMap   bool
	prevKey []byte // the last key of a map
	hasKey  bool
}

// Valid returns nil if b is exactly one value in strict DAG-CBOR within the
// limits. It allocates nothing unless it fails.
func Valid(b []byte) error {
	if len(b) > MaxSizeBytes {
		return fmt.Errorf("dagcbor: block of %d bytes: %w", len(b), ErrLimit)
	}
	at, err := valid(b)
	if err != nil {
		return fmt.Errorf("dagcbor: at byte %d: %w", at, err)
	}
	return nil
}

// valid returns the offset of the item that is wrong.
func valid(b []byte) (at int, err error) {
	var stack [MaxDepth]container
	depth, i, items := 0, 0, 0
	for {
		start := i
		if i >= len(b) {
			return start, errTruncated
		}
		top := (*container)(nil)
		if depth > 0 {
			top = &stack[depth-1]
		}
		isKey := top != nil && top.isMap && top.left%2 == 0
		if !isKey {
			items++
			if items > MaxItems {
				return start, fmt.Errorf("more than %d values: %w", MaxItems, ErrLimit)
			}
		}

		c := b[i]
		major := c >> 5
		if isKey && major != majorText {
			return start, errKeyKind
		}
		arg, size, err := checkedArg(b[i:])
		if err != nil {
			return start, err
		}
		i += size
		rest := uint64(len(b) - i)

		open, isMap := 0, false
		switch major {
		case majorBytes:
			if arg > rest {
				return start, errTruncated
			}
			i += int(arg)
		case majorText:
			if arg > rest {
				return start, errTruncated
			}
			text := b[i : i+int(arg)]
			i += int(arg)
			if !utf8.Valid(text) {
				return start, errUTF8
			}
			if isKey {
				if top.hasKey {
					switch cmp := compareKeys(top.prevKey, text); {
					case cmp == 0:
						return start, errKeyTwice
					case cmp > 0:
						return start, errKeyOrder
					}
				}
				top.prevKey, top.hasKey = text, true
			}
		case majorArray:
			if arg > rest {
				return start, errTruncated
			}
			open = int(arg)
		case majorMap:
			if arg > rest/2 {
				return start, errTruncated
			}
			open, isMap = 2*int(arg), true
		case majorTag:
			n, err := validLink(b[i:], arg)
			if err != nil {
				return start, err
			}
			i += n
		case 7:
			if c != float64Byte && c != falseByte && c != trueByte && c != nullByte {
				return start, errSimple
			}
			if f := math.Float64frombits(arg); c == float64Byte && (math.IsNaN(f) || math.IsInf(f, 0)) {
				return start, errFloat
			}
		}

		if top != nil {
			top.left--
		}
		if major == majorArray || major == majorMap {
			if depth == MaxDepth {
				return start, fmt.Errorf("more than %d levels: %w", MaxDepth, ErrLimit)
			}
			stack[depth] = container{left: open, isMap: isMap}
			depth++
		}
		for depth > 0 && stack[depth-1].left == 0 {
			depth--
		}
		if depth == 0 {
			if i != len(b) {
				return i, errTrailing
			}
			return 0, nil
		}
	}
}

// validLink checks what follows the head of a tag and returns its size.
func validLink(b []byte, tag uint64) (int, error) {
	if tag != linkTag {
		return 0, errTag
	}
	if len(b) == 0 {
		return 0, errTruncated
	}
	if b[0]>>5 != majorBytes {
		return 0, errLink
	}
	n, size, err := checkedArg(b)
	if err != nil {
		return 0, err
	}
	if n > uint64(len(b)-size) {
		return 0, errTruncated
	}
	if n == 0 || b[size] != 0 {
		return 0, errLink
	}
	if n-1 > MaxCIDBytes {
		return 0, fmt.Errorf("CID of %d bytes: %w", n-1, ErrLimit)
	}
	end := size + int(n)
	if !validCID(b[size+1 : end]) {
		return 0, errLink
	}
	return end, nil
}

// validCID reports whether b is exactly one binary CID: version 0, a bare
// SHA2-256 multihash, or version 1.
func validCID(b []byte) bool {
	if len(b) == 34 && b[0] == multihash.SHA2_256 && b[1] == 32 {
		return true
	}
	if len(b) < 4 || b[0] != 1 {
		return false
	}
	b = b[1:]
	_, n := uvarint(b) // codec
	if n == 0 {
		return false
	}
	b = b[n:]
	_, n = uvarint(b) // hash function
	if n == 0 {
		return false
	}
	b = b[n:]
	size, n := uvarint(b)
	return n > 0 && size == uint64(len(b)-n)
}

// uvarint decodes an unsigned varint in its shortest form, at most 9 bytes
// (multiformats/unsigned-varint). Its size is 0 if there is none.
func uvarint(b []byte) (v uint64, size int) {
	for i := 0; i < len(b) && i < 9; i++ {
		v |= uint64(b[i]&0x7f) << (7 * i)
		if b[i] < 0x80 {
			if b[i] == 0 && i > 0 {
				return 0, 0
			}
			return v, i + 1
		}
	}
	return 0, 0
}

// compareKeys orders map keys: shorter first, then by bytes.
func compareKeys[T string | []byte](a, b T) int {
	if len(a) != len(b) {
		return len(a) - len(b)
	}
	switch {
	case string(a) < string(b):
		return -1
	case string(a) > string(b):
		return 1
	}
	return 0
}
