//go:build interop || bench

package interop

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// jsProcess is one Node process that runs driver.mjs.
type jsProcess struct {
	t    testing.TB
	cmd  *exec.Cmd
	in   io.WriteCloser
	out  *bufio.Scanner
	next int
	took time.Duration // what the library itself needed for the last command
}

func startJS(t testing.TB) *jsProcess {
	t.Helper()
	cmd := exec.Command("node", "driver.mjs")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatalf("starting node (is it installed, and was `npm ci` run in interop/?): %v", err)
	}
	s := bufio.NewScanner(out)
	s.Buffer(make([]byte, 1<<20), 256<<20)
	j := &jsProcess{t: t, cmd: cmd, in: in, out: s}
	t.Cleanup(func() {
		in.Close()
		cmd.Process.Kill()
		cmd.Wait()
	})
	return j
}

type args map[string]any

// try sends one command and decodes its answer into res (nil to ignore it).
func (j *jsProcess) try(op string, a args, res any) error {
	j.t.Helper()
	j.next++
	m := args{"id": j.next, "op": op}
	for k, v := range a {
		m[k] = v
	}
	line, err := json.Marshal(m)
	if err != nil {
		j.t.Fatal(err)
	}
	if _, err := j.in.Write(append(line, '\n')); err != nil {
		j.t.Fatalf("js %s: the driver is gone: %v", op, err)
	}
	for j.out.Scan() {
		if !strings.HasPrefix(j.out.Text(), `{"id":`) {
			continue // the library's own log
		}
		var r struct {
			ID    int
			OK    json.RawMessage
			Error string
			MS    float64
		}
		if err := json.Unmarshal(j.out.Bytes(), &r); err != nil || r.ID != j.next {
			j.t.Fatalf("js %s: answer %.200s", op, j.out.Text())
		}
		j.took = time.Duration(r.MS * float64(time.Millisecond))
		if r.Error != "" {
			return fmt.Errorf("js %s: %.300s", op, r.Error)
		}
		if res != nil {
			if err := json.Unmarshal(r.OK, res); err != nil {
				j.t.Fatalf("js %s: %v in %.300s", op, err, r.OK)
			}
		}
		return nil
	}
	j.t.Fatalf("js %s: the driver ended: %v", op, j.out.Err())
	return nil
}

func (j *jsProcess) do(op string, a args, res any) {
	j.t.Helper()
	if err := j.try(op, a, res); err != nil {
		j.t.Fatal(err)
	}
}

// jsState is what the library shows of one database.
type jsState struct {
	Head   []string
	Root   string
	CarLog [][]string
	Docs   []struct {
		Key   string
		Value json.RawMessage
	}
	Changes []struct {
		Key   string
		Value json.RawMessage
		Clock string
	}
	Live int
}

func (j *jsProcess) state(db string) jsState {
	j.t.Helper()
	var s jsState
	j.do("state", args{"db": db, "docs": true}, &s)
	return s
}
