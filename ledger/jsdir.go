package ledger

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"strings"

	"fpnode/internal/car"
	"fpnode/internal/dagcbor"

	"github.com/ipfs/go-cid"
	"github.com/multiformats/go-multibase"
)

// A ledger directory of JavaScript Fireproof's file gateway (Fireproof format, "File gateway layout"):
//
//	data/<car CID>.car   sealed CAR of documents
//	data/<car CID>       sealed CAR of files (0.19 writes these with .car too)
//	meta/main.json       [{"cid":"<event CID>","parents":["<event CID>"],"data":"M<base64 of the event block>"}]
//	wal/main.json        {"fileOperations":[],"noLoaderOps":[],"operations":[]}
//	*/version            v0.19-file, in every directory, written by 0.19 and 0.24 alike
//
// 0.19 puts one more directory, v0.19-file, between the storage URL and the ledger. A CAR CID of 0.24 has codec 0x18
// and is the hash of the plaintext CAR; one of 0.19 has codec 0x300539 and is the hash of the file.
const (
	jsData     = "data"
	jsMeta     = "meta/main.json"
	jsWAL      = "wal/main.json"
	jsVersion  = "v0.19-file"
	jsSuffix   = ".car"
	jsEmptyWAL = `{"fileOperations":[],"noLoaderOps":[],"operations":[]}`
)

// jsEntry is one entry of meta/main.json: a meta event, what it names, and its own bytes.
type jsEntry struct {
	cid     cid.Cid
	block   []byte
	group   []cid.Cid
	parents []cid.Cid
}

// findLedgerDir returns the directory of fsys that holds meta/ and data/: fsys itself, or the one ledger below it
// or below its v0.19-file directory.
func findLedgerDir(fsys fs.FS) (fs.FS, error) {
	if isLedgerDir(fsys, ".") {
		return fsys, nil
	}
	var found []string
	for _, base := range []string{".", jsVersion} {
		entries, err := fs.ReadDir(fsys, base)
		if errors.Is(err, fs.ErrNotExist) && base != "." {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("reading ledger directory: %w", err)
		}
		if base != "." && isLedgerDir(fsys, base) {
			found = append(found, base)
			continue
		}
		for _, e := range entries {
			dir := path.Join(base, e.Name())
			if e.IsDir() && dir != jsVersion && isLedgerDir(fsys, dir) {
				found = append(found, dir)
			}
		}
	}
	switch len(found) {
	case 1:
		return fs.Sub(fsys, found[0])
	case 0:
		return nil, &ImportError{Reason: ReasonNoMeta, Path: jsMeta, Err: fs.ErrNotExist}
	}
	return nil, &ImportError{Reason: ReasonSeveral, Err: fmt.Errorf("it holds %d ledgers: %s", len(found), strings.Join(found, ", "))}
}

func isLedgerDir(fsys fs.FS, dir string) bool {
	_, err := fs.Stat(fsys, path.Join(dir, jsMeta))
	return err == nil
}

// readEntries reads meta/main.json. JS keeps one entry there; an attached remote or a broken ledger has several.
func readEntries(fsys fs.FS) ([]jsEntry, error) {
	bad := func(reason ImportReason, format string, args ...any) error {
		return &ImportError{Reason: reason, Path: jsMeta, Err: fmt.Errorf(format, args...)}
	}
	b, err := readFile(fsys, jsMeta, MaxMetaFileBytes)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, &ImportError{Reason: ReasonNoMeta, Path: jsMeta, Err: fs.ErrNotExist}
	}
	if err != nil {
		return nil, &ImportError{Reason: ReasonBadMeta, Path: jsMeta, Err: err}
	}
	list, err := metaList(b)
	if err != nil {
		return nil, err
	}
	if len(list) == 0 {
		return nil, bad(ReasonNoMeta, "it lists no entry")
	}
	if len(list) > MaxTips {
		return nil, bad(ReasonBadMeta, "it lists %d entries, more than %d", len(list), MaxTips)
	}
	entries := make([]jsEntry, 0, len(list))
	for i, raw := range list {
		var m struct {
			Data *string         `json:"data"`
			Car  json.RawMessage `json:"car"`
		}
		if err := json.Unmarshal(raw, &m); err != nil {
			return nil, bad(ReasonBadMeta, "entry %d: %v", i, err)
		}
		if m.Data == nil && m.Car != nil {
			return nil, bad(ReasonTooOld, "entry %d has the form of Fireproof 0.18", i)
		}
		if m.Data == nil {
			return nil, bad(ReasonBadMeta, "entry %d has no data", i)
		}
		_, block, err := multibase.Decode(*m.Data)
		if err != nil {
			return nil, bad(ReasonBadMeta, "entry %d: %v", i, err)
		}
		group, parents, err := car.DecodeMeta(block)
		if err != nil {
			return nil, bad(ReasonBadMeta, "entry %d: %v", i, err)
		}
		if len(group) == 0 {
			return nil, bad(ReasonBadMeta, "entry %d names no CAR", i)
		}
		// The entry's own "cid" and "parents" repeat what the block says; JS reads the block, and so do we.
		entries = append(entries, jsEntry{cid: dagcbor.Sum(block), block: block, group: group, parents: parents})
	}
	return entries, nil
}

