package node

import (
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// layers is the table of docs/design.md: what each package may import of
// ours. internal/* may be imported from anywhere and imports only internal/*.
// Tests may import more, so they are not held against it.
var layers = map[string][]string{
	"cmd/fpnode": {"node", "api"},
	"node":       {"api", "ledger", "pail", "clock", "blockstore", "keyring", "p2p", "headsync", "bitswap"},
	"api":        {"ledger"},
	"ledger":     {"pail", "clock", "blockstore"},
	"pail":       {"clock"},
	"headsync":   {"clock", "blockstore"},
	"bitswap":    {"blockstore"},
	"clock":      {},
	"blockstore": {},
	"keyring":    {},
	"p2p":        {},
	"interop":    {"node", "api", "ledger", "pail", "clock", "blockstore", "keyring", "p2p", "headsync", "bitswap"}, // tests only
}

// owners says which packages may import a heavy dependency: one each, and
// what shares its types.
var owners = map[string][]string{
	"github.com/ipfs/boxo":                    {"bitswap"},
	"github.com/libp2p/go-libp2p-pubsub":      {"p2p"},
	"github.com/libp2p/go-libp2p/p2p":         {"p2p"},
	"github.com/libp2p/go-libp2p":             {"p2p", "bitswap", "headsync", "node"}, // core types, and the host in p2p
	"github.com/cockroachdb/pebble/v2":        {"blockstore"},
	"github.com/cockroachdb/pebble/v2/vfs":    {"blockstore", "keyring", "ledger", "node", "internal/crashfs"}, // the one seam to the disk
	"github.com/spf13/cobra":                  {"cmd/fpnode"},
	"github.com/schollz/progressbar/v3":       {"cmd/fpnode"},
	"golang.org/x/term":                       {"cmd/fpnode"},
	"github.com/prometheus/client_golang":     {"p2p"},
	"github.com/multiformats/go-multiaddr":    {"p2p"},
	"github.com/rogpeppe/go-internal":         {}, // tests only
	"github.com/ipfs/go-datastore":            {"p2p"},
	"github.com/ipfs/go-ipld-format":          {"bitswap"},
	"github.com/ipfs/go-block-format":         {"bitswap"},
	"github.com/libp2p/go-libp2p/core/crypto": {"p2p"},
}

// TestImportsPointDown parses the imports of every file and compares them
// with the two tables.
func TestImportsPointDown(t *testing.T) {
	root := ".."
	seen := map[string]bool{}
	err := filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name := e.Name()
		if e.IsDir() {
			if path != root && (strings.HasPrefix(name, ".") || name == "node_modules" || name == "testdata" || hasGoMod(path)) {
				return filepath.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(name, ".go") || strings.HasSuffix(name, "_test.go") {
			return nil
		}
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.ImportsOnly)
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, filepath.Dir(path))
		if err != nil {
			return err
		}
		pkg := filepath.ToSlash(rel)
		seen[pkg] = true
		for _, spec := range file.Imports {
			imported, err := strconv.Unquote(spec.Path.Value)
			if err != nil {
				return err
			}
			if reason := refusal(pkg, imported); reason != "" {
				t.Errorf("%s imports %s: %s", path, imported, reason)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for pkg := range layers {
		if !seen[pkg] {
			t.Errorf("package %s is in the table and not in the tree", pkg)
		}
	}
}

func hasGoMod(dir string) bool {
	_, err := os.Stat(filepath.Join(dir, "go.mod"))
	return err == nil
}

// refusal says why pkg may not import imported, or "".
func refusal(pkg, imported string) string {
	if ours, ok := strings.CutPrefix(imported, "fpnode/"); ok {
		if strings.HasPrefix(ours, "internal/") {
			return ""
		}
		if strings.HasPrefix(pkg, "internal/") {
			return "internal packages import none of ours"
		}
		allowed, ok := layers[pkg]
		if !ok {
			return "the package is not in the table of layers"
		}
		if !slices.Contains(allowed, ours) {
			return "not in its row of the table of layers"
		}
		return ""
	}
	// The longest prefix decides.
	owner, who := "", []string(nil)
	for dep, pkgs := range owners {
		if (imported == dep || strings.HasPrefix(imported, dep+"/")) && len(dep) > len(owner) {
			owner, who = dep, pkgs
		}
	}
	if owner == "" || slices.Contains(who, pkg) || strings.HasPrefix(pkg, "scripts/") {
		return ""
	}
	return "only " + strings.Join(who, ", ") + " may import " + owner
}

// TestLayersCatch shows that the test above can fail.
func TestLayersCatch(t *testing.T) {
	for _, c := range []struct {
		pkg, imported string
		refused       bool
	}{
		{"clock", "fpnode/pail", true},
		{"pail", "fpnode/clock", false},
		{"keyring", "fpnode/blockstore", true},
		{"internal/car", "fpnode/clock", true},
		{"internal/car", "fpnode/internal/dagcbor", false},
		{"ledger", "fpnode/internal/car", false},
		{"ledger", "fpnode/keyring", true},
		{"newpkg", "fpnode/clock", true},
		{"ledger", "github.com/cockroachdb/pebble/v2", true},
		{"ledger", "github.com/cockroachdb/pebble/v2/vfs", false},
		{"node", "github.com/ipfs/boxo/bitswap", true},
		{"bitswap", "github.com/ipfs/boxo/bitswap", false},
		{"headsync", "github.com/libp2p/go-libp2p/core/peer", false},
		{"headsync", "github.com/libp2p/go-libp2p/p2p/host/basic", true},
		{"node", "context", false},
	} {
		if got := refusal(c.pkg, c.imported) != ""; got != c.refused {
			t.Errorf("%s imports %s: refused %v, want %v", c.pkg, c.imported, got, c.refused)
		}
	}
}
