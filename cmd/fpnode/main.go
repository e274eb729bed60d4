// Command fpnode keeps Fireproof ledgers equal on all of one's machines.
//
// It works without a daemon, opening the store itself, and with one, talking
// to it; every verb takes the same path either way (package api). Answers go
// to stdout. Talk goes to stderr, each line begins with "fpnode: ". A failure
// ends with
//
//	fpnode: error: no ledger "nots"
//	fpnode: hint: did you mean "notes"?
//
// and an exit code that says what kind it was, see exits.
package main

import (
	"context"
	"errors"
	"io"
	"os"
	"os/signal"
	"syscall"
	"time"

	"fpnode/api"
)

func main() {
	private()
	os.Exit(run(os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}

// stopWithin is how long a verb may take to end after it was told to.
const stopWithin = 5 * time.Second

// run is the whole program. It returns the exit code.
func run(args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	// The first signal asks; the second, or stopWithin, ends the process:
	// the store survives that by design.
	context.AfterFunc(ctx, func() {
		stop()
		time.AfterFunc(stopWithin, func() { os.Exit(exits[api.Interrupted]) })
	})

	a := newApp(stdin, stdout, stderr)
	root := a.root()
	root.SetArgs(args)
	err := root.ExecuteContext(ctx)
	if ferr := a.out.Flush(); err == nil && ferr != nil && !errors.Is(ferr, syscall.EPIPE) {
		err = ferr
	}
	if err == nil {
		return 0
	}
	if ctx.Err() != nil {
		if e, ok := errors.AsType[*api.Error](err); ok && e.Code == api.Interrupted {
			a.say("%s", e.Message)
			return exits[api.Interrupted]
		}
		if errors.Is(err, context.Canceled) {
			a.say("interrupted")
			return exits[api.Interrupted]
		}
	}
	return a.fail(err)
}

// exits are the exit codes. 0 is done.
var exits = map[api.Code]int{
	api.Failed:       1,
	api.BadInput:     1,
	api.TooLarge:     1,
	api.DiskFull:     1,
	api.Busy:         1,
	api.NewerStore:   1,
	api.Misuse:       2,
	api.Partial:      3,
	api.NotFound:     4,
	api.Conflict:     5,
	api.NoDaemon:     6,
	api.Timeout:      7,
	api.NotSynced:    8,
	api.NotPermitted: 9,
	api.NoStore:      10,
	api.Locked:       11,
	api.WrongKey:     12,
	api.Corrupt:      13,
	api.Interrupted:  130,
}
