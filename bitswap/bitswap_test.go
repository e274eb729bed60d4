package bitswap

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"maps"
	mrand "math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/ipfs/boxo/bitswap/message"
	bspb "github.com/ipfs/boxo/bitswap/message/pb"
	"github.com/ipfs/boxo/bitswap/network/bsnet"
	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/multiformats/go-multihash"
	"go.uber.org/goleak"

	"fpnode/blockstore"
)

var errNone = errors.New("none")

// memory is a Store in memory.
type memory struct {
	mu     sync.Mutex
	blocks map[string][]byte
	reads  int
}

func newMemory() *memory { return &memory{blocks: make(map[string][]byte)} }

func (m *memory) put(codec uint64, b []byte) cid.Cid {
	mh, err := multihash.Sum(b, multihash.SHA2_256, -1)
	if err != nil {
		panic(err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.blocks[string(mh)] = b
	return cid.NewCidV1(codec, mh)
}

func (m *memory) WireBlock(mh multihash.Multihash) ([]byte, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.reads++
	if b, ok := m.blocks[string(mh)]; ok {
		return b, nil
	}
	return nil, errNone
}

func (m *memory) WireSize(mh multihash.Multihash) (int64, error) {
	b, err := m.WireBlock(mh)
	return int64(len(b)), err
}

// add stores b as the store of a node does: one block, or a file of leaves.
func (m *memory) add(b []byte, leaf, fanout int) blockstore.Ref {
	ref := blockstore.Ref{Size: int64(len(b))}
	if len(b) <= leaf {
		ref.Wire = blockstore.Wire{Cid: m.put(cid.Raw, b)}
		return ref
	}
	var level []child
	for lo := 0; lo < len(b); lo += leaf {
		part := b[lo:min(lo+leaf, len(b))]
		level = append(level, child{m.put(cid.Raw, part), int64(len(part))})
	}
	for len(level) > 1 {
		var above []child
		for lo := 0; lo < len(level); lo += fanout {
			children := level[lo:min(lo+fanout, len(level))]
			node, size := appendNode(nil, children)
			above = append(above, child{m.put(cid.DagProtobuf, node), size})
		}
		level = above
	}
	ref.Wire = blockstore.Wire{Cid: level[0].cid}
	return ref
}

// appendNode encodes an inner node as the drawing in unixfs.go has it.
func appendNode(dst []byte, children []child) ([]byte, int64) {
	field := func(dst []byte, tag byte, b []byte) []byte {
		dst = append(dst, tag)
		dst = append(dst, varint(uint64(len(b)))...)
		return append(dst, b...)
	}
	var size int64
	data := []byte{0x08, 2}
	var sizes []byte
	for _, c := range children {
		link := field(nil, 0x0a, c.cid.Bytes())
		link = field(link, 0x12, nil)
		link = append(append(link, 0x18), varint(uint64(c.size))...)
		dst = field(dst, 0x12, link)
		size += c.size
		sizes = append(append(sizes, 0x20), varint(uint64(c.size))...)
	}
	data = append(append(data, 0x18), varint(uint64(size))...)
	return field(dst, 0x0a, append(data, sizes...)), size
}

func varint(v uint64) []byte {
	var b []byte
	for ; v >= 0x80; v >>= 7 {
		b = append(b, byte(v)|0x80)
	}
	return append(b, byte(v))
}

type node struct {
	*Exchange
	host  host.Host
	store *memory
}

func newHost(t testing.TB, name string) host.Host {
	t.Helper()
	seed := make([]byte, 32)
	copy(seed, name)
	key, _, err := crypto.GenerateEd25519Key(bytes.NewReader(seed))
	if err != nil {
		t.Fatal(err)
	}
	h, err := libp2p.New(libp2p.Identity(key), libp2p.ListenAddrStrings("/ip4/127.0.0.1/tcp/0"),
		libp2p.DisableMetrics(), libp2p.DisableRelay())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { h.Close() })
	return h
}

func newNode(t testing.TB, name string) *node {
	t.Helper()
	n := &node{host: newHost(t, name), store: newMemory()}
	n.Exchange = New(Config{Host: n.host, Store: n.store, NotFound: errNone})
	t.Cleanup(func() { n.Close() })
	return n
}

func dial(t testing.TB, a, b host.Host) {
	t.Helper()
	if err := a.Connect(t.Context(), peer.AddrInfo{ID: b.ID(), Addrs: b.Addrs()}); err != nil {
		t.Fatal(err)
	}
}

// meet connects two nodes that have admitted each other.
func meet(t testing.TB, a, b *node) {
	t.Helper()
	dial(t, a.host, b.host)
	a.Admit(b.host.ID())
	b.Admit(a.host.ID())
	waitFor(t, "both to notice the connection", func() bool {
		return a.gate.anyPresent([]peer.ID{b.host.ID()}) && b.gate.anyPresent([]peer.ID{a.host.ID()})
	})
}

func waitFor(t testing.TB, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain for %s", what)
		}
		time.Sleep(time.Millisecond)
	}
}

