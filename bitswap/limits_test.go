package bitswap

import (
	"errors"
	"testing"

	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p/core/peer"

	"fpnode/blockstore"
)

func TestBatchesAreBounded(t *testing.T) {
	m := newMemory()
	f := &fetch{}
	for range 2 * batchWants {
		f.small = append(f.small, m.add(random(10), leafBytes, 174))
	}
	if small, _ := f.next(); len(small) != batchWants {
		t.Errorf("a batch of %d", len(small))
	}
	f.small = nil
	for range 20 {
		ref := m.add(random(10), leafBytes, 174)
		ref.Size = leafBytes
		f.small = append(f.small, ref)
	}
	if small, _ := f.next(); len(small) != batchBytes/leafBytes {
		t.Errorf("a batch of %d MiB", len(small))
	}
}

func TestNodesAreBounded(t *testing.T) {
	m := newMemory()
	var children []child
	for range maxNodeBytes / 40 {
		children = append(children, child{m.put(cid.Raw, random(1)), 1})
	}
	node, _ := appendNode(nil, children)
	if _, _, err := parseNode(node); !errors.Is(err, errNode) {
		t.Errorf("a node of %d bytes: %v", len(node), err)
	}
	// The largest CAR has this many leaves, and its nodes are far smaller.
	node, _ = appendNode(nil, children[:174])
	if _, _, err := parseNode(node); err != nil {
		t.Errorf("a node of %d bytes: %v", len(node), err)
	}
}

func TestDepthIsBounded(t *testing.T) {
	a, b := newNode(t, "a"), newNode(t, "b")
	meet(t, a, b)
	good := a.store.add(random(1<<maxDepth), 1, 2)     // maxDepth levels of two
	deep := a.store.add(random(1<<(maxDepth+1)), 1, 2) // one more
	n := 0
	for ref := range b.Fetch(t.Context(), []peer.ID{a.host.ID()}, []blockstore.Ref{good, deep}) {
		n++
		if ref != good {
			t.Error("too deep a file was fetched")
		}
	}
	if n != 1 {
		t.Errorf("%d files", n)
	}
}

func TestCIDsAreBounded(t *testing.T) {
	if n := len(newMemory().put(cid.DagProtobuf, nil).Bytes()); n > maxCIDBytes {
		t.Errorf("wire names of %d bytes are over the limit", n)
	}
}
