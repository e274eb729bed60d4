package pail

import (
	"context"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/ipfs/go-cid"

	"fpnode/clock"
)

// keysOf returns n keys like the ids of documents: random hexadecimal ones, or
// ones in order of time as Fireproof makes them, which share long prefixes.
func keysOf(kind string, n int, seed uint64) []string {
	r := rand.New(rand.NewPCG(seed, 2))
	keys := make([]string, n)
	ms := uint64(0x0191a1b2c3d4)
	for i := range keys {
		if kind == "hex" {
			keys[i] = fmt.Sprintf("%016x", r.Uint64())
			continue
		}
		ms += r.Uint64N(40)
		h := fmt.Sprintf("%012x", ms)
		keys[i] = fmt.Sprintf("%s-%s-7%03x-b%03x-%012x", h[:8], h[8:], r.IntN(1<<12), r.IntN(1<<12), r.Int64N(1<<48))
	}
	return keys
}

// BenchmarkPut commits every put by itself into a map of 10,000 keys.
func BenchmarkPut(b *testing.B) {
	for _, kind := range []string{"hex", "time"} {
		b.Run(kind, func(b *testing.B) {
			ctx := context.Background()
			const n = 10_000
			keys := keysOf(kind, 2*n, 1)
			tree := filled(b, keys[:n])
			values := []cid.Cid{value("v"), value("w")}
			b.ReportAllocs()
			e := tree.Edit()
			for i := 0; b.Loop(); i++ { // first new keys, then new values
				if err := e.Put(ctx, keys[(n+i)%len(keys)], values[(n+i)/len(keys)%2]); err != nil {
					b.Fatal(err)
				}
				tree = e.Commit().Tree.Stored()
				e.reset(tree)
			}
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "puts/s")
		})
	}
}

func filled(b *testing.B, keys []string) Tree {
	e := Empty(nil, NewCache(1<<16)).Edit()
	for _, k := range keys {
		if err := e.Put(context.Background(), k, value("v")); err != nil {
			b.Fatal(err)
		}
	}
	return e.Commit().Tree.Stored()
}

// BenchmarkBatch commits 10,000 puts at once.
func BenchmarkBatch(b *testing.B) {
	for _, kind := range []string{"hex", "time"} {
		b.Run(kind, func(b *testing.B) {
			ctx := context.Background()
			keys := keysOf(kind, 10_000, 1)
			v := value("v")
			b.ReportAllocs()
			for b.Loop() {
				e := Empty(nil, NewCache(1<<16)).Edit()
				for _, k := range keys {
					if err := e.Put(ctx, k, v); err != nil {
						b.Fatal(err)
					}
				}
				e.Commit()
			}
			b.ReportMetric(float64(b.N)*10_000/b.Elapsed().Seconds(), "puts/s")
		})
	}
}

// BenchmarkRoot merges two branches of n puts each.
func BenchmarkRoot(b *testing.B) {
	for _, n := range []int{100, 1_000, 10_000} {
		b.Run(fmt.Sprintf("2x%d", n), func(b *testing.B) {
			store := blocks{}
			x := clock.NewIndex()
			cache := NewCache(1 << 16)
			write := func(head []cid.Cid, key string) []cid.Cid {
				r := &Replica{Blocks: store, Index: x, Cache: cache}
				w, err := r.Put(context.Background(), head, []Op{{Key: key, Value: value(key)}}, false)
				if err != nil {
					b.Fatal(err)
				}
				store.put(b, append(w.Additions, *w.Event)...)
				if _, err := x.Add(w.Event.CID, head); err != nil {
					b.Fatal(err)
				}
				return w.Head
			}
			genesis := write(nil, "genesis")
			var heads []cid.Cid
			for branch := range 2 {
				head := genesis
				for _, k := range keysOf("hex", n, uint64(branch)) {
					head = write(head, k)
				}
				heads = append(heads, head...)
			}
			b.ReportAllocs()
			for b.Loop() {
				r := &Replica{Blocks: store, Index: x, Cache: cache}
				if _, err := r.Root(context.Background(), heads); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
