package ledger

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"time"
	"unicode/utf8"

	"github.com/ipfs/go-cid"

	"fpnode/internal/dagcbor"
)

// A document block is a DAG-CBOR map with one key (Fireproof format, document block):
//
//	{doc: {…fields…, _id: id}}     a document
//	{del: true}                    a tombstone, the same block whatever was deleted
//
// a1 63 "doc" and a1 63 "del" f5 are therefore the only two beginnings.
var (
	docPrefix    = []byte("\xa1\x63doc")
	delBlock     = []byte("\xa1\x63del\xf5")
	tombstoneCID = dagcbor.Sum(delBlock)
)

// Draft is a document on its way in, checked and encoded: the zero Draft is an empty document without an id.
type Draft struct {
	id      string
	deleted bool
	count   int    // fields beside _id
	fields  []byte // their keys and values in DAG-CBOR, in canonical order
	at      int    // offset in fields where _id belongs
}

// DocError says why a document cannot be written.
type DocError struct {
	ID     string // "" when the document has none yet
	Reason string
}

func (e *DocError) Error() string {
	if e.ID == "" {
		return "document: " + e.Reason
	}
	return fmt.Sprintf("document %q: %s", e.ID, e.Reason)
}

// IDError says why an id cannot name a document.
type IDError struct {
	ID     string
	Reason string
}

func (e *IDError) Error() string { return fmt.Sprintf("id %.80q: %s", e.ID, e.Reason) }

// LimitError is the refusal of something too large.
type LimitError struct {
	What      string
	Size, Max int64
}

func (e *LimitError) Error() string {
	return fmt.Sprintf("%s is %d, the limit is %d", e.What, e.Size, e.Max)
}

// ParseJSON makes a Draft of one JSON object by the rules of JavaScript: integral numbers up to 2^53−1 become
// integers and all others 64-bit floats. Links and bytes are written as DAG-JSON writes them. Duplicate keys, text
// that is not UTF-8 and anything after the object are errors. _id names the document; if it is absent or falsy
// (null, false, 0, "") Put makes an id.
func ParseJSON(b []byte) (Draft, error) {
	if len(b) > 2*MaxDocBytes {
		return Draft{}, &LimitError{What: "document JSON in bytes", Size: int64(len(b)), Max: 2 * MaxDocBytes}
	}
	enc, err := dagcbor.FromJSON(b)
	if err != nil {
		return Draft{}, fmt.Errorf("parsing document: %w", err)
	}
	return parseFields(enc)
}

// FromMap makes a Draft of Go values: nil, bool, every integer and float type, string, []byte, [cid.Cid],
// [time.Time] (stored as JavaScript's toISOString), []any, []string and map[string]any. Integral floats up to
// 2^53−1 become integers as in JavaScript. NaN and infinities are refused.
func FromMap(m map[string]any) (Draft, error) {
	enc, err := appendMap(make([]byte, 0, 256), m, 1)
	if err != nil {
		return Draft{}, err
	}
	return parseFields(enc)
}

// Tombstone is the deletion of id.
func Tombstone(id string) Draft { return Draft{id: id, deleted: true} }

// ID is the document's id, "" when Put is to make one.
func (d Draft) ID() string { return d.id }

// WithID is the same document under another id.
func (d Draft) WithID(id string) Draft {
	d.id = id
	return d
}

// parseFields splits a canonical DAG-CBOR map into _id and the rest.
func parseFields(enc []byte) (Draft, error) {
	r := dagcbor.NewReader(enc)
	if r.Kind() != dagcbor.KindMap {
		return Draft{}, &DocError{Reason: "is not an object"}
	}
	d := Draft{fields: make([]byte, 0, len(enc))}
	for range r.MapLen() {
		key, raw := r.Text(), r.Raw()
		if key == "_id" {
			var err error
			if d.id, err = parseID(raw); err != nil {
				return Draft{}, err
			}
			continue
		}
		d.count++
		d.fields = dagcbor.AppendText(d.fields, key)
		d.fields = append(d.fields, raw...)
		if canonicalBefore(key, "_id") {
			d.at = len(d.fields)
		}
	}
	if err := r.Err(); err != nil {
		return Draft{}, fmt.Errorf("parsing document: %w", err)
	}
	return d, nil
}

// parseID reads the value of _id. JavaScript treats a falsy one as absent.
func parseID(raw []byte) (string, error) {
	v, err := dagcbor.Unmarshal(raw)
	if err != nil {
		return "", fmt.Errorf("parsing _id: %w", err)
	}
	switch v := v.(type) {
	case string:
		return v, nil
	case nil:
		return "", nil
	case bool:
		if !v {
			return "", nil
		}
	case int64:
		if v == 0 {
			return "", nil
		}
	}
	return "", &DocError{Reason: "_id is not a string"}
}

// canonicalBefore is the order of map keys in DAG-CBOR: by length, then by bytes.
func canonicalBefore(a, b string) bool {
	if len(a) != len(b) {
		return len(a) < len(b)
	}
	return a < b
}

