package blockstore

import (
	"crypto/cipher"
	"encoding/base32"
	"fmt"
	"strings"

	"github.com/ipfs/go-cid"
	"github.com/multiformats/go-multihash"

	"fpnode/internal/car"
)

// A CAR has two names. They are different types, so that one is never taken for the other.
type (
	// Name is Fireproof's name of a CAR: CIDv1, codec 0x18, SHA2-256 of the plaintext. Whoever sees it can confirm a
	// guess of the content, so it never stands in clear on disk or on a wire.
	Name struct{ cid.Cid }

	// Wire is what a stranger can check: CIDv1 raw SHA2-256 of the sealed bytes up to 1 MiB, and above that the
	// root of the UnixFS file with raw leaves of 1 MiB that `ipfs add --cid-version=1 --raw-leaves
	// --chunker=size-1048576` makes of them.
	Wire struct{ cid.Cid }
)

// Ref names a sealed CAR in both ways. Size is the number of sealed bytes.
type Ref struct {
	Name Name
	Wire Wire
	Size int64
}

// Sealer seals and opens the CARs of one ledger. keyring.Keys is the one that node wires in.
//
// Seal is deterministic: the same plaintext under the same default key gives the same bytes. Open checks the envelope,
// the key id, the tag and the IV. An error of Open and OpenInPlace may say which of them failed through a method Check() string that
// returns "envelope", "key", "tag" or "iv".
type Sealer interface {
	Seal(plain []byte) (sealed []byte, err error)
	Open(sealed []byte) (plain []byte, err error)
	// SealWith is Seal of n bytes that fill writes, without a second buffer.
	SealWith(n int, fill func(plain []byte) error) (sealed []byte, err error)
	// OpenInPlace is Open with the plaintext in the place of the ciphertext. DecryptAt on it gives sealed back.
	OpenInPlace(sealed []byte) (plain []byte, err error)
	// Inspect takes an envelope apart without opening it: plaintext byte i, of dataLen, is sealed at dataOff+i.
	Inspect(sealed []byte) (keyID [32]byte, iv [12]byte, dataOff, dataLen int64, err error)
	// DecryptAt decrypts dst in place, which holds the sealed data from plaintext offset off on. It authenticates
	// nothing: the caller checks the hash of the block that comes out.
	DecryptAt(keyID [32]byte, iv [12]byte, off int64, dst []byte) error
}

// Vault derives the keys of what the store itself writes from the home's master key. keyring.Vault is the one that
// node wires in. The same argument gives the same cipher, different arguments unrelated ones.
type Vault interface {
	// FileCipher is the AES block cipher of one file of the index.
	FileCipher(nonce [32]byte) (cipher.Block, error)
	// RecordAEAD seals the metadata of the runs of one segment. It takes 12-byte nonces and adds 16-byte tags.
	RecordAEAD(salt [32]byte) (cipher.AEAD, error)
}

// NameOf is the name of a plaintext CAR.
func NameOf(plain []byte) Name { return Name{car.NameOf(plain)} }

// nameFromDigest is the name whose multihash digest is d.
func nameFromDigest(d []byte) Name { return Name{cidFromDigest(car.CodecName, d)} }

// cidFromDigest is the CIDv1 of a SHA2-256 digest.
func cidFromDigest(codec uint64, d []byte) cid.Cid {
	mh := make([]byte, 0, 2+digestBytes)
	mh = append(mh, multihash.SHA2_256, digestBytes)
	return cid.NewCidV1(codec, append(mh, d...))
}

// digestBytes is the length of a SHA2-256 digest, the only hash in use.
const digestBytes = 32

// digest returns the SHA2-256 digest of a CIDv1, which is the end of its bytes, and false for any other hash.
func digest(c cid.Cid) (string, bool) {
	k := c.KeyString()
	if len(k) < 2+digestBytes || k[len(k)-2-digestBytes] != multihash.SHA2_256 || k[len(k)-1-digestBytes] != digestBytes || c.Version() != 1 {
		return "", false
	}
	return k[len(k)-digestBytes:], true
}

// ivOf is the IV of the envelope of a CAR: its name's multihash folded into 12 bytes (Fireproof format, encryption
// envelope). Accept has checked that the envelope says the same, so it is not stored again.
func ivOf(nameDigest string) (iv [12]byte) {
	iv[0], iv[1] = multihash.SHA2_256, digestBytes
	for i := range len(nameDigest) {
		iv[(i+2)%len(iv)] ^= nameDigest[i]
	}
	return iv
}

var dirEncoding = base32.NewEncoding("abcdefghijklmnopqrstuvwxyz234567").WithPadding(base32.NoPadding)

// ledgerText is a ledger id as it stands in directory names, logs and errors.
func ledgerText(id [32]byte) string { return dirEncoding.EncodeToString(id[:]) }

// parseLedgerText is the inverse of ledgerText.
func parseLedgerText(s string) (id [32]byte, err error) {
	if len(s) != dirEncoding.EncodedLen(len(id)) || s != strings.ToLower(s) {
		return id, fmt.Errorf("%q is not a ledger id", s)
	}
	b, err := dirEncoding.DecodeString(s)
	if err != nil {
		return id, fmt.Errorf("%q is not a ledger id", s)
	}
	return [32]byte(b), nil
}
