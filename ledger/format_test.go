package ledger

import (
	"bytes"
	"encoding/json"
	"os"
	"regexp"
	"strings"
	"testing"
	"unicode/utf16"
)

// TestDocumentedKeys checks the examples of docs/format.md: a JSON value, two spaces or more, its key.
func TestDocumentedKeys(t *testing.T) {
	text, err := os.ReadFile("../docs/format.md")
	if err != nil {
		t.Fatal(err)
	}
	m := regexp.MustCompile("(?ms)^```keys\n(.*?)^```$").FindSubmatch(text)
	if m == nil {
		t.Fatal("no keys")
	}
	lines := strings.Split(strings.TrimSpace(string(m[1])), "\n")
	if len(lines) < 10 {
		t.Fatalf("%d keys", len(lines))
	}
	for _, line := range lines {
		value, form, _ := strings.Cut(line, "  ")
		var key any
		if err := json.Unmarshal([]byte(value), &key); err != nil {
			t.Fatalf("%s: %v", line, err)
		}
		want := appendCodeUnits(nil, utf16.Encode([]rune(strings.TrimLeft(form, " "))))
		got, exact, err := appendKey(nil, key)
		if err != nil || !exact || !bytes.Equal(got, want) {
			t.Errorf("%s: %q %v %v", line, got, exact, err)
		}
	}
}
