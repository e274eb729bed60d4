package node

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"fpnode/api"
)

// soon is how long anything may take that needs no waiting by design.
const soon = 20 * time.Second

// running is a node whose Run runs.
type running struct {
	*Node
	c     *api.Client
	about api.About
	names []string
	stop  func() error
}

// run starts the network of a node on the loopback interface.
func run(t testing.TB, n *Node, peers ...string) *running {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	r := &running{Node: n, c: n.Client()}
	ready, done := make(chan struct{}), make(chan error, 1)
	net := Network{Listen: []string{"/ip4/127.0.0.1/tcp/0"}, Peers: peers, Ready: func(about api.About, names []string) {
		r.about, r.names = about, names
		close(ready)
	}}
	go func() { done <- n.Run(ctx, net) }()
	r.stop = sync.OnceValue(func() error {
		cancel()
		start := time.Now()
		err := <-done
		if d := time.Since(start); d > 5*time.Second {
			t.Errorf("it took %v to stop", d)
		}
		return err
	})
	t.Cleanup(func() {
		if err := r.stop(); err != nil {
			t.Error(err)
		}
	})
	select {
	case <-ready:
	case err := <-done:
		t.Fatal(err)
	}
	return r
}

func put(t testing.TB, c *api.Client, ledger string, docs ...string) {
	t.Helper()
	var raw []json.RawMessage
	for _, d := range docs {
		raw = append(raw, json.RawMessage(d))
	}
	if _, err := c.Put(context.Background(), ledger, raw...); err != nil {
		t.Fatal(err)
	}
}

// ids lists the documents of a ledger.
func ids(t testing.TB, c *api.Client, ledger string) []string {
	t.Helper()
	var all []string
	for d, err := range c.Docs(context.Background(), ledger, api.DocsOptions{}) {
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, d.Key)
	}
	return all
}

// until waits for a ledger to hold want.
func until(t testing.TB, c *api.Client, ledger string, want ...string) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(soon); time.Now().Before(deadline); <-tick.C {
		if slices.Equal(ids(t, c, ledger), want) {
			return
		}
	}
	t.Fatalf("it holds %v, want %v", ids(t, c, ledger), want)
}

// sameLedger gives b the ledger that a has.
func sameLedger(t testing.TB, a, b *api.Client, name string) {
	t.Helper()
	key, err := a.ExportKey(context.Background(), name)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := b.ImportKey(context.Background(), api.KeyImportRequest{Ledger: name, Key: key}); err != nil {
		t.Fatal(err)
	}
}

func TestLedgersJoinAndLeaveWhileUp(t *testing.T) {
	ctx := t.Context()
	a := run(t, openNode(t, Config{}))
	b := run(t, openNode(t, Config{}), a.about.Addrs[0])
	if len(a.names) != 0 {
		t.Errorf("it shares %v", a.names)
	}
	// Made while up, on both sides.
	if _, err := a.c.Create(ctx, "notes"); err != nil {
		t.Fatal(err)
	}
	put(t, a.c, "notes", `{"_id":"1"}`)
	sameLedger(t, a.c, b.c, "notes")
	until(t, b.c, "notes", "1")
	put(t, b.c, "notes", `{"_id":"2"}`, `{"_id":"3"}`)
	until(t, a.c, "notes", "1", "2", "3")

	// Removed while up: nothing of it is left, and it can come back.
	if err := b.c.Remove(ctx, "notes"); err != nil {
		t.Fatal(err)
	}
	if _, err := b.c.Info(ctx, "notes"); api.CodeOf(err) != api.NotFound {
		t.Error(err)
	}
	put(t, a.c, "notes", `{"_id":"4"}`)
	sameLedger(t, a.c, b.c, "notes")
	until(t, b.c, "notes", "1", "2", "3", "4")

	// A ledger of one's own goes nowhere.
	if _, err := a.c.Create(ctx, "private"); err != nil {
		t.Fatal(err)
	}
	put(t, a.c, "private", `{"_id":"secret"}`)
	put(t, a.c, "notes", `{"_id":"5"}`)
	until(t, b.c, "notes", "1", "2", "3", "4", "5")
	if names := b.Names(); !slices.Equal(names, []string{"notes"}) {
		t.Errorf("b has %v", names)
	}
}

