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
// their variants. One of Pack, Accept or AcceptPlain holds the sealed and the plain bytes, twice its size; one of
// PackWith or AcceptOwned only the sealed.
type CAR struct {
	Ref Ref

	sealed  []byte
	leaves  []byte     // digests of the wire leaves
	nodes   []wireNode // dag-pb nodes over them, none up to 1 MiB
	sealer  Sealer
	keyID   [32]byte
	iv      [12]byte
	dataOff int64 // of the ciphertext within sealed
	dataLen int64 // of the plaintext

	roots     []cid.Cid
	blocks    []recordBlock
	plain     []byte        // nil if only the sealed bytes are held
	sections  []car.Section // of plain
	header    car.Header
	hasHeader bool
}

// Header is the Fireproof header, which a data CAR, pack or border has and a file CAR or later part of a group has not.
func (c CAR) Header() (car.Header, bool) { return c.header, c.hasHeader }

// Roots are the roots that the CAR names. Those of a file CAR may not be in it.
func (c CAR) Roots() []cid.Cid { return c.roots }

// CIDs name the blocks in their order, the header block among them.
func (c CAR) CIDs() []cid.Cid {
	list := make([]cid.Cid, len(c.blocks))
	for i := range c.blocks {
		list[i] = c.blocks[i].cid()
	}
	return list
}

// Blocks are the blocks in their order, the header block among them. The caller must not change their bytes. If the CAR
// holds no plaintext it is decrypted, and its size in memory is the caller's until the result is let go.
func (c CAR) Blocks() []car.Section {
	if c.plain != nil {
		return c.sections
	}
	plain := bytes.Clone(c.sealed[c.dataOff : c.dataOff+c.dataLen])
	if err := c.sealer.DecryptAt(c.keyID, c.iv, 0, plain); err != nil {
		panic("blockstore: internal error: a CAR that was opened does not open: " + err.Error())
	}
	list := make([]car.Section, len(c.blocks))
	for i := range c.blocks {
		b := &c.blocks[i]
		end := b.off + b.size
		list[i] = car.Section{Block: car.Block{CID: b.cid(), Data: plain[b.off:end:end]}, Offset: b.off}
	}
	return list
}

// Sealed is the sealed bytes, what other nodes get. The caller must not change them.
func (c CAR) Sealed() []byte { return c.sealed }

// Pack makes a CAR of blocks, seals it, and checks the result as if a stranger had sent it. The peak memory is the
// blocks, the plain CAR, the sealed CAR, and the copy that is opened to check it.
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

// PackWith is Pack of a plain CAR of n bytes that fill writes. The peak memory is the sealed CAR, n bytes and a little,
// so this is how a large file is packed. An error of fill is returned as it is.
func (l *Ledger) PackWith(n int, fill func(plain []byte) error) (CAR, error) {
	if n > MaxFileCARBytes {
		return CAR{}, fmt.Errorf("packing a CAR: %w", limitf("%d bytes", n))
	}
	sealed, err := l.sealer.SealWith(n, fill)
	if err != nil {
		return CAR{}, err
	}
	return l.AcceptOwned(Ref{}, sealed)
}

