package ledger

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// Benchmarks that write use the real file system, so that a put costs a sync.

func benchHome(b *testing.B) *home {
	b.Helper()
	return openHomeAt(b, vfs.Default, b.TempDir()+"/home")
}

func benchDoc(i int) map[string]any {
	return map[string]any{
		"_id":   hexID(i),
		"type":  "task",
		"title": "Water the plants on the balcony " + strconv.Itoa(i),
		"done":  i%3 == 0,
		"price": float64(i%1000) + 0.5,
	}
}

// hexID spreads ids evenly, as hashes do.
func hexID(i int) string { return fmt.Sprintf("%016x", uint64(i)*0x9e3779b97f4a7c15) }

func benchDraft(b *testing.B, i int) Draft {
	d, err := FromMap(benchDoc(i))
	if err != nil {
		b.Fatal(err)
	}
	return d
}

// fill puts documents from to to-1 in batches.
func fill(b *testing.B, h *home, from, to, batch int) {
	b.Helper()
	for i := from; i < to; i += batch {
		drafts := make([]Draft, 0, batch)
		for j := i; j < min(i+batch, to); j++ {
			drafts = append(drafts, benchDraft(b, j))
		}
		if _, err := h.Put(context.Background(), drafts...); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkPut(b *testing.B) {
	h := benchHome(b)
	fill(b, h, 0, 1, 1)
	syncs := h.store.Syncs()
	b.ResetTimer()
	for i := range b.N {
		if _, err := h.Put(context.Background(), benchDraft(b, i+1)); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(h.store.Syncs()-syncs)/float64(b.N), "syncs/op")
	b.ReportMetric(float64(h.cars.Stats().Bytes)/float64(b.N), "B/doc")
}

// BenchmarkPutAutoID has the ids that Fireproof makes, whose long shared prefix costs a shard for each character.
func BenchmarkPutAutoID(b *testing.B) {
	h := benchHome(b)
	b.ResetTimer()
	for i := range b.N {
		if _, err := h.Put(context.Background(), benchDraft(b, i+1).WithID("")); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(h.cars.Stats().Bytes)/float64(b.N), "B/doc")
}

func BenchmarkPutParallel16(b *testing.B) {
	h := benchHome(b)
	fill(b, h, 0, 1, 1)
	syncs := h.store.Syncs()
	b.ResetTimer()
	work := make(chan int)
	done := make(chan error)
	for range 16 {
		go func() {
			for i := range work {
				if _, err := h.Put(context.Background(), benchDraft(b, i+1)); err != nil {
					done <- err
					return
				}
			}
			done <- nil
		}()
	}
	for i := range b.N {
		work <- i
	}
	close(work)
	for range 16 {
		if err := <-done; err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(h.store.Syncs()-syncs)/float64(b.N), "syncs/op")
}

func BenchmarkBulk10k(b *testing.B) {
	for b.Loop() {
		b.StopTimer()
		h := benchHome(b)
		b.StartTimer()
		fill(b, h, 0, 10_000, 10_000)
		b.StopTimer()
		h.close()
		b.StartTimer()
	}
	b.ReportMetric(10_000*float64(b.N)/b.Elapsed().Seconds(), "docs/s")
}

func BenchmarkGetWarm(b *testing.B) {
	h := benchHome(b)
	fill(b, h, 0, 10_000, 10_000)
	rnd := rand.New(rand.NewPCG(1, 2))
	ids := make([]string, 10_000)
	for i := range ids {
		ids[i] = hexID(rnd.IntN(10_000))
	}
	ctx := context.Background()
	b.ResetTimer()
	for i := range b.N {
		if _, err := h.Get(ctx, ids[i%len(ids)]); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkGetCold(b *testing.B) {
	h := benchHome(b)
	fill(b, h, 0, 10_000, 10_000)
	rnd := rand.New(rand.NewPCG(1, 2))
	h.docs = newDocCache(0)
	ctx := context.Background()
	b.ResetTimer()
	for range b.N {
		if _, err := h.Get(ctx, hexID(rnd.IntN(10_000))); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkAllDocs10k(b *testing.B) {
	h := benchHome(b)
	fill(b, h, 0, 10_000, 10_000)
	b.ResetTimer()
	for range b.N {
		n := 0
		for _, err := range h.AllDocs(context.Background(), ListOptions{}) {
			if err != nil {
				b.Fatal(err)
			}
			n++
		}
		if n != 10_000 {
			b.Fatal(n)
		}
	}
}

// BenchmarkOpen10k opens the home, store and ledger, up to the first document.
func BenchmarkOpen10k(b *testing.B) {
	h := benchHome(b)
	fill(b, h, 0, 10_000, 100)
	h.close()
	for b.Loop() {
		n, err := tryHome(b, h.fs, h.dir)
		if err != nil {
			b.Fatal(err)
		}
		if _, err := n.Get(context.Background(), hexID(77)); err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		n.close()
		b.StartTimer()
	}
}

// BenchmarkMerge2x1000 merges 1,000 events into a ledger that has 1,000 of its own since they parted.
func BenchmarkMerge2x1000(b *testing.B) {
	for b.Loop() {
		b.StopTimer()
		x, y := openHome(b, vfs.NewMem()), benchHome(b)
		fill(b, x, 0, 100, 100)
		y.tb, x.tb = b, b
		y.mergeFrom(x)
		for i := range 1000 {
			fill(b, x, 1000+i, 1001+i, 1)
			fill(b, y, 1500+i, 1501+i, 1)
		}
		cars := y.carsOf(x)
		tips := x.Tips()
		b.StartTimer()
		res, err := y.Merge(context.Background(), tips, cars)
		if err != nil || len(res.Accepted) != 1 {
			b.Fatal(res, err)
		}
		b.StopTimer()
		x.close()
		y.close()
		b.StartTimer()
	}
}

func BenchmarkPutAt(b *testing.B) {
	for _, n := range []int{1_000, 10_000, 100_000} {
		b.Run(strconv.Itoa(n), func(b *testing.B) {
			if n > 10_000 && testing.Short() {
				b.Skip("long")
			}
			h := benchHome(b)
			const writers = 64
			done := make(chan error)
			for w := range writers {
				go func() {
					for i := w; i < n; i += writers {
						if _, err := h.Put(context.Background(), benchDraft(b, i)); err != nil {
							done <- err
							return
						}
					}
					done <- nil
				}()
			}
			for range writers {
				if err := <-done; err != nil {
					b.Fatal(err)
				}
			}
			took := make([]time.Duration, b.N)
			b.ResetTimer()
			for i := range b.N {
				d := benchDraft(b, n+i)
				start := time.Now()
				if _, err := h.Put(context.Background(), d); err != nil {
					b.Fatal(err)
				}
				took[i] = time.Since(start)
			}
			b.StopTimer()
			slices.Sort(took)
			b.ReportMetric(float64(took[len(took)/2].Nanoseconds()), "p50-ns")
			b.ReportMetric(float64(took[len(took)*99/100].Nanoseconds()), "p99-ns")
		})
	}
}

// BenchmarkMillion bulks a million documents, 1,000 in an event, and reports the peak resident memory of the process.
// Run it alone.
func BenchmarkMillion(b *testing.B) {
	if testing.Short() {
		b.Skip("long")
	}
	const docs = 1_000_000
	for range b.N {
		h := benchHome(b)
		fill(b, h, 0, docs, 1000)
		if n := must(h.Info(b.Context())).Docs; n != docs {
			b.Fatalf("%d documents", n)
		}
		h.close()
	}
	b.ReportMetric(docs*float64(b.N)/b.Elapsed().Seconds(), "docs/s")
	b.ReportMetric(float64(peakMemory(b))/(1<<20), "peak-MiB")
}

// peakMemory is the largest resident set the process has had, 0 where the system does not say.
func peakMemory(b *testing.B) int64 {
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(status)) {
		if f := strings.Fields(line); len(f) == 3 && f[0] == "VmHWM:" {
			kib, err := strconv.ParseInt(f[1], 10, 64)
			if err != nil {
				b.Fatal(err)
			}
			return kib << 10
		}
	}
	return 0
}
