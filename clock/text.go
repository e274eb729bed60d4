package clock

import (
	"math/bits"
	"strings"

	"github.com/ipfs/go-cid"
)

// CompareText compares CIDs by their text, as JavaScript compares strings.
// The text is base32 in lower case, whose digits 2–7 stand for larger values
// than its letters and sort before them, so this is not the order of bytes.
func CompareText(a, b cid.Cid) int {
	x, y := a.KeyString(), b.KeyString()
	if len(x) == len(y) && x != "" && x[0] == 1 && y[0] == 1 {
		return compareBase32(x, y)
	}
	return strings.Compare(a.String(), b.String())
}

// compareBase32 compares byte strings of one length by their base32 text,
// without making it: by the first differing group of 5 bits.
func compareBase32(x, y string) int {
	for i := range len(x) {
		d := x[i] ^ y[i]
		if d == 0 {
			continue
		}
		g := (8*i + bits.LeadingZeros8(d)) / 5
		return int(base32Rank(x, g)) - int(base32Rank(y, g))
	}
	return 0
}

// base32Rank returns the rank of the g-th character of the base32 text of s
// among the characters 2–7a–z.
func base32Rank(s string, g int) byte {
	first := 5 * g / 8
	window := uint16(s[first]) << 8
	if first+1 < len(s) {
		window |= uint16(s[first+1])
	}
	v := byte(window>>(11-5*g%8)) & 31
	if v >= 26 {
		return v - 26 // digits
	}
	return v + 6 // letters
}
