package pail

import "fpnode/clock"

const (
	// MaxKeyBytes is the longest key. It stands in every shard.
	MaxKeyBytes = 4096

	// MaxShardBytes is the largest shard block: 96 entries of the longest key
	// and two CIDs of the longest kind fit.
	MaxShardBytes = 1 << 20

	// MaxDataBytes is the largest data field of an event.
	MaxDataBytes = clock.MaxEventBytes
)
