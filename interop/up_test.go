//go:build interop

package interop

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

var binaryDir string // removed when the tests have run

// binary builds the program once.
var binary = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "fpnode-interop-")
	if err != nil {
		return "", err
	}
	binaryDir = dir
	bin := filepath.Join(dir, "fpnode")
	out, err := exec.Command("go", "build", "-o", bin, "fpnode/cmd/fpnode").CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("%v\n%s", err, out)
	}
	return bin, nil
})

func TestMain(m *testing.M) {
	code := m.Run()
	if binaryDir != "" {
		os.RemoveAll(binaryDir)
	}
	os.Exit(code)
}

// home is a home directory with the real program.
type home struct {
	t        *testing.T
	bin, dir string
}

func newHome(t *testing.T) *home {
	t.Helper()
	bin, err := binary()
	if err != nil {
		t.Fatal(err)
	}
	return &home{t, bin, filepath.Join(t.TempDir(), "home")}
}

func (h *home) command(a ...string) *exec.Cmd {
	return exec.Command(h.bin, append([]string{"--home", h.dir}, a...)...)
}

func (h *home) run(stdin string, a ...string) string {
	h.t.Helper()
	cmd := h.command(a...)
	cmd.Stdin = strings.NewReader(stdin)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		h.t.Fatalf("fpnode %s: %v\n%s", strings.Join(a, " "), err, errs.String())
	}
	return out.String()
}

var peerAddr = regexp.MustCompile(`/ip4/127\.0\.0\.1/tcp/\d+/p2p/\w+`)

// up starts the node and returns an address to reach it at, as it prints it.
func (h *home) up(a ...string) string {
	h.t.Helper()
	cmd := h.command(append([]string{"up", "--no-mdns", "--listen", "/ip4/127.0.0.1/tcp/0"}, a...)...)
	r, w, err := os.Pipe()
	if err != nil {
		h.t.Fatal(err)
	}
	cmd.Stdout, cmd.Stderr = w, w
	if err := cmd.Start(); err != nil {
		h.t.Fatal(err)
	}
	w.Close()
	addr := make(chan string, 1)
	var seen bytes.Buffer
	var mu sync.Mutex
	go func() {
		for s := bufio.NewScanner(r); s.Scan(); {
			mu.Lock()
			fmt.Fprintln(&seen, s.Text())
			mu.Unlock()
			if a := peerAddr.FindString(s.Text()); a != "" {
				select {
				case addr <- a:
				default:
				}
			}
		}
	}()
	h.t.Cleanup(func() {
		cmd.Process.Signal(syscall.SIGTERM)
		done := make(chan error, 1)
		go func() { done <- cmd.Wait() }()
		select {
		case err := <-done:
			if err != nil {
				h.t.Errorf("fpnode up ended with %v\n%s", err, seen.String())
			}
		case <-time.After(10 * time.Second):
			cmd.Process.Kill()
			h.t.Errorf("fpnode up did not stop within 10 s of SIGTERM")
		}
	})
	select {
	case a := <-addr:
		return a
	case <-time.After(30 * time.Second):
		mu.Lock()
		defer mu.Unlock()
		h.t.Fatalf("fpnode up printed no address:\n%s", seen.String())
		return ""
	}
}

type info struct {
	Head []string
	Root string
	Docs int
}

func (h *home) info() info {
	h.t.Helper()
	var i info
	if err := json.Unmarshal([]byte(h.run("", "ledger", "info", "shared", "--json")), &i); err != nil {
		h.t.Fatal(err)
	}
	slices.Sort(i.Head)
	return i
}

func (h *home) docs() map[string]string {
	h.t.Helper()
	m := map[string]string{}
	for line := range strings.Lines(h.run("", "docs", "shared", "--include-deleted", "--json")) {
		var row struct {
			Key   string
			Value json.RawMessage
		}
		if err := json.Unmarshal([]byte(line), &row); err != nil {
			h.t.Fatal(err)
		}
		m[row.Key] = canonical(h.t, row.Value)
	}
	return m
}

