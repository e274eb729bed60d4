// Package node builds, runs and stops everything that is one peer.
//
// [Open] a home, use [Node.Client] to speak to it in this process, and
// [Node.Run] to meet peers and to serve the same API on a socket. [Node.Close]
// comes last. It is the only package that knows all the others; what crosses
// between them is wired in wire.go, and layers_test.go holds every import
// against the table of the design.
//
// Guarantees:
//   - One process has a home open; a second is told which one does.
//   - A home is made only if Config.Create is set, and only where nothing
//     else is. A store without its keys is reported, never given new ones.
//   - Run returns when everything it started has ended. Close closes in the
//     reverse order of opening, also after a failed Open.
//   - Every error that leaves through the API has a stable code, and where
//     there is something to do about it, a hint (explain.go).
package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sort"
	"sync"

	"github.com/cockroachdb/pebble/v2/vfs"

	"fpnode/api"
	"fpnode/blockstore"
	"fpnode/keyring"
	"fpnode/ledger"
)

// Config says which home to open. Home is required.
type Config struct {
	// Home is the directory that holds everything this node has.
	Home string
	// Create makes the home if there is none.
	Create bool
	// Version is what peers and programs are told about this program.
	Version string
	// FS is where the home is; vfs.Default if nil.
	FS vfs.FS
	// Logger defaults to one that discards.
	Logger *slog.Logger
	// ReserveBytes is the room on disk that is left free; the store's default
	// if 0, none if negative.
	ReserveBytes int64
}

// Node is an open home. Its methods are safe for concurrent use.
type Node struct {
	cfg   Config
	fs    vfs.FS
	log   *slog.Logger
	ring  *keyring.Ring
	store *blockstore.Store
	api   *api.Server

	// mu guards the fields below. It is not held across I/O.
	mu     sync.Mutex
	closed bool
	open   map[[32]byte]*opening
	up     *network // while Run runs
	about  api.About
}

// opening is a ledger that is open or being opened; l and err are set when
// ready is closed.
type opening struct {
	ready chan struct{}
	l     *ledger.Ledger
	err   error
}

// versionFile is the file that makes a directory a store.
const versionFile = "VERSION"

// keysDir holds the secrets.
const keysDir = "keys"

// Open opens a home. Its errors are *[api.Error].
func Open(ctx context.Context, cfg Config) (*Node, error) {
	n, err := open(ctx, cfg)
	if err != nil {
		return nil, explain(err)
	}
	return n, nil
}

func open(_ context.Context, cfg Config) (*Node, error) {
	if cfg.FS == nil {
		cfg.FS = vfs.Default
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	n := &Node{cfg: cfg, fs: cfg.FS, log: cfg.Logger, open: map[[32]byte]*opening{}}
	n.about = api.About{Version: cfg.Version, Home: cfg.Home, PID: os.Getpid()}
	if err := n.place(); err != nil {
		return nil, err
	}
	ring, err := keyring.Open(n.fs, n.fs.PathJoin(cfg.Home, keysDir))
	if err != nil {
		return nil, fmt.Errorf("opening the keys: %w", err)
	}
	n.ring = ring
	n.store, err = blockstore.Open(blockstore.Config{
		FS:           n.fs,
		Dir:          cfg.Home,
		Vault:        ring.Vault(),
		ReserveBytes: cfg.ReserveBytes,
		Logger:       cfg.Logger,
	})
	if err != nil {
		return nil, fmt.Errorf("opening the store: %w", err)
	}
	n.api = api.New(api.Config{Node: n, Logger: cfg.Logger})
	return n, nil
}

// place makes sure that the home is there and is one.
func (n *Node) place() error {
	home := n.cfg.Home
	stored, err := exists(n.fs, n.fs.PathJoin(home, versionFile))
	if err != nil {
		return fmt.Errorf("looking for a store: %w", err)
	}
	keyed, err := keyring.Exists(n.fs, n.fs.PathJoin(home, keysDir))
	if err != nil {
		return fmt.Errorf("looking for the keys: %w", err)
	}
	switch {
	case stored && keyed:
		return nil
	case stored:
		return &api.Error{
			Code:    api.WrongKey,
			Message: fmt.Sprintf("the store in %s has lost its keys", home),
			Hint:    fmt.Sprintf("bring back %s from a backup; nothing opens the store without it", n.fs.PathJoin(home, keysDir)),
		}
	case !n.cfg.Create:
		return &api.Error{
			Code:    api.NoStore,
			Message: fmt.Sprintf("there is no store in %s", home),
			Hint:    "make one with: fpnode ledger new NAME\nor say where it is with --home DIR or FPNODE_HOME",
		}
	case keyed:
		return nil // a first Open was cut short after the keys
	}
	list, err := n.fs.List(home)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("making the home: %w", err)
	}
	for _, name := range list {
		if name != keysDir && name != "repo.lock" {
			return &api.Error{
				Code:    api.Conflict,
				Message: fmt.Sprintf("%s is not empty, and is no fpnode home", home),
				Hint:    "use --home with an empty or new directory",
			}
		}
	}
	return n.fs.MkdirAll(home, 0o700)
}

