package api

import "encoding/json"

// About says what runs.
type About struct {
	Version string   `json:"version"`
	Home    string   `json:"home"`
	PID     int      `json:"pid"`
	API     string   `json:"api,omitempty"`   // path of the socket, when a node is up
	Peer    string   `json:"peer,omitempty"`  // this device's peer ID
	Addrs   []string `json:"addrs,omitempty"` // multiaddrs to give to --peer
}

// LedgerInfo is one ledger. Lists are never null.
type LedgerInfo struct {
	Name  string   `json:"name"`
	ID    string   `json:"id"`
	Head  []string `json:"head"`
	Root  string   `json:"root"` // "" while the ledger is empty
	Docs  int64    `json:"docs"`
	Cars  int64    `json:"cars"`
	Bytes int64    `json:"bytes"`
	Keys  []string `json:"keys"` // fingerprints, the default first
	Tips  []string `json:"tips"` // metas
	// Error says why the ledger could not be opened; then only Name, ID and
	// Keys are set.
	Error *Error `json:"problem,omitempty"`
}

// Progress is where long work is. Total is 0 while it is unknown.
type Progress struct {
	Stage string `json:"stage"`
	Done  int64  `json:"done"`
	Total int64  `json:"total"`
}

// ImportRequest asks for a ledger to be made from a directory that JavaScript
// Fireproof wrote. Paths are absolute.
type ImportRequest struct {
	Ledger string `json:"ledger"`
	From   string `json:"from"`             // holds data/ and meta/
	KeyBag string `json:"keybag,omitempty"` // "" for a ledger without encryption
	As     string `json:"as,omitempty"`     // the ledger's name in the key bag; "" for the last element of From
}

// ImportResult says what an import brought: the ledger as it is now, and
// what was new in it.
type ImportResult struct {
	LedgerInfo
	NewCars  int      `json:"newCars"`
	Repeated int      `json:"repeated"` // CARs that brought no block that was not there
	Absent   int      `json:"absent"`   // CARs that are named but not there, and not needed
	Warnings []string `json:"warnings,omitempty"`
}

// ExportRequest asks for a ledger to be written as JavaScript Fireproof
// reads it. Paths are absolute.
type ExportRequest struct {
	Ledger string `json:"ledger"`
	To     string `json:"to"`
	KeyBag string `json:"keybag,omitempty"` // "" writes no key bag
}

// ExportResult says what an export wrote.
type ExportResult struct {
	To       string   `json:"to"`
	KeyBag   string   `json:"keybag,omitempty"`
	Docs     int      `json:"docs"`
	Head     []string `json:"head"`
	Written  int      `json:"written"` // CARs
	Kept     int      `json:"kept"`    // CARs that were there already
	Deleted  int      `json:"deleted"` // CARs that were replaced long ago
	Bytes    int64    `json:"bytes"`   // of the written
	Merged   int      `json:"merged"`  // CARs that were written there since, and are in the ledger now
	Warnings []string `json:"warnings,omitempty"`
}

// Receipt is the answer to a put or a delete. What it names is durable.
type Receipt struct {
	IDs   []string `json:"ids"`
	Clock []string `json:"clock"`
}

// DocRow is a row of docs, as Fireproof's allDocs gives it.
type DocRow struct {
	Key   string          `json:"key"`
	Value json.RawMessage `json:"value"`
}

// DocsOptions select the rows of [Client.Docs].
type DocsOptions struct {
	IncludeDeleted bool
	Limit          int // 0 is no limit
}

// ChangeRow is one change; Clock is its event.
type ChangeRow struct {
	Key   string          `json:"key"`
	Value json.RawMessage `json:"value"`
	Clock string          `json:"clock"`
}

// QueryRequest asks for rows by the value of one field. At most one of Key,
// Keys, Range and Prefix is set; a key may be null, so it is kept raw.
type QueryRequest struct {
	Field       string              `json:"field"`
	Key         json.RawMessage     `json:"key,omitempty"`
	Keys        []json.RawMessage   `json:"keys,omitempty"`
	Range       *[2]json.RawMessage `json:"range,omitempty"` // both ends are included
	Prefix      json.RawMessage     `json:"prefix,omitempty"`
	Descending  bool                `json:"descending,omitempty"`
	Limit       int                 `json:"limit,omitempty"`
	IncludeDocs bool                `json:"includeDocs"`
}

// QueryRow is a row of a query.
type QueryRow struct {
	Key   json.RawMessage `json:"key"`
	ID    string          `json:"id"`
	Value json.RawMessage `json:"value"`
	Doc   json.RawMessage `json:"doc,omitempty"`
}

// VersionRow is a version of a document, newest first.
type VersionRow struct {
	Event   string          `json:"event"`
	Parents []string        `json:"parents"`
	Height  uint32          `json:"height"`
	Current bool            `json:"current"`
	Value   json.RawMessage `json:"value"`             // null if Missing
	Missing bool            `json:"missing,omitempty"` // a compaction by JavaScript dropped the value
}

// ConflictRow is a document with concurrent versions: what won, and what lost
// and can still be read.
type ConflictRow struct {
	ID     string       `json:"id"`
	Winner VersionRow   `json:"winner"`
	Losers []VersionRow `json:"losers"`
}

// FileRow is a file of a document.
type FileRow struct {
	ID       string `json:"id"`
	Name     string `json:"name"`
	Type     string `json:"type"`
	Size     int64  `json:"size"`
	CID      string `json:"cid"`
	Modified int64  `json:"modified,omitempty"` // ms since 1970
}

// KeyInfo is a key without its secret.
type KeyInfo struct {
	Ledger      string `json:"ledger"`
	Fingerprint string `json:"fingerprint"`
	Bits        int    `json:"bits"`
	Default     bool   `json:"default"`
}

// KeyImportRequest adds a key to a ledger, or makes a ledger with that key.
// Exactly one of Key and KeyBag is set.
type KeyImportRequest struct {
	Ledger string `json:"ledger"`
	Key    string `json:"key,omitempty"`    // multibase
	KeyBag string `json:"keybag,omitempty"` // absolute path of a directory
	As     string `json:"as,omitempty"`     // the ledger's name in the key bag; "" for Ledger
}

// CheckRequest selects what check verifies.
type CheckRequest struct {
	Ledger   string `json:"ledger,omitempty"` // "" is all
	ReadData bool   `json:"readData,omitempty"`
}

// Problem is something that check found.
type Problem struct {
	Ledger  string `json:"ledger,omitempty"`
	Place   string `json:"place"` // file and offset, or what the thing is
	Message string `json:"message"`
	Advice  string `json:"advice,omitempty"`
	// Warning is a problem that cannot lose anything.
	Warning bool `json:"warning,omitempty"`
}

// CheckResult sums up a check.
type CheckResult struct {
	Ledgers   int   `json:"ledgers"`
	Cars      int64 `json:"cars"`
	Bytes     int64 `json:"bytes"` // of sealed CARs
	Events    int64 `json:"events"`
	Unchecked int64 `json:"unchecked"` // events whose root cannot be computed again, since shards of that time are not here
	Docs      int64 `json:"docs"`      // with tombstones
	Files     int64 `json:"files"`
	Problems  int   `json:"problems"`
	Warnings  int   `json:"warnings"`
}

// news is a line of an answer to long work: one of its fields.
type news[R any] struct {
	Progress *Progress `json:"progress,omitempty"`
	Problem  *Problem  `json:"problem,omitempty"`
	Result   *R        `json:"result,omitempty"`
}