// until waits for a state of two homes that others bring about.
func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(60 * time.Second); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
		if ok() {
			return
		}
	}
	t.Fatalf("not within 60 s: %s", what)
}

// TestTwoNodes runs two nodes that imported the two branches of one ledger. They end with the head, root and documents
// that the library computed for the merge, take concurrent writes and end equal; the library opens exports of both.
func TestTwoNodes(t *testing.T) {
	var want struct {
		Head    []string
		AllDocs struct {
			Rows []struct {
				Key   string
				Value json.RawMessage
			}
		}
	}
	b, err := os.ReadFile("testdata/b_concurrent/merged.json")
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(b, &want); err != nil {
		t.Fatal(err)
	}
	slices.Sort(want.Head)

	a, c := newHome(t), newHome(t)
	for h, branch := range map[*home]string{a: "A", c: "B"} {
		src := filepath.Join("testdata/b_concurrent", branch)
		h.run("", "ledger", "import", "shared", "--from", filepath.Join(src, "store/shared"), "--keybag", filepath.Join(src, "keybag"))
	}
	addr := a.up()
	c.up("--peer", addr)
	until(t, "both branches merged", func() bool { return cmp.Equal(a.info().Head, want.Head) && cmp.Equal(c.info().Head, want.Head) })
	if ia, ic := a.info(), c.info(); ia.Root != ic.Root {
		t.Fatalf("equal heads, roots %s and %s", ia.Root, ic.Root)
	}
	exp := map[string]string{}
	for _, r := range want.AllDocs.Rows {
		exp[r.Key] = canonical(t, r.Value)
	}
	if diff := cmp.Diff(exp, a.docs()); diff != "" {
		t.Fatalf("documents of the merge (-js +go):\n%s", diff)
	}

	// 100 puts on each side at once, one commit each, ten of them to the same ids.
	var wg sync.WaitGroup
	for h, side := range map[*home]string{a: "a", c: "c"} {
		wg.Go(func() {
			for i := range 100 {
				id := fmt.Sprintf("%s-%02d", side, i)
				if i%10 == 5 {
					id = fmt.Sprintf("same-%d", i/10)
				}
				cmd := h.command("put", "shared", "-")
				cmd.Stdin = strings.NewReader(fmt.Sprintf(`{"_id":%q,"from":%q,"i":%d}`, id, side, i))
				if out, err := cmd.CombinedOutput(); err != nil {
					t.Errorf("put: %v\n%s", err, out)
					return
				}
			}
		})
	}
	wg.Wait()
	until(t, "equal heads after concurrent puts", func() bool {
		ia, ic := a.info(), c.info()
		return cmp.Equal(ia, ic) && ia.Docs == len(liveKeys(exp))+90+90+10
	})
	docs := a.docs()
	if diff := cmp.Diff(docs, c.docs()); diff != "" {
		t.Fatalf("documents differ (-a +c):\n%s", diff)
	}

	for _, h := range []*home{a, c} {
		dir := t.TempDir()
		h.run("", "ledger", "export", "shared", "--to", filepath.Join(dir, "store/shared"), "--keybag", filepath.Join(dir, "keybag"))
		js := startJS(t)
		js.do("open", args{"db": "x", "name": "shared", "base": filepath.Join(dir, "store"), "keybag": filepath.Join(dir, "keybag")}, nil)
		s := js.state("x")
		slices.Sort(s.Head)
		i := h.info()
		if !slices.Equal(s.Head, i.Head) || s.Root != i.Root {
			t.Fatalf("js sees head %v root %s, the node %v %s", s.Head, s.Root, i.Head, i.Root)
		}
		if diff := cmp.Diff(docs, s.docs(t)); diff != "" {
			t.Fatalf("export as js reads it (-go +js):\n%s", diff)
		}
	}
}

func liveKeys(m map[string]string) []string {
	var keys []string
	for k, v := range m {
		if !strings.Contains(v, `"_deleted":true`) {
			keys = append(keys, k)
		}
	}
	return keys
}
