package ledger

import (
	"context"
	"iter"
	"sync"

	"github.com/ipfs/go-cid"
)

// Change is one change of one document.
type Change struct {
	Doc   Doc     // the new value; Deleted for a deletion
	Clock cid.Cid // the event that wrote it
}

// changeNote is a change on its way to a watcher. The document is read when the watcher takes it, so that a full
// buffer stays small.
type changeNote struct {
	change uint64
	event  uint32
	id     string
	value  cid.Cid
}

// watcher is one running Watch. It has a bounded buffer; when that overflows, the buffer is dropped and the watcher
// goes back to the view, which knows the last change of every document.
type watcher struct {
	wake chan struct{} // capacity 1

	mu     sync.Mutex
	buffer []changeNote
	behind bool // changes were dropped: read the view from the last one taken
	ended  bool
}

// Watch yields every change from now on, local and merged, as it becomes visible to reads; after a merge, the values
// that the merge left as current. It ends with the context's error, or with ErrClosed when the ledger is closed. The
// watch is in place when Watch returns; range over it once.
//
// A consumer that falls more than 1,024 changes behind is not cut off: it goes on with the newest change of every
// document that changed meanwhile, and the values in between are the ones it does not see. They are in History.
func (l *Ledger) Watch(ctx context.Context) iter.Seq2[Change, error] {
	w := &watcher{wake: make(chan struct{}, 1)}
	last, err := l.addWatcher(w)
	// If nobody ranges over it, the end of ctx takes it away.
	stop := context.AfterFunc(ctx, func() { l.removeWatcher(w) })
	return func(yield func(Change, error) bool) {
		if err != nil {
			yield(Change{}, err)
			return
		}
		defer stop()
		defer l.removeWatcher(w)
		for {
			select {
			case <-ctx.Done():
				yield(Change{}, ctx.Err())
				return
			case <-w.wake:
			}
			notes, behind, ended := w.take()
			for behind {
				// What is published meanwhile waits in the buffer, and is skipped there if the view had it.
				var upTo uint64
				if notes, upTo, err = l.notesAfter(last); err != nil {
					yield(Change{}, err)
					return
				}
				if upTo == last {
					break
				}
				if !l.deliver(ctx, notes, &last, yield) {
					return
				}
				last, notes = upTo, nil
			}
			if !l.deliver(ctx, notes, &last, yield) {
				return
			}
			if ended {
				yield(Change{}, ErrClosed)
				return
			}
		}
	}
}

// deliver yields the changes after last and moves last.
func (l *Ledger) deliver(ctx context.Context, notes []changeNote, last *uint64, yield func(Change, error) bool) bool {
	for _, n := range notes {
		if n.change <= *last {
			continue
		}
		*last = n.change
		c, err := l.changeOf(ctx, n)
		if err == nil {
			err = ctx.Err()
		}
		if err != nil {
			yield(Change{}, err)
			return false
		}
		if !yield(c, nil) {
			return false
		}
	}
	return true
}

// addWatcher starts a watcher and returns the last change it will not see.
func (l *Ledger) addWatcher(w *watcher) (uint64, error) {
	l.closing.RLock()
	defer l.closing.RUnlock()
	if l.closed {
		return 0, ErrClosed
	}
	l.watchMu.Lock()
	defer l.watchMu.Unlock()
	l.watchers[w] = struct{}{}
	return l.state.Load().changes, nil
}

func (l *Ledger) removeWatcher(w *watcher) {
	l.watchMu.Lock()
	defer l.watchMu.Unlock()
	delete(l.watchers, w)
}

// publish hands an update's changes to the watchers. It never waits for one.
func (l *Ledger) publish(notes []changeNote) {
	if len(notes) == 0 {
		return
	}
	l.watchMu.Lock()
	defer l.watchMu.Unlock()
	for w := range l.watchers {
		w.offer(notes)
	}
}

func (l *Ledger) endWatchers() {
	l.watchMu.Lock()
	defer l.watchMu.Unlock()
	for w := range l.watchers {
		w.mu.Lock()
		w.ended = true
		w.mu.Unlock()
		w.poke()
	}
}

func (w *watcher) offer(notes []changeNote) {
	w.mu.Lock()
	switch {
	case w.behind:
	case len(w.buffer)+len(notes) > watchBuffer:
		w.buffer, w.behind = nil, true
	default:
		w.buffer = append(w.buffer, notes...)
	}
	w.mu.Unlock()
	w.poke()
}

func (w *watcher) poke() {
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// take empties the buffer. What is offered from now on comes after what the view holds now.
func (w *watcher) take() (notes []changeNote, behind, ended bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	notes, behind, ended = w.buffer, w.behind, w.ended
	w.buffer, w.behind = nil, false
	return notes, behind, ended
}

// notesAfter reads up to watchBuffer changes after n from the view, and says up to which number it has looked.
func (l *Ledger) notesAfter(n uint64) (notes []changeNote, upTo uint64, err error) {
	var rows []changeRow
	for r, err := range l.view.changesAfter(n) {
		if err != nil {
			return nil, 0, err
		}
		if rows = append(rows, r); len(rows) == watchBuffer {
			break
		}
	}
	upTo = n
	for _, r := range rows {
		upTo = r.change
		e, ok, err := l.view.get(r.id)
		if err != nil {
			return nil, 0, err
		}
		// A key that changed again meanwhile comes again under its later number.
		if ok && e.change == r.change && e.flags&flagHidden == 0 {
			notes = append(notes, changeNote{change: e.change, event: e.event, id: r.id, value: e.value})
		}
	}
	return notes, upTo, nil
}

func (l *Ledger) changeOf(ctx context.Context, n changeNote) (Change, error) {
	d, err := l.doc(ctx, n.id, n.value)
	if err != nil {
		return Change{}, err
	}
	e, err := l.view.event(n.event)
	if err != nil {
		return Change{}, err
	}
	return Change{Doc: d, Clock: e.cid}, nil
}
