package node

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"fpnode/api"
)

// TestManyClientsAtOnce lets clients write, read, list, query and watch while
// ledgers come and go; with the race detector it looks for what is shared
// without care.
func TestManyClientsAtOnce(t *testing.T) {
	n := openNode(t, Config{Home: "/home/x", Create: true, FS: vfs.NewMem(), ReserveBytes: -1})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	c := n.Client()
	if _, err := c.Create(ctx, "notes"); err != nil {
		t.Fatal(err)
	}
	const writers, writes = 4, 25
	watched, err := c.Watch(ctx, "notes")
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	watching := make(chan struct{})
	go func() {
		defer close(watching)
		for row, err := range watched {
			if err != nil {
				t.Error(err)
				return
			}
			if seen[row.Key] = true; len(seen) == writers*writes {
				return
			}
		}
	}()
	var work, others sync.WaitGroup
	for w := range writers {
		work.Go(func() {
			for i := range writes {
				doc := fmt.Sprintf(`{"_id":"w%d-%d","n":%d}`, w, i, i)
				if _, err := c.Put(ctx, "notes", json.RawMessage(doc)); err != nil {
					t.Error(err)
				}
			}
		})
	}
	stop := make(chan struct{})
	loop := func(f func(i int) error) {
		others.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-stop:
					return
				default:
				}
				if err := f(i); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	loop(func(int) error {
		last := ""
		for d, err := range c.Docs(ctx, "notes", api.DocsOptions{}) {
			if err != nil {
				return err
			}
			if d.Key <= last {
				return fmt.Errorf("%s after %s", d.Key, last)
			}
			last = d.Key
		}
		return nil
	})
	loop(func(int) error {
		for _, err := range c.Query(ctx, "notes", api.QueryRequest{Field: "n"}) {
			if err != nil {
				return err
			}
		}
		return nil
	})
	loop(func(i int) error { // ledgers come and go
		name := fmt.Sprintf("t%d", i%2)
		if _, err := c.Create(ctx, name); err != nil {
			return err
		}
		if _, err := c.Put(ctx, name, json.RawMessage(`{"_id":"x"}`)); err != nil {
			return err
		}
		return c.Remove(ctx, name)
	})
	loop(func(int) error { // and others look at them meanwhile
		for l, err := range c.Ledgers(ctx) {
			if err != nil {
				return err
			}
			if l.Error != nil && l.Error.Code != api.NotFound {
				return fmt.Errorf("%s: %w", l.Name, l.Error)
			}
		}
		_, err := c.Info(ctx, "t0")
		if api.CodeOf(err) == api.NotFound {
			return nil
		}
		return err
	})
	work.Wait()
	close(stop)
	others.Wait()
	<-watching
	if len(seen) != writers*writes {
		t.Errorf("the watch saw %d of %d", len(seen), writers*writes)
	}
}

// FuzzRequests sends any body to every route that takes one. The answer is
// JSON, either a result or an error with a code that exists; nothing panics.
func FuzzRequests(f *testing.F) {
	routes := []string{"put", "del", "query", "check", "key/import", "ledger/export", "ledger/import"}
	for i, body := range []string{
		`{"_id":"a","n":1}` + "\n", `{"ids":["a"],"force":true}`, `{"field":"n","key":null}`, `{"readData":true}`,
		`{"ledger":"notes","key":"z"}`, `{"ledger":"notes","to":"relative"}`, `{"ledger":"new","from":"/nowhere"}`,
	} {
		f.Add(uint8(i), []byte(body))
		f.Add(uint8(i), []byte(body[:len(body)/2]))
	}
	f.Add(uint8(2), []byte(`{"field":"n","range":[1,{"a":1}]}`))
	f.Add(uint8(2), []byte(`{"field":"n","keys":[],"prefix":[[[]]]}`))
	f.Add(uint8(0), []byte("{}\n{}\n\n"))
	n, err := Open(context.Background(), Config{Home: "/home/x", Create: true, FS: vfs.NewMem(), ReserveBytes: -1})
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { n.Close() })
	if err := n.Create(context.Background(), "notes"); err != nil {
		f.Fatal(err)
	}
	known := map[api.Code]bool{}
	for _, c := range api.Codes() {
		known[c] = true
	}
	f.Fuzz(func(t *testing.T, route uint8, body []byte) {
		path := routes[int(route)%len(routes)]
		if path == "ledger/export" && bytes.Contains(body, []byte(`"/`)) {
			return // it would write there
		}
		req := httptest.NewRequest(http.MethodPost, "http://"+api.Host+"/v1/"+path+"?ledger=notes", bytes.NewReader(body))
		req.Header.Set("Authorization", "Bearer "+n.api.Token())
		w := httptest.NewRecorder()
		n.api.Handler().ServeHTTP(w, req)
		dec := json.NewDecoder(w.Body)
		lines := 0
		for ; ; lines++ {
			var answer struct {
				Error *api.Error `json:"error"`
			}
			err := dec.Decode(&answer)
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				t.Fatalf("%s %q: answer is no JSON: %v", path, body, err)
			}
			if e := answer.Error; e != nil && (!known[e.Code] || e.Message == "") {
				t.Fatalf("%s %q: %+v", path, body, e)
			}
		}
		if w.Code != http.StatusOK && lines != 1 {
			t.Errorf("%s %q: status %d and %d lines", path, body, w.Code, lines)
		}
		if strings.Contains(w.Body.String(), n.api.Token()) {
			t.Errorf("%s %q: the answer holds the token", path, body)
		}
	})
}
