package dagcbor

const (
	// MaxSizeBytes is the largest block that is read.
	MaxSizeBytes = 64 << 20

	// MaxDepth is how many arrays and maps (and JSON arrays and objects) may
	// stand inside one another.
	MaxDepth = 128

	// MaxItems is the largest number of values in one block, keys not counted.
	// It bounds what Unmarshal allocates: an array element costs 16 bytes of
	// memory and may be 1 byte of input.
	MaxItems = 1 << 20

	// MaxCIDBytes is the longest binary CID that a link may hold.
	MaxCIDBytes = 128
)
