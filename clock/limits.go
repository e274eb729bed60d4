package clock

const (
	// MaxEventBytes is the largest event block. A batch of 100,000 operations
	// has some 12 MB.
	MaxEventBytes = 32 << 20

	// MaxParents is the largest number of parents of an event, and of events
	// in a head.
	MaxParents = 4096

	// MaxPending is the largest number of events that an Index keeps while
	// parents of theirs are missing.
	MaxPending = 1 << 17

	// MaxPendingLinks is the largest number of parents that those events have
	// together.
	MaxPendingLinks = 1 << 19

	// MaxEvents is the largest number of events in an Index, and of their
	// parents together.
	MaxEvents = 1<<32 - 1
)
