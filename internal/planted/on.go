//go:build planted

package planted

import "os"

var planted = os.Getenv("FPNODE_PLANTED")

var (
	SkipFsync           = planted == "skip-fsync"
	AckBeforeSync       = planted == "ack-before-sync"
	IgnoreIV            = planted == "ignore-iv"
	IgnoreInnerHash     = planted == "ignore-inner-hash"
	DropParent          = planted == "drop-parent"
	TiesByBytes         = planted == "ties-by-bytes"
	MergeWithoutClosure = planted == "merge-without-closure"
	PackLacksBlock      = planted == "pack-lacks-block"
	ForgetTombstone     = planted == "forget-tombstone"
	StaleIndex          = planted == "stale-index"
	ReuseFileNonce      = planted == "reuse-file-nonce"
	LeakKey             = planted == "leak-key"
)
