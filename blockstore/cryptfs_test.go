package blockstore

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/sha256"
	"errors"
	"io"
	"log/slog"
	"math/rand/v2"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/ipfs/go-cid"
)

type testVault struct{}

func (testVault) FileCipher(nonce [32]byte) (cipher.Block, error) {
	k := sha256.Sum256(nonce[:])
	return aes.NewCipher(k[:])
}

func (testVault) RecordAEAD(salt [32]byte) (cipher.AEAD, error) {
	b, err := testVault{}.FileCipher(salt)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCM(b)
}

func newCryptFS(base vfs.FS) *cryptFS {
	return &cryptFS{FS: base, vault: testVault{}, gate: newGate(slog.New(slog.DiscardHandler)), open: make(map[vfs.File]bool)}
}

// TestCryptFSIsAFileSystem does to an encrypted file what it does to a plain one, and compares.
func TestCryptFSIsAFileSystem(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 1))
	base := vfs.NewMem()
	c := newCryptFS(base)
	for round := range 50 {
		f, err := c.Create("f", vfs.WriteCategoryUnspecified)
		if err != nil {
			t.Fatal(err)
		}
		var want []byte
		write := func(f vfs.File) {
			for range rng.IntN(6) {
				b := make([]byte, rng.IntN(100_000)>>rng.IntN(16))
				for i := range b {
					b[i] = byte(rng.Uint32())
				}
				want = append(want, b...)
				if n, err := f.Write(b); n != len(b) || err != nil {
					t.Fatal(n, err)
				}
			}
		}
		write(f)
		if err := errors.Join(f.Preallocate(0, 100), f.Sync(), f.SyncData(), f.Close()); err != nil {
			t.Fatal(err)
		}
		if f, err = c.OpenReadWrite("f", vfs.WriteCategoryUnspecified); err != nil {
			t.Fatal(err)
		}
		write(f)
		if len(want) > 0 {
			if _, err := f.WriteAt([]byte{1}, 0); !errors.Is(err, errRewrite) {
				t.Fatalf("writing a byte twice: %v", err)
			}
		}
		if n, err := f.WriteAt([]byte("end"), int64(len(want))); n != 3 || err != nil {
			t.Fatal(n, err)
		}
		want = append(want, "end"...)
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}

		if err := errors.Join(c.Rename("f", "g"), c.Link("g", "h")); err != nil {
			t.Fatal(err)
		}
		if f, err = c.Open("h", vfs.SequentialReadsOption); err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(f)
		if err != nil || !bytes.Equal(got, want) {
			t.Fatalf("round %d: read %d bytes, %v; wrote %d", round, len(got), err, len(want))
		}
		for range 20 {
			off := rng.IntN(len(want))
			b := make([]byte, rng.IntN(len(want)-off+1))
			if n, err := f.ReadAt(b, int64(off)); n != len(b) || err != nil && err != io.EOF || !bytes.Equal(b, want[off:off+n]) {
				t.Fatalf("round %d: ReadAt(%d, %d): %d, %v", round, off, len(b), n, err)
			}
		}
		if n, err := f.ReadAt(make([]byte, 10), int64(len(want))-3); n != 3 || err != io.EOF {
			t.Fatalf("ReadAt over the end: %d, %v", n, err)
		}
		info, err := f.Stat()
		byName, err2 := c.Stat("h")
		if errors.Join(err, err2) != nil || info.Size() != int64(len(want)) || byName.Size() != int64(len(want)) {
			t.Fatalf("sizes %d and %d, %v, %v; want %d", info.Size(), byName.Size(), err, err2, len(want))
		}
		if _, err := f.Write([]byte{1}); err == nil {
			t.Fatal("wrote to a file opened to read")
		}
		if err := errors.Join(f.Prefetch(0, 10), f.Close(), c.Remove("h")); err != nil {
			t.Fatal(err)
		}

		// A file that is reused is new.
		before, err := base.UnsafeGetFileDataBuffer("g")
		if err != nil {
			t.Fatal(err)
		}
		before = bytes.Clone(before)
		if f, err = c.ReuseForWrite("g", "f", vfs.WriteCategoryUnspecified); err != nil {
			t.Fatal(err)
		}
		if _, err := f.Write(want); err != nil {
			t.Fatal(err)
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
		after, err := base.UnsafeGetFileDataBuffer("f")
		if err != nil {
			t.Fatal(err)
		}
		if bytes.Equal(before[8:40], after[8:40]) || len(want) > 16 && bytes.Contains(after, before[cryptHeaderBytes:cryptHeaderBytes+16]) {
			t.Fatal("a reused file has the keystream of the old one")
		}
		if _, err := c.Stat("g"); err == nil {
			t.Fatal("the old file is still there")
		}
	}
	if len(c.open) > 0 {
		t.Errorf("%d files are still counted as open", len(c.open))
	}
}

// A file whose header a crash left out or cut off is empty; one with another header is damaged.
func TestCryptFSHeaders(t *testing.T) {
	base := vfs.NewMem()
	c := newCryptFS(base)
	for _, tt := range []struct {
		content string
		ok      bool
	}{
		{"", true},
		{"fpenc", true},
		{string(make([]byte, 63)), true},
		{string(make([]byte, 5000)), true},
		{string(bytes.Repeat([]byte("x"), 64)), false},
		{"fpenc\x00\x00\x02" + string(make([]byte, 5000)), false},
	} {
		f, err := base.Create("f", vfs.WriteCategoryUnspecified)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.Write([]byte(tt.content)); err != nil {
			t.Fatal(err)
		}
		f.Close()
		f, err = c.Open("f")
		if (err == nil) != tt.ok {
			t.Errorf("opening %.10q: %v", tt.content, err)
		}
		if err != nil {
			continue
		}
		if b, err := io.ReadAll(f); err != nil || len(b) > 0 {
			t.Errorf("reading %.10q: %d bytes, %v", tt.content, len(b), err)
		}
		f.Close()
	}
}

// Limits that no test can reach with real bytes.
func TestLargestCommit(t *testing.T) {
	s, err := Open(Config{FS: vfs.NewMem(), Dir: "/home", Vault: testVault{}})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	l, err := s.Ledger([32]byte{1}, nil)
	if err != nil {
		t.Fatal(err)
	}
	big := CAR{Ref: Ref{Name: NameOf(nil), Wire: Wire{cidFromDigest(cid.DagProtobuf, make([]byte, 32))}, Size: MaxCommitBytes + 1}, sealed: []byte{}}
	if err := l.Commit(t.Context(), nil, Batch{CARs: []CAR{big}}); !errors.Is(err, ErrLimit) {
		t.Errorf("a commit of MaxCommitBytes+1: %v, want ErrLimit", err)
	}
	notes := map[string][]byte{}
	for i := range MaxNotes {
		notes[string(rune('0'+i))] = make([]byte, MaxNoteBytes)
	}
	if err := l.Commit(t.Context(), nil, Batch{Notes: notes}); !errors.Is(err, ErrLimit) {
		t.Errorf("metadata over maxMetadataBytes: %v, want ErrLimit", err)
	}
	if s.Syncs() != 0 {
		t.Error("something was written")
	}
}
