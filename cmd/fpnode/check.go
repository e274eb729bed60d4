package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"fpnode/api"
)

func (a *app) check() *cobra.Command {
	req := api.CheckRequest{}
	cmd := &cobra.Command{
		Use:   "check [LEDGER]",
		Short: "verify the store",
		Long: `Verifies the store: that every commit is in place, that each history is whole back to its beginning, and that heads and
documents agree. With --read-data every stored byte is read and its hashes are checked too. It changes nothing. The exit
code is 13 if something is damaged.`,
		Args:              cobra.MaximumNArgs(1),
		ValidArgsFunction: a.ledgerNames,
		Example:           "  fpnode check notes --read-data",
	}
	cmd.Flags().BoolVar(&req.ReadData, "read-data", false, "read every byte")
	cmd.RunE = a.verb(haveStore, func(ctx context.Context, c *api.Client, args []string) error {
		if len(args) == 1 {
			req.Ledger = args[0]
		}
		m := a.meter()
		defer m.done()
		found := func(p api.Problem) {
			m.done()
			if a.json {
				a.object(struct {
					Problem api.Problem `json:"problem"`
				}{p})
				return
			}
			kind := "problem"
			if p.Warning {
				kind = "warning"
			}
			where := p.Place
			if p.Ledger != "" {
				where = p.Ledger + ": " + where
			}
			a.print("%s: %s: %s", kind, where, p.Message)
			if p.Advice != "" {
				a.print("  %s", p.Advice)
			}
		}
		res, err := c.Check(ctx, req, found, m.show)
		if err != nil {
			return err
		}
		m.done()
		if a.json {
			if err := a.object(res); err != nil {
				return err
			}
		} else {
			a.print("%s, %s in %s, %s: %s", count(int64(res.Ledgers), "ledger"), size(res.Bytes),
				count(res.Cars, "commit"), count(res.Events, "event"), verdict(res))
		}
		if res.Problems > 0 {
			return &api.Error{Code: api.Corrupt, Message: "the store is damaged", Hint: "make a copy of the home directory before anything else"}
		}
		return nil
	})
	return cmd
}

func verdict(r api.CheckResult) string {
	switch {
	case r.Problems > 0:
		return count(int64(r.Problems), "problem")
	case r.Warnings > 0:
		return "whole, " + count(int64(r.Warnings), "warning")
	default:
		return "whole"
	}
}

// count prints a number of things.
func count(n int64, thing string) string {
	if n == 1 {
		return "1 " + thing
	}
	return fmt.Sprintf("%d %ss", n, thing)
}
