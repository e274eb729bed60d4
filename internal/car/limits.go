package car

const (
	// MaxSizeBytes is the largest CAR that is read: a file of 1 GiB and what
	// stands around it.
	MaxSizeBytes = 1<<30 + 1<<20

	// MaxRootsBytes is the longest first section, the one that names the
	// roots.
	MaxRootsBytes = 1 << 20

	// MaxBlocks is the largest number of blocks in one CAR.
	MaxBlocks = 1 << 20

	// MaxHeaderBytes is the largest Fireproof header block. JavaScript repeats
	// its car log in each, 42 bytes for a commit.
	MaxHeaderBytes = 4 << 20

	// MaxMetaBytes is the largest meta event, or the text inside it.
	MaxMetaBytes = 1 << 20

	// MaxParents is the largest number of parents of a meta event.
	MaxParents = 4096
)
