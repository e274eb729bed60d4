package pail

import (
	"github.com/ipfs/go-cid"

	"fpnode/clock"
	"fpnode/internal/car"
	"fpnode/internal/dagcbor"
)

// The first commit of every ledger that Fireproof 0.24 began: the put of one
// document, the same in all of them, so that any two have an event in common
// and can be merged (Fireproof format, "Genesis").
var (
	GenesisDoc    = cid.MustParse("bafyreidnvv4mwvweup5w52ddre2sl4syhvczm6ejqsmuekajowdl2cf2q4")
	GenesisRoot   = cid.MustParse("bafyreiejg3twlaxr7gfvvhtxrhvwaydytdv4guidmtvaz5dskm6gp73ryi")
	GenesisEvent  = cid.MustParse("bafyreiblui55o25dopc5faol3umsnuohb5carto7tot4kicnkfc37he4h4")
	GenesisHeader = cid.MustParse("bafyreibxibqhi6wh5klrje7ne4htffeqyyqfd6y7x2no6wnhid4nixizau")
	GenesisName   = cid.MustParse("baembeig2is4vdgz4gyiadfh5uutxxeiuqtacnesnytrnilpwcu7q5m5tmu")
)

// GenesisKey is the key of that document, and its _id. It is not shown among
// the documents of a ledger.
const GenesisKey = "baembeiarootfireproofgenesisblockaaaafireproofgenesisblocka"

// GenesisBlocks returns the blocks of the first commit in the order in which
// they stand in its CAR: header, document, empty map, map, event. The CAR's
// root is the header, and its name is GenesisName.
func GenesisBlocks() []car.Block {
	doc := dagcbor.AppendMap(nil, 1)
	doc = dagcbor.AppendText(doc, "doc")
	doc = dagcbor.AppendMap(doc, 1)
	doc = dagcbor.AppendText(doc, "_id")
	doc = dagcbor.AppendText(doc, GenesisKey)

	root := draft{entries: []slot{{entry: appendEntry(nil, GenesisKey, nil, GenesisDoc.Bytes())}}}
	data := Data{Root: GenesisRoot, Ops: []Op{{Key: GenesisKey, Value: GenesisDoc}}}
	_, event := clock.Encode(data.Encode(), nil)
	header := car.Header{Head: []cid.Cid{GenesisEvent}, HasHead: true}

	return []car.Block{
		{CID: GenesisHeader, Data: header.Encode()},
		{CID: GenesisDoc, Data: doc},
		{CID: emptyShard.cid, Data: emptyShard.block()},
		{CID: GenesisRoot, Data: root.shard().block()},
		{CID: GenesisEvent, Data: event},
	}
}
