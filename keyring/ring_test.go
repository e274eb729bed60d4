package keyring

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"
	"github.com/google/go-cmp/cmp"
)

func openRing(t testing.TB, fsys vfs.FS, dir string) *Ring {
	t.Helper()
	r, err := Open(fsys, dir)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// contents describes a ring: each ledger with its keys, the default in parentheses.
func contents(r *Ring) []string {
	var all []string
	for _, e := range r.Ledgers() {
		line := e.Name + ":"
		for _, key := range e.Keys.All() {
			if key.Equal(e.Keys.Default()) {
				line += " (" + key.Fingerprint().Short() + ")"
			} else {
				line += " " + key.Fingerprint().Short()
			}
		}
		all = append(all, line)
	}
	return all
}

func TestRing(t *testing.T) {
	fsys := vfs.NewMem()
	if exists, err := Exists(fsys, "home/keys"); exists || err != nil {
		t.Fatalf("Exists before first use: %t, %v", exists, err)
	}
	r := openRing(t, fsys, "home/keys")
	if exists, err := Exists(fsys, "home/keys"); !exists || err != nil {
		t.Fatalf("Exists after first use: %t, %v", exists, err)
	}
	made, err := r.Create("made", nil)
	if err != nil || len(made.Keys.Default().s().raw) != 32 {
		t.Fatalf("Create: key of %d bytes, %v", len(made.Keys.Default().s().raw), err)
	}
	a, b, c := newKey(t), newKey(t), mustKey(t, sequence(16))
	todo, err := r.Create("todo", []Key{a, b})
	if err != nil || todo.ID != IDOf(a.Fingerprint()) || !todo.Keys.Default().Equal(a) {
		t.Fatalf("Create: %v, %v", todo, err)
	}
	imported, err := ReadBag(vfs.Default, "testdata/keybag", "rot-ledger")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.Adopt("rot", imported); err != nil {
		t.Fatal(err)
	}

	// One value of Keys sees what is added later.
	if err := r.AddKey("todo", c, true); err != nil || !todo.Keys.Default().Equal(c) || !todo.Keys.Pinned().Equal(a) {
		t.Errorf("AddKey: %v", err)
	}
	if err := r.AddKey("todo", b, true); err != nil || !todo.Keys.Default().Equal(b) || len(todo.Keys.All()) != 3 {
		t.Errorf("AddKey of a known key: %v", err)
	}
	for what, err := range map[string]error{
		"a name that is taken": second(r.Create("todo", nil)),
		"a key that is pinned": second(r.Create("again", []Key{a})),
	} {
		if !errors.Is(err, ErrExists) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if err := r.AddKey("nobody", a, false); !errors.Is(err, ErrNotFound) {
		t.Errorf("AddKey: %v", err)
	}
	if err := r.AddKey("todo", Key{}, false); err == nil {
		t.Error("AddKey takes the zero Key")
	}
	if err := r.Remove("nobody"); !errors.Is(err, ErrNotFound) {
		t.Errorf("Remove: %v", err)
	}
	if _, err := r.Lookup("nobody"); !errors.Is(err, ErrNotFound) {
		t.Errorf("Lookup: %v", err)
	}

	before := contents(r)
	again := openRing(t, fsys, "home/keys")
	if diff := cmp.Diff(before, contents(again)); diff != "" {
		t.Errorf("opened again (-before +after)\n%s", diff)
	}
	if !again.Identity().Public().Equal(r.Identity().Public()) || !bytes.Equal(again.Vault().master(), r.Vault().master()) {
		t.Error("opened again with another identity or master key")
	}
	if e, err := again.Lookup("rot"); err != nil || e.ID != IDOf(imported.Pinned().Fingerprint()) || !e.Keys.Default().Equal(imported.Default()) {
		t.Errorf("adopted keys: %v", err)
	}
	if err := again.Remove("made"); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(before[1:], contents(openRing(t, fsys, "home/keys"))); diff != "" {
		t.Errorf("after Remove (-want +got)\n%s", diff)
	}
}

func second[T any](_ T, err error) error { return err }

// A ledger's key file is a key bag file: copied into a bag under Fireproof's file name, it reads.
func TestLedgerFileIsAKeyBagFile(t *testing.T) {
	fsys := vfs.NewMem()
	r := openRing(t, fsys, "keys")
	e, err := r.Create(`my "to do"`, []Key{newKey(t), mustKey(t, sequence(16))})
	if err != nil {
		t.Fatal(err)
	}
	data := mustRead(t, fsys, "keys/"+FormatID(e.ID)+".json")
	writeFiles(t, fsys, map[string][]byte{"bag/_my__to_do__data_.json": data})
	keys, err := ReadBag(fsys, "bag", e.Name)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(fingerprints(e.Keys.All()), fingerprints(keys.All())); diff != "" {
		t.Error(diff)
	}
}

func TestParseLedgerSeesDamage(t *testing.T) {
	a, b := mustKey(t, sequence(16)), mustKey(t, sequence(32))
	file := appendLedger(nil, "todo", mustKeys(t, a, b).set.Load())
	if _, _, err := parseLedger(file); err != nil {
		t.Fatal(err)
	}
	for i := range file {
		for bit := range 8 {
			file[i] ^= 1 << bit
			if _, _, err := parseLedger(file); err == nil {
				t.Errorf("byte %d, bit %d flipped: accepted", i, bit)
			} else if leaksBase58(err.Error(), a.s().raw, b.s().raw) {
				t.Errorf("byte %d, bit %d flipped: the error shows a key", i, bit)
			}
			file[i] ^= 1 << bit
		}
	}
	if _, _, err := parseLedger(bytes.Replace(file, []byte(`"fpnode": 1`), []byte(`"fpnode": 2`), 1)); err != errNewer {
		t.Errorf("version 2: %v", err)
	}
	if _, _, err := parseLedger(appendLedger(nil, "..", mustKeys(t, a).set.Load())); err != errDamaged {
		t.Errorf("a name that cannot be: %v", err)
	}
}

// Nothing that is lost or damaged is replaced by something new.
func TestOpenRefuses(t *testing.T) {
	key := mustKey(t, sequence(16))
	file := appendLedger(nil, "todo", mustKeys(t, key).set.Load())
	name := FormatID(IDOf(key.Fingerprint())) + ".json"
	other := mustKey(t, sequence(32))
	otherName := FormatID(IDOf(other.Fingerprint())) + ".json"
	for what, change := range map[string]func(fsys vfs.FS) error{
		"device file lost":    func(fsys vfs.FS) error { return fsys.Remove("keys/device.json") },
		"device file empty":   func(fsys vfs.FS) error { return second(replaceFile(fsys, "keys/device.json", nil)) },
		"ledger file damaged": func(fsys vfs.FS) error { return second(replaceFile(fsys, "keys/"+name, file[1:])) },
		"ledger file huge": func(fsys vfs.FS) error {
			return second(replaceFile(fsys, "keys/"+name, make([]byte, MaxKeyFileBytes+1)))
		},
		"ledger file under another name": func(fsys vfs.FS) error { return fsys.Rename("keys/"+name, "keys/"+otherName) },
		"one name twice": func(fsys vfs.FS) error {
			return second(replaceFile(fsys, "keys/"+otherName, appendLedger(nil, "todo", mustKeys(t, other).set.Load())))
		},
	} {
		t.Run(what, func(t *testing.T) {
			fsys := vfs.NewMem()
			if _, err := openRing(t, fsys, "keys").Create("todo", []Key{key}); err != nil {
				t.Fatal(err)
			}
			if err := change(fsys); err != nil {
				t.Fatal(err)
			}
			before := fsys.String()
			var file *FileError
			if _, err := Open(fsys, "keys"); !errors.As(err, &file) || file.Path == "" || file.Hint() == "" {
				t.Errorf("Open: %v", err)
			}
			if after := fsys.String(); after != before {
				t.Errorf("Open changed the files\n%s\n%s", before, after)
			}
		})
	}
}

func TestCheckName(t *testing.T) {
	for _, name := range []string{"a", "todo", "my \"to do\"", "naïve 🦊", "team/todo", "...", ".hidden", "a b", strings.Repeat("é", 32)} {
		if err := CheckName(name); err != nil {
			t.Errorf("%q: %v", name, err)
		}
	}
	for _, name := range []string{
		"", strings.Repeat("a", 65), strings.Repeat("é", 33), "\xff", "a\x00", "tab\t", "nl\n", "\u0085", "\u2028", "\u202eabc", "back\\slash",
		"/", "/a", "a/", "a//b", ".", "..", "../a", "a/../b", "a/.", "a/..",
	} {
		if err := CheckName(name); !errors.Is(err, ErrName) {
			t.Errorf("%q: %v", name, err)
		}
		if _, err := openRing(t, vfs.NewMem(), "keys").Create(name, nil); !errors.Is(err, ErrName) {
			t.Errorf("Create %q: %v", name, err)
		}
	}
}

func TestParseID(t *testing.T) {
	id := IDOf(newKey(t).Fingerprint())
	text := FormatID(id)
	if again, err := ParseID(text); err != nil || again != id || len(text) != 52 {
		t.Errorf("%s: %x, %v", text, again, err)
	}
	// The last character carries one bit; other spellings of it are refused.
	for _, bad := range []string{"", text[:51], text + "a", strings.ToUpper(text), text[:51] + "b", "../../etc/passwd"} {
		if _, err := ParseID(bad); err == nil {
			t.Errorf("%q accepted", bad)
		}
	}
}

// Two processes have one home open: each sees what the other wrote before it writes, and a change of
// the other in this moment is ErrBusy.
func TestTwoRings(t *testing.T) {
	fsys := vfs.NewMem()
	r1, r2 := openRing(t, fsys, "keys"), openRing(t, fsys, "keys")
	e, err := r1.Create("todo", nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r2.Create("todo", nil); !errors.Is(err, ErrExists) {
		t.Errorf("a name that the other took: %v", err)
	}
	key := newKey(t)
	if err := r2.AddKey("todo", key, true); err != nil {
		t.Fatal(err)
	}
	if _, err := r1.Create("more", nil); err != nil {
		t.Fatal(err)
	}
	if !e.Keys.Default().Equal(key) {
		t.Error("a key that the other added is not seen")
	}
	lock, err := fsys.Lock("keys/lock")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r1.Create("busy", nil); !errors.Is(err, ErrBusy) {
		t.Errorf("while the other writes: %v", err)
	}
	lock.Close()
	if _, err := r1.Create("busy", nil); err != nil {
		t.Error(err)
	}
}

// Two processes use a home for the first time. Whenever the second starts, both have the same secrets, or
// the second is told to try again.
func TestTwoFirstUses(t *testing.T) {
	same, busy := 0, 0
	for n := 0; ; n++ {
		mem := vfs.NewMem()
		count := 0
		var other *Ring
		hook := errorfs.InjectorFunc(func(op errorfs.Op) error {
			if count++; count-1 == n {
				var err error
				if other, err = Open(mem, "keys"); errors.Is(err, ErrBusy) {
					busy++
				} else if err != nil {
					t.Errorf("the second starts at operation %d of the first: %v", n, err)
				}
			}
			return nil
		})
		r := openRing(t, errorfs.Wrap(mem, hook), "keys")
		if count <= n {
			break
		}
		if other != nil {
			same++
			if !other.Identity().Public().Equal(r.Identity().Public()) || !bytes.Equal(other.Vault().master(), r.Vault().master()) {
				t.Errorf("the second starts at operation %d of the first: they have different secrets", n)
			}
		}
	}
	if same == 0 || busy == 0 {
		t.Errorf("%d starts together, %d busy: want some of both", same, busy)
	}
}

// What a crash leaves of a temporary file disturbs nobody and goes with the next change.
func TestLeftoverTemporaryFile(t *testing.T) {
	fsys := vfs.NewMem()
	openRing(t, fsys, "keys")
	writeFiles(t, fsys, map[string][]byte{"keys/half.json.tmp": []byte("{")})
	if _, err := openRing(t, fsys, "keys").Create("todo", nil); err != nil {
		t.Fatal(err)
	}
	files, err := fsys.List("keys")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		if strings.HasSuffix(file, tempSuffix) {
			t.Errorf("%s is still there", file)
		}
	}
}

func TestConcurrentUse(t *testing.T) {
	r := openRing(t, vfs.NewMem(), "keys")
	e, err := r.Create("todo", nil)
	if err != nil {
		t.Fatal(err)
	}
	first, err := e.Keys.Seal([]byte("first"))
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for i := range 4 {
		wg.Go(func() {
			for j := range 20 {
				key, err := NewKey()
				if err == nil {
					err = r.AddKey("todo", key, true)
				}
				if err == nil {
					_, err = r.Create(fmt.Sprintf("%d/%d", i, j), nil)
				}
				if err != nil {
					t.Error(err)
				}
			}
		})
		wg.Go(func() {
			for range 200 {
				sealed, err := e.Keys.Seal([]byte("text"))
				if err == nil {
					_, err = e.Keys.Open(sealed)
				}
				if err == nil {
					_, err = e.Keys.Open(first)
				}
				if err == nil {
					_, err = r.Lookup("todo")
				}
				if err != nil {
					t.Error(err)
				}
				r.Ledgers()
			}
		})
	}
	wg.Wait()
	if n, m := len(e.Keys.All()), len(r.Ledgers()); n != 81 || m != 81 {
		t.Errorf("%d keys and %d ledgers, want 81 and 81", n, m)
	}
}

// script is a life of a ring. Each step tells what the ring holds when it returned, so that a crash or
// an error at any moment can be judged: what is there must be the state before or after the step.
type script struct {
	fsys  vfs.FS
	keys  [4]Key
	ring  *Ring
	acked []string // contents after the last step that returned nil
	next  []string // contents after the step that runs, if it is done
}

func newScript(t testing.TB, fsys vfs.FS) *script {
	s := &script{fsys: fsys}
	for i := range s.keys {
		s.keys[i] = newKey(t)
	}
	return s
}

// run returns the first error. The caller's file system hook may look at acked and next at any time.
func (s *script) run() error {
	short := func(i int) string { return s.keys[i].Fingerprint().Short() }
	steps := []struct {
		after []string
		do    func() error
	}{
		{nil, func() (err error) { s.ring, err = Open(s.fsys, "home/keys"); return err }},
		{[]string{"a: (" + short(0) + ")"}, func() error { return second(s.ring.Create("a", s.keys[:1])) }},
		{[]string{"a: " + short(0) + " (" + short(1) + ")"}, func() error { return s.ring.AddKey("a", s.keys[1], true) }},
		{[]string{"a: " + short(0) + " (" + short(1) + ")", "b: (" + short(2) + ") " + short(3)},
			func() error { return second(s.ring.Create("b", s.keys[2:])) }},
		{[]string{"b: (" + short(2) + ") " + short(3)}, func() error { return s.ring.Remove("a") }},
		{[]string{"a: (" + short(1) + ")", "b: (" + short(2) + ") " + short(3)},
			func() error { return second(s.ring.Create("a", s.keys[1:2])) }},
	}
	for _, step := range steps {
		s.next = step.after
		if err := step.do(); err != nil {
			return err
		}
		s.acked = step.after
	}
	return nil
}

// judge opens what is on the disk and compares it with what must be.
func (s *script) judge(disk vfs.FS) error {
	r, err := Open(disk, "home/keys")
	if err != nil {
		return fmt.Errorf("does not open: %w", err)
	}
	if got := contents(r); !slices.Equal(got, s.acked) && !slices.Equal(got, s.next) {
		return fmt.Errorf("holds %q, want %q or %q", got, s.acked, s.next)
	}
	if s.ring != nil && !r.Identity().Public().Equal(s.ring.Identity().Public()) {
		return errors.New("has another identity")
	}
	if s.ring != nil && !bytes.Equal(r.Vault().master(), s.ring.Vault().master()) {
		return errors.New("has another master key")
	}
	// It can be written to, too.
	if _, err := r.Create("after", nil); err != nil {
		return fmt.Errorf("refuses a change: %w", err)
	}
	return nil
}

// TestCrash crashes before every operation on the disk, with none, some and all of what was not synced
// surviving.
func TestCrash(t *testing.T) {
	seeds := 20
	if testing.Short() {
		seeds = 3
	}
	clones := 0
	for seed := range seeds {
		mem := vfs.NewCrashableMem()
		rng := rand.New(rand.NewPCG(uint64(seed), 1))
		var s *script
		crash := func(percent int) {
			clones++
			if err := s.judge(mem.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: percent, RNG: rng})); err != nil {
				t.Errorf("seed %d, %d %% of unsynced data: %v", seed, percent, err)
			}
		}
		hook := errorfs.InjectorFunc(func(op errorfs.Op) error {
			if op.Kind.ReadOrWrite() == errorfs.OpIsWrite {
				for _, percent := range []int{0, 30, 70, 100} {
					crash(percent)
				}
			}
			return nil
		})
		s = newScript(t, errorfs.Wrap(mem, hook))
		if err := s.run(); err != nil {
			t.Fatal(err)
		}
		s.next = s.acked
		crash(0)
	}
	if want := seeds * 100; clones < want {
		t.Errorf("%d crashes, want at least %d", clones, want)
	}
	t.Logf("%d crashes", clones)
}

