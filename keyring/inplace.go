package keyring

import (
	"crypto/sha256"
	"fmt"
)

// SealWith is Seal of n plaintext bytes that fill writes straight to where they are then sealed in place, so that the
// peak memory is the sealed bytes alone. An error of fill is returned as it is.
func (k *Keys) SealWith(n int, fill func(plain []byte) error) (sealed []byte, err error) {
	if n < 0 || n > MaxPlainBytes {
		return nil, ErrTooLarge
	}
	key := k.set.Load().def
	sealed = appendFrameHead(make([]byte, 0, frameBytes(n)), [12]byte{}, n+tagBytes)
	head := len(sealed)
	plain := sealed[head : head+n : head+n]
	if err := fill(plain); err != nil {
		return nil, err
	}
	iv := FoldIV(sha256.Sum256(plain))
	copy(sealed[len(frameIV):], iv[:])
	sealed = sealed[:head+len(key.aead.Seal(sealed[head:head], iv[:], plain, nil))]
	sealed = append(sealed, frameKeyID...)
	if sealed = append(sealed, key.fp[:]...); len(sealed) != frameBytes(n) {
		panic(fmt.Sprintf("keyring: internal error: %d sealed bytes, not %d", len(sealed), frameBytes(n)))
	}
	return sealed, nil
}

// OpenInPlace is Open with the plaintext in the place of the ciphertext: plain is part of sealed, and no second buffer
// is needed. The rest of sealed stays as it is, so encrypting plain once more where it lies, with DecryptAt, which is
// its own inverse, gives back the sealed bytes. After ErrTag and ErrIV the data in sealed is lost.
func (k *Keys) OpenInPlace(sealed []byte) (plain []byte, err error) {
	e, err := ParseEnvelope(sealed)
	if err != nil {
		return nil, err
	}
	key := k.set.Load().byID[e.KeyID]
	if key == nil {
		return nil, &UnknownKeyError{KeyID: e.KeyID}
	}
	data := sealed[e.DataOffset : e.DataOffset+e.DataLen+tagBytes]
	plain, err = key.aead.Open(data[:0], e.IV[:], data, nil)
	if err != nil {
		return nil, ErrTag
	}
	if FoldIV(sha256.Sum256(plain)) != e.IV {
		clear(plain)
		return nil, ErrIV
	}
	return plain[:len(plain):len(plain)], nil
}
