// Package keyring holds every secret a node has, and seals and opens bytes with them.
//
// [Open] the [Ring] of a home first. It has the device's [Identity], the [Vault] from which files at rest
// get their keys, and for each ledger its [Keys], which seal and open Fireproof envelopes. [ReadBag] and
// [WriteBag] exchange a ledger's keys with JavaScript Fireproof; [ParseKey] and [Key.Export] with people.
//
// What is guaranteed:
//
//   - What a call that returned nil has written is there after a crash; a crash during the call leaves
//     the old file or the new one. Opening works after every crash.
//   - A lost or damaged key file is an error. It is never replaced by a new key.
//   - Directories are 0700 and files 0600; wider ones are refused with a *[ModeError].
//   - No secret is in any error, log, fmt output or encoding of this package's types. The ways out are
//     [Key.Export], [Identity.Libp2pSeed], [Keys.Derive] and what the user asks [WriteBag] for.
//   - Opening checks the frame, the key, the tag and the IV, and says which of them failed.
//
// Go cannot promise to erase memory; a process that is dumped shows its keys.
package keyring

import (
	"bytes"
	"crypto/sha256"
	"encoding/base32"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"unicode"
	"unicode/utf8"

	"github.com/cockroachdb/pebble/v2/vfs"
)

const (
	deviceName = "device.json" // Identity and Vault
	lockName   = "lock"        // held while files change
	ledgerExt  = ".json"       // of <ledger ID>.json
)

// Ring is the directory of a home's secrets: the device file and one file per ledger. Safe for
// concurrent use. Several processes may have it open and read it; two that change it at one moment get
// ErrBusy, and each change first reads what others have written.
//
// A ledger's file is a Fireproof key bag file with three more members. Copied to a key bag as
// _todo_data_.json, JavaScript reads it:
//
//	{
//	  "id": "@todo-data@",
//	  "clazz": "V2StorageKeyItem",
//	  "item": {
//	    "name": "@todo-data@",
//	    "keys": {
//	      "zDokBvb195EkvicqFw4M9HgwU1867xP4Q6XuCQ6s7Urcg": {
//	        "key": "z12drXXUifSrRnXLGbXg8E",
//	        "fingerPrint": "zDokBvb195EkvicqFw4M9HgwU1867xP4Q6XuCQ6s7Urcg",
//	        "default": true
//	      }
//	    }
//	  },
//	  "fpnode": 1,
//	  "ledger": "todo",
//	  "pinned": "zDokBvb195EkvicqFw4M9HgwU1867xP4Q6XuCQ6s7Urcg"
//	}
type Ring struct {
	opaque
	fs     vfs.FS
	dir    string
	device device

	// changeMu makes one change at a time; it is held across I/O and guards broken.
	changeMu sync.Mutex
	broken   bool // a change ended uncertain

	// mu guards ledgers, which changes only with changeMu held too; it is taken after changeMu.
	mu      sync.RWMutex
	ledgers map[LedgerID]Entry
}

// LedgerID names a ledger everywhere and for ever. Text: FormatID.
type LedgerID = [32]byte

// Entry is one ledger of a Ring.
type Entry struct {
	Name string // local label, see CheckName
	ID   LedgerID
	Keys *Keys // one value per ledger and Ring: it sees keys that are added later
}

