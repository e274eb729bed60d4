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
	cells     []cell // cells[current] and cells[replaced] close two rings
	free      int32  // first of a list of free cells by next, 0 if there is none
	byLink    map[link]int32
	sizeBytes int
	replaced  int // length of the ring of replaced shards
}

// A cell is an element of a ring in order of use: next of the cell that closes
// it is the newest, prev the oldest.
type cell struct {
	shard      *shard
	sizeBytes  int
	ring       int32
	prev, next int32
}

// The rings, by the cells that close them.
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
		cells:     []cell{current: {}, replaced: {prev: replaced, next: replaced}},
		byLink:    map[link]int32{},
	}
}

// Len returns the number of shards in the Cache.
func (c *Cache) Len() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.byLink)
}

func (c *Cache) get(l link) *shard {
	if c == nil {
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	i, ok := c.byLink[l]
	if !ok {
		return nil
	}
	if c.cells[current].next != i {
		c.unlink(i)
		c.linkFirst(i, current)
	}
	return c.cells[i].shard
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
		if i, ok := c.byLink[linkOf(o)]; ok {
			c.unlink(i)
			c.linkFirst(i, replaced)
		}
	}
	for c.replaced > maxReplaced {
		c.evict(c.cells[replaced].prev)
	}
	for _, s := range shards {
		c.add(s)
	}
}

func (c *Cache) add(s *shard) {
	l, size := linkOf(s.cid), s.memory()
	if _, ok := c.byLink[l]; ok || size > c.maxBytes || c.maxShards < 1 {
		return
	}
	for len(c.byLink) >= c.maxShards || c.sizeBytes+size > c.maxBytes {
		oldest := c.cells[replaced].prev
		if c.replaced == 0 {
			oldest = c.cells[current].prev
		}
		c.evict(oldest)
	}
	i := c.free
	if i != 0 {
		c.free = c.cells[i].next
	} else {
		i = int32(len(c.cells))
		c.cells = append(c.cells, cell{})
	}
	c.cells[i] = cell{shard: s, sizeBytes: size}
	c.linkFirst(i, current)
	c.byLink[l] = i
	c.sizeBytes += size
}

func (c *Cache) evict(i int32) {
	c.unlink(i)
	delete(c.byLink, linkOf(c.cells[i].shard.cid))
	c.sizeBytes -= c.cells[i].sizeBytes
	c.cells[i] = cell{next: c.free}
	c.free = i
}

func (c *Cache) unlink(i int32) {
	s := &c.cells[i]
	c.cells[s.prev].next = s.next
	c.cells[s.next].prev = s.prev
	if s.ring == replaced {
		c.replaced--
	}
}

func (c *Cache) linkFirst(i, ring int32) {
	next := c.cells[ring].next
	c.cells[i].prev, c.cells[i].next, c.cells[i].ring = ring, next, ring
	c.cells[ring].next, c.cells[next].prev = i, i
	if ring == replaced {
		c.replaced++
	}
}
