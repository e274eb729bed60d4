package blockstore

// Runs are the offsets of the runs in the bytes of an undamaged segment, and of its end.
func Runs(segment []byte) []int {
	offs := []int{segmentHeaderBytes}
	for off := segmentHeaderBytes; off < len(segment); {
		h, err := parseRunHeader(segment[off:])
		if err != nil {
			panic(err)
		}
		off += int(h.size())
		offs = append(offs, off)
	}
	return offs
}

// LedgerText is a ledger id as it stands in directory names.
func LedgerText(id [32]byte) string { return ledgerText(id) }
