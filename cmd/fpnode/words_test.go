package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"strings"
	"testing"
	"time"

	"fpnode/api"
)

func TestEveryCodeHasAnExitCode(t *testing.T) {
	for _, c := range api.Codes() {
		if code := exits[c]; code < 1 || code > 130 {
			t.Errorf("%s exits with %d", c, code)
		}
	}
	if len(exits) != len(api.Codes()) {
		t.Errorf("%d exit codes for %d codes", len(exits), len(api.Codes()))
	}
}

// TestFailure holds the words of an error against the rules: one line, then
// hints, no capital, no full stop.
func TestFailure(t *testing.T) {
	for _, c := range []struct {
		err   error
		begun bool
		code  int
		talk  string
	}{
		{&api.Error{Code: api.NotFound, Message: `no ledger "nots"`, Hint: `did you mean "notes"?`}, true, 4,
			"fpnode: error: no ledger \"nots\"\nfpnode: hint: did you mean \"notes\"?\n"},
		{&api.Error{Code: api.NoStore, Message: "none", Hint: "this\nor that"}, true, 10,
			"fpnode: error: none\nfpnode: hint: this\nfpnode: hint: or that\n"},
		{errors.New("disk on fire"), true, 1, "fpnode: error: disk on fire\n"},
		{errors.New("unknown command"), false, 2, "fpnode: error: unknown command\nfpnode: hint: fpnode help shows how it is used\n"},
		{errors.New("two\nlines"), true, 1, "fpnode: error: two; lines\n"},
		{errors.New("a\x1b[2Jb\u202e"), true, 1, "fpnode: error: a\\u001b[2Jb\\u202e\n"},
	} {
		var talk bytes.Buffer
		a := newApp(strings.NewReader(""), io.Discard, &talk)
		a.begun = c.begun
		if code := a.fail(c.err); code != c.code || talk.String() != c.talk {
			t.Errorf("%v: %d, want %d\n%s\nwant\n%s", c.err, code, c.code, talk.String(), c.talk)
		}
	}
}

// TestInterruptedBatch: the batch on its way may be stored or not, and the
// words do not say which.
func TestInterruptedBatch(t *testing.T) {
	for stored, want := range map[int]string{
		1:     "interrupted: at least 1 document is stored",
		14000: "interrupted: at least 14000 documents are stored",
	} {
		for _, err := range []error{context.Canceled, &api.Error{Code: api.Interrupted, Message: "context canceled"}} {
			got := failedPut(err, stored, 1000)
			if api.CodeOf(got) != api.Interrupted || got.Error() != want {
				t.Errorf("%d, %v: %v, want %q", stored, err, got, want)
			}
		}
	}
	if got := failedPut(context.Canceled, 0, 1000); !errors.Is(got, context.Canceled) {
		t.Error(got)
	}
}

func TestValueIsJSONElseText(t *testing.T) {
	for in, want := range map[string]string{
		"5": `5`, "-1.5": `-1.5`, "true": `true`, "null": `null`, `"5"`: `"5"`, `["a",1]`: `["a",1]`,
		"Anna": `"Anna"`, "": `""`, `say "hi"`: `"say \"hi\""`, "5a": `"5a"`, "NaN": `"NaN"`, "<b>": `"\u003cb\u003e"`,
	} {
		if got := string(value(in)); got != want {
			t.Errorf("%q: %s, want %s", in, got, want)
		}
	}
}

func TestPair(t *testing.T) {
	for in, want := range map[string]string{
		"1,2": "1 2", "a,b": `"a" "b"`, `"a,b","c"`: `"a,b" "c"`, `[1,2],[3]`: "[1,2] [3]", "18,": `18 ""`, "null,5": "null 5",
		"5": "", "": "", "a,b,c": "", "1,2,3": "",
	} {
		got := ""
		if p, err := pair(in); err == nil {
			got = string(p[0]) + " " + string(p[1])
		}
		if got != want {
			t.Errorf("%q: %s, want %s", in, got, want)
		}
	}
}

