//go:build !race

package blockstore_test

const raceStride = 1
