package keyring

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"encoding/json"
	"fmt"
)

// Identity is the device's ed25519 key. What others know the device by is Public.
type Identity struct {
	opaque
	key hidden[ed25519.PrivateKey]
}

// Public returns the public key.
func (i Identity) Public() ed25519.PublicKey { return i.key().Public().(ed25519.PublicKey) }

// Sign signs message for one purpose, named by domain: a constant of 1 to MaxDomainBytes bytes such as
// "fpnode-head-v1". A signature for one domain is never one for another. The signed bytes are
//
//	domain length (1 byte) ‖ domain ‖ message
//
// Nothing that libp2p signs with the same key begins with a byte so small.
func (i Identity) Sign(domain string, message []byte) []byte {
	return ed25519.Sign(i.key(), signed(domain, message))
}

// Verify reports whether signature is from the holder of public, for this domain and message.
func Verify(public ed25519.PublicKey, domain string, message, signature []byte) bool {
	return len(public) == ed25519.PublicKeySize && ed25519.Verify(public, signed(domain, message), signature)
}

func signed(domain string, message []byte) []byte {
	if len(domain) == 0 || len(domain) > MaxDomainBytes {
		panic(fmt.Sprintf("keyring: internal error: signature domain of %d bytes", len(domain)))
	}
	b := make([]byte, 0, 1+len(domain)+len(message))
	b = append(b, byte(len(domain)))
	b = append(b, domain...)
	return append(b, message...)
}

// Libp2pSeed returns the private seed (RFC 8032), from which node makes the libp2p host key so that the
// peer ID is the device. It is a secret in the open: nothing else may call this.
func (i Identity) Libp2pSeed() [32]byte { return [32]byte(i.key().Seed()) }

// Vault derives the keys of files at rest from the home's master key. It satisfies blockstore.Vault.
type Vault struct {
	opaque
	master hidden[[]byte]
}

// FileCipher returns AES-256 under a key of its own for each nonce: HKDF-SHA256(master, salt = nonce,
// info = "fpnode/v1/file"). A nonce must never be used for two files.
func (v *Vault) FileCipher(nonce [32]byte) (cipher.Block, error) {
	key := derive(v.master(), nonce[:], "fpnode/v1/file")
	return aes.NewCipher(key[:])
}

// RecordAEAD returns AES-256-GCM under a key of its own for each salt: HKDF-SHA256(master, salt,
// info = "fpnode/v1/segment"). The caller must not use one GCM nonce twice under one salt.
func (v *Vault) RecordAEAD(salt [32]byte) (cipher.AEAD, error) {
	key := derive(v.master(), salt[:], "fpnode/v1/segment")
	block, err := aes.NewCipher(key[:])
	if err != nil {
		return nil, err
	}
	return cipher.NewGCM(block)
}

// device is what the device file holds.
type device struct {
	identity Identity
	vault    *Vault
}

func newDevice() (device, error) {
	var seed, master [32]byte
	if _, err := rand.Read(seed[:]); err != nil {
		return device{}, fmt.Errorf("making the device's identity: %w", err)
	}
	if _, err := rand.Read(master[:]); err != nil {
		return device{}, fmt.Errorf("making the master key: %w", err)
	}
	return deviceOf(seed, master), nil
}

func deviceOf(seed, master [32]byte) device {
	return device{
		identity: Identity{key: hide(ed25519.NewKeyFromSeed(seed[:]))},
		vault:    &Vault{master: hide(master[:])},
	}
}

// fileVersion is the version of the device file and of ledger key files.
const fileVersion = 1

// deviceFile is the device file: both secrets of the device in one file, so that there is never one
// without the other, each beside a public value that shows damage.
type deviceFile struct {
	Version  int    `json:"fpnode"`
	Identity string `json:"identity"` // ed25519 seed, multibase base58btc
	Public   string `json:"public"`   // its public key
	Master   string `json:"master"`   // at-rest master key
	Check    string `json:"check"`    // SHA-256("fpnode/v1/master" ‖ master)
}

func (d device) file() deviceFile {
	check := sha256.Sum256(append([]byte("fpnode/v1/master"), d.vault.master()...))
	return deviceFile{
		Version:  fileVersion,
		Identity: formatBase58(d.identity.key().Seed()),
		Public:   formatBase58(d.identity.Public()),
		Master:   formatBase58(d.vault.master()),
		Check:    formatBase58(check[:]),
	}
}

func (d device) marshal() []byte {
	b, err := json.MarshalIndent(d.file(), "", "  ")
	if err != nil {
		panic("keyring: internal error: device file: " + err.Error())
	}
	return append(b, '\n')
}

// parseDevice returns an error that quotes nothing of the file.
func parseDevice(b []byte) (device, error) {
	var f deviceFile
	if json.Unmarshal(b, &f) != nil {
		return device{}, errDamaged
	}
	if f.Version > fileVersion {
		return device{}, errNewer
	}
	seed, err1 := parseBase58(f.Identity)
	master, err2 := parseBase58(f.Master)
	if err1 != nil || err2 != nil || len(seed) != 32 || len(master) != 32 {
		return device{}, errDamaged
	}
	d := deviceOf([32]byte(seed), [32]byte(master))
	if !bytes.Equal(d.marshal(), b) {
		return device{}, errDamaged
	}
	return d, nil
}
