package blockstore_test

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/sha256"
	"errors"
	"math/rand/v2"
	"runtime"
	"slices"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/ipfs/go-cid"

	"fpnode/blockstore"
	"fpnode/internal/car"
	"fpnode/internal/dagcbor"
	"fpnode/keyring"
)

func wantCheck(t *testing.T, err error, check string) {
	t.Helper()
	var ae *blockstore.AcceptError
	if !errors.As(err, &ae) {
		t.Errorf("error is %v, want an *AcceptError of the %s check", err, check)
	} else if ae.Check != check {
		t.Errorf("the %s check refused (%v), want the %s check", ae.Check, err, check)
	}
}

// refOf is the ref of any bytes, true to them as far as they can be read.
func refOf(sealed []byte) blockstore.Ref {
	ref := blockstore.Ref{Wire: blockstore.WireOf(sealed), Size: int64(len(sealed))}
	if plain, err := keys.Open(sealed); err == nil {
		ref.Name = blockstore.NameOf(plain)
	}
	return ref
}

// TestAcceptNamesTheCheck breaks one thing at a time, with all that depends on it made to fit, so that one check and no
// other can find it.
func TestAcceptNamesTheCheck(t *testing.T) {
	s := openStore(t, config(vfs.NewMem()))
	l := openLedger(t, s, 1)
	rng := rand.New(rand.NewPCG(1, 1))
	doc, file := block(rng, 200), rawBlock([]byte("a file"))
	header := func(meta string) car.Block {
		b := car.Header{Head: []cid.Cid{doc.CID}, HasHead: true}.Encode()
		if meta != "" {
			b = []byte(meta)
		}
		return car.Block{CID: dagcbor.Sum(b), Data: b}
	}
	h := header("")
	plainCAR := func(roots []cid.Cid, blocks ...car.Block) []byte { return car.Append(nil, roots, blocks) }
	good := plainCAR([]cid.Cid{h.CID}, h, doc)
	seal := func(plain []byte) []byte {
		sealed, err := keys.Seal(plain)
		if err != nil {
			t.Fatal(err)
		}
		return sealed
	}
	flip := func(b []byte, i int) []byte {
		b = bytes.Clone(b)
		b[i] ^= 1
		return b
	}
	sealed := seal(good)
	_, _, dataOff, dataLen, err := keys.Inspect(sealed)
	if err != nil {
		t.Fatal(err)
	}
	other, err := keyring.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	stranger, err := keyring.NewKeys(other)
	if err != nil {
		t.Fatal(err)
	}
	foreign, err := stranger.Seal(good)
	if err != nil {
		t.Fatal(err)
	}
	goodRef := refOf(sealed)
	flippedDoc := flip(good, len(good)-1)

	for _, tt := range []struct {
		name   string
		check  string // "" for none
		ref    blockstore.Ref
		sealed []byte
	}{
		{"good", "", goodRef, sealed},
		{"good, without a wire name", "", blockstore.Ref{Name: goodRef.Name}, sealed},
		{"good, without a name", "", blockstore.Ref{Wire: goodRef.Wire, Size: goodRef.Size}, sealed},
		{"another size", "wire", blockstore.Ref{Name: goodRef.Name, Wire: goodRef.Wire, Size: goodRef.Size + 1}, sealed},
		{"a flipped byte, wire name kept", "wire", goodRef, flip(sealed, 40)},
		{"cut off", "wire", goodRef, sealed[:len(sealed)-1]},
		{"not an envelope", "envelope", refOf(flip(sealed, 0)), flip(sealed, 0)},
		{"envelope cut off", "envelope", refOf(sealed[:len(sealed)-1]), sealed[:len(sealed)-1]},
		{"empty", "envelope", refOf(nil), nil},
		{"key id flipped", "key", refOf(flip(sealed, len(sealed)-1)), flip(sealed, len(sealed)-1)},
		{"sealed under another ledger's key", "key", refOf(foreign), foreign},
		{"ciphertext flipped", "tag", refOf(flip(sealed, int(dataOff))), flip(sealed, int(dataOff))},
		{"tag flipped", "tag", refOf(flip(sealed, int(dataOff+dataLen))), flip(sealed, int(dataOff+dataLen))},
		{"iv flipped", "tag", refOf(flip(sealed, 5)), flip(sealed, 5)},
		{"sealed with a random iv", "iv", blockstore.Ref{Name: goodRef.Name}, sealWithIV(t, good, [12]byte{1, 2, 3})},
		{"another CAR under the name", "name", blockstore.Ref{Name: goodRef.Name}, seal(plainCAR([]cid.Cid{h.CID}, h))},
		{"a block flipped", "block", refOf(seal(flippedDoc)), seal(flippedDoc)},
		{"bytes after the last block", "block", refOf(seal(append(bytes.Clone(good), 1))), seal(append(bytes.Clone(good), 1))},
		{"not a CAR", "block", refOf(seal([]byte("hello"))), seal([]byte("hello"))},
		{"header with an unknown field", "header", blockstore.Ref{}, func() []byte {
			bad := header("\xa1\x62fp\xa1\x61x\x01")
			return seal(plainCAR([]cid.Cid{bad.CID}, bad, doc))
		}()},
		{"no root", "root", blockstore.Ref{}, seal(plainCAR(nil, h, doc))},
		{"root that is not there", "root", blockstore.Ref{}, seal(plainCAR([]cid.Cid{h.CID}, doc))},
		{"root that is not first", "root", blockstore.Ref{}, seal(plainCAR([]cid.Cid{h.CID}, doc, h))},
		{"second root beside the header", "root", blockstore.Ref{}, seal(plainCAR([]cid.Cid{h.CID, doc.CID}, h, doc))},
		{"a part without header", "", blockstore.Ref{}, seal(plainCAR([]cid.Cid{doc.CID}, doc))},
		{"a file", "", blockstore.Ref{}, seal(plainCAR([]cid.Cid{file.CID}, file))},
		{"a file whose other roots are elsewhere", "", blockstore.Ref{}, seal(plainCAR([]cid.Cid{rawBlock([]byte("x")).CID, file.CID}, file))},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c, err := l.Accept(tt.ref, tt.sealed)
			if tt.check != "" {
				wantCheck(t, err, tt.check)
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if want := refOf(tt.sealed); c.Ref != want {
				t.Errorf("Ref = %v, want %v", c.Ref, want)
			}
			old := tipCIDs(l)
			if err := l.Commit(ctx, old, blockstore.Batch{CARs: []blockstore.CAR{c}}); err != nil {
				t.Fatal(err)
			}
			if err := verify(s, l, &c); err != nil {
				t.Error(err)
			}
		})
	}
}

