package blockstore_test

import (
	"crypto/cipher"
	"crypto/sha256"
	"errors"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"fpnode/blockstore"
)

// otherVault is the vault of another home.
type otherVault struct{ vault }

func (v otherVault) FileCipher(nonce [32]byte) (cipher.Block, error) {
	return v.vault.FileCipher(sha256.Sum256(nonce[:]))
}

func (v otherVault) RecordAEAD(salt [32]byte) (cipher.AEAD, error) {
	return v.vault.RecordAEAD(sha256.Sum256(salt[:]))
}

// Somebody brought back the keys of another home. No commit can be read, as after a crash that tore the first one; but
// these are whole. The ledger must not seem empty, and what is put then must not take its place.
func TestOtherVaultIsNoCrash(t *testing.T) {
	for _, n := range []int{1, 40} {
		fs := vfs.NewMem()
		cfg := config(fs)
		cfg.SegmentBytes = 8 << 10
		s, err := blockstore.Open(cfg)
		if err != nil {
			t.Fatal(err)
		}
		cars := fill(t, openLedger(t, s, 1), 1, n)
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}

		other := cfg
		other.Vault = otherVault{}
		s, err = blockstore.Open(other)
		if err != nil {
			t.Fatal(err)
		}
		if l, err := s.Ledger(ledgerID(1), keys); !errors.Is(err, blockstore.ErrVault) {
			t.Errorf("%d commits: the ledger opens with the vault of another home: %v, %v", n, l, err)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}

		if err := readAll(t, fs, cars); err != nil {
			t.Errorf("%d commits: with the right vault again: %v", n, err)
		}
	}
}

// The index is damaged where Open reads it. It is made anew at once, not the next time.
func TestOpenMakesADamagedIndexAnew(t *testing.T) {
	mem := vfs.NewMem()
	s, err := blockstore.Open(config(mem))
	if err != nil {
		t.Fatal(err)
	}
	cars := fill(t, openLedger(t, s, 1), 1, 3)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	damaged := 0
	for path, b := range sstables(t, mem) {
		for i := 0; i < len(b); i += 7 * raceStride {
			fs := copyHome(t, mem)
			flipped := append([]byte(nil), b...)
			flipped[i] ^= 0x55
			writeFile(t, fs, path, flipped)
			s, err := blockstore.Open(config(fs))
			if err != nil {
				t.Fatalf("%s flipped at %d of %d: %v", path, i, len(b), err)
			}
			if _, err := s.Ledger(ledgerID(1), keys); err != nil {
				t.Fatalf("%s flipped at %d of %d: %v", path, i, len(b), err)
			}
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			damaged++
		}
	}
	if damaged == 0 {
		t.Fatal("the index has no tables")
	}
	if err := readAll(t, mem, cars); err != nil {
		t.Fatal(err)
	}
}

// sstables are the tables of the index.
func sstables(t *testing.T, fs *vfs.MemFS) map[string][]byte {
	t.Helper()
	names, err := fs.List(home + "/index")
	if err != nil {
		t.Fatal(err)
	}
	tables := make(map[string][]byte)
	for _, name := range names {
		if len(name) > 4 && name[len(name)-4:] == ".sst" {
			path := home + "/index/" + name
			b, err := fs.UnsafeGetFileDataBuffer(path)
			if err != nil {
				t.Fatal(err)
			}
			tables[path] = b
		}
	}
	return tables
}
