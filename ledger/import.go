package ledger

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"

	"github.com/ipfs/go-cid"

	"fpnode/blockstore"
	"fpnode/clock"
	"fpnode/internal/car"
	"fpnode/internal/dagcbor"
)

// ImportSource is a ledger as JavaScript Fireproof's file gateway leaves it.
type ImportSource struct {
	// Dir holds data/ and meta/, or one directory (and 0.19's v0.19-file before it) that does.
	Dir fs.FS
	// Opener opens the source's CARs; keyring.Keys made from its key bag. Not needed if Insecure.
	Opener Opener
	// Insecure says that the CARs are not encrypted (storekey=insecure).
	Insecure bool
}

// Opener opens sealed CARs. Its errors may say what is wrong through a method Check() string, as those of
// [blockstore.Sealer] do.
type Opener interface {
	Open(sealed []byte) (plain []byte, err error)
}

// Progress is how far a long operation has come.
type Progress struct {
	Step  string // what is being done, as a word a person understands
	Done  int64  // of Total; Total may grow while more is found
	Total int64
	Bytes int64 // read or written so far
}

// ImportResult is what an import did.
type ImportResult struct {
	Docs  int   // documents of the ledger afterwards, as AllDocs lists them
	Cars  int   // CARs that entered
	Bytes int64 // of them, sealed

	// Head is the head of the directory, and CarLog its car log, newest group first, as JavaScript would list them.
	Head   []cid.Cid
	CarLog [][]cid.Cid

	Repeated int       // CARs that brought no block the ledger lacked: remembered by name, their bytes not kept
	Known    int       // CARs the ledger knew by name already
	Stale    []cid.Cid // CARs that are named but not there, and not needed
	Warnings []string
}

// ImportReason says what kind of fault an [ImportError] is.
type ImportReason string

const (
	ReasonNoMeta     ImportReason = "no-meta"     // there is no meta/main.json, or it lists nothing
	ReasonBadMeta    ImportReason = "bad-meta"    // meta/main.json cannot be read
	ReasonTooOld     ImportReason = "too-old"     // written by Fireproof 0.18 or before
	ReasonSeveral    ImportReason = "several"     // the directory holds more than one ledger
	ReasonMissing    ImportReason = "missing-car" // a CAR of the newest commit is not there
	ReasonDamaged    ImportReason = "damaged-car" // a CAR does not verify
	ReasonWrongKey   ImportReason = "wrong-key"   // a CAR is sealed under a key that is not at hand
	ReasonIncomplete ImportReason = "incomplete"  // blocks that the head needs are in no CAR
	ReasonGenesis    ImportReason = "genesis"     // its history does not begin where the ledger's does
	ReasonRefused    ImportReason = "refused"     // the CARs are whole, but what they say cannot be merged
)

// ImportError says why a directory was not imported. The ledger shows what it showed before.
type ImportError struct {
	Reason ImportReason
	Path   string // of the file at fault, relative to the directory; "" if it is no single one
	Err    error
}

func (e *ImportError) Error() string {
	what := map[ImportReason]string{
		ReasonNoMeta:     "there is no ledger here",
		ReasonBadMeta:    "the meta file cannot be read",
		ReasonTooOld:     "the ledger was written by Fireproof 0.18 or before",
		ReasonSeveral:    "the directory is not of one ledger",
		ReasonMissing:    "a CAR of the newest commit is missing",
		ReasonDamaged:    "a CAR is damaged",
		ReasonWrongKey:   "a CAR is sealed under another key",
		ReasonIncomplete: "the ledger is incomplete",
		ReasonGenesis:    "the ledger is not a copy of this one",
		ReasonRefused:    "the ledger cannot be merged",
	}[e.Reason]
	var b strings.Builder
	b.WriteString(what)
	if e.Path != "" {
		b.WriteString(": " + e.Path)
	}
	if e.Err != nil {
		b.WriteString(": " + e.Err.Error())
	}
	return b.String()
}

func (e *ImportError) Unwrap() error { return e.Err }

// Hint is what the user can do about it.
func (e *ImportError) Hint() string {
	switch e.Reason {
	case ReasonNoMeta:
		return "name the directory that holds data/ and meta/main.json; for JavaScript Fireproof that is the storage directory plus the ledger's name"
	case ReasonBadMeta:
		return "restore meta/main.json from a backup; nothing was imported"
	case ReasonTooOld:
		return "open it once with Fireproof 0.19 or later, which rewrites it"
	case ReasonSeveral:
		return "name one of them"
	case ReasonMissing:
		return "restore the file from a backup or another copy of the ledger; JavaScript would show an empty ledger here"
	case ReasonDamaged:
		return "restore the file from a backup; without it (move it away) the import succeeds only if nothing in it is needed"
	case ReasonWrongKey:
		return "name the key bag that belongs to this ledger; keys that were replaced must still be in it"
	case ReasonIncomplete:
		return "restore the missing CARs from a backup or another copy of the ledger"
	case ReasonGenesis:
		return "import it as a ledger of its own, under another name"
	}
	return "check that the directory is a whole copy; nothing was imported"
}

