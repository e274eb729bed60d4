package clock

// tieBreak orders two events of equal weight, given as binary CIDs: the one
// whose CID text is smaller comes first, so the other one wins a conflict
// (Pail: findSortedEvents).
func tieBreak(a, b string) int { return compareBase32(a, b) }
