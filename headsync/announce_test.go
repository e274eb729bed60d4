package headsync

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/ipfs/go-cid"
	"pgregory.net/rapid"

	"fpnode/blockstore"
	"fpnode/internal/car"
	"fpnode/internal/dagcbor"
)

// plainSecrets derives secrets from a text.
type plainSecrets string

func (s plainSecrets) Derive(ledger [32]byte, label string) [32]byte {
	return sha256.Sum256(fmt.Appendf(nil, "%s %x %s", s, ledger, label))
}

func testCapability(t testing.TB, secret string, ledger byte) capability {
	t.Helper()
	return newCapability(plainSecrets(secret), [32]byte{ledger})
}

// sealedRef makes a ref for real bytes, as sealing them would.
func sealedRef(n int, sealed []byte) blockstore.Ref {
	return blockstore.Ref{Name: testRef(n).Name, Wire: blockstore.WireOf(sealed), Size: int64(len(sealed))}
}

func random(n int) []byte {
	b := make([]byte, n)
	rand.Read(b)
	return b
}

var sameAnnouncement = cmp.Options{
	cmp.AllowUnexported(announcement{}),
	cmp.Comparer(func(a, b cid.Cid) bool { return a == b }),
	cmp.Comparer(bytes.Equal),
	cmpopts.EquateEmpty(),
}

func TestTopicsTellNothing(t *testing.T) {
	a := testCapability(t, "key", 1)
	if !strings.HasPrefix(a.topic, "fp/1/") || len(a.topic) != len("fp/1/")+32 || a.topic != strings.ToLower(a.topic) {
		t.Errorf("topic %q", a.topic)
	}
	if b := testCapability(t, "key", 1); b.topic != a.topic {
		t.Error("two members have two topics")
	}
	for _, b := range []capability{testCapability(t, "key", 2), testCapability(t, "yek", 1)} {
		if b.topic == a.topic {
			t.Error("two ledgers have one topic")
		}
	}
}

func TestAnnouncementRoundTrip(t *testing.T) {
	c := testCapability(t, "key", 1)
	sealed := random(3000)
	ref := sealedRef(1, sealed)
	large := testRef(2)
	large.Size, large.Wire = leafBytes+1, blockstore.Wire{Cid: cidOf(cid.DagProtobuf, large.Wire.Hash()[2:])}
	want := announcement{
		tips: []blockstore.Meta{blockstore.NewMeta([]blockstore.Ref{ref, large}, []cid.Cid{testMeta(7).CID})},
		refs: []blockstore.Ref{ref, large},
		cars: [][]byte{sealed},
		more: true,
	}
	msg, err := c.sealAnnouncement(want.encode())
	if err != nil {
		t.Fatal(err)
	}
	body, err := c.openAnnouncement(msg)
	if err != nil {
		t.Fatal(err)
	}
	got, err := decodeAnnouncement(body)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got, sameAnnouncement); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// The checks of a message, in their order.
