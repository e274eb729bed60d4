package blockstore

import (
	"crypto/sha256"
	"encoding/binary"

	"github.com/ipfs/go-cid"
	"github.com/multiformats/go-multihash"
)

// A sealed CAR over 1 MiB is fetched and pinned as a UnixFS file: raw leaves of 1 MiB under a balanced tree of dag-pb
// nodes with at most 174 links each. The tree is a pure function of the digests of the leaves and of the size.
//
//	node    = link* data                              dag-pb: links (field 2) before data (field 1)
//	link    = 12 len 0a 24 CID 12 00 18 tsize         hash, empty name, bytes below
//	data    = 0a len 08 02 18 size (20 blocksize)*    UnixFS: type file, file size, file bytes under each link
//
// Lengths and sizes are varints (protobuf encoding, UnixFS v1 specification).

// wireNode is one dag-pb node of the tree.
type wireNode struct {
	digest string
	data   []byte
}

// subtree is what a node needs to know of a child.
type subtree struct {
	codec  uint64
	digest string
	tsize  uint64 // bytes of all blocks below and itself
	size   uint64 // bytes of the file below
}

// wireLeaves returns the digests of the leaves of sealed, one after the other.
func wireLeaves(sealed []byte) []byte {
	leaves := make([]byte, 0, digestBytes*((len(sealed)+leafBytes-1)/leafBytes))
	for {
		n := min(len(sealed), leafBytes)
		sum := sha256.Sum256(sealed[:n])
		leaves = append(leaves, sum[:]...)
		if sealed = sealed[n:]; len(sealed) == 0 {
			return leaves
		}
	}
}

// wireTree returns the nodes over the leaves of size bytes, children before parents and the root last, or none if
// there is one leaf, which is then the root itself.
func wireTree(leaves []byte, size int64) (nodes []wireNode, root Wire) {
	level := make([]subtree, 0, len(leaves)/digestBytes)
	for left := uint64(size); len(leaves) > 0; leaves = leaves[digestBytes:] {
		n := min(left, leafBytes)
		level = append(level, subtree{cid.Raw, string(leaves[:digestBytes]), n, n})
		left -= n
	}
	for len(level) > 1 {
		var up []subtree
		for len(level) > 0 {
			n := min(len(level), linksPerNode)
			node, tree := wireNodeOf(level[:n])
			nodes = append(nodes, node)
			up = append(up, tree)
			level = level[n:]
		}
		level = up
	}
	return nodes, Wire{cidFromDigest(level[0].codec, []byte(level[0].digest))}
}

func wireNodeOf(children []subtree) (wireNode, subtree) {
	const linkCIDBytes = 4 + digestBytes
	var node, link []byte
	tree := subtree{codec: cid.DagProtobuf}
	data := []byte{0x08, 0x02}
	for _, c := range children {
		link = append(link[:0], 0x0a, linkCIDBytes, 1, byte(c.codec), multihash.SHA2_256, digestBytes)
		link = append(append(link, c.digest...), 0x12, 0x00, 0x18)
		link = binary.AppendUvarint(link, c.tsize)
		node = append(binary.AppendUvarint(append(node, 0x12), uint64(len(link))), link...)
		tree.tsize += c.tsize
		tree.size += c.size
	}
	data = binary.AppendUvarint(append(data, 0x18), tree.size)
	for _, c := range children {
		data = binary.AppendUvarint(append(data, 0x20), c.size)
	}
	node = append(binary.AppendUvarint(append(node, 0x0a), uint64(len(data))), data...)
	sum := sha256.Sum256(node)
	tree.digest = string(sum[:])
	tree.tsize += uint64(len(node))
	return wireNode{tree.digest, node}, tree
}

// WireOf is the wire name of sealed bytes.
func WireOf(sealed []byte) Wire {
	_, root := wireTree(wireLeaves(sealed), int64(len(sealed)))
	return root
}

// wireFromDigest is the wire name of a CAR of size bytes.
func wireFromDigest(d []byte, size int64) Wire {
	if size > leafBytes {
		return Wire{cidFromDigest(cid.DagProtobuf, d)}
	}
	return Wire{cidFromDigest(cid.Raw, d)}
}
