package blockstore_test

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/ipfs/go-cid"

	"fpnode/blockstore"
	"fpnode/internal/car"
)

// Benchmarks run on the disk under TMPDIR. A commit waits for that disk, so compare the ratios.

func diskStore(b *testing.B) (*blockstore.Store, *blockstore.Ledger) {
	s := openStore(b, blockstore.Config{Dir: filepath.Join(b.TempDir(), "home"), Vault: vault{}})
	return s, openLedger(b, s, 1)
}

// likeAPut is a CAR of about 2 KiB, of as many blocks as a put makes.
func likeAPut(b testing.TB, l *blockstore.Ledger, rng *rand.Rand) blockstore.CAR {
	return dataCAR(b, l, block(rng, 300), block(rng, 500), block(rng, 500), block(rng, 100), block(rng, 100))
}

func p50(d []time.Duration) time.Duration {
	slices.Sort(d)
	return d[len(d)/2]
}

// BenchmarkCommit interleaves commits of a 2 KiB CAR with bare appends and syncs of the same number of bytes to another
// file: "x-bare" is how many times as long a commit takes.
func BenchmarkCommit(b *testing.B) {
	s, l := diskStore(b)
	rng := rand.New(rand.NewPCG(1, 1))
	bare, err := vfs.Default.OpenReadWrite(filepath.Join(b.TempDir(), "bare"), vfs.WriteCategoryUnspecified)
	if err != nil {
		b.Fatal(err)
	}
	defer bare.Close()
	var cars []blockstore.CAR
	for range b.N {
		cars = append(cars, likeAPut(b, l, rng))
	}
	var commits, bares []time.Duration
	off := int64(0)
	for i := range b.N {
		c := &cars[i]
		old := tipCIDs(l)
		batch := blockstore.Batch{CARs: []blockstore.CAR{*c}, Tips: []blockstore.Meta{blockstore.NewMeta([]blockstore.Ref{c.Ref}, old)}}
		begin := time.Now()
		if err := l.Commit(ctx, old, batch); err != nil {
			b.Fatal(err)
		}
		commits = append(commits, time.Since(begin))
		begin = time.Now()
		if _, err := bare.WriteAt(c.Sealed(), off); err != nil {
			b.Fatal(err)
		}
		if err := bare.SyncData(); err != nil {
			b.Fatal(err)
		}
		bares = append(bares, time.Since(begin))
		off += c.Ref.Size
	}
	b.ReportMetric(float64(p50(commits).Nanoseconds()), "p50-ns")
	b.ReportMetric(float64(p50(bares).Nanoseconds()), "bare-p50-ns")
	b.ReportMetric(float64(p50(commits))/float64(p50(bares)), "x-bare")
	b.ReportMetric(float64(s.Syncs())/float64(b.N), "syncs/op")
	b.ReportMetric(float64(off)/float64(b.N), "sealed-B/op")
}

// BenchmarkCommitWithoutDisk is what a commit costs beside the disk.
func BenchmarkCommitWithoutDisk(b *testing.B) {
	s := openStore(b, blockstore.Config{FS: vfs.NewMem(), Dir: home, Vault: vault{}})
	l := openLedger(b, s, 1)
	rng := rand.New(rand.NewPCG(1, 1))
	var cars []blockstore.CAR
	for range b.N {
		cars = append(cars, likeAPut(b, l, rng))
	}
	b.ReportAllocs()
	b.ResetTimer()
	for i := range b.N {
		mustCommit(b, l, cars[i])
	}
}

func BenchmarkPack(b *testing.B) {
	s := openStore(b, config(vfs.NewMem()))
	l := openLedger(b, s, 1)
	rng := rand.New(rand.NewPCG(1, 1))
	blocks := []car.Block{block(rng, 300), block(rng, 500), block(rng, 500), block(rng, 100), block(rng, 100)}
	b.ReportAllocs()
	for b.Loop() {
		dataCAR(b, l, blocks...)
	}
}

// filled is a home of n commits, made once.
func filled(b *testing.B, n int) (dir string, cids []cid.Cid) {
	dir = filepath.Join(b.TempDir(), "home")
	s, err := blockstore.Open(blockstore.Config{FS: nosync{vfs.Default}, Dir: dir, Vault: vault{}})
	if err != nil {
		b.Fatal(err)
	}
	l := openLedger(b, s, 1)
	rng := rand.New(rand.NewPCG(1, 1))
	for range n {
		c := likeAPut(b, l, rng)
		mustCommit(b, l, c)
		cids = append(cids, c.CIDs()...)
	}
	if err := s.Close(); err != nil {
		b.Fatal(err)
	}
	return dir, cids
}