// sealWithIV seals as Fireproof does, but for the IV.
func sealWithIV(t *testing.T, plain []byte, iv [12]byte) []byte {
	t.Helper()
	raw := rawKey(t)
	b, err := aes.NewCipher(raw)
	if err != nil {
		t.Fatal(err)
	}
	gcm, err := cipher.NewGCM(b)
	if err != nil {
		t.Fatal(err)
	}
	id := sha256.Sum256(raw)
	out := append([]byte("\xa3\x62iv\x4c"), iv[:]...)
	out = append(out, "\x64data"...)
	out = dagcbor.AppendBytes(out, gcm.Seal(nil, iv[:], plain, nil))
	out = append(out, "\x65keyId"...)
	return dagcbor.AppendBytes(out, id[:])
}

// TestAcceptEveryFlip flips every byte of a sealed CAR whose wire name is not known: some check refuses it.
func TestAcceptEveryFlip(t *testing.T) {
	s := openStore(t, config(vfs.NewMem()))
	l := openLedger(t, s, 1)
	c := dataCAR(t, l, block(rand.New(rand.NewPCG(1, 1)), 60))
	caught := map[string]int{}
	for i := range c.Sealed() {
		b := bytes.Clone(c.Sealed())
		b[i] ^= 0x10
		_, err := l.Accept(blockstore.Ref{Name: c.Ref.Name}, b)
		var ae *blockstore.AcceptError
		if !errors.As(err, &ae) {
			t.Fatalf("byte %d: %v, want an *AcceptError", i, err)
		}
		caught[ae.Check]++
	}
	for _, check := range []string{"envelope", "key", "tag"} {
		if caught[check] == 0 {
			t.Errorf("no flip was caught by the %s check: %v", check, caught)
		}
	}
}

