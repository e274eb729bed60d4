//go:build race

package blockstore_test

// The race detector (and pebble, which then checks itself) makes a store about fifteen times as slow, and finds nothing
// more in the thousandth damaged log. Loops over all of something take every fourth; scripts/test runs them in full
// without it.
const raceStride = 4
