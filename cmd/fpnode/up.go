package main

import (
	"context"
	"log/slog"

	"github.com/spf13/cobra"

	"fpnode/api"
	"fpnode/node"
)

func (a *app) up() *cobra.Command {
	net := node.Network{}
	var noMDNS bool
	cmd := &cobra.Command{
		Use:   "up",
		Short: "run the node: meet peers, keep ledgers equal, serve the api",
		Long: `Runs the node until it is interrupted. It shares every ledger of its home with the peers that have the same ledger, found
on the local network or given by --peer; a ledger that is made or imported meanwhile joins at once. Other verbs talk to
it by themselves.`,
		Args: cobra.NoArgs,
		Example: `  fpnode up
  fpnode up --peer /ip4/192.168.1.4/tcp/4001/p2p/12D3KooWEyoppNCUx8Yx66oV9fJnriXwCcXwDDUA2kj6vnc6iDEp`,
	}
	f := cmd.Flags()
	f.StringArrayVar(&net.Peers, "peer", nil, "`ADDR` of a peer to keep a connection to, as its up prints it; may be given again")
	f.StringArrayVar(&net.Listen, "listen", nil, "multi`ADDR` to listen on; may be given again (TCP and QUIC on all interfaces)")
	f.BoolVar(&noMDNS, "no-mdns", false, "do not look for peers on the local network")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		a.begun = true
		ctx := cmd.Context()
		home, err := a.homeDir()
		if err != nil {
			return err
		}
		net.MDNS = !noMDNS
		net.Ready = a.ready
		n, err := node.Open(ctx, node.Config{Home: home, Create: true, Version: version(), Logger: a.logger(slog.LevelInfo)})
		if err != nil {
			return err
		}
		err = n.Run(ctx, net)
		if cerr := n.Close(); err == nil {
			err = cerr
		}
		if err == nil {
			a.say("stopped")
		}
		return err
	}
	return cmd
}

// ready tells where the node is and what it shares.
func (a *app) ready(about api.About, ledgers []string) {
	defer a.out.Flush()
	if a.json {
		a.object(struct {
			api.About
			Ledgers []string `json:"ledgers"`
		}{about, ledgers})
		return
	}
	a.print("home     %s", about.Home)
	a.print("api      %s", about.API)
	a.print("peer     %s", about.Peer)
	a.list("reach", about.Addrs)
	a.list("shares", ledgers)
	switch {
	case len(ledgers) == 0:
		a.say("hint: no ledger yet; in another terminal: fpnode ledger new notes")
	case len(about.Addrs) > 0:
		a.say("hint: on another machine with the same ledger: fpnode up --peer %s", about.Addrs[0])
	}
}

// serve runs a node beside the caller and returns when it is ready. stop ends
// it and returns how it went.
func serve(ctx context.Context, n *node.Node, net node.Network) (about api.About, stop func() error, err error) {
	ctx, cancel := context.WithCancel(ctx)
	ready := make(chan api.About, 1)
	net.Ready = func(about api.About, _ []string) { ready <- about }
	done := make(chan error, 1)
	go func() { done <- n.Run(ctx, net) }()
	select {
	case about = <-ready:
		return about, func() error { cancel(); return <-done }, nil
	case err = <-done:
		cancel()
		return api.About{}, nil, err
	}
}
