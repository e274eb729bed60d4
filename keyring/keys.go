package keyring

import (
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"sync/atomic"

	"fpnode/internal/planted"
)

// Keys are the keys of one ledger: one or more, of which the first is the pinned one that the
// ledger's ID comes from, and one is the default that seals. All open. Safe for concurrent use;
// keys are only ever added, so that what was sealed stays readable.
//
// Sealing is deterministic: one plaintext under one key is one sealed form, on every device.
type Keys struct {
	opaque
	set atomic.Pointer[keySet]
}

// keySet is immutable.
type keySet struct {
	order []*secret // the pinned key first, then in the order they were added
	def   *secret
	byID  map[Fingerprint]*secret
}

// NewKeys returns a ledger's keys with the first pinned and default. The same key twice counts once.
func NewKeys(first Key, more ...Key) (*Keys, error) {
	set := &keySet{}
	var err error
	for _, key := range append([]Key{first}, more...) {
		if set, err = set.with(key, false); err != nil {
			return nil, err
		}
	}
	k := new(Keys)
	k.set.Store(set)
	return k, nil
}

// with returns the set and key, which becomes the default if asked or if it is the first.
func (s *keySet) with(key Key, makeDefault bool) (*keySet, error) {
	if key.IsZero() {
		return nil, fmt.Errorf("keyring: the zero Key is no key")
	}
	added := key.s()
	next := &keySet{order: s.order, def: s.def, byID: make(map[Fingerprint]*secret, len(s.order)+1)}
	for _, known := range s.order {
		next.byID[known.fp] = known
	}
	if next.byID[added.fp] == nil {
		if len(s.order) >= MaxKeys {
			return nil, fmt.Errorf("keyring: more than %d keys for one ledger", MaxKeys)
		}
		next.order = append(s.order[:len(s.order):len(s.order)], added)
		next.byID[added.fp] = added
	}
	if makeDefault || next.def == nil {
		next.def = next.byID[added.fp]
	}
	return next, nil
}

// Default returns the key that seals.
func (k *Keys) Default() Key { return Key{s: hide(k.set.Load().def)} }

// Pinned returns the first key.
func (k *Keys) Pinned() Key { return Key{s: hide(k.set.Load().order[0])} }

// All returns every key, the pinned one first.
func (k *Keys) All() []Key {
	order := k.set.Load().order
	keys := make([]Key, len(order))
	for i, s := range order {
		keys[i] = Key{s: hide(s)}
	}
	return keys
}

// Has reports whether the key of this fingerprint is among the keys.
func (k *Keys) Has(id [32]byte) bool { return k.set.Load().byID[id] != nil }

// Seal returns plain in an envelope under the default key, with the IV that Fireproof derives from the
// plaintext. It allocates once, the exact size of the result: the peak is plain and sealed together.
// The error is ErrTooLarge.
func (k *Keys) Seal(plain []byte) (sealed []byte, err error) {
	if len(plain) > MaxPlainBytes {
		return nil, ErrTooLarge
	}
	key := k.set.Load().def
	iv := FoldIV(sha256.Sum256(plain))
	sealed = make([]byte, 0, frameBytes(len(plain)))
	sealed = appendFrameHead(sealed, iv, len(plain)+tagBytes)
	sealed = key.aead.Seal(sealed, iv[:], plain, nil)
	sealed = append(sealed, frameKeyID...)
	return append(sealed, key.fp[:]...), nil
}

// Open returns what Seal was given. It checks, in this order: the frame (ErrEnvelope), that the named
// key is held (*UnknownKeyError; no other key is tried), the tag (ErrTag), and that the IV is the one
// that follows from the plaintext (ErrIV). On an error there is no plaintext.
// It allocates once, the plaintext: the peak is sealed and plain together.
func (k *Keys) Open(sealed []byte) (plain []byte, err error) {
	e, err := ParseEnvelope(sealed)
	if err != nil {
		return nil, err
	}
	key := k.set.Load().byID[e.KeyID]
	if key == nil {
		return nil, &UnknownKeyError{KeyID: e.KeyID}
	}
	plain, err = key.aead.Open(nil, e.IV[:], sealed[e.DataOffset:e.DataOffset+e.DataLen+tagBytes], nil)
	if err != nil {
		return nil, ErrTag
	}
	if FoldIV(sha256.Sum256(plain)) != e.IV && !planted.IgnoreIV {
		clear(plain)
		return nil, ErrIV
	}
	return plain, nil
}

// Inspect is ParseEnvelope in plain values: plaintext byte i, of dataLen, is sealed at dataOff+i.
func (k *Keys) Inspect(sealed []byte) (keyID [32]byte, iv [12]byte, dataOff, dataLen int64, err error) {
	e, err := ParseEnvelope(sealed)
	return e.KeyID, e.IV, e.DataOffset, e.DataLen, err
}

// DecryptAt decrypts in place dst, which holds the ciphertext of the plaintext bytes at off, any byte
// offset. It verifies nothing: the caller must have opened the envelope once and must check the hash of
// the block that it reads. The error is *UnknownKeyError or ErrTooLarge.
//
// GCM encrypts in counter mode; with a 96-bit IV the first counter block is J0 = IV ‖ 00000001 and
// serves the tag, so plaintext block i is under J0+1+i (NIST SP 800-38D §7.1).
func (k *Keys) DecryptAt(keyID [32]byte, iv [12]byte, off int64, dst []byte) error {
	key := k.set.Load().byID[keyID]
	if key == nil {
		return &UnknownKeyError{KeyID: keyID}
	}
	if off < 0 || off > MaxPlainBytes || int64(len(dst)) > MaxPlainBytes-off {
		return ErrTooLarge
	}
	// INVARIANT: MaxPlainBytes is below 2^32-2 blocks, so the 32-bit counter does not wrap.
	var scratch [32]byte
	counter, skipped := scratch[:16], scratch[16:16+off%16]
	copy(counter, iv[:])
	binary.BigEndian.PutUint32(counter[ivBytes:], uint32(2+off/16))
	stream := cipher.NewCTR(key.block, counter)
	stream.XORKeyStream(skipped, skipped)
	stream.XORKeyStream(dst, dst)
	return nil
}

// Derive returns a secret for one purpose from the default key, for the ledger with this ID. Secrets
// with different labels, ledgers or keys tell nothing of each other or of the key:
//
//	PRK    = HKDF-Extract-SHA256(salt = "fpnode/v1" ‖ id, key)
//	secret = HKDF-Expand-SHA256(PRK, "fpnode/v1/" ‖ label, 32)            RFC 5869
//
// It changes when the default key does.
func (k *Keys) Derive(id [32]byte, label string) [32]byte {
	salt := append([]byte("fpnode/v1"), id[:]...)
	return derive(k.set.Load().def.raw, salt, "fpnode/v1/"+label)
}

// derive returns 32 bytes of HKDF-SHA256.
func derive(secret, salt []byte, info string) [32]byte {
	out, err := hkdf.Key(sha256.New, secret, salt, info, 32)
	if err != nil {
		panic("keyring: internal error: HKDF: " + err.Error())
	}
	return [32]byte(out)
}
