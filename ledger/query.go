package ledger

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"iter"
	"math"
	"slices"
	"strings"

	"fpnode/internal/dagcbor"
)

// Query asks for the rows of one index. Field or Map says which; at most one of Key, Keys, Range and Prefix says which
// rows, and without them it is all.
//
// Keys are nil (JSON's null), bool, any number, string, and []any of keys. They sort as in Fireproof: null, false,
// true, numbers, strings by UTF-16 code unit, arrays item by item. docs/differences.md lists what is not as in the
// JavaScript library, and why.
type Query struct {
	// Field indexes documents by a top-level field. Those without it, or with null in it, have no row.
	Field string

	// Map indexes by a function instead: each emit is a row. It is called once for every version of a document that
	// a query finds current, on the goroutine of that query, and must depend on the document alone. A falsy value
	// is stored as null.
	Map func(d Doc, emit func(key, value any))
	// Name is what the index of Map is called. The index outlives the process: two functions need two names, and a
	// function that is changed needs another Revision, which rebuilds the index.
	Name, Revision string

	// Key selects the rows with this key, Keys those with the first key, then those with the second, and so on.
	// An empty Keys that is not nil selects none.
	Key  *any
	Keys []any
	// Range selects the rows from the first key to the second, both included.
	Range *[2]any
	// Prefix selects, if it is a string, the strings that begin with it and the arrays whose first item it is; if
	// it is an array, the arrays that begin with its items; else the arrays whose first item it is.
	Prefix any

	Descending  bool // last row first; with Keys, within each key
	Limit       int  // the most rows; 0 is no limit, a negative Limit no rows
	IncludeDocs bool // fill Row.Doc
}

// Row is one row of an index. Numbers are int64 or float64, as in [Doc.Map].
type Row struct {
	Key, Value any
	ID         string
	Doc        *Doc // the version the row was made from, if asked for
}

// ErrBadQuery is returned for a [Query] that contradicts itself.
var ErrBadQuery = errors.New("bad query")

// Query brings the index up to date and yields its rows over one snapshot, which sees every write acknowledged
// before. Rows are read as they are asked for, so memory does not grow with the result; the snapshot is given up when
// the loop ends.
//
// Errors are [ErrBadQuery], [*IndexError], [*LimitError] and those of the store.
func (l *Ledger) Query(ctx context.Context, q Query) iter.Seq2[Row, error] {
	return func(yield func(Row, error) bool) {
		if err := l.query(ctx, &q, yield); err != nil {
			yield(Row{}, fmt.Errorf("query: %w", err))
		}
	}
}

// query returns nil when the rows, or the caller's interest, have ended.
func (l *Ledger) query(ctx context.Context, q *Query, yield func(Row, error) bool) error {
	if err := q.check(); err != nil {
		return err
	}
	ranges, err := q.ranges()
	if err != nil {
		return fmt.Errorf("%w: %w", ErrBadQuery, err)
	}
	x, snap, err := l.freshIndex(ctx, q)
	if err != nil {
		return err
	}
	defer snap.Close()
	if q.Limit < 0 {
		return nil
	}
	left := q.Limit
	prefix := x.rows(keyRowEntry)
	for _, r := range ranges {
		lo := append(bytes.Clone(prefix), r.lo...)
		hi := prefixEnd(prefix)
		if r.hi != nil {
			hi = append(bytes.Clone(prefix), r.hi...)
		}
		for kv, err := range snap.Scan(lo, hi, q.Descending) {
			if err == nil {
				err = ctx.Err()
			}
			if err != nil {
				return fmt.Errorf("reading: %w", err)
			}
			ir, err := parseRow(kv.Key[len(prefix):], kv.Value)
			if err != nil {
				return err
			}
			if (ir.ambiguous || r.ambiguous) && r.match != nil && !r.match(ir.key) {
				continue
			}
			row, err := l.row(ctx, ir, q.IncludeDocs)
			if err != nil {
				return err
			}
			if !yield(row, nil) {
				return nil
			}
			if left--; left == 0 {
				return nil
			}
		}
	}
	return nil
}

func (l *Ledger) row(ctx context.Context, ir indexRow, withDoc bool) (Row, error) {
	row := Row{Key: ir.key, ID: ir.id}
	if len(ir.value) > 0 {
		var err error
		if row.Value, err = dagcbor.Unmarshal(ir.value); err != nil {
			return Row{}, fmt.Errorf("value of %.80q: %w", ir.id, err)
		}
	}
	if withDoc {
		d, ok := l.docs.peek(ir.id, ir.doc)
		if !ok {
			var err error
			if d, err = l.doc(ctx, ir.id, ir.doc); err != nil {
				return Row{}, fmt.Errorf("document %.80q: %w", ir.id, err)
			}
		}
		row.Doc = &d
	}
	return row, nil
}

func (q *Query) check() error {
	name := q.Field
	if q.Map != nil {
		name = q.Name
		if q.Name == "" || q.Field != "" {
			return fmt.Errorf("%w: a map function needs a name, and no field beside it", ErrBadQuery)
		}
	} else if q.Name != "" || q.Revision != "" {
		return fmt.Errorf("%w: a name is for a map function, and there is none", ErrBadQuery)
	}
	if name == "" {
		return fmt.Errorf("%w: it names no field and has no map function", ErrBadQuery)
	}
	if size := len(name) + len(q.Revision); size > MaxIndexNameBytes {
		return &LimitError{What: "name of the index in bytes", Size: int64(size), Max: MaxIndexNameBytes}
	}
	if len(q.Keys) > MaxQueryKeys {
		return &LimitError{What: "keys of one query", Size: int64(len(q.Keys)), Max: MaxQueryKeys}
	}
	given := 0
	for _, is := range []bool{q.Key != nil, q.Keys != nil, q.Range != nil, q.Prefix != nil} {
		if is {
			given++
		}
	}
	if given > 1 {
		return fmt.Errorf("%w: key, keys, range and prefix exclude each other", ErrBadQuery)
	}
	return nil
}

