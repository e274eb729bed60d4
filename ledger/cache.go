package ledger

import (
	"hash/maphash"
	"sync"

	"github.com/ipfs/go-cid"
)

// docCache keeps the current values of hot documents, the least recently used ones leaving first. Only the update
// that made a value current, or a reader that saw no update since before it looked, puts one in: so a cached value
// is never older than the view.
type docCache struct {
	seed  maphash.Seed
	parts [16]docCachePart
}

type docCachePart struct {
	mu    sync.Mutex
	docs  map[string]*hotDoc
	ring  hotDoc // most recently used first
	bytes int64
	max   int64
	gen   uint64 // counts the updates of this part
}

type hotDoc struct {
	doc        Doc
	prev, next *hotDoc
}

// hotDocOverhead is what an entry costs beside its id and block: map slot, list node, headers.
const hotDocOverhead = 256

func newDocCache(bytes int64) *docCache {
	c := &docCache{seed: maphash.MakeSeed()}
	for i := range c.parts {
		p := &c.parts[i]
		p.docs = map[string]*hotDoc{}
		p.ring.prev, p.ring.next = &p.ring, &p.ring
		p.max = bytes / int64(len(c.parts))
	}
	return c
}

func (c *docCache) part(id string) *docCachePart {
	return &c.parts[maphash.String(c.seed, id)%uint64(len(c.parts))]
}

// get is the cached value; gen is to be handed to add after a miss.
func (c *docCache) get(id string) (d Doc, ok bool, gen uint64) {
	p := c.part(id)
	p.mu.Lock()
	defer p.mu.Unlock()
	h := p.docs[id]
	if h == nil {
		return Doc{}, false, p.gen
	}
	h.unlink()
	p.ring.push(h)
	return h.doc, true, p.gen
}

// peek is the cached value if it is the version asked for. It does not count as use.
func (c *docCache) peek(id string, value cid.Cid) (Doc, bool) {
	p := c.part(id)
	p.mu.Lock()
	defer p.mu.Unlock()
	h := p.docs[id]
	if h == nil || h.doc.CID != value {
		return Doc{}, false
	}
	return h.doc, true
}

// add puts in what a reader found, unless the part was updated since gen.
func (c *docCache) add(d Doc, gen uint64) {
	p := c.part(d.ID)
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.gen == gen {
		p.put(d)
	}
}

// set puts in new current values and takes out keys that have none.
func (c *docCache) set(hot []Doc, cold []string) {
	for _, d := range hot {
		p := c.part(d.ID)
		p.mu.Lock()
		p.gen++
		p.put(d)
		p.mu.Unlock()
	}
	for _, id := range cold {
		p := c.part(id)
		p.mu.Lock()
		p.gen++
		p.drop(id)
		p.mu.Unlock()
	}
}

func (p *docCachePart) put(d Doc) {
	p.drop(d.ID)
	size := hotSize(d)
	if size > p.max/4 {
		return
	}
	h := &hotDoc{doc: d}
	p.docs[d.ID] = h
	p.ring.push(h)
	p.bytes += size
	for p.bytes > p.max {
		p.drop(p.ring.prev.doc.ID)
	}
}

func (p *docCachePart) drop(id string) {
	h := p.docs[id]
	if h == nil {
		return
	}
	delete(p.docs, id)
	h.unlink()
	p.bytes -= hotSize(h.doc)
}

func hotSize(d Doc) int64 { return int64(len(d.ID) + cap(d.block) + hotDocOverhead) }

func (h *hotDoc) unlink() { h.prev.next, h.next.prev = h.next, h.prev }

func (h *hotDoc) push(n *hotDoc) {
	n.prev, n.next = h, h.next
	h.next.prev, h.next = n, n
}
