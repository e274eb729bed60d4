package keyring

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"runtime"
	"strings"

	"github.com/cockroachdb/pebble/v2/vfs"
)

const tempSuffix = ".tmp"

// modesMatter reports whether the files of fsys have permissions: those of the operating system do,
// those in memory do not.
func modesMatter(fsys vfs.FS) bool {
	return vfs.Root(fsys) == vfs.Default && runtime.GOOS != "windows"
}

// checkMode refuses permissions above max.
func checkMode(fsys vfs.FS, path string, info fs.FileInfo, max fs.FileMode) error {
	if mode := info.Mode().Perm(); modesMatter(fsys) && mode&^max != 0 {
		return &ModeError{Path: path, Mode: mode, Max: max}
	}
	return nil
}

// makeDir makes dir and what is missing above it, readable for the owner only, durable on return.
func makeDir(fsys vfs.FS, dir string) error {
	if _, err := fsys.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	parent := fsys.PathDir(dir)
	if parent != dir {
		if err := makeDir(fsys, parent); err != nil {
			return err
		}
	}
	if err := fsys.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	return syncDir(fsys, parent)
}

// readFile returns the whole file, which must not be larger than MaxKeyFileBytes, nor readable for
// others if it is private.
func readFile(fsys vfs.FS, path string, private bool) ([]byte, error) {
	f, err := fsys.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if private {
		if err := checkMode(fsys, path, info, 0o600); err != nil {
			return nil, err
		}
	}
	b, err := io.ReadAll(io.LimitReader(f, MaxKeyFileBytes+1))
	if err != nil {
		return nil, err
	}
	if len(b) > MaxKeyFileBytes {
		return nil, &FileError{path, fmt.Sprintf("larger than %d bytes", MaxKeyFileBytes), "this is not a key file; move it away"}
	}
	return b, nil
}

// replaceFile makes path hold data, whatever happens: after a crash there is the old file or the new
// one, after a return the new one. Others cannot read it at any moment.
// uncertain means that an error leaves open which of the two is there.
func replaceFile(fsys vfs.FS, path string, data []byte) (uncertain bool, err error) {
	temp := path + tempSuffix
	if err := writeTemp(fsys, temp, data); err != nil {
		fsys.Remove(temp)
		return false, err
	}
	if err := fsys.Rename(temp, path); err != nil {
		return true, err
	}
	return true, syncDir(fsys, fsys.PathDir(path))
}

func writeTemp(fsys vfs.FS, temp string, data []byte) error {
	f, err := fsys.Create(temp, vfs.WriteCategoryUnspecified)
	if err != nil {
		return err
	}
	if modesMatter(fsys) {
		// Before the first secret byte: vfs creates files as wide as the umask lets it.
		if err := os.Chmod(temp, 0o600); err != nil {
			f.Close()
			return err
		}
	}
	if _, err := f.Write(data); err != nil {
		f.Close()
		return err
	}
	if err := f.Sync(); err != nil {
		f.Close()
		return err
	}
	return f.Close()
}

// removeFile removes path, durably on return. uncertain is as in replaceFile.
func removeFile(fsys vfs.FS, path string) (uncertain bool, err error) {
	if err := fsys.Remove(path); err != nil {
		return !errors.Is(err, fs.ErrNotExist), err
	}
	return true, syncDir(fsys, fsys.PathDir(path))
}

// syncDir makes the names in dir durable.
func syncDir(fsys vfs.FS, dir string) error {
	d, err := fsys.OpenDir(dir)
	if err != nil {
		return err
	}
	if err := d.Sync(); err != nil {
		d.Close()
		return err
	}
	return d.Close()
}

// removeTemps removes what a crash left behind. Nobody may be writing.
func removeTemps(fsys vfs.FS, dir string) error {
	names, err := fsys.List(dir)
	if err != nil {
		return err
	}
	for _, name := range names {
		if strings.HasSuffix(name, tempSuffix) {
			if err := fsys.Remove(fsys.PathJoin(dir, name)); err != nil {
				return err
			}
		}
	}
	return nil
}
