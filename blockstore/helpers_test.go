package blockstore_test

import (
	"bytes"
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/ipfs/go-cid"
	"github.com/multiformats/go-multibase"

	"fpnode/blockstore"
	"fpnode/internal/car"
	"fpnode/internal/dagcbor"
	"fpnode/keyring"
)

var ctx = context.Background()

// vault derives keys from one that never changes, so that homes can be opened again.
type vault struct{}

func (vault) FileCipher(nonce [32]byte) (cipher.Block, error) {
	k := sha256.Sum256(append([]byte("file"), nonce[:]...))
	return aes.NewCipher(k[:])
}

func (vault) RecordAEAD(salt [32]byte) (cipher.AEAD, error) {
	k := sha256.Sum256(append([]byte("record"), salt[:]...))
	b, err := aes.NewCipher(k[:])
	if err != nil {
		return nil, err
	}
	return cipher.NewGCM(b)
}

// key is the key of every ledger in these tests.
var key = func() keyring.Key {
	key, err := keyring.NewKey()
	if err != nil {
		panic(err)
	}
	return key
}()

var keys = func() *keyring.Keys {
	k, err := keyring.NewKeys(key)
	if err != nil {
		panic(err)
	}
	return k
}()

// rawKey is the bytes of key.
func rawKey(t testing.TB) []byte {
	t.Helper()
	_, raw, err := multibase.Decode(key.Export())
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

func ledgerID(n byte) [32]byte { return [32]byte{n, 1, 2, 3} }

const home = "/home"

func config(fs vfs.FS) blockstore.Config {
	return blockstore.Config{FS: fs, Dir: home, Vault: vault{}, CacheBytes: 1 << 20}
}

// openStore opens a home that is closed when the test ends.
func openStore(t testing.TB, cfg blockstore.Config) *blockstore.Store {
	t.Helper()
	s, err := blockstore.Open(cfg)
	if err != nil {
		t.Fatalf("Open: %v", err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	})
	return s
}

func openLedger(t testing.TB, s *blockstore.Store, n byte) *blockstore.Ledger {
	t.Helper()
	l, err := s.Ledger(ledgerID(n), keys)
	if err != nil {
		t.Fatalf("Ledger: %v", err)
	}
	return l
}

// block is a DAG-CBOR block of about size bytes.
func block(rng *rand.Rand, size int) car.Block {
	b := make([]byte, size)
	for i := range b {
		b[i] = byte(rng.Uint32())
	}
	data := dagcbor.AppendBytes(nil, b)
	return car.Block{CID: dagcbor.Sum(data), Data: data}
}

// rawBlock is a raw block, as attached files are.
func rawBlock(data []byte) car.Block {
	return car.Block{CID: dagcbor.SumCodec(cid.Raw, data), Data: data}
}

// dataCAR packs blocks under a Fireproof header.
func dataCAR(t testing.TB, l *blockstore.Ledger, blocks ...car.Block) blockstore.CAR {
	t.Helper()
	c, err := packData(l, blocks...)
	if err != nil {
		t.Fatalf("Pack: %v", err)
	}
	return c
}

func packData(l *blockstore.Ledger, blocks ...car.Block) (blockstore.CAR, error) {
	var head []cid.Cid
	if len(blocks) > 0 {
		head = []cid.Cid{blocks[len(blocks)-1].CID}
	}
	header := car.Header{Head: head, HasHead: true}.Encode()
	all := append([]car.Block{{CID: dagcbor.Sum(header), Data: header}}, blocks...)
	return l.Pack([]cid.Cid{all[0].CID}, all)
}

func tipCIDs(l *blockstore.Ledger) []cid.Cid {
	var list []cid.Cid
	for _, m := range l.Tips() {
		list = append(list, m.CID)
	}
	return list
}

// commitCAR commits one CAR and makes its meta the only tip.
func commitCAR(l *blockstore.Ledger, c blockstore.CAR) error {
	old := tipCIDs(l)
	m := blockstore.NewMeta([]blockstore.Ref{c.Ref}, old)
	return l.Commit(ctx, old, blockstore.Batch{CARs: []blockstore.CAR{c}, Tips: []blockstore.Meta{m}})
}

func mustCommit(t testing.TB, l *blockstore.Ledger, c blockstore.CAR) {
	t.Helper()
	if err := commitCAR(l, c); err != nil {
		t.Fatalf("Commit: %v", err)
	}
}

// fill makes n commits of a few small blocks each and returns the CARs.
func fill(t testing.TB, l *blockstore.Ledger, seed uint64, n int) []blockstore.CAR {
	t.Helper()
	rng := rand.New(rand.NewPCG(seed, 1))
	var cars []blockstore.CAR
	for range n {
		c := dataCAR(t, l, block(rng, 100+rng.IntN(400)), block(rng, 50))
		mustCommit(t, l, c)
		cars = append(cars, c)
	}
	return cars
}

// verify reads all of a CAR back in every way there is.
func verify(s *blockstore.Store, l *blockstore.Ledger, c *blockstore.CAR) error {
	ref, ok, err := l.Ref(c.Ref.Name)
	if err != nil || !ok || ref != c.Ref {
		return fmt.Errorf("Ref: %v, %v, %v; want %v", ref, ok, err, c.Ref)
	}
	if ref, ok, err = l.RefByWire(c.Ref.Wire); err != nil || !ok || ref != c.Ref {
		return fmt.Errorf("RefByWire: %v, %v, %v; want %v", ref, ok, err, c.Ref)
	}
	if !l.Known(c.Ref.Name) {
		return errors.New("Known: false")
	}
	sealed, err := l.Sealed(ctx, c.Ref)
	if err != nil {
		return err
	}
	if !bytes.Equal(sealed, c.Sealed()) {
		return errors.New("Sealed: other bytes")
	}
	var want []cid.Cid
	for _, b := range c.Blocks() {
		want = append(want, b.CID)
		got, err := l.Block(ctx, b.CID)
		if err != nil {
			return err
		}
		if !bytes.Equal(got, b.Data) {
			return fmt.Errorf("Block(%s): other bytes", b.CID)
		}
		if has, err := l.Has(b.CID); err != nil || !has {
			return fmt.Errorf("Has(%s): %v, %v", b.CID, has, err)
		}
		if n, err := l.Size(b.CID); err != nil || n != int64(len(b.Data)) {
			return fmt.Errorf("Size(%s): %v, %v", b.CID, n, err)
		}
	}
	list, err := l.BlocksOf(ctx, c.Ref.Name)
	if err != nil || !slices.Equal(list, want) {
		return fmt.Errorf("BlocksOf: %v, %v; want %v", list, err, want)
	}
	w, err := s.WireBlock(c.Ref.Wire.Hash())
	if err != nil {
		return err
	}
	if n, err := s.WireSize(c.Ref.Wire.Hash()); err != nil || n != int64(len(w)) {
		return fmt.Errorf("WireSize: %v, %v; want %d", n, err, len(w))
	}
	if c.Ref.Size <= 1<<20 && !bytes.Equal(w, sealed) {
		return errors.New("WireBlock: other bytes")
	}
	return nil
}

func logInto(w io.Writer) *slog.Logger { return slog.New(slog.NewTextHandler(w, nil)) }
