package pail

import "sync"

// A Cache keeps decoded shards, the most recently used ones, for any number of
// trees. It is safe for concurrent use. A nil Cache keeps nothing.
type Cache struct {
	maxShards, maxBytes int

	mu sync.Mutex
	// mu guards the fields below it.
	slots     []slot // slots[0] closes the ring: its next is the newest, its prev the oldest
	free      int32  // first of a list of free slots by next, 0 if there is none
	byCID     map[string]int32
	sizeBytes int
}

// A slot is an element of a ring in order of use.
type slot struct {
	shard      *shard
	sizeBytes  int
	prev, next int32
}

// shardBytes is the memory that a shard may take on average before the Cache
// holds fewer of them than it was made for.
const shardBytes = 2048

// NewCache returns a Cache of at most shards shards, in at most 2 KiB of memory
// times shards.
func NewCache(shards int) *Cache {
	return &Cache{
		maxShards: shards,
		maxBytes:  shards * shardBytes,
		slots:     make([]slot, 1),
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
	if c.slots[0].next != i {
		c.unlink(i)
		c.linkFirst(i)
	}
	return c.slots[i].shard
}

// put adds shards, which must have a cid.
func (c *Cache) put(shards ...*shard) {
	if c == nil {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, s := range shards {
		size := s.memory()
		if _, ok := c.byCID[s.cid]; ok || size > c.maxBytes || c.maxShards < 1 {
			continue
		}
		for len(c.byCID) >= c.maxShards || c.sizeBytes+size > c.maxBytes {
			c.evictOldest()
		}
		i := c.free
		if i != 0 {
			c.free = c.slots[i].next
		} else {
			i = int32(len(c.slots))
			c.slots = append(c.slots, slot{})
		}
		c.slots[i] = slot{shard: s, sizeBytes: size}
		c.linkFirst(i)
		c.byCID[s.cid] = i
		c.sizeBytes += size
	}
}

func (c *Cache) evictOldest() {
	i := c.slots[0].prev
	c.unlink(i)
	delete(c.byCID, c.slots[i].shard.cid)
	c.sizeBytes -= c.slots[i].sizeBytes
	c.slots[i] = slot{next: c.free}
	c.free = i
}

func (c *Cache) unlink(i int32) {
	s := &c.slots[i]
	c.slots[s.prev].next = s.next
	c.slots[s.next].prev = s.prev
}

func (c *Cache) linkFirst(i int32) {
	next := c.slots[0].next
	c.slots[i].prev, c.slots[i].next = 0, next
	c.slots[0].next, c.slots[next].prev = i, i
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
