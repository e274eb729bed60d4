package blockstore

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"syscall"
	"time"
)

var (
	// ErrNotFound says that the store does not hold what was asked for.
	ErrNotFound = errors.New("not in the store")
	// ErrStale says that the tips are no longer those the commit was made on. Read Tips and make it again.
	ErrStale = errors.New("the tips have moved")
	// ErrPoisoned says that a sync failed, so that nobody knows what is on the disk. The store refuses writes until
	// it is closed and opened again; reads go on.
	ErrPoisoned = errors.New("the store takes no more writes until it is opened again")
	// ErrDiskFull says that there is no room (or quota) for a commit and the reserve. Nothing was written; reads go
	// on, and commits work again when there is room.
	ErrDiskFull = errors.New("disk full")
	// ErrVault says that a ledger was written with another vault: its commits are whole, but this one does not open
	// them. Nothing was changed.
	ErrVault = errors.New("written under the device key of another home")
	// ErrClosed says that the store was closed.
	ErrClosed = errors.New("the store is closed")
	// ErrLimit says that a value is over one of the limits of this package.
	ErrLimit = errors.New("over the limit")
)

// LockedError says that another process (or another Store of this one) has the home open.
type LockedError struct {
	Path  string    // the lock file
	PID   int       // the holder, 0 if it did not say
	Since time.Time // when the holder opened the home, zero if it did not say
}

func (e *LockedError) Error() string {
	switch {
	case e.PID == 0:
		return fmt.Sprintf("%s is locked by another process", e.Path)
	case e.Since.IsZero():
		return fmt.Sprintf("%s is locked by process %d", e.Path, e.PID)
	}
	return fmt.Sprintf("%s is locked by process %d, running since %s", e.Path, e.PID, e.Since.Format(time.RFC3339))
}

// VersionError says that a newer release wrote the home.
type VersionError struct {
	Found, Supported int
}

func (e *VersionError) Error() string {
	return fmt.Sprintf("the store has format version %d, this program knows versions up to %d", e.Found, e.Supported)
}

// ModeError says that a file or directory is open to more users than its owner.
type ModeError struct {
	Path string
	Mode fs.FileMode // as found
	Want fs.FileMode // the widest allowed
}

func (e *ModeError) Error() string {
	return fmt.Sprintf("%s has mode %04o, which lets other users in; it must be %04o", e.Path, e.Mode.Perm(), e.Want.Perm())
}

// CorruptError says that bytes which were durable are damaged. Nothing has been changed.
type CorruptError struct {
	Ledger [32]byte // zero if it is none's
	File   string   // path of the damaged file, "" if it is not known
	Offset int64    // where the damage begins or was noticed, in bytes
	Reason string
	Advice string // what the owner can do
}

func (e *CorruptError) Error() string {
	where := e.File
	if where == "" {
		where = "store"
	}
	return fmt.Sprintf("%s is damaged at byte %d: %s; %s", where, e.Offset, e.Reason, e.Advice)
}

// AcceptError says which check refused a CAR.
type AcceptError struct {
	// Check is "wire", "envelope", "key", "tag", "iv", "name", "block", "header", "root" or "limit".
	Check string
	Ref   Ref // as offered
	Err   error
}

func (e *AcceptError) Error() string {
	what := "CAR"
	if e.Ref.Wire.Defined() {
		what = "CAR with wire name " + e.Ref.Wire.String()
	}
	return fmt.Sprintf("%s refused: %s check: %v", what, e.Check, e.Err)
}

func (e *AcceptError) Unwrap() error { return e.Err }

// limitf makes an error that is ErrLimit.
func limitf(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrLimit, fmt.Sprintf(format, args...))
}

// diskFull reports whether err says that the disk or the quota is full.
func diskFull(err error) bool {
	return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) || errors.Is(err, ErrDiskFull)
}

// writeError names err, which refused a write that left nothing durable.
func writeError(doing string, err error) error {
	if diskFull(err) {
		return fmt.Errorf("%s: %w: %v", doing, ErrDiskFull, err)
	}
	return fmt.Errorf("%s: %w", doing, err)
}

func isEOF(err error) bool { return errors.Is(err, io.EOF) }
