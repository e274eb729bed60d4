package blockstore

import (
	"bytes"
	"crypto/cipher"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"

	"fpnode/internal/planted"
)

// cryptFS is the file system that pebble sees: the base one with the content of every file encrypted.
//
//	+---------------------------+-----------+---------------+-------------------------------+
//	| magic 8  "fpenc" 00 00 01 | nonce 32  | zero bytes 24 | content, AES-CTR from block 0 |
//	+---------------------------+-----------+---------------+-------------------------------+
//
// The key of a file follows from its random nonce and the home's master key, so the counter of each file starts at 0.
// Within a file no byte is ever written twice: files are written from front to back, and a file given out for reuse is
// a new one. So no two plaintexts meet one keystream. There is no authentication: pebble has checksums against chance,
// and whoever writes to the disk on purpose finds that every block read is checked against its hash.
type cryptFS struct {
	vfs.FS
	vault Vault
	gate  *gate

	mu   sync.Mutex
	open map[vfs.File]bool // files and directories of the base file system
}

const cryptHeaderBytes = 64

var cryptMagic = []byte("fpenc\x00\x00\x01")

// errRewrite says that pebble does what this file system has no safe answer to.
var errRewrite = errors.New("an encrypted file is written from front to back once")

func (c *cryptFS) Unwrap() vfs.FS { return c.FS }

func (c *cryptFS) Create(name string, category vfs.DiskWriteCategory) (vfs.File, error) {
	if err := c.gate.newFile(); err != nil {
		return nil, err
	}
	f, err := c.FS.Create(name, category)
	return c.wrap(name, f, err, c.fresh)
}

func (c *cryptFS) Open(name string, opts ...vfs.OpenOption) (vfs.File, error) {
	f, err := c.FS.Open(name, opts...)
	return c.wrap(name, f, err, c.existing)
}

// OpenReadWrite opens a file to append to it.
func (c *cryptFS) OpenReadWrite(name string, category vfs.DiskWriteCategory, opts ...vfs.OpenOption) (vfs.File, error) {
	f, err := c.FS.OpenReadWrite(name, category, opts...)
	return c.wrap(name, f, err, c.appending)
}

// wrap makes a file of a base file just opened.
func (c *cryptFS) wrap(name string, f vfs.File, err error, header func(string, vfs.File) (*cryptFile, error)) (vfs.File, error) {
	if err != nil {
		return nil, err
	}
	cf, err := header(name, f)
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.open[f] = true
	return cf, nil
}

func (c *cryptFS) close(f vfs.File) error {
	c.mu.Lock()
	delete(c.open, f)
	c.mu.Unlock()
	return f.Close()
}

// closeAll closes what pebble has left open, which it does when it fails to open or close something.
func (c *cryptFS) closeAll() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for f := range c.open {
		f.Close()
	}
	clear(c.open)
}

// fresh gives a new, empty file its header.
func (c *cryptFS) fresh(name string, f vfs.File) (*cryptFile, error) {
	if err := ownerOnly(c.FS, name, fileMode); err != nil {
		return nil, err
	}
	var nonce [32]byte
	rand.Read(nonce[:])
	if planted.ReuseFileNonce {
		nonce = [32]byte{}
	}
	header := append(bytes.Clone(cryptMagic), nonce[:]...)
	header = append(header, make([]byte, cryptHeaderBytes-len(header))...)
	if _, err := c.gate.writeAll(f.Write, header); err != nil {
		return nil, err
	}
	block, err := c.vault.FileCipher(nonce)
	if err != nil {
		return nil, err
	}
	return &cryptFile{File: f, fs: c, block: block, writing: true}, nil
}

// existing reads the header of a file. A header that a crash left out, cut off or zero, makes an empty file: nothing
// of it was ever synced.
func (c *cryptFS) existing(name string, f vfs.File) (*cryptFile, error) {
	var header [cryptHeaderBytes]byte
	n, err := f.ReadAt(header[:], 0)
	if n < len(header) && err != nil && err != io.EOF {
		return nil, err
	}
	if n < len(header) || header == [cryptHeaderBytes]byte{} {
		return &cryptFile{File: f, fs: c, empty: true}, nil
	}
	if !bytes.HasPrefix(header[:], cryptMagic) {
		return nil, fmt.Errorf("%s is not a file of this index: %w", name, pebble.ErrCorruption)
	}
	block, err := c.vault.FileCipher([32]byte(header[len(cryptMagic):]))
	if err != nil {
		return nil, err
	}
	return &cryptFile{File: f, fs: c, block: block}, nil
}

func (c *cryptFS) appending(name string, f vfs.File) (*cryptFile, error) {
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if info.Size() == 0 {
		return c.fresh(name, f)
	}
	cf, err := c.existing(name, f)
	if err != nil {
		return nil, err
	}
	if cf.empty {
		return nil, fmt.Errorf("%s is not a file of this index: %w", name, pebble.ErrCorruption)
	}
	cf.writing, cf.appending, cf.pos = true, true, info.Size()-cryptHeaderBytes
	return cf, nil
}

// ReuseForWrite makes a new file: the old one's keystream is spent.
func (c *cryptFS) ReuseForWrite(oldname, newname string, category vfs.DiskWriteCategory) (vfs.File, error) {
	if err := c.Remove(oldname); err != nil {
		return nil, err
	}
	return c.Create(newname, category)
}

// OpenDir opens the directory to sync it.
func (c *cryptFS) OpenDir(name string) (vfs.File, error) {
	d, err := c.FS.OpenDir(name)
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.open[d] = true
	return &cryptDir{d, c}, nil
}

