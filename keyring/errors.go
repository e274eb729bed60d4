package keyring

import (
	"errors"
	"fmt"
	"os"
)

// What Open and ParseEnvelope find wrong. Each, and *UnknownKeyError, has a method Check() string that
// names the check which failed ("envelope", "key", "tag" or "iv"), for callers that do not import
// this package.
var (
	// ErrEnvelope: the bytes are not an envelope as Fireproof writes it.
	ErrEnvelope error = &checkError{"envelope", "not a sealed envelope"}
	// ErrTag: the bytes were changed, or were not sealed under the key they name.
	ErrTag error = &checkError{"tag", "authentication tag does not match"}
	// ErrIV: the tag is right, but the IV is not the one that follows from the plaintext.
	ErrIV error = &checkError{"iv", "IV does not follow from the plaintext"}
	// ErrKeyUnknown is what errors.Is finds in every *UnknownKeyError.
	ErrKeyUnknown error = &checkError{"key", "sealed under an unknown key"}
)

type checkError struct{ check, text string }

func (e *checkError) Error() string { return e.text }
func (e *checkError) Check() string { return e.check }

// UnknownKeyError reports an envelope under a key that the ledger does not hold.
type UnknownKeyError struct{ KeyID Fingerprint }

func (e *UnknownKeyError) Error() string {
	return "sealed under key " + e.KeyID.String() + ", which is not held"
}
func (e *UnknownKeyError) Check() string { return "key" }

// Is makes errors.Is(e, ErrKeyUnknown) true.
func (e *UnknownKeyError) Is(target error) bool { return target == ErrKeyUnknown }

var (
	// ErrTooLarge: above MaxPlainBytes.
	ErrTooLarge = errors.New("too large for one envelope")
	// ErrNotFound: no such ledger, or no such name in a key bag.
	ErrNotFound = errors.New("not found")
	// ErrExists: the name or the pinned key already belongs to a ledger.
	ErrExists = errors.New("exists already")
	// ErrName: not a name that a ledger can have here.
	ErrName = errors.New("not a ledger name")
	// ErrBusy: another process is changing the keys of this home at this moment.
	ErrBusy = errors.New("another process is changing the keys")
	// ErrPoisoned: a change failed halfway and what the disk holds is uncertain; open the Ring again.
	ErrPoisoned = errors.New("keys are read-only after a failed write; open them again")
)

// ModeError reports a file or directory with secrets that others may read.
type ModeError struct {
	Path string
	Mode os.FileMode // permissions found
	Max  os.FileMode // the widest that is accepted
}

func (e *ModeError) Error() string {
	return fmt.Sprintf("%s has mode %04o, wider than %04o", e.Path, e.Mode, e.Max)
}

// Hint returns what the user can do about it.
func (e *ModeError) Hint() string { return fmt.Sprintf("chmod %o %s", e.Max, e.Path) }

// FileError reports a key file that is damaged, missing or not ours. Nothing is repaired or replaced:
// a key made in place of a lost one would open nothing.
type FileError struct {
	Path   string
	Reason string // never quotes the file
	Advice string
}

func (e *FileError) Error() string { return e.Path + ": " + e.Reason }

// Hint returns what the user can do about it.
func (e *FileError) Hint() string { return e.Advice }
