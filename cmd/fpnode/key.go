package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"fpnode/api"
)

func (a *app) key() *cobra.Command {
	return a.nouns("key", "list, export and import the keys of ledgers", a.keyLs(), a.keyExport(), a.keyImport())
}

func (a *app) keyLs() *cobra.Command {
	return &cobra.Command{
		Use:               "ls [LEDGER]",
		Short:             "list keys by fingerprint, without their secret",
		Args:              cobra.MaximumNArgs(1),
		ValidArgsFunction: a.ledgerNames,
		Example:           "  fpnode key ls",
		RunE: a.verb(haveStore, func(ctx context.Context, c *api.Client, args []string) error {
			name := ""
			if len(args) == 1 {
				name = args[0]
			}
			table := tabwriter.NewWriter(a.out, 0, 0, 2, ' ', 0)
			for k, err := range c.Keys(ctx, name) {
				if err != nil {
					return err
				}
				if a.json {
					if err := a.object(k); err != nil {
						return err
					}
					continue
				}
				use := "opens old commits"
				if k.Default {
					use = "seals new commits"
				}
				fmt.Fprintf(table, "%s\t%s\t%d bits\t%s\n", k.Ledger, k.Fingerprint, k.Bits, use)
			}
			return table.Flush()
		}),
	}
}

func (a *app) keyExport() *cobra.Command {
	var yes bool
	var bag string
	cmd := &cobra.Command{
		Use:   "export LEDGER",
		Short: "print the key of a ledger, or write its key bag",
		Long: `Prints the key of a ledger, or with --keybag writes all its keys as JavaScript Fireproof keeps them. Who has the key
can read and write the ledger for ever.`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.ledgerNames,
		Example: `  fpnode key export notes --yes | ssh laptop fpnode key import notes
  fpnode key export notes --keybag out/keybag`,
	}
	cmd.Flags().BoolVar(&yes, "yes", false, "print the secret without asking")
	cmd.Flags().StringVar(&bag, "keybag", "", "write a key bag to `DIR` instead")
	cmd.RunE = a.verb(haveStore, func(ctx context.Context, c *api.Client, args []string) error {
		if bag != "" {
			dir, err := absolute(bag)
			if err != nil {
				return err
			}
			if err := c.ExportBag(ctx, args[0], dir); err != nil {
				return err
			}
			if a.json {
				return a.object(struct {
					Ledger string `json:"ledger"`
					KeyBag string `json:"keybag"`
				}{args[0], dir})
			}
			a.print("%s", dir)
			a.say("%s holds the keys: keep it private", dir)
			return nil
		}
		if _, err := c.Info(ctx, args[0]); api.CodeOf(err) == api.NotFound && err != nil {
			return err // before asking
		}
		if err := a.confirmSecret(ctx, yes, args[0]); err != nil {
			return err
		}
		key, err := c.ExportKey(ctx, args[0])
		if err != nil {
			return err
		}
		if a.json {
			return a.object(struct {
				Ledger string `json:"ledger"`
				Key    string `json:"key"`
			}{args[0], key})
		}
		a.print("%s", key)
		return nil
	})
	return cmd
}

// confirmSecret asks before a key is printed.
func (a *app) confirmSecret(ctx context.Context, yes bool, ledger string) error {
	if yes {
		return nil
	}
	err := a.confirm(ctx, false, fmt.Sprintf("print the secret key of %q", ledger))
	if api.CodeOf(err) == api.NotPermitted && terminal(a.in) < 0 {
		return &api.Error{Code: api.NotPermitted, Message: fmt.Sprintf("this would print the secret key of %q", ledger), Hint: "to do it, add --yes; or write a key bag with --keybag DIR"}
	}
	return err
}

func (a *app) keyImport() *cobra.Command {
	req := api.KeyImportRequest{}
	cmd := &cobra.Command{
		Use:   "import LEDGER [FILE|-]",
		Short: "take a key, from a file, stdin or a key bag",
		Long: `Takes a key that key export printed, from a file or stdin, or all keys of one ledger from a key bag. If there is no such
ledger yet, one is made, empty: it is the same ledger as everywhere else with that key, and fills from peers. A key that
another ledger has is refused. A key is never given on the command line, where others could see it.`,
		Args:              cobra.RangeArgs(1, 2),
		ValidArgsFunction: a.ledgerNames,
		Example:           "  fpnode key import notes key.txt",
	}
	cmd.Flags().StringVar(&req.KeyBag, "keybag", "", "take the keys from the key bag in `DIR`")
	cmd.Flags().StringVar(&req.As, "as", "", "`NAME` of the ledger in the key bag, if it has another there")
	cmd.RunE = a.verb(makeStore, func(ctx context.Context, c *api.Client, args []string) (err error) {
		req.Ledger = args[0]
		if req.KeyBag != "" {
			if len(args) == 2 {
				return misuse("either a file or --keybag, not both")
			}
			if req.KeyBag, err = absolute(req.KeyBag); err != nil {
				return err
			}
		} else if req.Key, err = a.readKey(ctx, args[1:]); err != nil {
			return err
		}
		k, err := c.ImportKey(ctx, req)
		if err != nil {
			return err
		}
		if a.json {
			return a.object(k)
		}
		a.print("%s  %s", k.Ledger, k.Fingerprint)
		return nil
	})
	return cmd
}

// readKey reads one line.
func (a *app) readKey(ctx context.Context, args []string) (string, error) {
	in := interruptible(ctx, a.in)
	if len(args) == 1 && args[0] != "-" {
		f, err := os.Open(args[0])
		if err != nil {
			return "", cannotRead(err)
		}
		defer f.Close()
		in = f
	}
	line, err := bufio.NewReader(io.LimitReader(in, 4096)).ReadString('\n')
	if err != nil && err != io.EOF {
		return "", err
	}
	line = strings.TrimSpace(line)
	if line == "" {
		return "", &api.Error{Code: api.BadInput, Message: "the input holds no key", Hint: "fpnode key export LEDGER prints one"}
	}
	return line, nil
}
