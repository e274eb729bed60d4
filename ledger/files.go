package ledger

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"
	"unicode/utf8"

	"github.com/ipfs/go-cid"
	"github.com/multiformats/go-multihash"

	"fpnode/blockstore"
	"fpnode/internal/car"
	"fpnode/pail"
)

// Files are attached to documents (Fireproof format, "Files in docs" and "File CAR"). The document holds
//
//	_files: { name: {car: [CAR CID], cid: CID, size: n, type: text, lastModified: ms} }
//
// and the content is one raw block, whatever its size, in a sealed CAR of its own whose roots are the cids of all
// entries of _files. _publicFiles looks the same and is sealed the same; JavaScript adds a public address to it when
// it reads. The CAR and the document that names it become durable in one commit, so neither is ever there alone.

var (
	// ErrNoFile is returned for a name under which a document has no file.
	ErrNoFile = errors.New("file not found")
	// ErrNoContent is returned for a file whose document is here and whose content is not: another replica attached
	// it and its CAR has not arrived.
	ErrNoContent = errors.New("the content of the file has not arrived")
)

// defaultFileType stands for a type that was not given. JavaScript takes an entry with an empty type for broken.
const defaultFileType = "application/octet-stream"

// FileInfo describes an attached file.
type FileInfo struct {
	Name     string
	Type     string  // MIME type
	Size     int64   // in bytes
	CID      cid.Cid // of the content
	Cars     []cid.Cid
	Modified time.Time // zero if the entry does not say; whole milliseconds
	Public   bool      // an entry of _publicFiles
}

// PutFile attaches size bytes of r to a document as its file name, replacing one of that name and keeping every other
// field and file. The document is made if there is none. contentType "" is application/octet-stream.
//
// The peak memory is size and some 16 MiB: 1 GiB at the limit, [MaxFileBytes]. Reading takes 16 MiB whatever the size.
//
// Errors are [*LimitError], [*IDError], [*DocError], [ErrClosed], those of r, and those of [blockstore.Ledger.Commit].
func (l *Ledger) PutFile(ctx context.Context, id, name, contentType string, size int64, r io.Reader) (Receipt, error) {
	if contentType == "" {
		contentType = defaultFileType
	}
	if err := checkID(id); err != nil {
		return Receipt{}, err
	}
	if err := checkFile(name, contentType, size); err != nil {
		return Receipt{}, err
	}
	doc, _, err := l.docForFile(ctx, id)
	if err != nil {
		return Receipt{}, err
	}
	others, err := otherFiles(doc, name)
	if err != nil {
		return Receipt{}, err
	}
	content, sealed, err := l.packFile(ctx, others, size, r)
	if err != nil {
		return Receipt{}, fmt.Errorf("file %.80q: %w", name, err)
	}
	info := FileInfo{Name: name, Type: contentType, Size: size, CID: content, Cars: []cid.Cid{sealed.Ref.Name.Cid}, Modified: l.cfg.Now()}
	for {
		doc, was, err := l.docForFile(ctx, id)
		if err != nil {
			return Receipt{}, err
		}
		clock, err := l.commitFile(ctx, doc, was, info, sealed)
		if errors.Is(err, errDocMoved) {
			continue // somebody wrote the document meanwhile: add the file to theirs
		}
		if err != nil {
			return Receipt{}, err
		}
		return Receipt{IDs: []string{id}, Clock: clock}, nil
	}
}

func checkFile(name, contentType string, size int64) error {
	switch {
	case name == "":
		return &DocError{Reason: "a file needs a name"}
	case !utf8.ValidString(name) || !utf8.ValidString(contentType):
		return &DocError{Reason: "name or type of a file is not UTF-8"}
	case len(name) > MaxFileNameBytes:
		return &LimitError{What: "file name in bytes", Size: int64(len(name)), Max: MaxFileNameBytes}
	case len(contentType) > MaxFileNameBytes:
		return &LimitError{What: "file type in bytes", Size: int64(len(contentType)), Max: MaxFileNameBytes}
	case size < 0:
		return &DocError{Reason: "the size of the file is not known"}
	case size > MaxFileBytes:
		return &LimitError{What: "file in bytes", Size: size, Max: MaxFileBytes}
	}
	return nil
}

