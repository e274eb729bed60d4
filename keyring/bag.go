package keyring

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"unicode/utf16"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// Bag is a Fireproof key bag: a directory with one JSON file per key name. A ledger's documents and
// files are sealed under the keys named "@<ledger>-data@"; no other name is needed to read a ledger.
//
// Three shapes are read: what 0.24 writes,
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
//	  }
//	}
//
// its item alone, and {"name", "key"} of 0.19, where names are "@todo:data@". The first is written,
// byte for byte as JavaScript does: two spaces, no newline at the end.
type Bag struct {
	fs  vfs.FS
	dir string
}

// OpenBag returns the key bag in a directory that exists.
func OpenBag(fsys vfs.FS, dir string) (*Bag, error) {
	info, err := fsys.Stat(dir)
	if err != nil {
		return nil, fmt.Errorf("opening key bag: %w", err)
	}
	if !info.IsDir() {
		return nil, fmt.Errorf("opening key bag: %s is not a directory", dir)
	}
	return &Bag{fs: fsys, dir: dir}, nil
}

// ReadBag returns the keys of one ledger in the key bag of a directory: in the order of the file, which
// is that in which they were made, with the file's default. The error wraps ErrNotFound if the bag
// has no keys for the ledger, and is a *CollisionError if another ledger's are in their place.
func ReadBag(fsys vfs.FS, dir, ledger string) (*Keys, error) {
	b, err := OpenBag(fsys, dir)
	if err != nil {
		return nil, err
	}
	return b.Keys(ledger)
}

// WriteBag adds the keys of a ledger to the key bag of a directory, which is made if it is missing.
// Keys already there for the ledger stay, but the default of keys becomes the default. Another ledger's
// keys under the same file name are a *CollisionError and stay as they are.
func WriteBag(fsys vfs.FS, dir, ledger string, keys *Keys) error {
	if err := CheckName(ledger); err != nil {
		return err
	}
	if err := makeDir(fsys, dir); err != nil {
		return fmt.Errorf("making key bag: %w", err)
	}
	b := &Bag{fs: fsys, dir: dir}
	set := keys.set.Load()
	there, err := b.Keys(ledger)
	if err != nil && !errors.Is(err, ErrNotFound) {
		return err
	}
	if there != nil {
		ours := set
		set = there.set.Load()
		for _, s := range ours.order {
			if set, err = set.with(Key{s: hide(s)}, s == ours.def); err != nil {
				return err
			}
		}
	}
	data := appendKeyItem(nil, "@"+ledger+"-data@", set)
	if _, err := replaceFile(fsys, b.path(ledger), data); err != nil {
		return fmt.Errorf("writing key bag: %w", err)
	}
	return nil
}

// Keys is ReadBag on an open bag.
func (b *Bag) Keys(ledger string) (*Keys, error) {
	path := b.path(ledger)
	data, err := readFile(b.fs, path, false)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("keys of ledger %q in key bag %s: %w", ledger, b.dir, ErrNotFound)
	}
	if err != nil {
		return nil, fmt.Errorf("reading key bag: %w", err)
	}
	item, err := parseKeyItem(data)
	if err != nil {
		return nil, &FileError{path, err.Error(), "restore the key bag from a backup, or name another with --keybag"}
	}
	if item.name != "@"+ledger+"-data@" && item.name != "@"+ledger+":data@" {
		return nil, &CollisionError{Path: path, Want: "@" + ledger + "-data@", Have: item.name}
	}
	keys := new(Keys)
	keys.set.Store(item.set)
	return keys, nil
}