func TestSizesAndCounts(t *testing.T) {
	for n, want := range map[int64]string{
		0: "0 B", 999: "999 B", 1000: "1.0 kB", 1234: "1.2 kB", 12345: "12 kB", 999_499: "999 kB", 999_500: "1.0 MB",
		1_500_000_000: "1.5 GB", 5e15: "5000 TB",
	} {
		if got := size(n); got != want {
			t.Errorf("%d: %s, want %s", n, got, want)
		}
	}
	if got := count(1, "ledger") + ", " + count(2, "ledger"); got != "1 ledger, 2 ledgers" {
		t.Error(got)
	}
	for in, want := range map[string]string{"short": "short", "exactly ten": "exactly ten", "eleven letters": "eleven let…"} {
		if got := cut(in, 11); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
	if got := cut("ärgerlich", 4); got != "ärg…" {
		t.Error(got)
	}
}

// TestVisible: a document came from a stranger, and is shown on a terminal.
func TestVisible(t *testing.T) {
	for in, want := range map[string]string{
		"plain käse 🧀\n":           "plain käse 🧀\n",
		"\x1b]0;x\a\t\r":           `\u001b]0;x\u0007\u0009\u000d`,
		"\x7f\u0080\u009b2J\u009f": `\u007f\u0080\u009b2J\u009f`,
		"a\u200e\u200f\u061cb":     `a\u200e\u200f\u061cb`,
		"\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069": `\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069`,
		"\u200d\u2028\u2065\u206a\u00a0":                         "\u200d\u2028\u2065\u206a\u00a0",
	} {
		if got := visible(in); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
	if got := cell("two\nlines"); got != `two\u000alines` {
		t.Errorf("%q", got)
	}
}

// TestObjectOnTerminal: JSON on a terminal is the same value in other
// letters; elsewhere its bytes stay.
func TestObjectOnTerminal(t *testing.T) {
	const raw = "{\"t\":\"\u009b2J\u202e\"}"
	for fd, want := range map[int]string{-1: raw, 1: `{"t":"\u009b2J\u202e"}`} {
		var out bytes.Buffer
		a := newApp(strings.NewReader(""), &out, io.Discard)
		a.outFd = fd
		if err := a.object(json.RawMessage(raw)); err != nil {
			t.Fatal(err)
		}
		a.out.Flush()
		if out.String() != want+"\n" {
			t.Errorf("%d: %q", fd, out.String())
		}
	}
}

// The meter is silent where nobody looks, and clears its line where somebody
// does.
func TestMeter(t *testing.T) {
	var talk bytes.Buffer
	a := newApp(strings.NewReader(""), io.Discard, &talk)
	m := a.meter()
	m.show(api.Progress{Stage: "reading", Done: 1, Total: 2})
	m.done()
	if talk.Len() != 0 {
		t.Errorf("no terminal, and it wrote %q", talk.String())
	}
	a.errFd = 2
	m.show(api.Progress{Stage: "reading", Done: 1, Total: 2})
	m.show(api.Progress{Stage: "reading", Done: 2, Total: 3}) // more was found
	m.show(api.Progress{Stage: "merging", Done: 1})
	m.done()
	m.done()
	for _, want := range []string{"fpnode: reading", "fpnode: merging"} {
		if !strings.Contains(talk.String(), want) {
			t.Errorf("%q is not in %q", want, talk.String())
		}
	}
	if !strings.HasSuffix(strings.TrimRight(talk.String(), " "), "\r") {
		t.Errorf("it left a line behind: %q", talk.String())
	}
}

func TestTalk(t *testing.T) {
	var b bytes.Buffer
	log := slog.New(&talk{w: &b, level: slog.LevelInfo})
	log.Debug("not shown")
	log.With("ledger", "my notes").WithGroup("g").Info("merged", "cars", 3, "elapsed", 1234567*time.Nanosecond, "none", "", slog.Group("peer", "id", "x=y"))
	log.Warn("slow")
	log.Error("lost")
	log.Info("met", "name", "\u202ex\u009b2J")
	want := "fpnode: merged ledger=\"my notes\" cars=3 elapsed=1.23ms none=\"\" id=\"x=y\"\nfpnode: warning: slow\nfpnode: error: lost\nfpnode: met name=\\u202ex\\u009b2J\n"
	if b.String() != want {
		t.Errorf("%s\nwant\n%s", b.String(), want)
	}
}

// FuzzReadDocs takes any input apart: what it yields is JSON, in order, and
// it ends.
func FuzzReadDocs(f *testing.F) {
	f.Add([]byte("{\"a\":1}\n{\"b\":2}\n"))
	f.Add([]byte("{\n \"a\": 1\n}{}[]3"))
	f.Add([]byte("{\"a\":NaN}"))
	f.Add([]byte("\xff"))
	f.Fuzz(func(t *testing.T, in []byte) {
		docs := make(chan parsed)
		go readDocs(context.Background(), bytes.NewReader(in), docs)
		var at int64
		var failed bool
		for p := range docs {
			if failed {
				t.Fatal("it went on after an error")
			}
			if failed = p.err != nil; failed {
				if e, ok := p.err.(*api.Error); !ok || e.Message == "" {
					t.Fatalf("%v", p.err)
				}
				continue
			}
			if !json.Valid(p.doc) || p.at <= at {
				t.Fatalf("%q at %d after %d", p.doc, p.at, at)
			}
			at = p.at
		}
		if !failed && len(bytes.TrimSpace(in[at:])) > 0 {
			t.Fatalf("it left %q", in[at:])
		}
	})
}
