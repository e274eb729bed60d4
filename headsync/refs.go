package headsync

import (
	"bufio"
	"crypto/cipher"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"iter"
	"slices"

	"github.com/libp2p/go-libp2p/core/peer"

	"fpnode/blockstore"
)

// RefsProtocol is the protocol of exchanges: two replicas tell each other their tips
// and find out which CARs each lacks.
//
//	opener                                   server
//	proof, hello                    →
//	                                ←        hello
//	same                            →                     if the tips are equal, else
//	metas* keys* end                →
//	                                ←        metas* refs* wants* end
//	refs* end                       →
//
// hello is a digest of the tips. keys are eight bytes for each CAR, made with the
// salt of the exchange, so that the refs that travel are those that one side lacks.
const RefsProtocol = "/fpnode/refs/0"

// kind is the first byte of a frame.
type kind byte

const (
	kindHello kind = 'h' // 32 bytes: the digest of the tips
	kindMetas kind = 'm' // tips: (uint32 length, meta block)*, each followed by the refs of its group
	kindKeys  kind = 'k' // sorted keys of the CARs that the opener has
	kindRefs  kind = 'r' // a table of refs that the other side lacks
	kindWants kind = 'w' // keys of the CARs that the server lacks
	kindMore  kind = 'M' // empty: there are more refs than were sent
	kindSame  kind = 's' // empty: the tips are equal, nothing follows
	kindEnd   kind = 'e' // empty: the turn is over
)

// inventory is what an exchange needs to know of a replica.
type inventory interface {
	Tips() []blockstore.Meta
	Refs() iter.Seq2[blockstore.Ref, error]
}

// offer is what one side learned from an exchange.
type offer struct {
	tips  []blockstore.Meta // with refs as far as the peer knows them
	refs  []blockstore.Ref  // CARs the peer has and this replica lacks
	more  bool              // the peer has more of them
	equal bool              // the tips were equal and nothing was compared
}

// errStranger is the only thing that a server says, to itself, about a proof that is
// not for one of its ledgers.
var errStranger = errors.New("not for a ledger of ours")

// errTooMany says that a replica has more CARs than an exchange can hold.
var errTooMany = errors.New("too many CARs for an exchange")

// openExchange runs the opener's side. proved is called as soon as the peer has shown
// that it holds the ledger's key.
func openExchange(
	s io.ReadWriter, c *capability, self, server peer.ID, inv inventory, proved func(),
) (offer, error) {
	salt := make([]byte, saltBytes, saltBytes+proofBytes)
	rand.Read(salt)
	w := newConversation(s, c, salt, "open", "serve", self, server)
	w.out.Write(append(salt, c.proof(salt, self, server)...))
	tips := inv.Tips()
	mine := tipsDigest(tips)
	w.send(kindHello, mine[:])
	if err := w.flush(); err != nil {
		return offer{}, err
	}
	theirs, err := w.receive(kindHello)
	if err != nil {
		return offer{}, err
	}
	proved()
	if string(theirs) == string(mine[:]) {
		w.send(kindSame, nil)
		return offer{equal: true}, w.flush()
	}

	keys, err := keysOf(inv, salt)
	if err != nil {
		return offer{}, err
	}
	w.sendMetas(tips)
	w.sendKeys(kindKeys, keys)
	w.send(kindEnd, nil)
	if err := w.flush(); err != nil {
		return offer{}, err
	}
	got, err := w.receiveOffer()
	if err != nil {
		return offer{}, err
	}
	wanted := func(key uint64) bool {
		_, ok := slices.BinarySearch(got.keys, key)
		return ok
	}
	if err := w.sendRefs(inv, salt, wanted); err != nil {
		return offer{}, err
	}
	w.send(kindEnd, nil)
	return got.offer, w.flush()
}

// serveExchange runs the server's side. find returns the ledger whose capability made
// the proof.
func serveExchange(
	s io.ReadWriter, self, opener peer.ID,
	find func(check func(*capability) bool) (*capability, inventory, func()),
) (offer, error) {
	head := make([]byte, saltBytes+proofBytes)
	if _, err := io.ReadFull(s, head); err != nil {
		return offer{}, err
	}
	salt, proof := head[:saltBytes], head[saltBytes:]
	c, inv, proved := find(func(c *capability) bool { return hmac.Equal(proof, c.proof(salt, opener, self)) })
	if c == nil {
		return offer{}, errStranger
	}
	w := newConversation(s, c, salt, "serve", "open", opener, self)
	if _, err := w.receive(kindHello); err != nil {
		return offer{}, err
	}
	proved()
	tips := inv.Tips()
	mine := tipsDigest(tips)
	w.send(kindHello, mine[:])
	if err := w.flush(); err != nil {
		return offer{}, err
	}
	got, err := w.receiveOffer()
	if err != nil {
		return offer{}, err
	}
	if got.equal {
		return got.offer, nil
	}
	keys, err := keysOf(inv, salt)
	if err != nil {
		return offer{}, err
	}
	w.sendMetas(tips)
	lacks := func(key uint64) bool {
		_, ok := slices.BinarySearch(got.keys, key)
		return !ok
	}
	if err := w.sendRefs(inv, salt, lacks); err != nil {
		return offer{}, err
	}
	wants := slices.DeleteFunc(got.keys, func(key uint64) bool {
		_, ok := slices.BinarySearch(keys, key)
		return ok
	})
	w.sendKeys(kindWants, wants[:min(len(wants), maxOffers)])
	w.send(kindEnd, nil)
	if err := w.flush(); err != nil {
		return offer{}, err
	}
	rest, err := w.receiveOffer()
	if err != nil {
		return offer{}, err
	}
	more := rest.more || len(wants) > maxOffers
	return offer{tips: got.tips, refs: rest.refs, more: more}, nil
}

