package keyring

import (
	"bytes"
	"encoding/json"
	"errors"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/google/go-cmp/cmp"
)

// writeFiles puts files into a memory file system, by path.
func writeFiles(t testing.TB, fsys vfs.FS, files map[string][]byte) {
	t.Helper()
	for path, data := range files {
		if err := makeDir(fsys, fsys.PathDir(path)); err != nil {
			t.Fatal(err)
		}
		if _, err := replaceFile(fsys, path, bytes.Clone(data)); err != nil {
			t.Fatal(err)
		}
	}
}

func mustRead(t testing.TB, fsys vfs.FS, path string) []byte {
	t.Helper()
	b, err := readFile(fsys, path, false)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func fingerprints(keys []Key) []string {
	var all []string
	for _, key := range keys {
		all = append(all, key.Fingerprint().String())
	}
	return all
}

// TestBagFixtures reads every key bag file that JavaScript wrote and writes it back byte for byte.
func TestBagFixtures(t *testing.T) {
	paths, err := filepath.Glob("testdata/keybag/*.json")
	if err != nil || len(paths) < 5 {
		t.Fatalf("%d fixtures, %v", len(paths), err)
	}
	for _, path := range paths {
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		item, err := parseKeyItem(data)
		if err != nil {
			t.Errorf("%s: %v", path, err)
			continue
		}
		if got := bagFileName(item.name); got != filepath.Base(path) {
			t.Errorf("%s: %s belongs in %s", path, item.name, got)
		}
		if !bytes.Contains(data, []byte("clazz")) {
			continue // V1
		}
		if diff := cmp.Diff(string(data), string(appendKeyItem(nil, item.name, item.set))); diff != "" {
			t.Errorf("%s (-JavaScript +Go)\n%s", path, diff)
		}
	}
}

func TestReadBag(t *testing.T) {
	rot, err := ReadBag(vfs.Default, "testdata/keybag", "rot-ledger")
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"zEsR2BM8aTcbsfv8AToCsSss7ALuZoUg7gMUSGQcn49yJ", "zFVmB92J6BSVFKNVtdgLda2JaJiGibbdTrY9huMSh6JhA"}
	if diff := cmp.Diff(want, fingerprints(rot.All())); diff != "" {
		t.Errorf("keys of a rotated ledger (-want +got)\n%s", diff)
	}
	if got := rot.Default().Fingerprint().String(); got != want[1] {
		t.Errorf("default %s, want the newer", got)
	}
	if got := rot.Pinned().Fingerprint().String(); got != want[0] {
		t.Errorf("pinned %s, want the older", got)
	}
	// V1 with a colon in the name, as 0.19.125 wrote it.
	old, err := ReadBag(vfs.Default, "testdata/keybag", "old-ledger")
	if err != nil || old.Default().Export() != "z51xM43XE4Jo7Nzaxvi4eKZ" {
		t.Errorf("key of 0.19: %v", err)
	}
	if _, err := ReadBag(vfs.Default, "testdata/keybag", "nobody"); !errors.Is(err, ErrNotFound) {
		t.Errorf("no such ledger: %v", err)
	}
	if _, err := ReadBag(vfs.Default, "testdata/none", "nobody"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no such directory: %v", err)
	}
	if _, err := OpenBag(vfs.Default, "testdata/golden.json"); err == nil {
		t.Error("a file passes as a key bag")
	}
	bag, err := OpenBag(vfs.Default, "testdata/keybag")
	if err != nil {
		t.Fatal(err)
	}
	names, err := bag.Ledgers()
	if diff := cmp.Diff([]string{"32byte-key", "basic-ledger", "files-ledger", "old-ledger", "random-iv", "rot-ledger"}, names); diff != "" || err != nil {
		t.Errorf("ledgers (-want +got)\n%s%v", diff, err)
	}
}

// TestBagNames compares with what JavaScript makes of odd names.
func TestBagNames(t *testing.T) {
	var vectors []struct{ Name, File, Text string }
	b, err := os.ReadFile("testdata/names.json")
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(b, &vectors); err != nil || len(vectors) == 0 {
		t.Fatalf("%d vectors, %v", len(vectors), err)
	}
	key := mustKey(t, sequence(16))
	for _, v := range vectors {
		name := "@" + v.Name + "-data@"
		if got := bagFileName(name); got != v.File {
			t.Errorf("%q is in file %s, want %s", v.Name, got, v.File)
		}
		if diff := cmp.Diff(v.Text, string(appendKeyItem(nil, name, mustKeys(t, key).set.Load()))); diff != "" {
			t.Errorf("%q (-JavaScript +Go)\n%s", v.Name, diff)
		}
		item, err := parseKeyItem([]byte(v.Text))
		if err != nil || item.name != name {
			t.Errorf("%q reads as %q, %v", v.Name, item.name, err)
		}
	}
}

