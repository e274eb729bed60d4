package main

import (
	"bytes"
	"context"
	"embed"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"fpnode/api"
	"fpnode/node"
)

// bundled is a ledger as @fireproof/core 0.24.19 wrote it: store/shared and
// the key bag that opens it.
//
//go:embed all:bundled
var bundled embed.FS

const demoWait = 30 * time.Second

func (a *app) demo() *cobra.Command {
	var keep string
	cmd := &cobra.Command{
		Use:   "demo",
		Short: "show two nodes that merge a ledger of JavaScript Fireproof",
		Long: `Runs two nodes on this machine. Both import a small bundled ledger that JavaScript Fireproof wrote, edit it apart from
each other, meet, and merge; then the result is checked and exported. Each step shows the command that does it. It
touches nothing of yours and leaves nothing behind, unless --keep is given.`,
		Args:    cobra.NoArgs,
		Example: "  fpnode demo --keep /tmp/fpnode-demo",
	}
	cmd.Flags().StringVar(&keep, "keep", "", "do it in `DIR`, which must not be there yet, and leave it")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		a.begun = true
		dir, err := place(keep)
		if err != nil {
			return err
		}
		if keep == "" {
			defer os.RemoveAll(dir)
		}
		d := &demonstration{a: a, dir: dir}
		if err := d.run(cmd.Context()); err != nil {
			return fmt.Errorf("demo: %w", err)
		}
		d.next(keep != "")
		return nil
	}
	return cmd
}

// place makes the directory of a demonstration: keep, or a temporary one.
func place(keep string) (string, error) {
	if keep == "" {
		return os.MkdirTemp("", "fpnode-demo-")
	}
	dir, err := filepath.Abs(keep)
	if err != nil {
		return "", err
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		return "", &api.Error{Code: api.Conflict, Message: err.Error(), Hint: "--keep wants a directory that is not there yet"}
	}
	return dir, nil
}

// demonstration is one run of demo. Its commands are run by the program's
// own command tree, as if they were typed.
type demonstration struct {
	a   *app
	dir string
}

func (d *demonstration) run(ctx context.Context) (err error) {
	d.title("A ledger that JavaScript Fireproof wrote: the files of its store, and its key")
	if err := d.unpack(); err != nil {
		return err
	}
	d.title("Two nodes, A and B, import it, each into a home of its own")
	for _, home := range []string{"a", "b"} {
		if err := d.typed(ctx, "", "--home", home, "ledger", "import", "shared", "--from", "js/store/shared", "--keybag", "js/keybag"); err != nil {
			return err
		}
	}

	d.title("They are offline, and both edit it. One document, \"both\", is edited in two ways")
	for _, e := range []struct{ home, doc string }{
		{"a", `{"_id":"both","v":"edited on A"}`},
		{"a", `{"_id":"from-a","v":"only A knows"}`},
		{"b", `{"_id":"both","v":"edited on B"}`},
		{"b", `{"_id":"from-b","v":"only B knows"}`},
	} {
		if err := d.typed(ctx, e.doc, "--home", e.home, "put", "shared"); err != nil {
			return err
		}
	}
	if err := d.typed(ctx, "", "--home", "b", "del", "shared", "del-in-b"); err != nil {
		return err
	}

	d.title("Both go up. B is told where A is; they meet, and each fetches what it lacks")
	a, stopA, err := d.up(ctx, "a", nil)
	if err != nil {
		return err
	}
	defer func() { err = firstError(err, stopA()) }()
	b, stopB, err := d.up(ctx, "b", a.addrs[:1])
	if err != nil {
		return err
	}
	defer func() { err = firstError(err, stopB()) }()
	if err := d.untilEqual(ctx, a, b); err != nil {
		return err
	}
	for _, home := range []string{"a", "b"} {
		if err := d.typed(ctx, "", "--home", home, "docs", "shared"); err != nil {
			return err
		}
	}

	d.title("\"both\" has a winner, the same everywhere. What lost is not gone")
	if err := d.typed(ctx, "", "--home", "a", "conflicts", "shared"); err != nil {
		return err
	}
	d.title("A decides. The decision reaches B while both are up")
	if err := d.typed(ctx, `{"_id":"both","v":"agreed"}`, "--home", "a", "put", "shared"); err != nil {
		return err
	}
	if err := d.untilEqual(ctx, a, b); err != nil {
		return err
	}
	if err := d.typed(ctx, "", "--home", "b", "get", "shared", "both"); err != nil {
		return err
	}

	d.title("B's store is verified, down to every byte, and exported for JavaScript")
	if err := d.typed(ctx, "", "--home", "b", "check", "--read-data"); err != nil {
		return err
	}
	return d.typed(ctx, "", "--home", "b", "ledger", "export", "shared", "--to", "out/shared", "--keybag", "out/keybag")
}