// docForFile is the document as a map that may be changed, and the CID it has in the trie: undefined if it has none.
func (l *Ledger) docForFile(ctx context.Context, id string) (doc map[string]any, was cid.Cid, err error) {
	e, ok, err := l.view.get(id)
	if err != nil {
		return nil, cid.Undef, fmt.Errorf("getting %.80q: %w", id, err)
	}
	if !ok {
		return map[string]any{"_id": id}, cid.Undef, nil
	}
	if e.flags&flagTombstone != 0 {
		return map[string]any{"_id": id}, e.value, nil
	}
	d, err := l.doc(ctx, id, e.value)
	if err != nil {
		return nil, cid.Undef, fmt.Errorf("getting %.80q: %w", id, err)
	}
	if doc, err = d.Map(); err != nil {
		return nil, cid.Undef, err
	}
	doc["_id"] = id
	return doc, e.value, nil
}

// otherFiles is the contents of a document's files but one, in the order of their names.
func otherFiles(doc map[string]any, name string) ([]cid.Cid, error) {
	files, err := filesOf(doc)
	if err != nil {
		return nil, err
	}
	if _, ok := files[name]; !ok && len(files) >= MaxFiles {
		return nil, &LimitError{What: "files of one document", Size: int64(len(files)) + 1, Max: MaxFiles}
	}
	var out []cid.Cid
	for _, n := range sortedNames(files) {
		info, ok := parseFile(n, files[n], false)
		// Only raw blocks: a root that is something else says that the CAR is no file CAR.
		if ok && n != name && info.CID.Type() == cid.Raw {
			out = append(out, info.CID)
		}
	}
	return out, nil
}

func filesOf(doc map[string]any) (map[string]any, error) {
	v, ok := doc["_files"]
	if !ok {
		return nil, nil
	}
	files, ok := v.(map[string]any)
	if !ok {
		return nil, &DocError{Reason: "its _files is not a map"}
	}
	return files, nil
}

func sortedNames(files map[string]any) []string {
	names := make([]string, 0, len(files))
	for n := range files {
		names = append(names, n)
	}
	slices.Sort(names)
	return names
}

// packFile reads the content into the place it has in the CAR, which is sealed where it lies: it is in memory once.
//
//	header with the roots | varint, length of what follows | CID, 36 bytes | content
func (l *Ledger) packFile(ctx context.Context, others []cid.Cid, size int64, r io.Reader) (cid.Cid, blockstore.CAR, error) {
	var blank [sha256.Size]byte
	roots := append(slices.Clone(others), rawCID(blank)) // as long as the real one
	head := len(car.Append(nil, roots, nil))
	frame := binary.AppendUvarint(nil, uint64(cidBytes+size))
	before := head + len(frame) + cidBytes
	var c cid.Cid
	sealed, err := l.store.PackWith(before+int(size), func(plain []byte) error {
		sum, err := readContent(ctx, plain[before:], r)
		if err != nil {
			return err
		}
		c = rawCID(sum)
		roots[len(others)] = c
		copy(plain, car.Append(nil, roots, nil))
		copy(plain[head:], frame)
		copy(plain[head+len(frame):], c.Bytes())
		return nil
	})
	return c, sealed, err
}

// readContent fills dst from r, which must end there.
func readContent(ctx context.Context, dst []byte, r io.Reader) (sum [sha256.Size]byte, err error) {
	const step = 1 << 20
	h := sha256.New()
	for rest := dst; len(rest) > 0; {
		if err := ctx.Err(); err != nil {
			return sum, err
		}
		n, err := io.ReadFull(r, rest[:min(step, len(rest))])
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return sum, fmt.Errorf("it ends after %d bytes of %d: %w", len(dst)-len(rest)+n, len(dst), io.ErrUnexpectedEOF)
		}
		if err != nil {
			return sum, err
		}
		h.Write(rest[:n])
		rest = rest[n:]
	}
	var more [1]byte
	switch _, err := io.ReadFull(r, more[:]); {
	case err == nil:
		return sum, fmt.Errorf("it is longer than the %d bytes announced", len(dst))
	case !errors.Is(err, io.EOF):
		return sum, err
	}
	return [sha256.Size]byte(h.Sum(nil)), nil
}

// rawCID is the CID of a raw block with this SHA2-256 digest.
func rawCID(digest [sha256.Size]byte) cid.Cid {
	mh, err := multihash.Encode(digest[:], multihash.SHA2_256)
	if err != nil {
		panic("ledger: internal error: sha2-256: " + err.Error())
	}
	return cid.NewCidV1(cid.Raw, mh)
}

// errDocMoved says that a document is no longer what a change to it began from.
var errDocMoved = errors.New("the document was written meanwhile")