// TestEveryError makes every single operation on the disk fail once, with each of five errors. Whatever
// was acknowledged is there, the ring in memory says what the disk says or refuses further changes, and
// the error is passed on.
func TestEveryError(t *testing.T) {
	kinds := []error{syscall.EIO, syscall.ENOSPC, syscall.EROFS, syscall.EMFILE, fs.ErrPermission}
	failed := 0
	for _, kind := range kinds {
		for n := 0; ; n++ {
			mem := vfs.NewMem()
			count := 0
			hook := errorfs.InjectorFunc(func(op errorfs.Op) error {
				count++
				if count-1 == n {
					return kind
				}
				return nil
			})
			s := newScript(t, errorfs.Wrap(mem, hook))
			err := s.run()
			if count <= n {
				if err != nil {
					t.Fatal(err)
				}
				break
			}
			failed++
			at := fmt.Sprintf("operation %d fails with %v", n, kind)
			if err != nil && !errors.Is(err, kind) {
				t.Errorf("%s: the caller gets %v", at, err)
			}
			if s.ring != nil && err != nil {
				// The hook has fired; the disk works again.
				switch _, err := s.ring.Create("next", nil); {
				case err == nil:
					if err := s.ring.Remove("next"); err != nil {
						t.Errorf("%s: removing: %v", at, err)
					}
					if diff := cmp.Diff(contents(openRing(t, mem, "home/keys")), contents(s.ring)); diff != "" {
						t.Errorf("%s: (-disk +memory)\n%s", at, diff)
					}
				case !errors.Is(err, ErrPoisoned):
					t.Errorf("%s: the next change: %v", at, err)
				}
			}
			if err := s.judge(mem); err != nil {
				t.Errorf("%s: the home %v", at, err)
			}
		}
	}
	if failed < 100*len(kinds)/2 {
		t.Errorf("%d failures tried, the hook does not work", failed)
	}
	t.Logf("%d failures", failed)
}