func TestAnnouncementChecks(t *testing.T) {
	c := testCapability(t, "key", 1)
	good, err := c.sealAnnouncement(announcement{tips: []blockstore.Meta{testMeta(1)}, refs: []blockstore.Ref{testRef(1)}}.encode())
	if err != nil {
		t.Fatal(err)
	}
	flip := func(i int) []byte {
		b := bytes.Clone(good)
		b[i] ^= 1
		return b
	}
	junk := func(body []byte) []byte {
		b, err := c.sealAnnouncement(body)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	for _, tc := range []struct {
		name string
		msg  []byte
		want error
	}{
		{"too long and of no version", bytes.Repeat([]byte{9}, MaxAnnouncementBytes+1), ErrTooLong},
		{"empty", nil, ErrVersion},
		{"another version", flip(0), ErrVersion},
		{"cut short", good[:announceOverhead], ErrSeal},
		{"nonce", flip(1), ErrSeal},
		{"body", flip(100), ErrSeal},
		{"tag", flip(len(good) - 1), ErrSeal},
		{"not CBOR", junk([]byte{0xff}), ErrSyntax},
		{"nothing", junk(nil), ErrSyntax},
		{"another map", junk(dagcbor.AppendMap(nil, 0)), ErrSyntax},
		{"good", good, nil},
	} {
		body, err := c.openAnnouncement(tc.msg)
		if err == nil {
			_, err = decodeAnnouncement(body)
		}
		if !errors.Is(err, tc.want) {
			t.Errorf("%s: %v, want %v", tc.name, err, tc.want)
		}
	}
	for i := range good {
		if body, err := c.openAnnouncement(flip(i)); err == nil {
			t.Fatalf("byte %d flipped: opens to %d bytes", i, len(body))
		}
	}
	for name, other := range map[string]capability{
		"another ledger": testCapability(t, "key", 2), "another key": testCapability(t, "yek", 1),
	} {
		if _, err := other.openAnnouncement(good); !errors.Is(err, ErrSeal) {
			t.Errorf("%s: %v", name, err)
		}
	}
	// The same key for another topic: what stops it is the topic in the seal.
	moved := c
	moved.topic = "fp/1/other"
	if _, err := moved.openAnnouncement(good); !errors.Is(err, ErrSeal) {
		t.Errorf("moved to another topic: %v", err)
	}
}

func TestMalformedAnnouncements(t *testing.T) {
	sealed := random(100)
	ref := sealedRef(1, sealed)
	other := sealedRef(2, random(100))
	type fields struct {
		cars [][]byte
		refs []byte
		tips [][]byte
	}
	table := func(refs ...blockstore.Ref) (b []byte) {
		for _, r := range refs {
			b, _ = appendRef(b, r)
		}
		return b
	}
	encode := func(f fields) []byte {
		b := dagcbor.AppendText(dagcbor.AppendMap(nil, 4), "cars")
		b = dagcbor.AppendArray(b, len(f.cars))
		for _, c := range f.cars {
			b = dagcbor.AppendBytes(b, c)
		}
		b = dagcbor.AppendBool(dagcbor.AppendText(b, "more"), false)
		b = dagcbor.AppendBytes(dagcbor.AppendText(b, "refs"), f.refs)
		b = dagcbor.AppendArray(dagcbor.AppendText(b, "tips"), len(f.tips))
		for _, m := range f.tips {
			b = dagcbor.AppendBytes(b, m)
		}
		return b
	}
	many := func(n int) (out [][]byte) {
		for i := range n {
			out = append(out, testMeta(i).Block)
		}
		return out
	}
	var refs257 []blockstore.Ref
	for i := range maxAnnouncedRefs + 1 {
		refs257 = append(refs257, testRef(i))
	}
	zero := table(ref)
	copy(zero[64:], []byte{0, 0, 0, 0})
	huge := table(ref)
	copy(huge[64:], []byte{0xff, 0xff, 0xff, 0xff})
	for name, f := range map[string]fields{
		"half a ref":                {refs: table(ref)[:67]},
		"a CAR without its ref":     {cars: [][]byte{sealed}},
		"a CAR of another size":     {cars: [][]byte{sealed[:99]}, refs: table(ref)},
		"a CAR with another's name": {cars: [][]byte{sealed}, refs: table(other)},
		"a CAR of no bytes":         {refs: zero},
		"a CAR of 4 GiB":            {refs: huge},
		"a tip that is none":        {tips: [][]byte{{0xa0}}},
		"too many refs":             {refs: table(refs257...)},
		"too many tips":             {tips: many(maxAnnouncedTips + 1)},
		"too many CARs":             {cars: make([][]byte, maxAnnouncedCARs+1)},
		"a tip too large":           {tips: [][]byte{make([]byte, maxMetaBytes+1)}},
	} {
		if _, err := decodeAnnouncement(encode(f)); !errors.Is(err, ErrSyntax) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := decodeAnnouncement(encode(fields{cars: [][]byte{sealed}, refs: table(ref), tips: many(maxAnnouncedTips)})); err != nil {
		t.Errorf("a good one: %v", err)
	}
	if _, err := decodeAnnouncement(append(encode(fields{}), 0)); !errors.Is(err, ErrSyntax) {
		t.Errorf("a byte more: %v", err)
	}
}

func TestRefsThatNoTableHolds(t *testing.T) {
	good := testRef(1)
	for name, change := range map[string]func(*blockstore.Ref){
		"no size":          func(r *blockstore.Ref) { r.Size = 0 },
		"a negative size":  func(r *blockstore.Ref) { r.Size = -1 },
		"too large":        func(r *blockstore.Ref) { r.Size = blockstore.MaxFileCARBytes + 1 },
		"no name":          func(r *blockstore.Ref) { r.Name.Cid = cid.Undef },
		"no wire":          func(r *blockstore.Ref) { r.Wire.Cid = cid.Undef },
		"a name of 0.19":   func(r *blockstore.Ref) { r.Name.Cid = cidOf(car.CodecName019, r.Name.Hash()[2:]) },
		"a wire too small": func(r *blockstore.Ref) { r.Size = leafBytes + 1 },
	} {
		r := good
		change(&r)
		if b, ok := appendRef(nil, r); ok || len(b) > 0 {
			t.Errorf("%s: taken", name)
		}
	}
}

func TestSizesTellLittle(t *testing.T) {
	c := testCapability(t, "key", 1)
	classes := make(map[int]bool)
	for n := range maxPaddedBytes - 4 {
		if n%97 != 0 && n < maxPaddedBytes-100 {
			continue
		}
		msg, err := c.sealAnnouncement(make([]byte, n))
		if err != nil {
			t.Fatalf("%d bytes: %v", n, err)
		}
		if len(msg) > MaxAnnouncementBytes {
			t.Fatalf("%d bytes: sealed to %d", n, len(msg))
		}
		classes[len(msg)] = true
		if body, err := c.openAnnouncement(msg); err != nil || len(body) != n {
			t.Fatalf("%d bytes: opened to %d, %v", n, len(body), err)
		}
	}
	if len(classes) > 15 {
		t.Errorf("%d sizes", len(classes))
	}
	if _, err := c.sealAnnouncement(make([]byte, maxPaddedBytes-3)); !errors.Is(err, ErrTooLong) {
		t.Errorf("too long a body: %v", err)
	}
}

// Whatever is to be announced fits, and what was left out is said to be.
func TestComposeFits(t *testing.T) {
	c := testCapability(t, "key", 1)
	bytesOf := make(map[blockstore.Ref][]byte)
	var pool []blockstore.Ref
	for i := range 400 {
		b := random([]int{100, 1000, 5000, MaxInlineBytes, 100_000}[i%5])
		pool = append(pool, sealedRef(i, b))
		bytesOf[pool[i]] = b
	}
	var parents []cid.Cid
	for i := range 100 {
		parents = append(parents, testMeta(i).CID)
	}
	rapid.Check(t, func(rt *rapid.T) {
		first := rapid.IntRange(0, 100).Draw(rt, "first")
		recent := pool[first : first+rapid.IntRange(0, 300).Draw(rt, "recent")]
		if rapid.Bool().Draw(rt, "small") {
			recent = slices.DeleteFunc(slices.Clone(recent), func(r blockstore.Ref) bool { return r.Size > 1000 })
		}
		var tips []blockstore.Meta
		for i := range rapid.IntRange(1, 100).Draw(rt, "tips") {
			group := []blockstore.Ref{testRef(1000 + i)}
			if i < len(recent) {
				group = []blockstore.Ref{recent[len(recent)-1-i]}
			}
			tips = append(tips, blockstore.NewMeta(group, parents[:rapid.IntRange(0, len(parents)).Draw(rt, "parents")]))
		}
		a := compose(tips, recent, func(r blockstore.Ref) []byte { return bytesOf[r] })
		msg, err := c.sealAnnouncement(a.encode())
		if err != nil {
			rt.Fatalf("%d tips, %d refs, %d CARs: %v", len(a.tips), len(a.refs), len(a.cars), err)
		}
		body, err := c.openAnnouncement(msg)
		if err != nil {
			rt.Fatal(err)
		}
		got, err := decodeAnnouncement(body)
		if err != nil {
			rt.Fatal(err)
		}
		if diff := cmp.Diff(a, got, sameAnnouncement); diff != "" {
			rt.Fatalf("(-composed +decoded):\n%s", diff)
		}
		listed := make(map[blockstore.Ref]bool)
		for _, r := range a.refs {
			listed[r] = true
		}
		whole := len(a.tips) == len(tips)
		for _, m := range a.tips {
			whole = whole && listed[m.Group[0]]
		}
		for _, r := range recent {
			whole = whole && listed[r]
		}
		if whole == a.more {
			rt.Errorf("everything is in it: %v, more: %v", whole, a.more)
		}
		inline := 0
		for _, b := range a.cars {
			inline += len(b)
		}
		if inline > MaxInlineBytes {
			rt.Errorf("%d bytes of CARs", inline)
		}
	})
}

func TestSmallCommitTravelsWhole(t *testing.T) {
	sealed := random(20_000)
	ref := sealedRef(1, sealed)
	tip := blockstore.NewMeta([]blockstore.Ref{ref}, []cid.Cid{testMeta(2).CID})
	a := compose([]blockstore.Meta{tip}, []blockstore.Ref{ref}, func(blockstore.Ref) []byte { return sealed })
	if len(a.cars) != 1 || len(a.tips) != 1 || a.more {
		t.Errorf("%d CARs, %d tips, more %v", len(a.cars), len(a.tips), a.more)
	}
}

func FuzzAnnouncement(f *testing.F) {
	sealed := []byte("sealed")
	ref := sealedRef(1, sealed)
	f.Add(announcement{}.encode())
	f.Add(announcement{
		tips: []blockstore.Meta{blockstore.NewMeta([]blockstore.Ref{ref, testRef(2)}, []cid.Cid{testMeta(3).CID})},
		refs: []blockstore.Ref{ref, testRef(2)},
		cars: [][]byte{sealed},
		more: true,
	}.encode())
	f.Fuzz(func(t *testing.T, body []byte) {
		a, err := decodeAnnouncement(body)
		if err != nil {
			return
		}
		if again := a.encode(); !bytes.Equal(again, body) {
			t.Errorf("decoded and encoded: %x, was %x", again, body)
		}
	})
}

func FuzzOpenAnnouncement(f *testing.F) {
	c := newCapability(plainSecrets("key"), [32]byte{1})
	good, err := c.sealAnnouncement([]byte("body"))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add([]byte{announceVersion})
	f.Fuzz(func(t *testing.T, msg []byte) {
		if _, err := c.openAnnouncement(msg); err == nil && !bytes.Equal(msg, good) {
			t.Error("a forgery opens")
		}
	})
}