// checkID says whether a document can have the id.
func checkID(id string) error {
	if id == "" {
		return &IDError{ID: id, Reason: "is empty"}
	}
	if len(id) > MaxIDBytes {
		return &LimitError{What: "id in bytes", Size: int64(len(id)), Max: MaxIDBytes}
	}
	for i := range len(id) {
		if id[i] < 0x20 || id[i] > 0x7e {
			return &IDError{ID: id, Reason: "holds a character outside printable ASCII"}
		}
	}
	return nil
}

// block is the document's block and its CID under the Draft's id.
func (d Draft) block() (cid.Cid, []byte, error) {
	if d.deleted {
		return tombstoneCID, delBlock, nil
	}
	b := make([]byte, 0, len(docPrefix)+len(d.fields)+len(d.id)+24)
	b = append(b, docPrefix...)
	b = dagcbor.AppendMap(b, d.count+1)
	b = append(b, d.fields[:d.at]...)
	b = dagcbor.AppendText(b, "_id")
	b = dagcbor.AppendText(b, d.id)
	b = append(b, d.fields[d.at:]...)
	if len(b) > MaxDocBytes {
		return cid.Undef, nil, &LimitError{What: "document in bytes", Size: int64(len(b)), Max: MaxDocBytes}
	}
	// The wrapping adds a level: what could not be read back is refused here.
	if err := dagcbor.Valid(b); err != nil {
		return cid.Undef, nil, &DocError{ID: d.id, Reason: err.Error()}
	}
	return dagcbor.Sum(b), b, nil
}

// newID is Fireproof's automatic id: 48 bits of milliseconds, then random, written as a UUID whose fourth group
// always begins with b. Ids made later sort later.
func newID(now time.Time, rand io.Reader) (string, error) {
	var b [16]byte
	ms := uint64(now.UnixMilli())
	for i := range 6 {
		b[i] = byte(ms >> (40 - 8*i))
	}
	if _, err := io.ReadFull(rand, b[6:]); err != nil {
		return "", fmt.Errorf("making an id: %w", err)
	}
	b[7] = b[7]&0xf0 | 0x0b
	var h [32]byte
	hex.Encode(h[:], b[:])
	// The last hex digit is dropped: 7 and 19 random digits make the last three groups.
	id := make([]byte, 0, 36)
	id = append(id, h[0:8]...)
	id = append(id, '-')
	id = append(id, h[8:12]...)
	id = append(id, '-', '7')
	id = append(id, h[12:15]...)
	id = append(id, '-')
	id = append(id, h[15:19]...)
	id = append(id, '-')
	id = append(id, h[19:31]...)
	return string(id), nil
}

func appendMap(b []byte, m map[string]any, depth int) ([]byte, error) {
	if depth > MaxDocDepth {
		return nil, &LimitError{What: "nesting of the document", Size: int64(depth), Max: MaxDocDepth}
	}
	keys := make([]string, 0, len(m))
	for k := range m {
		if !utf8.ValidString(k) {
			return nil, &DocError{Reason: "a key is not UTF-8"}
		}
		keys = append(keys, k)
	}
	slices.SortFunc(keys, func(a, c string) int {
		if canonicalBefore(a, c) {
			return -1
		}
		return 1
	})
	b = dagcbor.AppendMap(b, len(keys))
	for _, k := range keys {
		b = dagcbor.AppendText(b, k)
		var err error
		if b, err = appendValue(b, m[k], depth); err != nil {
			return nil, err
		}
	}
	return b, nil
}

func appendValue(b []byte, v any, depth int) ([]byte, error) {
	switch v := v.(type) {
	case nil:
		return dagcbor.AppendNull(b), nil
	case bool:
		return dagcbor.AppendBool(b, v), nil
	case string:
		if !utf8.ValidString(v) {
			return nil, &DocError{Reason: "a string is not UTF-8"}
		}
		return dagcbor.AppendText(b, v), nil
	case []byte:
		return dagcbor.AppendBytes(b, v), nil
	case int:
		return dagcbor.AppendInt(b, int64(v)), nil
	case int8:
		return dagcbor.AppendInt(b, int64(v)), nil
	case int16:
		return dagcbor.AppendInt(b, int64(v)), nil
	case int32:
		return dagcbor.AppendInt(b, int64(v)), nil
	case int64:
		return dagcbor.AppendInt(b, v), nil
	case uint:
		return dagcbor.AppendUint(b, uint64(v)), nil
	case uint8:
		return dagcbor.AppendUint(b, uint64(v)), nil
	case uint16:
		return dagcbor.AppendUint(b, uint64(v)), nil
	case uint32:
		return dagcbor.AppendUint(b, uint64(v)), nil
	case uint64:
		return dagcbor.AppendUint(b, v), nil
	case float32:
		return appendNumber(b, float64(v))
	case float64:
		return appendNumber(b, v)
	case cid.Cid:
		if !v.Defined() {
			return nil, &DocError{Reason: "a link is undefined"}
		}
		return dagcbor.AppendLink(b, v), nil
	case time.Time:
		return dagcbor.AppendText(b, v.UTC().Format("2006-01-02T15:04:05.000Z")), nil
	case map[string]any:
		return appendMap(b, v, depth+1)
	case []string:
		b = dagcbor.AppendArray(b, len(v))
		for _, s := range v {
			var err error
			if b, err = appendValue(b, s, depth+1); err != nil {
				return nil, err
			}
		}
		return b, nil
	case []any:
		if depth >= MaxDocDepth {
			return nil, &LimitError{What: "nesting of the document", Size: int64(depth + 1), Max: MaxDocDepth}
		}
		b = dagcbor.AppendArray(b, len(v))
		for _, e := range v {
			var err error
			if b, err = appendValue(b, e, depth+1); err != nil {
				return nil, err
			}
		}
		return b, nil
	}
	return nil, &DocError{Reason: fmt.Sprintf("a value of type %T cannot be stored", v)}
}

