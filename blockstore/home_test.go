package blockstore_test

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"fpnode/blockstore"
)

// TestMain lets a test start this binary again as another process: with FPNODE_TEST_HOLD it opens that home, says so
// or why not, and holds it until its standard input ends.
func TestMain(m *testing.M) {
	dir := os.Getenv("FPNODE_TEST_HOLD")
	if dir == "" {
		debug.SetGCPercent(400) // thousands of stores are opened
		os.Exit(m.Run())
	}
	s, err := blockstore.Open(blockstore.Config{Dir: dir, Vault: vault{}})
	var locked *blockstore.LockedError
	if errors.As(err, &locked) {
		fmt.Printf("locked by %d\n", locked.PID)
		os.Exit(0)
	}
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	fmt.Printf("open in %d\n", os.Getpid())
	io.Copy(io.Discard, os.Stdin)
	if err := s.Close(); err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
}

// holder is another process that tries to open a home.
type holder struct {
	cmd  *exec.Cmd
	says string
	stop io.WriteCloser
}

func hold(t *testing.T, dir string) *holder {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	h := &holder{cmd: exec.Command(exe)}
	h.cmd.Env = append(os.Environ(), "FPNODE_TEST_HOLD="+dir)
	h.cmd.Stderr = os.Stderr
	out, err := h.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if h.stop, err = h.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	if err := h.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	h.says = strings.TrimSpace(line)
	return h
}

func (h *holder) end(t *testing.T) {
	t.Helper()
	h.stop.Close()
	if err := h.cmd.Wait(); err != nil {
		t.Error(err)
	}
}

func TestLockNamesTheHolder(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "home")
	h := hold(t, dir)
	if want := fmt.Sprintf("open in %d", h.cmd.Process.Pid); h.says != want {
		t.Fatalf("the first process says %q, want %q", h.says, want)
	}
	_, err := blockstore.Open(blockstore.Config{Dir: dir, Vault: vault{}})
	var locked *blockstore.LockedError
	if !errors.As(err, &locked) {
		t.Fatalf("Open of a held home: %v, want a *LockedError", err)
	}
	if locked.PID != h.cmd.Process.Pid || locked.Path != filepath.Join(dir, "repo.lock") || time.Since(locked.Since) > time.Hour {
		t.Errorf("%+v, want process %d", locked, h.cmd.Process.Pid)
	}
	if !strings.Contains(err.Error(), fmt.Sprintf("process %d", h.cmd.Process.Pid)) {
		t.Errorf("%q does not name the process", err)
	}

	// A killed process leaves its name, and no lock.
	if err := h.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	h.cmd.Wait()
	s := openStore(t, blockstore.Config{Dir: dir, Vault: vault{}})
	other := hold(t, dir)
	if want := fmt.Sprintf("locked by %d", os.Getpid()); other.says != want {
		t.Errorf("another process says %q, want %q", other.says, want)
	}
	other.end(t)
	_, err = blockstore.Open(blockstore.Config{Dir: dir, Vault: vault{}})
	if !errors.As(err, &locked) || locked.PID != os.Getpid() {
		t.Errorf("second Open in one process: %v, want a *LockedError that names it", err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	h = hold(t, dir)
	if !strings.HasPrefix(h.says, "open in") {
		t.Errorf("after Close another process says %q", h.says)
	}
	h.end(t)
}

func TestOneOfManyOpens(t *testing.T) {
	fs := vfs.NewMem()
	openStore(t, config(fs)).Close()
	for range 20 {
		var wg sync.WaitGroup
		var mu sync.Mutex
		var won []*blockstore.Store
		for range 8 {
			wg.Go(func() {
				s, err := blockstore.Open(config(fs))
				var locked *blockstore.LockedError
				mu.Lock()
				defer mu.Unlock()
				if err == nil {
					won = append(won, s)
				} else if !errors.As(err, &locked) {
					t.Errorf("Open: %v, want a *LockedError", err)
				}
			})
		}
		wg.Wait()
		if len(won) == 0 {
			t.Fatal("nobody could open the home")
		}
		for _, s := range won[1:] {
			t.Error("two have the home open")
			s.Close()
		}
		won[0].Close()
	}
}

func TestVersion(t *testing.T) {
	for _, tt := range []struct {
		content string
		want    any
	}{
		{"fpnode store 1\n", nil},
		{"fpnode store 2\n", &blockstore.VersionError{Found: 2, Supported: 1}},
		{"fpnode store 999\n", &blockstore.VersionError{Found: 999, Supported: 1}},
		{"fpnode store 0\n", &blockstore.CorruptError{}},
		{"fpnode store one\n", &blockstore.CorruptError{}},
		{"", &blockstore.CorruptError{}},
		{"7\n", &blockstore.CorruptError{}},
	} {
		fs := vfs.NewMem()
		s, err := blockstore.Open(config(fs))
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		writeFile(t, fs, home+"/VERSION", []byte(tt.content))
		s, err = blockstore.Open(config(fs))
		var version *blockstore.VersionError
		var corrupt *blockstore.CorruptError
		switch want := tt.want.(type) {
		case nil:
			if err != nil {
				t.Errorf("VERSION %q: %v", tt.content, err)
				continue
			}
			s.Close()
		case *blockstore.VersionError:
			if !errors.As(err, &version) || *version != *want {
				t.Errorf("VERSION %q: %v, want %v", tt.content, err, want)
			}
		case *blockstore.CorruptError:
			if !errors.As(err, &corrupt) || corrupt.File != home+"/VERSION" {
				t.Errorf("VERSION %q: %v, want a *CorruptError", tt.content, err)
			}
		}
	}
}

func TestVersionMissingBesideLedgers(t *testing.T) {
	fs := vfs.NewMem()
	s, err := blockstore.Open(config(fs))
	if err != nil {
		t.Fatal(err)
	}
	fill(t, openLedger(t, s, 1), 1, 1)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := fs.Remove(home + "/VERSION"); err != nil {
		t.Fatal(err)
	}
	_, err = blockstore.Open(config(fs))
	var corrupt *blockstore.CorruptError
	if !errors.As(err, &corrupt) {
		t.Errorf("Open: %v, want a *CorruptError", err)
	}
}

func TestModes(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "home")
	cfg := blockstore.Config{Dir: dir, Vault: vault{}}
	s, err := blockstore.Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	fill(t, openLedger(t, s, 1), 1, 3)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	err = filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		if info.Mode().Perm()&0o077 != 0 && d.Name() != "LOCK" { // pebble's, always empty
			t.Errorf("%s has mode %v", path, info.Mode())
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, sub := range []string{"", "index", "ledgers"} {
		path := filepath.Join(dir, sub)
		if err := os.Chmod(path, 0o750); err != nil {
			t.Fatal(err)
		}
		_, err := blockstore.Open(cfg)
		var mode *blockstore.ModeError
		if !errors.As(err, &mode) || *mode != (blockstore.ModeError{Path: path, Mode: 0o750, Want: 0o700}) {
			t.Errorf("Open with a wide %q: %v, want a *ModeError", sub, err)
		}
		if err := os.Chmod(path, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	s = openStore(t, cfg)
	if n := openLedger(t, s, 1).Stats().Cars; n != 3 {
		t.Errorf("%d CARs, want 3", n)
	}
}
