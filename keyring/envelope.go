package keyring

import (
	"bytes"
	"encoding/binary"
)

// Envelope is the frame around sealed bytes, parsed but not opened (Fireproof format, "Encryption
// envelope"). It is one CBOR map with three byte strings, keys in canonical order (shorter first),
// every length in its shortest form, and nothing behind it:
//
//	a3                        map of 3
//	62 6976          4c ..    "iv"     12 bytes
//	64 64617461      58 24 .. "data"   ciphertext, then the 16-byte tag of AES-GCM
//	65 6b65794964    58 20 .. "keyId"  32 bytes, SHA-256 of the raw key
//
// The example's data is 0x24 bytes, so it seals 20. The length of data takes one byte below 24, two
// below 2^8, three below 2^16, five below 2^32.
type Envelope struct {
	KeyID [32]byte // fingerprint of the key that sealed it
	IV    [12]byte // FoldIV of the plaintext's hash, once it is verified

	// DataOffset is where the ciphertext begins in the sealed bytes; plaintext byte i is at DataOffset+i.
	DataOffset int64
	// DataLen is the number of plaintext bytes, which is that of ciphertext bytes without the tag.
	DataLen int64
}

const (
	ivBytes       = 12
	tagBytes      = 16
	keyIDBytes    = 32
	maxFrameBytes = len(frameIV) + ivBytes + len(frameData) + 5 + len(frameKeyID) + keyIDBytes

	frameIV    = "\xa3\x62iv\x4c"
	frameData  = "\x64data"
	frameKeyID = "\x65keyId\x58\x20"
)

// FoldIV returns the IV that Fireproof derives from a plaintext: the 34 bytes of its sha2-256
// multihash (0x12, 0x20, digest), XORed together in rows of 12.
func FoldIV(digest [32]byte) [12]byte {
	iv := [ivBytes]byte{0: 0x12, 1: 0x20}
	for i, b := range digest {
		iv[(i+2)%ivBytes] ^= b
	}
	return iv
}

// appendFrameHead appends all that comes before the ciphertext.
func appendFrameHead(dst []byte, iv [12]byte, dataBytes int) []byte {
	dst = append(dst, frameIV...)
	dst = append(dst, iv[:]...)
	dst = append(dst, frameData...)
	return appendByteStringHead(dst, uint64(dataBytes))
}

// appendByteStringHead appends the shortest head of a CBOR byte string (RFC 8949 §4.2.1).
func appendByteStringHead(dst []byte, n uint64) []byte {
	switch {
	case n < 24:
		return append(dst, 0x40|byte(n))
	case n < 1<<8:
		return append(dst, 0x58, byte(n))
	case n < 1<<16:
		return binary.BigEndian.AppendUint16(append(dst, 0x59), uint16(n))
	case n < 1<<32:
		return binary.BigEndian.AppendUint32(append(dst, 0x5a), uint32(n))
	}
	return binary.BigEndian.AppendUint64(append(dst, 0x5b), n)
}

// frameBytes returns the size of the envelope of n plaintext bytes.
func frameBytes(n int) int {
	var head [9]byte
	return len(frameIV) + ivBytes + len(frameData) + len(appendByteStringHead(head[:0], uint64(n+tagBytes))) +
		n + tagBytes + len(frameKeyID) + keyIDBytes
}

// ParseEnvelope reads the frame of sealed bytes. It accepts exactly what Fireproof writes: any other
// CBOR spelling of the same map is ErrEnvelope. It allocates nothing and checks no key and no tag.
func ParseEnvelope(sealed []byte) (Envelope, error) {
	var e Envelope
	if len(sealed) > MaxSealedBytes {
		return e, ErrEnvelope
	}
	rest, ok := bytes.CutPrefix(sealed, []byte(frameIV))
	if !ok || len(rest) < ivBytes {
		return e, ErrEnvelope
	}
	copy(e.IV[:], rest)
	rest, ok = bytes.CutPrefix(rest[ivBytes:], []byte(frameData))
	if !ok {
		return e, ErrEnvelope
	}
	n, rest, ok := cutByteStringHead(rest)
	if !ok || n < tagBytes || uint64(len(rest)) != n+uint64(len(frameKeyID))+keyIDBytes {
		return e, ErrEnvelope
	}
	keyID, ok := bytes.CutPrefix(rest[n:], []byte(frameKeyID))
	if !ok {
		return e, ErrEnvelope
	}
	copy(e.KeyID[:], keyID)
	e.DataOffset = int64(len(sealed) - len(rest))
	e.DataLen = int64(n) - tagBytes
	return e, nil
}

// cutByteStringHead reads the head that appendByteStringHead writes, and no longer spelling of it.
// Lengths of 8 bytes are above every limit and refused.
func cutByteStringHead(b []byte) (n uint64, rest []byte, ok bool) {
	if len(b) == 0 || b[0] < 0x40 || b[0] > 0x5a {
		return 0, nil, false
	}
	info := b[0] & 0x1f
	if info < 24 {
		return uint64(info), b[1:], true
	}
	width := 1 << (info - 24)
	if len(b) < 1+width {
		return 0, nil, false
	}
	for _, c := range b[1 : 1+width] {
		n = n<<8 | uint64(c)
	}
	var shortest [9]byte
	if len(appendByteStringHead(shortest[:0], n)) != 1+width {
		return 0, nil, false
	}
	return n, b[1+width:], true
}
