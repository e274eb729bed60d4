package bitswap

import (
	"os"

	logging "github.com/ipfs/go-log/v2"
)

// boxo writes a log of its own to stderr, for the whole process. It is silent unless
// somebody asks for it with GOLOG_LOG_LEVEL.
func init() {
	if os.Getenv("GOLOG_LOG_LEVEL") == "" {
		logging.SetAllLoggers(logging.LevelFatal)
	}
}
