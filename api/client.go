package api

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"net/http"
	"net/url"
	"strconv"
	"strings"
)

// Client speaks to a node. It is safe for concurrent use. Errors that come
// from the node are *[Error]; a cancelled context comes back as such.
type Client struct {
	http   *http.Client
	token  string
	remote bool
}

// Remote says whether a running node answers, and not this process.
func (c *Client) Remote() bool { return c.remote }

// Close drops idle connections.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// do sends one request and returns the body of a good answer.
func (c *Client) do(ctx context.Context, method, route string, query url.Values, contentType string, body io.Reader, size int64) (*http.Response, error) {
	if body != nil && size == 0 {
		body = http.NoBody // a length of 0 beside another body means unknown
	}
	u := url.URL{Scheme: "http", Host: Host, Path: "/v1/" + route, RawQuery: query.Encode()}
	req, err := http.NewRequestWithContext(ctx, method, u.String(), body)
	if err != nil {
		return nil, err
	}
	if body != nil {
		req.Header.Set("Content-Type", contentType)
		req.ContentLength = size // -1 is unknown
	}
	req.Header.Set("Authorization", "Bearer "+c.token)
	resp, err := c.http.Do(req)
	if err != nil {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		if ue, ok := errors.AsType[*url.Error](err); ok {
			err = ue.Err // without the URL: it can hold a document id
		}
		return nil, &Error{Code: Failed, Message: fmt.Sprintf("the node went away: %v", err), Hint: "is it still running? its own output says more"}
	}
	if resp.StatusCode == http.StatusOK {
		return resp, nil
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, MaxRequestBytes))
	if err != nil {
		return nil, fmt.Errorf("reading the answer: %w", err)
	}
	return nil, parseError(text)
}

// call sends a request with a JSON body, or none, and reads one JSON value.
func call[T any](ctx context.Context, c *Client, method, route string, query url.Values, in any) (T, error) {
	var out T
	resp, err := open(ctx, c, method, route, query, in)
	if err != nil {
		return out, err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, MaxLineBytes))
	if err != nil {
		return out, ended(ctx, fmt.Errorf("reading the answer: %w", err))
	}
	if err := json.Unmarshal(text, &out); err != nil {
		return out, ended(ctx, fmt.Errorf("reading the answer: %w", err)) // a handler that was left answers nothing
	}
	return out, nil
}

func open(ctx context.Context, c *Client, method, route string, query url.Values, in any) (*http.Response, error) {
	if in == nil {
		return c.do(ctx, method, route, query, "", nil, 0)
	}
	body, err := json.Marshal(in)
	if err != nil {
		return nil, err
	}
	return c.do(ctx, method, route, query, "application/json", bytes.NewReader(body), int64(len(body)))
}

// list sends a request and reads JSON Lines. The request is sent when the
// list is ranged over.
func list[T any](ctx context.Context, c *Client, method, route string, query url.Values, in any) iter.Seq2[T, error] {
	return func(yield func(T, error) bool) {
		var zero T
		resp, err := open(ctx, c, method, route, query, in)
		if err != nil {
			yield(zero, err)
			return
		}
		for v, err := range receive[T](resp.Body) {
			if err != nil {
				yield(zero, ended(ctx, err))
				return
			}
			if !yield(v, nil) {
				return
			}
		}
	}
}

// ended prefers "cancelled" to what cancelling broke, and has words for an
// answer without an end.
func ended(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if errors.Is(err, io.ErrUnexpectedEOF) {
		return &Error{Code: Failed, Message: "the answer broke off in the middle", Hint: "is the node still running? its own output says more"}
	}
	return err
}

// work sends a request for long work and follows it to its result.
func work[R any](ctx context.Context, c *Client, route string, in any, progress func(Progress), problem func(Problem)) (R, error) {
	var result R
	for n, err := range list[news[R]](ctx, c, http.MethodPost, route, nil, in) {
		switch {
		case err != nil:
			return result, err
		case n.Progress != nil && progress != nil:
			progress(*n.Progress)
		case n.Problem != nil && problem != nil:
			problem(*n.Problem)
		case n.Result != nil:
			return *n.Result, nil
		}
	}
	return result, ended(ctx, &Error{Code: Failed, Message: "the node stopped before it was done", Hint: "nothing is half done; try again"})
}

func of(ledger string, more ...string) url.Values {
	v := url.Values{"ledger": {ledger}}
	for i := 0; i < len(more); i += 2 {
		v.Set(more[i], more[i+1])
	}
	return v
}

// About says what answers.
func (c *Client) About(ctx context.Context) (About, error) {
	return call[About](ctx, c, http.MethodGet, "about", nil, nil)
}