// TestKillThenPowerLoss kills the process before every operation on the disk. What the next process finds
// is judged, and since that process may build on it, a power loss must leave the very same.
func TestKillThenPowerLoss(t *testing.T) {
	for n := 0; ; n++ {
		mem := vfs.NewCrashableMem()
		count := 0
		hook := errorfs.InjectorFunc(func(op errorfs.Op) error {
			if count++; count > n {
				return errors.New("killed")
			}
			return nil
		})
		s := newScript(t, errorfs.Wrap(mem, hook))
		s.run()
		if count <= n {
			break
		}
		found := openRing(t, mem, "home/keys")
		after := openRing(t, mem.CrashClone(vfs.CrashCloneCfg{}), "home/keys")
		if diff := cmp.Diff(contents(found), contents(after)); diff != "" {
			t.Errorf("killed at operation %d: (-before +after power loss)\n%s", n, diff)
		}
		if !found.Identity().Public().Equal(after.Identity().Public()) {
			t.Errorf("killed at operation %d: another identity after power loss", n)
		}
		if err := s.judge(mem); err != nil {
			t.Errorf("killed at operation %d: the home %v", n, err)
		}
	}
}

// After a failed sync of the directory nobody knows what a power loss leaves. The change counts as not
// done, and no other is made on top of it.
func TestFailedSyncPoisons(t *testing.T) {
	mem := vfs.NewMem()
	fail := false
	hook := errorfs.InjectorFunc(func(op errorfs.Op) error {
		if op.Kind == errorfs.OpRename {
			fail = true
		}
		if op.Kind == errorfs.OpFileSync && fail {
			return syscall.EIO
		}
		return nil
	})
	openRing(t, mem, "keys")
	r := openRing(t, errorfs.Wrap(mem, hook), "keys")
	if _, err := r.Create("todo", nil); !errors.Is(err, syscall.EIO) {
		t.Fatalf("Create: %v", err)
	}
	if _, err := r.Lookup("todo"); !errors.Is(err, ErrNotFound) {
		t.Errorf("a ledger whose key may not be there is handed out: %v", err)
	}
	fail = false
	if _, err := r.Create("other", nil); !errors.Is(err, ErrPoisoned) {
		t.Errorf("the next change: %v", err)
	}
	if err := r.Remove("todo"); !errors.Is(err, ErrPoisoned) {
		t.Errorf("the next change: %v", err)
	}
	if _, err := openRing(t, mem, "keys").Create("other", nil); err != nil {
		t.Errorf("opened again: %v", err)
	}
}

