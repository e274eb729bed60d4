package clock

import (
	"strings"

	"fpnode/internal/planted"
)

// tieBreak orders two events of equal weight, given as binary CIDs: the one
// whose CID text is smaller comes first, so the other one wins a conflict
// (Pail: findSortedEvents).
func tieBreak(a, b string) int {
	if planted.TiesByBytes {
		return strings.Compare(a, b)
	}
	return compareBase32(a, b)
}
