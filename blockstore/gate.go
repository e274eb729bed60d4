package blockstore

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cockroachdb/pebble/v2"
)

// gate stands between pebble and the disk. Pebble expects that its process ends when a write of its manifest fails,
// and repeats a failed flush at once and forever. Neither suits a program whose data is safe elsewhere, so
//
//   - while the disk is full, writes wait for room;
//   - after a failed flush the next one waits a little, longer each time;
//   - what pebble calls fatal shuts the gate: from then on nothing is written, so that the disk keeps the last good
//     state and the next Open goes on from there. Reads go on.
type gate struct {
	log *slog.Logger

	opened  atomic.Bool   // pebble.Open has returned; before that nothing waits
	failed  atomic.Int64  // background errors in a row
	corrupt atomic.Bool   // what is on the disk is damaged
	broken  chan struct{} // closed when the gate shuts
	once    sync.Once
	closing chan struct{} // closed when the store closes; then nothing waits
}

var errShut = errors.New("the index takes no more writes")

func newGate(log *slog.Logger) *gate {
	return &gate{log: log, broken: make(chan struct{}), closing: make(chan struct{})}
}

// shut gives the index up until the next Open.
func (g *gate) shut(err error) {
	if pebble.IsCorruptionError(err) {
		g.corrupt.Store(true)
	}
	g.once.Do(func() {
		g.log.Error("index failed; open the store again to make what is missing", "err", err)
		close(g.broken)
	})
}

// err is ErrPoisoned once the gate is shut.
func (g *gate) err() error {
	if isClosed(g.broken) {
		return fmt.Errorf("the index failed: %w", ErrPoisoned)
	}
	return nil
}

func isClosed(c chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// newFile lets a new file be made, later if something went wrong before. Pebble starts everything that it may repeat
// with one.
func (g *gate) newFile() error {
	if n := g.failed.Load(); n > 0 && g.opened.Load() {
		g.wait(min(10*time.Millisecond<<min(n, 10), 2*time.Second))
	}
	if isClosed(g.broken) {
		if g.opened.Load() {
			<-g.closing
		}
		return errShut
	}
	return nil
}

// write does a write, again and again while the disk is full.
func (g *gate) write(do func() error) error {
	for pause := 10 * time.Millisecond; ; pause = min(2*pause, 2*time.Second) {
		if isClosed(g.broken) {
			return errShut
		}
		err := do()
		if !diskFull(err) || !g.opened.Load() || isClosed(g.closing) {
			return err
		}
		g.wait(pause)
	}
}

// writeAll writes all of b with a function that writes from where it left off.
func (g *gate) writeAll(write func([]byte) (int, error), b []byte) (done int, err error) {
	err = g.write(func() error {
		n, err := write(b[done:])
		done += n
		if err == nil && done < len(b) {
			err = io.ErrShortWrite
		}
		return err
	})
	return done, err
}

// wait sleeps for d, or until there is no point in waiting.
func (g *gate) wait(d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-g.broken:
	case <-g.closing:
	}
}

// backgroundError hears of flushes and compactions that failed and will be repeated. It must not wait.
func (g *gate) backgroundError(err error) {
	g.failed.Add(1)
	if pebble.IsCorruptionError(err) || isClosed(g.closing) {
		g.shut(err)
		return
	}
	g.log.Warn("index write failed and will be tried again", "err", err)
}

// backgroundDone hears of all flushes and compactions.
func (g *gate) backgroundDone(err error) {
	if err == nil {
		g.failed.Store(0)
	}
}

// gate is pebble's logger: silent but for what pebble cannot go on from.

func (g *gate) Infof(string, ...any)  {}
func (g *gate) Errorf(string, ...any) {}
func (g *gate) Fatalf(format string, args ...any) {
	g.shut(fmt.Errorf(format, args...))
}
