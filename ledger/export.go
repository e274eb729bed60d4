package ledger

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/ipfs/go-cid"

	"fpnode/blockstore"
	"fpnode/internal/car"
	"fpnode/internal/dagcbor"
)

// RetireAfter is how long a pack or border that the newest border no longer lists stays in an export: a JavaScript
// process may have opened the directory before.
const RetireAfter = 14 * 24 * time.Hour

// exportNotes is what an export leaves in a file of the directory for the next one. It is a convenience: without it
// retired CARs are never deleted, and packs that JavaScript has compacted are written anew.
type exportNotes struct {
	Version int                  `json:"version"` // 1
	Border  string               `json:"border"`  // names, as text
	Packs   []string             `json:"packs"`
	Retired map[string]time.Time `json:"retired"` // since when packs and borders, by name, are listed no more
}

const exportNotesFile = "fpnode-export.json"

const (
	exportTemp = "fpnode-temp-" // prefix of files that are being written
	exportMode = 0o700
)

// ExportResult is what an export did.
type ExportResult struct {
	Head     []cid.Cid     // what the directory shows
	Docs     int           // documents in it, as AllDocs lists them
	Packs    int           // CARs of documents that the border lists
	Written  int           // CARs written, the border and CARs of files among them
	Kept     int           // packs and CARs of files that were there, verified and left alone
	Files    int           // CARs of files in the directory
	Deleted  int           // packs and borders retired long ago
	Bytes    int64         // written
	Read     *ImportResult // what was merged first, because it had been written there since; nil if nothing
	Warnings []string
}

// ForeignError says that the directory holds something else than a copy of this ledger. Nothing was changed.
type ForeignError struct {
	Path string
	Err  error
}

func (e *ForeignError) Error() string {
	return fmt.Sprintf("%s is not of this ledger: %v", e.Path, e.Err)
}

func (e *ForeignError) Unwrap() error { return e.Err }

// Hint is what the user can do about it.
func (e *ForeignError) Hint() string {
	return "name an empty directory, or one that holds an export of this ledger"
}

// Export writes the ledger to dir on fsys so that JavaScript Fireproof 0.24 opens it: packs, border and CARs of files
// in data/, one entry in meta/main.json. The key bag is the caller's to write. Head, history and documents are
// exactly the ledger's, except that JS reads one header instead of a log of commits. Only a head that JS could not
// read in a lifetime, of many concurrent merges, is joined first, by events that write no document.
//
// A directory that an earlier export made is brought up to date: only small packs are rewritten, and nothing at all if
// it shows the head already. What JavaScript wrote there meanwhile is merged into the ledger first. A directory of
// another ledger, or one that cannot be read, is refused and left as it is.
//
// Several heads with much between them are joined first, by an event that changes no document: JavaScript would compute
// for minutes, or never end.
//
// Every CAR is durable before the border that lists it, and that before the meta, which is replaced atomically: after
// a crash the directory shows the old state or the new one. JavaScript must not have the directory open meanwhile; it
// takes no lock. An empty ledger is exported as an empty directory.
func (l *Ledger) Export(ctx context.Context, dir string, fsys vfs.FS, progress func(Progress)) (ExportResult, error) {
	if progress == nil {
		progress = func(Progress) {}
	}
	x := exporter{l: l, fs: fsys, dir: dir, progress: progress}
	res, err := x.run(ctx)
	if err != nil {
		return ExportResult{}, fmt.Errorf("export: %w", err)
	}
	return res, nil
}

// exporter carries one export.
type exporter struct {
	l        *Ledger
	fs       vfs.FS
	dir      string
	progress func(Progress)
	res      ExportResult
	notes    exportNotes
	done     int64
}

