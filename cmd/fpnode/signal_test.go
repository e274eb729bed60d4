package main

import (
	"bufio"
	"bytes"
	"io"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// newHome makes a home with one ledger.
func newHome(t *testing.T) string {
	t.Helper()
	home := filepath.Join(t.TempDir(), "h")
	if out, err := exec.Command("fpnode", "--home", home, "ledger", "new", "notes").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return home
}

// interrupted waits for cmd, which was sent a signal, and returns its exit code.
func interrupted(t *testing.T, cmd *exec.Cmd) int {
	t.Helper()
	done := make(chan struct{})
	go func() { cmd.Wait(); close(done) }()
	select {
	case <-done:
	case <-time.After(stopWithin):
		cmd.Process.Kill()
		<-done
		t.Errorf("it did not end within %v", stopWithin)
	}
	return cmd.ProcessState.ExitCode()
}

// TestInterruptedPut: somebody types documents, or a program pipes them, and
// it is ended with Ctrl-C. What was acknowledged is there.
func TestInterruptedPut(t *testing.T) {
	home := newHome(t)
	cmd := exec.Command("fpnode", "--home", home, "put", "notes")
	var talk bytes.Buffer
	cmd.Stderr = &talk
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	// The input pauses, so the document is stored at once.
	io.WriteString(in, `{"_id":"a"}`+"\n")
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "a\n" {
		t.Errorf("acknowledged %q, %v", line, err)
	}
	cmd.Process.Signal(syscall.SIGINT)
	if code := interrupted(t, cmd); code != 130 {
		t.Errorf("exit code %d: %s", code, talk.String())
	}
	if !strings.Contains(talk.String(), "fpnode: interrupted: 1 document is stored\n") {
		t.Errorf("it said %q", talk.String())
	}
	if got, err := exec.Command("fpnode", "--home", home, "docs", "notes", "--json").Output(); err != nil || !bytes.Contains(got, []byte(`"a"`)) {
		t.Errorf("%v: %s", err, got)
	}
}

func TestInterruptedWatch(t *testing.T) {
	home := newHome(t)
	node := exec.Command("fpnode", "--home", home, "--json", "up", "--no-mdns", "--listen", "/ip4/127.0.0.1/tcp/0")
	ready, err := node.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := node.Start(); err != nil {
		t.Fatal(err)
	}
	stop := sync.OnceFunc(func() { node.Process.Signal(syscall.SIGTERM) }) // a second one would end it at once
	defer func() {
		stop()
		if code := interrupted(t, node); code != 0 {
			t.Errorf("up ended with %d", code)
		}
	}()
	if _, err := bufio.NewReader(ready).ReadString('\n'); err != nil {
		t.Fatal(err)
	}
	start := func() (*exec.Cmd, *bufio.Reader) {
		watch := exec.Command("fpnode", "--home", home, "watch", "notes")
		talk, err := watch.StderrPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := watch.Start(); err != nil {
			t.Fatal(err)
		}
		r := bufio.NewReader(talk)
		if line, err := r.ReadString('\n'); line != "fpnode: watching notes\n" {
			t.Fatalf("%q, %v", line, err)
		}
		return watch, r
	}
	watch, _ := start()
	watch.Process.Signal(syscall.SIGINT)
	if code := interrupted(t, watch); code != 130 {
		t.Errorf("watch ended with %d", code)
	}
	// A node that stops ends its watches, and says so.
	watch, talk := start()
	stop()
	said, _ := io.ReadAll(talk)
	if code := interrupted(t, watch); code != 6 {
		t.Errorf("watch ended with %d when the node stopped: %s", code, said)
	}
}

// TestVerbsWaitForEachOther: two commands at one moment, as scripts do, both
// succeed.
func TestVerbsWaitForEachOther(t *testing.T) {
	home := newHome(t)
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() {
			cmd := exec.Command("fpnode", "--home", home, "put", "notes")
			cmd.Stdin = strings.NewReader(`{"n":1}`)
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Errorf("%v: %s", err, out)
			}
		})
	}
	all.Wait()
	out, err := exec.Command("fpnode", "--home", home, "docs", "notes", "--json").Output()
	if n := bytes.Count(out, []byte("\n")); n != 4 || err != nil {
		t.Errorf("%d documents, %v", n, err)
	}
}
