package blockstore_test

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"fpnode/blockstore"
	"fpnode/internal/car"
	"fpnode/internal/crashfs"
	"fpnode/internal/dagcbor"
)

// TestNothingReadableAtRest plants ids and values in blocks, notes and derived data and looks for them, and for every
// name, CID and meta, in all files of the home: while it is open, after it was closed, and after the index was rebuilt.
func TestNothingReadableAtRest(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "home")
	cfg := blockstore.Config{Dir: dir, Vault: vault{}, SegmentBytes: 8 << 10}
	s, err := blockstore.Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	l := openLedger(t, s, 1)
	var secrets [][]byte
	secret := func(format string, args ...any) []byte {
		b := fmt.Appendf(nil, format, args...)
		secrets = append(secrets, b)
		return b
	}
	for i := range 60 {
		data := dagcbor.AppendText(nil, string(secret("planted-id-%d", i))+string(bytes.Repeat(secret("planted value %d ", i), 30)))
		c := dataCAR(t, l, car.Block{CID: dagcbor.Sum(data), Data: data})
		old := tipCIDs(l)
		m := blockstore.NewMeta([]blockstore.Ref{c.Ref}, old)
		err := l.Commit(ctx, old, blockstore.Batch{
			CARs: []blockstore.CAR{c}, Tips: []blockstore.Meta{m},
			Drop:  []blockstore.Name{blockstore.NameOf(secret("dropped %d", i))},
			Notes: map[string][]byte{string(secret("note-key-%d", i)): secret("note-value-%d", i)},
		})
		if err != nil {
			t.Fatal(err)
		}
		b := l.Derived().NewBatch()
		b.Set(secret("derived-key-%d", i), secret("derived-value-%d", i))
		if err := b.Commit(); err != nil {
			t.Fatal(err)
		}
		b.Close()
		for _, name := range []string{c.Ref.Name.String(), c.Ref.Name.KeyString(), m.CID.String(), m.CID.KeyString(), dagcbor.Sum(data).String(), dagcbor.Sum(data).KeyString()} {
			secrets = append(secrets, []byte(name), []byte(name[4:24])) // also cut, as the index has digests
		}
		secrets = append(secrets, m.Block)
	}
	grep := func(when string) {
		t.Helper()
		files := 0
		err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() {
				return err
			}
			b, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			files++
			rel := strings.TrimPrefix(path, dir)
			for _, s := range secrets {
				if bytes.Contains(b, s) || bytes.Contains(b, []byte(hex.EncodeToString(s))) || strings.Contains(rel, string(s)) {
					t.Errorf("%s: %s holds %.40q", when, rel, s)
				}
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		if files < 8 {
			t.Fatalf("%s: only %d files", when, files)
		}
	}
	grep("open")
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	grep("closed")
	if err := os.RemoveAll(filepath.Join(dir, "index")); err != nil {
		t.Fatal(err)
	}
	if s, err = blockstore.Open(cfg); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	grep("rebuilt")
}