// metaList splits main.json: an array of entries, or the form with keys, {"metas":[…],"keys":[…]}.
// The keys are not taken: a meta host could plant one (see the threat model); the key bag is where keys come from.
func metaList(b []byte) ([]json.RawMessage, error) {
	bad := func(reason ImportReason, err error) error {
		return &ImportError{Reason: reason, Path: jsMeta, Err: err}
	}
	var list []json.RawMessage
	if trimmed := bytes.TrimSpace(b); len(trimmed) > 0 && trimmed[0] == '[' {
		if err := json.Unmarshal(b, &list); err != nil {
			return nil, bad(ReasonBadMeta, err)
		}
		return list, nil
	}
	var v2 struct {
		Metas []json.RawMessage `json:"metas"`
		Car   json.RawMessage   `json:"car"`
	}
	if err := json.Unmarshal(b, &v2); err != nil {
		return nil, bad(ReasonBadMeta, err)
	}
	if v2.Car != nil {
		return nil, bad(ReasonTooOld, errors.New("it has the form of Fireproof 0.18"))
	}
	return v2.Metas, nil
}

// encodeMetaFile returns main.json with exactly one entry, byte for byte as JS writes it.
func encodeMetaFile(block []byte, parents []cid.Cid) ([]byte, error) {
	data, err := multibase.Encode(multibase.Base64pad, block)
	if err != nil {
		return nil, err
	}
	texts := make([]string, len(parents))
	for i, p := range parents {
		texts[i] = p.String()
	}
	return json.Marshal([]struct {
		CID     string   `json:"cid"`
		Parents []string `json:"parents"`
		Data    string   `json:"data"`
	}{{dagcbor.Sum(block).String(), texts, data}})
}

// carPath returns the file that holds the CAR named c, or fs.ErrNotExist.
func carPath(fsys fs.FS, c cid.Cid) (string, int64, error) {
	for _, name := range []string{c.String() + jsSuffix, c.String()} {
		info, err := fs.Stat(fsys, path.Join(jsData, name))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return "", 0, err
		}
		if !info.Mode().IsRegular() {
			return "", 0, fmt.Errorf("%s is not a regular file", path.Join(jsData, name))
		}
		return path.Join(jsData, name), info.Size(), nil
	}
	return "", 0, fs.ErrNotExist
}

// readFile reads a whole file of at most limit bytes.
func readFile(fsys fs.FS, name string, limit int64) ([]byte, error) {
	f, err := fsys.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if info.Size() > limit {
		return nil, fmt.Errorf("%s has %d bytes, more than %d", name, info.Size(), limit)
	}
	b := make([]byte, 0, info.Size()+1)
	buf := bytes.NewBuffer(b)
	if _, err := io.Copy(buf, io.LimitReader(f, limit+1)); err != nil {
		return nil, err
	}
	if int64(buf.Len()) > limit {
		return nil, fmt.Errorf("%s has more than %d bytes", name, limit)
	}
	return buf.Bytes(), nil
}

// jsLog keeps the car log as JavaScript's loader does: groups, newest first, each once, without the compacted ones
// (Fireproof format, "Car log rules").
type jsLog struct {
	groups    [][]cid.Cid
	compacted map[string]bool
}

func groupKey(g []cid.Cid) string {
	var b strings.Builder
	for _, c := range g {
		b.WriteString(c.KeyString())
		b.WriteByte(0)
	}
	return b.String()
}

// has reports whether a group of the same CARs, in any order, is in the log.
func (l *jsLog) has(group []cid.Cid) bool {
	want := byBytes(group)
	for _, g := range l.groups {
		if len(g) == len(group) && groupKey(byBytes(g)) == groupKey(want) {
			return true
		}
	}
	return false
}

// merge takes the group of a meta and the header of its first CAR.
func (l *jsLog) merge(group []cid.Cid, h car.Header) {
	if l.compacted == nil {
		l.compacted = map[string]bool{}
	}
	for _, g := range h.Compact {
		l.compacted[groupKey(g)] = true
	}
	seen := map[string]bool{}
	var log [][]cid.Cid
	for _, part := range [][][]cid.Cid{{group}, l.groups, h.Cars} {
		for _, g := range part {
			k := groupKey(g)
			if seen[k] || l.compacted[k] {
				continue
			}
			seen[k] = true
			log = append(log, g)
		}
	}
	l.groups = log
}