func random(n int) []byte {
	b := make([]byte, n)
	rand.Read(b)
	return b
}

// fetchAll returns what Fetch yields by Wire and checks it against want.
func fetchAll(t testing.TB, x *node, from *node, refs []blockstore.Ref, want map[cid.Cid][]byte) int {
	t.Helper()
	n := 0
	for ref, sealed := range x.Fetch(t.Context(), []peer.ID{from.host.ID()}, refs) {
		n++
		if !bytes.Equal(sealed, want[ref.Wire.Cid]) {
			t.Fatalf("%s: other bytes", ref.Wire)
		}
	}
	return n
}

func TestFetchManyAtOnce(t *testing.T) {
	a, b := newNode(t, "a"), newNode(t, "b")
	meet(t, a, b)
	want := make(map[cid.Cid][]byte)
	var refs []blockstore.Ref
	for range 1500 { // more than a peer keeps in mind
		ref := a.store.add(random(300), leafBytes, 174)
		want[ref.Wire.Cid] = a.store.blocks[string(ref.Wire.Hash())]
		refs = append(refs, ref)
	}
	if n := fetchAll(t, b, a, refs, want); n != len(refs) {
		t.Errorf("%d of %d arrived", n, len(refs))
	}
}

func TestFetchFiles(t *testing.T) {
	a, b := newNode(t, "a"), newNode(t, "b")
	meet(t, a, b)
	want := make(map[cid.Cid][]byte)
	var refs []blockstore.Ref
	for _, tc := range []struct{ size, leaf, fanout int }{
		{leafBytes + 1, leafBytes, 174},
		{3*leafBytes + 17, leafBytes, 174},
		{200_000, 1000, 174}, // two levels
		{100_000, 1000, 10},  // three levels? 100 leaves, 10 nodes, 1 root
		{500, leafBytes, 174},
	} {
		data := random(tc.size)
		ref := a.store.add(data, tc.leaf, tc.fanout)
		want[ref.Wire.Cid] = data
		refs = append(refs, ref)
	}
	same := bytes.Repeat([]byte{7}, 5000) // leaves that are equal
	ref := a.store.add(same, 1000, 174)
	want[ref.Wire.Cid] = same
	refs = append(refs, ref)
	if n := fetchAll(t, b, a, refs, want); n != len(refs) {
		t.Errorf("%d of %d arrived", n, len(refs))
	}
}

// One name more for the same bytes, a size that is not true, a CID of another kind,
// and a node that is no node are told apart.
func TestFetchRefusesWhatDoesNotFit(t *testing.T) {
	a, b := newNode(t, "a"), newNode(t, "b")
	meet(t, a, b)
	data := random(100)
	good := a.store.add(data, leafBytes, 174)
	twice := good
	twice.Name = blockstore.Name{Cid: good.Wire.Cid}
	longer := a.store.add(random(100), leafBytes, 174)
	longer.Size++
	file := a.store.add(random(5000), 1000, 174)
	file.Size--
	v0 := blockstore.Ref{Wire: blockstore.Wire{Cid: cid.NewCidV0(good.Wire.Hash())}, Size: 100}
	identity, _ := multihash.Sum([]byte("x"), multihash.IDENTITY, -1)
	inline := blockstore.Ref{Wire: blockstore.Wire{Cid: cid.NewCidV1(cid.Raw, identity)}, Size: 1}
	node := blockstore.Ref{Wire: blockstore.Wire{Cid: a.store.put(cid.DagProtobuf, random(50))}, Size: 5000}
	empty := blockstore.Ref{}
	refs := []blockstore.Ref{empty, longer, file, v0, inline, node, good, twice}
	if n := fetchAll(t, b, a, refs, map[cid.Cid][]byte{good.Wire.Cid: data}); n != 2 {
		t.Errorf("%d arrived, want 2", n)
	}
}

