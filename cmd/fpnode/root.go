package main

import (
	"fmt"
	"io"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"

	"fpnode/api"
)

const usage = `{{if .HasAvailableSubCommands}}{{.CommandPath}} COMMAND
{{range $g := .Groups}}
{{$g.Title}}{{range $.Commands}}{{if (and (eq .GroupID $g.ID) .IsAvailableCommand)}}
  {{rpad .Name .NamePadding}}  {{.Short}}{{end}}{{end}}
{{end}}{{if not .Groups}}
{{range .Commands}}{{if .IsAvailableCommand}}  {{rpad .Name .NamePadding}}  {{.Short}}
{{end}}{{end}}{{end}}{{else}}{{.UseLine}}
{{end}}{{if .HasAvailableLocalFlags}}
Flags:
{{.LocalFlags.FlagUsages | trimTrailingWhitespaces}}
{{end}}{{if .HasParent}}
--home, --json and --verbose work everywhere, see fpnode help.
{{end}}{{if .HasExample}}
Example:
{{.Example}}
{{end}}`

const help = `{{with (or .Long .Short)}}{{. | trimTrailingWhitespaces}}

{{end}}{{.UsageString}}`

// root builds the command tree.
func (a *app) root() *cobra.Command {
	root := &cobra.Command{
		Use:           "fpnode",
		Short:         "a peer for Fireproof ledgers: documents that merge, with no server",
		SilenceErrors: true,
		SilenceUsage:  true,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) > 0 {
				return misuse("there is no command %q", args[0])
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, _ []string) error {
			a.begun = true
			return cmd.Help()
		},
		CompletionOptions: cobra.CompletionOptions{DisableDefaultCmd: true},
		Example: `  fpnode ledger new notes
  echo '{"_id":"milk","text":"buy milk"}' | fpnode put notes
  fpnode docs notes`,
	}
	root.SetUsageTemplate(usage)
	root.SetHelpTemplate(help)
	root.SetOut(a.out)
	root.SetErr(a.err)
	root.SetIn(a.in)
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return &api.Error{Code: api.Misuse, Message: err.Error(), Hint: cmd.CommandPath() + " --help shows the flags"}
	})
	flags := root.PersistentFlags()
	flags.StringVar(&a.home, "home", "", "`DIR` where this node keeps everything (else FPNODE_HOME, else the XDG data directory)")
	flags.BoolVar(&a.json, "json", false, "answer in JSON: one object, or one a line")
	flags.BoolVarP(&a.verbose, "verbose", "v", false, "say more on stderr")

	group := func(id, title string, cmds ...*cobra.Command) {
		root.AddGroup(&cobra.Group{ID: id, Title: title})
		for _, c := range cmds {
			c.GroupID = id
			root.AddCommand(c)
		}
	}
	group("docs", "Documents:", a.put(), a.get(), a.del(), a.docs(), a.query(), a.file())
	group("time", "What happened:", a.changes(), a.watch(), a.history(), a.conflicts())
	group("node", "The node and its ledgers:", a.up(), a.ledger(), a.key(), a.check())
	group("more", "More:", a.demo(), a.completion(), a.version())
	root.SetHelpCommandGroupID("more")
	a.explainMisuse(root)
	return root
}

// explainMisuse makes every wrong number of arguments show the use line.
func (a *app) explainMisuse(cmd *cobra.Command) {
	if check := cmd.Args; check != nil {
		cmd.Args = func(cmd *cobra.Command, args []string) error {
			err := check(cmd, args)
			if err == nil {
				return nil
			}
			return &api.Error{Code: api.Misuse, Message: err.Error(), Hint: "use: " + cmd.UseLine()}
		}
	}
	cmd.DisableFlagsInUseLine = true
	for _, sub := range cmd.Commands() {
		a.explainMisuse(sub)
	}
}

// nouns is a command that only holds others.
func (a *app) nouns(use, short string, subs ...*cobra.Command) *cobra.Command {
	cmd := &cobra.Command{
		Use:   use,
		Short: short,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return misuse("%q has no command %q", cmd.CommandPath(), args[0])
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, _ []string) error {
			a.begun = true
			return cmd.Help()
		},
	}
	cmd.AddCommand(subs...)
	return cmd
}

func (a *app) completion() *cobra.Command {
	return &cobra.Command{
		Use:       "completion bash|zsh|fish",
		Short:     "print a script that completes commands and ledger names",
		Args:      cobra.MatchAll(cobra.ExactArgs(1), cobra.OnlyValidArgs),
		ValidArgs: []string{"bash", "zsh", "fish"},
		Example:   "  source <(fpnode completion bash)",
		RunE: func(cmd *cobra.Command, args []string) error {
			a.begun = true
			write := map[string]func(io.Writer) error{
				"bash": func(w io.Writer) error { return cmd.Root().GenBashCompletionV2(w, true) },
				"zsh":  cmd.Root().GenZshCompletion,
				"fish": func(w io.Writer) error { return cmd.Root().GenFishCompletion(w, true) },
			}[args[0]]
			return write(a.out)
		},
	}
}

// ledgerNames completes the first argument of a verb with names of ledgers.
func (a *app) ledgerNames(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveDefault
	}
	c, done, err := a.connect(cmd.Context(), false)
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	defer done()
	var names []string
	for k, err := range c.Keys(cmd.Context(), "") {
		if err != nil {
			break
		}
		if k.Default {
			names = append(names, k.Ledger)
		}
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}

func (a *app) version() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "print the version",
		Args:  cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			a.begun = true
			if a.json {
				return a.object(struct {
					Version string `json:"version"`
					Go      string `json:"go"`
					System  string `json:"system"`
				}{version(), runtime.Version(), runtime.GOOS + "/" + runtime.GOARCH})
			}
			a.print("fpnode %s %s %s/%s", version(), runtime.Version(), runtime.GOOS, runtime.GOARCH)
			return nil
		},
	}
}

// version is what the module system knows of this build.
func version() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	v := info.Main.Version
	if v == "" || v == "(devel)" {
		v = "devel"
	}
	var revision, dirty string
	for _, s := range info.Settings {
		switch s.Key {
		case "vcs.revision":
			revision = s.Value[:min(12, len(s.Value))]
		case "vcs.modified":
			if s.Value == "true" {
				dirty = "+changes"
			}
		}
	}
	if v == "devel" && revision != "" {
		v = fmt.Sprintf("devel-%s%s", revision, dirty)
	}
	return v
}
