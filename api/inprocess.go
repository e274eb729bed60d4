package api

import (
	"context"
	"io"
	"net/http"
	"sync"
)

// inProcess is an http.RoundTripper that calls a handler directly, so that a
// verb takes the same path with and without a running node. The body of an
// answer is a pipe: a list is read while it is made, and closing the body
// stops the handler and waits for it.
type inProcess struct{ handler http.Handler }

func (t inProcess) RoundTrip(req *http.Request) (*http.Response, error) {
	ctx, cancel := context.WithCancel(req.Context())
	in := req.Clone(ctx)
	in.Host = req.URL.Host
	if in.Body == nil {
		in.Body = http.NoBody
	}
	r, w := io.Pipe()
	out := &pipeResponse{header: http.Header{}, started: make(chan struct{}), w: w}
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer in.Body.Close()
		defer cutShort(w)
		t.handler.ServeHTTP(out, in)
		out.WriteHeader(http.StatusOK)
		w.Close()
	}()
	stop := func() error {
		cancel()
		r.Close()
		<-done
		return nil
	}
	select {
	case <-out.started:
	case <-ctx.Done():
		stop()
		return nil, ctx.Err()
	}
	return &http.Response{
		Status:        http.StatusText(out.status),
		StatusCode:    out.status,
		Proto:         "HTTP/1.1",
		ProtoMajor:    1,
		ProtoMinor:    1,
		Header:        out.sent,
		Body:          &pipeBody{Reader: r, stop: stop},
		ContentLength: -1,
		Request:       req,
	}, nil
}

// cutShort ends the answer of a handler that gave up in the middle
// (http.ErrAbortHandler), so that the reader sees a part as a part.
func cutShort(w *io.PipeWriter) {
	switch p := recover(); p {
	case nil:
	case http.ErrAbortHandler:
		w.CloseWithError(io.ErrUnexpectedEOF)
	default:
		panic(p)
	}
}

type pipeResponse struct {
	header  http.Header
	w       *io.PipeWriter
	once    sync.Once
	started chan struct{} // closed when status and sent are set
	status  int
	sent    http.Header
}

func (p *pipeResponse) Header() http.Header { return p.header }

func (p *pipeResponse) WriteHeader(status int) {
	p.once.Do(func() {
		p.status = status
		p.sent = p.header.Clone()
		close(p.started)
	})
}

func (p *pipeResponse) Write(b []byte) (int, error) {
	p.WriteHeader(http.StatusOK)
	return p.w.Write(b)
}

// Flush does nothing: what is written is read at once.
func (p *pipeResponse) Flush() {}

type pipeBody struct {
	io.Reader
	once sync.Once
	stop func() error
}

func (b *pipeBody) Close() error {
	b.once.Do(func() { b.stop() })
	return nil
}