func TestStrangerIsNotServedNorAsked(t *testing.T) {
	a, b := newNode(t, "a"), newNode(t, "b")
	ref := a.store.add(random(100), leafBytes, 174)
	dial(t, a.host, b.host)
	b.Admit(a.host.ID()) // but not the other way round
	waitFor(t, "the connection", func() bool { return b.gate.anyPresent([]peer.ID{a.host.ID()}) })
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	for range b.Fetch(ctx, []peer.ID{a.host.ID()}, []blockstore.Ref{ref}) {
		t.Error("served a stranger")
	}
	if a.store.reads != 0 {
		t.Error("the store was read for a stranger")
	}
	if s, _ := a.boxo.Stat(); len(s.Peers) != 0 {
		t.Errorf("the server tracks %v", s.Peers)
	}
	// A peer of no use is not waited for.
	for range a.Fetch(t.Context(), []peer.ID{b.host.ID()}, []blockstore.Ref{ref}) {
		t.Error("asked a stranger")
	}
	a.Admit(b.host.ID())
	waitFor(t, "admission", func() bool { return a.gate.anyPresent([]peer.ID{b.host.ID()}) })
	// boxo may fold the cancel of the want that was ignored and the new one into silence; the next fetch asks again.
	waitFor(t, "being served after admission", func() bool {
		return fetchAll(t, b, a, []blockstore.Ref{ref}, a.store.byWire(ref)) == 1
	})
	a.Revoke(b.host.ID())
	second := a.store.add(random(100), leafBytes, 174)
	ctx, cancel = context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	for range b.Fetch(ctx, []peer.ID{a.host.ID()}, []blockstore.Ref{second}) {
		t.Error("served after revocation")
	}
}

func (m *memory) byWire(refs ...blockstore.Ref) map[cid.Cid][]byte {
	out := make(map[cid.Cid][]byte)
	for _, r := range refs {
		out[r.Wire.Cid] = m.blocks[string(r.Wire.Hash())]
	}
	return out
}

// mute answers every want with HAVE and never sends a block.
type mute struct {
	net interface {
		SendMessage(context.Context, peer.ID, message.BitSwapMessage) error
	}
	asked chan cid.Cid
}

func (m *mute) ReceiveMessage(ctx context.Context, from peer.ID, in message.BitSwapMessage) {
	out := message.New(false)
	for _, e := range in.Wantlist() {
		if !e.Cancel {
			out.AddHave(e.Cid)
			if e.WantType == bspb.Message_Wantlist_Block {
				select {
				case m.asked <- e.Cid:
				default:
				}
			}
		}
	}
	if !out.Empty() {
		m.net.SendMessage(ctx, from, out)
	}
}
func (m *mute) ReceiveError(error)       {}
func (m *mute) PeerConnected(peer.ID)    {}
func (m *mute) PeerDisconnected(peer.ID) {}

func newMute(t testing.TB, name string) (host.Host, *mute) {
	h := newHost(t, name)
	net := bsnet.NewFromIpfsHost(h)
	m := &mute{net: net, asked: make(chan cid.Cid, 1000)}
	net.Start(m)
	t.Cleanup(net.Stop)
	return h, m
}

func TestAnotherPeerIsAskedWhenOneIsSilent(t *testing.T) {
	b := newNode(t, "b")
	b.gate.timing.patience, b.gate.timing.review = 50*time.Millisecond, 20*time.Millisecond
	silent, m := newMute(t, "silent")
	dial(t, b.host, silent)
	b.Admit(silent.ID())
	waitFor(t, "connection", func() bool { return b.gate.anyPresent([]peer.ID{silent.ID()}) })
	a := newNode(t, "a")
	ref := a.store.add(random(10_000), leafBytes, 174)
	go func() {
		<-m.asked // the silent one was asked first
		dial(t, a.host, b.host)
		a.Admit(b.host.ID())
		b.Admit(a.host.ID())
	}()
	n := 0
	for range b.Fetch(t.Context(), []peer.ID{silent.ID()}, []blockstore.Ref{ref}) {
		n++
	}
	if n != 1 {
		t.Error("the other peer was not asked")
	}
}

