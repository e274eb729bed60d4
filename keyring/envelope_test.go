package keyring

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/ipfs/go-cid"
	"pgregory.net/rapid"
)

func mustKey(t testing.TB, raw []byte) Key {
	t.Helper()
	key, err := keyFromBytes(bytes.Clone(raw))
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func mustKeys(t testing.TB, keys ...Key) *Keys {
	t.Helper()
	k, err := NewKeys(keys[0], keys[1:]...)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func newKey(t testing.TB) Key {
	t.Helper()
	key, err := NewKey()
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// sequence is the bytes 0, 1, 2, …
func sequence(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i)
	}
	return b
}

// TestEnvelopeGolden opens and seals the genesis commit exactly as JavaScript sealed it.
func TestEnvelopeGolden(t *testing.T) {
	var golden struct {
		PlaintextHex string
		Encrypted    struct {
			KeyBase58 json.RawMessage
			FileHex   string
		}
	}
	b, err := os.ReadFile("testdata/golden.json")
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(b, &golden); err != nil {
		t.Fatal(err)
	}
	plain, _ := hex.DecodeString(golden.PlaintextHex)
	sealed, _ := hex.DecodeString(golden.Encrypted.FileHex)
	item, err := parseKeyItem(golden.Encrypted.KeyBase58) // a bare item
	if err != nil {
		t.Fatal(err)
	}
	keys := new(Keys)
	keys.set.Store(item.set)
	if got, err := keys.Open(sealed); err != nil || !bytes.Equal(got, plain) {
		t.Errorf("Open: %d bytes, %v; want the %d bytes of the genesis CAR", len(got), err, len(plain))
	}
	if got, err := keys.Seal(plain); err != nil || !bytes.Equal(got, sealed) {
		t.Errorf("Seal: other bytes than JavaScript's, %v", err)
	}
}

// TestEnvelopeFixtures opens every CAR that JavaScript and the reference writer sealed: keys of 16 and
// 32 bytes, a rotated key, files. Its name is the hash of its plaintext, and sealing gives it back.
func TestEnvelopeFixtures(t *testing.T) {
	for _, ledger := range []string{"basic-ledger", "rot-ledger", "32byte-key", "files-ledger", "random-iv"} {
		t.Run(ledger, func(t *testing.T) {
			keys, err := ReadBag(vfs.Default, "testdata/keybag", ledger)
			if err != nil {
				t.Fatal(err)
			}
			paths, err := filepath.Glob("testdata/sealed/" + ledger + "/*")
			if err != nil || len(paths) == 0 {
				t.Fatalf("no fixtures: %v", err)
			}
			randomIV, sealedBy := 0, map[[32]byte]int{}
			for _, path := range paths {
				sealed, err := os.ReadFile(path)
				if err != nil {
					t.Fatal(err)
				}
				name, err := cid.Decode(strings.TrimSuffix(filepath.Base(path), ".car"))
				if err != nil {
					t.Fatal(err)
				}
				plain, err := keys.Open(sealed)
				if ledger == "random-iv" && errors.Is(err, ErrIV) {
					randomIV++
					continue
				}
				if err != nil {
					t.Fatalf("%s: %v", path, err)
				}
				if hash := sha256.Sum256(plain); !bytes.Equal(hash[:], name.Hash()[2:]) {
					t.Errorf("%s: plaintext has hash %x", path, hash)
				}
				keyID, _, _, dataLen, err := keys.Inspect(sealed)
				if err != nil || dataLen != int64(len(plain)) {
					t.Errorf("%s: Inspect says %d plaintext bytes, %v; want %d", path, dataLen, err, len(plain))
				}
				sealedBy[keyID]++
				for _, key := range keys.All() {
					if key.Fingerprint() != keyID {
						continue
					}
					if again, err := mustKeys(t, key).Seal(plain); err != nil || !bytes.Equal(again, sealed) {
						t.Errorf("%s: sealing the plaintext gives other bytes, %v", path, err)
					}
				}
			}
			if ledger == "random-iv" && randomIV != 1 {
				t.Errorf("%d CARs refused for their IV, want the 1 that was written with a random one", randomIV)
			}
			if want := map[string]int{"rot-ledger": 2}[ledger]; want != 0 && len(sealedBy) != want {
				t.Errorf("CARs under %d keys, want %d", len(sealedBy), want)
			}
		})
	}
}

// TestEnvelopeDrawing reads the drawing in the comment of Envelope and parses what it draws.
func TestEnvelopeDrawing(t *testing.T) {
	source, err := os.ReadFile("envelope.go")
	if err != nil {
		t.Fatal(err)
	}
	var sealed []byte
	for _, m := range regexp.MustCompile(`(?m)^//\t([0-9a-f .]+?) +(map|"[a-zA-Z]+")`).FindAllStringSubmatch(string(source), -1) {
		text := strings.ReplaceAll(strings.ReplaceAll(m[1], "..", ""), " ", "")
		b, err := hex.DecodeString(text)
		if err != nil {
			t.Fatalf("drawing %q: %v", m[0], err)
		}
		sealed = append(sealed, b...)
		if strings.Contains(m[1], "..") { // the bytes of the string whose head ends the line
			n := int(b[len(b)-1])
			if n == 0x4c {
				n = ivBytes
			}
			sealed = append(sealed, make([]byte, n)...)
		}
	}
	e, err := ParseEnvelope(sealed)
	if err != nil {
		t.Fatalf("the drawing draws %x: %v", sealed, err)
	}
	if e.DataLen != 20 || e.DataOffset != 24 {
		t.Errorf("the drawing seals %d bytes at %d, want 20 at 24", e.DataLen, e.DataOffset)
	}
}

// envelope makes a frame with any head for data.
func envelope(head []byte, dataBytes int) []byte {
	b := append([]byte(frameIV), make([]byte, ivBytes)...)
	b = append(append(b, frameData...), head...)
	b = append(b, make([]byte, dataBytes)...)
	return append(append(b, frameKeyID...), make([]byte, keyIDBytes)...)
}

func TestParseEnvelopeIsStrict(t *testing.T) {
	good := envelope([]byte{0x54}, 20)
	tests := []struct {
		name   string
		sealed []byte
		ok     bool
	}{
		{"head of 1 byte", good, true},
		{"no plaintext", envelope([]byte{0x50}, 16), true},
		{"head of 2 bytes", envelope([]byte{0x58, 24}, 24), true},
		{"head of 3 bytes", envelope([]byte{0x59, 1, 0}, 256), true},
		{"head of 5 bytes", envelope([]byte{0x5a, 0, 1, 0, 0}, 1<<16), true},
		{"nothing", nil, false},
		{"data shorter than a tag", envelope([]byte{0x4f}, 15), false},
		{"2 bytes for a length of 1", envelope([]byte{0x58, 20}, 20), false},
		{"3 bytes for a length of 2", envelope([]byte{0x59, 0, 200}, 200), false},
		{"5 bytes for a length of 3", envelope([]byte{0x5a, 0, 0, 1, 0}, 256), false},
		{"9 bytes", envelope([]byte{0x5b, 0, 0, 0, 0, 0, 0, 0, 20}, 20), false},
		{"indefinite length", envelope([]byte{0x5f, 0x54}, 20), false},
		{"text instead of bytes", envelope([]byte{0x74}, 20), false},
		{"data longer than the file", envelope([]byte{0x5a, 0xff, 0xff, 0xff, 0xff}, 20), false},
		{"data shorter than it says", envelope([]byte{0x54}, 19), false},
		{"data longer than it says", envelope([]byte{0x54}, 21), false},
		{"byte behind", append(bytes.Clone(good), 0), false},
		{"map of 4", append([]byte{0xa4}, good[1:]...), false},
		{"keys in another order", append([]byte("\xa3\x64data\x54"), append(make([]byte, 20), "\x62iv\x4c............\x65keyId\x58\x20................................"...)...), false},
	}
	for _, test := range tests {
		if _, err := ParseEnvelope(test.sealed); (err == nil) != test.ok || (err != nil && err != ErrEnvelope) {
			t.Errorf("%s: %v, want ok %t", test.name, err, test.ok)
		}
	}
	for n := range good {
		if _, err := ParseEnvelope(good[:n]); err != ErrEnvelope {
			t.Errorf("cut to %d bytes: %v", n, err)
		}
	}
}

// TestOpenNamesTheCheckThatFailed flips every bit of a sealed envelope: none opens, and the error is the
// one of the region.
func TestOpenNamesTheCheckThatFailed(t *testing.T) {
	keys := mustKeys(t, mustKey(t, sequence(16)))
	sealed, err := keys.Seal([]byte("twenty bytes of text"))
	if err != nil {
		t.Fatal(err)
	}
	e, err := ParseEnvelope(sealed)
	if err != nil {
		t.Fatal(err)
	}
	want := func(at int64) error {
		switch {
		case at >= 5 && at < 5+ivBytes, at >= e.DataOffset && at < e.DataOffset+e.DataLen+tagBytes:
			return ErrTag
		case at >= int64(len(sealed))-keyIDBytes:
			return ErrKeyUnknown
		}
		return ErrEnvelope
	}
	counts := map[error]int{}
	for i := range sealed {
		for bit := range 8 {
			sealed[i] ^= 1 << bit
			plain, err := keys.Open(sealed)
			if !errors.Is(err, want(int64(i))) || plain != nil {
				t.Errorf("byte %d, bit %d: %v and %d bytes, want %v", i, bit, err, len(plain), want(int64(i)))
			}
			counts[want(int64(i))]++
			sealed[i] ^= 1 << bit
		}
	}
	if len(counts) != 3 {
		t.Errorf("flips met %d checks, want 3", len(counts))
	}
	var unknown *UnknownKeyError
	_, err = mustKeys(t, mustKey(t, sequence(32))).Open(sealed)
	if !errors.As(err, &unknown) || unknown.KeyID != keys.Default().Fingerprint() {
		t.Errorf("another key: %v", err)
	}
	// A tag that is right over an IV that is not: only the fold shows it.
	s := keys.set.Load().def
	var iv [12]byte
	random := s.aead.Seal(appendFrameHead(nil, iv, 4+tagBytes), iv[:], []byte("text"), nil)
	random = append(append(random, frameKeyID...), s.fp[:]...)
	if plain, err := keys.Open(random); err != ErrIV || plain != nil {
		t.Errorf("IV that does not follow from the plaintext: %v", err)
	}
	for err, want := range map[error]string{ErrEnvelope: "envelope", ErrTag: "tag", ErrIV: "iv", unknown: "key", ErrKeyUnknown: "key"} {
		var c interface{ Check() string }
		if !errors.As(fmt.Errorf("wrapped: %w", err), &c) || c.Check() != want {
			t.Errorf("%v does not name the check %q", err, want)
		}
	}
}

// A key that is held but is not the one named must not be tried.
func TestOpenTriesOnlyTheNamedKey(t *testing.T) {
	a, b := newKey(t), newKey(t)
	sealed, err := mustKeys(t, a).Seal([]byte("text"))
	if err != nil {
		t.Fatal(err)
	}
	fp := b.Fingerprint()
	copy(sealed[len(sealed)-keyIDBytes:], fp[:])
	if _, err := mustKeys(t, a, b).Open(sealed); err != ErrTag {
		t.Errorf("sealed under one key, naming another that is held: %v, want ErrTag", err)
	}
}

func TestSealOpen(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		raw := rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, "key")
		if rapid.Bool().Draw(t, "AES-256") {
			raw = append(raw, raw...)
		}
		plain := rapid.SliceOfN(rapid.Byte(), 0, 1<<10).Draw(t, "plain")
		key, err := keyFromBytes(raw)
		if err != nil {
			t.Fatal(err)
		}
		keys, err := NewKeys(key)
		if err != nil {
			t.Fatal(err)
		}
		sealed, err := keys.Seal(plain)
		if err != nil || len(sealed) != frameBytes(len(plain)) {
			t.Fatalf("%d bytes, %v; frameBytes says %d", len(sealed), err, frameBytes(len(plain)))
		}
		again, _ := keys.Seal(plain)
		if !bytes.Equal(sealed, again) {
			t.Fatal("sealing twice gives two forms")
		}
		opened, err := keys.Open(sealed)
		if err != nil || !bytes.Equal(opened, plain) {
			t.Fatalf("Open: %v", err)
		}
	})
}

