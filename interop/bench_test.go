//go:build bench

package interop

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"fpnode/keyring"
	"fpnode/ledger"
)

var (
	rounds = flag.Int("rounds", 3, "interleaved rounds; the table shows medians")
	full   = flag.Bool("full", false, "also 100,000 single commits and 1,000,000 documents")
)

// TestTable prints the benchmark table of scripts/bench: each workload run by Go and by the JavaScript library in turn,
// in one process tree on one disk, so that ratios can be compared although the machine is shared.
func TestTable(t *testing.T) {
	tab := &table{}
	for r := range *rounds {
		fmt.Fprintf(os.Stderr, "round %d of %d\n", r+1, *rounds)
		sequentialPuts(t, tab)
		parallelPuts(t, tab)
		bulk(t, tab)
		mergeForks(t, tab)
	}
	putsAt(t, tab)
	if *full {
		million(t, tab)
	}
	tab.print()
}

// table collects samples by row and column and prints medians.
type table struct {
	rows  []string
	cells map[string][]float64
}

func (tab *table) add(row, col string, v float64) {
	if tab.cells == nil {
		tab.cells = map[string][]float64{}
	}
	if !slices.Contains(tab.rows, row) {
		tab.rows = append(tab.rows, row)
	}
	tab.cells[row+"|"+col] = append(tab.cells[row+"|"+col], v)
}

func (tab *table) median(row, col string) (float64, bool) {
	v := slices.Clone(tab.cells[row+"|"+col])
	if len(v) == 0 {
		return 0, false
	}
	slices.Sort(v)
	return v[len(v)/2], true
}

func (tab *table) print() {
	fmt.Printf("| workload | fpnode | JS Fireproof | ratio |\n|---|---:|---:|---:|\n")
	for _, row := range tab.rows {
		g, gok := tab.median(row, "go")
		j, jok := tab.median(row, "js")
		cell := func(v float64, ok bool) string {
			switch {
			case !ok:
				return "–"
			case v >= 100:
				return fmt.Sprintf("%.0f", v)
			}
			return fmt.Sprintf("%.3g", v)
		}
		ratio := "–"
		if gok && jok && j != 0 && g != 0 {
			if strings.Contains(row, "/s") {
				ratio = fmt.Sprintf("%.1f×", g/j)
			} else {
				ratio = fmt.Sprintf("%.1f×", j/g)
			}
		}
		fmt.Printf("| %s | %s | %s | %s |\n", row, cell(g, gok), cell(j, jok), ratio)
	}
}

func millis(d time.Duration) float64 { return float64(d) / 1e6 }

func percentile(d []time.Duration, p float64) time.Duration {
	d = slices.Clone(d)
	slices.Sort(d)
	return d[min(len(d)-1, int(float64(len(d))*p))]
}

// docN is a document of about 150 bytes.
func docN(prefix string, i int) string {
	return fmt.Sprintf(`{"_id":"%s%06d","n":%d,"kind":"k%d","text":"the quick brown fox jumps over the lazy dog %d","done":%t,"tags":["a","b"]}`,
		prefix, i, i, i%100, i, i%2 == 0)
}

func drafts(t testing.TB, prefix string, n int) []ledger.Draft {
	t.Helper()
	out := make([]ledger.Draft, n)
	for i := range out {
		d, err := ledger.ParseJSON([]byte(docN(prefix, i)))
		if err != nil {
			t.Fatal(err)
		}
		out[i] = d
	}
	return out
}

func raws(prefix string, from, n int) []json.RawMessage {
	out := make([]json.RawMessage, n)
	for i := range out {
		out[i] = json.RawMessage(docN(prefix, from+i))
	}
	return out
}

func diskReplica(t testing.TB, dir string) *replica {
	t.Helper()
	return newReplicaOn(t, vfs.Default, filepath.Join(dir, "home"), "bench")
}

func (j *jsProcess) open(db, dir string) {
	j.do("open", args{"db": db, "name": "bench", "base": filepath.Join(dir, "store"), "keybag": filepath.Join(dir, "keybag"), "timeout": 300000}, nil)
}