// Exists reports whether the directory has the secrets of a home. A caller that finds a store and
// no secrets must not call Open, which would make new ones that do not open the store.
func Exists(fsys vfs.FS, dir string) (bool, error) {
	_, err := fsys.Stat(fsys.PathJoin(dir, deviceName))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

// Open opens the secrets in a directory. On first use it makes the directory, the device's identity and
// the master key. Errors are *ModeError, *FileError, ErrBusy and those of the file system.
func Open(fsys vfs.FS, dir string) (*Ring, error) {
	r := &Ring{fs: fsys, dir: dir}
	if err := r.open(); err != nil {
		return nil, fmt.Errorf("opening keys: %w", err)
	}
	return r, nil
}

func (r *Ring) open() error {
	if err := makeDir(r.fs, r.dir); err != nil {
		return err
	}
	info, err := r.fs.Stat(r.dir)
	if err != nil {
		return err
	}
	if err := checkMode(r.fs, r.dir, info, 0o700); err != nil {
		return err
	}
	exists, err := Exists(r.fs, r.dir)
	if err != nil {
		return err
	}
	if !exists {
		if err := r.firstUse(); err != nil {
			return err
		}
	}
	path := r.fs.PathJoin(r.dir, deviceName)
	data, err := readFile(r.fs, path, true)
	if err != nil {
		return err
	}
	r.device, err = parseDevice(data)
	if err != nil {
		return fileError(path, err)
	}
	return r.load()
}

// firstUse makes the device file, unless another process was faster.
func (r *Ring) firstUse() error {
	// The directory and the one above may be what a killed process made and did not sync.
	parent := r.fs.PathDir(r.dir)
	if err := syncDir(r.fs, r.fs.PathDir(parent)); err != nil && !errors.Is(err, fs.ErrPermission) {
		return err
	}
	if err := syncDir(r.fs, parent); err != nil {
		return err
	}
	lock, err := r.lock()
	if err != nil {
		return err
	}
	defer lock.Close()
	files, err := r.fs.List(r.dir)
	if err != nil {
		return err
	}
	path := r.fs.PathJoin(r.dir, deviceName)
	for _, file := range files {
		if file == deviceName {
			return nil
		}
		if strings.HasSuffix(file, ledgerExt) {
			return &FileError{path, "missing, though there are keys of ledgers", "restore the directory " + r.dir + " from a backup"}
		}
	}
	d, err := newDevice()
	if err != nil {
		return err
	}
	_, err = replaceFile(r.fs, path, d.marshal())
	return err
}

// lock excludes other processes from changing files.
func (r *Ring) lock() (io.Closer, error) {
	path := r.fs.PathJoin(r.dir, lockName)
	lock, err := r.fs.Lock(path)
	if errors.Is(err, syscall.EAGAIN) || errors.Is(err, syscall.EACCES) {
		return nil, ErrBusy
	}
	if err != nil {
		return nil, err
	}
	if modesMatter(r.fs) {
		if err := os.Chmod(path, 0o600); err != nil {
			lock.Close()
			return nil, err
		}
	}
	return lock, nil
}

// load makes r.ledgers what the files say, once the files are durable: a process that was killed may have
// put a key in place and not synced it, and what we seal with that key must not outlive it.
func (r *Ring) load() error {
	if err := syncDir(r.fs, r.dir); err != nil {
		return err
	}
	files, err := r.fs.List(r.dir)
	if err != nil {
		return err
	}
	ledgers := make(map[LedgerID]Entry)
	names := make(map[string]string)
	for _, file := range files {
		if file == deviceName || !strings.HasSuffix(file, ledgerExt) {
			continue
		}
		path := r.fs.PathJoin(r.dir, file)
		if len(ledgers) >= MaxLedgers {
			return &FileError{path, fmt.Sprintf("more than %d ledgers", MaxLedgers), "remove ledgers that are not needed"}
		}
		data, err := readFile(r.fs, path, true)
		if err != nil {
			return err
		}
		name, set, err := parseLedger(data)
		if err != nil {
			return fileError(path, err)
		}
		e := Entry{Name: name, ID: idOf(set)}
		if file != FormatID(e.ID)+ledgerExt {
			return &FileError{path, "named after another ledger than it holds", "rename it to " + FormatID(e.ID) + ledgerExt}
		}
		if other, twice := names[name]; twice {
			return &FileError{path, fmt.Sprintf("ledger %q is also in %s", name, other), "move one of them away"}
		}
		names[name] = file
		if e.Keys = r.ledgers[e.ID].Keys; e.Keys == nil {
			e.Keys = new(Keys)
		}
		e.Keys.set.Store(set)
		ledgers[e.ID] = e
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.ledgers = ledgers
	return nil
}

// Identity returns the device's identity.
func (r *Ring) Identity() Identity { return r.device.identity }

// Vault returns what files at rest are sealed with.
func (r *Ring) Vault() *Vault { return r.device.vault }

// Ledgers returns all ledgers by name.
func (r *Ring) Ledgers() []Entry {
	r.mu.RLock()
	defer r.mu.RUnlock()
	entries := make([]Entry, 0, len(r.ledgers))
	for _, e := range r.ledgers {
		entries = append(entries, e)
	}
	slices.SortFunc(entries, func(a, b Entry) int { return strings.Compare(a.Name, b.Name) })
	return entries
}

// Lookup returns the ledger of that name. The error wraps ErrNotFound.
func (r *Ring) Lookup(name string) (Entry, error) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	for _, e := range r.ledgers {
		if e.Name == name {
			return e, nil
		}
	}
	return Entry{}, fmt.Errorf("ledger %q: %w", name, ErrNotFound)
}

// Create adds a ledger with these keys, the first of which is pinned and the default; with none, a
// new 32-byte key. Errors are those of Adopt.
func (r *Ring) Create(name string, keys []Key) (Entry, error) {
	if len(keys) == 0 {
		key, err := NewKey()
		if err != nil {
			return Entry{}, err
		}
		keys = []Key{key}
	}
	set, err := NewKeys(keys[0], keys[1:]...)
	if err != nil {
		return Entry{}, err
	}
	return r.Adopt(name, set)
}

// Adopt adds a ledger with keys that came with a default of their own, such as those of a key bag. It is
// durable on return. The error wraps ErrName for a bad name, and ErrExists if the name is taken or the
// pinned key, and so the ID, is that of a ledger under another name.
func (r *Ring) Adopt(name string, keys *Keys) (Entry, error) {
	if err := CheckName(name); err != nil {
		return Entry{}, err
	}
	e := Entry{Name: name, Keys: new(Keys)}
	set := keys.set.Load()
	e.Keys.set.Store(set)
	e.ID = idOf(set)
	err := r.change(func() (bool, error) {
		for _, other := range r.ledgers {
			if other.Name == name {
				return false, fmt.Errorf("ledger %q %w", name, ErrExists)
			}
			if other.ID == e.ID {
				return false, fmt.Errorf("the ledger of this key %w, as %q", ErrExists, other.Name)
			}
		}
		if len(r.ledgers) >= MaxLedgers {
			return false, fmt.Errorf("more than %d ledgers", MaxLedgers)
		}
		return replaceFile(r.fs, r.path(e.ID), appendLedger(nil, name, set))
	}, func() { r.ledgers[e.ID] = e })
	if err != nil {
		return Entry{}, fmt.Errorf("adding keys: %w", err)
	}
	return e, nil
}

// AddKey adds a key to a ledger, durably on return, and makes it the default if asked. A key that is
// there already can thus become the default. The error wraps ErrNotFound if there is no such ledger.
func (r *Ring) AddKey(name string, key Key, makeDefault bool) error {
	var e Entry
	var set *keySet
	err := r.change(func() (uncertain bool, err error) {
		if e, err = r.Lookup(name); err != nil {
			return false, err
		}
		if set, err = e.Keys.set.Load().with(key, makeDefault); err != nil {
			return false, err
		}
		return replaceFile(r.fs, r.path(e.ID), appendLedger(nil, name, set))
	}, func() { e.Keys.set.Store(set) })
	if err != nil {
		return fmt.Errorf("adding a key: %w", err)
	}
	return nil
}

// Remove forgets a ledger's keys, durably on return. Whatever was sealed with them and has no other key
// holder is lost. The error wraps ErrNotFound if there is no such ledger.
func (r *Ring) Remove(name string) error {
	var e Entry
	err := r.change(func() (uncertain bool, err error) {
		if e, err = r.Lookup(name); err != nil {
			return false, err
		}
		return removeFile(r.fs, r.path(e.ID))
	}, func() { delete(r.ledgers, e.ID) })
	if err != nil {
		return fmt.Errorf("removing keys: %w", err)
	}
	return nil
}

// change runs write with the lock held and r.ledgers fresh, and if it succeeds, apply with mu held.
func (r *Ring) change(write func() (uncertain bool, err error), apply func()) error {
	r.changeMu.Lock()
	defer r.changeMu.Unlock()
	if r.broken {
		return ErrPoisoned
	}
	lock, err := r.lock()
	if err != nil {
		return err
	}
	defer lock.Close()
	if err := removeTemps(r.fs, r.dir); err != nil {
		return err
	}
	if err := r.load(); err != nil {
		return err
	}
	if uncertain, err := write(); err != nil {
		r.broken = uncertain
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	apply()
	return nil
}

func (r *Ring) path(id LedgerID) string { return r.fs.PathJoin(r.dir, FormatID(id)+ledgerExt) }

// appendLedger appends a ledger's key file.
func appendLedger(dst []byte, name string, set *keySet) []byte {
	return appendKeyItem(dst, "@"+name+"-data@", set,
		fmt.Sprintf(`"fpnode": %d`, fileVersion),
		string(appendJSONString([]byte(`"ledger": `), name)),
		fmt.Sprintf(`"pinned": %q`, set.order[0].fp))
}

// parseLedger accepts what appendLedger writes, to the byte, so that no damage goes unseen.
func parseLedger(b []byte) (name string, set *keySet, err error) {
	var f struct {
		Fpnode int
		Ledger string
	}
	if json.Unmarshal(b, &f) != nil {
		return "", nil, errDamaged
	}
	if f.Fpnode > fileVersion {
		return "", nil, errNewer
	}
	item, err := parseKeyItem(b)
	if err != nil {
		return "", nil, err
	}
	if !bytes.Equal(appendLedger(nil, f.Ledger, item.set), b) || CheckName(f.Ledger) != nil {
		return "", nil, errDamaged
	}
	return f.Ledger, item.set, nil
}

// fileError says what to do about a key file that does not parse.
func fileError(path string, err error) error {
	advice := "restore it from a backup; a new key would not open what this one sealed"
	if errors.Is(err, errNewer) {
		advice = "use the newer fpnode"
	}
	return &FileError{path, err.Error(), advice}
}

// idOf returns the ID of the ledger of these keys.
func idOf(set *keySet) LedgerID { return IDOf(set.order[0].fp) }

// IDOf returns the ID of the ledger whose pinned key has this fingerprint:
// SHA-256("fpnode-compat" ‖ fingerprint). Everybody who holds a ledger's first key computes the same.
func IDOf(pinned Fingerprint) LedgerID {
	return sha256.Sum256(append([]byte("fpnode-compat"), pinned[:]...))
}

var base32Lower = base32.NewEncoding("abcdefghijklmnopqrstuvwxyz234567").WithPadding(base32.NoPadding)

// FormatID returns an ID as 52 characters of lower-case base32 (RFC 4648) without padding.
func FormatID(id LedgerID) string { return base32Lower.EncodeToString(id[:]) }

// ParseID reads what FormatID writes.
func ParseID(text string) (LedgerID, error) {
	b, err := base32Lower.DecodeString(text)
	if err != nil || len(b) != len(LedgerID{}) || FormatID(LedgerID(b)) != text {
		return LedgerID{}, fmt.Errorf("%.64q is not a ledger ID", text)
	}
	return LedgerID(b), nil
}

// CheckName says whether a ledger can have this local name: 1 to MaxNameBytes bytes of UTF-8 without
// control characters, line separators, marks that turn the direction of text, or backslashes; no part
// between slashes is empty, "." or "..", since Fireproof makes a path of the name. The error wraps ErrName.
func CheckName(name string) error {
	reason := ""
	switch {
	case name == "":
		reason = "it is empty"
	case len(name) > MaxNameBytes:
		reason = fmt.Sprintf("it is longer than %d bytes", MaxNameBytes)
	case !utf8.ValidString(name):
		reason = "it is not UTF-8"
	case strings.ContainsFunc(name, unprintable):
		reason = "it has a control character or a backslash"
	case slices.ContainsFunc(strings.Split(name, "/"), func(part string) bool { return part == "" || part == "." || part == ".." }):
		reason = `it has an empty part, "." or ".." between slashes`
	default:
		return nil
	}
	return fmt.Errorf("%.80q: %w: %s", name, ErrName, reason)
}

func unprintable(r rune) bool {
	return r == '\\' || r == '\u2028' || r == '\u2029' || unicode.IsControl(r) || unicode.Is(unicode.Bidi_Control, r)
}
