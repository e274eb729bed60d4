package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"fpnode/api"
)

var (
	killCycles = flag.Int("kill9", 50, "cycles of TestKill9")
	killSeed   = flag.Uint64("kill9seed", 0, "seed of TestKill9; 0 takes one from the clock")
)

// TestKill9 lets four writers put and delete documents through the API of a
// real process, kills it with SIGKILL at a random moment, starts it again and
// compares: everything that was acknowledged has to be there, and what was
// not is there whole or not at all. A write that was cut short may have
// happened; nothing else may differ.
func TestKill9(t *testing.T) {
	cycles := *killCycles
	if testing.Short() {
		cycles = min(cycles, 5)
	}
	seed := *killSeed
	if seed == 0 {
		seed = uint64(time.Now().UnixNano())
	}
	t.Logf("seed %d", seed)
	k := &killing{t: t, home: filepath.Join(t.TempDir(), "h"), rng: rand.New(rand.NewPCG(seed, 0))}
	out, err := exec.Command("fpnode", "--home", k.home, "ledger", "new", "notes").CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for i := range killWriters {
		k.writers[i] = &killWriter{id: i, rng: rand.New(rand.NewPCG(seed, uint64(i+1))), have: map[string]int{}}
	}
	for n := range cycles {
		k.cycle(n)
		if t.Failed() {
			t.Fatalf("cycle %d, seed %d", n, seed)
		}
	}
	acked := 0
	for _, w := range k.writers {
		acked += w.acked
	}
	t.Logf("%d cycles, %d writes acknowledged", cycles, acked)
	if acked < cycles {
		t.Errorf("only %d writes in %d cycles: this test shows nothing", acked, cycles)
	}
	out, err = exec.Command("fpnode", "--home", k.home, "check", "--read-data").CombinedOutput()
	if err != nil {
		t.Errorf("check: %v: %s", err, out)
	}
}

const killWriters = 4

type killing struct {
	t       *testing.T
	home    string
	rng     *rand.Rand
	writers [killWriters]*killWriter
}

// killWriter writes documents of its own.
type killWriter struct {
	id    int
	rng   *rand.Rand
	next  int
	acked int
	// have is what was acknowledged, by id; -1 is deleted.
	have map[string]int
	// open is the write that was cut short, as it would be if it happened.
	open map[string]int
}

func (k *killing) cycle(n int) {
	cmd := exec.Command("fpnode", "--home", k.home, "--json", "up", "--no-mdns", "--listen", "/ip4/127.0.0.1/tcp/0")
	out, err := cmd.StdoutPipe()
	if err != nil {
		k.t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		k.t.Fatal(err)
	}
	defer cmd.Wait()
	defer cmd.Process.Kill()
	if _, err := bufio.NewReader(out).ReadBytes('\n'); err != nil {
		k.t.Errorf("the node did not start: %v", err)
		return
	}
	ctx := context.Background()
	c, err := api.Dial(ctx, k.home)
	if err != nil {
		k.t.Error(err)
		return
	}
	defer c.Close()
	k.compare(ctx, c)
	if k.t.Failed() {
		return
	}
	time.AfterFunc(time.Duration(k.rng.IntN(60_000))*time.Microsecond, func() { cmd.Process.Kill() })
	var running sync.WaitGroup
	for _, w := range k.writers {
		running.Go(func() {
			if err := w.run(ctx, c); err != nil {
				k.t.Error(err)
			}
		})
	}
	running.Wait()
}

// run writes until the node is gone.
func (w *killWriter) run(ctx context.Context, c *api.Client) error {
	for {
		err := w.write(ctx, c)
		if err == nil {
			maps.Copy(w.have, w.open)
			w.open = nil
			w.acked++
			continue
		}
		if _, ok := errors.AsType[*api.Error](err); ok && api.CodeOf(err) != api.Failed {
			return fmt.Errorf("writer %d: %w", w.id, err) // the node answered, and refused
		}
		return nil
	}
}

// write does one write: mostly one document, sometimes a batch, sometimes a
// deletion.
func (w *killWriter) write(ctx context.Context, c *api.Client) error {
	w.open = map[string]int{}
	switch r := w.rng.IntN(20); {
	case r == 0 && w.next > 0:
		id := fmt.Sprintf("w%d-%d", w.id, w.rng.IntN(w.next))
		w.open[id] = -1
		_, err := c.Delete(ctx, "notes", true, id)
		return err
	case r < 4:
		var docs []json.RawMessage
		for range 2 + w.rng.IntN(30) {
			docs = append(docs, w.doc())
		}
		_, err := c.Put(ctx, "notes", docs...)
		return err
	default:
		_, err := c.Put(ctx, "notes", w.doc())
		return err
	}
}

// doc is a new document, or a new version of one.
func (w *killWriter) doc() json.RawMessage {
	n := w.next
	if n > 0 && w.rng.IntN(4) == 0 {
		n = w.rng.IntN(n)
	} else {
		w.next++
	}
	id, v := fmt.Sprintf("w%d-%d", w.id, n), int(w.rng.Int32())
	w.open[id] = v
	return json.RawMessage(fmt.Sprintf(`{"_id":%q,"v":%d}`, id, v))
}

// compare reads everything and holds it against what was acknowledged.
func (k *killing) compare(ctx context.Context, c *api.Client) {
	got := map[string]int{}
	for row, err := range c.Docs(ctx, "notes", api.DocsOptions{}) {
		if err != nil {
			k.t.Errorf("reading back: %v", err)
			return
		}
		var doc struct{ V int }
		if err := json.Unmarshal(row.Value, &doc); err != nil {
			k.t.Errorf("reading back: %v", err)
			return
		}
		got[row.Key] = doc.V
	}
	want := 0
	for _, w := range k.writers {
		// The open write happened whole or not at all.
		if len(w.open) > 0 && w.holds(got, w.open) {
			maps.Copy(w.have, w.open)
		}
		w.open = nil
		if !w.holds(got, w.have) {
			for id, v := range w.have {
				if g, ok := got[id]; v >= 0 && (!ok || g != v) || v < 0 && ok {
					k.t.Errorf("%s: acknowledged %d, found %d (there: %v)", id, v, g, ok)
				}
			}
		}
		for _, v := range w.have {
			if v >= 0 {
				want++
			}
		}
	}
	if len(got) != want {
		k.t.Errorf("%d documents are there, want %d", len(got), want)
	}
}

// holds reports whether got has every document of want as want has it.
func (w *killWriter) holds(got, want map[string]int) bool {
	for id, v := range want {
		g, ok := got[id]
		if v >= 0 && (!ok || g != v) || v < 0 && ok {
			return false
		}
	}
	return true
}
