package ledger

import "fpnode/internal/dagcbor"

// Every maximum of the package. Each is enforced where the value enters and refused with a [*LimitError], never cut.
const (
	// MaxIDBytes is the longest document id Pail can hold (maxKeySize of every shard).
	MaxIDBytes = 4096
	// LongIDBytes is where an id begins to be expensive: every character of a prefix two ids share costs one shard
	// in each commit. Longer ids are accepted; a front end should warn.
	LongIDBytes = 256

	// MaxDocBytes bounds the block of a document that is written here.
	MaxDocBytes = 16 << 20
	// MaxForeignDocBytes bounds the block of a document that arrives by merge or import.
	MaxForeignDocBytes = 32 << 20
	// MaxDocDepth is how deep maps and arrays may nest in a document that is written here.
	MaxDocDepth = dagcbor.MaxDepth - 1

	// MaxPutDocs bounds the documents of one Put, which become one event.
	MaxPutDocs = 65_536
	// MaxPutBytes bounds the document blocks of one Put, so that its CAR stays under the 64 MiB every peer accepts.
	MaxPutBytes = 48 << 20

	// MaxTips is how many metas nobody has replaced a ledger may hold. A merge that would leave more is refused.
	MaxTips = 4096
	// MaxHeads is how many events nobody has built on a ledger may hold.
	MaxHeads = 4096

	// writeQueue is how many puts and merges wait for the writer; more callers block until there is room or their
	// context ends.
	writeQueue = 1024
	// groupBytes and groupJobs end a group commit: what waits beyond them goes into the next one.
	groupBytes = 8 << 20
	groupJobs  = 512

	// watchBuffer is how many changes wait for one watcher. When it is full the watcher falls back to the change
	// log of the view, where it finds the newest change of every document.
	watchBuffer = 1024

	// viewBatchBytes is the size at which a long view update is handed to the index in parts.
	viewBatchBytes = 1 << 20

	// maxWinners is of how many keys a merge keeps in memory which event wrote them. Of others it asks the view.
	maxWinners = 1 << 15

	// defaultDocCacheBytes is the memory for hot documents when the Config names none.
	defaultDocCacheBytes = 32 << 20
	// recentEvents is how many events of the last commits stay in memory, those of at most recentEventBytes.
	recentEvents     = 8192
	recentEventBytes = 1024

	// shardCache is how many decoded Pail shards stay in memory.
	shardCache = 16_384

	// MaxIndexKeyBytes bounds one encoded index key, MaxIndexValueBytes the value emitted with it.
	MaxIndexKeyBytes   = 1 << 20
	MaxIndexValueBytes = 1 << 20
	// MaxIndexNameBytes bounds the field, or the name and revision of a map function.
	MaxIndexNameBytes = 4096
	// MaxIndexEmits bounds the rows one document puts into one index.
	MaxIndexEmits = 65_536
	// MaxIndexes bounds the indexes of a ledger; each costs disk and nothing else until it is queried.
	MaxIndexes = 256
	// MaxQueryKeys bounds the keys of one query.
	MaxQueryKeys = 65_536
	// maxKeyDepth is how deep the arrays of an index key may nest.
	maxKeyDepth = 32
	// indexBatchBytes and indexBatchDocs end one step of an index update, which is then durable progress.
	indexBatchBytes = 1 << 20
	indexBatchDocs  = 4096

	// MaxFileBytes bounds one attached file, whether written here or received.
	MaxFileBytes = 1 << 30
	// filePeak is the most memory that attaching a file takes beside the file itself, and that reading one takes.
	filePeak = 16 << 20
	// MaxFileNameBytes bounds the name and the type of an attached file, MaxFiles the files of a document.
	MaxFileNameBytes = 4096
	MaxFiles         = 4096

	// maxUnixFSNode bounds one node of a file of Fireproof 0.19 in bytes, maxUnixFSLinks its links, maxUnixFSParts the
	// blocks of the file. 0.19 itself makes leaves of 1 MiB and nodes of 1024 links.
	maxUnixFSNode  = 1 << 20
	maxUnixFSLinks = 8192
	maxUnixFSParts = 65_536
)

// Imports and exports.
const (
	// MaxMetaFileBytes bounds meta/main.json of a JavaScript ledger directory.
	MaxMetaFileBytes = 16 << 20
	// importBatchBytes and importBatchCARs end a batch of CARs that an import makes durable together.
	importBatchBytes = 16 << 20
	importBatchCARs  = 4096

	// maxJSEvents and maxJSVisits bound what JavaScript has to search and walk to read an export of several heads; it
	// takes some 0.1 s for each read at these.
	maxJSEvents = 128
	maxJSVisits = 4096

	// MaxPackBytes is the plain size at which a pack is full; only a single larger block makes a larger pack.
	MaxPackBytes = 32 << 20
	// packsPerClass is how many packs of one size class are joined; maxSmallPacks what follows for all classes.
	packsPerClass = 8
	maxSmallPacks = classFull * (packsPerClass - 1)
	// MaxPacks bounds the packs of a border, about 700 MiB: JavaScript loads all of them into memory.
	MaxPacks = 72
	// MaxCompact bounds the groups a border tells JavaScript to forget; it remembers no more.
	MaxCompact = 1000
)