// TestNoNonceTwice collects the nonces of all files that the encrypting file system ever wrote, of all segments and
// all runs, through crashes, reuse and rebuilding.
func TestNoNonceTwice(t *testing.T) {
	mem := vfs.NewMem()
	var mu sync.Mutex
	nonces := map[string]string{}
	note := func(kind, nonce, where string) {
		mu.Lock()
		defer mu.Unlock()
		if nonce == strings.Repeat("\x00", len(nonce)) {
			t.Errorf("%s: %s nonce is zero", where, kind)
		}
		if was, twice := nonces[kind+nonce]; twice {
			t.Errorf("%s: %s nonce of %s", where, kind, was)
		}
		nonces[kind+nonce] = where
	}
	files := 0
	runs := map[string]bool{}
	spy := &writeSpy{FS: mem, wrote: func(name string, off int64, b []byte) {
		if off == 0 && bytes.HasPrefix(b, []byte("fpenc")) {
			mu.Lock()
			files++
			where := fmt.Sprintf("file %d, %s", files, name)
			mu.Unlock()
			note("file", string(b[8:40]), where)
		}
		if off == 0 && bytes.HasPrefix(b, []byte("fpseg")) {
			note("segment", string(b[0x28:0x48]), name)
			b, off = b[112:], 112
		}
		if bytes.HasPrefix(b, []byte("fprn")) {
			if same := fmt.Sprint(name, off, string(b)); runs[same] { // the last run, written again as it is
				return
			} else {
				runs[same] = true
			}
			note("run", string(b[0x1c:0x28]), fmt.Sprintf("%s at %d", name, off))
		}
	}}
	cfg := config(spy)
	cfg.SegmentBytes = 4 << 10
	for round := range 6 {
		if round == 3 {
			if err := mem.RemoveAll(home + "/index"); err != nil {
				t.Fatal(err)
			}
		}
		s, err := blockstore.Open(cfg)
		if err != nil {
			t.Fatal(err)
		}
		fill(t, openLedger(t, s, 1), uint64(round), 20)
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if len(nonces) < 6*20+20 || files < 20 {
		t.Errorf("only %d nonces and %d files seen", len(nonces), files)
	}
}

// writeSpy sees what is written where.
type writeSpy struct {
	vfs.FS
	wrote func(name string, off int64, b []byte)
}

func (s *writeSpy) Create(name string, c vfs.DiskWriteCategory) (vfs.File, error) {
	f, err := s.FS.Create(name, c)
	return &spyFile{File: f, name: name, spy: s}, err
}

func (s *writeSpy) OpenReadWrite(name string, c vfs.DiskWriteCategory, opts ...vfs.OpenOption) (vfs.File, error) {
	f, err := s.FS.OpenReadWrite(name, c, opts...)
	return &spyFile{File: f, name: name, spy: s}, err
}

type spyFile struct {
	vfs.File
	name string
	spy  *writeSpy
	pos  int64
}

func (f *spyFile) Write(b []byte) (int, error) {
	f.spy.wrote(f.name, f.pos, bytes.Clone(b))
	f.pos += int64(len(b))
	return f.File.Write(b)
}

func (f *spyFile) WriteAt(b []byte, off int64) (int, error) {
	f.spy.wrote(f.name, off, bytes.Clone(b))
	return f.File.WriteAt(b, off)
}

// TestErrorsNameNoSecrets looks for keys, names and plaintext in the texts of errors and in the log.
func TestErrorsNameNoSecrets(t *testing.T) {
	var log bytes.Buffer
	mem := vfs.NewMem()
	cfg := config(mem)
	cfg.Logger = logInto(&log)
	s, err := blockstore.Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	l := openLedger(t, s, 1)
	data := dagcbor.AppendText(nil, "planted-in-an-error")
	c := dataCAR(t, l, car.Block{CID: dagcbor.Sum(data), Data: data})
	mustCommit(t, l, c)
	var texts []string
	for i := range c.Sealed() {
		b := bytes.Clone(c.Sealed())
		b[i] ^= 1
		_, err := l.Accept(c.Ref, b)
		_, err2 := l.Accept(blockstore.Ref{Name: c.Ref.Name}, b)
		texts = append(texts, err.Error(), err2.Error())
	}
	s.Close()
	fault := crashfs.NewFault(mem, crashfs.EIOSticky, 1)
	if _, err := blockstore.Open(blockstore.Config{FS: fault, Dir: home, Vault: vault{}, Logger: cfg.Logger}); err != nil {
		texts = append(texts, err.Error())
	}
	texts = append(texts, log.String())
	for _, text := range texts {
		for _, secret := range []string{"planted", c.Ref.Name.String(), string(rawKey(t)), hex.EncodeToString(rawKey(t)), key.Export()} {
			if strings.Contains(text, secret) {
				t.Errorf("%q holds %q", text, secret)
			}
		}
	}
}
