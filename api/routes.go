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
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/ipfs/go-cid"

	"fpnode/ledger"
)

// routes is every route of the API.
func (s *Server) routes() http.Handler {
	mux := http.NewServeMux()
	handle := func(pattern string, h func(w http.ResponseWriter, r *http.Request) error) {
		method, route, _ := strings.Cut(pattern, " ")
		mux.HandleFunc(method+" /v1/"+route, func(w http.ResponseWriter, r *http.Request) {
			// A handler that returns an error has written nothing.
			if err := h(w, r); err != nil {
				writeError(w, s.node.Explain(err))
			}
		})
	}
	handle("GET about", s.about)
	handle("GET ledger/ls", s.ledgerLs)
	handle("GET ledger/info", s.ledgerInfo)
	handle("POST ledger/new", s.ledgerNew)
	handle("POST ledger/rm", s.ledgerRm)
	handle("POST ledger/import", s.ledgerImport)
	handle("POST ledger/export", s.ledgerExport)
	handle("POST put", s.put)
	handle("GET get", s.get)
	handle("POST del", s.del)
	handle("GET docs", s.docs)
	handle("POST query", s.query)
	handle("GET changes", s.changes)
	handle("GET watch", s.watch)
	handle("GET history", s.history)
	handle("GET conflicts", s.conflicts)
	handle("POST file/add", s.fileAdd)
	handle("GET file/get", s.fileGet)
	handle("GET file/ls", s.fileLs)
	handle("GET key/ls", s.keyLs)
	handle("POST key/export", s.keyExport)
	handle("POST key/import", s.keyImport)
	handle("POST check", s.check)
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		writeError(w, &Error{Code: Misuse, Message: "no such route: " + r.Method + " " + r.URL.Path, Hint: "are fpnode and the running node of one version?"})
	})
	return mux
}

// open returns the ledger that a request names.
func (s *Server) open(r *http.Request) (*ledger.Ledger, error) {
	name := r.URL.Query().Get("ledger")
	if name == "" {
		return nil, misuse("the request names no ledger")
	}
	return s.node.Ledger(r.Context(), name)
}

// text returns a parameter that has to be there.
func text(r *http.Request, name string) (string, error) {
	v := r.URL.Query().Get(name)
	if v == "" {
		return "", misuse("the request has no " + name)
	}
	return v, nil
}

// limit returns the parameter limit, 0 if there is none.
func limit(r *http.Request) (int, error) {
	v := r.URL.Query().Get("limit")
	if v == "" {
		return 0, nil
	}
	n, err := strconv.Atoi(v)
	if err != nil || n < 0 {
		return 0, misuse("limit is not a number from 0")
	}
	return n, nil
}

// body reads a JSON body into v. Unknown fields are an error: a misspelt
// option is not an option left out.
func body(w http.ResponseWriter, r *http.Request, v any) error {
	dec := json.NewDecoder(http.MaxBytesReader(w, r.Body, MaxRequestBytes))
	dec.DisallowUnknownFields()
	if err := dec.Decode(v); err != nil {
		if tooLarge(err) {
			return &Error{Code: TooLarge, Message: fmt.Sprintf("the request is larger than %d bytes", MaxRequestBytes)}
		}
		return misuse("the request is not understood: " + strings.TrimPrefix(err.Error(), "json: "))
	}
	return nil
}

func tooLarge(err error) bool {
	_, ok := errors.AsType[*http.MaxBytesError](err)
	return ok
}

// answer writes one JSON value.
func answer(w http.ResponseWriter, v any) error {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return err
	}
	w.Header().Set("Content-Type", "application/json")
	w.Write(b.Bytes()) // the reader may be gone: nothing to do about it
	return nil
}

