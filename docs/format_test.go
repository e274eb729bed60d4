// Package docs holds no code, only the test that format.md says what the packages do.
package docs

import (
	"bytes"
	"context"
	"encoding/hex"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/ipfs/go-cid"

	"fpnode/blockstore"
	"fpnode/clock"
	"fpnode/internal/car"
	"fpnode/internal/dagcbor"
	"fpnode/keyring"
	"fpnode/pail"
)

// vector is one hex example: ```hex kind [CID]
type vector struct {
	kind string
	cid  cid.Cid
	data []byte
}

var fence = regexp.MustCompile("(?ms)^```hex (\\S+) ?(\\S*)\n(.*?)^```$")

func vectors(t *testing.T) []vector {
	t.Helper()
	text, err := os.ReadFile("format.md")
	if err != nil {
		t.Fatal(err)
	}
	var out []vector
	for _, m := range fence.FindAllSubmatch(text, -1) {
		v := vector{kind: string(m[1])}
		if v.data, err = hex.DecodeString(strings.Join(strings.Fields(string(m[3])), "")); err != nil {
			t.Fatalf("%s: %v", v.kind, err)
		}
		if len(m[2]) > 0 {
			if v.cid, err = cid.Decode(string(m[2])); err != nil {
				t.Fatalf("%s: %v", v.kind, err)
			}
		}
		out = append(out, v)
	}
	return out
}

// one is the only vector of a kind.
func one(t *testing.T, kind string) vector {
	t.Helper()
	var found []vector
	for _, v := range vectors(t) {
		if v.kind == kind {
			found = append(found, v)
		}
	}
	if len(found) != 1 {
		t.Fatalf("%d vectors %s", len(found), kind)
	}
	return found[0]
}

func TestEnvelopeOpens(t *testing.T) {
	text, err := os.ReadFile("format.md")
	if err != nil {
		t.Fatal(err)
	}
	m := regexp.MustCompile(`(?m)^key +(\S+)\nfingerprint +(\S+)$`).FindSubmatch(text)
	if m == nil {
		t.Fatal("no key")
	}
	key, err := keyring.ParseKey(string(m[1]))
	if err != nil {
		t.Fatal(err)
	}
	if got := key.Fingerprint().String(); got != string(m[2]) {
		t.Errorf("fingerprint %s, the text has %s", got, m[2])
	}
	keys, err := keyring.NewKeys(key)
	if err != nil {
		t.Fatal(err)
	}
	sealed := one(t, "sealed-car").data
	plain, err := keys.Open(sealed)
	if err != nil {
		t.Fatal(err)
	}
	if want := one(t, "plain-car").data; !bytes.Equal(plain, want) {
		t.Errorf("the sealed CAR opens to\n%x, the plain one is\n%x", plain, want)
	}
	again, err := keys.Seal(plain)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(again, sealed) {
		t.Errorf("sealing gives\n%x, the text has\n%x", again, sealed)
	}
	if name := blockstore.NameOf(plain).String(); !bytes.Contains(text, []byte(name)) {
		t.Errorf("the text does not have the name %s", name)
	}
}

// TestBlocks checks that the blocks are those of the CAR, mean what the text says, and are written the same way.
func TestBlocks(t *testing.T) {
	plain := one(t, "plain-car").data
	roots, sections, err := car.Read(plain)
	if err != nil {
		t.Fatal(err)
	}
	var blocks []car.Block
	inCAR := map[cid.Cid][]byte{}
	for _, s := range sections {
		blocks = append(blocks, s.Block)
		inCAR[s.CID] = s.Data
	}
	if again := car.Append(nil, roots, blocks); !bytes.Equal(again, plain) {
		t.Errorf("writing the CAR again gives\n%x", again)
	}
	seen := map[string]int{}
	for _, v := range vectors(t) {
		seen[v.kind]++
		if v.cid.Defined() && dagcbor.Sum(v.data) != v.cid {
			t.Errorf("%s: the text has %s, the block is %s", v.kind, v.cid, dagcbor.Sum(v.data))
		}
		switch v.kind {
		case "header", "document", "shard", "event":
			if !bytes.Equal(inCAR[v.cid], v.data) {
				t.Errorf("%s %s is not in the CAR", v.kind, v.cid)
			}
		}
		switch v.kind {
		case "header":
			h, err := car.DecodeHeader(v.data)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(h.Encode(), v.data) || !h.HasHead {
				t.Errorf("header %+v is written as %x", h, h.Encode())
			}
		case "pack-header":
			if b := (car.Header{}).Encode(); !bytes.Equal(b, v.data) {
				t.Errorf("the header of a pack is %x", b)
			}
		case "document", "tombstone":
			if err := dagcbor.Valid(v.data); err != nil {
				t.Errorf("%s: %v", v.kind, err)
			}
		case "event":
			e, err := clock.Decode(v.cid, v.data)
			if err != nil {
				t.Fatal(err)
			}
			d, err := pail.DecodeData(e.Data)
			if err != nil {
				t.Fatal(err)
			}
			if c, again := clock.Encode(d.Encode(), e.Parents); c != v.cid || !bytes.Equal(again, v.data) {
				t.Errorf("event %+v is written as %x", d, again)
			}
			checkTrie(t, inCAR, d)
		case "meta":
			group, parents, err := car.DecodeMeta(v.data)
			if err != nil {
				t.Fatal(err)
			}
			if again := car.EncodeMeta(group, parents); !bytes.Equal(again, v.data) {
				t.Errorf("meta is written as %x", again)
			}
		}
	}
	want := map[string]int{"sealed-car": 1, "plain-car": 1, "header": 1, "document": 1, "tombstone": 1, "shard": 2, "event": 1, "meta": 1, "segment-header": 1, "run": 1, "pack-header": 1}
	if diff := cmp.Diff(want, seen); diff != "" {
		t.Errorf("vectors (-want +got):\n%s", diff)
	}
}

// checkTrie reads the trie under an event.
func checkTrie(t *testing.T, blocks fetcher, d pail.Data) {
	t.Helper()
	tree := pail.Load(blocks, pail.NewCache(8), d.Root)
	got, ok, err := tree.Get(context.Background(), d.Ops[0].Key)
	if err != nil || !ok || got != d.Ops[0].Value {
		t.Errorf("key %s has %v %v %v in the trie, the event put %v", d.Ops[0].Key, got, ok, err, d.Ops[0].Value)
	}
}

type fetcher map[cid.Cid][]byte

func (f fetcher) Block(_ context.Context, c cid.Cid) ([]byte, error) {
	if b, ok := f[c]; ok {
		return b, nil
	}
	return nil, &clock.MissingError{CID: c}
}