// Import takes a ledger directory of JavaScript Fireproof 0.19 or 0.24 into l, which may be empty or hold another copy
// of the same ledger. History, head and roots stay exactly as they are.
//
// Every CAR that is reachable, from the metas over their headers' cars and compact and from the documents' files, is
// opened and verified, and enters if it brings a block that l lacks. Where JavaScript would start an empty ledger
// (newest CAR missing or unreadable, wrong key), and where a CAR does not verify, Import fails with an *ImportError.
//
// Documents appear all at once at the end, through [Ledger.Merge]. An import that was interrupted leaves l showing
// what it showed; CARs that were stored are not read again by the next one.
//
// Peak memory is twice the largest CAR, and some 80 MiB for those that become durable together.
func Import(ctx context.Context, l *Ledger, src ImportSource, progress func(Progress)) (ImportResult, error) {
	dir, err := findLedgerDir(src.Dir)
	if err != nil {
		return ImportResult{}, fmt.Errorf("import: %w", err)
	}
	src.Dir = dir
	entries, err := readEntries(dir)
	if err != nil {
		return ImportResult{}, fmt.Errorf("import: %w", err)
	}
	res, err := newImporter(l, src, progress).run(ctx, entries)
	if err != nil {
		return ImportResult{}, fmt.Errorf("import: %w", err)
	}
	return res, nil
}

// hasEvent reports whether the ledger's history holds an event.
func (l *Ledger) hasEvent(c cid.Cid) (bool, error) {
	index, done, err := l.ancestry()
	if err != nil {
		return false, err
	}
	defer done()
	return index.Has(c), nil
}

// importer carries one import.
type importer struct {
	l        *Ledger
	src      ImportSource
	progress func(Progress)
	res      ImportResult

	// tolerant takes a CAR that does not verify for one that is not there, unless a newest commit needs it.
	tolerant bool

	state map[cid.Cid]visit          // of each CAR met, under the name it was met by
	ref   map[cid.Cid]blockstore.Ref // the CARs of the newest groups
	tip   map[cid.Cid]bool           // CARs of a group that becomes a tip: they enter whatever they hold
	heads []blockstore.CAR           // first CARs of newest groups that do not enter, for their headers

	batch      []blockstore.CAR
	drop       []blockstore.Name
	batchBytes int64
	pending    map[cid.Cid]bool // blocks of batch
	seen       int64            // CARs handled
	bytes      int64            // read
}

func newImporter(l *Ledger, src ImportSource, progress func(Progress)) *importer {
	if progress == nil {
		progress = func(Progress) {}
	}
	return &importer{
		l: l, src: src, progress: progress,
		state: map[cid.Cid]visit{}, ref: map[cid.Cid]blockstore.Ref{}, tip: map[cid.Cid]bool{}, pending: map[cid.Cid]bool{},
	}
}

type visit byte

const (
	visitOpen visit = iota + 1 // on the stack
	visitDone
)

func (m *importer) run(ctx context.Context, entries []jsEntry) (ImportResult, error) {
	var log jsLog
	var metas []jsEntry
	for _, e := range entries {
		if log.has(e.group) {
			continue // as JS does: it has seen this commit through another entry
		}
		first, err := m.load(e.group[0], true)
		if err != nil {
			return ImportResult{}, err
		}
		h, ok := first.Header()
		if !ok || !h.HasHead {
			return ImportResult{}, m.fault(ReasonDamaged, e.group[0], errors.New("it has no commit header"))
		}
		log.merge(e.group, h)
		fresh := false
		for _, c := range h.Head {
			if !slices.Contains(m.res.Head, c) {
				m.res.Head = append(m.res.Head, c)
			}
			ok, err := m.l.hasEvent(c)
			if err != nil {
				return ImportResult{}, err
			}
			fresh = fresh || !ok
		}
		for _, c := range e.group {
			m.ref[c] = blockstore.Ref{}
			m.tip[c] = fresh
		}
		if !fresh {
			m.heads = append(m.heads, first)
		}
		metas = append(metas, e)
	}
	m.res.CarLog = log.groups

	for _, e := range metas {
		for _, c := range e.group {
			if err := m.walk(ctx, c); err != nil {
				return ImportResult{}, err
			}
		}
	}
	if err := m.flush(ctx); err != nil {
		return ImportResult{}, err
	}
	m.progress(Progress{Step: "merging", Done: m.seen, Total: m.seen, Bytes: m.bytes})
	if err := m.merge(ctx, metas); err != nil {
		return ImportResult{}, err
	}
	info, err := m.l.Info(ctx)
	if err != nil {
		return ImportResult{}, err
	}
	m.res.Docs = info.Docs
	return m.res, nil
}

