package headsync_test

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"fpnode/ledger"
)

// BenchmarkPutVisible measures the time from a put on one node until the document can
// be read on the other, one put at a time, with the pause that a person makes.
func BenchmarkPutVisible(b *testing.B) {
	x, y := openNode(b, "x", testKey()), openNode(b, "y", testKey())
	x.up()
	y.up(x)
	waitMet(b, x, y)
	x.put(`{"_id":"first","x":1}`)
	waitEqual(b, x, y)
	var times []time.Duration
	for i := 0; b.Loop(); i++ {
		time.Sleep(210 * time.Millisecond) // the first announcement after a pause goes out at once
		id := fmt.Sprintf("doc-%d", i)
		d, err := ledger.ParseJSON(fmt.Appendf(nil, `{"_id":%q,"n":%d}`, id, i))
		if err != nil {
			b.Fatal(err)
		}
		start := time.Now()
		if _, err := x.db.Put(b.Context(), d); err != nil {
			b.Fatal(err)
		}
		for {
			if _, err := y.db.Get(b.Context(), id); err == nil {
				break
			}
			time.Sleep(20 * time.Microsecond)
		}
		times = append(times, time.Since(start))
	}
	slices.Sort(times)
	b.ReportMetric(float64(times[len(times)/2].Microseconds()), "p50-µs")
	b.ReportMetric(float64(times[len(times)*99/100].Microseconds()), "p99-µs")
	b.ReportMetric(0, "ns/op")
}

// BenchmarkCatchUp measures how long a new node takes for a ledger of 1,000 commits of
// one document each, from the first dial to equal heads.
func BenchmarkCatchUp(b *testing.B) {
	x := openNode(b, "x", testKey())
	x.putMany(0, 1000)
	x.up()
	for b.Loop() {
		b.StopTimer()
		y := openNode(b, "y", testKey())
		b.StartTimer()
		y.up(x)
		waitFor(b, "equal heads", func() bool { return x.head() == y.head() }, x, y)
		b.StopTimer()
		y.close()
		b.StartTimer()
	}
}
