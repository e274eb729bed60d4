package blockstore_test

import (
	"bytes"
	"crypto/sha256"
	"math/rand/v2"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/ipfs/go-cid"

	"fpnode/blockstore"
)

// The names are those that boxo 0.43 (ipld/unixfs/importer/balanced: 174 links, raw leaves of 1 MiB, CIDv1) gives to
// files of the bytes 0 to 250, repeated. `ipfs add --cid-version=1 --raw-leaves --chunker=size-1048576` is that.
func TestWireNamesAreThoseOfIPFSAdd(t *testing.T) {
	const leaf = 1 << 20
	all := make([]byte, 174*leaf+1)
	for i := range min(len(all), 251) {
		all[i] = byte(i)
	}
	for done := 251; done < len(all); done *= 2 {
		copy(all[done:], all[:done])
	}
	for _, tt := range []struct {
		size int
		want string
	}{
		{0, "bafkreihdwdcefgh4dqkjv67uzcmw7ojee6xedzdetojuzjevtenxquvyku"},
		{1, "bafkreidogqfzz75tpkmjzjke425xqcrmpcib2p5tg44hnbirumdbpl5adu"},
		{leaf, "bafkreidddocae7lltzjlkooe5a3tmiwsgazn7logjvqk7bzttsidpzhxne"},
		{leaf + 1, "bafybeidjogjfwuhbzwopgd4bn3skcf5m6oz72xshywcndzxgqb623nfclu"},
		{2 * leaf, "bafybeihakzyqh6ih4iwgqily25hqovthaujdkbcfybornyhhbpoa63jwri"},
		{5*leaf - 7, "bafybeicn46wj7fueyglivuflxihfxd57fggykypw4lvruhhj26s6jfmk2u"},
		{174 * leaf, "bafybeieq7vmtajvffxyv5fa7bj3demekby7wz3u55iron6zh4hmo55shtu"},
		{174*leaf + 1, "bafybeid6rnwk4p26rnpm2hptfa2b4liiadd5ctskfacvpzysk63bquyzte"}, // two levels, the second node with one link
	} {
		if got := blockstore.WireOf(all[:tt.size]).String(); got != tt.want {
			t.Errorf("WireOf(%d bytes) = %s, want %s", tt.size, got, tt.want)
		}
	}
}

// A CAR over 1 MiB is served to bitswap in pieces, from the one copy in the segment.
func TestLargeCARIsServedInPieces(t *testing.T) {
	fs := vfs.NewMem()
	s := openStore(t, config(fs))
	l := openLedger(t, s, 1)
	fill(t, l, 1, 2)
	c := dataCAR(t, l, block(rand.New(rand.NewPCG(1, 1)), 3<<20+12345), block(rand.New(rand.NewPCG(1, 2)), 50))
	mustCommit(t, l, c)
	if err := verify(s, l, &c); err != nil {
		t.Fatal(err)
	}
	if c.Ref.Wire.Type() != cid.DagProtobuf {
		t.Fatalf("wire name of %d bytes is %s", c.Ref.Size, c.Ref.Wire)
	}
	root, err := s.WireBlock(c.Ref.Wire.Hash())
	if err != nil {
		t.Fatal(err)
	}
	var file []byte
	for _, link := range dagPBLinks(t, root) {
		leaf, err := s.WireBlock(link.Hash())
		if err != nil {
			t.Fatal(err)
		}
		if n, err := s.WireSize(link.Hash()); err != nil || n != int64(len(leaf)) {
			t.Errorf("WireSize = %d, %v; want %d", n, err, len(leaf))
		}
		file = append(file, leaf...)
	}
	if !bytes.Equal(file, c.Sealed()) {
		t.Error("the leaves are not the sealed CAR")
	}
	// No second copy: the disk holds it once, and a little.
	info, err := fs.Stat(home + "/ledgers/" + blockstore.LedgerText(ledgerID(1)) + "/000001.seg")
	if err != nil {
		t.Fatal(err)
	}
	if extra := info.Size() - c.Ref.Size; extra > 8<<10 {
		t.Errorf("the segment has %d bytes beside the CAR", extra)
	}
}

// dagPBLinks reads the CIDs out of a node (dag-pb: field 2 is a link, its field 1 the CID).
func dagPBLinks(t *testing.T, node []byte) []cid.Cid {
	t.Helper()
	var links []cid.Cid
	for len(node) > 2 && node[0] == 0x12 {
		link := node[2 : 2+int(node[1])]
		_, c, err := cid.CidFromBytes(link[2 : 2+int(link[1])])
		if err != nil {
			t.Fatal(err)
		}
		links = append(links, c)
		node = node[2+int(node[1]):]
	}
	return links
}

// Two ledgers with one key hold the same sealed bytes; either serves them when the other is gone.
func TestWireBlockOfTwoLedgers(t *testing.T) {
	s := openStore(t, config(vfs.NewMem()))
	a, b := openLedger(t, s, 1), openLedger(t, s, 2)
	fill(t, a, 1, 3)
	cars := fill(t, b, 1, 3)
	if err := s.Drop(ledgerID(1)); err != nil {
		t.Fatal(err)
	}
	for i := range cars {
		if err := verify(s, b, &cars[i]); err != nil {
			t.Error(err)
		}
	}
	if _, err := a.Block(ctx, cars[0].Blocks()[0].CID); err == nil {
		t.Error("a dropped ledger still reads")
	}
	if err := s.Drop(ledgerID(2)); err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(cars[0].Sealed())
	if _, err := s.WireBlock(append([]byte{0x12, 0x20}, sum[:]...)); err == nil {
		t.Error("both ledgers are gone, but their wire block is served")
	}
}
