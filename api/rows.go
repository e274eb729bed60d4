package api

import (
	"bytes"
	"encoding/json"

	"fpnode/ledger"
)

// query turns a request into the ledger's own form.
func (q QueryRequest) query() (ledger.Query, error) {
	out := ledger.Query{Field: q.Field, Descending: q.Descending, Limit: q.Limit, IncludeDocs: q.IncludeDocs}
	if q.Field == "" {
		return out, misuse("the query names no field")
	}
	if q.Limit < 0 {
		return out, misuse("limit is not a number from 0")
	}
	given := 0
	for _, set := range []bool{q.Key != nil, q.Keys != nil, q.Range != nil, q.Prefix != nil} {
		if set {
			given++
		}
	}
	if given > 1 {
		return out, misuse("a query has one of key, keys, range and prefix")
	}
	var err error
	decode := func(raw json.RawMessage) any {
		var v any
		if uerr := json.Unmarshal(raw, &v); uerr != nil && err == nil {
			err = misuse("a key of the query is not JSON")
		}
		return v
	}
	switch {
	case q.Key != nil:
		key := decode(q.Key)
		out.Key = &key
	case q.Keys != nil:
		out.Keys = []any{}
		for _, k := range q.Keys {
			out.Keys = append(out.Keys, decode(k))
		}
	case q.Range != nil:
		out.Range = &[2]any{decode(q.Range[0]), decode(q.Range[1])}
	case q.Prefix != nil:
		out.Prefix = decode(q.Prefix)
	}
	return out, err
}

func queryRow(r ledger.Row) (any, error) {
	key, err := raw(r.Key)
	if err != nil {
		return nil, err
	}
	value, err := raw(r.Value)
	if err != nil {
		return nil, err
	}
	row := QueryRow{Key: key, ID: r.ID, Value: value}
	if r.Doc != nil {
		row.Doc, err = r.Doc.MarshalJSON()
	}
	return row, err
}

func raw(v any) (json.RawMessage, error) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	err := enc.Encode(v)
	return bytes.TrimSuffix(b.Bytes(), []byte{'\n'}), err
}

func changeRow(c ledger.Change) (any, error) {
	value, err := c.Doc.MarshalJSON()
	return ChangeRow{Key: c.Doc.ID, Value: value, Clock: c.Clock.String()}, err
}

func versionRow(v ledger.Version) (VersionRow, error) {
	row := VersionRow{
		Event:   v.Event.String(),
		Parents: cidTexts(v.Parents),
		Height:  v.Height,
		Current: v.Current,
		Missing: v.Missing,
	}
	if v.Missing {
		return row, nil
	}
	var err error
	row.Value, err = v.Doc.MarshalJSON()
	return row, err
}

func conflictRow(c ledger.Conflict) (any, error) {
	winner, err := versionRow(c.Winner)
	if err != nil {
		return nil, err
	}
	row := ConflictRow{ID: c.ID, Winner: winner, Losers: []VersionRow{}}
	for _, l := range c.Losers {
		loser, err := versionRow(l)
		if err != nil {
			return nil, err
		}
		row.Losers = append(row.Losers, loser)
	}
	return row, nil
}