// A peer on the bench is asked again later, and the only one there is never benched.
func TestBench(t *testing.T) {
	b := newNode(t, "b")
	g := b.gate
	g.timing.patience = 50 * time.Millisecond
	silent, m := newMute(t, "silent")
	dial(t, b.host, silent)
	b.Admit(silent.ID())
	waitFor(t, "connection", func() bool { return g.anyPresent([]peer.ID{silent.ID()}) })
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		for range b.Fetch(ctx, []peer.ID{silent.ID()}, []blockstore.Ref{newMemory().add(random(100), leafBytes, 174)}) {
			t.Error("something arrived")
		}
	}()
	<-m.asked
	isClient := func() bool {
		g.mu.Lock()
		defer g.mu.Unlock()
		return g.connected[silent.ID()].isClient
	}
	later := time.Now().Add(time.Second)
	g.review(later)
	if !isClient() {
		t.Error("the only peer was benched")
	}
	a := newNode(t, "a")
	meet(t, a, b)
	g.review(later)
	if isClient() {
		t.Error("the silent peer was not benched")
	}
	g.review(later.Add(g.timing.bench / 2))
	if isClient() {
		t.Error("back too early")
	}
	g.review(later.Add(g.timing.bench + time.Second))
	if !isClient() {
		t.Error("not back")
	}
	cancel()
	<-done
}

func TestFetchEndsWhenNothingComes(t *testing.T) {
	b := newNode(t, "b")
	b.gate.timing.hope, b.gate.timing.silence, b.gate.timing.review = 10*time.Millisecond, 50*time.Millisecond, 20*time.Millisecond
	silent, _ := newMute(t, "silent")
	dial(t, b.host, silent)
	b.Admit(silent.ID())
	waitFor(t, "connection", func() bool { return b.gate.anyPresent([]peer.ID{silent.ID()}) })
	for range b.Fetch(t.Context(), []peer.ID{silent.ID()}, []blockstore.Ref{newMemory().add(random(100), leafBytes, 174)}) {
		t.Error("something arrived")
	}
}

func TestFetchEndsWhenNobodyHasIt(t *testing.T) {
	a, b := newNode(t, "a"), newNode(t, "b")
	meet(t, a, b)
	b.gate.timing.hope, b.gate.timing.review = 50*time.Millisecond, 20*time.Millisecond
	for range b.Fetch(t.Context(), []peer.ID{a.host.ID()}, []blockstore.Ref{newMemory().add(random(100), leafBytes, 174)}) {
		t.Error("something arrived")
	}
	if len(b.gate.batches) != 0 {
		t.Error("the batch is still watched")
	}
}

// Who asks too early is sent the CAR as soon as it is there.
func TestAddedServesThoseWhoWait(t *testing.T) {
	a, b := newNode(t, "a"), newNode(t, "b")
	meet(t, a, b)
	later := newMemory()
	small, large := later.add(random(100), leafBytes, 174), later.add(random(2*leafBytes), leafBytes, 174)
	got := make(chan int)
	go func() {
		n := 0
		for range b.Fetch(t.Context(), []peer.ID{a.host.ID()}, []blockstore.Ref{small, large}) {
			n++
		}
		got <- n
	}()
	waitFor(t, "the wants", func() bool { return len(a.boxo.WantlistForPeer(b.host.ID())) == 2 })
	a.store.mu.Lock()
	maps.Copy(a.store.blocks, later.blocks)
	a.store.mu.Unlock()
	a.Added(small, large)
	if n := <-got; n != 2 {
		t.Errorf("%d of 2 arrived", n)
	}
}

func TestOneFetchLeavesRoomForOthers(t *testing.T) {
	b := newNode(t, "b")
	silent, _ := newMute(t, "silent")
	dial(t, b.host, silent)
	b.Admit(silent.ID())
	waitFor(t, "connection", func() bool { return b.gate.anyPresent([]peer.ID{silent.ID()}) })
	other := newMemory()
	var stuck []blockstore.Ref
	for range 2 * MaxWants {
		stuck = append(stuck, other.add(random(100), leafBytes, 174))
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		for range b.Fetch(ctx, []peer.ID{silent.ID()}, stuck) {
			t.Error("something arrived")
		}
	}()
	waitFor(t, "wants", func() bool { return len(b.boxo.GetWantlist()) >= batchWants*batchesAtFirst })
	if n := len(b.boxo.GetWantlist()); n > batchWants*batchesAtFirst {
		t.Errorf("%d wants", n)
	}
	a := newNode(t, "a")
	meet(t, a, b)
	ref := a.store.add(random(100), leafBytes, 174)
	if n := fetchAll(t, b, a, []blockstore.Ref{ref}, a.store.byWire(ref)); n != 1 {
		t.Error("the second fetch got nothing")
	}
	cancel()
	<-done
}