func (x *exporter) run(ctx context.Context) (ExportResult, error) {
	prev, err := x.read(ctx)
	if err != nil {
		return ExportResult{}, err
	}
	if err := x.prepare(); err != nil {
		return ExportResult{}, err
	}
	if len(x.l.Head()) == 0 {
		return x.res, nil
	}
	if err := x.writeFiles(ctx); err != nil {
		return ExportResult{}, err
	}
	if err := x.joinCostly(ctx); err != nil {
		return ExportResult{}, err
	}
	b, err := x.l.MakeBorder(ctx, prev, x.writeCAR)
	if err != nil {
		return ExportResult{}, err
	}
	x.res.Head, x.res.Packs = b.Next.Head, len(b.Next.Packs)
	x.res.Kept += len(b.Next.Packs) - len(b.Added)
	if len(b.Added) == 0 && sameSet(prev.Head, b.Next.Head) && len(prev.Border) > 0 && len(b.Retired) == 0 {
		b.Next.Border = prev.Border
		return x.finish(ctx, b.Next)
	}
	// Crash: until here the directory shows what it showed; the packs are orphans the next export finds by name.
	if err := x.sync(jsData); err != nil {
		return ExportResult{}, err
	}
	if err := x.writeCAR(b.CAR); err != nil {
		return ExportResult{}, err
	}
	if err := x.sync(jsData); err != nil {
		return ExportResult{}, err
	}
	meta, err := encodeMetaFile(b.Meta.Block, b.Meta.Parents)
	if err != nil {
		return ExportResult{}, err
	}
	if err := x.write(jsWAL, []byte(jsEmptyWAL)); err != nil {
		return ExportResult{}, err
	}
	if err := x.write(jsMeta, meta); err != nil {
		return ExportResult{}, err
	}
	if err := errors.Join(x.sync("meta"), x.sync("wal"), x.sync("")); err != nil {
		return ExportResult{}, err
	}
	return x.finish(ctx, b.Next)
}

// joinCostly gives the ledger a single head if it has several that JavaScript could not read, or one with such parents,
// on which it could not write: it computes their state again for every read, with a search that is cubic in the events
// since they parted, and walks every path between them, which doubles with each round in which both sides merged and
// wrote. A single head with one parent costs it nothing.
func (x *exporter) joinCostly(ctx context.Context) error {
	index, done, err := x.l.ancestry()
	if err != nil {
		return err
	}
	heads := x.l.Head()
	if len(heads) == 1 {
		heads, _ = index.Parents(heads[0])
	}
	var events int
	var visits float64
	if len(heads) > 1 {
		events, visits, err = index.Walks(heads)
	}
	done()
	if err != nil {
		return err
	}
	if events <= maxJSEvents && visits <= maxJSVisits {
		return nil
	}
	return x.l.join(ctx)
}

// prepare makes the directories, with the version files by which JS knows them, and removes what a crashed export
// left half written.
func (x *exporter) prepare() error {
	for _, sub := range []string{jsData, "meta", "wal"} {
		dir := x.fs.PathJoin(x.dir, sub)
		if err := x.makeDir(dir); err != nil {
			return err
		}
		names, err := x.fs.List(dir)
		if err != nil {
			return err
		}
		for _, name := range names {
			if strings.HasPrefix(name, exportTemp) {
				if err := x.fs.Remove(x.fs.PathJoin(dir, name)); err != nil {
					return err
				}
			}
		}
		if slices.Contains(names, "version") {
			continue
		}
		if err := x.write(sub+"/version", []byte(jsVersion)); err != nil {
			return err
		}
		if err := x.sync(sub); err != nil {
			return err
		}
	}
	return nil
}

// makeDir makes a directory and what is missing above it, each durable in the one that holds it.
func (x *exporter) makeDir(dir string) error {
	if _, err := x.fs.Stat(dir); err == nil || !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	parent := x.fs.PathDir(dir)
	if parent != dir {
		if err := x.makeDir(parent); err != nil {
			return err
		}
	}
	if err := x.fs.MkdirAll(dir, exportMode); err != nil {
		return err
	}
	return syncDir(x.fs, parent)
}

