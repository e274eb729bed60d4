package node

import (
	"context"
	"fmt"
	"path/filepath"

	"fpnode/api"
	"fpnode/blockstore"
	"fpnode/keyring"
	"fpnode/ledger"
)

// Check verifies the store from the bottom up: first that what is on disk is
// what was written, then that each ledger's documents follow from its blocks.
// A ledger that cannot be opened is a problem, and the others are checked.
func (n *Node) Check(ctx context.Context, req api.CheckRequest, report func(api.Problem), progress func(api.Progress)) (api.CheckResult, error) {
	names := n.Names()
	if req.Ledger != "" {
		names = []string{req.Ledger}
	}
	c := &checking{n: n, report: report, progress: progress, bad: map[[32]byte]bool{}}
	opts := blockstore.CheckOptions{ReadData: req.ReadData}
	broken := map[string]error{}
	for _, name := range names {
		e, err := n.entry(name)
		if err != nil {
			return c.res, err
		}
		if req.Ledger != "" {
			opts.Ledgers = [][32]byte{e.ID}
		}
		// Open, so that the store has the keys to look into the CARs.
		if _, err := n.Ledger(ctx, name); err != nil {
			if ctx.Err() != nil {
				return c.res, err
			}
			broken[name] = err
		}
	}
	if err := c.store(ctx, opts); err != nil {
		return c.res, err
	}
	for _, name := range names {
		if err := c.ledger(ctx, name, broken[name]); err != nil {
			return c.res, err
		}
	}
	return c.res, nil
}

// checking is one run of Check.
type checking struct {
	n        *Node
	report   func(api.Problem)
	progress func(api.Progress)
	res      api.CheckResult
	bad      map[[32]byte]bool // ledgers whose log is damaged
}

func (c *checking) found(p api.Problem) {
	if p.Warning {
		c.res.Warnings++
	} else {
		c.res.Problems++
	}
	c.report(p)
}

// store checks what is on disk, and that every ledger there has its keys.
// They are removed after it, so one without was not being removed.
func (c *checking) store(ctx context.Context, opts blockstore.CheckOptions) error {
	names := map[[32]byte]string{}
	for _, e := range c.n.ring.Ledgers() {
		names[e.ID] = e.Name
	}
	stage := "reading the logs"
	if opts.ReadData {
		stage = "reading every byte"
	}
	err := c.n.store.Check(ctx, opts,
		func(p blockstore.Problem) {
			c.bad[p.Ledger] = true
			place := "the store"
			if p.File != "" {
				place = fmt.Sprintf("%s at byte %d", p.File, p.Offset)
			}
			c.found(api.Problem{Ledger: names[p.Ledger], Place: place, Message: p.What, Advice: p.Advice})
		},
		func(done, total int64) { c.progress(api.Progress{Stage: stage, Done: done, Total: total}) })
	if err != nil {
		return fmt.Errorf("checking the store: %w", err)
	}
	if opts.Ledgers != nil { // the others were not asked for
		return nil
	}
	for _, id := range c.n.store.Ledgers() {
		if _, ok := names[id]; ok {
			continue
		}
		dir := keyring.FormatID(id)
		c.found(api.Problem{
			Place:   filepath.Join(c.n.cfg.Home, "ledgers", dir),
			Message: "no key opens it",
			Advice:  fmt.Sprintf("bring back %s.json from a backup, or give its key to: fpnode key import NAME", filepath.Join(c.n.cfg.Home, keysDir, dir)),
		})
	}
	return nil
}

// ledger checks one ledger, or says why it could not be opened.
func (c *checking) ledger(ctx context.Context, name string, broken error) error {
	c.res.Ledgers++
	e, err := c.n.entry(name)
	if err != nil {
		return err
	}
	if broken != nil {
		if !c.bad[e.ID] { // else that was said already
			why := explain(broken)
			c.found(api.Problem{Ledger: name, Place: "the ledger", Message: why.Message, Advice: why.Hint})
		}
		return nil
	}
	l, err := c.n.Ledger(ctx, name)
	if err != nil {
		return err
	}
	info, err := l.Info(ctx)
	if err != nil {
		return err
	}
	c.res.Cars += int64(info.Cars)
	c.res.Bytes += info.Bytes
	res, err := l.Check(ctx,
		func(p ledger.Problem) {
			c.found(api.Problem{Ledger: name, Place: place(p), Message: p.Text, Advice: p.Advice, Warning: !p.Damage()})
		},
		func(p ledger.Progress) {
			c.progress(api.Progress{Stage: fmt.Sprintf("%s: %s", name, p.Step), Done: p.Done, Total: p.Total})
		})
	if err != nil {
		return fmt.Errorf("checking ledger %q: %w", name, err)
	}
	c.res.Events += int64(res.Events)
	c.res.Unchecked += int64(res.Unchecked)
	c.res.Docs += int64(res.Docs)
	c.res.Files += int64(res.Files)
	return nil
}

// place says what a problem of a ledger is about.
func place(p ledger.Problem) string {
	switch {
	case p.ID != "":
		return fmt.Sprintf("%s %q", p.Kind, p.ID)
	case p.CID.Defined():
		return fmt.Sprintf("%s %s", p.Kind, p.CID)
	}
	return string(p.Kind)
}
