package bitswap

import "time"

// Every maximum of this package.
const (
	// MaxWants bounds the blocks asked for and not yet received, over all fetches. A
	// peer keeps 1,024 wants of one peer in mind and forgets the rest in silence
	// (measured), so more than half of that is never risked.
	MaxWants = batchWants * batches

	// batchWants and batchBytes bound what is asked for together; batches bounds the
	// batches under way, batchesPerFetch those of one Fetch. A Fetch begins with
	// batchesAtFirst and has one more for each that arrived, so that one that waits for
	// a silent peer leaves room for others.
	batchWants      = 62
	batchBytes      = 8 << 20
	batches         = 8
	batchesAtFirst  = 2
	batchesPerFetch = 6

	// maxWireBytes bounds one sealed CAR: 1 GiB of file and its framing.
	maxWireBytes = 1<<30 + 1<<20

	// hugeBytes is the size above which CARs are fetched one at a time. Peak memory of
	// the package is one CAR of maxWireBytes, batchesPerFetch CARs of hugeBytes for
	// each Fetch, and batches times batchBytes on the way.
	hugeBytes = 16 << 20

	// leafBytes is the size of the leaves of a CAR that is longer than one block.
	leafBytes = 1 << 20

	// maxNodeBytes bounds one dag-pb node, maxDepth the levels of them above the leaves.
	maxNodeBytes = 64 << 10
	maxDepth     = 3

	// maxCIDBytes bounds the CIDs that peers ask for.
	maxCIDBytes = 64

	// maxAdmitted bounds the peers that are served at the same time.
	maxAdmitted = 1024

	// The server's own limits for each peer: wants kept in mind, and bytes read from
	// the store ahead of the peer's reading them.
	maxQueuedWants      = 16384
	maxOutstandingBytes = 4 << 20

	// haveAsBlockBytes is the size up to which a peer that asks whether we have a
	// block is sent the block, which saves it a round.
	haveAsBlockBytes = 4 << 10

	targetMessageBytes = 256 << 10
	storeWorkers       = 16
)

// timing holds the time limits of an Exchange, which tests shorten.
type timing struct {
	// hope is how long a batch waits when no peer says that it has any of it, and
	// silence how long when one does and then does not send. A block of leafBytes takes
	// that long at 300 kbit/s.
	hope, silence time.Duration

	// patience is how long a peer may owe a block while another peer is there, and
	// bench how long it is not asked after that.
	patience, bench time.Duration

	// review is how often that is looked at while something is being fetched.
	review time.Duration
}

var defaultTiming = timing{
	hope:     3 * time.Second,
	silence:  30 * time.Second,
	patience: 5 * time.Second,
	bench:    time.Minute,
	review:   time.Second,
}