// tipsDigest is the same for the same set of tips.
func tipsDigest(tips []blockstore.Meta) [32]byte {
	list := make([]string, len(tips))
	for i, m := range tips {
		list[i] = m.CID.KeyString()
	}
	slices.Sort(list)
	h := sha256.New()
	for _, s := range list {
		h.Write(lengthPrefixed(nil, s))
	}
	return [32]byte(h.Sum(nil))
}

// keyOf is eight bytes for one CAR. Two of 100,000 are equal once in 10^9 exchanges;
// the next one has another salt.
func keyOf(salt []byte, r blockstore.Ref) uint64 {
	var b [saltBytes + 32]byte
	copy(b[:], salt)
	digest := r.Name.Hash()
	copy(b[saltBytes:], digest[max(0, len(digest)-32):])
	sum := sha256.Sum256(b[:])
	return binary.BigEndian.Uint64(sum[:])
}

// keysOf returns the sorted keys of a replica's CARs.
func keysOf(inv inventory, salt []byte) ([]uint64, error) {
	var keys []uint64
	for r, err := range inv.Refs() {
		if err != nil {
			return nil, fmt.Errorf("reading refs: %w", err)
		}
		if len(keys) == maxKeys {
			return nil, errTooMany
		}
		keys = append(keys, keyOf(salt, r))
	}
	slices.Sort(keys)
	return keys, nil
}

// conversation is one side of an exchange after the proof. Its send methods keep the
// first error for flush.
type conversation struct {
	in       *bufio.Reader
	out      *bufio.Writer
	inKey    cipher.AEAD
	outKey   cipher.AEAD
	inN, oN  uint64
	received int64
	err      error
}

func newConversation(s io.ReadWriter, c *capability, salt []byte, out, in string, opener, server peer.ID) *conversation {
	return &conversation{
		in:     bufio.NewReaderSize(s, 16<<10),
		out:    bufio.NewWriterSize(s, 16<<10),
		inKey:  c.frameKey(salt, in, opener, server),
		outKey: c.frameKey(salt, out, opener, server),
	}
}

func frameNonce(n uint64) []byte { return binary.BigEndian.AppendUint64(make([]byte, 4, 12), n) }

func (w *conversation) send(k kind, body []byte) {
	if w.err != nil {
		return
	}
	if len(body)+frameOverhead > maxFrameBytes {
		w.err = fmt.Errorf("headsync: internal error: a frame of %d bytes", len(body))
		return
	}
	frame := binary.BigEndian.AppendUint32(make([]byte, 0, 4+frameOverhead+len(body)), uint32(len(body)+frameOverhead))
	plain := append([]byte{byte(k)}, body...)
	frame = w.outKey.Seal(frame, frameNonce(w.oN), plain, nil)
	w.oN++
	_, w.err = w.out.Write(frame)
}

func (w *conversation) flush() error {
	if w.err != nil {
		return w.err
	}
	w.err = w.out.Flush()
	return w.err
}

// next reads a frame.
func (w *conversation) next() (kind, []byte, error) {
	var head [4]byte
	if _, err := io.ReadFull(w.in, head[:]); err != nil {
		return 0, nil, err
	}
	n := binary.BigEndian.Uint32(head[:])
	if n < frameOverhead {
		return 0, nil, ErrSeal
	}
	if n > maxFrameBytes {
		return 0, nil, ErrTooLong
	}
	if w.received += int64(n); w.received > maxExchangeBytes {
		return 0, nil, ErrTooLong
	}
	frame := make([]byte, n)
	if _, err := io.ReadFull(w.in, frame); err != nil {
		return 0, nil, err
	}
	plain, err := w.inKey.Open(frame[:0], frameNonce(w.inN), frame, nil)
	if err != nil {
		return 0, nil, ErrSeal
	}
	w.inN++
	return kind(plain[0]), plain[1:], nil
}

func (w *conversation) receive(want kind) ([]byte, error) {
	k, body, err := w.next()
	if err != nil {
		return nil, err
	}
	if k != want {
		return nil, fmt.Errorf("%w: frame %q, not %q", ErrSyntax, k, want)
	}
	return body, nil
}