// appendNumber writes a number as JavaScript does: integral values in its safe range are integers.
func appendNumber(b []byte, f float64) ([]byte, error) {
	if math.IsNaN(f) || math.IsInf(f, 0) {
		return nil, &DocError{Reason: "NaN and infinities cannot be stored"}
	}
	return dagcbor.AppendNumber(b, f), nil
}

// Doc is a stored document. It holds the block and decodes it when asked, so that handing one out is cheap; it is
// immutable and may be kept.
type Doc struct {
	ID      string
	CID     cid.Cid // of the document block
	Deleted bool    // a tombstone: the document has no fields

	block []byte
}

// newDoc checks that block is a document block and wraps it. It does not copy the block, which must not change.
func newDoc(id string, c cid.Cid, block []byte) (Doc, error) {
	if bytes.Equal(block, delBlock) {
		return Doc{ID: id, CID: c, Deleted: true, block: block}, nil
	}
	if !bytes.HasPrefix(block, docPrefix) {
		return Doc{}, fmt.Errorf("block %s of document %.80q is not a document", c, id)
	}
	return Doc{ID: id, CID: c, block: block}, nil
}

// fieldsCBOR is the document's map, {…fields…, _id}. A tombstone has none.
func (d Doc) fieldsCBOR() []byte { return d.block[len(docPrefix):] }

// MarshalJSON is the document with its _id, in stored order, with links and bytes as DAG-JSON; of a tombstone,
// {"_id":…,"_deleted":true} as Fireproof shows it.
func (d Doc) MarshalJSON() ([]byte, error) { return d.AppendJSON(nil) }

// AppendJSON appends what MarshalJSON returns.
func (d Doc) AppendJSON(dst []byte) ([]byte, error) {
	if d.Deleted {
		dst = append(dst, `{"_id":`...)
		dst, err := dagcbor.AppendJSON(dst, dagcbor.AppendText(nil, d.ID))
		if err != nil {
			return nil, err
		}
		return append(dst, `,"_deleted":true}`...), nil
	}
	if len(d.block) == 0 {
		return nil, errors.New("document is empty")
	}
	dst, err := dagcbor.AppendJSON(dst, d.fieldsCBOR())
	if err != nil {
		return nil, fmt.Errorf("document %.80q: %w", d.ID, err)
	}
	return dst, nil
}

// Map is the document as Go values: nil, bool, int64 (uint64 above its range), float64, string, []byte, [cid.Cid],
// []any and map[string]any. The map is the caller's.
func (d Doc) Map() (map[string]any, error) {
	if d.Deleted {
		return map[string]any{"_id": d.ID, "_deleted": true}, nil
	}
	if len(d.block) == 0 {
		return nil, errors.New("document is empty")
	}
	v, err := dagcbor.Unmarshal(d.fieldsCBOR())
	if err != nil {
		return nil, fmt.Errorf("document %.80q: %w", d.ID, err)
	}
	m, ok := v.(map[string]any)
	if !ok {
		return nil, fmt.Errorf("document %.80q is not a map", d.ID)
	}
	return m, nil
}

// Field is one top-level field, found without decoding the others.
func (d Doc) Field(name string) (any, bool) {
	raw, ok := d.rawField(name)
	if !ok {
		return nil, false
	}
	v, err := dagcbor.Unmarshal(raw)
	return v, err == nil
}

// rawField is the DAG-CBOR of one top-level field.
func (d Doc) rawField(name string) ([]byte, bool) {
	if d.Deleted || len(d.block) == 0 {
		return nil, false
	}
	r := dagcbor.NewReader(d.fieldsCBOR())
	for range r.MapLen() {
		key, raw := r.TextBytes(), r.Raw()
		if r.Err() != nil {
			return nil, false
		}
		if string(key) == name {
			return raw, true
		}
	}
	return nil, false
}

// softDeleted says whether the document carries a truthy _deleted field, which hides it from AllDocs and nothing else.
func (d Doc) softDeleted() bool {
	v, ok := d.Field("_deleted")
	if !ok {
		return false
	}
	switch v := v.(type) {
	case nil:
		return false
	case bool:
		return v
	case int64:
		return v != 0
	case float64:
		return v != 0
	case string:
		return v != ""
	}
	return true
}
