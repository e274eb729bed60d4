package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"fpnode": main})
}

// TestScript runs the stories in testdata/script. Besides the commands of
// testscript they have:
//
//	exits N CMD…        run CMD; it must exit with code N
//	bundled DIR         write the bundled ledger of JavaScript Fireproof to DIR
//	up NAME ARGS…       run "fpnode up ARGS…" on the loopback interface and go
//	                    on when it is ready; $NAME is its address
//	down NAME [SIGNAL]  stop it; it must end with 0 within 5 s, after a TERM
//	until PATTERN CMD…  run CMD until its output matches, for 20 s at most
//	watch LEDGER FILE CMD…  run CMD while "fpnode watch LEDGER" runs, and
//	                    write the first change that it saw to FILE
//	flip FILE OFFSET    change a byte
//	repeat N FILE       write N documents to FILE, one a line
func TestScript(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata/script",
		Setup: func(env *testscript.Env) error {
			env.Setenv("HOME", env.WorkDir)
			env.Setenv("TMPDIR", env.Getenv("WORK")+"/.tmp")
			if err := os.MkdirAll(env.WorkDir+"/.tmp", 0o700); err != nil {
				return err
			}
			env.Setenv("FPNODE_HOME", env.WorkDir+"/home")
			env.Values["nodes"] = map[string]*running{}
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"exits":   cmdExits,
			"bundled": cmdBundled,
			"up":      cmdUp,
			"down":    cmdDown,
			"until":   cmdUntil,
			"watch":   cmdWatch,
			"flip":    cmdFlip,
			"repeat":  cmdRepeat,
		},
		RequireUniqueNames:  true,
		RequireExplicitExec: false,
	})
}

func cmdExits(ts *testscript.TestScript, _ bool, args []string) {
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	err = ts.Exec(args[1], args[2:]...)
	got := 0
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		got = exit.ExitCode()
	} else {
		ts.Check(err)
	}
	if got != want {
		ts.Fatalf("exit code %d, want %d", got, want)
	}
}

func cmdBundled(ts *testscript.TestScript, _ bool, args []string) {
	to := ts.MkAbs(args[0])
	ts.Check(fs.WalkDir(bundled, "bundled", func(name string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		path := to + strings.TrimPrefix(name, "bundled")
		if e.IsDir() {
			return os.MkdirAll(path, 0o700)
		}
		b, err := bundled.ReadFile(name)
		if err != nil {
			return err
		}
		return os.WriteFile(path, b, 0o600)
	}))
}

// running is a node that a script started.
type running struct {
	cmd    *exec.Cmd
	stderr *bytes.Buffer
	done   chan error
}

func command(ts *testscript.TestScript, args ...string) *exec.Cmd {
	path, err := lookPath(ts, args[0])
	ts.Check(err)
	cmd := exec.Command(path, args[1:]...)
	cmd.Dir = ts.MkAbs(".")
	for _, name := range []string{"PATH", "HOME", "TMPDIR", "FPNODE_HOME", "GOCOVERDIR"} {
		cmd.Env = append(cmd.Env, name+"="+ts.Getenv(name))
	}
	return cmd
}

func lookPath(ts *testscript.TestScript, name string) (string, error) {
	for _, dir := range filepath.SplitList(ts.Getenv("PATH")) {
		path := filepath.Join(dir, name)
		if info, err := os.Stat(path); err == nil && info.Mode()&0o111 != 0 {
			return path, nil
		}
	}
	return "", fmt.Errorf("no %s in PATH", name)
}