// received is what one turn of the other side held.
type received struct {
	offer
	keys []uint64 // of kindKeys or kindWants
}

// receiveOffer reads frames up to the end of the other side's turn.
func (w *conversation) receiveOffer() (received, error) {
	var got received
	for first := true; ; first = false {
		k, body, err := w.next()
		if err != nil {
			return received{}, err
		}
		if k == kindEnd && len(body) == 0 {
			if !slices.IsSorted(got.keys) {
				return received{}, fmt.Errorf("%w: keys are not sorted", ErrSyntax)
			}
			return got, nil
		}
		if k == kindSame && first {
			return received{offer: offer{equal: true}}, nil
		}
		switch k {
		case kindMetas:
			err = got.addMetas(body)
		case kindKeys, kindWants:
			if len(body)%8 != 0 || len(got.keys)+len(body)/8 > maxKeys {
				return received{}, fmt.Errorf("%w: keys", ErrSyntax)
			}
			for ; len(body) > 0; body = body[8:] {
				got.keys = append(got.keys, binary.BigEndian.Uint64(body))
			}
		case kindRefs:
			var refs []blockstore.Ref
			refs, err = readRefs(body, maxOffers-len(got.refs))
			got.refs = append(got.refs, refs...)
		case kindMore:
			got.more = true
		default:
			err = fmt.Errorf("%w: frame %q", ErrSyntax, k)
		}
		if err != nil {
			return received{}, err
		}
	}
}

// A meta in a frame:
//
//	+----------+------------+-----------------+---------------------------+
//	| uint32 n | meta block | uint32 r, refs  | r refs, as in any table   |
//	+----------+------------+-----------------+---------------------------+
func (w *conversation) sendMetas(tips []blockstore.Meta) {
	var body []byte
	for _, m := range tips[:min(len(tips), maxTips)] {
		var table []byte
		n := 0
		for _, r := range m.Group {
			var ok bool
			if table, ok = appendRef(table, r); ok {
				n++
			}
		}
		one := binary.BigEndian.AppendUint32(nil, uint32(len(m.Block)))
		one = append(one, m.Block...)
		one = binary.BigEndian.AppendUint32(one, uint32(n))
		one = append(one, table...)
		if len(m.Block) > maxMetaBytes || len(one)+frameOverhead > maxFrameBytes {
			continue // over the limit: the CARs travel all the same, and the tip once it has been built upon
		}
		if len(body) > 0 && len(body)+len(one) > frameBytes {
			w.send(kindMetas, body)
			body = body[:0]
		}
		body = append(body, one...)
	}
	if len(body) > 0 {
		w.send(kindMetas, body)
	}
}

func (o *offer) addMetas(b []byte) error {
	for len(b) > 0 {
		block, rest, ok := cutPrefixed(b, 1)
		if !ok {
			return fmt.Errorf("%w: a meta cut off", ErrSyntax)
		}
		table, rest, ok := cutPrefixed(rest, refBytes)
		if !ok {
			return fmt.Errorf("%w: a meta cut off", ErrSyntax)
		}
		refs, err := readRefs(table, blockstore.MaxGroup)
		if err != nil {
			return err
		}
		metas, err := parseMetas([][]byte{block}, refs)
		if err != nil {
			return err
		}
		if len(o.tips) == maxTips {
			return fmt.Errorf("%w: more than %d tips", ErrSyntax, maxTips)
		}
		o.tips = append(o.tips, metas...)
		b = rest
	}
	return nil
}

// cutPrefixed takes a uint32 and as many units off b.
func cutPrefixed(b []byte, unit uint64) (part, rest []byte, ok bool) {
	if len(b) < 4 {
		return nil, nil, false
	}
	n := uint64(binary.BigEndian.Uint32(b)) * unit
	if b = b[4:]; n > uint64(len(b)) {
		return nil, nil, false
	}
	return b[:n], b[n:], true
}

func (w *conversation) sendKeys(k kind, keys []uint64) {
	const perFrame = frameBytes / 8
	for part := range slices.Chunk(keys, perFrame) {
		body := make([]byte, 0, 8*len(part))
		for _, key := range part {
			body = binary.BigEndian.AppendUint64(body, key)
		}
		w.send(k, body)
	}
}

// sendRefs sends the refs whose keys pass.
func (w *conversation) sendRefs(inv inventory, salt []byte, pass func(uint64) bool) error {
	const perFrame = frameBytes / refBytes
	body := make([]byte, 0, perFrame*refBytes)
	n := 0
	for r, err := range inv.Refs() {
		if err != nil {
			return fmt.Errorf("reading refs: %w", err)
		}
		if !pass(keyOf(salt, r)) {
			continue
		}
		if n == maxOffers {
			w.send(kindMore, nil)
			break
		}
		var ok bool
		if body, ok = appendRef(body, r); !ok {
			continue
		}
		n++
		if len(body) == cap(body) {
			w.send(kindRefs, body)
			body = body[:0]
		}
	}
	if len(body) > 0 {
		w.send(kindRefs, body)
	}
	return w.err
}
