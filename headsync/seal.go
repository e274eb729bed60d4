package headsync

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base32"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/libp2p/go-libp2p/core/peer"
)

// Secrets derives what a ledger's members have in common from the ledger's key;
// keyring.Keys is one. Equal keys, ids and labels give equal secrets, and nothing else
// follows from them.
type Secrets interface {
	Derive(ledger [32]byte, label string) [32]byte
}

// capability is what a node needs to take part in the sync of one ledger.
type capability struct {
	topic string
	head  [32]byte // key of announcements
	auth  [32]byte // key of exchanges
}

// topicPrefix begins every topic: protocol and version.
const topicPrefix = "fp/1/"

var lowerBase32 = base32.NewEncoding("abcdefghijklmnopqrstuvwxyz234567").WithPadding(base32.NoPadding)

func newCapability(s Secrets, ledger [32]byte) capability {
	key := s.Derive(ledger, "topic")
	mac := hmac.New(sha256.New, key[:])
	mac.Write([]byte("t"))
	return capability{
		topic: topicPrefix + lowerBase32.EncodeToString(mac.Sum(nil)[:20]),
		head:  s.Derive(ledger, "head"),
		auth:  s.Derive(ledger, "auth"),
	}
}

// aead returns AES-256-GCM under HKDF-SHA256(secret, salt, info).
func aead(secret, salt []byte, info string) cipher.AEAD {
	key, err := hkdf.Key(sha256.New, secret, salt, info, 32)
	if err == nil {
		var block cipher.Block
		if block, err = aes.NewCipher(key); err == nil {
			var a cipher.AEAD
			if a, err = cipher.NewGCM(block); err == nil {
				return a
			}
		}
	}
	panic("headsync: internal error: " + err.Error()) // lengths are constants
}

// A sealed announcement:
//
//	+-------------+------------+-----------------------------------+
//	| version (1) | salt (24B) | AES-256-GCM(padded body) ‖ tag 16B |
//	+-------------+------------+-----------------------------------+
//
// The salt is random, and the key is used once: HKDF-SHA256(K_head, salt, "announcement"),
// with a nonce of zeros. The additional data is the version followed by the topic, so
// that an announcement for one ledger does not open for another. The padded body is a
// uint32 length (big endian), the body, and zeros up to the next size class, so that
// lengths tell little: classes are 256 bytes times 1, 1.5, 2, 3, 4, 6, 8 …
const (
	announceVersion   = 1
	announceSaltBytes = 24
	tagBytes          = 16
	announceOverhead  = 1 + announceSaltBytes + tagBytes
	smallestClass     = 256
)

var (
	// ErrTooLong says that a message is over its limit. It was not opened.
	ErrTooLong = errors.New("message is too long")
	// ErrVersion says that a message is of a format this program does not know.
	ErrVersion = errors.New("message of an unknown version")
	// ErrSeal says that a message was not made with the ledger's key, or was altered.
	ErrSeal = errors.New("message does not open")
	// ErrSyntax says that a message opens and is not what it should be.
	ErrSyntax = errors.New("malformed message")
)

func (c *capability) sealAnnouncement(body []byte) ([]byte, error) {
	padded := padTo(len(body) + 4)
	if padded > maxPaddedBytes {
		padded = maxPaddedBytes
	}
	if len(body)+4 > padded {
		return nil, fmt.Errorf("sealing an announcement: %w", ErrTooLong)
	}
	out := make([]byte, 1+announceSaltBytes, announceOverhead+padded)
	out[0] = announceVersion
	rand.Read(out[1:])
	plain := make([]byte, padded)
	binary.BigEndian.PutUint32(plain, uint32(len(body)))
	copy(plain[4:], body)
	return c.announcementKey(out[1:]).Seal(out, make([]byte, 12), plain, c.aad()), nil
}

// maxPaddedBytes is the largest size class, what fits an announcement.
const maxPaddedBytes = MaxAnnouncementBytes - announceOverhead

// openAnnouncement checks size, version and seal, in this order, and returns the body.
func (c *capability) openAnnouncement(sealed []byte) ([]byte, error) {
	if len(sealed) > MaxAnnouncementBytes {
		return nil, ErrTooLong
	}
	if len(sealed) == 0 || sealed[0] != announceVersion {
		return nil, ErrVersion
	}
	if len(sealed) < announceOverhead+4 {
		return nil, ErrSeal
	}
	salt, ct := sealed[1:1+announceSaltBytes], sealed[1+announceSaltBytes:]
	plain, err := c.announcementKey(salt).Open(nil, make([]byte, 12), ct, c.aad())
	if err != nil {
		return nil, ErrSeal
	}
	n := binary.BigEndian.Uint32(plain)
	if uint64(n) > uint64(len(plain)-4) {
		return nil, ErrSyntax
	}
	for _, b := range plain[4+n:] {
		if b != 0 {
			return nil, ErrSyntax
		}
	}
	return plain[4 : 4+n], nil
}

func (c *capability) announcementKey(salt []byte) cipher.AEAD {
	return aead(c.head[:], salt, "announcement")
}

func (c *capability) aad() []byte { return append([]byte{announceVersion}, c.topic...) }

// padTo returns the size class of n bytes.
func padTo(n int) int {
	class := smallestClass
	for class < n {
		if class+class/2 >= n {
			return class + class/2
		}
		class *= 2
	}
	return class
}

// An exchange is opened with a salt and a proof that the opener holds the ledger's
// key. The proof names both peers, as the transport has authenticated them, so it is
// worth nothing on any other connection:
//
//	+------------+-------------------------------------------------------+
//	| salt (32B) | HMAC-SHA256(K_auth, "open" ‖ salt ‖ opener ‖ server)  |
//	+------------+-------------------------------------------------------+
//
// From then on both sides send frames:
//
//	+-----------------+-------------------------------------+
//	| uint32 length n | AES-256-GCM(kind ‖ body) ‖ tag 16B  |   n bytes
//	+-----------------+-------------------------------------+
//
// under one key for each direction, HKDF-SHA256(K_auth, salt, direction ‖ opener ‖
// server), with the number of the frame as nonce. The server proves its key by its
// first frame. It answers a proof it cannot check in no way at all.
const (
	saltBytes     = 32
	proofBytes    = sha256.Size
	frameOverhead = tagBytes + 1
)

func (c *capability) proof(salt []byte, opener, server peer.ID) []byte {
	mac := hmac.New(sha256.New, c.auth[:])
	mac.Write([]byte("open"))
	mac.Write(salt)
	mac.Write(lengthPrefixed(nil, string(opener)))
	mac.Write(lengthPrefixed(nil, string(server)))
	return mac.Sum(nil)
}

func (c *capability) frameKey(salt []byte, direction string, opener, server peer.ID) cipher.AEAD {
	info := lengthPrefixed([]byte("fpnode/refs/0 "+direction+" "), string(opener))
	return aead(c.auth[:], salt, string(lengthPrefixed(info, string(server))))
}

func lengthPrefixed(dst []byte, s string) []byte {
	return append(binary.BigEndian.AppendUint16(dst, uint16(len(s))), s...)
}
