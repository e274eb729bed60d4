package ledger

import (
	"context"
	"errors"
	"fmt"
	"iter"

	"github.com/ipfs/go-cid"

	"fpnode/blockstore"
	"fpnode/clock"
	"fpnode/pail"
)

// ProblemKind says what kind of thing is wrong.
type ProblemKind string

const (
	ProblemEvent ProblemKind = "event"      // an event is missing or malformed
	ProblemRoot  ProblemKind = "root"       // an event names a root its history does not lead to
	ProblemShard ProblemKind = "shard"      // the current documents cannot be listed
	ProblemDoc   ProblemKind = "document"   // a current document is missing or malformed
	ProblemView  ProblemKind = "stale-view" // what reads show is not what the blocks say
	ProblemFile  ProblemKind = "file"       // the content of an attached file is not here
)

// Problem is one thing that [Ledger.Check] found.
type Problem struct {
	Kind   ProblemKind
	ID     string  // of the document, if it is one's
	CID    cid.Cid // of the event or block, if it is one's
	Text   string
	Advice string
}

func (p Problem) String() string { return p.Text + "; " + p.Advice }

// Damage reports whether the problem means that data of the ledger is lost or wrong. A stale view is rebuilt from the
// blocks, and a file's content may never have come here (JavaScript does not sync files).
func (p Problem) Damage() bool { return p.Kind != ProblemView && p.Kind != ProblemFile }

// CheckResult counts what was checked.
type CheckResult struct {
	Events    int // from the head to the genesis
	Verified  int // whose root was computed again and is right
	Unchecked int // whose root could not be computed: shards of that time are not here
	Docs      int // current documents, tombstones included, each read
	Files     int // attached files of current documents
	Problems  int
}

// Check verifies what the ledger says against its blocks: every event from the head to the genesis is there; the root
// each names follows from its parents, as far as the shards of its time are here; every current document is there and
// well-formed; and what reads show is what the blocks say. Each block that is read is compared with its CID.
//
// It is the part above [blockstore.Store.Check], which verifies segments and CARs. Problems are handed to report as
// they are found and counted in the result; the error is for a check that could not be carried out. Writes go on
// meanwhile.
func (l *Ledger) Check(ctx context.Context, report func(Problem), progress func(Progress)) (CheckResult, error) {
	if progress == nil {
		progress = func(Progress) {}
	}
	c := checker{l: l, report: report, progress: progress, fetch: newOverlay(l.store)}
	s := l.state.Load()
	if len(s.head) == 0 {
		return CheckResult{}, nil
	}
	if err := c.events(ctx, s.head); err != nil {
		return CheckResult{}, fmt.Errorf("check: %w", err)
	}
	if err := c.documents(ctx); err != nil {
		return CheckResult{}, fmt.Errorf("check: %w", err)
	}
	return c.res, nil
}

type checker struct {
	l        *Ledger
	report   func(Problem)
	progress func(Progress)
	fetch    *overlay
	replica  pail.Replica
	res      CheckResult
}

const (
	adviceRestore = "merge or import another copy of the ledger to get it back"
	adviceView    = "delete the index directory of the home while no node runs; it is rebuilt"
)

func (c *checker) problem(p Problem) {
	c.res.Problems++
	c.report(p)
}

// events walks the history and computes every root again.
func (c *checker) events(ctx context.Context, head []cid.Cid) error {
	index := clock.NewIndex()
	order, err := index.Fill(ctx, c.fetch, head)
	if err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		c.problem(Problem{
			Kind: ProblemEvent, Text: fmt.Sprintf("the history cannot be walked to its beginning: %v", err), Advice: adviceRestore,
		})
	}
	c.replica = pail.Replica{Blocks: c.fetch, Index: index, Cache: pail.NewCache(shardCache)}
	c.res.Events = len(order)
	for i, e := range order {
		if err := ctx.Err(); err != nil {
			return err
		}
		switch _, err := c.replica.Check(ctx, e); {
		case err == nil:
			c.res.Verified++
		case absent(err):
			c.res.Unchecked++
		case errors.Is(err, pail.ErrRoot):
			c.problem(Problem{
				Kind: ProblemRoot, CID: e, Text: fmt.Sprintf("event %s: %v", e, err),
				Advice: "its author computed it wrongly or was not honest; export the documents and start a new ledger",
			})
		default:
			c.problem(Problem{Kind: ProblemEvent, CID: e, Text: fmt.Sprintf("event %s: %v", e, err), Advice: adviceRestore})
		}
		c.progress(Progress{Step: "checking events", Done: int64(i + 1), Total: int64(len(order))})
	}
	return nil
}

