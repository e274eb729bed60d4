package keyring

import (
	"errors"
	"fmt"
	"strings"
	"syscall"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// The memory of this is never touched, and so never really there, but for a page at each end. It comes
// from the system, since the race detector touches what the heap gives.
func TestMaxPlainBytes(t *testing.T) {
	memory, err := syscall.Mmap(-1, 0, MaxSealedBytes+1, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_ANON|syscall.MAP_PRIVATE)
	if err != nil {
		t.Fatal(err)
	}
	defer syscall.Munmap(memory)
	keys := mustKeys(t, mustKey(t, sequence(16)))
	if _, err := keys.Seal(memory[:MaxPlainBytes+1]); err != ErrTooLarge {
		t.Errorf("sealing one byte too many: %v", err)
	}
	sealed := memory
	head := appendFrameHead(sealed[:0], [12]byte{}, MaxPlainBytes+tagBytes)
	if frameBytes(MaxPlainBytes) != MaxSealedBytes {
		t.Fatalf("an envelope of MaxPlainBytes has %d bytes, not MaxSealedBytes", frameBytes(MaxPlainBytes))
	}
	copy(sealed[len(head)+MaxPlainBytes+tagBytes:], frameKeyID)
	if e, err := ParseEnvelope(sealed[:MaxSealedBytes]); err != nil || e.DataLen != MaxPlainBytes {
		t.Errorf("the largest envelope: %d, %v", e.DataLen, err)
	}
	appendFrameHead(sealed[:0], [12]byte{}, MaxPlainBytes+1+tagBytes)
	copy(sealed[len(head)+MaxPlainBytes+1+tagBytes:], frameKeyID)
	if _, err := ParseEnvelope(sealed); err != ErrEnvelope {
		t.Errorf("one byte larger: %v", err)
	}
}

func TestMaxKeyTextBytes(t *testing.T) {
	if n := len(mustKey(t, []byte(strings.Repeat("\xff", 32))).Export()); n > MaxKeyTextBytes {
		t.Errorf("a key has %d characters", n)
	}
	if _, err := parseBase58("z" + strings.Repeat("1", MaxKeyTextBytes-1)); err != nil {
		t.Errorf("at the limit: %v", err)
	}
	if _, err := parseBase58("z" + strings.Repeat("1", MaxKeyTextBytes)); err == nil {
		t.Error("above the limit: accepted")
	}
}

func TestMaxKeys(t *testing.T) {
	r := openRing(t, vfs.NewMem(), "keys")
	keys := make([]Key, MaxKeys)
	for i := range keys {
		keys[i] = newKey(t)
	}
	if _, err := r.Create(strings.Repeat("n", MaxNameBytes), keys); err != nil {
		t.Fatalf("at the limit: %v", err)
	}
	name := r.Ledgers()[0].Name
	if err := r.AddKey(name, newKey(t), true); err == nil {
		t.Error("above the limit: accepted")
	}
	if err := r.AddKey(name, keys[7], true); err != nil {
		t.Errorf("a key that is there: %v", err)
	}
	if n := len(appendLedger(nil, name, r.Ledgers()[0].Keys.set.Load())); n > MaxKeyFileBytes {
		t.Errorf("the largest key file has %d bytes", n)
	}
}

func TestMaxKeyFileBytes(t *testing.T) {
	fsys := vfs.NewMem()
	item := string(appendKeyItem(nil, "@x-data@", mustKeys(t, newKey(t)).set.Load()))
	fits := item + strings.Repeat(" ", MaxKeyFileBytes-len(item))
	writeFiles(t, fsys, map[string][]byte{"fits/_x_data_.json": []byte(fits), "over/_x_data_.json": []byte(fits + " ")})
	if _, err := ReadBag(fsys, "fits", "x"); err != nil {
		t.Errorf("at the limit: %v", err)
	}
	var file *FileError
	if _, err := ReadBag(fsys, "over", "x"); !errors.As(err, &file) {
		t.Errorf("above the limit: %v", err)
	}
}

func TestMaxLedgers(t *testing.T) {
	fsys := vfs.NewMem()
	openRing(t, fsys, "keys")
	key := mustKey(t, sequence(16))
	write := func(i int) {
		other := *key.s()
		other.raw = append([]byte{byte(i), byte(i >> 8)}, other.raw[2:]...)
		one := mustKey(t, other.raw)
		path := "keys/" + FormatID(IDOf(one.Fingerprint())) + ".json"
		if _, err := replaceFile(fsys, path, appendLedger(nil, fmt.Sprint(i), mustKeys(t, one).set.Load())); err != nil {
			t.Fatal(err)
		}
	}
	for i := range MaxLedgers {
		write(i)
	}
	r := openRing(t, fsys, "keys")
	if _, err := r.Create("one more", nil); err == nil || len(r.Ledgers()) != MaxLedgers {
		t.Errorf("%d ledgers, and one more: %v", len(r.Ledgers()), err)
	}
	write(MaxLedgers)
	var file *FileError
	if _, err := Open(fsys, "keys"); !errors.As(err, &file) {
		t.Errorf("above the limit: %v", err)
	}
}

func TestMaxBagFiles(t *testing.T) {
	fsys := vfs.NewMem()
	if err := WriteBag(fsys, "bag", "x", mustKeys(t, newKey(t))); err != nil {
		t.Fatal(err)
	}
	for i := range MaxBagFiles {
		if i == MaxBagFiles-1 {
			bag := &Bag{fsys, "bag"}
			if names, err := bag.Ledgers(); err != nil || len(names) != 1 {
				t.Errorf("at the limit: %v, %v", names, err)
			}
		}
		f, err := fsys.Create(fmt.Sprintf("bag/%d", i), vfs.WriteCategoryUnspecified)
		if err != nil {
			t.Fatal(err)
		}
		f.Close()
	}
	bag := &Bag{fsys, "bag"}
	if _, err := bag.Ledgers(); err == nil {
		t.Error("above the limit: accepted")
	}
	if _, err := bag.Keys("x"); err != nil {
		t.Errorf("one ledger's keys need no listing: %v", err)
	}
}

// MaxNameBytes is tested by TestCheckName.

func TestMaxDomainBytes(t *testing.T) {
	identity := deviceOf([32]byte{}, [32]byte{}).identity
	identity.Sign(strings.Repeat("d", MaxDomainBytes), nil)
	for _, domain := range []string{"", strings.Repeat("d", MaxDomainBytes+1)} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("a domain of %d bytes: signed", len(domain))
				}
			}()
			identity.Sign(domain, nil)
		}()
	}
}