func needModes(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("no file modes")
	}
}

// TestModes looks at every file before each write to it, with a umask that hides nothing.
func TestModes(t *testing.T) {
	needModes(t)
	old := syscall.Umask(0)
	defer syscall.Umask(old)
	dir := filepath.Join(t.TempDir(), "home", "keys")
	looked := 0
	look := func(path string, max fs.FileMode) {
		t.Helper()
		info, err := os.Stat(path)
		if err != nil {
			t.Error(err)
			return
		}
		looked++
		if mode := info.Mode().Perm(); mode&^max != 0 {
			t.Errorf("%s has mode %o", path, mode)
		}
	}
	hook := errorfs.InjectorFunc(func(op errorfs.Op) error {
		if op.Kind == errorfs.OpFileWrite {
			look(op.Path, 0o600)
			look(filepath.Dir(op.Path), 0o700)
		}
		return nil
	})
	s := &script{}
	s = newScript(t, errorfs.Wrap(vfs.Default, hook))
	s.ring = openRing(t, s.fsys, dir)
	if _, err := s.ring.Create("todo", nil); err != nil {
		t.Fatal(err)
	}
	if err := WriteBag(s.fsys, filepath.Join(dir, "../bag"), "todo", mustKeys(t, newKey(t))); err != nil {
		t.Fatal(err)
	}
	if looked != 6 {
		t.Errorf("%d looks at files, want 3 writes and their directories", looked)
	}
	look(filepath.Dir(dir), 0o700)
	for _, root := range []string{dir, filepath.Join(dir, "../bag")} {
		files, err := os.ReadDir(root)
		if err != nil || len(files) == 0 {
			t.Fatal(err)
		}
		look(root, 0o700)
		for _, file := range files {
			look(filepath.Join(root, file.Name()), 0o600)
		}
	}
}