func TestWriteBag(t *testing.T) {
	fsys := vfs.NewMem()
	a, b := mustKey(t, sequence(16)), mustKey(t, sequence(32))
	first := mustKeys(t, a)
	if err := WriteBag(fsys, "a/keybag", "todo", first); err != nil {
		t.Fatal(err)
	}
	const path = "a/keybag/_todo_data_.json"
	once := mustRead(t, fsys, path)
	if err := WriteBag(fsys, "a/keybag", "todo", first); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(once, mustRead(t, fsys, path)) {
		t.Error("writing twice changes the file")
	}
	// Other keys for the same ledger: both stay, ours becomes the default.
	if err := WriteBag(fsys, "a/keybag", "todo", mustKeys(t, b)); err != nil {
		t.Fatal(err)
	}
	merged, err := ReadBag(fsys, "a/keybag", "todo")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(fingerprints([]Key{a, b}), fingerprints(merged.All())); diff != "" || !merged.Default().Equal(b) {
		t.Errorf("default %v, keys (-want +got)\n%s", merged.Default(), diff)
	}
	// A file of 0.19 is carried over.
	writeFiles(t, fsys, map[string][]byte{path: []byte(`{"name":"@todo:data@","key":"` + a.Export() + `"}`)})
	if err := WriteBag(fsys, "a/keybag", "todo", mustKeys(t, b, a)); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(appendKeyItem(nil, "@todo-data@", merged.set.Load())), string(mustRead(t, fsys, path))); diff != "" {
		t.Errorf("V1 and ours (-want +got)\n%s", diff)
	}
	if err := WriteBag(fsys, "a/keybag", "../up", first); !errors.Is(err, ErrName) {
		t.Errorf("name with ..: %v", err)
	}
}

// JavaScript keeps "a-b" and "a_b" in one file; whoever writes last wins. Here nothing is overwritten.
func TestBagCollision(t *testing.T) {
	fsys := vfs.NewMem()
	if err := WriteBag(fsys, "bag", "a-b", mustKeys(t, newKey(t))); err != nil {
		t.Fatal(err)
	}
	before := mustRead(t, fsys, "bag/_a_b_data_.json")
	var collision *CollisionError
	if err := WriteBag(fsys, "bag", "a_b", mustKeys(t, newKey(t))); !errors.As(err, &collision) || collision.Have != "@a-b-data@" || collision.Hint() == "" {
		t.Errorf("writing: %v", err)
	}
	if !bytes.Equal(before, mustRead(t, fsys, "bag/_a_b_data_.json")) {
		t.Error("the other ledger's keys changed")
	}
	if _, err := ReadBag(fsys, "bag", "a_b"); !errors.As(err, &collision) {
		t.Errorf("reading: %v", err)
	}
}

