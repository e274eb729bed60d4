//go:build !planted

// Package planted holds deliberate bugs, one a name, each behind the build tag planted and the environment variable
// FPNODE_PLANTED. Without the tag every name is the constant false and the compiler removes the branch.
//
// scripts/planted plants them one by one and shows which test catches each: a test suite that passes with a bug
// planted is not guarding what it says it guards.
package planted

const (
	SkipFsync           = false // blockstore: a commit returns without fdatasync
	AckBeforeSync       = false // blockstore: a commit is acknowledged first and synced with the next one
	IgnoreIV            = false // keyring: an envelope whose IV is not the fold of its plaintext opens
	IgnoreInnerHash     = false // car: a block that does not hash to its CID is read
	DropParent          = false // clock: an event on several heads forgets the last
	TiesByBytes         = false // clock: replay breaks ties by CID bytes instead of CID text
	MergeWithoutClosure = false // ledger: a meta is merged while blocks are missing
	PackLacksBlock      = false // ledger: a pack leaves one block out
	ForgetTombstone     = false // ledger: a merged deletion does not reach the view
	StaleIndex          = false // ledger: an index does not follow merged changes
	ReuseFileNonce      = false // blockstore: two index files are encrypted with one nonce
	LeakKey             = false // keyring: an error text contains the key
)
