package blockstore_test

import (
	"encoding/json"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/google/go-cmp/cmp"
	"github.com/ipfs/go-cid"

	"fpnode/blockstore"
	"fpnode/internal/car"
	"fpnode/keyring"
)

var update = flag.Bool("update", false, "write the golden home of the current format version")

// goldenKey is a key that has never protected anything.
const goldenKey = "zADDjzt4CygaahwMT9crUvAfpfgsM17w6KUBjmSEunaX9"

// goldenHome is what a home must still say, in testdata/home-N.json beside it.
type goldenHome struct {
	Tips   []string
	CARs   []string          // name, wire name and size
	Blocks map[string]string // CID to bytes, in hexadecimal
	Known  []string          // names without bytes
	Notes  map[string]string
}

// TestGoldenHomes opens a home of each released format version. They were written by that release, without their index,
// which is derived, and are never made again: after a change of the format a new one is added.
func TestGoldenHomes(t *testing.T) {
	if *update {
		writeGoldenHome(t, filepath.Join("testdata", "home-1"))
	}
	homes, err := filepath.Glob(filepath.Join("testdata", "home-*.json"))
	if err != nil || len(homes) == 0 {
		t.Fatal("no golden homes", err)
	}
	for _, file := range homes {
		t.Run(filepath.Base(file), func(t *testing.T) {
			b, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			var want goldenHome
			if err := json.Unmarshal(b, &want); err != nil {
				t.Fatal(err)
			}
			fs := vfs.NewMem()
			if ok, err := vfs.Clone(vfs.Default, fs, file[:len(file)-len(".json")], home); err != nil || !ok {
				t.Fatal(ok, err)
			}
			s := openStore(t, config(fs))
			l, err := s.Ledger(ledgerID(1), goldenKeys(t))
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(want, describe(t, l, want.Known)); diff != "" {
				t.Errorf("(-written +read):\n%s", diff)
			}
			for _, p := range problems(t, s, blockstore.CheckOptions{ReadData: true}) {
				t.Error(p)
			}
			c := dataCAR(t, l, block(rand.New(rand.NewPCG(1, 1)), 100))
			mustCommit(t, l, c)
			if err := verify(s, l, &c); err != nil {
				t.Error(err)
			}
		})
	}
}

func goldenKeys(t *testing.T) *keyring.Keys {
	t.Helper()
	key, err := keyring.ParseKey(goldenKey)
	if err != nil {
		t.Fatal(err)
	}
	k, err := keyring.NewKeys(key)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// describe is what l says. known are names to ask for.
func describe(t *testing.T, l *blockstore.Ledger, known []string) goldenHome {
	t.Helper()
	g := goldenHome{Blocks: map[string]string{}, Notes: map[string]string{}}
	for _, m := range l.Tips() {
		g.Tips = append(g.Tips, fmt.Sprintf("%s %x", m.CID, m.Block))
	}
	held := map[string]bool{}
	for r, err := range l.Refs() {
		if err != nil {
			t.Fatal(err)
		}
		held[r.Name.String()] = true
		g.CARs = append(g.CARs, fmt.Sprintf("%s %s %d", r.Name, r.Wire, r.Size))
		if _, err := l.Sealed(ctx, r); err != nil {
			t.Error(err)
		}
	}
	for c, err := range l.Blocks(ctx) {
		if err != nil {
			t.Fatal(err)
		}
		b, err := l.Block(ctx, c)
		if err != nil {
			t.Fatal(err)
		}
		g.Blocks[c.String()] = fmt.Sprintf("%x", b)
	}
	for _, text := range known {
		if n := droppedNames[text]; l.Known(n) && !held[n.String()] {
			g.Known = append(g.Known, text)
		}
	}
	for _, k := range []string{"kept", "removed", "changed"} {
		v, err := l.Note(k)
		if err != nil {
			t.Fatal(err)
		}
		if v != nil {
			g.Notes[k] = string(v)
		}
	}
	return g
}

var droppedNames = func() map[string]blockstore.Name {
	m := map[string]blockstore.Name{}
	for i := range 3 {
		n := blockstore.NameOf([]byte{byte(i)})
		m[n.String()] = n
	}
	return m
}()

func writeGoldenHome(t *testing.T, dir string) {
	t.Helper()
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	s, err := blockstore.Open(blockstore.Config{Dir: dir, Vault: vault{}, SegmentBytes: 2 << 10})
	if err != nil {
		t.Fatal(err)
	}
	l, err := s.Ledger(ledgerID(1), goldenKeys(t))
	if err != nil {
		t.Fatal(err)
	}
	rng := rand.New(rand.NewPCG(11, 11))
	var known []string
	for n := range droppedNames {
		known = append(known, n)
	}
	slices.Sort(known)
	shared := block(rng, 30)
	for i := range 4 {
		a := dataCAR(t, l, block(rng, 60), shared)
		file := rawBlock([]byte(fmt.Sprint("file ", i)))
		b, err := l.Pack([]cid.Cid{file.CID}, []car.Block{file})
		if err != nil {
			t.Fatal(err)
		}
		batch := blockstore.Batch{
			CARs:  []blockstore.CAR{a, b},
			Tips:  []blockstore.Meta{blockstore.NewMeta([]blockstore.Ref{a.Ref}, tipCIDs(l))},
			Notes: map[string][]byte{"changed": fmt.Append(nil, i)},
		}
		switch i {
		case 0:
			batch.Notes["kept"], batch.Notes["removed"] = []byte("yes"), []byte("yes")
			for _, n := range known {
				batch.Drop = append(batch.Drop, droppedNames[n])
			}
		case 2:
			batch.Notes["removed"] = nil
		case 3: // two tips
			batch.Tips = append(l.Tips(), blockstore.NewMeta([]blockstore.Ref{a.Ref, b.Ref}, nil))
		}
		if err := l.Commit(ctx, tipCIDs(l), batch); err != nil {
			t.Fatal(err)
		}
	}
	text, err := json.MarshalIndent(describe(t, l, known), "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	for _, derived := range []string{"index", "repo.lock"} {
		if err := os.RemoveAll(filepath.Join(dir, derived)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(dir+".json", append(text, '\n'), 0o644); err != nil {
		t.Fatal(err)
	}
}