// A directory of Fireproof 0.19 names a CAR by the hash of its file. It is stored under the name of its plaintext.
func TestAcceptName019(t *testing.T) {
	s := openStore(t, config(vfs.NewMem()))
	l := openLedger(t, s, 1)
	c := dataCAR(t, l, block(rand.New(rand.NewPCG(1, 1)), 60))
	sum := sha256.Sum256(c.Sealed())
	old := blockstore.Name{Cid: cid.NewCidV1(car.CodecName019, append([]byte{0x12, 0x20}, sum[:]...))}
	got, err := l.Accept(blockstore.Ref{Name: old}, c.Sealed())
	if err != nil {
		t.Fatal(err)
	}
	if got.Ref != c.Ref {
		t.Errorf("Ref = %v, want %v", got.Ref, c.Ref)
	}
	_, err = l.Accept(blockstore.Ref{Name: old}, dataCAR(t, l).Sealed())
	wantCheck(t, err, "name")
}

// A ledger without encryption is imported under the ledger's key.
func TestAcceptPlain(t *testing.T) {
	s := openStore(t, config(vfs.NewMem()))
	l := openLedger(t, s, 1)
	want := dataCAR(t, l, block(rand.New(rand.NewPCG(1, 1)), 60))
	plain, err := keys.Open(want.Sealed())
	if err != nil {
		t.Fatal(err)
	}
	c, err := l.AcceptPlain(plain)
	if err != nil || c.Ref != want.Ref || !bytes.Equal(c.Sealed(), want.Sealed()) {
		t.Errorf("AcceptPlain: %v, %v; want %v", c.Ref, err, want.Ref)
	}
	plain[len(plain)-1] ^= 1
	_, err = l.AcceptPlain(plain)
	wantCheck(t, err, "block")
}

// A sealer that fails in silence is found out before its work is stored.
func TestPackChecksItsOwnWork(t *testing.T) {
	s := openStore(t, config(vfs.NewMem()))
	l, err := s.Ledger(ledgerID(1), brokenSealer{keys})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := packData(l, block(rand.New(rand.NewPCG(1, 1)), 60)); err == nil {
		t.Error("Pack took what does not open")
	}
}

type brokenSealer struct{ *keyring.Keys }

func (b brokenSealer) Seal(plain []byte) ([]byte, error) {
	sealed, err := b.Keys.Seal(plain)
	sealed[30] ^= 1
	return sealed, err
}

