// Package crashfs makes file systems that fail and machines that stop, for tests of what must survive both.
//
// Crashes runs some work and looks at what a crash at many moments of it would have left on the disk. NewFault fails one
// of the file operations, or all from one on, in one of five ways; a test goes through all operations and all ways. Work
// and oracle are the caller's, so every package that stores something can use them.
package crashfs

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"sync"
	"syscall"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// Crash is a disk as it may be after the machine stopped at some moment.
type Crash struct {
	FS      *vfs.MemFS
	Acked   int // how many times work had called ack
	Op      int // the file operation before which the machine stopped
	Percent int // how much of what was not synced is there
}

func (c Crash) String() string {
	return fmt.Sprintf("crash before operation %d with %d%% of unsynced data, %d acknowledged", c.Op, c.Percent, c.Acked)
}

// Crashes runs work on disk, or with nil on a new one, and calls check for crashes during it: before each operation that changes
// the disk, with a chance of 1 in every. What is not synced is lost or kept at random, in blocks of 4 KiB and single
// directory entries. A Crash's disk can crash again. Work calls ack for each promise it makes. Crashes returns how many crashes it checked and the
// first error of check.
func Crashes(seed uint64, every int, disk *vfs.MemFS, work func(fs vfs.FS, ack func()), check func(Crash) error) (int, error) {
	if disk == nil {
		disk = vfs.NewCrashableMem()
	}
	rng := rand.New(rand.NewPCG(seed, 0))
	percents := []int{0, 0, 10, 50, 90, 100}
	var mu sync.Mutex
	var first error
	crashes, ops, acked := 0, 0, 0

	fs := &FS{FS: disk}
	fs.before = func(op Op) error {
		mu.Lock()
		defer mu.Unlock()
		if op.Read {
			return nil
		}
		ops++
		if first != nil || rng.IntN(every) != 0 {
			return nil
		}
		c := Crash{Acked: acked, Op: ops, Percent: percents[rng.IntN(len(percents))]}
		c.FS = disk.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: c.Percent, RNG: rng})
		crashes++
		if err := check(c); err != nil {
			first = fmt.Errorf("seed %d: %v: %w", seed, c, err)
		}
		return nil
	}
	work(fs, func() {
		mu.Lock()
		defer mu.Unlock()
		acked++
	})
	return crashes, first
}

// Kind is a way in which a file operation fails.
type Kind int

// The kinds of faults.
const (
	EIOOnce    Kind = iota // one operation fails
	EIOSticky              // it and all after it fail
	ENOSPC                 // it and all writes after it find the disk full
	ShortWrite             // the first write from it on writes half and fails
	SyncEIO                // the first sync from it on fails
	Kinds                  // how many there are
)

func (k Kind) String() string {
	return [...]string{"EIO once", "EIO sticky", "ENOSPC", "short write", "fsync EIO"}[k]
}

// Fault is a file system that will fail.
type Fault struct {
	*FS
	Kind Kind
	At   int // number of the operation, from 1

	mu     sync.Mutex
	n      int
	fired  bool
	healed bool
}

// NewFault returns fs failing with kind at operation number at.
func NewFault(fs vfs.FS, kind Kind, at int) *Fault {
	f := &Fault{FS: &FS{FS: fs}, Kind: kind, At: at}
	f.before = f.decide
	return f
}

// Fired reports whether any operation has failed.
func (f *Fault) Fired() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.fired
}

// Heal ends all failing.
func (f *Fault) Heal() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.healed = true
}

// errShort makes the file write half.
var errShort = errors.New("short write")

func (f *Fault) decide(op Op) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.n++; f.n < f.At || f.healed {
		return nil
	}
	switch f.Kind {
	case EIOOnce:
		if !f.fired {
			f.fired = true
			return syscall.EIO
		}
	case EIOSticky:
		f.fired = true
		return syscall.EIO
	case ENOSPC:
		if op.Write {
			f.fired = true
			return syscall.ENOSPC
		}
	case ShortWrite:
		if op.Bytes && !f.fired {
			f.fired = true
			return errShort
		}
	case SyncEIO:
		if op.Sync && !f.fired {
			f.fired = true
			return syscall.EIO
		}
	}
	return nil
}

// Op is a file operation about to be done.
type Op struct {
	Name string // of the file or directory
	Read bool   // it changes nothing
	// Write says that it may need space, Bytes that it writes to a file, Sync that it makes something durable.
	Write, Bytes, Sync bool
}

// FS calls before ahead of each operation, and does not do those for which it returns an error. Closing never fails.
type FS struct {
	vfs.FS
	before func(Op) error
}

// Hook returns fs with before called ahead of each operation.
func Hook(fs vfs.FS, before func(Op) error) *FS { return &FS{FS: fs, before: before} }

// Unwrap returns the file system underneath.
func (f *FS) Unwrap() vfs.FS { return f.FS }

func (f *FS) file(name string, file vfs.File, err error) (vfs.File, error) {
	if err != nil {
		return nil, err
	}
	return &hookedFile{file, name, f}, nil
}

// Create is vfs.FS.Create.
func (f *FS) Create(name string, c vfs.DiskWriteCategory) (vfs.File, error) {
	if err := f.before(Op{Name: name, Write: true}); err != nil {
		return nil, err
	}
	file, err := f.FS.Create(name, c)
	return f.file(name, file, err)
}

// Link is vfs.FS.Link.
func (f *FS) Link(oldname, newname string) error {
	if err := f.before(Op{Name: newname, Write: true}); err != nil {
		return err
	}
	return f.FS.Link(oldname, newname)
}