// timed returns the time the library itself took, without the pipe.
func (j *jsProcess) timed(op string, a args) time.Duration {
	j.do(op, a, nil)
	return j.took
}

func dirBytes(t testing.TB, dir string, match func(string) bool) float64 {
	var n int64
	err := filepath.Walk(dir, func(p string, i os.FileInfo, err error) error {
		if err == nil && !i.IsDir() && match(p) {
			n += i.Size()
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return float64(n)
}

func all(string) bool { return true }

func sequentialPuts(t *testing.T, tab *table) {
	const n = 1000
	ctx := context.Background()
	dir := t.TempDir()
	r := diskReplica(t, dir)
	r.put(docN("warm", 0))
	docs := drafts(t, "seq", n)
	before, segBefore := r.store.Syncs(), dirBytes(t, dir, isSegment)
	// One bare append after each put, of about the bytes that a put writes: what the disk does meanwhile hits both.
	f, err := vfs.Default.Create(filepath.Join(dir, "bare"), vfs.WriteCategoryUnspecified)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	buf := make([]byte, bytesPerPut)
	var took, bare []time.Duration
	var total time.Duration
	for _, d := range docs {
		t0 := time.Now()
		if _, err := r.l.Put(ctx, d); err != nil {
			t.Fatal(err)
		}
		t1 := time.Now()
		if _, err := f.Write(buf); err != nil {
			t.Fatal(err)
		}
		if err := f.SyncData(); err != nil {
			t.Fatal(err)
		}
		took, bare, total = append(took, t1.Sub(t0)), append(bare, time.Since(t1)), total+t1.Sub(t0)
	}
	perCommit := (dirBytes(t, dir, isSegment) - segBefore) / n
	tab.add("1,000 single puts, puts/s", "go", n/total.Seconds())
	tab.add("single put p50, ms", "go", millis(percentile(took, .5)))
	tab.add("single put p99, ms", "go", millis(percentile(took, .99)))
	tab.add("fsyncs per single put", "go", float64(r.store.Syncs()-before)/n)
	tab.add("segment bytes per single put", "go", perCommit)
	r.close()
	tab.add("bytes on disk per single put, index included", "go", dirBytes(t, filepath.Join(dir, "home"), all)/n)

	tab.add("bare append + fdatasync of the same bytes p50, ms", "go", millis(percentile(bare, .5)))
	tab.add("single put p50 ÷ bare append p50", "go", float64(percentile(took, .5))/float64(percentile(bare, .5)))

	js := startJS(t)
	jdir := t.TempDir()
	js.open("a", jdir)
	js.do("put", args{"db": "a", "doc": json.RawMessage(docN("warm", 0))}, nil)
	took = took[:0]
	var sum time.Duration
	for i := range n {
		d := js.timed("put", args{"db": "a", "doc": json.RawMessage(docN("seq", i))})
		took, sum = append(took, d), sum+d
	}
	tab.add("1,000 single puts, puts/s", "js", n/sum.Seconds())
	tab.add("single put p50, ms", "js", millis(percentile(took, .5)))
	tab.add("single put p99, ms", "js", millis(percentile(took, .99)))
	tab.add("fsyncs per single put", "js", 0)
	js.do("close", args{"db": "a"}, nil)
	tab.add("bytes on disk per single put, index included", "js", dirBytes(t, jdir, all)/n)
}

func isSegment(p string) bool { return strings.HasSuffix(p, ".seg") }

// bytesPerPut is what a single put of docN appends, as the table shows it.
const bytesPerPut = 3368

func parallelPuts(t *testing.T, tab *table) {
	const n, writers = 4000, 16
	r := diskReplica(t, t.TempDir())
	docs := drafts(t, "par", n)
	r.put(docN("warm", 0))
	before := r.store.Syncs()
	start := time.Now()
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			for i := w; i < n; i += writers {
				if _, err := r.l.Put(context.Background(), docs[i]); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	tab.add("16 concurrent writers, puts/s", "go", n/time.Since(start).Seconds())
	tab.add("fsyncs per put, 16 writers", "go", float64(r.store.Syncs()-before)/n)
	r.close()

	js := startJS(t)
	js.open("a", t.TempDir())
	var sum time.Duration
	const jn = 160
	for i := 0; i < jn; i += writers {
		sum += js.timed("parallel", args{"db": "a", "docs": raws("par", i, writers)})
	}
	tab.add("16 concurrent writers, puts/s", "js", jn/sum.Seconds())
}

func bulk(t *testing.T, tab *table) {
	const n = 10000
	ctx := context.Background()
	dir := t.TempDir()
	r := diskReplica(t, dir)
	docs := drafts(t, "b", n)
	start := time.Now()
	if _, err := r.l.Put(ctx, docs...); err != nil {
		t.Fatal(err)
	}
	tab.add("bulk of 10,000, docs/s", "go", n/time.Since(start).Seconds())
	r.close()
	tab.add("bytes on disk per document, bulk", "go", dirBytes(t, dir, all)/n)

	start = time.Now()
	r = diskReplica(t, dir)
	if _, err := r.l.Get(ctx, "b000042"); err != nil {
		t.Fatal(err)
	}
	tab.add("open 10,000 documents and get one, ms", "go", millis(time.Since(start)))

	rng := rand.New(rand.NewPCG(1, 2))
	ids := make([]string, 100000)
	for i := range ids {
		ids[i] = fmt.Sprintf("b%06d", rng.IntN(n))
	}
	gets := func() float64 {
		start := time.Now()
		for _, id := range ids {
			if _, err := r.l.Get(ctx, id); err != nil {
				t.Fatal(err)
			}
		}
		return float64(len(ids)) / time.Since(start).Seconds()
	}
	start = time.Now()
	for i := range n {
		if _, err := r.l.Get(ctx, fmt.Sprintf("b%06d", (i*7919)%n)); err != nil {
			t.Fatal(err)
		}
	}
	tab.add("gets after open, each id once, gets/s", "go", n/time.Since(start).Seconds())
	tab.add("random gets warm, gets/s", "go", gets())

	query := func() float64 {
		start := time.Now()
		rows := 0
		for _, err := range r.l.Query(ctx, ledger.Query{Field: "kind", Range: &[2]any{"k5", "k50"}, IncludeDocs: true}) {
			if err != nil {
				t.Fatal(err)
			}
			rows++
		}
		if rows == 0 {
			t.Fatal("the query found nothing")
		}
		return millis(time.Since(start))
	}
	tab.add("field query, first, ms", "go", query())
	tab.add("field query, repeated, ms", "go", query())
	tab.add("memory with 10,000 documents, MiB RSS (both: whole process)", "go", rss(t))
	r.close()

	jdir := t.TempDir()
	js := startJS(t)
	js.open("a", jdir)
	var sum time.Duration
	for i := 0; i < n; i += 1000 {
		sum += js.timed("bulk", args{"db": "a", "docs": raws("b", i, 1000)})
	}
	tab.add("bulk of 10,000, docs/s", "js", n/sum.Seconds())
	js.do("close", args{"db": "a"}, nil)
	tab.add("bytes on disk per document, bulk", "js", dirBytes(t, jdir, all)/n)

	js = startJS(t)
	js.open("a", jdir)
	opened := js.took
	opened += js.timed("get", args{"db": "a", "key": "b000042"})
	tab.add("open 10,000 documents and get one, ms", "js", millis(opened))
	sum = 0
	const jn = 200
	for i := range jn {
		sum += js.timed("get", args{"db": "a", "key": ids[i]})
	}
	tab.add("random gets warm, gets/s", "js", jn/sum.Seconds())
	q := args{"db": "a", "field": "kind", "opts": map[string]any{"range": []string{"k5", "k50"}, "includeDocs": true}}
	tab.add("field query, first, ms", "js", millis(js.timed("query", q)))
	tab.add("field query, repeated, ms", "js", millis(js.timed("query", q)))
	var m struct{ RSS float64 }
	js.do("memory", nil, &m)
	tab.add("memory with 10,000 documents, MiB RSS (both: whole process)", "js", m.RSS/(1<<20))
}

// rss is the resident memory of this process in MiB, after a collection.
func rss(t testing.TB) float64 {
	runtime.GC()
	b, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		return 0
	}
	var size, resident int64
	if _, err := fmt.Sscan(string(b), &size, &resident); err != nil {
		t.Fatal(err)
	}
	return float64(resident*int64(os.Getpagesize())) / (1 << 20)
}

// mergeForks measures the merge of two branches of n single puts each, without transfer.
func mergeForks(t *testing.T, tab *table) {
	const n = 1000
	key, err := keyring.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	a, b := newReplica(t, "bench", key), newReplica(t, "bench", key)
	a.put(docN("base", 0))
	b.mergeFrom(a)
	for i := range n {
		a.put(docN("m", i))
		b.put(docN("m", i+n/2))
	}
	cars := a.missingFrom(b)
	start := time.Now()
	if _, err := a.l.Merge(context.Background(), b.l.Tips(), cars); err != nil {
		t.Fatal(err)
	}
	tab.add("merge of 2 × 1,000 events, ms", "go", millis(time.Since(start)))
	a.close()
	b.close()

	// The library needs minutes for 2 × 1,000; 2 × 100 shows the same at a tenth of the events.
	js := startJS(t)
	js.do("open", args{"db": "a", "name": "bench"}, nil)
	js.do("open", args{"db": "b", "name": "bench"}, nil)
	js.do("put", args{"db": "a", "doc": json.RawMessage(docN("base", 0))}, nil)
	js.do("merge", args{"db": "b", "from": "a"}, nil)
	for i := range n / 10 {
		js.do("put", args{"db": "a", "doc": json.RawMessage(docN("m", i))}, nil)
		js.do("put", args{"db": "b", "doc": json.RawMessage(docN("m", i+n/20))}, nil)
	}
	tab.add("merge of 2 × 100 events, ms", "js", millis(js.timed("merge", args{"db": "a", "from": "b", "timeout": 300000})))
}

// putsAt measures single puts on ledgers of growing history.
func putsAt(t *testing.T, tab *table) {
	sizes := []int{1000, 10000}
	if *full {
		sizes = append(sizes, 100000)
	}
	ctx := context.Background()
	r := diskReplica(t, t.TempDir())
	made := 0
	for _, size := range sizes {
		var wg sync.WaitGroup
		// Many writers share commits; the measured puts below are single ones.
		for ; made < size-1000; made += 100 {
			for i := range 100 {
				wg.Go(func() {
					d, _ := ledger.ParseJSON([]byte(docN("h", made+i)))
					if _, err := r.l.Put(ctx, d); err != nil {
						t.Error(err)
					}
				})
			}
			wg.Wait()
		}
		var took []time.Duration
		for ; made < size; made++ {
			d, err := ledger.ParseJSON([]byte(docN("h", made)))
			if err != nil {
				t.Fatal(err)
			}
			t0 := time.Now()
			if _, err := r.l.Put(ctx, d); err != nil {
				t.Fatal(err)
			}
			took = append(took, time.Since(t0))
		}
		tab.add(fmt.Sprintf("put p50 at %d events, ms", size), "go", millis(percentile(took, .5)))
	}
	r.close()
}

// million writes 1,000,000 documents in batches of 1,000 and shows the memory this took.
func million(t *testing.T, tab *table) {
	ctx := context.Background()
	dir := t.TempDir()
	r := diskReplica(t, dir)
	start := time.Now()
	peak := 0.0
	for i := range 1000 {
		if _, err := r.l.Put(ctx, drafts(t, fmt.Sprintf("%04d-", i), 1000)...); err != nil {
			t.Fatal(err)
		}
		if i%50 == 49 {
			peak = max(peak, rss(t))
		}
	}
	tab.add("1,000,000 documents in batches of 1,000, docs/s", "go", 1e6/time.Since(start).Seconds())
	tab.add("1,000,000 documents, MiB RSS (highest of 20 samples)", "go", peak)
	r.close()
	tab.add("1,000,000 documents, bytes on disk each", "go", dirBytes(t, dir, all)/1e6)
}