func TestRestartCatchesUp(t *testing.T) {
	ctx := t.Context()
	a := run(t, openNode(t, Config{}))
	if _, err := a.c.Create(ctx, "notes"); err != nil {
		t.Fatal(err)
	}
	nb := openNode(t, Config{})
	sameLedger(t, a.c, nb.Client(), "notes")
	b := run(t, nb, a.about.Addrs[0])
	put(t, a.c, "notes", `{"_id":"1"}`)
	until(t, b.c, "notes", "1")
	if err := b.stop(); err != nil {
		t.Fatal(err)
	}
	for i := range 50 {
		put(t, a.c, "notes", fmt.Sprintf(`{"_id":"later-%02d"}`, i))
	}
	put(t, nb.Client(), "notes", `{"_id":"offline"}`)
	// The same Node comes up again.
	b = run(t, nb, a.about.Addrs[0])
	want := ids(t, a.c, "notes")
	want = append(want, "offline")
	slices.Sort(want)
	until(t, b.c, "notes", want...)
	until(t, a.c, "notes", want...)
}

// A ledger that cannot be opened keeps neither the node nor the others from
// being there.
func TestBrokenLedgerHidesNoOther(t *testing.T) {
	ctx := t.Context()
	home := filepath.Join(t.TempDir(), "home")
	n, err := Open(ctx, Config{Home: home, Create: true})
	if err != nil {
		t.Fatal(err)
	}
	c := n.Client()
	for _, name := range []string{"broken", "whole"} {
		if _, err := c.Create(ctx, name); err != nil {
			t.Fatal(err)
		}
		put(t, c, name, `{"_id":"1"}`, `{"_id":"2"}`)
		put(t, c, name, `{"_id":"3"}`)
	}
	id, err := n.ID("broken")
	if err != nil {
		t.Fatal(err)
	}
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	// The index is gone, so the log is read again; it is damaged in the middle.
	if err := os.RemoveAll(filepath.Join(home, "index")); err != nil {
		t.Fatal(err)
	}
	change(t, filepath.Join(home, "ledgers", id, "000001.seg"), func(b []byte) []byte {
		b[200] ^= 1
		return b
	})
	n = openNode(t, Config{Home: home})
	r := run(t, n)
	if !slices.Equal(r.names, []string{"whole"}) {
		t.Errorf("it shares %v", r.names)
	}
	if got := ids(t, r.c, "whole"); len(got) != 3 {
		t.Errorf("the whole one holds %v", got)
	}
	_, err = r.c.Info(ctx, "broken")
	if api.CodeOf(err) != api.Corrupt {
		t.Errorf("the broken one: %v", err)
	}
	var listed []string
	for l, err := range r.c.Ledgers(ctx) {
		if err != nil {
			t.Fatal(err)
		}
		listed = append(listed, l.Name)
		if (l.Error != nil) != (l.Name == "broken") {
			t.Errorf("%s: %v", l.Name, l.Error)
		}
	}
	if !slices.Equal(listed, []string{"broken", "whole"}) {
		t.Errorf("listed: %v", listed)
	}
	res, err := r.c.Check(ctx, api.CheckRequest{}, nil, nil)
	if err != nil || res.Problems == 0 {
		t.Errorf("check found nothing: %+v, %v", res, err)
	}
}

