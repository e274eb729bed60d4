package crashfs

import (
	"errors"
	"io"
	"syscall"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// replace writes a file durably, or leaves one step out.
func replace(fs vfs.FS, skip string) error {
	f, err := fs.Create("/tmp", vfs.WriteCategoryUnspecified)
	if err != nil {
		return err
	}
	if _, err := f.Write(make([]byte, 10_000)); err != nil {
		return err
	}
	if skip != "sync" {
		if err := f.Sync(); err != nil {
			return err
		}
	}
	if err := f.Close(); err != nil {
		return err
	}
	if err := fs.Rename("/tmp", "/file"); err != nil {
		return err
	}
	if skip == "sync of the directory" {
		return nil
	}
	d, err := fs.OpenDir("/")
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// The rig finds each step that is missing, and nothing in what is whole.
func TestCrashesFindsWhatIsMissing(t *testing.T) {
	for _, skip := range []string{"", "sync", "sync of the directory"} {
		bad := 0
		for seed := range uint64(20) {
			n, err := Crashes(seed, 1, nil, func(fs vfs.FS, ack func()) {
				if err := replace(fs, skip); err != nil {
					t.Fatal(err)
				}
				ack()
				if _, err := fs.Create("/another", vfs.WriteCategoryUnspecified); err != nil {
					t.Fatal(err)
				}
			}, func(c Crash) error {
				if c.Acked == 0 {
					return nil
				}
				info, err := c.FS.Stat("/file")
				if err != nil {
					return err
				}
				if info.Size() != 10_000 {
					return errors.New("not whole")
				}
				return nil
			})
			if n == 0 {
				t.Fatal("no crash")
			}
			if err != nil {
				bad++
			}
		}
		if (bad > 0) != (skip != "") {
			t.Errorf("without the %q: %d of 20 runs went wrong", skip, bad)
		}
	}
}

func TestFaultKinds(t *testing.T) {
	for kind := range Kinds {
		var failed []error
		at := 1
		for ; ; at++ {
			f := NewFault(vfs.NewMem(), kind, at)
			err := replace(f, "")
			if !f.Fired() {
				if err != nil {
					t.Errorf("%v at %d: %v without a fault", kind, at, err)
				}
				break
			}
			failed = append(failed, err)
			f.Heal()
			if err := replace(f, ""); err != nil {
				t.Errorf("%v at %d: %v after healing", kind, at, err)
			}
		}
		want := map[Kind]error{EIOOnce: syscall.EIO, EIOSticky: syscall.EIO, ENOSPC: syscall.ENOSPC, ShortWrite: io.ErrShortWrite, SyncEIO: syscall.EIO}[kind]
		for i, err := range failed {
			if !errors.Is(err, want) {
				t.Errorf("%v at %d: %v, want %v", kind, i+1, err, want)
			}
		}
		if len(failed) == 0 {
			t.Errorf("%v never struck", kind)
		}
	}
}
