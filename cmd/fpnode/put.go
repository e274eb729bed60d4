package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"fpnode/api"
)

const (
	// A batch is one atomic step: up to batchDocs documents or batchBytes of
	// JSON. When a pipe or terminal pauses for batchIdle, what is there is
	// stored.
	batchDocs  = 1000
	batchBytes = 4 << 20
	batchIdle  = 10 * time.Millisecond
	// maxDocBytes bounds one document as JSON; the store's own limit, on its
	// encoded form, is lower.
	maxDocBytes = api.MaxPutBytes / 2
)

func (a *app) put() *cobra.Command {
	return &cobra.Command{
		Use:   "put LEDGER [FILE|-]",
		Short: "store a JSON document, or JSON Lines for many",
		Long: `Stores a JSON document, or many, one after the other (JSON Lines), and prints their ids. A document without "_id" gets
one. Many are stored in batches of 1,000; each batch is stored whole or not at all, and its ids are printed when it is
durable. If one fails, the batches before it stay, and the exit code is 3.`,
		Args: cobra.RangeArgs(1, 2),
		ValidArgsFunction: func(cmd *cobra.Command, args []string, s string) ([]string, cobra.ShellCompDirective) {
			return a.ledgerNames(cmd, args, s)
		},
		Example: `  echo '{"_id":"milk","text":"buy milk"}' | fpnode put notes
  fpnode put notes many.jsonl`,
		RunE: a.verb(haveStore, func(ctx context.Context, c *api.Client, args []string) error {
			for _, err := range c.Keys(ctx, args[0]) { // no such ledger: said before anything is read
				if err != nil {
					return err
				}
			}
			in := a.in
			if len(args) == 2 && args[1] != "-" {
				f, err := os.Open(args[1])
				if err != nil {
					return cannotRead(err)
				}
				defer f.Close()
				in = f
			} else if terminal(a.in) >= 0 {
				a.say("reading documents from the terminal; end with Ctrl-D")
			}
			size := int64(0)
			if f, ok := in.(*os.File); ok {
				if info, err := f.Stat(); err == nil && info.Mode().IsRegular() {
					size = info.Size()
				}
			}
			if size == 0 {
				in = interruptible(ctx, in)
			}
			return a.putAll(ctx, c, args[0], in, size)
		}),
	}
}

// putAll stores the documents of in. size is its length in bytes if it is a
// regular file, which never pauses; else 0.
func (a *app) putAll(ctx context.Context, c *api.Client, ledger string, in io.Reader, size int64) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	docs := make(chan parsed)
	go readDocs(ctx, in, docs) // ends before docs is closed; the range below waits for that
	defer func() {
		cancel()
		for range docs {
		}
	}()

	m := a.meter()
	defer m.done()
	var stored int
	var read int64
	warned := false // of a long id, once
	for more := true; more; {
		batch, at, err := gather(docs, size == 0)
		if err != nil {
			// What was read before it belongs to its batch, and is not stored.
			return failedAt(err, stored, len(batch)+1)
		}
		more = at > 0
		if at > 0 {
			read = at
		}
		if len(batch) > 0 {
			r, err := c.Put(ctx, ledger, batch...)
			if err != nil {
				return failedPut(err, stored, len(batch))
			}
			stored += len(batch)
			m.show(api.Progress{Stage: "storing, bytes read", Done: read, Total: size})
			if err := a.receipt(r); err != nil {
				return err
			}
			if i := slices.IndexFunc(r.IDs, func(id string) bool { return len(id) > api.LongIDBytes }); i >= 0 && !warned {
				warned = true
				a.say("warning: an id of %d bytes: over %d, each write costs a block for every character it shares with another id", len(r.IDs[i]), api.LongIDBytes)
			}
			if err := a.out.Flush(); err != nil {
				return err
			}
		}
	}
	if ctx.Err() != nil { // the end of the input was not its end
		return failedAt(context.Cause(ctx), stored, 0)
	}
	if stored == 0 {
		return &api.Error{Code: api.BadInput, Message: "the input holds no document", Hint: `a document is a JSON object, as {"text":"buy milk"}`}
	}
	m.done()
	if stored > 1 && a.errFd >= 0 {
		a.say("%s", areStored(stored))
	}
	return nil
}

// failedPut is failedAt for a batch that was sent: when nobody waits for the
// answer, it may be stored all the same.
func failedPut(err error, stored, batch int) error {
	if stored > 0 && (errors.Is(err, context.Canceled) || api.CodeOf(err) == api.Interrupted) {
		return &api.Error{Code: api.Interrupted, Message: "interrupted: at least " + areStored(stored)}
	}
	return failedAt(err, stored, batch)
}

// failedAt says which document failed, and what is stored in spite of that.
func failedAt(err error, stored, batch int) error {
	if errors.Is(err, context.Canceled) {
		if stored == 0 {
			return err
		}
		return &api.Error{Code: api.Interrupted, Message: "interrupted: " + areStored(stored)}
	}
	e := &api.Error{Code: api.CodeOf(err), Message: err.Error()}
	if given, ok := errors.AsType[*api.Error](err); ok {
		e.Hint = given.Hint
		switch {
		case given.Index != nil:
			e.Message = fmt.Sprintf("document %d: %s", stored+*given.Index+1, given.Message)
		case batch > 1:
			e.Message = fmt.Sprintf("documents %d to %d: %s", stored+1, stored+batch, given.Message)
		}
	}
	if stored > 0 {
		e.Code = api.Partial
		e.Message += fmt.Sprintf("; the first %d are stored", stored)
	} else if batch > 1 {
		e.Message += "; nothing is stored"
	}
	return e
}