func cmdUp(ts *testscript.TestScript, _ bool, args []string) {
	name := args[0]
	cmd := command(ts, append([]string{"fpnode", "--json", "up", "--no-mdns", "--listen", "/ip4/127.0.0.1/tcp/0"}, args[1:]...)...)
	r := &running{cmd: cmd, stderr: &bytes.Buffer{}, done: make(chan error, 1)}
	cmd.Stderr = r.stderr
	out, err := cmd.StdoutPipe()
	ts.Check(err)
	ts.Check(cmd.Start())
	line, err := bufio.NewReader(out).ReadBytes('\n')
	go func() { r.done <- cmd.Wait() }()
	ts.Defer(func() {
		cmd.Process.Kill()
		<-r.done
		close(r.done)
		ts.Logf("[%s said]\n%s", name, r.stderr)
	})
	if err != nil {
		ts.Fatalf("up %s: %v", name, err)
	}
	var about struct{ Addrs []string }
	ts.Check(json.Unmarshal(line, &about))
	if len(about.Addrs) > 0 {
		ts.Setenv(name, about.Addrs[0])
	}
	ts.Value("nodes").(map[string]*running)[name] = r
}

func cmdDown(ts *testscript.TestScript, _ bool, args []string) {
	r := ts.Value("nodes").(map[string]*running)[args[0]]
	if r == nil {
		ts.Fatalf("%s is not up", args[0])
	}
	signal := os.Signal(syscall.SIGTERM)
	kill := len(args) > 1 && args[1] == "KILL"
	switch {
	case kill:
		signal = syscall.SIGKILL
	case len(args) > 1 && args[1] == "INT":
		signal = syscall.SIGINT
	}
	ts.Check(r.cmd.Process.Signal(signal))
	select {
	case err := <-r.done:
		r.done <- err
		if err != nil && !kill {
			ts.Fatalf("%s ended: %v", args[0], err)
		}
	case <-time.After(stopWithin):
		ts.Fatalf("%s did not end within %v", args[0], stopWithin)
	}
}

func cmdUntil(ts *testscript.TestScript, _ bool, args []string) {
	want := regexp.MustCompile(`(?m)` + args[0])
	var out []byte
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		cmd := command(ts, args[1:]...)
		out, _ = cmd.Output()
		if want.Match(out) {
			return
		}
	}
	ts.Fatalf("%q never matched %q; the last output was\n%s", strings.Join(args[1:], " "), want, out)
}

func cmdWatch(ts *testscript.TestScript, _ bool, args []string) {
	watch := command(ts, "fpnode", "watch", args[0], "--limit", "1", "--json")
	var seen bytes.Buffer
	watch.Stdout = &seen
	talk, err := watch.StderrPipe()
	ts.Check(err)
	ts.Check(watch.Start())
	timeout := time.AfterFunc(20*time.Second, func() { watch.Process.Kill() })
	defer timeout.Stop()
	lines := bufio.NewReader(talk)
	line, err := lines.ReadString('\n')
	if err != nil || !strings.Contains(line, "watching") {
		ts.Fatalf("watch said %q: %v", line, err)
	}
	out, err := command(ts, args[2:]...).CombinedOutput()
	if err != nil {
		ts.Fatalf("%v: %v\n%s", args[2:], err, out)
	}
	io.Copy(io.Discard, lines)
	ts.Check(watch.Wait())
	ts.Check(os.WriteFile(ts.MkAbs(args[1]), seen.Bytes(), 0o600))
}

func cmdFlip(ts *testscript.TestScript, _ bool, args []string) {
	matches, err := filepath.Glob(ts.MkAbs(args[0]))
	ts.Check(err)
	if len(matches) == 0 {
		ts.Fatalf("no file %s", args[0])
	}
	b, err := os.ReadFile(matches[0])
	ts.Check(err)
	at, err := strconv.Atoi(args[1])
	ts.Check(err)
	if at < 0 {
		at += len(b)
	}
	b[at] ^= 1
	ts.Check(os.WriteFile(matches[0], b, 0o600))
}

func cmdRepeat(ts *testscript.TestScript, _ bool, args []string) {
	n, err := strconv.Atoi(args[0])
	ts.Check(err)
	var b bytes.Buffer
	for i := range n {
		fmt.Fprintf(&b, "{\"_id\":\"doc-%05d\",\"n\":%d}\n", i, i)
	}
	ts.Check(os.WriteFile(ts.MkAbs(args[1]), b.Bytes(), 0o600))
}