// keyRange is the rows from lo to before hi. If the key form of a row or of the query is ambiguous, match decides.
type keyRange struct {
	lo, hi    []byte // hi nil: to the end
	ambiguous bool
	match     func(key any) bool
}

func (q *Query) ranges() ([]keyRange, error) {
	switch {
	case q.Key != nil:
		r, err := exactly(*q.Key)
		return []keyRange{r}, err
	case q.Keys != nil:
		out := make([]keyRange, len(q.Keys))
		for i, k := range q.Keys {
			var err error
			if out[i], err = exactly(k); err != nil {
				return nil, err
			}
		}
		return out, nil
	case q.Range != nil:
		lo, _, err := appendKey(nil, q.Range[0])
		if err != nil {
			return nil, err
		}
		hi, _, err := appendKey(nil, q.Range[1])
		if err != nil || bytes.Compare(lo, hi) > 0 {
			return nil, err
		}
		return []keyRange{{lo: append(lo, 0), hi: append(hi, 1)}}, nil
	case q.Prefix != nil:
		out, err := beginning(q.Prefix)
		if q.Descending {
			slices.Reverse(out)
		}
		return out, err
	}
	return []keyRange{{}}, nil
}

// exactly is the rows with one key: 00 follows the key form in a row.
func exactly(key any) (keyRange, error) {
	form, exact, err := appendKey(nil, key)
	if err != nil {
		return keyRange{}, err
	}
	return keyRange{
		lo:        append(bytes.Clone(form), 0),
		hi:        append(form, 1),
		ambiguous: !exact,
		match:     func(k any) bool { return equalKeys(k, key) },
	}, nil
}

// beginning is the rows a prefix selects, in the order of their keys.
func beginning(prefix any) ([]keyRange, error) {
	items, isArray := prefix.([]any)
	if !isArray {
		items = []any{prefix}
	}
	var out []keyRange
	if s, ok := prefix.(string); ok {
		form, exact := appendKeyText([]byte{'J'}, s)
		out = append(out, keyRange{
			lo:        form,
			hi:        prefixEnd(form),
			ambiguous: !exact,
			match: func(k any) bool {
				t, ok := k.(string)
				return ok && strings.HasPrefix(t, s)
			},
		})
	}
	form, exact, err := appendKey(nil, items)
	if err != nil {
		return nil, err
	}
	form = form[:len(form)-1] // without the ! that ends the array
	r := keyRange{
		lo:        form,
		hi:        []byte{'K' + 1},
		ambiguous: !exact,
		match: func(k any) bool {
			a, ok := k.([]any)
			return ok && len(a) >= len(items) && equalKeys(a[:len(items)], items)
		},
	}
	if len(items) > 0 {
		// After the last item stands ! (0x21) or " (0x22), and neither is inside an item.
		r.lo = append(bytes.Clone(form), '!')
		r.hi = append(form, '"'+1)
	}
	return append(out, r), nil
}

// equalKeys compares two keys as JavaScript values, NaN being equal to itself.
func equalKeys(a, b any) bool {
	switch a := a.(type) {
	case nil:
		return b == nil
	case bool:
		b, ok := b.(bool)
		return ok && a == b
	case string:
		b, ok := b.(string)
		return ok && a == strings.ToValidUTF8(b, "\ufffd")
	case []any:
		b, ok := b.([]any)
		if !ok || len(a) != len(b) {
			return false
		}
		for i := range a {
			if !equalKeys(a[i], b[i]) {
				return false
			}
		}
		return true
	}
	x, okX := keyNumber(a)
	y, okY := keyNumber(b)
	return okX && okY && (x == y || math.IsNaN(x) && math.IsNaN(y))
}

// MarshalJSON writes {"key":…,"id":…,"value":…} and "doc" if there is one. As in JavaScript, NaN and the infinities
// become null.
func (r Row) MarshalJSON() ([]byte, error) {
	dst := append([]byte(nil), `{"key":`...)
	dst, err := appendKeyJSON(dst, r.Key)
	if err != nil {
		return nil, err
	}
	dst = append(dst, `,"id":`...)
	if dst, err = appendValueJSON(dst, r.ID); err != nil {
		return nil, err
	}
	dst = append(dst, `,"value":`...)
	if dst, err = appendValueJSON(dst, r.Value); err != nil {
		return nil, err
	}
	if r.Doc != nil {
		if dst, err = r.Doc.AppendJSON(append(dst, `,"doc":`...)); err != nil {
			return nil, err
		}
	}
	return append(dst, '}'), nil
}

func appendKeyJSON(dst []byte, key any) ([]byte, error) {
	if items, ok := key.([]any); ok {
		dst = append(dst, '[')
		for i, item := range items {
			if i > 0 {
				dst = append(dst, ',')
			}
			var err error
			if dst, err = appendKeyJSON(dst, item); err != nil {
				return nil, err
			}
		}
		return append(dst, ']'), nil
	}
	if n, ok := key.(float64); ok && (math.IsNaN(n) || math.IsInf(n, 0)) {
		return append(dst, "null"...), nil
	}
	return appendValueJSON(dst, key)
}

func appendValueJSON(dst []byte, v any) ([]byte, error) {
	b, err := dagcbor.Marshal(v)
	if err != nil {
		return nil, err
	}
	return dagcbor.AppendJSON(dst, b)
}