// follow runs long work, whose progress and result are lines. Progress is
// sent when its stage changes and every progressEvery. f calls back from one
// goroutine at a time.
func follow[R any](s *Server, w http.ResponseWriter, f func(progress func(Progress), problem func(Problem)) (R, error)) error {
	out := newLines(w, true)
	var stage string
	var sent time.Time
	res, err := f(
		func(p Progress) {
			if p.Stage == stage && time.Since(sent) < progressEvery {
				return
			}
			stage, sent = p.Stage, time.Now()
			out.write(news[R]{Progress: &p})
		},
		func(p Problem) { out.write(news[R]{Problem: &p}) },
	)
	if err != nil {
		out.end(s.node.Explain(err))
		return nil
	}
	out.write(news[R]{Result: &res})
	out.end(nil)
	return nil
}

func (s *Server) about(w http.ResponseWriter, _ *http.Request) error {
	return answer(w, s.node.About())
}

func (s *Server) ledgerLs(w http.ResponseWriter, r *http.Request) error {
	send(s, w, func(yield func(string, error) bool) {
		for _, name := range s.node.Names() {
			if !yield(name, r.Context().Err()) {
				return
			}
		}
	}, func(name string) (any, error) {
		info, err := s.info(r.Context(), name)
		if err != nil && r.Context().Err() == nil {
			// One that cannot be opened hides none of the others.
			info.Error = s.node.Explain(err)
			return info, nil
		}
		return info, err
	})
	return nil
}

// info describes a ledger. With an error it holds what is known nevertheless.
func (s *Server) info(ctx context.Context, name string) (LedgerInfo, error) {
	info := LedgerInfo{Name: name, Head: []string{}, Keys: []string{}, Tips: []string{}}
	id, err := s.node.ID(name)
	if err != nil {
		return info, err
	}
	info.ID = id
	keys, err := s.node.Keys(name)
	if err != nil {
		return info, err
	}
	for _, k := range keys {
		info.Keys = append(info.Keys, k.Fingerprint)
	}
	l, err := s.node.Ledger(ctx, name)
	if err != nil {
		return info, err
	}
	i, err := l.Info(ctx)
	if err != nil {
		return info, err
	}
	info.Head = cidTexts(i.Head)
	if i.Root.Defined() {
		info.Root = i.Root.String()
	}
	info.Docs, info.Cars, info.Bytes = int64(i.Docs), int64(i.Cars), i.Bytes
	for _, t := range i.Tips {
		info.Tips = append(info.Tips, t.CID.String())
	}
	return info, nil
}

func cidTexts(cids []cid.Cid) []string {
	texts := make([]string, len(cids))
	for i, c := range cids {
		texts[i] = c.String()
	}
	return texts
}

func (s *Server) ledgerInfo(w http.ResponseWriter, r *http.Request) error {
	name, err := text(r, "ledger")
	if err != nil {
		return err
	}
	info, err := s.info(r.Context(), name)
	if err != nil {
		return err
	}
	return answer(w, info)
}

func (s *Server) ledgerNew(w http.ResponseWriter, r *http.Request) error {
	name := r.URL.Query().Get("ledger") // an empty one is refused as other names that cannot be are
	if err := s.node.Create(r.Context(), name); err != nil {
		return err
	}
	return s.ledgerInfo(w, r)
}

func (s *Server) ledgerRm(w http.ResponseWriter, r *http.Request) error {
	name, err := text(r, "ledger")
	if err != nil {
		return err
	}
	if err := s.node.Remove(r.Context(), name); err != nil {
		return err
	}
	s.log.Info("ledger removed", "ledger", name)
	return answer(w, struct{}{})
}

func (s *Server) ledgerImport(w http.ResponseWriter, r *http.Request) error {
	var req ImportRequest
	if err := body(w, r, &req); err != nil {
		return err
	}
	return follow(s, w, func(progress func(Progress), _ func(Problem)) (ImportResult, error) {
		res, err := s.node.Import(r.Context(), req, progress)
		if err != nil {
			return res, err
		}
		res.LedgerInfo, err = s.info(r.Context(), req.Ledger)
		return res, err
	})
}

