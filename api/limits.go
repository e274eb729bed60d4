package api

import (
	"time"

	"fpnode/ledger"
)

const (
	// MaxRequests is how many requests run at once; one more is refused.
	MaxRequests = 100
	// MaxHeaderBytes bounds the header of a request. A clock of 4,096 events
	// in a query string fits.
	MaxHeaderBytes = 512 << 10
	// MaxPutBytes bounds the body of one put: the largest document that may
	// be written, as JSON, and room for what JSON needs more than CBOR.
	MaxPutBytes = 64 << 20
	// MaxPutDocs bounds the documents of one put.
	MaxPutDocs = 10_000
	// LongIDBytes is where ids get expensive: worth a warning.
	LongIDBytes = ledger.LongIDBytes
	// MaxRequestBytes bounds every other JSON body.
	MaxRequestBytes = 1 << 20
	// MaxFileBytes bounds a file that is added.
	MaxFileBytes = 1 << 30
	// MaxLineBytes bounds one line that a client reads.
	MaxLineBytes = 256 << 20

	tokenBytes    = 32 // 256 bits
	headerTimeout = 5 * time.Second
	idleTimeout   = 60 * time.Second
	drainFor      = 2 * time.Second
	dialTimeout   = 2 * time.Second
	progressEvery = 50 * time.Millisecond
)