func exists(fs vfs.FS, path string) (bool, error) {
	_, err := fs.Stat(path)
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

// Client returns a client of this node that needs no socket.
func (n *Node) Client() *api.Client { return n.api.Client() }

// Close closes ledgers and store. Run has returned, and no request runs.
func (n *Node) Close() error {
	n.mu.Lock()
	n.closed = true
	opened := make([]*opening, 0, len(n.open))
	for _, o := range n.open {
		opened = append(opened, o)
	}
	n.open = nil
	n.mu.Unlock()
	var errs []error
	for _, o := range opened {
		<-o.ready
		if o.l != nil {
			errs = append(errs, o.l.Close())
		}
	}
	errs = append(errs, n.store.Close())
	if err := errors.Join(errs...); err != nil {
		return explain(err)
	}
	return nil
}

// About says what runs.
func (n *Node) About() api.About {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.about
}

// Names lists the ledgers, sorted.
func (n *Node) Names() []string {
	entries := n.ring.Ledgers()
	names := make([]string, len(entries))
	for i, e := range entries {
		names[i] = e.Name
	}
	sort.Strings(names)
	return names
}

// ID returns what a ledger is called between replicas.
func (n *Node) ID(name string) (string, error) {
	e, err := n.entry(name)
	if err != nil {
		return "", err
	}
	return keyring.FormatID(e.ID), nil
}

// entry finds a ledger by name, and if there is none, one that is called
// nearly so.
func (n *Node) entry(name string) (keyring.Entry, error) {
	e, err := n.ring.Lookup(name)
	if err == nil {
		return e, nil
	}
	if !errors.Is(err, keyring.ErrNotFound) {
		return e, err
	}
	names := n.Names()
	hint := "fpnode ledger ls lists them"
	if len(names) == 0 {
		hint = "there is none yet; make one with: fpnode ledger new " + name
	} else if near, ok := nearest(name, names); ok {
		hint = fmt.Sprintf("did you mean %q?", near)
	}
	return e, &api.Error{Code: api.NotFound, Message: fmt.Sprintf("no ledger %q", name), Hint: hint}
}

var errClosed = errors.New("the node is stopping")

// Ledger returns an open ledger, opening it if need be.
func (n *Node) Ledger(ctx context.Context, name string) (*ledger.Ledger, error) {
	e, err := n.entry(name)
	if err != nil {
		return nil, err
	}
	n.mu.Lock()
	if n.closed {
		n.mu.Unlock()
		return nil, errClosed
	}
	o := n.open[e.ID]
	mine := o == nil
	if mine {
		o = &opening{ready: make(chan struct{})}
		n.open[e.ID] = o
	}
	n.mu.Unlock()
	if !mine {
		select {
		case <-o.ready:
			return o.l, o.err
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
	o.l, o.err = n.openLedger(context.WithoutCancel(ctx), e)
	if o.err != nil {
		n.mu.Lock()
		delete(n.open, e.ID) // the next one tries again
		n.mu.Unlock()
	}
	close(o.ready)
	return o.l, o.err
}

func (n *Node) openLedger(ctx context.Context, e keyring.Entry) (*ledger.Ledger, error) {
	cars, err := n.store.Ledger(e.ID, e.Keys)
	if err != nil {
		return nil, fmt.Errorf("opening ledger %q: %w", e.Name, err)
	}
	return ledger.Open(ctx, ledger.Config{Name: e.Name, ID: e.ID, Store: cars, Logger: n.log})
}

// Create makes an empty ledger with a key of its own.
func (n *Node) Create(ctx context.Context, name string) error {
	if _, err := n.ring.Create(name, nil); err != nil {
		return taken(name, err)
	}
	return n.share(ctx, name)
}

// taken explains why a name or key cannot be had.
func taken(name string, err error) error {
	if !errors.Is(err, keyring.ErrExists) {
		return err
	}
	return &api.Error{
		Code:    api.Conflict,
		Message: fmt.Sprintf("there is a ledger %q already", name),
		Hint:    "take another name, or remove it with: fpnode ledger rm " + name,
	}
}

// Remove forgets a ledger: first what it holds, then the keys, so that an
// interruption leaves nothing that no key opens.
func (n *Node) Remove(ctx context.Context, name string) error {
	e, err := n.entry(name)
	if err != nil {
		return err
	}
	if err := n.unshare(e.ID); err != nil {
		return err
	}
	n.mu.Lock()
	o := n.open[e.ID]
	n.mu.Unlock()
	if o != nil {
		select {
		case <-o.ready:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		if o.l != nil {
			if err := o.l.Close(); err != nil {
				return fmt.Errorf("closing ledger %q: %w", name, err)
			}
		}
	}
	if err := n.store.Drop(e.ID); err != nil {
		return fmt.Errorf("removing ledger %q: %w", name, err)
	}
	if err := n.ring.Remove(name); err != nil {
		return fmt.Errorf("removing the keys of %q: %w", name, err)
	}
	n.mu.Lock()
	delete(n.open, e.ID)
	n.mu.Unlock()
	return nil
}

// outside refuses paths to write to that are inside the home: what is
// written there by others can keep it from opening.
func (n *Node) outside(path string) error {
	if err := absolute(path); err != nil {
		return err
	}
	home, err := filepath.Abs(n.cfg.Home)
	if err != nil {
		return err
	}
	if rel, err := filepath.Rel(home, path); err == nil && filepath.IsLocal(rel) {
		return &api.Error{Code: api.Misuse, Message: fmt.Sprintf("%s is inside the home of this node", path), Hint: "name a directory elsewhere"}
	}
	return nil
}

// absolute refuses paths that would depend on where the node was started.
func absolute(path string) error {
	if !filepath.IsAbs(path) {
		return &api.Error{Code: api.Misuse, Message: fmt.Sprintf("%q is not an absolute path", path)}
	}
	return nil
}