// nosync makes filling fast.
type nosync struct{ vfs.FS }

func (n nosync) Unwrap() vfs.FS { return n.FS }

func (n nosync) OpenReadWrite(name string, c vfs.DiskWriteCategory, opts ...vfs.OpenOption) (vfs.File, error) {
	f, err := n.FS.OpenReadWrite(name, c, opts...)
	return nosyncFile{f}, err
}

type nosyncFile struct{ vfs.File }

func (nosyncFile) SyncData() error { return nil }

func BenchmarkBlock(b *testing.B) {
	dir, cids := filled(b, 10_000)
	s := openStore(b, blockstore.Config{Dir: dir, Vault: vault{}})
	l := openLedger(b, s, 1)
	rng := rand.New(rand.NewPCG(1, 1))
	b.Run("cold", func(b *testing.B) { // each block once; the page cache is warm
		rng.Shuffle(len(cids), func(i, j int) { cids[i], cids[j] = cids[j], cids[i] })
		b.ReportAllocs()
		for i := range b.N {
			if _, err := l.Block(ctx, cids[i%len(cids)]); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("warm", func(b *testing.B) {
		for i := 0; b.Loop(); i++ {
			if _, err := l.Block(ctx, cids[i%1000]); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("parallel", func(b *testing.B) {
		b.RunParallel(func(pb *testing.PB) {
			for i := rand.IntN(len(cids)); pb.Next(); i++ {
				if _, err := l.Block(ctx, cids[i%len(cids)]); err != nil {
					b.Fatal(err)
				}
			}
		})
	})
	b.Run("has", func(b *testing.B) {
		b.ReportAllocs()
		for i := 0; b.Loop(); i++ {
			if ok, err := l.Has(cids[i%len(cids)]); err != nil || !ok {
				b.Fatal(err)
			}
		}
	})
	var refs []blockstore.Ref
	for r, err := range l.Refs() {
		if err != nil {
			b.Fatal(err)
		}
		refs = append(refs, r)
	}
	b.Run("wire size", func(b *testing.B) {
		for i := 0; b.Loop(); i++ {
			if _, err := s.WireSize(refs[i%len(refs)].Wire.Hash()); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("wire block", func(b *testing.B) {
		for i := 0; b.Loop(); i++ {
			if _, err := s.WireBlock(refs[i%len(refs)].Wire.Hash()); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("all blocks", func(b *testing.B) {
		for b.Loop() {
			for _, err := range l.Blocks(ctx) {
				if err != nil {
					b.Fatal(err)
				}
			}
		}
	})
}

// BenchmarkOpen opens homes whose index is current, and makes the index of the largest anew.
func BenchmarkOpen(b *testing.B) {
	for _, n := range []int{0, 1000, 100_000} {
		dir, _ := filled(b, n)
		cfg := blockstore.Config{Dir: dir, Vault: vault{}}
		b.Run(fmt.Sprint(n, " commits"), func(b *testing.B) {
			for b.Loop() {
				s, err := blockstore.Open(cfg)
				if err != nil {
					b.Fatal(err)
				}
				openLedger(b, s, 1)
				b.StopTimer()
				if err := s.Close(); err != nil {
					b.Fatal(err)
				}
				b.StartTimer()
			}
		})
		if n == 100_000 {
			index, segments := size(b, filepath.Join(dir, "index")), size(b, filepath.Join(dir, "ledgers"))
			b.Run("rebuild", func(b *testing.B) {
				for b.Loop() {
					if err := os.RemoveAll(filepath.Join(dir, "index")); err != nil {
						b.Fatal(err)
					}
					s, err := blockstore.Open(cfg)
					if err != nil {
						b.Fatal(err)
					}
					if err := s.Close(); err != nil {
						b.Fatal(err)
					}
				}
				b.SetBytes(segments)
				b.ReportMetric(float64(index)/float64(n), "index-B/commit")
				b.ReportMetric(float64(segments)/float64(n), "log-B/commit")
			})
			b.Run("check", func(b *testing.B) {
				s := openStore(b, cfg)
				openLedger(b, s, 1)
				b.SetBytes(segments)
				for b.Loop() {
					if err := s.Check(ctx, blockstore.CheckOptions{ReadData: true}, func(p blockstore.Problem) { b.Error(p) }, nil); err != nil {
						b.Fatal(err)
					}
				}
			})
			var m runtime.MemStats
			runtime.ReadMemStats(&m)
			b.Logf("process memory: %d MiB", m.Sys>>20)
		}
	}
}

func size(b *testing.B, dir string) int64 {
	var n int64
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		info, err := d.Info()
		n += info.Size()
		return err
	})
	if err != nil {
		b.Fatal(err)
	}
	return n
}