// merge hands the metas over. From here on an import is a merge like any other.
func (m *importer) merge(ctx context.Context, entries []jsEntry) error {
	metas := make([]blockstore.Meta, len(entries))
	for i, e := range entries {
		refs := make([]blockstore.Ref, len(e.group))
		same := true
		for j, c := range e.group {
			refs[j] = m.ref[c]
			same = same && refs[j].Name.Cid == c
		}
		metas[i] = blockstore.Meta{CID: e.cid, Block: e.block, Parents: e.parents, Group: refs}
		if !same { // 0.19 names sealed files; our names are those of 0.24
			metas[i] = blockstore.NewMeta(refs, e.parents)
		}
	}
	res, err := m.l.MergeJS(ctx, metas, m.heads)
	if err != nil {
		return err
	}
	if len(res.Quarantined) > 0 {
		why := res.Quarantined[0].Reason
		if errors.Is(why, clock.ErrGenesis) {
			return &ImportError{Reason: ReasonGenesis, Err: why}
		}
		return &ImportError{Reason: ReasonRefused, Err: why}
	}
	if len(res.Waiting) > 0 {
		return m.incomplete(res.Waiting[0].Missing)
	}
	if res.Unchecked > 0 {
		m.warn("the roots of %d events could not be checked: JavaScript deleted the shards of their time", res.Unchecked)
	}
	if res.Healed > 0 {
		m.warn("%d shards that JavaScript had lost were made again", res.Healed)
	}
	return nil
}

func (m *importer) warn(format string, args ...any) {
	m.res.Warnings = append(m.res.Warnings, fmt.Sprintf(format, args...))
}

// walk handles the CAR that JS knows as root and everything it leads to, oldest first: what a header names enters
// before the CAR it stands in, so that of two CARs with the same blocks the original enters and the copy is dropped.
func (m *importer) walk(ctx context.Context, root cid.Cid) error {
	type frame struct {
		name     cid.Cid
		expanded bool
	}
	stack := []frame{{name: root}}
	for len(stack) > 0 {
		if err := ctx.Err(); err != nil {
			return err
		}
		top := &stack[len(stack)-1]
		if m.state[top.name] == visitDone || m.state[top.name] == visitOpen && !top.expanded {
			stack = stack[:len(stack)-1]
			continue
		}
		_, needed := m.ref[top.name]
		if !needed && m.known(top.name) {
			m.res.Known++
			m.done(top.name)
			continue
		}
		c, err := m.load(top.name, needed)
		if errors.Is(err, errStale) {
			m.res.Stale = append(m.res.Stale, top.name)
			m.done(top.name)
			continue
		}
		if err != nil {
			return err
		}
		if !top.expanded {
			top.expanded = true
			m.state[top.name] = visitOpen
			before := len(stack)
			for _, name := range references(c) {
				if m.state[name] == 0 {
					stack = append(stack, frame{name: name})
				}
			}
			if len(stack) > before {
				continue // and read this CAR again later: a chain of CARs is not held in memory
			}
		}
		if err := m.take(ctx, top.name, c); err != nil {
			return err
		}
		m.done(top.name)
	}
	return nil
}

func (m *importer) done(name cid.Cid) {
	m.state[name] = visitDone
	m.seen++
	m.progress(Progress{Step: "reading", Done: m.seen, Total: max(m.seen, int64(len(m.state))), Bytes: m.bytes})
}

// known reports whether the ledger has, or had and dropped, the CAR JS knows as name.
func (m *importer) known(name cid.Cid) bool {
	if name.Type() == car.CodecName {
		return m.l.store.Known(blockstore.Name{Cid: name})
	}
	// A 0.19 name is the hash of the file. If the file was small and sealed under our key, that is its wire name.
	wire := blockstore.Wire{Cid: cid.NewCidV1(cid.Raw, name.Hash())}
	_, ok, err := m.l.store.RefByWire(wire)
	return ok && err == nil
}