func (s *Server) ledgerExport(w http.ResponseWriter, r *http.Request) error {
	var req ExportRequest
	if err := body(w, r, &req); err != nil {
		return err
	}
	return follow(s, w, func(progress func(Progress), _ func(Problem)) (ExportResult, error) {
		return s.node.Export(r.Context(), req, progress)
	})
}

// put stores the documents of the body, one JSON object a line, as one
// atomic step.
func (s *Server) put(w http.ResponseWriter, r *http.Request) error {
	l, err := s.open(r)
	if err != nil {
		return err
	}
	in := bufio.NewReaderSize(http.MaxBytesReader(w, r.Body, MaxPutBytes), 64<<10)
	var drafts []ledger.Draft
	for n := 0; ; n++ {
		line, err := readLine(in, MaxPutBytes)
		if err == io.EOF {
			break
		}
		if tooLarge(err) {
			return &Error{Code: TooLarge, Message: fmt.Sprintf("the documents of one put are larger than %d MiB", MaxPutBytes>>20), Hint: "put fewer at once"}
		}
		if err != nil {
			return fmt.Errorf("reading document %d: %w", n+1, err)
		}
		if n == MaxPutDocs {
			return &Error{Code: TooLarge, Message: fmt.Sprintf("one put takes %d documents", MaxPutDocs), Hint: "put fewer at once"}
		}
		d, err := ledger.ParseJSON(line)
		if err != nil {
			return s.at(n, err)
		}
		drafts = append(drafts, d)
	}
	if len(drafts) == 0 {
		return &Error{Code: BadInput, Message: "the request holds no document"}
	}
	receipt, err := l.Put(r.Context(), drafts...)
	if e, ok := errors.AsType[*ledger.IDError](err); ok {
		if i := slices.IndexFunc(drafts, func(d ledger.Draft) bool { return d.ID() == e.ID }); i >= 0 {
			return s.at(i, err)
		}
	}
	if err != nil {
		return err
	}
	return s.receipt(w, receipt)
}

// at is the error of document n of a request. What is wrong with a document
// is bad input, if it is nothing more exact.
func (s *Server) at(n int, err error) *Error {
	e := *s.node.Explain(err)
	e.Index = &n
	if d, ok := errors.AsType[*ledger.DocError](err); ok {
		e.Message = d.Reason
	}
	if e.Code == Failed {
		e.Code = BadInput
		e.Hint = "a document is one JSON object, with names and strings in double quotes"
	}
	return &e
}

func (s *Server) receipt(w http.ResponseWriter, r ledger.Receipt) error {
	return answer(w, Receipt{IDs: r.IDs, Clock: cidTexts(r.Clock)})
}

func (s *Server) get(w http.ResponseWriter, r *http.Request) error {
	l, err := s.open(r)
	if err != nil {
		return err
	}
	id, err := text(r, "id")
	if err != nil {
		return err
	}
	doc, err := l.Get(r.Context(), id)
	if err != nil {
		return err
	}
	return answer(w, doc)
}

// deletion is the body of del.
type deletion struct {
	IDs   []string `json:"ids"`
	Force bool     `json:"force,omitempty"`
}

func (s *Server) del(w http.ResponseWriter, r *http.Request) error {
	l, err := s.open(r)
	if err != nil {
		return err
	}
	var req deletion
	if err := body(w, r, &req); err != nil {
		return err
	}
	if len(req.IDs) == 0 {
		return misuse("the request names no id")
	}
	if !req.Force {
		for i, id := range req.IDs {
			if _, err := l.Get(r.Context(), id); err != nil {
				return s.at(i, err)
			}
		}
	}
	receipt, err := l.Delete(r.Context(), req.IDs...)
	if err != nil {
		return err
	}
	return s.receipt(w, receipt)
}

