package blockstore

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"

	"github.com/ipfs/go-cid"

	"fpnode/internal/car"
)

// CAR is a sealed CAR whose every check has passed: the only thing that Commit stores. Make one with Pack, Accept or
// AcceptPlain. It holds the sealed and the plain bytes, so about twice its size in memory.
type CAR struct {
	Ref Ref

	sealed  []byte
	leaves  []byte     // digests of the wire leaves
	nodes   []wireNode // dag-pb nodes over them, none up to 1 MiB
	keyID   [32]byte
	dataOff int64 // of the ciphertext within sealed

	roots     []cid.Cid
	sections  []car.Section
	header    car.Header
	hasHeader bool
}

// Header is the Fireproof header, which a data CAR, pack or border has and a file CAR or later part of a group has not.
func (c CAR) Header() (car.Header, bool) { return c.header, c.hasHeader }

// Roots are the roots that the CAR names. Those of a file CAR may not be in it.
func (c CAR) Roots() []cid.Cid { return c.roots }

// Blocks are the blocks in their order, the header block among them. The caller must not change their bytes.
func (c CAR) Blocks() []car.Section { return c.sections }

// Sealed is the sealed bytes, what other nodes get. The caller must not change them.
func (c CAR) Sealed() []byte { return c.sealed }

// Pack makes a CAR of blocks, seals it, and checks the result as if a stranger had sent it. The peak memory is the
// blocks, the plain CAR and the sealed CAR together.
func (l *Ledger) Pack(roots []cid.Cid, blocks []car.Block) (CAR, error) {
	if len(blocks) > MaxBlocks {
		return CAR{}, fmt.Errorf("packing a CAR: %w", limitf("%d blocks", len(blocks)))
	}
	n := car.Size(roots, blocks)
	if n > MaxFileCARBytes {
		return CAR{}, fmt.Errorf("packing a CAR: %w", limitf("%d bytes", n))
	}
	return l.AcceptPlain(car.Append(make([]byte, 0, n), roots, blocks))
}

// AcceptPlain verifies a plaintext CAR, such as one of a ledger without encryption, and seals it under this ledger's
// key. The caller must not change plain afterwards. The error is an *AcceptError.
func (l *Ledger) AcceptPlain(plain []byte) (CAR, error) {
	c := CAR{Ref: Ref{Name: NameOf(plain)}}
	if err := c.read(plain); err != nil {
		return CAR{}, err
	}
	sealed, err := l.sealer.Seal(plain)
	if err != nil {
		return CAR{}, fmt.Errorf("sealing a CAR: %w", err)
	}
	// The self check: a fault of memory or of the sealer must not become durable, or worse, be sent to others.
	opened, err := c.open(l.sealer, sealed)
	if err != nil {
		return CAR{}, fmt.Errorf("checking a CAR just sealed: %w", err)
	}
	if !bytes.Equal(opened, plain) {
		return CAR{}, errors.New("checking a CAR just sealed: it opens to other bytes")
	}
	c.name(sealed)
	if err := c.limit(); err != nil {
		return CAR{}, &AcceptError{Check: "limit", Ref: c.Ref, Err: err}
	}
	return c, nil
}

// Accept verifies a sealed CAR that is said to be ref, trusting nothing:
//
//	limit     the size, here and inside
//	wire      ref.Size and ref.Wire are those of sealed
//	envelope  sealed is a Fireproof envelope
//	key       it names a key of this ledger
//	tag       the key authenticates it
//	iv        its IV follows from the plaintext
//	name      ref.Name is the hash of the plaintext
//	block     every block is the one its CID names, and nothing stands between them
//	header    the header block, if there is one, is well-formed
//	root      the only root is the header block, or, without a header, the first block, or all roots are raw blocks
//
// The first that fails is named in the *AcceptError. A ref without Wire or Name (both may come from a directory where
// only one is known) takes those of the CAR. A name of Fireproof 0.19, which hashes the sealed file, is compared with
// that and replaced by the plaintext's.
//
// The caller must not change sealed afterwards. The peak memory is sealed and the plaintext, twice the size.
func (l *Ledger) Accept(ref Ref, sealed []byte) (CAR, error) {
	refuse := func(check string, err error) (CAR, error) {
		return CAR{}, &AcceptError{Check: check, Ref: ref, Err: err}
	}
	if len(sealed) > MaxFileCARBytes {
		return refuse("limit", limitf("%d bytes", len(sealed)))
	}
	c := CAR{}
	c.name(sealed)
	if ref.Size != 0 && ref.Size != c.Ref.Size {
		return refuse("wire", fmt.Errorf("%d bytes, not %d", c.Ref.Size, ref.Size))
	}
	if ref.Wire.Defined() && ref.Wire != c.Ref.Wire {
		return refuse("wire", errors.New("the sealed bytes have another hash"))
	}
	plain, err := c.open(l.sealer, sealed)
	if err != nil {
		var ae *AcceptError
		if errors.As(err, &ae) {
			ae.Ref = ref
		}
		return CAR{}, err
	}
	c.Ref.Name = NameOf(plain)
	switch {
	case !ref.Name.Defined():
	case ref.Name.Type() == car.CodecName019:
		sum := sha256.Sum256(sealed)
		if d, ok := digest(ref.Name.Cid); !ok || d != string(sum[:]) {
			return refuse("name", errors.New("the file has another hash"))
		}
	case ref.Name != c.Ref.Name:
		return refuse("name", errors.New("the plaintext has another hash"))
	}
	if err := c.read(plain); err != nil {
		var ae *AcceptError
		if errors.As(err, &ae) {
			ae.Ref = ref
		}
		return CAR{}, err
	}
	if err := c.limit(); err != nil {
		return refuse("limit", err)
	}
	return c, nil
}