// references are the CARs a CAR leads to, in the order in which they go on the stack: what was replaced long ago, the
// car log with the oldest on top, and above them the files that its documents name.
func references(c blockstore.CAR) []cid.Cid {
	var out []cid.Cid
	if h, ok := c.Header(); ok {
		for _, groups := range [][][]cid.Cid{h.Cars, h.Compact} {
			for _, g := range groups {
				out = append(out, g...)
			}
		}
	}
	if holdsFiles(&c) {
		return out
	}
	for _, s := range c.Blocks() {
		out = append(out, fileCARs(s.Data)...)
	}
	return out
}

// errStale says that a CAR is not there, or that JS put an empty one in its place.
var errStale = errors.New("not there")

// load reads, opens and verifies one CAR. Unless it is needed, a CAR that is not there is errStale.
func (m *importer) load(name cid.Cid, needed bool) (blockstore.CAR, error) {
	c, err := m.open(name, needed)
	var fault *ImportError
	if m.tolerant && !needed && errors.As(err, &fault) {
		m.warn("%v", fault)
		return blockstore.CAR{}, errStale
	}
	return c, err
}

func (m *importer) open(name cid.Cid, needed bool) (blockstore.CAR, error) {
	file, _, err := carPath(m.src.Dir, name)
	if errors.Is(err, fs.ErrNotExist) {
		if needed {
			return blockstore.CAR{}, m.fault(ReasonMissing, name, nil)
		}
		return blockstore.CAR{}, errStale
	}
	if err != nil {
		return blockstore.CAR{}, err
	}
	raw, err := readFile(m.src.Dir, file, blockstore.MaxFileCARBytes)
	if err != nil {
		return blockstore.CAR{}, m.fault(ReasonDamaged, name, err)
	}
	m.bytes += int64(len(raw))
	plain := raw
	if !m.src.Insecure {
		if plain, err = m.src.Opener.Open(raw); err != nil {
			return blockstore.CAR{}, m.fault(openReason(err), name, err)
		}
	}
	got := nameOf(name, raw, plain)
	raw = nil // a CAR of files can be large, and sealing it takes as much again
	c, err := m.accept(plain)
	if err != nil {
		return blockstore.CAR{}, m.fault(ReasonDamaged, name, err)
	}
	if got != name {
		if !needed && bringsNothing(c) {
			// An attach of JS uploads an empty CAR under the name of any CAR it lacks (upstream bug).
			m.warn("%s was overwritten with an empty CAR", file)
			return blockstore.CAR{}, errStale
		}
		return blockstore.CAR{}, m.fault(ReasonDamaged, name, fmt.Errorf("its content has the name %s", got))
	}
	if _, ok := m.ref[name]; ok {
		m.ref[name] = c.Ref
	}
	return c, nil
}

// accept seals a CAR under the ledger's own key, whatever key it came under: all replicas then have the same bytes.
func (m *importer) accept(plain []byte) (blockstore.CAR, error) {
	if len(plain) <= importBatchBytes {
		return m.l.store.AcceptPlain(plain)
	}
	return m.l.store.PackWith(len(plain), func(dst []byte) error {
		copy(dst, plain)
		return nil
	})
}

func (m *importer) fault(reason ImportReason, name cid.Cid, err error) error {
	path, _, e := carPath(m.src.Dir, name)
	if e != nil {
		path = jsData + "/" + name.String() + jsSuffix
	}
	return &ImportError{Reason: reason, Path: path, Err: err}
}

// openReason tells a key that is not at hand from a CAR that is damaged.
func openReason(err error) ImportReason {
	var c interface{ Check() string }
	if errors.As(err, &c) && c.Check() == "key" {
		return ReasonWrongKey
	}
	return ReasonDamaged
}

// nameOf is the name a CAR should have in the scheme of the name it goes by: 0.19 hashes the file, 0.24 the plain CAR.
func nameOf(name cid.Cid, raw, plain []byte) cid.Cid {
	if name.Type() != car.CodecName019 {
		return car.NameOf(plain)
	}
	return dagcbor.SumCodec(car.CodecName019, raw)
}

// holdsFiles reports whether a CAR is one of attached files.
func holdsFiles(c *blockstore.CAR) bool {
	_, commit := c.Header()
	return !commit && !slices.ContainsFunc(c.CIDs(), func(b cid.Cid) bool { return !isFileBlock(b) })
}

// isFileBlock reports whether a block belongs to the content of a file: raw, or what UnixFS of Fireproof 0.19 made of
// large ones.
func isFileBlock(c cid.Cid) bool { return c.Type() == cid.Raw || c.Type() == cid.DagProtobuf }