func TestWideModesAreRefused(t *testing.T) {
	needModes(t)
	dir := filepath.Join(t.TempDir(), "keys")
	r := openRing(t, vfs.Default, dir)
	e, err := r.Create("todo", nil)
	if err != nil {
		t.Fatal(err)
	}
	for path, modes := range map[string][2]fs.FileMode{
		dir:                               {0o700, 0o750},
		filepath.Join(dir, "device.json"): {0o600, 0o604},
		filepath.Join(dir, FormatID(e.ID)+".json"): {0o600, 0o640},
	} {
		if err := os.Chmod(path, modes[1]); err != nil {
			t.Fatal(err)
		}
		var mode *ModeError
		_, err := Open(vfs.Default, dir)
		if !errors.As(err, &mode) || mode.Path != path || mode.Mode != modes[1] || mode.Hint() != fmt.Sprintf("chmod %o %s", modes[0], path) {
			t.Errorf("%s with mode %o: %v", path, modes[1], err)
		}
		if err := os.Chmod(path, modes[0]); err != nil {
			t.Fatal(err)
		}
		openRing(t, vfs.Default, dir)
	}
	// A directory that others can read gets no secrets at all.
	wide := t.TempDir()
	if err := os.Chmod(wide, 0o755); err != nil {
		t.Fatal(err)
	}
	var mode *ModeError
	if _, err := Open(vfs.Default, wide); !errors.As(err, &mode) {
		t.Errorf("first use in a wide directory: %v", err)
	}
	if files, _ := os.ReadDir(wide); len(files) != 0 {
		t.Errorf("%d files were made in a wide directory", len(files))
	}
}
