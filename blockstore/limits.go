package blockstore

import (
	"fpnode/internal/car"
	"fpnode/internal/dagcbor"
)

// Every maximum of the package. Each is enforced where the value enters; over it there is a clear refusal, never a cut.
const (
	// MaxCARBytes bounds the sealed bytes of a CAR with a Fireproof header, and of a part of a group.
	MaxCARBytes = 64 << 20
	// MaxFileCARBytes bounds the sealed bytes of a CAR that holds attached files: 1 GiB of file and its framing.
	MaxFileCARBytes = 1<<30 + 1<<20
	// MaxHeaderBytes bounds the Fireproof header block of a CAR.
	MaxHeaderBytes = 4 << 20
	// MaxBlocks bounds the blocks of one CAR.
	MaxBlocks = 1 << 20

	// MaxTips bounds the metas nobody has replaced.
	MaxTips = 4096
	// MaxMetaBytes bounds one meta block.
	MaxMetaBytes = car.MaxMetaBytes
	// MaxGroup bounds the CARs of one group.
	MaxGroup = 4096

	// MaxCommitCARs and MaxCommitDrops bound one batch, MaxCommitBytes its sealed bytes (a file CAR and the CAR of its
	// document, or many small ones).
	MaxCommitCARs  = 65_536
	MaxCommitDrops = 65_536
	MaxCommitBytes = MaxFileCARBytes + MaxCARBytes

	// MaxNotes bounds the notes of a ledger, MaxNoteKeyBytes and MaxNoteBytes the key and the value of each.
	MaxNotes        = 1024
	MaxNoteKeyBytes = 256
	MaxNoteBytes    = 64 << 10

	// maxMetadataBytes bounds the sealed metadata of one run: refs, block directories, tips and notes.
	maxMetadataBytes = dagcbor.MaxSizeBytes

	// leafBytes is the largest wire block: what every bitswap peer takes, and the chunk size of larger CARs.
	leafBytes = 1 << 20
	// linksPerNode is how many links a dag-pb node over those chunks holds, as `ipfs add` has it.
	linksPerNode = 174

	// maxHandles bounds the open segment files of a store, however many ledgers it has.
	maxHandles = 48
	// carTableSlots bounds the cache of where CARs are, about 150 bytes each.
	carTableSlots = 1 << 15
	// oneWriteBytes is the largest run that is copied together and written with one call; a larger one is written
	// piece by piece from where it lies, so that it is not in memory twice.
	oneWriteBytes = 1 << 20

	// replayBatchBytes is how much a replay hands to the index at once.
	replayBatchBytes = 1 << 20

	defaultSegmentBytes = 256 << 20
	defaultReserveBytes = 256 << 20
	defaultCacheBytes   = 16 << 20
)
