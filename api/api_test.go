package api

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"fpnode/ledger"
)

// fake is a node without ledgers. What a test does not set panics.
type fake struct {
	Node
	names  []string
	check  func(ctx context.Context, report func(Problem), progress func(Progress)) (CheckResult, error)
	ledger func() (*ledger.Ledger, error)
}

func (f *fake) Names() []string { return f.names }
func (f *fake) Keys(name string) ([]KeyInfo, error) {
	if name == "broken" {
		return nil, &Error{Code: Corrupt, Message: "the key file is damaged", Hint: "restore it"}
	}
	return []KeyInfo{{Ledger: name, Fingerprint: "z" + name, Bits: 256, Default: true}}, nil
}
func (f *fake) About() About { return About{Version: "test"} }
func (f *fake) Ledger(context.Context, string) (*ledger.Ledger, error) {
	return f.ledger()
}
func (f *fake) Check(ctx context.Context, _ CheckRequest, report func(Problem), progress func(Progress)) (CheckResult, error) {
	return f.check(ctx, report, progress)
}
func (f *fake) Explain(err error) *Error {
	if e, ok := errors.AsType[*Error](err); ok {
		return e
	}
	if errors.Is(err, context.Canceled) {
		return &Error{Code: Interrupted, Message: "interrupted"}
	}
	return &Error{Code: Failed, Message: err.Error()}
}

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// clients returns a client of each kind for one server.
func clients(t *testing.T, n Node) map[string]*Client {
	s := New(Config{Node: n})
	// A socket path is short; that of a test may not be.
	home, err := os.MkdirTemp("", "api")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(home) })
	door, err := Listen(home, s.Token())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- s.Serve(ctx, door) }()
	remote, err := Dial(ctx, home)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		remote.Close()
		cancel()
		if err := <-served; err != nil {
			t.Error(err)
		}
		door.Close()
	})
	return map[string]*Client{"socket": remote, "in process": s.Client()}
}

// collect reads a list to its end or error.
func collect[T any](seq iter.Seq2[T, error]) (all []T, err error) {
	for v, err := range seq {
		if err != nil {
			return all, err
		}
		all = append(all, v)
	}
	return all, nil
}

func TestBothClientsAreEqual(t *testing.T) {
	n := &fake{names: []string{"a", "b"}}
	for kind, c := range clients(t, n) {
		ctx := t.Context()
		about, err := c.About(ctx)
		if err != nil || about.Version != "test" {
			t.Errorf("%s: about: %+v, %v", kind, about, err)
		}
		got, err := collect(c.Keys(ctx, ""))
		want := []KeyInfo{{Ledger: "a", Fingerprint: "za", Bits: 256, Default: true}, {Ledger: "b", Fingerprint: "zb", Bits: 256, Default: true}}
		if diff := cmp.Diff(want, got); diff != "" || err != nil {
			t.Errorf("%s: keys: %v\n%s", kind, err, diff)
		}
		_, err = collect(c.Keys(ctx, "broken"))
		wantErr := &Error{Code: Corrupt, Message: "the key file is damaged", Hint: "restore it"}
		if diff := cmp.Diff(error(wantErr), err); diff != "" {
			t.Errorf("%s: an error changed on its way\n%s", kind, diff)
		}
	}
}

func TestLongWorkReportsAndEnds(t *testing.T) {
	n := &fake{check: func(_ context.Context, report func(Problem), progress func(Progress)) (CheckResult, error) {
		progress(Progress{Stage: "reading", Done: 1, Total: 2})
		report(Problem{Place: "x", Message: "broken"})
		progress(Progress{Stage: "reading", Done: 2, Total: 2}) // too soon after the first: left out
		progress(Progress{Stage: "comparing", Done: 1, Total: 1})
		return CheckResult{Cars: 3, Problems: 1}, nil
	}}
	for kind, c := range clients(t, n) {
		var seen []any
		res, err := c.Check(t.Context(), CheckRequest{}, func(p Problem) { seen = append(seen, p) }, func(p Progress) { seen = append(seen, p) })
		if err != nil || res != (CheckResult{Cars: 3, Problems: 1}) {
			t.Errorf("%s: %+v, %v", kind, res, err)
		}
		want := []any{Progress{Stage: "reading", Done: 1, Total: 2}, Problem{Place: "x", Message: "broken"}, Progress{Stage: "comparing", Done: 1, Total: 1}}
		if diff := cmp.Diff(want, seen); diff != "" {
			t.Errorf("%s\n%s", kind, diff)
		}
	}
}