func TestFetchCanBeLeftEarly(t *testing.T) {
	a, b := newNode(t, "a"), newNode(t, "b")
	meet(t, a, b)
	var refs []blockstore.Ref
	for range 200 {
		refs = append(refs, a.store.add(random(100), leafBytes, 174))
	}
	for range b.Fetch(t.Context(), []peer.ID{a.host.ID()}, refs) {
		break
	}
	waitFor(t, "the wants to be given up", func() bool { return len(b.boxo.GetWantlist()) == 0 })
}

func TestStoreAdapterIsReadOnlyAndBlindToCodecs(t *testing.T) {
	m := newMemory()
	s := store{m, errNone}
	data := []byte("sealed")
	c := m.put(cid.Raw, data)
	for _, codec := range []uint64{cid.Raw, cid.DagCBOR, 0x0202} {
		c := cid.NewCidV1(codec, c.Hash())
		b, err := s.Get(t.Context(), c)
		if err != nil || !bytes.Equal(b.RawData(), data) {
			t.Errorf("codec %x: %v", codec, err)
		}
		if n, err := s.GetSize(t.Context(), c); n != len(data) || err != nil {
			t.Errorf("codec %x: size %d, %v", codec, n, err)
		}
	}
	other, _ := multihash.Sum(data, multihash.SHA2_512, -1)
	for _, c := range []cid.Cid{cid.NewCidV1(cid.Raw, other), newMemory().put(cid.Raw, []byte("absent"))} {
		if ok, err := s.Has(t.Context(), c); ok || err != nil {
			t.Errorf("%s: %v, %v", c, ok, err)
		}
	}
	if err := s.Put(t.Context(), nil); !errors.Is(err, errReadOnly) {
		t.Error(err)
	}
	if err := s.DeleteBlock(t.Context(), c); !errors.Is(err, errReadOnly) {
		t.Error(err)
	}
}

func TestAdmittedAreBounded(t *testing.T) {
	x := &Exchange{gate: newGate(nil)}
	for i := range maxAdmitted + 1 {
		x.Admit(peer.ID(fmt.Sprint(i)))
	}
	if x.Admitted(peer.ID(fmt.Sprint(maxAdmitted))) || !x.Admitted("0") {
		t.Error("one too many")
	}
}

func TestWantsStayBelowWhatAPeerKeepsInMind(t *testing.T) {
	if MaxWants > 500 {
		t.Errorf("%d wants at a time", MaxWants)
	}
}

func TestCloseLeaksNothing(t *testing.T) {
	a, b := newNode(t, "a"), newNode(t, "b")
	meet(t, a, b)
	ref := a.store.add(random(100), leafBytes, 174)
	fetchAll(t, b, a, []blockstore.Ref{ref}, a.store.byWire(ref))
	for _, n := range []*node{a, b} {
		if err := n.Close(); err != nil {
			t.Error(err)
		}
		if err := n.host.Close(); err != nil {
			t.Error(err)
		}
	}
	goleak.VerifyNone(t, goleak.IgnoreTopFunction("go.opencensus.io/stats/view.(*worker).start"))
}

func FuzzNode(f *testing.F) {
	m := newMemory()
	for _, n := range []int{1, 2, 100} {
		var children []child
		for i := range n {
			children = append(children, child{m.put(cid.Raw, []byte{byte(i)}), int64(i + 1)})
		}
		b, _ := appendNode(nil, children)
		f.Add(b)
	}
	f.Add([]byte{0x0a, 0x02, 0x08, 0x02})
	f.Fuzz(func(t *testing.T, b []byte) {
		children, size, err := parseNode(b)
		if err != nil {
			return
		}
		var sum int64
		for _, c := range children {
			sum += c.size
			if !wireCID(c.cid) || c.size <= 0 {
				t.Errorf("child %v", c)
			}
		}
		if sum != size {
			t.Errorf("%d below, size %d", sum, size)
		}
	})
}

func BenchmarkFetch(b *testing.B) {
	for _, size := range []int{300, 3000, 262144} {
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			x, y := newNode(b, "a"), newNode(b, "b")
			meet(b, x, y)
			n := min(1000, 64<<20/size)
			r := mrand.NewChaCha8([32]byte{})
			b.SetBytes(int64(n * size))
			for b.Loop() {
				b.StopTimer()
				var refs []blockstore.Ref
				for range n {
					data := make([]byte, size)
					r.Read(data)
					refs = append(refs, x.store.add(data, leafBytes, 174))
				}
				b.StartTimer()
				got := 0
				for range y.Fetch(b.Context(), []peer.ID{x.host.ID()}, refs) {
					got++
				}
				if got != n {
					b.Fatalf("%d of %d", got, n)
				}
			}
		})
	}
}
