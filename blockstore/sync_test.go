package blockstore_test

import (
	"errors"
	"io"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"fpnode/blockstore"
)

// gateFS is a disk under a kernel that does what Linux did to PostgreSQL: a sync that fails marks the pages clean, so
// that reads see them, the next sync has nothing to do and succeeds, and after a crash they are gone.
type gateFS struct {
	vfs.FS
	mu     sync.Mutex
	disk   map[string][]byte // what a crash leaves of the segments
	dirty  map[string][][2]int64
	failAt int // number of the sync of a segment that fails, from 1
	syncs  int
}

func (g *gateFS) wrap(name string, f vfs.File, err error) (vfs.File, error) {
	if err != nil || !strings.HasSuffix(name, ".seg") {
		return f, err
	}
	return &gateFile{f, name, g}, nil
}

func (g *gateFS) OpenReadWrite(name string, c vfs.DiskWriteCategory, opts ...vfs.OpenOption) (vfs.File, error) {
	f, err := g.FS.OpenReadWrite(name, c, opts...)
	return g.wrap(name, f, err)
}

type gateFile struct {
	vfs.File
	name string
	g    *gateFS
}

func (f *gateFile) WriteAt(b []byte, off int64) (int, error) {
	n, err := f.File.WriteAt(b, off)
	f.g.mu.Lock()
	defer f.g.mu.Unlock()
	f.g.dirty[f.name] = append(f.g.dirty[f.name], [2]int64{off, off + int64(n)})
	return n, err
}

func (f *gateFile) SyncData() error {
	f.g.mu.Lock()
	defer f.g.mu.Unlock()
	f.g.syncs++
	dirty := f.g.dirty[f.name]
	delete(f.g.dirty, f.name)
	if f.g.syncs == f.g.failAt {
		return syscall.EIO
	}
	for _, d := range dirty {
		b := make([]byte, d[1]-d[0])
		if _, err := f.File.ReadAt(b, d[0]); err != nil && err != io.EOF {
			return err
		}
		disk := f.g.disk[f.name]
		if grow := int(d[1]) - len(disk); grow > 0 {
			disk = append(disk, make([]byte, grow)...)
		}
		copy(disk[d[0]:], b)
		f.g.disk[f.name] = disk
	}
	return nil
}

// TestFailedSyncIsNotBelieved: after a failed sync the commit is in doubt. Opening the store again finds it whole in the
// page cache, and must not build on it before it is on the disk, whatever the kernel says of its pages.
func TestFailedSyncIsNotBelieved(t *testing.T) {
	for failAt := 1; failAt <= 5; failAt++ {
		g := &gateFS{FS: vfs.NewMem(), disk: map[string][]byte{}, dirty: map[string][][2]int64{}, failAt: failAt}
		s, err := blockstore.Open(config(g))
		if err != nil {
			t.Fatal(err)
		}
		l := openLedger(t, s, 1)
		h := &history{}
		rng := rand.New(rand.NewPCG(1, 1))
		for range failAt - 1 {
			if err := h.commit(l, rng); err != nil {
				t.Fatal(err)
			}
		}
		if err := h.commit(l, rng); !errors.Is(err, blockstore.ErrPoisoned) {
			t.Fatalf("Commit with a failed sync: %v, want ErrPoisoned", err)
		}
		if err := commitCAR(l, dataCAR(t, l, block(rng, 10))); !errors.Is(err, blockstore.ErrPoisoned) {
			t.Fatalf("the next Commit: %v, want ErrPoisoned", err)
		}
		if err := commitCAR(openLedger(t, s, 2), dataCAR(t, l, block(rng, 10))); !errors.Is(err, blockstore.ErrPoisoned) {
			t.Fatalf("Commit to another ledger: %v, want ErrPoisoned", err)
		}
		all := h.all()
		for i := range all[:failAt-1] {
			if err := verify(s, l, &all[i]); err != nil {
				t.Fatalf("reading on a poisoned store: %v", err)
			}
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}

		// Opened again it takes the commit as made, and more.
		if s, err = blockstore.Open(config(g)); err != nil {
			t.Fatal(err)
		}
		l = openLedger(t, s, 1)
		if err := h.tipIs(l, failAt); err != nil {
			t.Fatal(err)
		}
		if err := h.commit(l, rng); err != nil {
			t.Fatal(err)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}

		// The machine stops: only what the disk has is left.
		after := copyHome(t, g.FS)
		if err := after.RemoveAll(home + "/index"); err != nil {
			t.Fatal(err)
		}
		for name, b := range g.disk {
			writeFile(t, after, name, b)
		}
		if err := h.check(after, failAt+1, true); err != nil {
			t.Fatalf("sync %d failed; after a crash: %v", failAt, err)
		}
	}
}

