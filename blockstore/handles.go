package blockstore

import (
	"container/list"
	"errors"
	"sync"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// handles is the open segment files of a store: at most maxHandles that nobody is using, opened on demand, the least
// recently used closed first. A thousand ledgers do not mean a thousand open files.
type handles struct {
	fs vfs.FS

	mu   sync.Mutex
	open map[segmentKey]*handle
	lru  list.List // of *handle, most recently used first
}

type segmentKey struct {
	dir    string
	number uint32
}

// handle is an open segment file. Its File may be used until release.
type handle struct {
	vfs.File
	key      segmentKey
	writable bool

	// guarded by handles.mu
	users int
	gone  bool // no longer in the cache: the last user closes it
	elem  *list.Element
}

func newHandles(fs vfs.FS) *handles {
	return &handles{fs: fs, open: make(map[segmentKey]*handle)}
}

// get returns a handle of a segment, which must exist.
func (h *handles) get(key segmentKey, writable bool) (*handle, error) {
	h.mu.Lock()
	if f := h.open[key]; f != nil && (f.writable || !writable) {
		f.users++
		h.lru.MoveToFront(f.elem)
		h.mu.Unlock()
		return f, nil
	}
	h.mu.Unlock()

	path := h.fs.PathJoin(key.dir, segmentName(key.number))
	var file vfs.File
	var err error
	if writable {
		file, err = h.fs.OpenReadWrite(path, vfs.WriteCategoryUnspecified)
	} else {
		file, err = h.fs.Open(path, vfs.RandomReadsOption)
	}
	if err != nil {
		return nil, err
	}
	return h.put(key, file, writable), nil
}

// put adds a file just opened, in place of any other of the same segment, and returns it in use.
func (h *handles) put(key segmentKey, file vfs.File, writable bool) *handle {
	f := &handle{File: file, key: key, writable: writable, users: 1}
	h.mu.Lock()
	defer h.mu.Unlock()
	if old := h.open[key]; old != nil {
		h.remove(old)
	}
	h.open[key] = f
	f.elem = h.lru.PushFront(f)
	for e := h.lru.Back(); e != nil && h.lru.Len() > maxHandles; {
		old := e.Value.(*handle)
		if e = e.Prev(); old.users == 0 {
			h.remove(old)
		}
	}
	return f
}

// release ends a use.
func (h *handles) release(f *handle) {
	h.mu.Lock()
	defer h.mu.Unlock()
	f.users--
	if f.users == 0 && f.gone {
		f.Close() // read or synced already: there is nothing left to fail
	}
}

// remove takes a handle out of the cache. h.mu is held.
func (h *handles) remove(f *handle) {
	h.lru.Remove(f.elem)
	delete(h.open, f.key)
	f.gone = true
	if f.users == 0 {
		f.Close()
	}
}

// forget takes a segment out of the cache, or with number 0 all segments of a directory.
func (h *handles) forget(key segmentKey) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for k, f := range h.open {
		if k.dir == key.dir && (key.number == 0 || k.number == key.number) {
			h.remove(f)
		}
	}
}

// close closes all files. Nobody may be using one.
func (h *handles) close() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	var errs []error
	for _, f := range h.open {
		if f.users > 0 {
			errs = append(errs, errors.New("a segment is still in use"))
		}
		h.remove(f)
	}
	return errors.Join(errs...)
}
