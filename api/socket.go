package api

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
)

// Files of a running node in its home, all 0600:
//
//	api.sock    the unix socket
//	api.addr    the path of the socket, one line
//	api.token   the token, one line
//
// A home whose path is too long for a socket address has its socket in a
// fresh private directory under the system's temporary one; api.addr says
// where, so a client reads that and nothing else. Stop removes all three; what
// a killed node left behind answers nobody and is replaced.
const (
	sockFile  = "api.sock"
	addrFile  = "api.addr"
	tokenFile = "api.token"
)

// maxSockPath is the longest path a unix socket address holds on every system
// we run on: macOS has 104 bytes, Linux 108, each with a zero at the end.
const maxSockPath = 103

// ErrNoDaemon says that no node answers in a home.
var ErrNoDaemon = &Error{Code: NoDaemon, Message: "no node is running here", Hint: "start one with: fpnode up"}

// A Door is a listening socket and the files that lead to it.
type Door struct {
	net.Listener
	// Path is the socket.
	Path  string
	files []string
	dir   string // a directory made for the socket, or ""
}

// Listen opens the socket of the node in home. The caller holds the lock of
// the store, so that nobody else listens there.
func Listen(home, token string) (*Door, error) {
	home, err := filepath.Abs(home)
	if err != nil {
		return nil, err
	}
	d := &Door{Path: filepath.Join(home, sockFile)}
	if len(d.Path) > maxSockPath {
		if d.dir, err = os.MkdirTemp("", "fpnode-"); err != nil { // 0700
			return nil, fmt.Errorf("making a place for the api socket: %w", err)
		}
		d.Path = filepath.Join(d.dir, sockFile)
	}
	if err := os.Remove(d.Path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("removing the old api socket: %w", err)
	}
	if d.Listener, err = net.Listen("unix", d.Path); err != nil {
		d.remove()
		return nil, fmt.Errorf("opening the api socket: %w", err)
	}
	if err := os.Chmod(d.Path, 0o600); err != nil {
		d.Close()
		return nil, fmt.Errorf("closing the api socket to others: %w", err)
	}
	for _, f := range []struct{ name, text string }{{tokenFile, token}, {addrFile, d.Path}} {
		path := filepath.Join(home, f.name)
		d.files = append(d.files, path)
		if err := writePrivate(path, f.text+"\n"); err != nil {
			d.Close()
			return nil, fmt.Errorf("writing %s: %w", f.name, err)
		}
	}
	return d, nil
}

// writePrivate replaces a small file. A half-written one costs nothing: the
// node that wrote it is gone.
func writePrivate(path, text string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	if _, err := f.WriteString(text); err != nil {
		f.Close()
		return err
	}
	return f.Close()
}

// Close stops listening and removes the files.
func (d *Door) Close() error {
	err := d.Listener.Close()
	if errors.Is(err, net.ErrClosed) {
		err = nil
	}
	d.remove()
	return err
}

func (d *Door) remove() {
	for _, f := range d.files {
		os.Remove(f)
	}
	if d.dir != "" {
		os.RemoveAll(d.dir)
	}
}

// Dial returns a client of the node that runs in home, or ErrNoDaemon.
func Dial(ctx context.Context, home string) (*Client, error) {
	addr, err := readPrivate(filepath.Join(home, addrFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, ErrNoDaemon
	}
	if err != nil {
		return nil, err
	}
	dialer := net.Dialer{Timeout: dialTimeout}
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		return dialer.DialContext(ctx, "unix", addr)
	}
	conn, err := dial(ctx, "", "")
	if err != nil {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		if errors.Is(err, fs.ErrPermission) {
			return nil, &Error{Code: NotPermitted, Message: fmt.Sprintf("the socket %s belongs to somebody else", addr)}
		}
		return nil, ErrNoDaemon
	}
	conn.Close()
	// Listen writes the token before the address, so it is there.
	token, err := readPrivate(filepath.Join(home, tokenFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, ErrNoDaemon
	}
	if err != nil {
		return nil, err
	}
	transport := &http.Transport{
		DialContext:            dial,
		MaxIdleConnsPerHost:    16,
		MaxResponseHeaderBytes: MaxHeaderBytes,
		DisableCompression:     true,
	}
	return &Client{http: &http.Client{Transport: transport}, token: token, remote: true}, nil
}

// readPrivate reads a one-line file that only its owner may read.
func readPrivate(path string) (string, error) {
	info, err := os.Stat(path)
	if err != nil {
		return "", err
	}
	if mode := info.Mode().Perm(); mode&0o077 != 0 {
		return "", &Error{
			Code:    NotPermitted,
			Message: fmt.Sprintf("%s can be read by others (mode %04o)", path, mode),
			Hint:    "chmod 600 " + path,
		}
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return "", err
	}
	return strings.TrimSuffix(string(b), "\n"), nil
}