func TestReserve(t *testing.T) {
	fs := vfs.NewMem()
	const gib = 1 << 30
	fs.TestingSetDiskUsage(vfs.DiskUsage{AvailBytes: gib, TotalBytes: 100 * gib})
	s := openStore(t, config(fs))
	l := openLedger(t, s, 1)
	cars := fill(t, l, 1, 2)
	for _, tt := range []struct {
		avail, total uint64
		want         error
	}{
		{256<<20 + 64<<10, 100 * gib, nil},
		{256<<20 - 1, 100 * gib, blockstore.ErrDiskFull}, // under 256 MiB
		{60 << 20, gib, nil},                             // the reserve is a twentieth of a small disk
		{50 << 20, gib, blockstore.ErrDiskFull},
		{0, gib, blockstore.ErrDiskFull},
		{gib, 100 * gib, nil},
	} {
		fs.TestingSetDiskUsage(vfs.DiskUsage{AvailBytes: tt.avail, TotalBytes: tt.total})
		syncs := s.Syncs()
		err := commitCAR(l, dataCAR(t, l, block(rand.New(rand.NewPCG(tt.avail, tt.total)), 10)))
		if !errors.Is(err, tt.want) {
			t.Errorf("%d of %d bytes free: %v, want %v", tt.avail, tt.total, err, tt.want)
		}
		if tt.want != nil && s.Syncs() != syncs {
			t.Errorf("%d of %d bytes free: something was written", tt.avail, tt.total)
		}
		for i := range cars {
			if err := verify(s, l, &cars[i]); err != nil {
				t.Errorf("%d of %d bytes free: %v", tt.avail, tt.total, err)
			}
		}
	}
}

// fullFS is a disk without room while full is set.
type fullFS struct {
	vfs.FS
	full atomic.Bool
}

func (f *fullFS) Create(name string, c vfs.DiskWriteCategory) (vfs.File, error) {
	file, err := f.FS.Create(name, c)
	return &fullFile{file, f}, err
}

func (f *fullFS) OpenReadWrite(name string, c vfs.DiskWriteCategory, opts ...vfs.OpenOption) (vfs.File, error) {
	file, err := f.FS.OpenReadWrite(name, c, opts...)
	return &fullFile{file, f}, err
}

type fullFile struct {
	vfs.File
	fs *fullFS
}

func (f *fullFile) Write(b []byte) (int, error) {
	if f.fs.full.Load() {
		return 0, syscall.ENOSPC
	}
	return f.File.Write(b)
}

func (f *fullFile) WriteAt(b []byte, off int64) (int, error) {
	if f.fs.full.Load() {
		return 0, syscall.EDQUOT
	}
	return f.File.WriteAt(b, off)
}

// On a full disk a home still opens, to read.
func TestOpenOnFullDisk(t *testing.T) {
	mem := vfs.NewMem()
	s, err := blockstore.Open(config(mem))
	if err != nil {
		t.Fatal(err)
	}
	cars := fill(t, openLedger(t, s, 1), 1, 20)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	full := &fullFS{FS: mem}
	full.full.Store(true)
	s = openStore(t, config(full))
	l := openLedger(t, s, 1)
	for i := range cars {
		if err := verify(s, l, &cars[i]); err != nil {
			t.Fatal(err)
		}
	}
	c := dataCAR(t, l, block(rand.New(rand.NewPCG(4, 4)), 10))
	if err := commitCAR(l, c); !errors.Is(err, blockstore.ErrDiskFull) {
		t.Errorf("Commit: %v, want ErrDiskFull", err)
	}
	full.full.Store(false)
	mustCommit(t, l, c)
	if err := verify(s, l, &c); err != nil {
		t.Error(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = openStore(t, config(mem))
	if err := verify(s, openLedger(t, s, 1), &c); err != nil {
		t.Error(err)
	}
}