// TestSealAndOpenAllocateOnce pins the peak memory that Seal and Open promise.
func TestSealAndOpenAllocateOnce(t *testing.T) {
	keys := mustKeys(t, newKey(t))
	plain := make([]byte, 8<<20)
	var sealed []byte
	grown := func(f func()) uint64 {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		f()
		runtime.ReadMemStats(&after)
		return after.TotalAlloc - before.TotalAlloc
	}
	const slack = 64 << 10 // size classes and the runtime's own
	if n := grown(func() { sealed, _ = keys.Seal(plain) }); n > uint64(len(plain)+slack) {
		t.Errorf("sealing %d bytes allocates %d", len(plain), n)
	}
	if n := grown(func() { plain, _ = keys.Open(sealed) }); n > uint64(len(plain)+slack) {
		t.Errorf("opening %d bytes allocates %d", len(sealed), n)
	}
	if len(plain) != 8<<20 {
		t.Error("did not open")
	}
}

func TestDecryptAt(t *testing.T) {
	plain := make([]byte, 70_000)
	rng := rand.New(rand.NewPCG(1, 2))
	for i := range plain {
		plain[i] = byte(rng.Uint32())
	}
	a, b := mustKey(t, sequence(16)), mustKey(t, sequence(32))
	for _, keys := range []*Keys{mustKeys(t, a), mustKeys(t, b), mustKeys(t, b, a)} {
		sealed, err := keys.Seal(plain)
		if err != nil {
			t.Fatal(err)
		}
		keyID, iv, dataOff, dataLen, err := keys.Inspect(sealed)
		if err != nil {
			t.Fatal(err)
		}
		check := func(off, n int64) {
			t.Helper()
			dst := bytes.Clone(sealed[dataOff+off : dataOff+off+n])
			if err := keys.DecryptAt(keyID, iv, off, dst); err != nil || !bytes.Equal(dst, plain[off:off+n]) {
				t.Fatalf("%d bytes at %d: %v, or other bytes than Open gives", n, off, err)
			}
		}
		for off := range int64(40) {
			for n := range int64(40) {
				check(off, n)
			}
		}
		for range 2000 {
			off := rng.Int64N(dataLen)
			check(off, rng.Int64N(min(dataLen-off, 2000)+1))
		}
		check(0, dataLen)
		check(dataLen, 0)
	}
}