// Ledgers returns the names of the ledgers that the bag has keys for, sorted. Files that are no key
// files are passed over.
func (b *Bag) Ledgers() ([]string, error) {
	files, err := b.fs.List(b.dir)
	if err != nil {
		return nil, fmt.Errorf("reading key bag: %w", err)
	}
	if len(files) > MaxBagFiles {
		return nil, fmt.Errorf("reading key bag: more than %d files in %s", MaxBagFiles, b.dir)
	}
	var names []string
	for _, file := range files {
		if !strings.HasSuffix(file, "_data_.json") {
			continue
		}
		data, err := readFile(b.fs, b.fs.PathJoin(b.dir, file), false)
		if err != nil {
			continue
		}
		item, err := parseKeyItem(data)
		if err != nil || len(item.name) < len("@-data@") || item.name[0] != '@' {
			continue
		}
		name := item.name[1 : len(item.name)-len("-data@")]
		if item.name == "@"+name+"-data@" || item.name == "@"+name+":data@" {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return slices.Compact(names), nil
}

func (b *Bag) path(ledger string) string {
	return b.fs.PathJoin(b.dir, bagFileName("@"+ledger+"-data@"))
}

// bagFileName replaces every UTF-16 unit that is not an ASCII letter or digit by "_".
// It maps "a-b" and "a_b", and ":data" and "-data", to one name.
func bagFileName(name string) string {
	var b strings.Builder
	for _, unit := range utf16.Encode([]rune(name)) {
		switch {
		case '0' <= unit && unit <= '9', 'a' <= unit && unit <= 'z', 'A' <= unit && unit <= 'Z':
			b.WriteByte(byte(unit))
		default:
			b.WriteByte('_')
		}
	}
	return b.String() + ".json"
}

// CollisionError reports a key bag file that holds the keys of another ledger, whose name Fireproof
// maps to the same file. JavaScript would overwrite or misuse them; here it stops.
type CollisionError struct {
	Path string
	Want string // key name that belongs to this ledger
	Have string // key name in the file
}

func (e *CollisionError) Error() string {
	return fmt.Sprintf("%s holds the keys %q, not %q", e.Path, e.Have, e.Want)
}

// Hint returns what the user can do about it.
func (e *CollisionError) Hint() string {
	return "Fireproof keeps both names in one file; use another key bag directory, or another ledger name"
}

var (
	errDamaged = errors.New("damaged, or not a key file")
	errNewer   = errors.New("written by a newer version of fpnode")
)

// keyItem is a parsed key bag file.
type keyItem struct {
	name string // "@todo-data@"
	set  *keySet
}

// parseKeyItem reads any of the shapes that Bag documents. Fingerprints are computed and compared, and
// exactly one key must be the default, unless there is one key only. Errors quote nothing of the file.
func parseKeyItem(b []byte) (keyItem, error) {
	type body struct {
		Name string
		Key  *string
		Keys json.RawMessage
	}
	var f struct {
		body
		ID    string
		Clazz *string
		Item  body
	}
	if json.Unmarshal(b, &f) != nil {
		return keyItem{}, errDamaged
	}
	inner := f.body
	if f.Clazz != nil {
		inner = f.Item
		if *f.Clazz != "V2StorageKeyItem" || f.ID != inner.Name {
			return keyItem{}, errDamaged
		}
	}
	if inner.Name == "" || (inner.Key == nil) == (inner.Keys == nil) {
		return keyItem{}, errDamaged
	}
	if inner.Key == nil {
		set, err := parseKeySet(inner.Keys)
		return keyItem{inner.Name, set}, err
	}
	key, err := ParseKey(*inner.Key)
	if err != nil {
		return keyItem{}, errDamaged
	}
	set, err := new(keySet).with(key, true)
	return keyItem{inner.Name, set}, err
}

// parseKeySet reads the object of keys by fingerprint, in its order.
func parseKeySet(b []byte) (*keySet, error) {
	dec := json.NewDecoder(bytes.NewReader(b))
	if token, err := dec.Token(); err != nil || token != json.Delim('{') {
		return nil, errDamaged
	}
	set := &keySet{}
	defaults := 0
	for dec.More() {
		fp, err := dec.Token()
		if err != nil {
			return nil, errDamaged
		}
		var entry struct {
			Key         string
			FingerPrint string
			Default     bool
		}
		if dec.Decode(&entry) != nil {
			return nil, errDamaged
		}
		key, err := ParseKey(entry.Key)
		if err != nil || fp != entry.FingerPrint || entry.FingerPrint != key.Fingerprint().String() {
			return nil, errDamaged
		}
		if set.byID[key.Fingerprint()] != nil {
			return nil, errDamaged
		}
		if set, err = set.with(key, entry.Default); err != nil {
			return nil, err
		}
		if entry.Default {
			defaults++
		}
	}
	switch {
	case len(set.order) == 0:
		return nil, errDamaged
	case defaults > 1:
		return nil, errors.New("more than one key is marked as default")
	case defaults == 0 && len(set.order) > 1:
		return nil, errors.New("none of several keys is marked as default")
	}
	return set, nil
}

// appendKeyItem appends the key bag file of these keys as JavaScript writes it. Members may follow the
// three that it has: JavaScript ignores them.
func appendKeyItem(dst []byte, name string, set *keySet, members ...string) []byte {
	dst = appendJSONString(append(dst, "{\n  \"id\": "...), name)
	dst = append(dst, ",\n  \"clazz\": \"V2StorageKeyItem\",\n  \"item\": {\n    \"name\": "...)
	dst = appendJSONString(dst, name)
	dst = append(dst, ",\n    \"keys\": {"...)
	for i, s := range set.order {
		if i > 0 {
			dst = append(dst, ',')
		}
		dst = fmt.Appendf(dst, "\n      %q: {\n        \"key\": %q,\n        \"fingerPrint\": %q,\n        \"default\": %t\n      }",
			s.fp.String(), formatBase58(s.raw), s.fp.String(), s == set.def)
	}
	dst = append(dst, "\n    }\n  }"...)
	for _, member := range members {
		dst = append(append(dst, ",\n  "...), member...)
	}
	return append(dst, "\n}"...)
}

// appendJSONString quotes as JSON.stringify does (ECMA-262, QuoteJSONString), which leaves all but
// quotes, backslashes and control characters as they are.
func appendJSONString(dst []byte, s string) []byte {
	dst = append(dst, '"')
	for i := range len(s) {
		switch c := s[i]; {
		case c == '"' || c == '\\':
			dst = append(dst, '\\', c)
		case c >= 0x20:
			dst = append(dst, c)
		case c >= '\b' && c <= '\r' && c != '\v':
			dst = append(dst, '\\', "btn\x00fr"[c-'\b'])
		default:
			dst = fmt.Appendf(dst, "\\u%04x", c)
		}
	}
	return append(dst, '"')
}