// read takes the target's state from the directory itself: its metas, and the packs their headers list, each verified.
// What was written there since is merged into the ledger.
func (x *exporter) read(ctx context.Context) (Target, error) {
	dir := vfsDir{x.fs, x.dir}
	x.readNotes(dir)
	entries, err := readEntries(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return Target{}, x.checkOrphans(dir)
	}
	if err != nil {
		return Target{}, &ForeignError{Path: x.dir, Err: err}
	}
	src := ImportSource{Dir: dir, Opener: x.l.store}
	m := newImporter(x.l, src, x.progress)
	m.tolerant = true
	var t Target
	in := map[cid.Cid]bool{}
	clean := len(entries) == 1 // what is there is one border of ours that shows nothing the ledger lacks
	for _, e := range entries {
		c, err := m.load(e.group[0], true)
		if err != nil {
			return Target{}, &ForeignError{Path: x.dir, Err: err}
		}
		h, _ := c.Header()
		t.Logs = append(t.Logs, append([][]cid.Cid{e.group}, h.Cars...))
		for _, g := range h.Cars {
			ok, err := x.adopt(ctx, m, &t, g, in)
			if err != nil {
				return Target{}, err
			}
			clean = clean && ok
		}
		for _, c := range h.Head {
			ok, err := x.l.hasEvent(c)
			if err != nil {
				return Target{}, err
			}
			clean = clean && ok
		}
		if clean && h.HasHead {
			t.Border, t.Head = e.group, h.Head
		}
	}
	for _, name := range x.notes.Packs { // JS compacted: its header lists none of them, but they may still be there
		if c, err := cid.Decode(name); err == nil {
			if _, err := x.adopt(ctx, m, &t, []cid.Cid{c}, in); err != nil {
				return Target{}, err
			}
		}
	}
	for c := range in {
		if !clean {
			break
		}
		if clean, err = x.l.store.Has(c); err != nil {
			return Target{}, err
		}
	}
	x.res.Warnings = append(x.res.Warnings, m.res.Warnings...)
	if clean {
		return t, nil
	}
	again := newImporter(x.l, src, x.progress)
	again.tolerant = true
	res, err := again.run(ctx, entries)
	if err != nil {
		return Target{}, fmt.Errorf("merging what was written to %s: %w", x.dir, err)
	}
	x.res.Read = &res
	return t, nil
}

// adopt reads one listed CAR and takes it into the target if it is a pack whose blocks are in no other pack there.
func (x *exporter) adopt(ctx context.Context, m *importer, t *Target, group []cid.Cid, in map[cid.Cid]bool) (bool, error) {
	if err := ctx.Err(); err != nil {
		return false, err
	}
	if len(group) != 1 {
		return false, nil
	}
	if slices.ContainsFunc(t.Packs, func(p Pack) bool { return p.Ref.Name.Cid == group[0] }) {
		return true, nil
	}
	c, err := m.load(group[0], false)
	if errors.Is(err, errStale) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	x.done++
	x.progress(Progress{Step: "verifying", Done: x.done, Total: x.done, Bytes: m.bytes})
	blocks, ok := packBlocks(c)
	if !ok || slices.ContainsFunc(blocks, func(c cid.Cid) bool { return in[c] }) {
		return false, nil
	}
	for _, b := range blocks {
		in[b] = true
	}
	t.Packs = append(t.Packs, Pack{Ref: c.Ref, Blocks: blocks})
	return true, nil
}

// packBlocks returns the blocks of a CAR that has the form of a pack.
func packBlocks(c blockstore.CAR) ([]cid.Cid, bool) {
	sections := c.Blocks()
	if len(sections) < 2 || sections[0].CID != packRoot.CID {
		return nil, false
	}
	blocks := make([]cid.Cid, 0, len(sections)-1)
	for _, s := range sections[1:] {
		if isHeader(s.Data) || len(blocks) > 0 && compareBytes(blocks[len(blocks)-1], s.CID) >= 0 {
			return nil, false
		}
		blocks = append(blocks, s.CID)
	}
	return blocks, true
}

