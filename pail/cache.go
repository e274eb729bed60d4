package pail

import (
	"sync"

	"github.com/ipfs/go-cid"
)

// A Cache keeps decoded shards, the most recently used ones, for any number of
// trees. It is safe for concurrent use. A nil Cache keeps nothing.
//
// Of the shards that an Edit has replaced it keeps only the last few, for those
// who still look at an older tree: most are never asked for again.
type Cache struct {
	maxShards, maxBytes int

	mu sync.Mutex
	// mu guards the fields below it.
	slots     []slot           // slots[current] and slots[replaced] close two rings
	free      int32            // first of a list of free slots by next, 0 if there is none
	byCID     map[string]int32 // by binary CID
	sizeBytes int
	replaced  int // length of the ring of replaced shards
}

// A slot is an element of a ring in order of use: next of the slot that closes
// it is the newest, prev the oldest.
type slot struct {
	shard      *shard
	sizeBytes  int
	ring       int32
	prev, next int32
}

// The rings, by the slots that close them.
const (
	current  = 0
	replaced = 1
)

const (
	// shardBytes is the memory that a shard may take on average before the
	// Cache holds fewer of them than it was made for.
	shardBytes = 2048

	// maxReplaced is the number of replaced shards that are kept.
	maxReplaced = 1024
)

// NewCache returns a Cache of at most shards shards, in at most 2 KiB of memory
// times shards.
func NewCache(shards int) *Cache {
	return &Cache{
		maxShards: shards,
		maxBytes:  shards * shardBytes,
		slots:     []slot{current: {}, replaced: {prev: replaced, next: replaced}},
		byCID:     map[string]int32{},
	}
}

// Len returns the number of shards in the Cache.
func (c *Cache) Len() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.byCID)
}

func (c *Cache) get(cid string) *shard {
	if c == nil {
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	i, ok := c.byCID[cid]
	if !ok {
		return nil
	}
	if c.slots[current].next != i {
		c.unlink(i)
		c.linkFirst(i, current)
	}
	return c.slots[i].shard
}

// put adds a shard, which must have a cid.
func (c *Cache) put(s *shard) { c.replace(nil, []*shard{s}) }

// replace adds the shards of a new tree and takes note of those of the old one
// that they replace.
func (c *Cache) replace(old []cid.Cid, shards []*shard) {
	if c == nil {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, o := range old {
		if i, ok := c.byCID[o.KeyString()]; ok {
			c.unlink(i)
			c.linkFirst(i, replaced)
		}
	}
	for c.replaced > maxReplaced {
		c.evict(c.slots[replaced].prev)
	}
	for _, s := range shards {
		c.add(s)
	}
}

func (c *Cache) add(s *shard) {
	size := s.memory()
	if _, ok := c.byCID[s.cid.KeyString()]; ok || size > c.maxBytes || c.maxShards < 1 {
		return
	}
	for len(c.byCID) >= c.maxShards || c.sizeBytes+size > c.maxBytes {
		oldest := c.slots[replaced].prev
		if c.replaced == 0 {
			oldest = c.slots[current].prev
		}
		c.evict(oldest)
	}
	i := c.free
	if i != 0 {
		c.free = c.slots[i].next
	} else {
		i = int32(len(c.slots))
		c.slots = append(c.slots, slot{})
	}
	c.slots[i] = slot{shard: s, sizeBytes: size}
	c.linkFirst(i, current)
	c.byCID[s.cid.KeyString()] = i
	c.sizeBytes += size
}

func (c *Cache) evict(i int32) {
	c.unlink(i)
	delete(c.byCID, c.slots[i].shard.cid.KeyString())
	c.sizeBytes -= c.slots[i].sizeBytes
	c.slots[i] = slot{next: c.free}
	c.free = i
}

func (c *Cache) unlink(i int32) {
	s := &c.slots[i]
	c.slots[s.prev].next = s.next
	c.slots[s.next].prev = s.prev
	if s.ring == replaced {
		c.replaced--
	}
}

func (c *Cache) linkFirst(i, ring int32) {
	next := c.slots[ring].next
	c.slots[i].prev, c.slots[i].next, c.slots[i].ring = ring, next, ring
	c.slots[ring].next, c.slots[next].prev = i, i
	if ring == replaced {
		c.replaced++
	}
}

// memory returns about how many bytes a shard takes.
func (s *shard) memory() int {
	const (
		shardOverhead = 256 // the struct, its CID, its place in the Cache
		entryOverhead = 56
	)
	n := shardOverhead + len(s.prefix) + cap(s.entries)*entryOverhead
	for i := range s.entries {
		e := &s.entries[i]
		n += len(e.key) + len(e.value) + len(e.link)
	}
	return n
}
