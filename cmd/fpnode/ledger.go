package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"fpnode/api"
)

func (a *app) ledger() *cobra.Command {
	return a.nouns("ledger", "make, list, import and export ledgers",
		a.ledgerNew(), a.ledgerLs(), a.ledgerInfo(), a.ledgerRm(), a.ledgerImport(), a.ledgerExport())
}

func (a *app) ledgerNew() *cobra.Command {
	return &cobra.Command{
		Use:     "new NAME",
		Short:   "make an empty ledger with a key of its own",
		Args:    cobra.ExactArgs(1),
		Example: "  fpnode ledger new notes",
		RunE: a.verb(makeStore, func(ctx context.Context, c *api.Client, args []string) error {
			info, err := c.Create(ctx, args[0])
			if err != nil {
				return err
			}
			if a.json {
				return a.object(info)
			}
			a.print("%s  %s", info.Name, info.ID)
			return nil
		}),
	}
}

func (a *app) ledgerLs() *cobra.Command {
	return &cobra.Command{
		Use:     "ls",
		Short:   "list ledgers",
		Args:    cobra.NoArgs,
		Example: "  fpnode ledger ls",
		RunE: a.verb(haveStore, func(ctx context.Context, c *api.Client, args []string) error {
			table := tabwriter.NewWriter(a.out, 0, 0, 2, ' ', 0)
			n := 0
			for info, err := range c.Ledgers(ctx) {
				if err != nil {
					return err
				}
				if a.json {
					if err := a.object(info); err != nil {
						return err
					}
					continue
				}
				if n++; n == 1 {
					fmt.Fprintln(table, "NAME\tDOCS\tCOMMITS\tSIZE\tHEAD")
				}
				if info.Error != nil {
					fmt.Fprintf(table, "%s\t-\t-\t-\t%s\n", info.Name, cell(info.Error.Message))
					continue
				}
				fmt.Fprintf(table, "%s\t%d\t%d\t%s\t%s\n", info.Name, info.Docs, info.Cars, size(info.Bytes), heads(info.Head))
			}
			if err := table.Flush(); err != nil {
				return err
			}
			if n == 0 && !a.json {
				a.say("no ledger yet")
				a.say("hint: make one with: fpnode ledger new NAME")
			}
			return nil
		}),
	}
}

// heads shows a head shortly: the last letters of a CID differ, the first do
// not.
func heads(head []string) string {
	switch len(head) {
	case 0:
		return "empty"
	case 1:
		return "…" + head[0][max(0, len(head[0])-8):]
	default:
		return fmt.Sprintf("%d heads", len(head))
	}
}

func (a *app) ledgerInfo() *cobra.Command {
	return &cobra.Command{
		Use:               "info NAME",
		Short:             "show a ledger: head, root, keys, sizes",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.ledgerNames,
		Example:           "  fpnode ledger info notes --json",
		RunE: a.verb(haveStore, func(ctx context.Context, c *api.Client, args []string) error {
			info, err := c.Info(ctx, args[0])
			if err != nil {
				return err
			}
			if a.json {
				return a.object(info)
			}
			a.info(info)
			return nil
		}),
	}
}

func (a *app) info(i api.LedgerInfo) {
	a.print("name     %s", i.Name)
	a.print("id       %s", i.ID)
	a.print("docs     %d", i.Docs)
	a.print("commits  %d, %s", i.Cars, size(i.Bytes))
	a.list("head", i.Head)
	a.print("root     %s", orDash(i.Root))
	a.list("key", i.Keys)
	a.list("tip", i.Tips)
}

