package node

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"
	"github.com/google/go-cmp/cmp"
	"github.com/ipfs/go-cid"

	"fpnode/api"
	"fpnode/internal/car"
	"fpnode/internal/dagcbor"
	"fpnode/keyring"
)

// openNode opens a home in a directory of the test, or the one given.
func openNode(t testing.TB, cfg Config) *Node {
	t.Helper()
	if cfg.Home == "" {
		cfg.Home = filepath.Join(t.TempDir(), "home")
		cfg.Create = true
	}
	n, err := Open(context.Background(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := n.Close(); err != nil {
			t.Error(err)
		}
	})
	return n
}

// everything is what a home shows to its user.
func everything(t testing.TB, n *Node) []string {
	t.Helper()
	ctx := context.Background()
	c := n.Client()
	var all []string
	add := func(v any, err error) {
		if err != nil {
			t.Fatal(err)
		}
		text, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, string(text))
	}
	for l, err := range c.Ledgers(ctx) {
		add(l, err)
		for d, err := range c.Docs(ctx, l.Name, api.DocsOptions{IncludeDeleted: true}) {
			add(d, err)
		}
	}
	for k, err := range c.Keys(ctx, "") {
		add(k, err)
	}
	return all
}

const (
	jsStore = "../cmd/fpnode/bundled/store/shared"
	jsBag   = "../cmd/fpnode/bundled/keybag"
	jsCAR   = "data/baembeihtuurespnjl5fdz3l3gv3t4a3ratgvemknix4oqygqgnbmad6xki.car"
)

// jsCopy is a copy of the ledger that JavaScript wrote, to be damaged.
func jsCopy(t testing.TB) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "shared")
	if err := os.CopyFS(dir, os.DirFS(jsStore)); err != nil {
		t.Fatal(err)
	}
	return dir
}

func change(t testing.TB, path string, f func([]byte) []byte) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, f(b), 0o600); err != nil {
		t.Fatal(err)
	}
}

