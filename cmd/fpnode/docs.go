package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"fpnode/api"
)

func (a *app) get() *cobra.Command {
	return &cobra.Command{
		Use:               "get LEDGER ID",
		Short:             "print a document",
		Args:              cobra.ExactArgs(2),
		ValidArgsFunction: a.ledgerNames,
		Example:           "  fpnode get notes milk",
		RunE: a.verb(haveStore, func(ctx context.Context, c *api.Client, args []string) error {
			doc, err := c.Get(ctx, args[0], args[1])
			if err != nil {
				return err
			}
			if a.json {
				return a.object(doc)
			}
			return a.indented(doc)
		}),
	}
}

func (a *app) del() *cobra.Command {
	var force bool
	cmd := &cobra.Command{
		Use:               "del LEDGER ID...",
		Short:             "delete documents; their history stays",
		Args:              cobra.MinimumNArgs(2),
		ValidArgsFunction: a.ledgerNames,
		Example:           "  fpnode del notes milk",
	}
	cmd.Flags().BoolVar(&force, "force", false, "also write deletions of ids that are not there")
	cmd.RunE = a.verb(haveStore, func(ctx context.Context, c *api.Client, args []string) error {
		r, err := c.Delete(ctx, args[0], force, args[1:]...)
		if err != nil {
			return err
		}
		return a.receipt(r)
	})
	return cmd
}

// receipt prints the ids that a write named.
func (a *app) receipt(r api.Receipt) error {
	if a.json {
		return a.object(r)
	}
	for _, id := range r.IDs {
		a.print("%s", id)
	}
	return nil
}

func (a *app) docs() *cobra.Command {
	var o api.DocsOptions
	cmd := &cobra.Command{
		Use:               "docs LEDGER",
		Short:             "list documents by id",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.ledgerNames,
		Example:           "  fpnode docs notes --limit 10",
	}
	cmd.Flags().BoolVar(&o.IncludeDeleted, "include-deleted", false, "list deleted documents too")
	limitFlag(cmd, &o.Limit)
	cmd.RunE = a.verb(haveStore, func(ctx context.Context, c *api.Client, args []string) error {
		if err := checkLimit(o.Limit); err != nil {
			return err
		}
		for row, err := range c.Docs(ctx, args[0], o) {
			if err != nil {
				return err
			}
			if a.json {
				if err := a.object(row); err != nil {
					return err
				}
				continue
			}
			a.row(row.Key, row.Value)
		}
		return nil
	})
	return cmd
}

func limitFlag(cmd *cobra.Command, limit *int) {
	cmd.Flags().IntVar(limit, "limit", 0, "stop after `N` rows (0 is all)")
}

func checkLimit(n int) error {
	if n < 0 {
		return misuse("--limit %d is below 0", n)
	}
	return nil
}

func (a *app) changes() *cobra.Command {
	var since []string
	var limit int
	cmd := &cobra.Command{
		Use:               "changes LEDGER",
		Short:             "list what changed since a clock, oldest first",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.ledgerNames,
		Example:           "  fpnode changes notes --since bafyreia7sl3ue4kl4zxbgapwptsx4kmiure7c2d6xppjwplnfk2e7y7kq4",
	}
	cmd.Flags().StringSliceVar(&since, "since", nil, "`CLOCK`: one or more event CIDs, as changes and ledger info print them")
	cmd.Flags().IntVar(&limit, "limit", 0, "only the newest `N` changes (0 is all)")
	cmd.RunE = a.verb(haveStore, func(ctx context.Context, c *api.Client, args []string) error {
		if err := checkLimit(limit); err != nil {
			return err
		}
		rows, clock, err := c.Changes(ctx, args[0], since, limit)
		if err != nil {
			return err
		}
		for row, err := range rows {
			if err != nil {
				return err
			}
			if err := a.change(row); err != nil {
				return err
			}
		}
		if !a.json && len(clock) > 0 {
			a.say("next time: fpnode changes %s --since %s", args[0], strings.Join(clock, ","))
		}
		return nil
	})
	return cmd
}

func (a *app) change(row api.ChangeRow) error {
	if a.json {
		return a.object(row)
	}
	a.row(row.Key, row.Value)
	return nil
}