func areStored(n int) string {
	if n == 1 {
		return "1 document is stored"
	}
	return fmt.Sprintf("%d documents are stored", n)
}

// parsed is a document of the input, or the error that ended it.
type parsed struct {
	doc json.RawMessage
	at  int64 // input bytes up to here
	err error
}

// readDocs sends the documents of in, one JSON value each, and closes docs.
func readDocs(ctx context.Context, in io.Reader, docs chan<- parsed) {
	defer close(docs)
	limited := &allowance{r: in, left: maxDocBytes}
	dec := json.NewDecoder(limited)
	for {
		p := parsed{}
		err := dec.Decode(&p.doc)
		if err == io.EOF {
			return
		}
		if err != nil {
			p.err = notJSON(err)
			if e, ok := errors.AsType[*api.Error](p.err); ok && startsWithBOM(dec.Buffered()) {
				e.Message = "not JSON: a byte order mark (U+FEFF) stands before it"
				e.Hint = "save it as UTF-8 without BOM"
			}
		}
		p.at = dec.InputOffset()
		limited.left = maxDocBytes
		select {
		case docs <- p:
		case <-ctx.Done():
			return
		}
		if err != nil {
			return
		}
	}
}

// startsWithBOM reports whether the first thing in r is a byte order mark in
// UTF-8, as some editors begin a file.
func startsWithBOM(r io.Reader) bool {
	rest, err := io.ReadAll(r)
	return err == nil && bytes.HasPrefix(bytes.TrimLeft(rest, " \t\r\n"), []byte("\uFEFF"))
}

// notJSON explains why a document could not be read: it is no JSON, it is too large, or the file cannot be read.
func notJSON(err error) error {
	if _, ok := errors.AsType[*fs.PathError](err); ok {
		return cannotRead(err)
	}
	e := &api.Error{Code: api.BadInput}
	text := strings.TrimPrefix(err.Error(), "json: ")
	switch {
	case errors.Is(err, context.Canceled):
		return err
	case errors.Is(err, errTooLong):
		e.Code, e.Message = api.TooLarge, fmt.Sprintf("larger than %s of JSON", size(maxDocBytes))
		e.Hint = "put large content into a file: fpnode file add"
	case errors.Is(err, io.ErrUnexpectedEOF):
		e.Message = "not JSON: the input ends in the middle of it"
	case strings.Contains(text, "'N'") || strings.Contains(text, "'I'") || strings.Contains(text, "numeric literal"):
		e.Message = "not JSON: " + text
		e.Hint = "NaN and Infinity are no JSON; use null or leave the field out"
	default:
		e.Message = "not JSON: " + text
		e.Hint = "one JSON object, or one a line; strings and names in double quotes"
	}
	return e
}

// gather takes documents until a batch is full, the input ends, or if pauses
// is set, pauses. at is 0 at the end of the input.
func gather(docs <-chan parsed, pauses bool) (batch []json.RawMessage, at int64, err error) {
	var bytes int
	var pause <-chan time.Time
	for len(batch) < batchDocs && bytes < batchBytes {
		select {
		case p, ok := <-docs:
			if !ok {
				return batch, 0, nil
			}
			if p.err != nil {
				if e, ok := errors.AsType[*api.Error](p.err); ok {
					place := len(batch)
					e.Index = &place
				}
				return batch, at, p.err
			}
			batch = append(batch, p.doc)
			bytes += len(p.doc)
			at = p.at
			if pauses {
				pause = time.After(batchIdle)
			}
		case <-pause:
			return batch, at, nil
		}
	}
	return batch, at, nil
}

// allowance is a reader that gives up after left bytes.
type allowance struct {
	r    io.Reader
	left int64
}

var errTooLong = errors.New("too long")

func (l *allowance) Read(p []byte) (int, error) {
	if l.left <= 0 {
		return 0, errTooLong
	}
	n, err := l.r.Read(p[:min(int64(len(p)), l.left)])
	l.left -= int64(n)
	return n, err
}

// interruptible is a reader whose Read ends when ctx does. A read of a
// terminal or pipe below it cannot be cancelled; it ends with the process.
func interruptible(ctx context.Context, r io.Reader) io.Reader {
	return &ctxReader{ctx: ctx, r: r}
}

type ctxReader struct {
	ctx  context.Context
	r    io.Reader
	buf  []byte
	rest []byte
}

func (c *ctxReader) Read(p []byte) (int, error) {
	if len(c.rest) > 0 {
		n := copy(p, c.rest)
		c.rest = c.rest[n:]
		return n, nil
	}
	if c.buf == nil {
		c.buf = make([]byte, 64<<10)
	}
	type result struct {
		n   int
		err error
	}
	done := make(chan result, 1)
	go func() {
		n, err := c.r.Read(c.buf)
		done <- result{n, err}
	}()
	select {
	case <-c.ctx.Done():
		c.buf = nil // the read below still owns it
		return 0, context.Cause(c.ctx)
	case r := <-done:
		n := copy(p, c.buf[:r.n])
		c.rest = c.buf[n:r.n]
		return n, r.err
	}
}

// cannotRead is the error for a file of the command line.
func cannotRead(err error) error {
	return &api.Error{Code: api.Failed, Message: err.Error(), Hint: "is the path right?"}
}