// bringsNothing reports whether a CAR holds no block beside its header.
func bringsNothing(c blockstore.CAR) bool {
	_, commit := c.Header()
	return commit && len(c.CIDs()) == 1
}

// take puts a verified CAR into the batch, or only its name if it holds no block that l lacks.
func (m *importer) take(ctx context.Context, name cid.Cid, c blockstore.CAR) error {
	if m.l.store.Known(c.Ref.Name) {
		m.res.Known++
		return nil
	}
	// A CAR of files is looked up by the name that stands in the document, so it enters whatever else is there.
	fresh := m.tip[name] || holdsFiles(&c)
	_, commit := c.Header()
	blocks := c.CIDs()
	for i, b := range blocks {
		if fresh {
			break
		}
		if i == 0 && commit || m.pending[b] {
			continue
		}
		has, err := m.l.store.Has(b)
		if err != nil {
			return err
		}
		fresh = !has
	}
	if !fresh {
		m.drop = append(m.drop, c.Ref.Name)
		m.res.Repeated++
	} else {
		for _, b := range blocks {
			m.pending[b] = true
		}
		m.batch = append(m.batch, c)
		m.batchBytes += c.Ref.Size
		m.res.Cars++
		m.res.Bytes += c.Ref.Size
	}
	if m.batchBytes < importBatchBytes && len(m.batch)+len(m.drop) < importBatchCARs {
		return nil
	}
	return m.flush(ctx)
}

// flush makes the batch durable. Nothing shows it yet: no meta leads to it.
func (m *importer) flush(ctx context.Context) error {
	if len(m.batch)+len(m.drop) == 0 {
		return nil
	}
	err := m.l.exclusive(ctx, func() error {
		tips := m.l.state.Load().tips
		return m.l.store.Commit(ctx, metaCIDs(tips), blockstore.Batch{CARs: m.batch, Drop: m.drop, Tips: tips})
	})
	if err != nil {
		return fmt.Errorf("storing CARs: %w", err)
	}
	m.batch, m.drop, m.batchBytes = nil, nil, 0
	clear(m.pending)
	return nil
}

// incomplete explains blocks that no CAR brought.
func (m *importer) incomplete(missing []cid.Cid) error {
	texts := make([]string, 0, 3)
	for _, c := range missing[:min(len(missing), 3)] {
		texts = append(texts, c.String())
	}
	err := fmt.Errorf("%d blocks are missing, such as %s; %d CARs that are named are not there",
		len(missing), strings.Join(texts, ", "), len(m.res.Stale))
	e := &ImportError{Reason: ReasonIncomplete, Err: err}
	if len(m.res.Stale) > 0 {
		e.Path = jsData + "/" + m.res.Stale[0].String() + jsSuffix
	}
	return e
}

// fileCARs lists the CARs that hold the files of a document block (Fireproof format, "Files in docs"):
//
//	{doc: {_files: {name: {car: [CID, …], cid: CID, …}}, _publicFiles: …}}
func fileCARs(block []byte) []cid.Cid { return fileLinks(block, "car") }

// fileContents lists the raw blocks that are the content of those files.
func fileContents(block []byte) []cid.Cid { return fileLinks(block, "cid") }

func fileLinks(block []byte, field string) []cid.Cid {
	if !bytes.HasPrefix(block, docPrefix) {
		return nil
	}
	var out []cid.Cid
	r := dagcbor.NewReader(block)
	eachField(r, func(string) { // doc
		eachField(r, func(name string) {
			if name != "_files" && name != "_publicFiles" {
				r.Skip()
				return
			}
			eachField(r, func(string) { // one file
				eachField(r, func(name string) {
					if name != field {
						r.Skip()
						return
					}
					out = append(out, linksOf(r)...)
				})
			})
		})
	})
	if r.Err() != nil {
		return nil
	}
	return out
}

// eachField calls f after each key of a map, to read its value. Anything else is skipped.
func eachField(r *dagcbor.Reader, f func(key string)) {
	if r.Kind() != dagcbor.KindMap {
		r.Skip()
		return
	}
	for range r.MapLen() {
		f(r.Text())
	}
}

// linksOf reads a link, which 0.19 wrote, or the links of a list.
func linksOf(r *dagcbor.Reader) (out []cid.Cid) {
	switch r.Kind() {
	case dagcbor.KindLink:
		return []cid.Cid{r.Link()}
	case dagcbor.KindArray:
		for range r.ArrayLen() {
			out = append(out, linksOf(r)...)
		}
	default:
		r.Skip()
	}
	return out
}