// AcceptPlain verifies a plaintext CAR, such as one of a ledger without encryption, and seals it under this ledger's
// key. The caller must not change plain afterwards. The error is an *AcceptError.
func (l *Ledger) AcceptPlain(plain []byte) (CAR, error) {
	sealed, err := l.sealer.Seal(plain)
	if err != nil {
		return CAR{}, fmt.Errorf("sealing a CAR: %w", err)
	}
	// The self check: a fault of memory or of the sealer must not become durable, or worse, be sent to others.
	return l.Accept(Ref{Name: NameOf(plain)}, sealed)
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
//	root      the only root is the header block, or, without a header, the first block, or all roots are files: raw
//	          blocks, or the UnixFS that Fireproof 0.19 made of large ones
//
// The first that fails is named in the *AcceptError. A ref without Wire or Name (both may come from a directory where
// only one is known) takes those of the CAR. A name of Fireproof 0.19, which hashes the sealed file, is compared with
// that and replaced by the plaintext's.
//
// The caller must not change sealed afterwards. The peak memory is sealed and the plaintext, twice the size.
func (l *Ledger) Accept(ref Ref, sealed []byte) (CAR, error) {
	return l.accept(ref, sealed, l.sealer.Open)
}

// AcceptOwned is Accept of bytes that the caller gives away, for CARs of many megabytes: they are decrypted where they
// are, checked, and encrypted again, so that the peak memory is sealed and a little. After an error they are lost.
func (l *Ledger) AcceptOwned(ref Ref, sealed []byte) (CAR, error) {
	c, err := l.accept(ref, sealed, l.sealer.OpenInPlace)
	if err != nil {
		return CAR{}, err
	}
	if err := l.sealer.DecryptAt(c.keyID, c.iv, 0, c.plain); err != nil {
		return CAR{}, fmt.Errorf("sealing a CAR again: %w", err)
	}
	c.plain, c.sections = nil, nil
	return c, nil
}

func (l *Ledger) accept(ref Ref, sealed []byte, open func([]byte) ([]byte, error)) (CAR, error) {
	refuse := func(check string, err error) (CAR, error) {
		if errors.Is(err, car.ErrLimit) {
			check = "limit"
		}
		return CAR{}, &AcceptError{Check: check, Ref: ref, Err: err}
	}
	if len(sealed) > MaxFileCARBytes {
		return refuse("limit", limitf("%d bytes", len(sealed)))
	}
	c := CAR{sealed: sealed, sealer: l.sealer, leaves: wireLeaves(sealed)}
	c.Ref.Size = int64(len(sealed))
	c.nodes, c.Ref.Wire = wireTree(c.leaves, c.Ref.Size)
	if ref.Size != 0 && ref.Size != c.Ref.Size {
		return refuse("wire", fmt.Errorf("%d bytes, not %d", c.Ref.Size, ref.Size))
	}
	if ref.Wire.Defined() && ref.Wire != c.Ref.Wire {
		return refuse("wire", errors.New("the sealed bytes have another hash"))
	}
	var fileSum [sha256.Size]byte
	if ref.Name.Defined() && ref.Name.Type() == car.CodecName019 {
		fileSum = sha256.Sum256(sealed)
	}

	var err error
	if c.keyID, c.iv, c.dataOff, c.dataLen, err = l.sealer.Inspect(sealed); err != nil {
		return refuse("envelope", err)
	}
	// The key id is the end of every envelope (Fireproof format). Replay relies on it.
	if c.dataOff < 0 || c.dataLen < 0 || c.dataOff+c.dataLen > c.Ref.Size || !bytes.HasSuffix(sealed, c.keyID[:]) {
		return refuse("envelope", errors.New("its parts are not where they belong"))
	}
	if c.plain, err = open(sealed); err != nil {
		check := "tag"
		var named interface{ Check() string }
		if errors.As(err, &named) {
			check = named.Check()
		}
		return refuse(check, err)
	}
	sum := sha256.Sum256(c.plain)
	if ivOf(string(sum[:])) != c.iv { // block reads derive the IV from the name
		return refuse("iv", errors.New("the IV does not follow from the plaintext"))
	}

	c.Ref.Name = nameFromDigest(sum[:])
	switch {
	case !ref.Name.Defined() || ref.Name == c.Ref.Name:
	case ref.Name.Type() == car.CodecName019:
		if d, ok := digest(ref.Name.Cid); !ok || d != string(fileSum[:]) {
			return refuse("name", errors.New("the file has another hash"))
		}
	default:
		return refuse("name", errors.New("the plaintext has another hash"))
	}

	roots, sections, err := car.Read(c.plain)
	if err != nil {
		return refuse("block", err)
	}
	c.roots, c.sections = roots, sections
	c.blocks = make([]recordBlock, len(sections))
	for i, s := range sections {
		b := &c.blocks[i]
		b.codec, b.off, b.size = s.CID.Type(), s.Offset, int64(len(s.Data))
		copy(b.digest[:], mustDigest(s.CID))
	}
	rooted := len(roots) > 0 && len(sections) > 0 && sections[0].CID == roots[0]
	if rooted {
		if c.header, c.hasHeader, err = readHeader(sections[0].Block); err != nil {
			return refuse("header", err)
		}
	}
	files := len(roots) > 0
	for _, r := range roots {
		files = files && (r.Type() == cid.Raw || r.Type() == cid.DagProtobuf)
	}
	if !(rooted && len(roots) == 1) && !files {
		return refuse("root", errors.New("the roots are neither the first block nor files"))
	}
	// What must be in memory to be merged is bounded lower than attached files.
	if c.Ref.Size > MaxCARBytes && !files {
		return refuse("limit", limitf("%d bytes", c.Ref.Size))
	}
	return c, nil
}

// Open opens the envelope of a CAR and checks key, tag and IV. What is inside is not looked at; Accept checks all.
func (l *Ledger) Open(sealed []byte) (plain []byte, err error) { return l.sealer.Open(sealed) }

// readHeader tells a header block from any other: it is a DAG-CBOR map whose only key is "fp".
func readHeader(b car.Block) (car.Header, bool, error) {
	if b.CID.Type() != cid.DagCBOR || !bytes.HasPrefix(b.Data, []byte{0xa1, 0x62, 'f', 'p'}) {
		return car.Header{}, false, nil
	}
	h, err := car.DecodeHeader(bytes.Clone(b.Data))
	return h, err == nil, err
}
