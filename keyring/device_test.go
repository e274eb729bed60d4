package keyring

import (
	"crypto/ed25519"
	"encoding/hex"
	"strings"
	"testing"
)

func TestSign(t *testing.T) {
	d := deviceOf([32]byte(sequence(32)), [32]byte{})
	public := d.identity.Public()
	signature := d.identity.Sign("fpnode-head-v1", []byte("message"))
	if !Verify(public, "fpnode-head-v1", []byte("message"), signature) {
		t.Error("own signature does not verify")
	}
	if !ed25519.Verify(public, []byte("\x0efpnode-head-v1message"), signature) {
		t.Error("signed other bytes than the comment says")
	}
	for name, ok := range map[string]bool{
		"another domain":         Verify(public, "fpnode-head-v2", []byte("message"), signature),
		"a byte moved to domain": Verify(public, "fpnode-head-v1m", []byte("essage"), signature),
		"another message":        Verify(public, "fpnode-head-v1", []byte("massage"), signature),
		"another device":         Verify(deviceOf([32]byte{1}, [32]byte{}).identity.Public(), "fpnode-head-v1", []byte("message"), signature),
		"no key":                 Verify(nil, "fpnode-head-v1", []byte("message"), signature),
		"no signature":           Verify(public, "fpnode-head-v1", []byte("message"), nil),
	} {
		if ok {
			t.Errorf("%s: verifies", name)
		}
	}
	if seed := d.identity.Libp2pSeed(); !ed25519.NewKeyFromSeed(seed[:]).Public().(ed25519.PublicKey).Equal(public) {
		t.Error("the libp2p seed is that of another key")
	}
}

// The derivations are for ever: other values would make every store and every meeting point unreadable.
// The expected values were computed with Python's hmac.
func TestDerivations(t *testing.T) {
	var nonce, id [32]byte
	copy(nonce[:], sequence(32))
	for i := range id {
		id[i] = byte(100 + i)
	}
	var master [32]byte
	for i := range master {
		master[i] = byte(200 + i)
	}
	vault := deviceOf([32]byte{}, master).vault
	keys := mustKeys(t, mustKey(t, sequence(16)))

	if got, want := keys.Derive(id, "topic"), "2c33615b19d33d1c485515eb194b16aad7fa243e13dd23588663f1f002344376"; hex.EncodeToString(got[:]) != want {
		t.Errorf("Derive: %x", got)
	}
	fileKey, _ := hex.DecodeString("6bb5d4c691471e876b7f3c886070d251e9bf1d6f38c63c1a251de7c6d818c1bb")
	block, err := vault.FileCipher(nonce)
	if err != nil {
		t.Fatal(err)
	}
	got, want := make([]byte, 16), make([]byte, 16)
	block.Encrypt(got, got)
	mustKey(t, fileKey).s().block.Encrypt(want, want)
	if string(got) != string(want) {
		t.Error("FileCipher has another key")
	}
	segmentKey, _ := hex.DecodeString("f6f9fbf2d00f19f6d0f53a184092d7dd7fc7bfd0ddd015722aea83061c15a8f2")
	aead, err := vault.RecordAEAD(nonce)
	if err != nil {
		t.Fatal(err)
	}
	sealed := aead.Seal(nil, make([]byte, 12), []byte("record"), []byte("data"))
	if plain, err := mustKey(t, segmentKey).s().aead.Open(nil, make([]byte, 12), sealed, []byte("data")); err != nil || string(plain) != "record" {
		t.Errorf("RecordAEAD has another key: %v", err)
	}
	if got := FormatID(IDOf(keys.Pinned().Fingerprint())); got != "2rk6cgbwi5jg7jm3fal3mjg4k3yd25i6zhbiw2532bf5wjxjt75a" {
		t.Errorf("ledger ID %s", got)
	}
}

func TestDeriveSeparates(t *testing.T) {
	a, b := mustKeys(t, mustKey(t, sequence(16))), mustKeys(t, mustKey(t, sequence(32)))
	seen := map[[32]byte]bool{}
	for _, keys := range []*Keys{a, b} {
		for _, id := range [][32]byte{{}, {1}} {
			for _, label := range []string{"topic", "head", "auth"} {
				seen[keys.Derive(id, label)] = true
			}
		}
	}
	if len(seen) != 12 {
		t.Errorf("%d secrets for 12 purposes", len(seen))
	}
	raw := [32]byte(b.Default().s().raw)
	if seen[raw] {
		t.Error("a derived secret is the key")
	}
}

func TestParseDevice(t *testing.T) {
	d, err := newDevice()
	if err != nil {
		t.Fatal(err)
	}
	file := d.marshal()
	again, err := parseDevice(file)
	if err != nil || !again.identity.Public().Equal(d.identity.Public()) || string(again.vault.master()) != string(d.vault.master()) {
		t.Fatalf("does not survive the file: %v", err)
	}
	for i := range file {
		for bit := range 8 {
			file[i] ^= 1 << bit
			if _, err := parseDevice(file); err == nil {
				t.Errorf("byte %d, bit %d flipped: accepted", i, bit)
			} else if leaks(err.Error(), d.identity.key().Seed(), d.vault.master()) != "" || leaksBase58(err.Error(), d.identity.key().Seed(), d.vault.master()) {
				t.Errorf("byte %d, bit %d flipped: the error shows a secret", i, bit)
			}
			file[i] ^= 1 << bit
		}
	}
	for n := range file {
		if _, err := parseDevice(file[:n]); err == nil {
			t.Errorf("cut to %d bytes: accepted", n)
		}
	}
	newer := strings.Replace(string(file), `"fpnode": 1`, `"fpnode": 2`, 1)
	if _, err := parseDevice([]byte(newer)); err != errNewer {
		t.Errorf("version 2: %v", err)
	}
}

func FuzzParseDevice(f *testing.F) {
	f.Add(deviceOf([32]byte(sequence(32)), [32]byte{7}).marshal())
	f.Add([]byte(`{"fpnode":9}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		if d, err := parseDevice(b); err == nil && string(d.marshal()) != string(b) {
			t.Fatal("a device file has two spellings")
		}
	})
}
