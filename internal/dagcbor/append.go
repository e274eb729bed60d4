package dagcbor

import (
	"encoding/binary"
	"math"

	"github.com/ipfs/go-cid"
)

// The Append functions write one item, or the head of one, after dst and
// return the longer slice. The caller sees to the order of map keys.

// AppendMap writes the head of a map of n entries.
func AppendMap(dst []byte, n int) []byte { return appendHead(dst, majorMap, uint64(n)) }

// AppendArray writes the head of an array of n elements.
func AppendArray(dst []byte, n int) []byte { return appendHead(dst, majorArray, uint64(n)) }

// AppendText writes a text, which must be UTF-8.
func AppendText(dst []byte, s string) []byte {
	return append(appendHead(dst, majorText, uint64(len(s))), s...)
}

// AppendBytes writes a byte string.
func AppendBytes(dst []byte, b []byte) []byte {
	return append(appendHead(dst, majorBytes, uint64(len(b))), b...)
}

// AppendInt writes an integer.
func AppendInt(dst []byte, v int64) []byte {
	if v < 0 {
		return appendHead(dst, majorNegative, uint64(-1-v))
	}
	return appendHead(dst, majorUint, uint64(v))
}

// AppendUint writes an integer that is not negative.
func AppendUint(dst []byte, v uint64) []byte { return appendHead(dst, majorUint, v) }

// AppendFloat writes a float as it is, also one with an integral value (see
// AppendNumber). It must be finite.
func AppendFloat(dst []byte, v float64) []byte {
	return binary.BigEndian.AppendUint64(append(dst, float64Byte), math.Float64bits(v))
}

// AppendNumber writes a finite JavaScript number as Fireproof does: integral
// values up to 2^53−1 on either side as integers, −0 as 0, all else as floats.
func AppendNumber(dst []byte, v float64) []byte {
	if v == math.Trunc(v) && math.Abs(v) <= maxSafeInteger {
		return AppendInt(dst, int64(v))
	}
	return AppendFloat(dst, v)
}

// maxSafeInteger is JavaScript's Number.MAX_SAFE_INTEGER.
const maxSafeInteger = 1<<53 - 1

// AppendBool writes a bool.
func AppendBool(dst []byte, v bool) []byte {
	if v {
		return append(dst, trueByte)
	}
	return append(dst, falseByte)
}

// AppendNull writes a null.
func AppendNull(dst []byte) []byte { return append(dst, nullByte) }

// AppendLink writes a link. The CID must be defined.
func AppendLink(dst []byte, c cid.Cid) []byte { return AppendLinkBytes(dst, c.KeyString()) }

// AppendLinkBytes writes a link to a binary CID, as cid.Cid.KeyString returns
// it.
func AppendLinkBytes[T string | []byte](dst []byte, c T) []byte {
	dst = append(dst, majorTag<<5|24, linkTag)
	dst = appendHead(dst, majorBytes, uint64(1+len(c)))
	return append(append(dst, 0), c...)
}

// HeadSize returns the size in bytes of the head of a text, byte string, array
// or map of length n, and of the integer n.
func HeadSize(n int) int {
	switch {
	case n < 24:
		return 1
	case n < 1<<8:
		return 2
	case n < 1<<16:
		return 3
	case n < 1<<32:
		return 5
	}
	return 9
}

// LinkSize returns the size in bytes of a link to a CID of n bytes.
func LinkSize(n int) int { return 2 + HeadSize(1+n) + 1 + n }

func appendHead(dst []byte, major byte, n uint64) []byte {
	major <<= 5
	switch {
	case n < 24:
		return append(dst, major|byte(n))
	case n < 1<<8:
		return append(dst, major|24, byte(n))
	case n < 1<<16:
		return append(dst, major|25, byte(n>>8), byte(n))
	case n < 1<<32:
		return binary.BigEndian.AppendUint32(append(dst, major|26), uint32(n))
	}
	return binary.BigEndian.AppendUint64(append(dst, major|27), n)
}