type cryptDir struct {
	vfs.File
	fs *cryptFS
}

func (d *cryptDir) Close() error { return d.fs.close(d.File) }

// Sync never fails: pebble would panic. The gate shuts instead.
func (d *cryptDir) Sync() error {
	if err := d.File.Sync(); err != nil {
		d.fs.gate.shut(fmt.Errorf("syncing the index directory: %w", err))
	}
	return nil
}

// Rename, Remove and Sync do nothing once the gate is shut, so that what is on the disk stays as it was then.

func (c *cryptFS) Rename(oldname, newname string) error {
	return c.gate.write(func() error { return c.FS.Rename(oldname, newname) })
}

func (c *cryptFS) Remove(name string) error {
	return c.gate.write(func() error { return c.FS.Remove(name) })
}

func (f *cryptFile) Close() error { return f.fs.close(f.File) }

func (f *cryptFile) Sync() error {
	return f.fs.gate.write(f.File.Sync)
}

func (f *cryptFile) SyncData() error {
	return f.fs.gate.write(f.File.SyncData)
}

func (c *cryptFS) Stat(name string) (vfs.FileInfo, error) {
	info, err := c.FS.Stat(name)
	if err != nil {
		return nil, err
	}
	return cryptInfo{info}, nil
}

// cryptInfo shows the size of the content.
type cryptInfo struct{ vfs.FileInfo }

func (i cryptInfo) Size() int64 {
	if i.IsDir() {
		return i.FileInfo.Size()
	}
	return max(0, i.FileInfo.Size()-cryptHeaderBytes)
}

// cryptFile is a file of a cryptFS.
type cryptFile struct {
	vfs.File
	fs      *cryptFS
	block   cipher.Block
	empty   bool
	writing bool
	// appending says that the base file was not made here, so that its own position is at the start.
	appending bool

	pos int64 // of the next Read or Write in the content
	err error // of the first failed Write; it sticks, so that no byte is written twice
}

// xor encrypts or decrypts b, which is the content from off on, into dst.
func (f *cryptFile) xor(dst, b []byte, off int64) {
	var counter [16]byte
	binary.BigEndian.PutUint64(counter[8:], uint64(off/16))
	stream := cipher.NewCTR(f.block, counter[:])
	if skip := off % 16; skip > 0 {
		var skipped [16]byte
		stream.XORKeyStream(skipped[:skip], skipped[:skip])
	}
	stream.XORKeyStream(dst, b)
}

func (f *cryptFile) Read(p []byte) (int, error) {
	n, err := f.ReadAt(p, f.pos)
	f.pos += int64(n)
	if n > 0 && err == io.EOF {
		err = nil
	}
	return n, err
}

func (f *cryptFile) ReadAt(p []byte, off int64) (int, error) {
	if f.empty {
		return 0, io.EOF
	}
	n, err := f.File.ReadAt(p, off+cryptHeaderBytes)
	f.xor(p[:n], p[:n], off)
	return n, err
}

// scratch holds ciphertext on its way to the disk: the caller's plaintext is not overwritten.
var scratch = sync.Pool{New: func() any { return new([32 << 10]byte) }}

func (f *cryptFile) Write(p []byte) (int, error) {
	if !f.writing {
		return 0, errRewrite
	}
	if f.err != nil {
		return 0, f.err
	}
	buf := scratch.Get().(*[32 << 10]byte)
	defer scratch.Put(buf)
	done := 0
	for done < len(p) {
		sealed := buf[:min(len(buf), len(p)-done)]
		f.xor(sealed, p[done:done+len(sealed)], f.pos)
		var n int
		n, f.err = f.fs.gate.writeAll(f.base(), sealed)
		done += n
		f.pos += int64(n)
		if f.err != nil {
			return done, f.err
		}
	}
	return done, nil
}

// base is how to write to the base file.
func (f *cryptFile) base() func([]byte) (int, error) {
	if !f.appending {
		return f.File.Write
	}
	at := f.pos + cryptHeaderBytes
	return func(b []byte) (int, error) {
		n, err := f.File.WriteAt(b, at)
		at += int64(n)
		return n, err
	}
}

func (f *cryptFile) WriteAt(p []byte, off int64) (int, error) {
	if off != f.pos {
		return 0, errRewrite
	}
	return f.Write(p)
}

func (f *cryptFile) Stat() (vfs.FileInfo, error) {
	info, err := f.File.Stat()
	if err != nil {
		return nil, err
	}
	return cryptInfo{info}, nil
}

func (f *cryptFile) Preallocate(off, length int64) error {
	return f.File.Preallocate(off+cryptHeaderBytes, length)
}

func (f *cryptFile) Prefetch(off, length int64) error {
	return f.File.Prefetch(off+cryptHeaderBytes, length)
}

func (f *cryptFile) SyncTo(length int64) (bool, error) {
	full := false
	err := f.fs.gate.write(func() (err error) { full, err = f.File.SyncTo(length + cryptHeaderBytes); return err })
	return full, err
}

// The widest modes that files and directories of a home may have.
const (
	fileMode os.FileMode = 0o600
	dirMode  os.FileMode = 0o700
)

// onDisk reports whether fs is the operating system's, which has modes.
func onDisk(fs vfs.FS) bool { return vfs.Root(fs) == vfs.Default }

// ownerOnly takes the rights of all others away from a file just made.
func ownerOnly(fs vfs.FS, name string, mode os.FileMode) error {
	if !onDisk(fs) {
		return nil
	}
	return os.Chmod(name, mode)
}