func (a *app) list(name string, values []string) {
	if len(values) == 0 {
		a.print("%-7s  -", name)
	}
	for _, v := range values {
		a.print("%-7s  %s", name, v)
		name = ""
	}
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

func (a *app) ledgerRm() *cobra.Command {
	var yes bool
	cmd := &cobra.Command{
		Use:               "rm NAME",
		Short:             "delete a ledger and its keys from this node",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.ledgerNames,
		Example:           "  fpnode ledger rm notes --yes",
	}
	cmd.Flags().BoolVar(&yes, "yes", false, "do not ask")
	cmd.RunE = a.verb(haveStore, func(ctx context.Context, c *api.Client, args []string) error {
		info, err := c.Info(ctx, args[0])
		if err != nil && api.CodeOf(err) == api.NotFound {
			return err
		}
		what := fmt.Sprintf("%q and its keys", args[0])
		if err == nil {
			what = fmt.Sprintf("%q with %d documents and its keys", args[0], info.Docs)
		}
		if err := a.confirm(ctx, yes, "delete "+what+" from this node"); err != nil {
			return err
		}
		if err := c.Remove(ctx, args[0]); err != nil {
			return err
		}
		if a.json {
			return a.object(struct {
				Deleted string `json:"deleted"`
			}{args[0]})
		}
		a.say("deleted %q", args[0])
		return nil
	})
	return cmd
}

// confirm asks before something that cannot be undone.
func (a *app) confirm(ctx context.Context, yes bool, what string) error {
	if yes {
		return nil
	}
	if terminal(a.in) < 0 {
		return &api.Error{Code: api.NotPermitted, Message: "this would " + what, Hint: "to do it, add --yes"}
	}
	fmt.Fprintf(a.err, "fpnode: %s? it cannot be undone [y/N] ", what)
	answer, err := bufio.NewReader(interruptible(ctx, a.in)).ReadString('\n')
	if err != nil && err != io.EOF {
		return err
	}
	switch strings.ToLower(strings.TrimSpace(answer)) {
	case "y", "yes":
		return nil
	}
	return &api.Error{Code: api.NotPermitted, Message: "not done"}
}

func (a *app) ledgerImport() *cobra.Command {
	req := api.ImportRequest{}
	cmd := &cobra.Command{
		Use:   "import NAME --from DIR [--keybag DIR]",
		Short: "bring in a ledger that JavaScript Fireproof wrote",
		Long: `Imports a ledger that JavaScript Fireproof wrote. --from is the directory that holds its data/ and meta/; programs keep
it in ~/.fireproof/v0.19/NAME if nobody told them otherwise. --keybag is where its keys are: ~/.fireproof/keybag. History,
heads and roots stay exactly what they are. Importing again brings what is new.`,
		Args:    cobra.ExactArgs(1),
		Example: "  fpnode ledger import notes --from ~/.fireproof/v0.19/notes --keybag ~/.fireproof/keybag",
	}
	cmd.Flags().StringVar(&req.From, "from", "", "`DIR` that holds data/ and meta/")
	cmd.Flags().StringVar(&req.KeyBag, "keybag", "", "`DIR` of the key bag; none for a ledger without encryption")
	cmd.Flags().StringVar(&req.As, "as", "", "`NAME` of the ledger in the key bag, if it is not the last part of --from")
	cmd.MarkFlagRequired("from")
	cmd.RunE = a.verb(makeStore, func(ctx context.Context, c *api.Client, args []string) (err error) {
		req.Ledger = args[0]
		if req.From, err = absolute(req.From); err != nil {
			return err
		}
		if req.KeyBag, err = absolute(req.KeyBag); err != nil {
			return err
		}
		m := a.meter()
		res, err := c.Import(ctx, req, m.show)
		m.done()
		if err != nil {
			return err
		}
		if a.json {
			return a.object(res)
		}
		for _, w := range res.Warnings {
			a.say("warning: %s", w)
		}
		a.info(res.LedgerInfo)
		return nil
	})
	return cmd
}

func (a *app) ledgerExport() *cobra.Command {
	req := api.ExportRequest{}
	cmd := &cobra.Command{
		Use:   "export NAME --to DIR [--keybag DIR]",
		Short: "write a ledger so that JavaScript Fireproof opens it",
		Long: `Writes a ledger so that JavaScript Fireproof opens it: DIR gets data/ and meta/, as FP_STORAGE_URL/NAME has them. With
--keybag, the ledger's keys are written there, in clear: who reads them reads the ledger. Exporting again to the same
directory writes only what is new.`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.ledgerNames,
		Example:           "  fpnode ledger export notes --to out/notes --keybag out/keybag",
	}
	cmd.Flags().StringVar(&req.To, "to", "", "`DIR` to write")
	cmd.Flags().StringVar(&req.KeyBag, "keybag", "", "`DIR` to write the keys to")
	cmd.MarkFlagRequired("to")
	cmd.RunE = a.verb(haveStore, func(ctx context.Context, c *api.Client, args []string) (err error) {
		req.Ledger = args[0]
		if req.To, err = absolute(req.To); err != nil {
			return err
		}
		if req.KeyBag, err = absolute(req.KeyBag); err != nil {
			return err
		}
		m := a.meter()
		res, err := c.Export(ctx, req, m.show)
		m.done()
		if err != nil {
			return err
		}
		if a.json {
			return a.object(res)
		}
		for _, w := range res.Warnings {
			a.say("warning: %s", w)
		}
		if res.Merged > 0 {
			a.say("merged %s that had been written there", count(int64(res.Merged), "commit"))
		}
		a.print("%s  %s, %s, %s written", res.To, count(int64(res.Docs), "document"), count(int64(res.Written), "new file"), size(res.Bytes))
		if res.KeyBag != "" {
			a.say("%s holds the keys: keep it private", res.KeyBag)
		}
		return nil
	})
	return cmd
}

// size prints bytes for a person.
func size(n int64) string {
	if n < 1000 {
		return fmt.Sprintf("%d B", n)
	}
	f, units := float64(n), "kMGT"
	i := -1
	for f >= 999.5 && i+1 < len(units) {
		f /= 1000
		i++
	}
	if f < 9.95 {
		return fmt.Sprintf("%.1f %cB", f, units[i])
	}
	return fmt.Sprintf("%.0f %cB", f, units[i])
}
