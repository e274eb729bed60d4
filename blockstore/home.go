package blockstore

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/cockroachdb/errors/oserror"
	"github.com/cockroachdb/pebble/v2/vfs"
)

// A home directory holds
//
//	VERSION            format version of all the rest: "fpnode store 1\n"
//	repo.lock          locked by the process that has the home open
//	repo.pid           who that is: "pid 4312\nsince 2006-01-02T15:04:05Z\n"
//	index/             the index, encrypted; may be deleted while nothing runs
//	ledgers/ID/        the segments of a ledger: 000001.seg …
//	ledgers/ID.drop/   a ledger that is being removed
//
// and what other packages put there.
const (
	versionFile = "VERSION"
	lockFile    = "repo.lock"
	pidFile     = "repo.pid"
	indexDir    = "index"
	ledgersDir  = "ledgers"
	dropSuffix  = ".drop"

	formatVersion = 1
	versionPrefix = "fpnode store "
)

// lockHome locks a home, or says who has it.
func lockHome(fsys vfs.FS, dir string) (io.Closer, error) {
	path := fsys.PathJoin(dir, lockFile)
	lock, err := fsys.Lock(path)
	if err != nil {
		var pathErr *fs.PathError
		held := errors.Is(err, syscall.EAGAIN) || errors.Is(err, syscall.EACCES) && !errors.As(err, &pathErr) ||
			strings.Contains(err.Error(), "held by current process") // pebble/vfs has no other sign
		if !held {
			return nil, fmt.Errorf("locking %s: %w", path, err)
		}
		e := &LockedError{Path: path}
		if b, err := readFile(fsys, fsys.PathJoin(dir, pidFile), 1024); err == nil {
			e.PID, e.Since = parsePID(b)
		}
		return nil, e
	}
	// Who cannot be named is only less helpful, so no failure here is one of opening.
	text := fmt.Sprintf("pid %d\nsince %s\n", os.Getpid(), time.Now().UTC().Format(time.RFC3339))
	if f, err := fsys.Create(fsys.PathJoin(dir, pidFile), vfs.WriteCategoryUnspecified); err == nil {
		f.Write([]byte(text))
		f.Close()
		ownerOnly(fsys, fsys.PathJoin(dir, pidFile), fileMode)
	}
	ownerOnly(fsys, path, fileMode)
	return lock, nil
}

func parsePID(b []byte) (pid int, since time.Time) {
	for line := range strings.Lines(string(b)) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), " ")
		switch key {
		case "pid":
			pid, _ = strconv.Atoi(value)
		case "since":
			since, _ = time.Parse(time.RFC3339, value)
		}
	}
	return max(pid, 0), since
}

// checkVersion refuses the homes of newer releases and makes a new home one of this.
func checkVersion(fsys vfs.FS, dir string) error {
	path := fsys.PathJoin(dir, versionFile)
	b, err := readFile(fsys, path, 1024)
	if err == nil {
		number, ok := bytes.CutPrefix(b, []byte(versionPrefix))
		v, err := strconv.Atoi(strings.TrimSuffix(string(number), "\n"))
		if !ok || err != nil || v < 1 {
			return &CorruptError{File: path, Reason: "it names no format version", Advice: "restore it from a copy; this release writes \"" + versionPrefix + strconv.Itoa(formatVersion) + "\""}
		}
		if v > formatVersion {
			return &VersionError{Found: v, Supported: formatVersion}
		}
		return nil
	}
	if !oserror.IsNotExist(err) {
		return fmt.Errorf("reading the format version: %w", err)
	}
	// VERSION is the first thing made in a home and durable before the second.
	if names, err := fsys.List(fsys.PathJoin(dir, ledgersDir)); err == nil && len(names) > 0 {
		return &CorruptError{File: path, Reason: "it is missing, but there are ledgers", Advice: "restore it from a copy"}
	}
	if err := writeFileDurably(fsys, dir, versionFile, fmt.Appendf(nil, "%s%d\n", versionPrefix, formatVersion)); err != nil {
		return writeError("writing the format version", err)
	}
	return nil
}

// writeFileDurably makes or replaces dir/name, all or nothing.
func writeFileDurably(fsys vfs.FS, dir, name string, content []byte) error {
	tmp := fsys.PathJoin(dir, name+".tmp")
	f, err := fsys.Create(tmp, vfs.WriteCategoryUnspecified)
	if err != nil {
		return err
	}
	_, err = f.Write(content)
	if err == nil {
		err = ownerOnly(fsys, tmp, fileMode)
	}
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err := fsys.Rename(tmp, fsys.PathJoin(dir, name)); err != nil {
		return err
	}
	return syncDir(fsys, dir)
}

// makeDir makes dir and its parents, each durable in its own parent, and refuses one that others can look into.
func makeDir(fsys vfs.FS, dir string) error {
	info, err := fsys.Stat(dir)
	if err == nil {
		if !info.IsDir() {
			return fmt.Errorf("%s is not a directory", dir)
		}
		return checkMode(fsys, dir, info, dirMode)
	}
	if !oserror.IsNotExist(err) {
		return err
	}
	parent := fsys.PathDir(dir)
	if parent != dir {
		if _, err := fsys.Stat(parent); oserror.IsNotExist(err) {
			if err := makeDir(fsys, parent); err != nil {
				return err
			}
		}
	}
	if err := fsys.MkdirAll(dir, dirMode); err != nil {
		return err
	}
	return syncDir(fsys, parent)
}

// checkMode refuses what is open to others. Only the operating system's file system has modes.
func checkMode(fsys vfs.FS, path string, info fs.FileInfo, want fs.FileMode) error {
	if onDisk(fsys) && info.Mode().Perm()&^want != 0 {
		return &ModeError{Path: path, Mode: info.Mode().Perm(), Want: want}
	}
	return nil
}

// syncDir makes the entries of a directory durable.
func syncDir(fsys vfs.FS, dir string) error {
	d, err := fsys.OpenDir(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// readFile reads a small file of our own.
func readFile(fsys vfs.FS, path string, limit int64) ([]byte, error) {
	f, err := fsys.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, limit))
}
