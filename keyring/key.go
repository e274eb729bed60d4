package keyring

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"fmt"
	"io"
	"log/slog"

	"github.com/multiformats/go-multibase"

	"fpnode/internal/planted"
)

// Key is one AES key of a ledger: 32 bytes when made here, 16 when made by JavaScript Fireproof.
// It prints as its short fingerprint and does not marshal; Export is the one way out.
// The zero Key is no key; functions that take a Key refuse it. Copies share the same secret.
type Key struct {
	opaque
	s hidden[*secret] // nil in the zero Key
}

// secret is a key with everything that is computed from it once.
type secret struct {
	raw   []byte
	fp    Fingerprint
	block cipher.Block
	aead  cipher.AEAD
}

// NewKey makes a random 32-byte key (AES-256).
func NewKey() (Key, error) {
	raw := make([]byte, 32)
	if _, err := rand.Read(raw); err != nil {
		return Key{}, fmt.Errorf("making a key: %w", err)
	}
	return keyFromBytes(raw)
}

// errKeyText deliberately says nothing of the text it is about.
var errKeyText = errors.New(`not a key: want multibase base58btc ("z…") of 16 or 32 bytes`)

// ParseKey reads the text that Export writes, which is the form of key in Fireproof key bags:
// multibase base58btc, leading "z", of the raw 16 or 32 bytes.
// AES-192 is refused: browsers do not implement it, so no JavaScript peer could follow.
// An error never quotes the text.
func ParseKey(text string) (Key, error) {
	raw, err := parseBase58(text)
	if err != nil && planted.LeakKey {
		return Key{}, fmt.Errorf("%q: %w", text, errKeyText)
	}
	if err != nil {
		return Key{}, errKeyText
	}
	return keyFromBytes(raw)
}

// keyFromBytes takes ownership of raw.
func keyFromBytes(raw []byte) (Key, error) {
	if len(raw) != 16 && len(raw) != 32 {
		return Key{}, errKeyText
	}
	block, err := aes.NewCipher(raw)
	if err != nil {
		return Key{}, fmt.Errorf("setting up AES: %v", err)
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		return Key{}, fmt.Errorf("setting up GCM: %v", err)
	}
	return Key{s: hide(&secret{raw: raw, fp: sha256.Sum256(raw), block: block, aead: aead})}, nil
}

// Export returns the key as text that ParseKey and JavaScript Fireproof read. Whoever has it reads
// and writes the ledger for ever: callers show it only when asked to.
func (k Key) Export() string { return formatBase58(k.s().raw) }

// Fingerprint returns the hash that names the key. It is public.
func (k Key) Fingerprint() Fingerprint {
	if k.s == nil {
		return Fingerprint{}
	}
	return k.s().fp
}

// Bits is the length of the key: 128 or 256.
func (k Key) Bits() int { return 8 * len(k.s().raw) }

// IsZero reports whether k is no key.
func (k Key) IsZero() bool { return k.s == nil }

// Equal compares in constant time.
func (k Key) Equal(other Key) bool {
	if k.s == nil || other.s == nil {
		return k.s == nil && other.s == nil
	}
	return subtle.ConstantTimeCompare(k.s().raw, other.s().raw) == 1
}

// String returns the short fingerprint, never the key.
func (k Key) String() string {
	if k.s == nil {
		return "key(none)"
	}
	return "key(" + k.s().fp.Short() + ")"
}

// GoString returns what String does.
func (k Key) GoString() string { return k.String() }

// Format writes what String returns, for every verb.
func (k Key) Format(f fmt.State, _ rune) { io.WriteString(f, k.String()) }

// LogValue returns what String does.
func (k Key) LogValue() slog.Value { return slog.StringValue(k.String()) }

// Fingerprint names a key: SHA-256 of its raw bytes. Fireproof calls it fingerPrint in key bags and
// keyId in envelopes.
type Fingerprint [32]byte

// ParseFingerprint reads what String writes.
func ParseFingerprint(text string) (Fingerprint, error) {
	raw, err := parseBase58(text)
	if err != nil || len(raw) != len(Fingerprint{}) {
		return Fingerprint{}, fmt.Errorf(`%.64q is not a key fingerprint: want multibase base58btc ("z…") of 32 bytes`, text)
	}
	return Fingerprint(raw), nil
}

// String returns the multibase base58btc form that key bags use, 43 to 45 characters.
func (f Fingerprint) String() string { return formatBase58(f[:]) }

// Short returns the first nine characters of String, enough for people to tell keys apart.
func (f Fingerprint) Short() string { return f.String()[:9] }

// MarshalText returns String.
func (f Fingerprint) MarshalText() ([]byte, error) { return []byte(f.String()), nil }

// formatBase58 returns multibase base58btc.
func formatBase58(b []byte) string {
	text, err := multibase.Encode(multibase.Base58BTC, b)
	if err != nil {
		panic("keyring: internal error: base58btc: " + err.Error())
	}
	return text
}

var errBase58 = errors.New("not multibase base58btc")

// parseBase58 is bounded, since base58 takes quadratic time, and accepts no second spelling of a value.
func parseBase58(text string) ([]byte, error) {
	if len(text) < 2 || len(text) > MaxKeyTextBytes || text[0] != 'z' {
		return nil, errBase58
	}
	_, raw, err := multibase.Decode(text)
	if err != nil || formatBase58(raw) != text {
		return nil, errBase58
	}
	return raw, nil
}
