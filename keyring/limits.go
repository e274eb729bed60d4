package keyring

// Every maximum of this package. Above one of them there is an error, never a shortened answer.
const (
	// MaxPlainBytes bounds what one envelope may hold. The largest thing Fireproof puts in one
	// envelope is a file CAR: a file of up to 1 GiB and its CAR framing.
	MaxPlainBytes = 1<<30 + 16<<20

	// MaxSealedBytes is the envelope of MaxPlainBytes.
	MaxSealedBytes = MaxPlainBytes + tagBytes + maxFrameBytes

	// MaxKeyTextBytes bounds the text of a key or a fingerprint. 32 bytes in base58 are 44 characters
	// and the multibase prefix.
	MaxKeyTextBytes = 64

	// MaxKeys bounds the keys of one ledger; at one rotation a month that is 21 years.
	MaxKeys = 256

	// MaxKeyFileBytes bounds a key bag file, a ledger's key file and the device file.
	// MaxKeys keys with fingerprints take about 64 KiB.
	MaxKeyFileBytes = 256 << 10

	// MaxLedgers bounds the ledgers of one home.
	MaxLedgers = 4096

	// MaxBagFiles bounds how many files of a key bag directory are looked at.
	MaxBagFiles = 1 << 16

	// MaxNameBytes bounds a ledger's local name, in bytes of UTF-8.
	MaxNameBytes = 64

	// MaxDomainBytes bounds the domain of a signature.
	MaxDomainBytes = 64
)