func TestDecryptAtRefuses(t *testing.T) {
	keys := mustKeys(t, newKey(t))
	id := keys.Default().Fingerprint()
	for _, test := range []struct {
		off  int64
		size int
	}{{-1, 1}, {MaxPlainBytes, 1}, {MaxPlainBytes + 1, 0}, {1 << 62, 1}} {
		if err := keys.DecryptAt(id, [12]byte{}, test.off, make([]byte, test.size)); err != ErrTooLarge {
			t.Errorf("%d bytes at %d: %v, want ErrTooLarge", test.size, test.off, err)
		}
	}
	if err := keys.DecryptAt([32]byte{1}, [12]byte{}, 0, nil); !errors.Is(err, ErrKeyUnknown) {
		t.Errorf("unknown key: %v", err)
	}
	// The last block that DecryptAt serves must be the one that GCM's counter gives.
	dst, want := make([]byte, 16), make([]byte, 16)
	if err := keys.DecryptAt(id, [12]byte{}, MaxPlainBytes-16, dst); err != nil {
		t.Fatal(err)
	}
	block, err := aes.NewCipher(keys.Default().s().raw)
	if err != nil {
		t.Fatal(err)
	}
	n := uint32(MaxPlainBytes/16 - 1 + 2)
	counter := []byte{12: byte(n >> 24), byte(n >> 16), byte(n >> 8), byte(n)}
	cipher.NewCTR(block, counter).XORKeyStream(want, want)
	if !bytes.Equal(dst, want) {
		t.Error("wrong key stream at the end of the range")
	}
}

