package api

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"net/http"
)

// Lists travel as JSON Lines: one value a line, no value spans lines.
//
//	{"key":"a","value":{…}}
//	{"key":"b","value":{…}}
//	{"error":{"code":"corrupt","message":"…"}}     only if it failed here
//
// No list has values with a field "error", so the last line is unambiguous.

const linesType = "application/x-ndjson"

var errorPrefix = []byte(`{"error":`)

// lines writes a list to a response.
type lines struct {
	w       http.ResponseWriter
	buf     *bufio.Writer
	enc     *json.Encoder
	flush   bool // after each line: for lists that wait
	started bool
}

func newLines(w http.ResponseWriter, flush bool) *lines {
	l := &lines{w: w, flush: flush}
	l.buf = bufio.NewWriterSize(w, 32<<10)
	l.enc = json.NewEncoder(l.buf)
	l.enc.SetEscapeHTML(false)
	return l
}

// start sends the header, so that the other side knows the list is open.
func (l *lines) start() {
	if l.started {
		return
	}
	l.started = true
	l.w.Header().Set("Content-Type", linesType)
	l.w.WriteHeader(http.StatusOK)
	if l.flush {
		http.NewResponseController(l.w).Flush()
	}
}

func (l *lines) write(v any) error {
	l.start()
	if err := l.enc.Encode(v); err != nil {
		return err
	}
	if !l.flush {
		return nil
	}
	if err := l.buf.Flush(); err != nil {
		return err
	}
	return http.NewResponseController(l.w).Flush()
}

// end finishes the list, with e as its last word if it is not nil.
func (l *lines) end(e *Error) {
	if e != nil && !l.started {
		writeError(l.w, e)
		return
	}
	l.start()
	if e != nil {
		l.enc.Encode(errorBody{e})
	}
	l.buf.Flush()
}

// send streams seq as JSON Lines.
func send[T any](s *Server, w http.ResponseWriter, seq iter.Seq2[T, error], row func(T) (any, error)) {
	out := newLines(w, false)
	for v, err := range seq {
		if err != nil {
			out.end(s.node.Explain(err))
			return
		}
		line, err := row(v)
		if err != nil {
			out.end(s.node.Explain(err))
			return
		}
		if out.write(line) != nil {
			return // the reader is gone
		}
	}
	out.end(nil)
}

// receive reads a list of T. It closes body.
func receive[T any](body io.ReadCloser) iter.Seq2[T, error] {
	return func(yield func(T, error) bool) {
		defer body.Close()
		var zero T
		in := bufio.NewReaderSize(body, 64<<10)
		for {
			line, err := readLine(in, MaxLineBytes)
			if err == io.EOF {
				return
			}
			if err != nil {
				yield(zero, fmt.Errorf("reading the answer: %w", err))
				return
			}
			if bytes.HasPrefix(line, errorPrefix) {
				yield(zero, parseError(line))
				return
			}
			var v T
			if err := json.Unmarshal(line, &v); err != nil {
				yield(zero, fmt.Errorf("reading the answer: %w", err))
				return
			}
			if !yield(v, nil) {
				return
			}
		}
	}
}

var errLineTooLong = errors.New("line too long")

// readLine returns the next line without its end, or io.EOF after the last.
// A last line without an end was cut off: io.ErrUnexpectedEOF.
func readLine(in *bufio.Reader, limit int) ([]byte, error) {
	var long []byte
	for {
		part, err := in.ReadSlice('\n')
		if len(long)+len(part) > limit {
			return nil, errLineTooLong
		}
		if err == nil && long == nil {
			return part[:len(part)-1], nil
		}
		long = append(long, part...)
		switch {
		case err == nil:
			return long[:len(long)-1], nil
		case err == bufio.ErrBufferFull:
		case err == io.EOF && len(long) > 0:
			return nil, io.ErrUnexpectedEOF
		default:
			return nil, err
		}
	}
}

// parseError reads the body of a failed answer. What is no error object
// becomes one.
func parseError(body []byte) error {
	var e errorBody
	if json.Unmarshal(body, &e) != nil || e.Error == nil || e.Error.Message == "" {
		return &Error{Code: Failed, Message: "the node gave an answer that is not understood", Hint: "are fpnode and the running node of one version?"}
	}
	return e.Error
}
