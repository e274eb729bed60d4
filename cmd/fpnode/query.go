package main

import (
	"context"
	"encoding/json"
	"strings"

	"github.com/spf13/cobra"

	"fpnode/api"
)

func (a *app) query() *cobra.Command {
	var keys []string
	var between, prefix string
	req := api.QueryRequest{}
	cmd := &cobra.Command{
		Use:   "query LEDGER FIELD",
		Short: "list documents by the value of a field",
		Long: `Lists the documents that have FIELD, by its value. A value on the command line is JSON if it reads as JSON
(5, true, null, "5", ["a",1]), else a string. The index is kept and follows every change.`,
		Args:              cobra.ExactArgs(2),
		ValidArgsFunction: a.ledgerNames,
		Example: `  fpnode query notes age --range 18,30 --descending
  fpnode query notes name --prefix An --limit 5`,
	}
	f := cmd.Flags()
	f.StringArrayVar(&keys, "key", nil, "only this `VALUE`; give it again for more")
	f.StringVar(&between, "range", "", "only values from A to B, both included: `A,B`")
	f.StringVar(&prefix, "prefix", "", "only strings, or lists, that begin with `P`")
	f.BoolVar(&req.Descending, "descending", false, "largest first")
	f.BoolVar(&req.IncludeDocs, "include-docs", true, "print the documents too")
	limitFlag(cmd, &req.Limit)
	cmd.MarkFlagsMutuallyExclusive("key", "range", "prefix")
	cmd.RunE = a.verb(haveStore, func(ctx context.Context, c *api.Client, args []string) error {
		req.Field = args[1]
		if err := checkLimit(req.Limit); err != nil {
			return err
		}
		switch {
		case len(keys) == 1:
			req.Key = value(keys[0])
		case len(keys) > 1:
			for _, k := range keys {
				req.Keys = append(req.Keys, value(k))
			}
		case f.Changed("range"):
			r, err := pair(between)
			if err != nil {
				return err
			}
			req.Range = &r
		case f.Changed("prefix"):
			req.Prefix = value(prefix)
		}
		for row, err := range c.Query(ctx, args[0], req) {
			if err != nil {
				return err
			}
			if a.json {
				if err := a.object(row); err != nil {
					return err
				}
				continue
			}
			shown := row.Doc
			if shown == nil {
				shown = row.Value
			}
			a.row(string(row.Key)+"  "+row.ID, shown)
		}
		return nil
	})
	return cmd
}

// value reads a value of the command line: JSON, else a string.
func value(s string) json.RawMessage {
	if json.Valid([]byte(s)) {
		return json.RawMessage(s)
	}
	text, err := json.Marshal(s)
	if err != nil {
		panic("fpnode: internal error: " + err.Error())
	}
	return text
}

// pair reads A,B, where each is a value. A comma inside of JSON does not
// part them.
func pair(s string) ([2]json.RawMessage, error) {
	var list []json.RawMessage
	if json.Unmarshal([]byte("["+s+"]"), &list) == nil && len(list) == 2 {
		return [2]json.RawMessage(list), nil
	}
	a, b, ok := strings.Cut(s, ",")
	if !ok || strings.Contains(b, ",") {
		return [2]json.RawMessage{}, &api.Error{Code: api.Misuse, Message: "--range needs two values A,B", Hint: `values with a comma are written as JSON: --range '"a,b","c"'`}
	}
	return [2]json.RawMessage{value(a), value(b)}, nil
}