func (a *app) watch() *cobra.Command {
	var limit int
	cmd := &cobra.Command{
		Use:               "watch LEDGER",
		Short:             "print changes as they happen, until interrupted",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.ledgerNames,
		Example:           "  fpnode watch notes --json",
	}
	limitFlag(cmd, &limit)
	cmd.RunE = a.verb(haveStore, func(ctx context.Context, c *api.Client, args []string) error {
		if err := checkLimit(limit); err != nil {
			return err
		}
		if !c.Remote() {
			return api.ErrNoDaemon // nobody else could change anything
		}
		rows, err := c.Watch(ctx, args[0])
		if err != nil {
			return err
		}
		a.say("watching %s", args[0])
		n := 0
		for row, err := range rows {
			if err != nil {
				return err
			}
			if err := a.change(row); err != nil {
				return err
			}
			if err := a.out.Flush(); err != nil {
				return err
			}
			if n++; n == limit {
				return nil
			}
		}
		return &api.Error{Code: api.NoDaemon, Message: "the node stopped"}
	})
	return cmd
}

func (a *app) history() *cobra.Command {
	return &cobra.Command{
		Use:               "history LEDGER ID",
		Short:             "list the versions of a document, newest first",
		Args:              cobra.ExactArgs(2),
		ValidArgsFunction: a.ledgerNames,
		Example:           "  fpnode history notes milk",
		RunE: a.verb(haveStore, func(ctx context.Context, c *api.Client, args []string) error {
			for v, err := range c.History(ctx, args[0], args[1]) {
				if err != nil {
					return err
				}
				if a.json {
					if err := a.object(v); err != nil {
						return err
					}
					continue
				}
				a.version1(v)
			}
			return nil
		}),
	}
}

// version1 prints one version: a star marks the one that get returns.
func (a *app) version1(v api.VersionRow) {
	mark := " "
	if v.Current {
		mark = "*"
	}
	a.row(mark+" "+v.Event, v.Value)
}

func (a *app) conflicts() *cobra.Command {
	return &cobra.Command{
		Use:   "conflicts LEDGER [ID]",
		Short: "list documents that were edited at the same time, with what lost",
		Long: `Lists documents that were edited at the same time in two places, with the version that won (*)
and those that lost. Every replica picks the same winner, from the order of the merged history and never by the time
of day. Nothing is lost: put the version you want, and the conflict is over.`,
		Args:              cobra.RangeArgs(1, 2),
		ValidArgsFunction: a.ledgerNames,
		Example:           "  fpnode conflicts notes",
		RunE: a.verb(haveStore, func(ctx context.Context, c *api.Client, args []string) error {
			id := ""
			if len(args) == 2 {
				id = args[1]
			}
			for conflict, err := range c.Conflicts(ctx, args[0], id) {
				if err != nil {
					return err
				}
				if a.json {
					if err := a.object(conflict); err != nil {
						return err
					}
					continue
				}
				a.print("%s", conflict.ID)
				a.version1(conflict.Winner)
				for _, l := range conflict.Losers {
					a.version1(l)
				}
			}
			return nil
		}),
	}
}

// indented prints JSON for a person.
func (a *app) indented(doc json.RawMessage) error {
	var b bytes.Buffer
	if err := json.Indent(&b, doc, "", "  "); err != nil {
		return err
	}
	a.print("%s", b.Bytes())
	return nil
}

// row prints a name and a value on one line. On a terminal the line is cut
// to the width of the screen; elsewhere it is whole.
func (a *app) row(name string, value json.RawMessage) {
	line := visible(name + "  " + string(value))
	if a.outFd >= 0 {
		if width, _, err := term.GetSize(a.outFd); err == nil {
			line = cut(line, width)
		}
	}
	a.print("%s", line)
}

// visible writes the characters that a terminal would obey, and those that
// turn text around, as JSON escapes them. Line ends stay.
func visible(s string) string {
	if !strings.ContainsFunc(s, obeyed) {
		return s
	}
	var b strings.Builder
	for _, r := range s {
		if obeyed(r) {
			fmt.Fprintf(&b, `\u%04x`, r)
			continue
		}
		b.WriteRune(r)
	}
	return b.String()
}

// cell is visible text that fits into a cell of a table, on one line.
func cell(s string) string { return strings.ReplaceAll(visible(s), "\n", `\u000a`) }

// obeyed is true for control characters, and for Unicode's Bidi_Control.
func obeyed(r rune) bool {
	return r != '\n' && unicode.IsControl(r) || unicode.Is(unicode.Bidi_Control, r)
}

// cut shortens s to width runes.
func cut(s string, width int) string {
	if width < 2 || utf8.RuneCountInString(s) <= width {
		return s
	}
	n := 0
	for i := range s {
		if n == width-1 {
			return s[:i] + "…"
		}
		n++
	}
	return s
}
