package node

import (
	"context"
	"fmt"

	"fpnode/api"
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
	c := &checking{n: n, report: report, progress: progress}
	for _, name := range names {
		if _, err := n.entry(name); err != nil {
			return c.res, err
		}
	}
	for _, name := range names {
		if err := c.ledger(ctx, name); err != nil {
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
}

func (c *checking) found(p api.Problem) {
	if p.Warning {
		c.res.Warnings++
	} else {
		c.res.Problems++
	}
	c.report(p)
}

func (c *checking) ledger(ctx context.Context, name string) error {
	c.res.Ledgers++
	l, err := c.n.Ledger(ctx, name)
	if err != nil {
		if ctx.Err() != nil {
			return err
		}
		e := explain(err)
		c.found(api.Problem{Ledger: name, Place: "the ledger", Message: e.Message, Advice: e.Hint})
		return nil
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