// TestNothingSecretIsReadable plants words in names, ids, values, file names
// and files, runs everything with the most talkative log, and looks for the
// words and the keys in the log and in every file of both homes.
func TestNothingSecretIsReadable(t *testing.T) {
	ctx := t.Context()
	var log lockedBuffer
	logger := slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	na := openNode(t, Config{Logger: logger})
	nb := openNode(t, Config{Logger: logger})
	a := run(t, na)
	if _, err := a.c.Create(ctx, "notes"); err != nil {
		t.Fatal(err)
	}
	sameLedger(t, a.c, nb.Client(), "notes")
	b := run(t, nb, a.about.Addrs[0])
	put(t, a.c, "notes", `{"_id":"plantedid","plantedfield":"plantedvalue"}`)
	put(t, a.c, "notes", `{"_id":"other","plantedfield":"plantedvalue"}`, `{"_id":"third"}`)
	content := strings.Repeat("plantedcontent ", 100)
	if _, err := a.c.AddFile(ctx, "notes", "plantedid", "plantedfile", "text/plain", int64(len(content)), strings.NewReader(content)); err != nil {
		t.Fatal(err)
	}
	for _, err := range a.c.Query(ctx, "notes", api.QueryRequest{Field: "plantedfield"}) {
		if err != nil {
			t.Fatal(err)
		}
	}
	until(t, b.c, "notes", "other", "plantedid", "third")
	a.c.Get(ctx, "notes", "plantedmissing")
	a.c.Put(ctx, "notes", json.RawMessage(`{"_id":"plantedbad","x":1,"x":"plantedvalue"}`))
	a.c.ImportKey(ctx, api.KeyImportRequest{Ledger: "bad", Key: "zplantedkey"})
	key, err := a.c.ExportKey(ctx, "notes")
	if err != nil {
		t.Fatal(err)
	}
	if err := a.stop(); err != nil {
		t.Fatal(err)
	}
	if err := b.stop(); err != nil {
		t.Fatal(err)
	}
	if log.Len() == 0 {
		t.Error("nothing was logged: this test shows nothing")
	}
	for _, word := range []string{"planted", key, na.api.Token(), nb.api.Token()} {
		if i := bytes.Index(log.Bytes(), []byte(word)); i >= 0 {
			t.Errorf("the log holds %q: …%s…", word, log.Bytes()[max(0, i-100):min(log.Len(), i+100)])
		}
	}
	files := 0
	for _, home := range []string{na.cfg.Home, nb.cfg.Home} {
		err := filepath.WalkDir(home, func(path string, e fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			info, err := e.Info()
			if err != nil {
				return err
			}
			// pebble makes its empty LOCK as the umask says; the program's is 077.
			if info.Mode().Perm()&0o077 != 0 && info.Size() > 0 {
				t.Errorf("%s has mode %o", path, info.Mode().Perm())
			}
			if e.IsDir() {
				return nil
			}
			files++
			b, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			if bytes.Contains(b, []byte("planted")) {
				t.Errorf("%s holds what was planted", path)
			}
			if filepath.Dir(path) != filepath.Join(home, keysDir) && bytes.Contains(b, []byte(key)) {
				t.Errorf("%s holds the key", path)
			}
			return nil
		})
		if err != nil {
			t.Error(err)
		}
	}
	if files < 10 {
		t.Errorf("only %d files were looked at", files)
	}
}

type lockedBuffer struct {
	mu sync.Mutex
	bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.Buffer.Write(p)
}

// TestRunLeavesNothingBehind: no goroutine, no file of the API.
func TestRunLeavesNothingBehind(t *testing.T) {
	before := goleak.IgnoreCurrent()
	home := filepath.Join(t.TempDir(), "home")
	n, err := Open(t.Context(), Config{Home: home, Create: true})
	if err != nil {
		t.Fatal(err)
	}
	if err := n.Create(t.Context(), "notes"); err != nil {
		t.Fatal(err)
	}
	r := run(t, n)
	remote, err := api.Dial(t.Context(), home)
	if err != nil {
		t.Fatal(err)
	}
	if about, err := remote.About(t.Context()); err != nil || about.Peer != r.about.Peer || about.Peer == "" {
		t.Errorf("%+v, %v", about, err)
	}
	remote.Close()
	if err := r.stop(); err != nil {
		t.Error(err)
	}
	if about := n.About(); about.API != "" || about.Addrs != nil {
		t.Errorf("it is down, and says %+v", about)
	}
	if err := n.Close(); err != nil {
		t.Error(err)
	}
	if left, _ := filepath.Glob(filepath.Join(home, "api.*")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
	goleak.VerifyNone(t, before)
}

func TestNearest(t *testing.T) {
	names := []string{"notes", "todo", "work/plans", "a"}
	for in, want := range map[string]string{
		"nots": "notes", "ntoes": "notes", "note": "notes", "Notes": "notes", "todoo": "todo",
		"work/plan": "work/plans", "plans": "", "elephant": "", "": "", "b": "a",
	} {
		if got, _ := nearest(in, names); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
}