func FuzzParseEnvelope(f *testing.F) {
	f.Add(envelope([]byte{0x54}, 20))
	f.Add(envelope([]byte{0x58, 24}, 24))
	f.Add(envelope([]byte{0x59, 1, 0}, 256))
	f.Add(envelope([]byte{0x5a, 0, 0, 1, 0}, 256))
	f.Add([]byte(frameIV))
	f.Fuzz(func(t *testing.T, sealed []byte) {
		e, err := ParseEnvelope(sealed)
		if err != nil {
			if err != ErrEnvelope {
				t.Fatalf("error %v", err)
			}
			return
		}
		again := appendFrameHead(nil, e.IV, int(e.DataLen)+tagBytes)
		again = append(again, sealed[e.DataOffset:e.DataOffset+e.DataLen+tagBytes]...)
		again = append(append(again, frameKeyID...), e.KeyID[:]...)
		if !bytes.Equal(again, sealed) || len(again) != frameBytes(int(e.DataLen)) {
			t.Fatalf("%x parses, and marshals as %x", sealed, again)
		}
	})
}

func BenchmarkDecryptAt300(b *testing.B) {
	keys := mustKeys(b, newKey(b))
	id, dst := keys.Default().Fingerprint(), make([]byte, 300)
	b.SetBytes(300)
	b.ReportAllocs()
	for i := range b.N {
		if err := keys.DecryptAt(id, [12]byte{1}, int64(i), dst); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkSeal(b *testing.B) {
	for _, size := range []int{1 << 10, 1 << 20} {
		b.Run(fmt.Sprintf("%dKiB", size>>10), func(b *testing.B) {
			keys, plain := mustKeys(b, newKey(b)), make([]byte, size)
			b.SetBytes(int64(size))
			b.ReportAllocs()
			for b.Loop() {
				if _, err := keys.Seal(plain); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkOpen(b *testing.B) {
	for _, size := range []int{1 << 10, 1 << 20} {
		b.Run(fmt.Sprintf("%dKiB", size>>10), func(b *testing.B) {
			keys := mustKeys(b, newKey(b))
			sealed, err := keys.Seal(make([]byte, size))
			if err != nil {
				b.Fatal(err)
			}
			b.SetBytes(int64(size))
			b.ReportAllocs()
			for b.Loop() {
				if _, err := keys.Open(sealed); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