func TestParseKeyItemRefuses(t *testing.T) {
	a, b := mustKey(t, sequence(16)), mustKey(t, sequence(32))
	entry := func(k Key, rest string) string {
		fp := k.Fingerprint().String()
		return `"` + fp + `":{"key":"` + k.Export() + `","fingerPrint":"` + fp + `"` + rest + `}`
	}
	bare := func(entries ...string) string {
		return `{"name":"@x-data@","keys":{` + strings.Join(entries, ",") + `}}`
	}
	fpA, fpB := a.Fingerprint().String(), b.Fingerprint().String()
	tests := []struct {
		name, text string
		ok         bool
	}{
		{"bare V2", bare(entry(a, `,"default":true`)), true},
		{"one key, not marked", bare(entry(a, ``)), true},
		{"two, one marked", bare(entry(a, `,"default":false`), entry(b, `,"default":true`)), true},
		{"V1", `{"name":"@x:data@","key":"` + a.Export() + `"}`, true},
		{"more members", `{"id":"@x-data@","clazz":"V2StorageKeyItem","item":` + bare(entry(a, ``)) + `,"more":1}`, true},
		{"not JSON", `{`, false},
		{"nothing", ``, false},
		{"array", `[]`, false},
		{"trailing", bare(entry(a, ``)) + `x`, false},
		{"no name", `{"key":"` + a.Export() + `"}`, false},
		{"no key", `{"name":"@x-data@"}`, false},
		{"key and keys", `{"name":"@x-data@","key":"` + a.Export() + `","keys":{}}`, false},
		{"keys empty", bare(), false},
		{"keys array", `{"name":"@x-data@","keys":[]}`, false},
		{"keys null", `{"name":"@x-data@","keys":null}`, false},
		{"two defaults", bare(entry(a, `,"default":true`), entry(b, `,"default":true`)), false},
		{"two, none marked", bare(entry(a, ``), entry(b, ``)), false},
		{"same key twice", bare(entry(a, ``), entry(a, `,"default":true`)), false},
		{"fingerprint of another key", strings.ReplaceAll(bare(entry(a, ``)), fpA, fpB), false},
		{"fingerprints disagree", strings.Replace(bare(entry(a, ``)), fpA, fpB, 1), false},
		{"bad key", strings.Replace(bare(entry(a, ``)), a.Export(), "z0", 1), false},
		{"device item", `{"id":"x","clazz":"DeviceIdKeyBagItem","item":{}}`, false},
		{"names disagree", `{"id":"@y-data@","clazz":"V2StorageKeyItem","item":` + bare(entry(a, ``)) + `}`, false},
		{"deep", strings.Repeat(`{"item":`, 100_000), false},
	}
	for _, test := range tests {
		_, err := parseKeyItem([]byte(test.text))
		if (err == nil) != test.ok {
			t.Errorf("%s: %v, want ok %t", test.name, err, test.ok)
		}
		if err != nil && leaksBase58(err.Error(), a.s().raw, b.s().raw) {
			t.Errorf("%s: the error shows a key", test.name)
		}
	}
	// On disk the same is a *FileError with the place and a hint, and shows no key.
	fsys := vfs.NewMem()
	writeFiles(t, fsys, map[string][]byte{"bag/_x_data_.json": []byte(bare(entry(a, ``)) + "x")})
	var file *FileError
	if _, err := ReadBag(fsys, "bag", "x"); !errors.As(err, &file) || file.Path != "bag/_x_data_.json" || file.Hint() == "" {
		t.Errorf("damaged file: %v", err)
	}
}

// drawnExample returns the first indented block of the comment of a type.
func drawnExample(t *testing.T, file, typeName string) []byte {
	t.Helper()
	f, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.ParseComments)
	if err != nil {
		t.Fatal(err)
	}
	for _, decl := range f.Decls {
		g, ok := decl.(*ast.GenDecl)
		if !ok || g.Tok != token.TYPE || g.Specs[0].(*ast.TypeSpec).Name.Name != typeName {
			continue
		}
		var block []string
		for _, line := range strings.Split(g.Doc.Text(), "\n") {
			if code, ok := strings.CutPrefix(line, "\t"); ok {
				block = append(block, code)
			} else if block != nil {
				break
			}
		}
		return []byte(strings.Join(block, "\n"))
	}
	t.Fatalf("no type %s in %s", typeName, file)
	return nil
}

// TestDrawnFiles reads the examples in the comments of Bag and Ring.
func TestDrawnFiles(t *testing.T) {
	b := drawnExample(t, "bag.go", "Bag")
	item, err := parseKeyItem(b)
	if err != nil {
		t.Fatalf("the example of Bag: %v\n%s", err, b)
	}
	if diff := cmp.Diff(string(b), string(appendKeyItem(nil, "@todo-data@", item.set))); diff != "" {
		t.Errorf("the example of Bag is not what is written (-example +written)\n%s", diff)
	}
	b = drawnExample(t, "ring.go", "Ring")
	name, set, err := parseLedger(b)
	if err != nil || name != "todo" || set.def.fp != item.set.def.fp {
		t.Errorf("the example of Ring: %q, %v\n%s", name, err, b)
	}
}

func FuzzParseKeyItem(f *testing.F) {
	paths, _ := filepath.Glob("testdata/keybag/*.json")
	for _, path := range paths {
		b, err := os.ReadFile(path)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Add(appendLedger(nil, "todo", mustKeys(f, mustKey(f, sequence(32)), mustKey(f, sequence(16))).set.Load()))
	f.Fuzz(func(t *testing.T, b []byte) {
		item, err := parseKeyItem(b)
		if err != nil {
			return
		}
		written := appendKeyItem(nil, item.name, item.set)
		again, err := parseKeyItem(written)
		if err != nil || again.name != item.name || !bytes.Equal(appendKeyItem(nil, again.name, again.set), written) {
			t.Fatalf("reads %q, writes what it reads as %q, %v", item.name, again.name, err)
		}
		if name, set, err := parseLedger(b); err == nil && !bytes.Equal(appendLedger(nil, name, set), b) {
			t.Fatal("a ledger's key file has two spellings")
		}
	})
}