func firstError(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

func (d *demonstration) title(text string) {
	d.a.print("\n%s", text)
	d.a.out.Flush()
}

// path puts a path of the demonstration under its directory.
func (d *demonstration) path(p string) string { return filepath.Join(d.dir, filepath.FromSlash(p)) }

// unpack writes the bundled ledger.
func (d *demonstration) unpack() error {
	return fs.WalkDir(bundled, "bundled", func(name string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		to := d.path("js" + strings.TrimPrefix(name, "bundled"))
		if e.IsDir() {
			return os.MkdirAll(to, 0o700)
		}
		content, err := bundled.ReadFile(name)
		if err != nil {
			return err
		}
		d.a.print("  %s", strings.TrimPrefix(name, "bundled/"))
		return os.WriteFile(to, content, 0o600)
	})
}

// typed shows a command and runs it. Paths are shown as they are relative to
// the directory of the demonstration.
func (d *demonstration) typed(ctx context.Context, stdin string, args ...string) error {
	shown := "fpnode " + strings.Join(args, " ")
	if stdin != "" {
		shown = fmt.Sprintf("echo '%s' | %s", stdin, shown)
	}
	d.a.print("  $ %s", shown)
	args = slices.Clone(args)
	for i, arg := range args {
		if i > 0 && slices.Contains([]string{"--home", "--from", "--keybag", "--to"}, args[i-1]) {
			args[i] = d.path(arg)
		}
	}
	var out, talk bytes.Buffer
	sub := newApp(strings.NewReader(stdin), &out, &talk)
	root := sub.root()
	root.SetArgs(args)
	err := root.ExecuteContext(ctx)
	if ferr := sub.out.Flush(); err == nil {
		err = ferr
	}
	for line := range strings.Lines(strings.ReplaceAll(out.String(), d.dir+string(filepath.Separator), "")) {
		d.a.print("    %s", strings.TrimSuffix(line, "\n"))
	}
	d.a.out.Flush()
	if d.a.verbose || err != nil {
		io.Copy(d.a.err, &talk)
	}
	return err
}

// demoNode is a node that runs in this process.
type demoNode struct {
	client *api.Client
	addrs  []string
}

// up runs a node on the loopback interface, found by nobody.
func (d *demonstration) up(ctx context.Context, home string, peers []string) (n *demoNode, stop func() error, err error) {
	net := node.Network{Listen: []string{"/ip4/127.0.0.1/tcp/0"}, Peers: peers}
	shown := "fpnode --home " + home + " up"
	for _, p := range peers {
		shown += " --peer " + p
	}
	d.a.print("  $ %s &", shown)
	opened, err := node.Open(ctx, node.Config{Home: d.path(home), Version: version(), Logger: d.a.logger(slog.LevelWarn)})
	if err != nil {
		return nil, nil, err
	}
	about, end, err := serve(ctx, opened, net)
	if err != nil {
		return nil, nil, firstError(err, opened.Close())
	}
	stop = func() error { return firstError(end(), opened.Close()) }
	return &demoNode{client: opened.Client(), addrs: about.Addrs}, stop, nil
}

// untilEqual waits until two nodes have one head, and so one content.
func (d *demonstration) untilEqual(ctx context.Context, a, b *demoNode) error {
	start := time.Now()
	ctx, cancel := context.WithTimeoutCause(ctx, demoWait, &api.Error{Code: api.Timeout, Message: fmt.Sprintf("the nodes are not equal after %v", demoWait), Hint: "--verbose shows what they say"})
	defer cancel()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		ia, err := a.client.Info(ctx, "shared")
		if err != nil {
			return err
		}
		ib, err := b.client.Info(ctx, "shared")
		if err != nil {
			return err
		}
		slices.Sort(ia.Head)
		slices.Sort(ib.Head)
		if slices.Equal(ia.Head, ib.Head) {
			if ia.Root != ib.Root {
				return fmt.Errorf("internal error: one head, two roots: %s and %s", ia.Root, ib.Root)
			}
			d.a.print("  equal after %v: %s, root …%s", time.Since(start).Round(time.Millisecond), count(ia.Docs, "document"), ia.Root[max(0, len(ia.Root)-8):])
			d.a.out.Flush()
			return nil
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-tick.C:
		}
	}
}

// next says what to try.
func (d *demonstration) next(kept bool) {
	a := d.a
	a.print("")
	a.print("Try next:")
	if kept {
		a.print("  fpnode --home %s docs shared", d.path("b"))
		a.print("  fpnode --home %s history shared both", d.path("b"))
		a.print("  FP_STORAGE_URL=file://%s FP_KEYBAG_URL=file://%s  for a program with fireproof(\"shared\")", d.path("out"), d.path("out/keybag"))
		return
	}
	a.print("  fpnode demo --keep /tmp/fpnode-demo        the same, and leave the homes and the export there")
	a.print("  fpnode ledger new notes                    a ledger of your own")
	a.print("  echo '{\"text\":\"buy milk\"}' | fpnode put notes")
	a.print("  fpnode up                                  share it")
}