// Ledgers lists the ledgers of the node by name.
func (c *Client) Ledgers(ctx context.Context) iter.Seq2[LedgerInfo, error] {
	return list[LedgerInfo](ctx, c, http.MethodGet, "ledger/ls", nil, nil)
}

// Info describes a ledger.
func (c *Client) Info(ctx context.Context, ledger string) (LedgerInfo, error) {
	return call[LedgerInfo](ctx, c, http.MethodGet, "ledger/info", of(ledger), nil)
}

// Create makes an empty ledger with a key of its own.
func (c *Client) Create(ctx context.Context, ledger string) (LedgerInfo, error) {
	return call[LedgerInfo](ctx, c, http.MethodPost, "ledger/new", of(ledger), nil)
}

// Remove deletes a ledger and its keys from this node.
func (c *Client) Remove(ctx context.Context, ledger string) error {
	_, err := call[struct{}](ctx, c, http.MethodPost, "ledger/rm", of(ledger), nil)
	return err
}

// Import makes a ledger from a directory, or brings one up to date.
func (c *Client) Import(ctx context.Context, req ImportRequest, progress func(Progress)) (ImportResult, error) {
	return work[ImportResult](ctx, c, "ledger/import", req, progress, nil)
}

// Export writes a ledger to a directory.
func (c *Client) Export(ctx context.Context, req ExportRequest, progress func(Progress)) (ExportResult, error) {
	return work[ExportResult](ctx, c, "ledger/export", req, progress, nil)
}

// Put stores documents, each a JSON object, in one atomic step. One document
// is a put; several are a batch. On failure nothing is stored, and the
// error's Index says which document is at fault, if one is.
func (c *Client) Put(ctx context.Context, ledger string, docs ...json.RawMessage) (Receipt, error) {
	var body bytes.Buffer
	for _, d := range docs {
		if err := json.Compact(&body, d); err != nil { // a document on one line
			return Receipt{}, &Error{Code: BadInput, Message: fmt.Sprintf("not JSON: %v", err)}
		}
		body.WriteByte('\n')
	}
	resp, err := c.do(ctx, http.MethodPost, "put", of(ledger), linesType, &body, int64(body.Len()))
	if err != nil {
		return Receipt{}, err
	}
	defer resp.Body.Close()
	var r Receipt
	if err := json.NewDecoder(resp.Body).Decode(&r); err != nil {
		return Receipt{}, ended(ctx, fmt.Errorf("reading the answer: %w", err))
	}
	return r, nil
}

// Get returns a document as JSON.
func (c *Client) Get(ctx context.Context, ledger, id string) (json.RawMessage, error) {
	return call[json.RawMessage](ctx, c, http.MethodGet, "get", of(ledger, "id", id), nil)
}

// Delete deletes documents, in one atomic step. An id that is not there is an
// error, and nothing is deleted, unless force is set: then a deletion is
// written for it, as Fireproof does.
func (c *Client) Delete(ctx context.Context, ledger string, force bool, ids ...string) (Receipt, error) {
	return call[Receipt](ctx, c, http.MethodPost, "del", of(ledger), deletion{IDs: ids, Force: force})
}

// Docs lists documents by id.
func (c *Client) Docs(ctx context.Context, ledger string, o DocsOptions) iter.Seq2[DocRow, error] {
	q := of(ledger)
	if o.IncludeDeleted {
		q.Set("include-deleted", "true")
	}
	if o.Limit != 0 {
		q.Set("limit", strconv.Itoa(o.Limit))
	}
	return list[DocRow](ctx, c, http.MethodGet, "docs", q, nil)
}

// Query lists the rows of an index over one field, by key.
func (c *Client) Query(ctx context.Context, ledger string, req QueryRequest) iter.Seq2[QueryRow, error] {
	return list[QueryRow](ctx, c, http.MethodPost, "query", of(ledger), req)
}

// Changes lists what changed since a clock, oldest first, and returns the
// clock to ask with next time. An empty clock is the beginning.
func (c *Client) Changes(ctx context.Context, ledger string, since []string, limit int) (iter.Seq2[ChangeRow, error], []string, error) {
	q := of(ledger)
	for _, s := range since {
		q.Add("since", s)
	}
	if limit != 0 {
		q.Set("limit", strconv.Itoa(limit))
	}
	resp, err := open(ctx, c, http.MethodGet, "changes", q, nil)
	if err != nil {
		return nil, nil, err
	}
	return checked(ctx, receive[ChangeRow](resp.Body)), clockOf(resp), nil
}

