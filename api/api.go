// Package api is the local interface of a node: JSON over HTTP on a unix
// socket, and the Go client for it.
//
// Programs start with [Dial], which finds a running node by its home
// directory, or with [Server.Client], which calls the same handler inside the
// process. Each verb of the command line is one route of the same name, and
// one method of [Client]:
//
//	GET  /v1/docs?ledger=notes&limit=10     POST /v1/put?ledger=notes
//
// Routes that read are GET and change nothing; [Client.Query] and
// [Client.Check] are POST because they carry a body or cost much. Lists are
// JSON Lines, written as they are found. A list that fails half way ends with
// the line {"error":{…}}, so a reader never takes a part for the whole; a
// failure before the first line is an HTTP status with the same object.
//
// Guarantees:
//   - Every request carries the bearer token of the node's api.token file and
//     the host name "fpnode"; others are refused before they are routed.
//   - A put is durable when its answer arrives; its body is one atomic batch.
//   - Nothing of a request body, no document and no key is logged.
//   - Sizes and numbers of requests are bounded, see limits.go.
package api

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"encoding/hex"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"fpnode/ledger"
)

// Host is the host name that every request names. A web page that rebinds a
// name of its own to this listener cannot send it.
const Host = "fpnode"

// Node is what the handler needs of a node, apart from its ledgers.
// Errors are passed through Explain before they leave the process.
type Node interface {
	// Ledger returns an open ledger. It stays open until the node closes or
	// the ledger is removed.
	Ledger(ctx context.Context, name string) (*ledger.Ledger, error)
	// Names lists the ledgers by name, sorted.
	Names() []string
	// ID returns what a ledger is called between replicas.
	ID(name string) (string, error)
	Create(ctx context.Context, name string) error
	Remove(ctx context.Context, name string) error
	Import(ctx context.Context, req ImportRequest, progress func(Progress)) (ImportResult, error)
	Export(ctx context.Context, req ExportRequest, progress func(Progress)) (ExportResult, error)
	// Keys lists the keys of one ledger, the default first.
	Keys(name string) ([]KeyInfo, error)
	// ExportKey returns the default key as multibase text.
	ExportKey(name string) (string, error)
	// ExportBag writes the keys of a ledger as a Fireproof key bag.
	ExportBag(name, dir string) error
	ImportKey(ctx context.Context, req KeyImportRequest) (KeyInfo, error)
	// Check verifies the store, and one ledger or all. It reports each
	// problem and goes on.
	Check(ctx context.Context, req CheckRequest, report func(Problem), progress func(Progress)) (CheckResult, error)
	// About says what runs: version, home, peer, addresses.
	About() About
	// Explain turns any error of this node into one with a stable code, a
	// message without secrets, and a hint. It never returns nil for a
	// non-nil error.
	Explain(err error) *Error
}

// Config is what a Server is made of.
type Config struct {
	Node   Node
	Logger *slog.Logger // nil discards
}

// Server answers requests for one node.
type Server struct {
	node    Node
	log     *slog.Logger
	token   string
	handler http.Handler
	slots   chan struct{}

	stopOnce sync.Once
	stopping chan struct{} // closed when Serve is told to stop: ends watches
}

// New returns a server with a fresh token.
func New(cfg Config) *Server {
	raw := make([]byte, tokenBytes)
	rand.Read(raw) // never fails, see crypto/rand
	s := &Server{
		node:     cfg.Node,
		log:      cfg.Logger,
		token:    hex.EncodeToString(raw),
		slots:    make(chan struct{}, MaxRequests),
		stopping: make(chan struct{}),
	}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	s.handler = s.guard(s.routes())
	return s
}

// Token is the secret that every request has to carry.
func (s *Server) Token() string { return s.token }

// Handler is the whole API.
func (s *Server) Handler() http.Handler { return s.handler }

// Client returns a client that calls the handler in this process.
func (s *Server) Client() *Client {
	return &Client{http: &http.Client{Transport: inProcess{s.handler}}, token: s.token}
}

// Serve answers on ln until ctx is done. Then it takes no new request, ends
// watches at once, gives the others drainFor to finish, and cancels the rest.
// It returns when every handler has returned.
func (s *Server) Serve(ctx context.Context, ln net.Listener) error {
	requests, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	var running sync.WaitGroup
	srv := &http.Server{
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			running.Add(1)
			defer running.Done()
			s.handler.ServeHTTP(w, r)
		}),
		ReadHeaderTimeout: headerTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    MaxHeaderBytes,
		BaseContext:       func(net.Listener) context.Context { return requests },
		ErrorLog:          slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),
	}
	served := make(chan error, 1)
	go func() { served <- srv.Serve(ln) }()
	select {
	case err := <-served:
		return err
	case <-ctx.Done():
	}
	s.stopOnce.Do(func() { close(s.stopping) })
	drain, stop := context.WithTimeout(context.WithoutCancel(ctx), drainFor)
	defer stop()
	if err := srv.Shutdown(drain); err != nil {
		cancel()
		srv.Close()
	}
	<-served
	running.Wait()
	return nil
}

// guard refuses what is not for us before any route sees it.
func (s *Server) guard(next http.Handler) http.Handler {
	return http.NewCrossOriginProtection().Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Host != Host {
			writeError(w, &Error{Code: NotPermitted, Message: "this host name is not served here", Hint: "use the host name " + Host})
			return
		}
		token, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
		if !ok || subtle.ConstantTimeCompare([]byte(token), []byte(s.token)) != 1 {
			writeError(w, &Error{Code: NotPermitted, Message: "missing or wrong token", Hint: "send Authorization: Bearer with the content of api.token in the home directory"})
			return
		}
		select {
		case s.slots <- struct{}{}:
			defer func() { <-s.slots }()
		default:
			writeError(w, &Error{Code: Busy, Message: "too many requests at once", Hint: "try again when some have ended"})
			return
		}
		start := time.Now()
		next.ServeHTTP(w, r)
		s.log.Debug("request", "route", r.URL.Path, "elapsed", time.Since(start))
	}))
}
