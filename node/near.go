package node

// nearest returns the name that s was probably meant to be.
func nearest(s string, names []string) (string, bool) {
	if s == "" {
		return "", false
	}
	best, dist := "", len(s)/3+2 // further away is another name
	for _, name := range names {
		if d := distance(s, name); d < dist {
			best, dist = name, d
		}
	}
	return best, best != ""
}

// distance counts the letters that have to be added, removed, changed or
// swapped with their neighbour to make b of a (optimal string alignment).
func distance(a, b string) int {
	x, y := []rune(a), []rune(b)
	before, last, row := make([]int, len(y)+1), make([]int, len(y)+1), make([]int, len(y)+1)
	for j := range last {
		last[j] = j
	}
	for i := range x {
		row[0] = i + 1
		for j := range y {
			cost := 1
			if x[i] == y[j] {
				cost = 0
			}
			row[j+1] = min(last[j]+cost, last[j+1]+1, row[j]+1)
			if i > 0 && j > 0 && x[i] == y[j-1] && x[i-1] == y[j] {
				row[j+1] = min(row[j+1], before[j-1]+1)
			}
		}
		before, last, row = last, row, before
	}
	return last[len(y)]
}