// commitFile writes the document with the entry, and the CAR, if the document still is what it was.
func (l *Ledger) commitFile(ctx context.Context, doc map[string]any, was cid.Cid, info FileInfo, sealed blockstore.CAR) ([]cid.Cid, error) {
	files, err := filesOf(doc)
	if err != nil {
		return nil, err
	}
	if files == nil {
		files = map[string]any{}
		doc["_files"] = files
	}
	files[info.Name] = map[string]any{
		"car":          []any{info.Cars[0]},
		"cid":          info.CID,
		"size":         info.Size,
		"type":         info.Type,
		"lastModified": info.Modified.UnixMilli(),
	}
	d, err := FromMap(doc)
	if err != nil {
		return nil, err
	}
	c, block, err := d.block()
	if err != nil {
		return nil, err
	}
	id := d.id
	j := &job{
		docs:  []Doc{{ID: id, CID: c, block: block}},
		ids:   []string{id},
		bytes: len(block),
		cars:  []blockstore.CAR{sealed},
		when: func(ctx context.Context, t pail.Tree) error {
			now, ok, err := t.Get(ctx, id)
			if err != nil {
				return err
			}
			if ok != was.Defined() || ok && now != was {
				return errDocMoved
			}
			return nil
		},
		done: make(chan error, 1),
	}
	if err := l.submit(ctx, j); err != nil {
		return nil, err
	}
	return j.clock, nil
}

// Files lists the files of a document by name, those of _publicFiles after those of _files. Entries that are none are
// left out. A document that is not there is [ErrNotFound].
func (l *Ledger) Files(ctx context.Context, id string) ([]FileInfo, error) {
	d, err := l.Get(ctx, id)
	if err != nil {
		return nil, err
	}
	var out []FileInfo
	for _, field := range []string{"_files", "_publicFiles"} {
		v, _ := d.Field(field)
		files, _ := v.(map[string]any)
		for _, name := range sortedNames(files) {
			if info, ok := parseFile(name, files[name], field == "_publicFiles"); ok {
				out = append(out, info)
			}
		}
	}
	return out, nil
}

// parseFile reads one entry of _files.
func parseFile(name string, v any, public bool) (FileInfo, bool) {
	m, ok := v.(map[string]any)
	if !ok {
		return FileInfo{}, false
	}
	info := FileInfo{Name: name, Public: public}
	if info.CID, ok = m["cid"].(cid.Cid); !ok {
		return FileInfo{}, false
	}
	if info.Size, ok = m["size"].(int64); !ok || info.Size < 0 {
		return FileInfo{}, false
	}
	info.Type, _ = m["type"].(string)
	switch cars := m["car"].(type) {
	case []any:
		for _, c := range cars {
			if c, ok := c.(cid.Cid); ok {
				info.Cars = append(info.Cars, c)
			}
		}
	case cid.Cid: // Fireproof 0.18
		info.Cars = []cid.Cid{cars}
	}
	if ms, ok := m["lastModified"].(int64); ok {
		info.Modified = time.UnixMilli(ms).UTC()
	}
	return info, true
}

// File opens a file of a document. Every byte that is read from it has been verified: content over 1 MiB is read
// through once before File returns, and again as it is asked for, 1 MiB at a time, so memory does not grow with it.
// A file in many blocks, which Fireproof 0.19 made, is verified block by block as it is read. ctx is for the reading too.
//
// Errors are [ErrNotFound] for the document, [ErrNoFile] for the name, [ErrNoContent], and those of the store.
func (l *Ledger) File(ctx context.Context, id, name string) (FileInfo, io.ReadCloser, error) {
	files, err := l.Files(ctx, id)
	if err != nil {
		return FileInfo{}, nil, err
	}
	i := slices.IndexFunc(files, func(f FileInfo) bool { return f.Name == name })
	if i < 0 {
		return FileInfo{}, nil, fmt.Errorf("%.80q of document %.80q: %w", name, id, ErrNoFile)
	}
	info := files[i]
	r, err := l.openContent(ctx, info.CID)
	if errors.Is(err, blockstore.ErrNotFound) {
		return FileInfo{}, nil, fmt.Errorf("%.80q of document %.80q: %w", name, id, ErrNoContent)
	}
	if err != nil {
		return FileInfo{}, nil, fmt.Errorf("%.80q of document %.80q: %w", name, id, err)
	}
	info.Size = r.Size() // what the CID says counts, not the entry
	return info, r, nil
}

// content is what File reads from.
type content interface {
	io.ReadCloser
	Size() int64
}

// openContent opens a raw block, or what Fireproof 0.19 has in its place for large files.
func (l *Ledger) openContent(ctx context.Context, c cid.Cid) (content, error) {
	if c.Type() == cid.DagProtobuf {
		return l.openUnixFS(ctx, c)
	}
	return l.store.OpenBlock(ctx, c)
}