// A list that fails after it began must not look like a shorter one.
func TestFailureInTheMiddleIsSeen(t *testing.T) {
	n := &fake{check: func(_ context.Context, report func(Problem), _ func(Progress)) (CheckResult, error) {
		report(Problem{Place: "x"})
		return CheckResult{}, &Error{Code: Corrupt, Message: "and then it broke"}
	}}
	for kind, c := range clients(t, n) {
		found := 0
		_, err := c.Check(t.Context(), CheckRequest{}, func(Problem) { found++ }, nil)
		if found != 1 || CodeOf(err) != Corrupt {
			t.Errorf("%s: %d problems, error %v", kind, found, err)
		}
	}
}

func TestCancelEndsTheHandler(t *testing.T) {
	ended := make(chan struct{}, 1)
	n := &fake{check: func(ctx context.Context, report func(Problem), _ func(Progress)) (CheckResult, error) {
		report(Problem{Place: "first"})
		<-ctx.Done()
		ended <- struct{}{}
		return CheckResult{}, ctx.Err()
	}}
	for kind, c := range clients(t, n) {
		ctx, cancel := context.WithCancel(t.Context())
		_, err := c.Check(ctx, CheckRequest{}, func(Problem) { cancel() }, nil)
		if !errors.Is(err, context.Canceled) {
			t.Errorf("%s: %v", kind, err)
		}
		<-ended
	}
}

// A handler that hangs before its first word can be left, too.
func TestCancelBeforeTheAnswer(t *testing.T) {
	n := &fake{ledger: func() (*ledger.Ledger, error) { panic("not reached") }}
	s := New(Config{Node: n})
	began := make(chan struct{})
	hang := inProcess{http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		close(began)
		<-r.Context().Done()
	})}
	c := &Client{http: &http.Client{Transport: hang}, token: s.Token()}
	ctx, cancel := context.WithCancel(t.Context())
	go func() { <-began; cancel() }()
	if _, err := c.About(ctx); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

// Breaking off a list must stop the handler that makes it, and wait for it:
// goleak finds one that goes on.
func TestBreakingOffAList(t *testing.T) {
	names := make([]string, 100_000)
	for i := range names {
		names[i] = fmt.Sprint("ledger-", i)
	}
	for kind, c := range clients(t, &fake{names: names}) {
		n := 0
		for _, err := range c.Keys(t.Context(), "") {
			if err != nil {
				t.Errorf("%s: %v", kind, err)
			}
			if n++; n == 10 {
				break
			}
		}
	}
}

func TestGuard(t *testing.T) {
	s := New(Config{Node: &fake{}})
	for _, c := range []struct {
		name, host, token, origin string
		want                      Code
	}{
		{"all right", Host, s.Token(), "", ""},
		{"no token", Host, "", "", NotPermitted},
		{"wrong token", Host, strings.Repeat("0", 64), "", NotPermitted},
		{"a longer token", Host, s.Token() + "0", "", NotPermitted},
		{"another host", "localhost", s.Token(), "", NotPermitted},
		{"a rebound name", "evil.example", s.Token(), "", NotPermitted},
	} {
		req, err := http.NewRequest(http.MethodGet, "http://"+c.host+"/v1/about", nil)
		if err != nil {
			t.Fatal(err)
		}
		if c.token != "" {
			req.Header.Set("Authorization", "Bearer "+c.token)
		}
		resp, err := inProcess{s.Handler()}.RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		text, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		var got Code
		if resp.StatusCode != http.StatusOK {
			got = CodeOf(parseError(text))
		}
		if got != c.want {
			t.Errorf("%s: %s, want %s", c.name, got, c.want)
		}
		if bytes.Contains(text, []byte(s.Token())) {
			t.Errorf("%s: the answer holds the token", c.name)
		}
	}
	// A page of another origin.
	req, _ := http.NewRequest(http.MethodPost, "http://fpnode/v1/check", strings.NewReader("{}"))
	req.Header.Set("Authorization", "Bearer "+s.Token())
	req.Header.Set("Sec-Fetch-Site", "cross-site")
	resp, err := inProcess{s.Handler()}.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusForbidden {
		t.Errorf("a cross-site request got %d", resp.StatusCode)
	}
}

