package p2p

import (
	"log/slog"
	"os"

	"github.com/libp2p/go-libp2p/gologshim"
)

// libp2p writes a log of its own to stderr, for the whole process. What an operator
// needs to know this package says through Config.Logger; the rest is there for those
// who ask for it with GOLOG_LOG_LEVEL.
func init() {
	if os.Getenv("GOLOG_LOG_LEVEL") == "" {
		gologshim.SetDefaultHandler(slog.DiscardHandler)
	}
}