func (s *Server) docs(w http.ResponseWriter, r *http.Request) error {
	l, err := s.open(r)
	if err != nil {
		return err
	}
	n, err := limit(r)
	if err != nil {
		return err
	}
	o := ledger.ListOptions{Limit: n, IncludeDeleted: r.URL.Query().Get("include-deleted") == "true"}
	send(s, w, l.AllDocs(r.Context(), o), func(d ledger.Doc) (any, error) {
		value, err := d.MarshalJSON()
		return DocRow{Key: d.ID, Value: value}, err
	})
	return nil
}

func (s *Server) query(w http.ResponseWriter, r *http.Request) error {
	l, err := s.open(r)
	if err != nil {
		return err
	}
	var req QueryRequest
	if err := body(w, r, &req); err != nil {
		return err
	}
	q, err := req.query()
	if err != nil {
		return err
	}
	send(s, w, l.Query(r.Context(), q), queryRow)
	return nil
}

func (s *Server) changes(w http.ResponseWriter, r *http.Request) error {
	l, err := s.open(r)
	if err != nil {
		return err
	}
	n, err := limit(r)
	if err != nil {
		return err
	}
	var since []cid.Cid
	for _, text := range r.URL.Query()["since"] {
		c, err := cid.Decode(text)
		if err != nil {
			return &Error{Code: Misuse, Message: fmt.Sprintf("%.80q is not a clock", text), Hint: "a clock is event CIDs, as changes and ledger info print them"}
		}
		since = append(since, c)
	}
	// Read before the list is made: what is written meanwhile is listed
	// again next time rather than missed.
	w.Header().Set(clockHeader, strings.Join(cidTexts(l.Head()), ","))
	send(s, w, l.Changes(r.Context(), since, n), changeRow)
	return nil
}

func (s *Server) watch(w http.ResponseWriter, r *http.Request) error {
	l, err := s.open(r)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	go func() { // ends with ctx, which ends with this handler
		select {
		case <-s.stopping:
			cancel()
		case <-ctx.Done():
		}
	}()
	next, stop := iter.Pull2(l.Watch(ctx))
	defer stop()
	out := newLines(w, true)
	out.start()
	for {
		c, err, ok := next()
		if !ok || ctx.Err() != nil {
			out.end(nil)
			return nil
		}
		if err != nil {
			out.end(s.node.Explain(err))
			return nil
		}
		row, err := changeRow(c)
		if err != nil {
			out.end(s.node.Explain(err))
			return nil
		}
		if out.write(row) != nil {
			return nil // the reader is gone
		}
	}
}

func (s *Server) history(w http.ResponseWriter, r *http.Request) error {
	l, err := s.open(r)
	if err != nil {
		return err
	}
	id, err := text(r, "id")
	if err != nil {
		return err
	}
	send(s, w, l.History(r.Context(), id), func(v ledger.Version) (any, error) { return versionRow(v) })
	return nil
}

func (s *Server) conflicts(w http.ResponseWriter, r *http.Request) error {
	l, err := s.open(r)
	if err != nil {
		return err
	}
	id := r.URL.Query().Get("id")
	if id != "" { // a document without conflicts is an empty list, none at all is not
		for _, err := range l.History(r.Context(), id) {
			if errors.Is(err, ledger.ErrNotFound) {
				return fmt.Errorf("conflicts of %.80q: %w", id, ledger.ErrNotFound)
			}
			break // Conflicts meets other errors itself
		}
	}
	send(s, w, l.Conflicts(r.Context(), id), conflictRow)
	return nil
}

func (s *Server) fileAdd(w http.ResponseWriter, r *http.Request) error {
	l, err := s.open(r)
	if err != nil {
		return err
	}
	id, err := text(r, "id")
	if err != nil {
		return err
	}
	name, err := text(r, "name")
	if err != nil {
		return err
	}
	switch {
	case r.ContentLength < 0:
		return misuse("the size of a file has to be known: send Content-Length")
	case r.ContentLength > MaxFileBytes:
		return &Error{Code: TooLarge, Message: fmt.Sprintf("a file takes %d bytes", MaxFileBytes)}
	}
	receipt, err := l.PutFile(r.Context(), id, name, r.URL.Query().Get("type"), r.ContentLength, r.Body)
	if err != nil {
		return err
	}
	return s.receipt(w, receipt)
}