func abs(t testing.TB, path string) string {
	t.Helper()
	p, err := filepath.Abs(path)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// TestBadInputIsRefused: each row is something that cannot be taken. It gets
// its code, a message, a hint, and nothing changes.
func TestBadInputIsRefused(t *testing.T) {
	n := openNode(t, Config{})
	c := n.Client()
	ctx := t.Context()
	if _, err := c.Create(ctx, "notes"); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Put(ctx, "notes", json.RawMessage(`{"_id":"a","n":1}`)); err != nil {
		t.Fatal(err)
	}
	put := func(doc string) func() error {
		return func() error { _, err := c.Put(ctx, "notes", json.RawMessage(doc)); return err }
	}
	load := func(from, bag string) func() error {
		return func() error {
			_, err := c.Import(ctx, api.ImportRequest{Ledger: "new", From: abs(t, from), KeyBag: abs(t, bag)}, nil)
			return err
		}
	}
	damaged := func(f func([]byte) []byte) func() error {
		dir := jsCopy(t)
		change(t, filepath.Join(dir, jsCAR), f)
		return load(dir, jsBag)
	}
	flipped := func(region string) func() error {
		return damaged(func(b []byte) []byte {
			e, err := keyring.ParseEnvelope(b)
			if err != nil {
				t.Fatal(err)
			}
			at := map[string]int{
				"frame":      0,
				"name of iv": bytes.Index(b, []byte("iv")),
				"iv":         bytes.Index(b, e.IV[:]),
				"key id":     bytes.Index(b, e.KeyID[:]),
				"length":     int(e.DataOffset) - 1,
				"first byte": int(e.DataOffset),
				"middle":     int(e.DataOffset) + int(e.DataLen)/2,
				"tag":        bytes.LastIndex(b, []byte("\x65keyId")) - 1,
			}[region]
			b[at] ^= 1
			return b
		})
	}
	wrongBag := t.TempDir()
	key, err := keyring.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	keys, err := keyring.NewKeys(key)
	if err != nil {
		t.Fatal(err)
	}
	if err := keyring.WriteBag(vfs.Default, wrongBag, "shared", keys); err != nil {
		t.Fatal(err)
	}

	for _, row := range []struct {
		name string
		do   func() error
		want api.Code
	}{
		{"not JSON", put(`"text"`), api.BadInput},
		{"an id with a character that JS cannot hold", put(`{"_id":"käse"}`), api.BadInput},
		{"an id that is a number", put(`{"_id":7}`), api.BadInput},
		{"an id that is too long", put(`{"_id":"` + strings.Repeat("x", 4097) + `"}`), api.TooLarge},
		{"a number that is infinite", put(`{"n":1e999}`), api.BadInput},
		{"a name twice", put(`{"n":1,"n":2}`), api.BadInput},
		{"half a character", put(`{"s":"\ud800"}`), api.BadInput},
		{"too large a document", put(`{"s":"` + strings.Repeat("x", 17<<20) + `"}`), api.TooLarge},
		{"too deep a document", put(`{"d":` + strings.Repeat("[", 5000) + strings.Repeat("]", 5000) + `}`), api.TooLarge},

		{"wrong key bag", load(jsStore, wrongBag), api.WrongKey},
		{"no CAR of that name", func() error {
			dir := jsCopy(t)
			if err := os.Remove(filepath.Join(dir, "data/baembeid34t6krurzldwhcnah4kwgqbyonhwtpbw2vkkosjzn4ia5dpjqua.car")); err != nil {
				return err
			}
			return load(dir, jsBag)()
		}, api.Corrupt},
		{"truncated CAR", damaged(func(b []byte) []byte { return b[:len(b)/2] }), api.Corrupt},
		{"empty CAR", damaged(func(b []byte) []byte { return nil }), api.Corrupt},
		{"a CAR with more behind it", damaged(func(b []byte) []byte { return append(b, 0) }), api.Corrupt},
		{"flipped byte: frame", flipped("frame"), api.Corrupt},
		{"flipped byte: name of iv", flipped("name of iv"), api.Corrupt},
		{"flipped byte: iv", flipped("iv"), api.Corrupt},
		{"flipped byte: key id", flipped("key id"), api.WrongKey},
		{"flipped byte: length", flipped("length"), api.Corrupt},
		{"flipped byte: first byte", flipped("first byte"), api.Corrupt},
		{"flipped byte: middle", flipped("middle"), api.Corrupt},
		{"flipped byte: tag", flipped("tag"), api.Corrupt},
		{"meta that is no JSON", func() error {
			dir := jsCopy(t)
			change(t, filepath.Join(dir, "meta/main.json"), func([]byte) []byte { return []byte("[{") })
			return load(dir, jsBag)()
		}, api.Corrupt},
		{"CBOR bomb: an array of 2^56 items", load(bomb(t, keys, []byte{0x9b, 1, 0, 0, 0, 0, 0, 0, 0})), api.Corrupt},
		{"CBOR bomb: bytes of 2^56", load(bomb(t, keys, []byte{0x5b, 1, 0, 0, 0, 0, 0, 0, 0})), api.Corrupt},
		{"CBOR bomb: a million levels", load(bomb(t, keys, bytes.Repeat([]byte{0x81}, 1<<20))), api.Corrupt},

		{"an unknown ledger", func() error { _, err := c.Get(ctx, "nots", "a"); return err }, api.NotFound},
		{"a name that is taken", func() error { _, err := c.Create(ctx, "notes"); return err }, api.Conflict},
		{"a name that is no name", func() error { _, err := c.Create(ctx, "../x"); return err }, api.Misuse},
		{"no key", func() error {
			_, err := c.ImportKey(ctx, api.KeyImportRequest{Ledger: "new", Key: "open sesame"})
			return err
		}, api.BadInput},
		{"a clock of nowhere", func() error {
			rows, _, err := c.Changes(ctx, "notes", []string{"yesterday"}, 0)
			if err == nil {
				for range rows {
				}
			}
			return err
		}, api.Misuse},
	} {
		t.Run(row.name, func(t *testing.T) {
			before := everything(t, n)
			start := time.Now()
			err := row.do()
			e, ok := err.(*api.Error)
			if !ok {
				t.Fatalf("%T: %v", err, err)
			}
			if e.Code != row.want {
				t.Errorf("code %s, want %s: %s", e.Code, row.want, e.Message)
			}
			if e.Message == "" || e.Hint == "" {
				t.Errorf("message %q, hint %q", e.Message, e.Hint)
			}
			if strings.Contains(e.Message+e.Hint, "sesame") {
				t.Errorf("the error repeats a secret: %s", e.Message)
			}
			if d := time.Since(start); d > 10*time.Second {
				t.Errorf("it took %v", d)
			}
			if diff := cmp.Diff(before, everything(t, n)); diff != "" {
				t.Errorf("something changed:\n%s", diff)
			}
		})
	}
}

// bomb makes a ledger directory whose only event is block, and its key bag.
func bomb(t testing.TB, keys *keyring.Keys, block []byte) (dir, bag string) {
	t.Helper()
	event := dagcbor.Sum(block)
	header := car.Header{Head: []cid.Cid{event}, HasHead: true}.Encode()
	plain := car.Append(nil, []cid.Cid{dagcbor.Sum(header)}, []car.Block{{CID: event, Data: block}, {CID: dagcbor.Sum(header), Data: header}})
	sealed, err := keys.Seal(plain)
	if err != nil {
		t.Fatal(err)
	}
	name := car.NameOf(plain)
	meta := car.EncodeMeta([]cid.Cid{name}, nil)
	base := t.TempDir()
	dir, bag = filepath.Join(base, "shared"), filepath.Join(base, "bag")
	if err := keyring.WriteBag(vfs.Default, bag, "shared", keys); err != nil {
		t.Fatal(err)
	}
	for path, content := range map[string][]byte{
		"data/" + name.String() + ".car": sealed,
		"meta/main.json":                 fmt.Appendf(nil, `[{"cid":%q,"parents":[],"data":"M%s"}]`, dagcbor.Sum(meta), base64.StdEncoding.EncodeToString(meta)),
	} {
		path = filepath.Join(dir, path)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir, bag
}

// TestUnusableHomesAreRefused: each row makes a home that must not be opened.
func TestUnusableHomesAreRefused(t *testing.T) {
	for _, row := range []struct {
		name  string
		spoil func(t *testing.T, home string)
		want  api.Code
	}{
		{"locked by another", func(t *testing.T, home string) { openNode(t, Config{Home: home}) }, api.Locked},
		{"a newer store version", func(t *testing.T, home string) {
			change(t, filepath.Join(home, versionFile), func(b []byte) []byte { return []byte("fpnode store 999\n") })
		}, api.NewerStore},
		{"a home that others can read", func(t *testing.T, home string) { chmod(t, home, 0o755) }, api.NotPermitted},
		{"keys that others can read", func(t *testing.T, home string) { chmod(t, filepath.Join(home, keysDir), 0o750) }, api.NotPermitted},
		{"a key that others can read", func(t *testing.T, home string) {
			files, err := filepath.Glob(filepath.Join(home, keysDir, "*.json"))
			if err != nil || len(files) == 0 {
				t.Fatalf("no key file: %v", err)
			}
			chmod(t, files[0], 0o644)
		}, api.NotPermitted},
		{"a store without keys", func(t *testing.T, home string) {
			if err := os.RemoveAll(filepath.Join(home, keysDir)); err != nil {
				t.Fatal(err)
			}
		}, api.WrongKey},
		{"a damaged key file", func(t *testing.T, home string) {
			change(t, filepath.Join(home, keysDir, "device.json"), func(b []byte) []byte { return b[:len(b)/2] })
		}, api.Corrupt},
		{"no home at all", func(t *testing.T, home string) {
			if err := os.RemoveAll(home); err != nil {
				t.Fatal(err)
			}
		}, api.NoStore},
	} {
		t.Run(row.name, func(t *testing.T) {
			home := filepath.Join(t.TempDir(), "home")
			n, err := Open(t.Context(), Config{Home: home, Create: true})
			if err != nil {
				t.Fatal(err)
			}
			if err := n.Create(t.Context(), "notes"); err != nil {
				t.Fatal(err)
			}
			if err := n.Close(); err != nil {
				t.Fatal(err)
			}
			row.spoil(t, home)
			before := names(t, home)
			_, err = Open(t.Context(), Config{Home: home})
			e, ok := err.(*api.Error)
			if !ok {
				t.Fatalf("%T: %v", err, err)
			}
			if e.Code != row.want || e.Hint == "" {
				t.Errorf("code %s, want %s: %s; hint: %s", e.Code, row.want, e.Message, e.Hint)
			}
			if diff := cmp.Diff(before, names(t, home)); diff != "" {
				t.Errorf("files came or went:\n%s", diff)
			}
		})
	}
}

func chmod(t *testing.T, path string, mode os.FileMode) {
	t.Helper()
	if err := os.Chmod(path, mode); err != nil {
		t.Fatal(err)
	}
}

// names lists the files of a home.
func names(t *testing.T, home string) []string {
	t.Helper()
	var list []string
	filepath.Walk(home, func(path string, _ os.FileInfo, err error) error {
		if err == nil {
			list = append(list, path)
		}
		return nil
	})
	return list
}

// TestForeignDirectoryIsLeftAlone: a directory of something else is no place
// for a home.
func TestForeignDirectoryIsLeftAlone(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "thesis.tex"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := Open(t.Context(), Config{Home: dir, Create: true})
	if api.CodeOf(err) != api.Conflict {
		t.Error(err)
	}
	if left := names(t, dir); len(left) != 2 {
		t.Errorf("it holds %v", left)
	}
}

// TestFullDisk: a write is refused as such, nothing of it is there, reads go
// on, and when there is room again writes do.
func TestFullDisk(t *testing.T) {
	var full atomic.Bool
	fs := errorfs.Wrap(vfs.NewMem(), errorfs.InjectorFunc(func(op errorfs.Op) error {
		if full.Load() && op.Kind.ReadOrWrite() == errorfs.OpIsWrite && strings.Contains(op.Path, ".seg") {
			return syscall.ENOSPC
		}
		return nil
	}))
	n := openNode(t, Config{Home: "/home/x", Create: true, FS: fs, ReserveBytes: -1})
	c := n.Client()
	ctx := t.Context()
	if _, err := c.Create(ctx, "notes"); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Put(ctx, "notes", json.RawMessage(`{"_id":"a"}`)); err != nil {
		t.Fatal(err)
	}
	before := everything(t, n)
	full.Store(true)
	_, err := c.Put(ctx, "notes", json.RawMessage(`{"_id":"b"}`))
	if api.CodeOf(err) != api.DiskFull {
		t.Fatalf("code %s: %v", api.CodeOf(err), err)
	}
	if diff := cmp.Diff(before, everything(t, n)); diff != "" {
		t.Errorf("something changed:\n%s", diff)
	}
	full.Store(false)
	if _, err := c.Put(ctx, "notes", json.RawMessage(`{"_id":"c"}`)); err != nil {
		t.Errorf("with room again: %v", err)
	}
}