// checkOrphans looks at a directory without a meta. CARs there are what an export left that did not come to its end,
// or a ledger whose meta was lost: if they are sealed under another key, they are not ours to write over.
func (x *exporter) checkOrphans(dir fs.FS) error {
	entries, err := fs.ReadDir(dir, jsData)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, e := range entries {
		if !strings.HasSuffix(e.Name(), jsSuffix) {
			continue
		}
		b, err := readFile(dir, path.Join(jsData, e.Name()), blockstore.MaxCARBytes)
		if err != nil {
			return &ForeignError{Path: x.dir, Err: err}
		}
		if _, err := x.l.store.Open(b); err != nil && openReason(err) == ReasonWrongKey {
			return &ForeignError{Path: x.dir, Err: err}
		}
		return nil
	}
	return nil
}

// writeFiles writes the CARs of attached files, which JS reads under their own names.
func (x *exporter) writeFiles(ctx context.Context) error {
	aliases, err := x.oldNames(ctx)
	if err != nil {
		return err
	}
	for ref, err := range x.l.store.Refs() {
		if err != nil {
			return err
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		ok, err := x.holdsFiles(ctx, ref.Name)
		if err != nil {
			return err
		}
		if !ok {
			continue
		}
		sealed, err := x.l.store.Sealed(ctx, ref)
		if err != nil {
			return err
		}
		name := ref.Name.Cid
		if old := dagcbor.SumCodec(car.CodecName019, sealed); aliases[old] {
			name = old
		}
		if err := x.writeOnce(name.String(), sealed); err != nil {
			return err
		}
		x.res.Files++
	}
	return x.sync(jsData)
}

// oldNames are the CARs of files that documents name as Fireproof 0.19 did, by the hash of the sealed file.
func (x *exporter) oldNames(ctx context.Context) (map[cid.Cid]bool, error) {
	old := map[cid.Cid]bool{}
	for d, err := range x.l.AllDocs(ctx, ListOptions{}) {
		if err != nil {
			return nil, err
		}
		for _, c := range fileCARs(d.block) {
			if c.Type() == car.CodecName019 {
				old[c] = true
			}
		}
	}
	return old, nil
}

// holdsFiles reports whether a CAR holds nothing but the content of files.
func (x *exporter) holdsFiles(ctx context.Context, name blockstore.Name) (bool, error) {
	blocks, err := x.l.store.BlocksOf(ctx, name)
	if err != nil {
		return false, err
	}
	return len(blocks) > 0 && !slices.ContainsFunc(blocks, func(c cid.Cid) bool { return !isFileBlock(c) }), nil
}

// writeCAR writes a pack or border under its name.
func (x *exporter) writeCAR(c blockstore.CAR) error {
	return x.writeOnce(c.Ref.Name.String()+jsSuffix, c.Sealed())
}

// writeOnce writes a file of data/ unless it is there with these very bytes.
func (x *exporter) writeOnce(name string, b []byte) error {
	file := path.Join(jsData, name)
	old, err := readFile(vfsDir{x.fs, x.dir}, file, int64(len(b)))
	if err == nil && bytes.Equal(old, b) {
		x.res.Kept++
		return nil
	}
	if err := x.write(file, b); err != nil {
		return err
	}
	x.res.Written++
	x.res.Bytes += int64(len(b))
	x.progress(Progress{Step: "writing", Done: int64(x.res.Written), Total: int64(x.res.Written), Bytes: x.res.Bytes})
	return nil
}

// write replaces a file atomically and makes its content durable; sync makes its name so.
func (x *exporter) write(name string, b []byte) error {
	full := x.fs.PathJoin(x.dir, name)
	temp := x.fs.PathJoin(x.fs.PathDir(full), exportTemp+x.fs.PathBase(full))
	f, err := x.fs.Create(temp, vfs.WriteCategoryUnspecified)
	if err != nil {
		return err
	}
	if err = writeAll(f, b); err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = x.fs.Rename(temp, full)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("writing %s: %w", full, err), x.fs.Remove(temp))
	}
	return nil
}

// writeAll writes a copy of b piece by piece: a vfs.File may change what it is given to write.
func writeAll(f vfs.File, b []byte) error {
	buf := make([]byte, min(len(b), 256<<10))
	for len(b) > 0 {
		n := copy(buf, b)
		if _, err := f.Write(buf[:n]); err != nil {
			return err
		}
		b = b[n:]
	}
	return nil
}

