package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestReadmeIsTrue types every console block of the README into one shell
// session, in a copy of what the repository has there, and compares what
// comes out. In the README "…" stands for anything.
func TestReadmeIsTrue(t *testing.T) {
	readme, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := os.CopyFS(filepath.Join(dir, "cmd/fpnode/bundled/store"), os.DirFS("bundled/store")); err != nil {
		t.Fatal(err)
	}
	if err := os.CopyFS(filepath.Join(dir, "cmd/fpnode/bundled/keybag"), os.DirFS("bundled/keybag")); err != nil {
		t.Fatal(err)
	}
	steps := 0
	for i, part := range strings.Split(string(readme), "```console\n") {
		if i == 0 {
			continue
		}
		block, _, _ := strings.Cut(part, "```\n")
		for _, step := range strings.Split("\n"+block, "\n$ ")[1:] {
			line, want, _ := strings.Cut(step, "\n")
			cmd := exec.Command("sh", "-c", line+" 2>&1")
			cmd.Dir = dir
			cmd.Env = append(os.Environ(), "HOME="+dir, "XDG_DATA_HOME=", "FPNODE_HOME=")
			out, _ := cmd.Output() // an exit code other than 0 shows in what is said
			if want = strings.TrimSuffix(want, "\n"); !matches(want, strings.TrimSuffix(string(out), "\n")) {
				t.Errorf("$ %s\nprinted\n%s\nand the README says\n%s", line, out, want)
			}
			steps++
		}
	}
	if steps < 10 {
		t.Errorf("only %d commands were found in the README", steps)
	}
}

func matches(want, got string) bool {
	pattern := strings.ReplaceAll(regexp.QuoteMeta(want), "…", "(?s:.*)")
	return regexp.MustCompile("^" + pattern + "$").MatchString(got)
}