// Open is vfs.FS.Open.
func (f *FS) Open(name string, opts ...vfs.OpenOption) (vfs.File, error) {
	if err := f.before(Op{Name: name, Read: true}); err != nil {
		return nil, err
	}
	file, err := f.FS.Open(name, opts...)
	return f.file(name, file, err)
}

// OpenReadWrite is vfs.FS.OpenReadWrite.
func (f *FS) OpenReadWrite(name string, c vfs.DiskWriteCategory, opts ...vfs.OpenOption) (vfs.File, error) {
	if err := f.before(Op{Name: name}); err != nil {
		return nil, err
	}
	file, err := f.FS.OpenReadWrite(name, c, opts...)
	return f.file(name, file, err)
}

// OpenDir is vfs.FS.OpenDir.
func (f *FS) OpenDir(name string) (vfs.File, error) {
	if err := f.before(Op{Name: name, Read: true}); err != nil {
		return nil, err
	}
	file, err := f.FS.OpenDir(name)
	return f.file(name, file, err)
}

// Remove is vfs.FS.Remove.
func (f *FS) Remove(name string) error {
	if err := f.before(Op{Name: name}); err != nil {
		return err
	}
	return f.FS.Remove(name)
}

// RemoveAll is vfs.FS.RemoveAll.
func (f *FS) RemoveAll(name string) error {
	if err := f.before(Op{Name: name}); err != nil {
		return err
	}
	return f.FS.RemoveAll(name)
}

// Rename is vfs.FS.Rename.
func (f *FS) Rename(oldname, newname string) error {
	if err := f.before(Op{Name: newname, Write: true}); err != nil {
		return err
	}
	return f.FS.Rename(oldname, newname)
}

// ReuseForWrite is vfs.FS.ReuseForWrite.
func (f *FS) ReuseForWrite(oldname, newname string, c vfs.DiskWriteCategory) (vfs.File, error) {
	if err := f.before(Op{Name: newname, Write: true}); err != nil {
		return nil, err
	}
	file, err := f.FS.ReuseForWrite(oldname, newname, c)
	return f.file(newname, file, err)
}

// MkdirAll is vfs.FS.MkdirAll.
func (f *FS) MkdirAll(dir string, perm os.FileMode) error {
	if err := f.before(Op{Name: dir, Write: true}); err != nil {
		return err
	}
	return f.FS.MkdirAll(dir, perm)
}

// Lock is vfs.FS.Lock.
func (f *FS) Lock(name string) (io.Closer, error) {
	if err := f.before(Op{Name: name, Write: true}); err != nil {
		return nil, err
	}
	return f.FS.Lock(name)
}

// List is vfs.FS.List.
func (f *FS) List(dir string) ([]string, error) {
	if err := f.before(Op{Name: dir, Read: true}); err != nil {
		return nil, err
	}
	return f.FS.List(dir)
}

// Stat is vfs.FS.Stat.
func (f *FS) Stat(name string) (vfs.FileInfo, error) {
	if err := f.before(Op{Name: name, Read: true}); err != nil {
		return nil, err
	}
	return f.FS.Stat(name)
}

type hookedFile struct {
	vfs.File
	name string
	fs   *FS
}

func (f *hookedFile) Read(p []byte) (int, error) {
	if err := f.fs.before(Op{Name: f.name, Read: true}); err != nil {
		return 0, err
	}
	return f.File.Read(p)
}

func (f *hookedFile) ReadAt(p []byte, off int64) (int, error) {
	if err := f.fs.before(Op{Name: f.name, Read: true}); err != nil {
		return 0, err
	}
	return f.File.ReadAt(p, off)
}

func (f *hookedFile) Write(p []byte) (int, error) {
	err := f.fs.before(Op{Name: f.name, Write: true, Bytes: true})
	if errors.Is(err, errShort) {
		n, _ := f.File.Write(p[:len(p)/2])
		return n, io.ErrShortWrite
	}
	if err != nil {
		return 0, err
	}
	return f.File.Write(p)
}

func (f *hookedFile) WriteAt(p []byte, off int64) (int, error) {
	err := f.fs.before(Op{Name: f.name, Write: true, Bytes: true})
	if errors.Is(err, errShort) {
		n, _ := f.File.WriteAt(p[:len(p)/2], off)
		return n, io.ErrShortWrite
	}
	if err != nil {
		return 0, err
	}
	return f.File.WriteAt(p, off)
}

func (f *hookedFile) Stat() (vfs.FileInfo, error) {
	if err := f.fs.before(Op{Name: f.name, Read: true}); err != nil {
		return nil, err
	}
	return f.File.Stat()
}

func (f *hookedFile) Preallocate(off, length int64) error {
	if err := f.fs.before(Op{Name: f.name, Write: true}); err != nil {
		return err
	}
	return f.File.Preallocate(off, length)
}

func (f *hookedFile) Sync() error {
	if err := f.fs.before(Op{Name: f.name, Sync: true}); err != nil {
		return err
	}
	return f.File.Sync()
}

func (f *hookedFile) SyncData() error {
	if err := f.fs.before(Op{Name: f.name, Sync: true}); err != nil {
		return err
	}
	return f.File.SyncData()
}

func (f *hookedFile) SyncTo(length int64) (bool, error) {
	if err := f.fs.before(Op{Name: f.name, Sync: true}); err != nil {
		return false, err
	}
	return f.File.SyncTo(length)
}