func (x *exporter) sync(sub string) error { return syncDir(x.fs, x.fs.PathJoin(x.dir, sub)) }

func syncDir(fsys vfs.FS, dir string) error {
	d, err := fsys.OpenDir(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// readNotes reads what the last export left. A damaged file counts as none.
func (x *exporter) readNotes(dir fs.FS) {
	b, err := readFile(dir, exportNotesFile, MaxMetaFileBytes)
	if err != nil || json.Unmarshal(b, &x.notes) != nil || x.notes.Version != 1 {
		x.notes = exportNotes{}
	}
}

// finish writes down what is listed now and deletes what has been listed no more for long enough.
func (x *exporter) finish(ctx context.Context, t Target) (ExportResult, error) {
	now := x.l.cfg.Now()
	next := exportNotes{Version: 1, Border: t.Border[0].String(), Retired: map[string]time.Time{}}
	for _, p := range t.Packs {
		next.Packs = append(next.Packs, p.Ref.Name.String())
	}
	for name, since := range x.notes.Retired {
		next.Retired[name] = since
	}
	for _, name := range append(x.notes.Packs, x.notes.Border) {
		if _, ok := next.Retired[name]; !ok {
			next.Retired[name] = now
		}
	}
	for name, since := range next.Retired {
		c, err := cid.Decode(name)
		switch {
		case err != nil || c.Type() != car.CodecName || c.String() != name, // it is going to be part of a path
			name == next.Border || slices.Contains(next.Packs, name):
			delete(next.Retired, name)
		case now.Sub(since) >= RetireAfter:
			err := x.fs.Remove(x.fs.PathJoin(x.dir, jsData, name+jsSuffix))
			if err != nil && !errors.Is(err, os.ErrNotExist) {
				return ExportResult{}, err
			}
			delete(next.Retired, name)
			x.res.Deleted++
		}
	}
	if !reflect.DeepEqual(next, x.notes) {
		b, err := json.Marshal(next)
		if err != nil {
			return ExportResult{}, err
		}
		if err := x.write(exportNotesFile, b); err != nil {
			return ExportResult{}, err
		}
		if err := errors.Join(x.sync(jsData), x.sync("")); err != nil {
			return ExportResult{}, err
		}
	}
	info, err := x.l.Info(ctx)
	if err != nil {
		return ExportResult{}, err
	}
	x.res.Docs = info.Docs
	return x.res, nil
}

func sameSet(a, b []cid.Cid) bool { return slices.Equal(byBytes(a), byBytes(b)) }

// vfsDir shows a directory of a vfs.FS as an fs.FS.
type vfsDir struct {
	fs  vfs.FS
	dir string
}

func (d vfsDir) path(op, name string) (string, error) {
	if !fs.ValidPath(name) {
		return "", &fs.PathError{Op: op, Path: name, Err: fs.ErrInvalid}
	}
	return d.fs.PathJoin(d.dir, name), nil
}

func (d vfsDir) Open(name string) (fs.File, error) {
	p, err := d.path("open", name)
	if err != nil {
		return nil, err
	}
	f, err := d.fs.Open(p)
	if err != nil {
		return nil, err
	}
	return vfsFile{f}, nil
}

func (d vfsDir) Stat(name string) (fs.FileInfo, error) {
	p, err := d.path("stat", name)
	if err != nil {
		return nil, err
	}
	return d.fs.Stat(p)
}

func (d vfsDir) ReadDir(name string) ([]fs.DirEntry, error) {
	p, err := d.path("readdir", name)
	if err != nil {
		return nil, err
	}
	names, err := d.fs.List(p)
	if err != nil {
		return nil, err
	}
	slices.Sort(names)
	entries := make([]fs.DirEntry, 0, len(names))
	for _, n := range names {
		info, err := d.fs.Stat(d.fs.PathJoin(p, n))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		entries = append(entries, fs.FileInfoToDirEntry(info))
	}
	return entries, nil
}

type vfsFile struct{ vfs.File }

func (f vfsFile) Stat() (fs.FileInfo, error) { return f.File.Stat() }

var _ io.Reader = vfsFile{}