func TestAcceptLimits(t *testing.T) {
	if testing.Short() {
		t.Skip("takes 200 MB")
	}
	s := openStore(t, config(vfs.NewMem()))
	l := openLedger(t, s, 1)
	// A data CAR may have MaxCARBytes; a file CAR more.
	file := rawBlock(make([]byte, blockstore.MaxCARBytes))
	header := car.Header{}.Encode()
	root := car.Block{CID: dagcbor.Sum(header), Data: header}
	_, err := packInPlace(l, []cid.Cid{root.CID}, root, file)
	wantCheck(t, err, "limit")
	if !errors.Is(err, blockstore.ErrLimit) {
		t.Errorf("%v is not ErrLimit", err)
	}

	if _, err := l.Pack(nil, make([]car.Block, blockstore.MaxBlocks+1)); !errors.Is(err, blockstore.ErrLimit) {
		t.Errorf("packing MaxBlocks+1 blocks: %v, want ErrLimit", err)
	}
	if _, err := l.PackWith(blockstore.MaxFileCARBytes+1, nil); !errors.Is(err, blockstore.ErrLimit) {
		t.Errorf("packing MaxFileCARBytes+1 bytes: %v, want ErrLimit", err)
	}
	if raceStride == 1 { // nobody touches the bytes, but the race detector would
		_, err = l.Accept(blockstore.Ref{}, make([]byte, blockstore.MaxFileCARBytes+1))
		wantCheck(t, err, "limit")
	}

	// Packing, committing and accepting a large file take its sealed size of memory, and a little.
	const little = 4 << 20
	var c blockstore.CAR
	grew := allocated(func() { c, err = packInPlace(l, []cid.Cid{file.CID}, file) })
	if err != nil {
		t.Fatal(err)
	}
	if c.Ref.Size <= blockstore.MaxCARBytes {
		t.Fatalf("the file CAR has %d bytes, which proves nothing", c.Ref.Size)
	}
	if grew > c.Ref.Size+little {
		t.Errorf("packing %d bytes took %d", c.Ref.Size, grew)
	}
	disk := openStore(t, blockstore.Config{Dir: t.TempDir() + "/home", Vault: vault{}})
	dl := openLedger(t, disk, 1)
	if grew := allocated(func() { mustCommit(t, dl, c) }); grew > little {
		t.Errorf("committing %d bytes took %d", c.Ref.Size, grew)
	}
	var sealed []byte
	if sealed, err = dl.Sealed(ctx, c.Ref); err != nil {
		t.Fatal(err)
	}
	if grew := allocated(func() { c, err = l.AcceptOwned(c.Ref, sealed) }); err != nil || grew > little {
		t.Errorf("accepting %d bytes took %d more, %v", len(sealed), grew, err)
	}
	if b := c.Blocks(); len(b) != 1 || b[0].CID != file.CID || !bytes.Equal(b[0].Data, file.Data) {
		t.Error("a CAR accepted in place has other blocks")
	}
	if !slices.Equal(c.CIDs(), []cid.Cid{file.CID}) {
		t.Errorf("CIDs = %v, want that of the file", c.CIDs())
	}
	if blockstore.WireOf(c.Sealed()) != c.Ref.Wire {
		t.Error("a CAR accepted in place has other sealed bytes")
	}
}

// packInPlace packs without a second copy.
func packInPlace(l *blockstore.Ledger, roots []cid.Cid, blocks ...car.Block) (blockstore.CAR, error) {
	n := car.Size(roots, blocks)
	return l.PackWith(n, func(dst []byte) error {
		if got := car.Append(dst[:0], roots, blocks); len(got) != n {
			return errors.New("another size")
		}
		return nil
	})
}

// allocated is how many bytes f allocates in all, an upper bound of what it holds at once.
func allocated(f func()) int64 {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	f()
	runtime.ReadMemStats(&after)
	return int64(after.TotalAlloc - before.TotalAlloc)
}

// What AcceptOwned refuses is what Accept refuses, for the same reason.
func TestAcceptOwnedIsAccept(t *testing.T) {
	s := openStore(t, config(vfs.NewMem()))
	l := openLedger(t, s, 1)
	good := dataCAR(t, l, block(rand.New(rand.NewPCG(1, 1)), 60))
	for i := range good.Sealed() {
		b := bytes.Clone(good.Sealed())
		b[i] ^= 0x10
		_, want := l.Accept(blockstore.Ref{Name: good.Ref.Name}, b)
		_, got := l.AcceptOwned(blockstore.Ref{Name: good.Ref.Name}, b)
		if got == nil || got.Error() != want.Error() {
			t.Fatalf("byte %d: AcceptOwned: %v, Accept: %v", i, got, want)
		}
	}
	c, err := l.AcceptOwned(good.Ref, bytes.Clone(good.Sealed()))
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(c.Sealed(), good.Sealed()) {
		t.Error("other sealed bytes")
	}
	mustCommit(t, l, c)
	if err := verify(s, l, &good); err != nil {
		t.Error(err)
	}
}