// Watch lists changes as they happen, until ctx is done. It returns when the
// watch is in place: no change after that is missed.
func (c *Client) Watch(ctx context.Context, ledger string) (iter.Seq2[ChangeRow, error], error) {
	resp, err := open(ctx, c, http.MethodGet, "watch", of(ledger), nil)
	if err != nil {
		return nil, err
	}
	return checked(ctx, receive[ChangeRow](resp.Body)), nil
}

func checked[T any](ctx context.Context, seq iter.Seq2[T, error]) iter.Seq2[T, error] {
	return func(yield func(T, error) bool) {
		for v, err := range seq {
			if err != nil {
				err = ended(ctx, err)
			}
			if !yield(v, err) {
				return
			}
		}
	}
}

const clockHeader = "Fpnode-Clock"

func clockOf(resp *http.Response) []string {
	h := resp.Header.Get(clockHeader)
	if h == "" {
		return nil
	}
	return strings.Split(h, ",")
}

// History lists the versions of a document, newest first.
func (c *Client) History(ctx context.Context, ledger, id string) iter.Seq2[VersionRow, error] {
	return list[VersionRow](ctx, c, http.MethodGet, "history", of(ledger, "id", id), nil)
}

// Conflicts lists documents with concurrent versions; id "" is all.
func (c *Client) Conflicts(ctx context.Context, ledger, id string) iter.Seq2[ConflictRow, error] {
	return list[ConflictRow](ctx, c, http.MethodGet, "conflicts", of(ledger, "id", id), nil)
}

// AddFile stores a file in a document. The document is made if it is not
// there. size is in bytes.
func (c *Client) AddFile(ctx context.Context, ledger, id, name, contentType string, size int64, r io.Reader) (Receipt, error) {
	q := of(ledger, "id", id, "name", name, "type", contentType)
	resp, err := c.do(ctx, http.MethodPost, "file/add", q, "application/octet-stream", r, size)
	if err != nil {
		return Receipt{}, err
	}
	defer resp.Body.Close()
	var out Receipt
	if err := json.NewDecoder(resp.Body).Decode(&out); err != nil {
		return Receipt{}, ended(ctx, fmt.Errorf("reading the answer: %w", err))
	}
	return out, nil
}

// File opens a file of a document. Its content is verified as it is read.
func (c *Client) File(ctx context.Context, ledger, id, name string) (FileRow, io.ReadCloser, error) {
	resp, err := open(ctx, c, http.MethodGet, "file/get", of(ledger, "id", id, "name", name), nil)
	if err != nil {
		return FileRow{}, nil, err
	}
	size, err := strconv.ParseInt(resp.Header.Get(sizeHeader), 10, 64)
	if err != nil {
		resp.Body.Close()
		return FileRow{}, nil, fmt.Errorf("reading the answer: size of the file: %w", err)
	}
	info := FileRow{ID: id, Name: name, Type: resp.Header.Get("Content-Type"), Size: size, CID: resp.Header.Get(cidHeader)}
	return info, resp.Body, nil
}

const (
	sizeHeader = "Fpnode-Size"
	cidHeader  = "Fpnode-Cid"
)

// Files lists the files of a document.
func (c *Client) Files(ctx context.Context, ledger, id string) iter.Seq2[FileRow, error] {
	return list[FileRow](ctx, c, http.MethodGet, "file/ls", of(ledger, "id", id), nil)
}

// Keys lists the keys of a ledger, or of all if ledger is "".
func (c *Client) Keys(ctx context.Context, ledger string) iter.Seq2[KeyInfo, error] {
	return list[KeyInfo](ctx, c, http.MethodGet, "key/ls", of(ledger), nil)
}

// ExportKey returns the default key of a ledger, a secret, as multibase.
func (c *Client) ExportKey(ctx context.Context, ledger string) (string, error) {
	k, err := call[exportedKey](ctx, c, http.MethodPost, "key/export", of(ledger), nil)
	return k.Key, err
}

// ExportBag writes the keys of a ledger into a Fireproof key bag directory.
func (c *Client) ExportBag(ctx context.Context, ledger, dir string) error {
	_, err := call[exportedKey](ctx, c, http.MethodPost, "key/export", of(ledger, "keybag", dir), nil)
	return err
}

// ImportKey adds a key to a ledger, or makes a ledger with it.
func (c *Client) ImportKey(ctx context.Context, req KeyImportRequest) (KeyInfo, error) {
	return call[KeyInfo](ctx, c, http.MethodPost, "key/import", nil, req)
}

// Check verifies the store. Problems are reported as they are found.
func (c *Client) Check(ctx context.Context, req CheckRequest, problem func(Problem), progress func(Progress)) (CheckResult, error) {
	return work[CheckResult](ctx, c, "check", req, progress, problem)
}