// Open opens the envelope of a CAR under this ledger's keys and checks key, tag and IV. What is inside is not looked
// at; Accept checks everything.
func (l *Ledger) Open(sealed []byte) (plain []byte, err error) { return l.sealer.Open(sealed) }

// name fills in what follows from the sealed bytes.
func (c *CAR) name(sealed []byte) {
	c.sealed = sealed
	c.leaves = wireLeaves(sealed)
	c.Ref.Size = int64(len(sealed))
	c.nodes, c.Ref.Wire = wireTree(c.leaves, c.Ref.Size)
}

// open opens the envelope and remembers where its parts are.
func (c *CAR) open(s Sealer, sealed []byte) ([]byte, error) {
	keyID, iv, dataOff, dataLen, err := s.Inspect(sealed)
	if err != nil {
		return nil, &AcceptError{Check: "envelope", Err: err}
	}
	// The key id is the end of every envelope (Fireproof format). Replay relies on it.
	if dataOff < 0 || dataLen < 0 || dataOff+dataLen > int64(len(sealed)) || !bytes.HasSuffix(sealed, keyID[:]) {
		return nil, &AcceptError{Check: "envelope", Err: errors.New("its parts are not where they belong")}
	}
	plain, err := s.Open(sealed)
	if err != nil {
		check := "tag"
		var named interface{ Check() string }
		if errors.As(err, &named) {
			check = named.Check()
		}
		return nil, &AcceptError{Check: check, Err: err}
	}
	// Block reads derive the IV from the name instead of storing it.
	sum := sha256.Sum256(plain)
	if ivOf(string(sum[:])) != iv {
		return nil, &AcceptError{Check: "iv", Err: errors.New("the IV does not follow from the plaintext")}
	}
	c.keyID, c.dataOff = keyID, dataOff
	return plain, nil
}

// read takes the plaintext apart.
func (c *CAR) read(plain []byte) error {
	refuse := func(check string, err error) error {
		if errors.Is(err, car.ErrLimit) {
			check = "limit"
		}
		return &AcceptError{Check: check, Ref: c.Ref, Err: err}
	}
	var err error
	if c.roots, c.sections, err = car.Read(plain); err != nil {
		return refuse("block", err)
	}
	if len(c.roots) == 0 {
		return refuse("root", errors.New("no root"))
	}
	if len(c.sections) > 0 && c.sections[0].CID == c.roots[0] {
		c.header, c.hasHeader, err = readHeader(c.sections[0].Block)
		if err != nil {
			return refuse("header", err)
		}
		if len(c.roots) > 1 {
			if c.hasHeader {
				return refuse("root", fmt.Errorf("%d roots beside a header", len(c.roots)))
			}
		} else {
			return nil
		}
	}
	for _, r := range c.roots {
		if !fileCodec(r) {
			return refuse("root", errors.New("a root is neither the first block nor a file"))
		}
	}
	return nil
}

// fileCodec reports whether a root is the content of a file: raw, or the UnixFS that Fireproof 0.19 made of large ones.
func fileCodec(c cid.Cid) bool { return c.Type() == cid.Raw || c.Type() == cid.DagProtobuf }

// readHeader tells a header block from any other: it is a DAG-CBOR map whose only key is "fp".
func readHeader(b car.Block) (car.Header, bool, error) {
	if b.CID.Type() != cid.DagCBOR || !bytes.HasPrefix(b.Data, []byte{0xa1, 0x62, 'f', 'p'}) {
		return car.Header{}, false, nil
	}
	h, err := car.DecodeHeader(b.Data)
	return h, err == nil, err
}

// limit is the bound on what must be held in memory to be merged: all but attached files.
func (c *CAR) limit() error {
	if c.Ref.Size <= MaxCARBytes {
		return nil
	}
	if len(c.roots) > 0 && fileCodec(c.roots[0]) && !c.hasHeader {
		return nil
	}
	return limitf("%d bytes", c.Ref.Size)
}