func TestRequestsAreBounded(t *testing.T) {
	release := make(chan struct{})
	began := make(chan struct{}, MaxRequests)
	n := &fake{check: func(context.Context, func(Problem), func(Progress)) (CheckResult, error) {
		began <- struct{}{}
		<-release
		return CheckResult{}, nil
	}}
	c := New(Config{Node: n}).Client()
	done := make(chan error, MaxRequests)
	for range MaxRequests {
		go func() {
			_, err := c.Check(context.Background(), CheckRequest{}, nil, nil)
			done <- err
		}()
	}
	for range MaxRequests {
		<-began
	}
	if _, err := c.About(t.Context()); CodeOf(err) != Busy {
		t.Errorf("request %d: %v", MaxRequests+1, err)
	}
	close(release)
	for range MaxRequests {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	if _, err := c.About(t.Context()); err != nil {
		t.Errorf("afterwards: %v", err)
	}
}

func TestBodiesAreBounded(t *testing.T) {
	n := &fake{ledger: func() (*ledger.Ledger, error) { return nil, nil }}
	for kind, c := range clients(t, n) {
		ctx := t.Context()
		_, err := call[CheckResult](ctx, c, http.MethodPost, "check", nil, CheckRequest{Ledger: strings.Repeat("x", MaxRequestBytes)})
		if CodeOf(err) != TooLarge {
			t.Errorf("%s: large request: %v", kind, err)
		}
		doc := json.RawMessage(`{"a":1}`)
		docs := make([]json.RawMessage, MaxPutDocs+1)
		for i := range docs {
			docs[i] = doc
		}
		if _, err := c.Put(ctx, "x", docs...); CodeOf(err) != TooLarge {
			t.Errorf("%s: many documents: %v", kind, err)
		}
		if _, err := c.Put(ctx, "x"); CodeOf(err) != BadInput {
			t.Errorf("%s: no document: %v", kind, err)
		}
		_, err = c.AddFile(ctx, "x", "id", "f", "text/plain", MaxFileBytes+1, io.LimitReader(zeros{}, MaxFileBytes+1))
		if CodeOf(err) != TooLarge && kind == "in process" {
			t.Errorf("%s: large file: %v", kind, err)
		}
		if _, err = c.AddFile(ctx, "x", "id", "f", "text/plain", -1, strings.NewReader("abc")); CodeOf(err) != Misuse {
			t.Errorf("%s: file of unknown size: %v", kind, err)
		}
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

func TestPutBodyIsBounded(t *testing.T) {
	n := &fake{ledger: func() (*ledger.Ledger, error) { return nil, nil }}
	c := New(Config{Node: n}).Client()
	large := json.RawMessage(`{"a":"` + strings.Repeat("x", MaxPutBytes) + `"}`)
	if _, err := c.Put(t.Context(), "x", large); CodeOf(err) != TooLarge {
		t.Error(err)
	}
}

func TestUnknownFieldsAreRefused(t *testing.T) {
	c := New(Config{Node: &fake{}}).Client()
	_, err := call[CheckResult](t.Context(), c, http.MethodPost, "check", nil, map[string]any{"readdata": true, "reed": 1})
	if CodeOf(err) != Misuse {
		t.Error(err)
	}
	_, err = call[About](t.Context(), c, http.MethodGet, "nothing", nil, nil)
	if CodeOf(err) != Misuse {
		t.Error(err)
	}
	_, err = call[About](t.Context(), c, http.MethodGet, "put", of("x"), nil)
	if CodeOf(err) != Misuse {
		t.Errorf("GET of a route that writes: %v", err)
	}
}

func TestEveryCodeHasAStatus(t *testing.T) {
	for _, c := range Codes() {
		status := statuses[c]
		if status < 400 || status > 599 {
			t.Errorf("%s: status %d", c, status)
		}
		w := &pipeResponse{header: http.Header{}, started: make(chan struct{})}
		r, pw := io.Pipe()
		w.w = pw
		go func() { writeError(w, &Error{Code: c, Message: "m"}); pw.Close() }()
		text, _ := io.ReadAll(r)
		if got := parseError(text); CodeOf(got) != c {
			t.Errorf("%s came back as %s", c, CodeOf(got))
		}
	}
}

func TestReadLine(t *testing.T) {
	long := strings.Repeat("x", 100)
	for _, c := range []struct {
		in    string
		lines []string
		err   error
	}{
		{"", nil, io.EOF},
		{"a\nb\n", []string{"a", "b"}, io.EOF},
		{"a\n\n", []string{"a", ""}, io.EOF},
		{"a\nb", []string{"a"}, io.ErrUnexpectedEOF},
		{long + "\n", []string{long}, io.EOF},
		{long + long + "\n", nil, errLineTooLong},
	} {
		in := bufio.NewReaderSize(strings.NewReader(c.in), 16)
		var got []string
		var err error
		for {
			var line []byte
			if line, err = readLine(in, 150); err != nil {
				break
			}
			got = append(got, string(line))
		}
		if diff := cmp.Diff(c.lines, got); diff != "" || err != c.err {
			t.Errorf("%.20q: %v, want %v\n%s", c.in, err, c.err, diff)
		}
	}
}

// FuzzReceive feeds any bytes as an answer: they are taken apart into values
// or refused, and never more is read than was sent.
func FuzzReceive(f *testing.F) {
	f.Add([]byte("{\"key\":\"a\",\"value\":{}}\n"))
	f.Add([]byte("{\"error\":{\"code\":\"corrupt\",\"message\":\"m\"}}\n"))
	f.Add([]byte("{\"error\":{}}\n{\"key\":\"late\"}\n"))
	f.Add([]byte("{\"key\":\"a\""))
	f.Add([]byte("\n\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		rows, err := collect(receive[DocRow](io.NopCloser(bytes.NewReader(b))))
		if err == nil && len(rows) != bytes.Count(b, []byte("\n")) {
			t.Errorf("%d rows of %q", len(rows), b)
		}
		if err == nil && bytes.Contains(b, errorPrefix) && bytes.HasPrefix(b, errorPrefix) {
			t.Errorf("an error was taken for a row: %q", b)
		}
	})
}

func TestSocketFiles(t *testing.T) {
	s := New(Config{Node: &fake{}})
	home, err := os.MkdirTemp("", "api")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(home)
	ctx := t.Context()
	if _, err := Dial(ctx, home); err != ErrNoDaemon {
		t.Errorf("nobody there: %v", err)
	}
	door, err := Listen(home, s.Token())
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{sockFile, addrFile, tokenFile} {
		info, err := os.Stat(filepath.Join(home, name))
		if err != nil {
			t.Fatal(err)
		}
		if mode := info.Mode().Perm(); mode != 0o600 {
			t.Errorf("%s has mode %o", name, mode)
		}
	}
	token := filepath.Join(home, tokenFile)
	if err := os.Chmod(token, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := Dial(ctx, home); CodeOf(err) != NotPermitted {
		t.Errorf("a token that others can read: %v", err)
	}
	if err := os.Chmod(token, 0o600); err != nil {
		t.Fatal(err)
	}
	// As a killed node leaves it: the files are there, nobody answers.
	door.Listener.(*net.UnixListener).SetUnlinkOnClose(false)
	door.Listener.Close()
	if _, err := Dial(ctx, home); err != ErrNoDaemon {
		t.Errorf("after a kill: %v", err)
	}
	again, err := Listen(home, s.Token())
	if err != nil {
		t.Fatal(err)
	}
	c, err := Dial(ctx, home)
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
	if err := again.Close(); err != nil {
		t.Error(err)
	}
	if left, _ := filepath.Glob(filepath.Join(home, "api.*")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

func TestLongHomeHasItsSocketElsewhere(t *testing.T) {
	home := filepath.Join(t.TempDir(), strings.Repeat("long", 30))
	if err := os.Mkdir(home, 0o700); err != nil {
		t.Fatal(err)
	}
	door, err := Listen(home, "token")
	if err != nil {
		t.Fatal(err)
	}
	if len(door.Path) > maxSockPath {
		t.Errorf("%s is too long", door.Path)
	}
	dir := filepath.Dir(door.Path)
	if info, err := os.Stat(dir); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("%s: %v, %v", dir, info.Mode(), err)
	}
	c, err := Dial(t.Context(), home)
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
	if err := door.Close(); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(dir); err == nil {
		t.Errorf("%s was left behind", dir)
	}
}

// Serve gives a request that runs time to end, and no more than that.
func TestServeDrains(t *testing.T) {
	began, release := make(chan struct{}, 2), make(chan struct{})
	n := &fake{check: func(ctx context.Context, _ func(Problem), _ func(Progress)) (CheckResult, error) {
		began <- struct{}{}
		<-release
		return CheckResult{Cars: 7}, ctx.Err()
	}}
	s := New(Config{Node: n})
	home, err := os.MkdirTemp("", "api")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(home)
	door, err := Listen(home, s.Token())
	if err != nil {
		t.Fatal(err)
	}
	defer door.Close()
	ctx, cancel := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() { served <- s.Serve(ctx, door) }()
	c, err := Dial(ctx, home)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	type result struct {
		res CheckResult
		err error
	}
	got := make(chan result, 1)
	go func() {
		res, err := c.Check(t.Context(), CheckRequest{}, nil, nil)
		got <- result{res, err}
	}()
	<-began
	cancel()
	<-s.stopping
	close(release)
	if r := <-got; r.err != nil || r.res.Cars != 7 {
		t.Errorf("the running request: %+v, %v", r.res, r.err)
	}
	select {
	case err := <-served:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(2 * drainFor):
		t.Error("Serve did not end")
	}
}

// TestHeaderIsBounded: the clock of the largest head fits a request, and a
// larger header is refused.
func TestHeaderIsBounded(t *testing.T) {
	n := &fake{ledger: func() (*ledger.Ledger, error) { return nil, &Error{Code: NotFound, Message: "it got here"} }}
	c := clients(t, n)["socket"]
	clock := make([]string, ledger.MaxTips)
	for i := range clock {
		clock[i] = "bafyreia7sl3ue4kl4zxbgapwptsx4kmiure7c2d6xppjwplnfk2e7y7kq4"
	}
	if _, _, err := c.Changes(t.Context(), "x", clock, 0); CodeOf(err) != NotFound {
		t.Errorf("a clock of %d events: %v", len(clock), err)
	}
	clock = append(clock, strings.Repeat("x", MaxHeaderBytes))
	if _, _, err := c.Changes(t.Context(), "x", clock, 0); err == nil || CodeOf(err) == NotFound {
		t.Errorf("a header over the limit: %v", err)
	}
}

// A node that is killed while it answers leaves half an answer.
func TestAnswerThatBreaksOff(t *testing.T) {
	err := ended(t.Context(), fmt.Errorf("reading the answer: %w", io.ErrUnexpectedEOF))
	if e, ok := errors.AsType[*Error](err); !ok || e.Code != Failed || e.Hint == "" {
		t.Errorf("ended: %v, want an error with a hint", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := ended(ctx, io.ErrUnexpectedEOF); !errors.Is(err, context.Canceled) {
		t.Errorf("ended after a cancel: %v", err)
	}
}
