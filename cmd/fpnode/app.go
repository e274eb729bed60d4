package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"fpnode/api"
	"fpnode/node"
)

// app is one run of the program: its streams and global flags.
type app struct {
	in  io.Reader
	out *bufio.Writer // answers
	err io.Writer     // talk

	home    string
	json    bool
	verbose bool

	// begun is set when a verb starts: an error before that is misuse.
	begun bool
	outFd int // file descriptor of out if it is a terminal, else -1
	errFd int
}

func newApp(stdin io.Reader, stdout, stderr io.Writer) *app {
	return &app{in: stdin, out: bufio.NewWriterSize(stdout, 64<<10), err: stderr, outFd: terminal(stdout), errFd: terminal(stderr)}
}

// terminal returns the file descriptor of w if it is a terminal, else -1.
func terminal(w any) int {
	f, ok := w.(*os.File)
	if !ok || !term.IsTerminal(int(f.Fd())) {
		return -1
	}
	return int(f.Fd())
}

// say writes a line of talk, after what has been answered so far.
func (a *app) say(format string, args ...any) {
	a.out.Flush() // an error of stdout comes up at the end
	fmt.Fprintln(a.err, visible(fmt.Sprintf("fpnode: "+format, args...)))
}

// fail tells what went wrong and returns the exit code.
func (a *app) fail(err error) int {
	e, ok := errors.AsType[*api.Error](err)
	if !ok {
		e = &api.Error{Code: api.Failed}
		if !a.begun {
			e.Code = api.Misuse
		}
	}
	a.say("error: %s", oneLine(err.Error()))
	if e.Code == api.Misuse && e.Hint == "" {
		e.Hint = "fpnode help shows how it is used"
	}
	for _, hint := range strings.Split(e.Hint, "\n") {
		if hint != "" {
			a.say("hint: %s", hint)
		}
	}
	code, ok := exits[e.Code]
	if !ok {
		return exits[api.Failed]
	}
	return code
}

func oneLine(s string) string {
	return strings.Join(strings.FieldsFunc(s, func(r rune) bool { return r == '\n' || r == '\r' }), "; ")
}

// misuse is an error of the command line itself.
func misuse(format string, args ...any) error {
	return &api.Error{Code: api.Misuse, Message: fmt.Sprintf(format, args...)}
}

// print writes a line of the answer.
func (a *app) print(format string, args ...any) {
	fmt.Fprintln(a.out, visible(fmt.Sprintf(format, args...)))
}

// object writes v as one line of JSON. Programs get the characters as they
// are, a terminal gets those that it would obey as escapes.
func (a *app) object(v any) error {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return err
	}
	if a.outFd >= 0 {
		_, err := a.out.WriteString(visible(b.String()))
		return err
	}
	_, err := a.out.Write(b.Bytes())
	return err
}

// homeDir is --home, else FPNODE_HOME, else the XDG data directory.
func (a *app) homeDir() (string, error) {
	home := a.home
	if home == "" {
		home = os.Getenv("FPNODE_HOME")
	}
	if home == "" {
		base := os.Getenv("XDG_DATA_HOME")
		if base == "" || !filepath.IsAbs(base) { // the XDG base directory specification ignores relative ones
			user, err := os.UserHomeDir()
			if err != nil {
				return "", &api.Error{Code: api.NoStore, Message: "no home directory is known", Hint: "use --home DIR or set FPNODE_HOME"}
			}
			base = filepath.Join(user, ".local", "share")
		}
		home = filepath.Join(base, "fpnode")
	}
	home, err := filepath.Abs(home)
	if err != nil {
		return "", err
	}
	if info, err := os.Stat(home); err == nil && !info.IsDir() {
		return "", &api.Error{Code: api.NoStore, Message: fmt.Sprintf("%s is a file, and the home is a directory", home), Hint: "use --home with the directory where a node keeps everything, or a new one"}
	}
	return home, nil
}

// lockWait is how long a verb waits for another short one to let go of the
// store.
const lockWait = 5 * time.Second

// connect returns a client of the running node, or of a node that it opens
// in this process; done closes it. With create, a home that is not there yet
// is made.
func (a *app) connect(ctx context.Context, create bool) (c *api.Client, done func() error, err error) {
	home, err := a.homeDir()
	if err != nil {
		return nil, nil, err
	}
	for deadline := time.Now().Add(lockWait); ; {
		c, err := api.Dial(ctx, home)
		if err == nil {
			return c, func() error { c.Close(); return nil }, nil
		}
		if api.CodeOf(err) != api.NoDaemon {
			return nil, nil, err
		}
		n, err := node.Open(ctx, node.Config{Home: home, Create: create, Version: version(), Logger: a.logger(slog.LevelWarn)})
		if err == nil {
			return n.Client(), n.Close, nil
		}
		// Another verb is at work, or a node is just starting.
		if api.CodeOf(err) != api.Locked || time.Now().After(deadline) {
			return nil, nil, err
		}
		select {
		case <-ctx.Done():
			return nil, nil, context.Cause(ctx)
		case <-time.After(25 * time.Millisecond):
		}
	}
}

// need says whether a verb makes the store when there is none.
type need bool

const (
	haveStore need = false
	makeStore need = true
)

// verb wraps the run of a verb that needs a client.
func (a *app) verb(n need, f func(ctx context.Context, c *api.Client, args []string) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) (err error) {
		a.begun = true
		ctx := cmd.Context()
		c, done, err := a.connect(ctx, bool(n))
		if err != nil {
			return err
		}
		defer func() {
			if cerr := done(); err == nil && cerr != nil {
				err = fmt.Errorf("closing the store: %w", cerr)
			}
		}()
		return f(ctx, c, args)
	}
}

// logger writes records of at least level as talk; --verbose shows all.
func (a *app) logger(level slog.Level) *slog.Logger {
	if a.verbose {
		level = slog.LevelDebug
	}
	return slog.New(&talk{w: a.err, level: level})
}

// absolute resolves a path of the command line, since a running node has a
// working directory of its own.
func absolute(path string) (string, error) {
	if path == "" {
		return "", nil
	}
	return filepath.Abs(path)
}
