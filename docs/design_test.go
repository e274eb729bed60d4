package docs

import (
	"bytes"
	"os"
	"path/filepath"
	"regexp"
	"testing"
)

// TestDesignNamesTests checks that the tests which design.md names for its promises exist.
func TestDesignNamesTests(t *testing.T) {
	text, err := os.ReadFile("design.md")
	if err != nil {
		t.Fatal(err)
	}
	named := regexp.MustCompile("`([a-z0-9/]+)\\.(Test\\w+)`").FindAllSubmatch(text, -1)
	if len(named) < 30 {
		t.Fatalf("%d tests named", len(named))
	}
	for _, m := range named {
		files, err := filepath.Glob(filepath.Join("..", string(m[1]), "*_test.go"))
		if err != nil {
			t.Fatal(err)
		}
		found := false
		for _, f := range files {
			b, err := os.ReadFile(f)
			if err != nil {
				t.Fatal(err)
			}
			found = found || bytes.Contains(b, []byte("func "+string(m[2])+"("))
		}
		if !found {
			t.Errorf("%s has no %s", m[1], m[2])
		}
	}
	for _, g := range []string{"G1", "G2", "G3", "G4", "G5", "G6", "G7", "G8"} {
		if !bytes.Contains(text, []byte("| "+g+" |")) {
			t.Errorf("no promise %s", g)
		}
	}
}