func (s *Server) fileGet(w http.ResponseWriter, r *http.Request) error {
	l, err := s.open(r)
	if err != nil {
		return err
	}
	id, err := text(r, "id")
	if err != nil {
		return err
	}
	name, err := text(r, "name")
	if err != nil {
		return err
	}
	info, content, err := l.File(r.Context(), id, name)
	if err != nil {
		return err
	}
	defer content.Close()
	h := w.Header()
	h.Set("Content-Type", info.Type)
	h.Set("Content-Length", strconv.FormatInt(info.Size, 10))
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set(sizeHeader, strconv.FormatInt(info.Size, 10))
	h.Set(cidHeader, info.CID.String())
	w.WriteHeader(http.StatusOK)
	if _, err := io.Copy(w, content); err != nil {
		// Part of it may be sent: break off, so that it is not taken for the whole.
		s.log.Debug("sending a file", "err", err)
		panic(http.ErrAbortHandler)
	}
	return nil
}

func (s *Server) fileLs(w http.ResponseWriter, r *http.Request) error {
	l, err := s.open(r)
	if err != nil {
		return err
	}
	id, err := text(r, "id")
	if err != nil {
		return err
	}
	files, err := l.Files(r.Context(), id)
	if err != nil {
		return err
	}
	send(s, w, all(files), func(f ledger.FileInfo) (any, error) {
		row := FileRow{ID: id, Name: f.Name, Type: f.Type, Size: f.Size, CID: f.CID.String()}
		if !f.Modified.IsZero() {
			row.Modified = f.Modified.UnixMilli()
		}
		return row, nil
	})
	return nil
}

// all is a list that cannot fail.
func all[T any](list []T) iter.Seq2[T, error] {
	return func(yield func(T, error) bool) {
		for _, v := range list {
			if !yield(v, nil) {
				return
			}
		}
	}
}

func (s *Server) keyLs(w http.ResponseWriter, r *http.Request) error {
	names := s.node.Names()
	if name := r.URL.Query().Get("ledger"); name != "" {
		names = []string{name}
	}
	var keys []KeyInfo
	for _, name := range names {
		k, err := s.node.Keys(name)
		if err != nil {
			return err
		}
		keys = append(keys, k...)
	}
	send(s, w, all(keys), func(k KeyInfo) (any, error) { return k, nil })
	return nil
}

// exportedKey is the answer to key/export: a secret, if no bag was asked for.
type exportedKey struct {
	Key string `json:"key,omitempty"`
}

func (s *Server) keyExport(w http.ResponseWriter, r *http.Request) error {
	name, err := text(r, "ledger")
	if err != nil {
		return err
	}
	var out exportedKey
	if bag := r.URL.Query().Get("keybag"); bag != "" {
		err = s.node.ExportBag(name, bag)
	} else {
		out.Key, err = s.node.ExportKey(name)
	}
	if err != nil {
		return err
	}
	s.log.Info("key exported", "ledger", name)
	return answer(w, out)
}

func (s *Server) keyImport(w http.ResponseWriter, r *http.Request) error {
	var req KeyImportRequest
	if err := body(w, r, &req); err != nil {
		return err
	}
	info, err := s.node.ImportKey(r.Context(), req)
	if err != nil {
		return err
	}
	s.log.Info("key imported", "ledger", req.Ledger, "key", info.Fingerprint)
	return answer(w, info)
}

func (s *Server) check(w http.ResponseWriter, r *http.Request) error {
	var req CheckRequest
	if err := body(w, r, &req); err != nil {
		return err
	}
	return follow(s, w, func(progress func(Progress), problem func(Problem)) (CheckResult, error) {
		return s.node.Check(r.Context(), req, problem, progress)
	})
}