// absent reports whether err says that a block is not in the store, rather than that it is damaged.
func absent(err error) bool {
	return errors.Is(err, blockstore.ErrNotFound) || errors.Is(err, clock.ErrMissing)
}

// documents compares the tree that the head stands for with the view, and reads every document in it.
func (c *checker) documents(ctx context.Context) error {
	before := *c
	var found []Problem
	c.report = func(p Problem) { found = append(found, p) }
	s := c.l.state.Load()
	err := c.compare(ctx, s)
	if len(found) > 0 && c.l.state.Load() != s {
		// The ledger moved on meanwhile, so the view may rightly say something else. Hold it still and look again.
		found = nil
		c.res = before.res
		err = c.l.exclusive(ctx, func() error { return c.compare(ctx, c.l.state.Load()) })
	}
	c.report = before.report
	for _, p := range found {
		c.report(p)
	}
	return err
}

func (c *checker) compare(ctx context.Context, s *state) error {
	if _, err := c.replica.Index.Fill(ctx, c.fetch, s.head); err != nil {
		return ctx.Err() // reported by events
	}
	// Without the cache: it has shards that were computed, and the current ones have to be in the store.
	root, err := (&pail.Replica{Blocks: c.fetch, Index: c.replica.Index}).Root(ctx, s.head)
	if err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		c.problem(Problem{Kind: ProblemShard, Text: fmt.Sprintf("the current documents cannot be computed: %v", err), Advice: adviceRestore})
		return nil
	}
	if root.Tree.Root() != s.root {
		c.problem(Problem{
			Kind: ProblemView, CID: s.root,
			Text: fmt.Sprintf("the view is of root %s, the head stands for %s", s.root, root.Tree.Root()), Advice: adviceView,
		})
	}
	next, stop := iter.Pull2(c.l.view.entries("", "", false))
	defer stop()
	shown, viewErr, more := next()
	advance := func() { shown, viewErr, more = next() }
	stale := func(id, text string) {
		c.problem(Problem{Kind: ProblemView, ID: id, Text: fmt.Sprintf("document %.80q %s", id, text), Advice: adviceView})
	}
	for e, err := range root.Tree.Entries(ctx, pail.Range{}) {
		if err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			c.problem(Problem{Kind: ProblemShard, Text: fmt.Sprintf("the current documents cannot be listed: %v", err), Advice: adviceRestore})
			return nil
		}
		c.res.Docs++
		if err := c.document(ctx, e); err != nil {
			return err
		}
		for more && viewErr == nil && shown.id < e.Key {
			stale(shown.id, "is shown but is not in the ledger")
			advance()
		}
		switch {
		case viewErr != nil:
			return viewErr
		case !more || shown.id != e.Key:
			stale(e.Key, "is not shown")
			continue
		case shown.value != e.Value:
			stale(e.Key, "is shown with another version")
		case (e.Value == tombstoneCID) != (shown.flags&flagTombstone != 0):
			stale(e.Key, "is shown although it was deleted, or the other way round")
		}
		advance()
		c.progress(Progress{Step: "checking documents", Done: int64(c.res.Docs), Total: max(int64(c.res.Docs), int64(s.docs))})
	}
	for ; more && viewErr == nil; advance() {
		stale(shown.id, "is shown but is not in the ledger")
	}
	return viewErr
}

// document reads one current document.
func (c *checker) document(ctx context.Context, e pail.Entry) error {
	d, err := c.l.doc(ctx, e.Key, e.Value)
	if err == nil {
		_, err = d.Map()
	}
	if err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		c.problem(Problem{
			Kind: ProblemDoc, ID: e.Key, CID: e.Value, Text: fmt.Sprintf("document %.80q: %v", e.Key, err), Advice: adviceRestore,
		})
		return nil
	}
	for _, f := range fileContents(d.block) {
		c.res.Files++
		has, err := c.l.store.Has(f)
		if err != nil {
			return err
		}
		if !has {
			c.problem(Problem{
				Kind: ProblemFile, ID: e.Key, CID: f, Text: fmt.Sprintf("document %.80q: the content of a file is not here", e.Key),
				Advice: "connect a peer that has it, or import the directory in which it was added",
			})
		}
	}
	return nil
}
