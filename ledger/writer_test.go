package ledger

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/ipfs/go-cid"

	"fpnode/blockstore"
	"fpnode/clock"
	"fpnode/internal/car"
	"fpnode/pail"
)

// tipCAR is the header and the blocks of the only tip's CAR.
func (h *home) tipCAR() (car.Header, []cid.Cid, blockstore.Ref) {
	h.tb.Helper()
	tips := h.Tips()
	if len(tips) != 1 {
		h.tb.Fatalf("%d tips", len(tips))
	}
	return h.carNamed(tips[0].Group[0].Name)
}

func (h *home) carNamed(n blockstore.Name) (car.Header, []cid.Cid, blockstore.Ref) {
	h.tb.Helper()
	blocks, err := h.cars.BlocksOf(context.Background(), n)
	if err != nil {
		h.tb.Fatal(err)
	}
	b, err := h.cars.Block(context.Background(), blocks[0])
	if err != nil {
		h.tb.Fatal(err)
	}
	header, err := car.DecodeHeader(b)
	if err != nil {
		h.tb.Fatal(err)
	}
	ref, ok, err := h.cars.Ref(n)
	if err != nil || !ok {
		h.tb.Fatal(ok, err)
	}
	return header, blocks, ref
}

// Every ledger begins with the commit that JavaScript writes, to the byte: its name is the hash of the plaintext.
func TestFirstWriteBeginsWithGenesis(t *testing.T) {
	h := newHome(t)
	if len(h.Head()) != 0 || len(h.Tips()) != 0 {
		t.Fatal("a new ledger is not empty")
	}
	h.put(`{"_id":"a"}`)
	genesis := blockstore.Name{Cid: pail.GenesisName}
	if _, ok, err := h.cars.Ref(genesis); err != nil || !ok {
		t.Fatalf("no CAR %s: %v", genesis, err)
	}
	header, blocks, _ := h.tipCAR()
	wantEqual(t, "cars", len(header.Cars), 1)
	wantEqual(t, "car log", header.Cars[0][0].String(), genesis.String())
	wantEqual(t, "head", textsOf(header.Head), textsOf(h.Head()))
	// header, document, two shards (the root keeps the genesis key apart from "a"), event
	wantEqual(t, "last block", blocks[len(blocks)-1].String(), h.Head()[0].String())
	wantEqual(t, "genesis document", h.get(pail.GenesisKey), `{"_id":"`+pail.GenesisKey+`"}`)
	wantEqual(t, "syncs", h.store.Syncs(), int64(1))
	meta := h.Tips()[0]
	first := blockstore.NewMeta([]blockstore.Ref{{Name: genesis}}, nil)
	wantEqual(t, "replaced", textsOf(meta.Parents), []string{first.CID.String()})
}

func TestCommitBlockOrder(t *testing.T) {
	h := newHome(t)
	h.put(`{"_id":"a"}`)
	h.put(`{"_id":"b","n":1}`, `{"_id":"c","n":2}`)
	_, blocks, _ := h.tipCAR()
	var kinds []string
	for _, c := range blocks {
		b, err := h.cars.Block(t.Context(), c)
		if err != nil {
			t.Fatal(err)
		}
		switch _, err := clock.Decode(c, b); {
		case err == nil:
			kinds = append(kinds, "event")
		case strings.HasPrefix(string(b), "\xa1\x62fp"):
			kinds = append(kinds, "header")
		case strings.HasPrefix(string(b), string(docPrefix)):
			kinds = append(kinds, "doc")
		default:
			kinds = append(kinds, "shard")
		}
	}
	wantEqual(t, "order", slices.Compact(kinds), []string{"header", "doc", "shard", "event"})
	wantEqual(t, "root last of the shards", blocks[len(blocks)-2].String(), must(h.Root(t.Context())).String())
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// hold keeps the writer busy until release is called, so that what is put meanwhile waits together.
func (h *home) hold() (release func()) {
	h.tb.Helper()
	held, free := make(chan struct{}), make(chan struct{})
	go h.exclusive(context.Background(), func() error {
		close(held)
		<-free
		return nil
	})
	<-held
	return func() { close(free) }
}

// waitQueued waits until n jobs are in the queue.
func (h *home) waitQueued(n int) {
	h.tb.Helper()
	for len(h.queue) < n {
	}
}

func TestWaitingPutsShareOneCommit(t *testing.T) {
	h := newHome(t)
	h.put(`{"_id":"a"}`)
	before, syncs := h.cars.Stats().Cars, h.store.Syncs()
	release := h.hold()
	var wg sync.WaitGroup
	receipts := make([]Receipt, 20)
	for i := range receipts {
		wg.Go(func() { receipts[i] = h.put(fmt.Sprintf(`{"_id":"p%d","n":%d}`, i, i)) })
	}
	h.waitQueued(len(receipts))
	release()
	wg.Wait()
	wantEqual(t, "CARs", h.cars.Stats().Cars-before, int64(1))
	wantEqual(t, "syncs", h.store.Syncs()-syncs, int64(1))
	// Every put is an event of its own on the one before.
	clocks := map[string]bool{}
	for i, r := range receipts {
		clocks[r.Clock[0].String()] = true
		wantEqual(t, "document", h.get(fmt.Sprintf("p%d", i)), fmt.Sprintf(`{"n":%d,"_id":"p%d"}`, i, i))
	}
	wantEqual(t, "events", len(clocks), len(receipts))
	x, done, err := h.ancestry()
	if err != nil {
		t.Fatal(err)
	}
	height, _ := x.Height(h.Head()[0])
	done()
	wantEqual(t, "height", height, uint32(1+len(receipts)))
	before1 := h.dump()
	h.reopen()
	wantEqual(t, "after a restart", h.dump(), before1)
}

// One put that cannot be applied does not fail those it shares a commit with.
func TestFailedPutFailsAlone(t *testing.T) {
	h := newHome(t)
	h.put(`{"_id":"a"}`)
	release := h.hold()
	boom := errors.New("boom")
	var bad, good error
	var wg sync.WaitGroup
	wg.Go(func() {
		d := draft(t, `{"_id":"bad"}`)
		c, b, _ := d.block()
		j := &job{docs: []Doc{{ID: "bad", CID: c, block: b}}, done: make(chan error, 1)}
		j.when = func(context.Context, pail.Tree) error { return boom }
		bad = h.submit(context.Background(), j)
	})
	h.waitQueued(1)
	wg.Go(func() { _, good = h.Put(context.Background(), draft(t, `{"_id":"good"}`)) })
	h.waitQueued(2)
	release()
	wg.Wait()
	if !errors.Is(bad, boom) || good != nil {
		t.Errorf("bad: %v, good: %v", bad, good)
	}
	wantEqual(t, "documents", h.list(ListOptions{}), []string{`{"_id":"a"}`, `{"_id":"good"}`})
}

// A failed write to an empty ledger leaves it empty: no genesis on its own.
func TestFailedFirstPutLeavesNothing(t *testing.T) {
	h := newHome(t)
	j := &job{docs: []Doc{{ID: "x", CID: tombstoneCID, Deleted: true, block: delBlock}}, done: make(chan error, 1)}
	j.when = func(context.Context, pail.Tree) error { return errors.New("no") }
	if err := h.submit(t.Context(), j); err == nil {
		t.Fatal("it was written")
	}
	wantEqual(t, "head", len(h.Head()), 0)
	wantEqual(t, "CARs", h.cars.Stats().Cars, int64(0))
}

func TestPutOfTheSameIsNoEvent(t *testing.T) {
	h := newHome(t)
	r := h.put(`{"_id":"a","n":1}`)
	syncs := h.store.Syncs()
	again := h.put(`{"n":1.0,"_id":"a"}`)
	wantEqual(t, "clock", textsOf(again.Clock), textsOf(r.Clock))
	wantEqual(t, "syncs", h.store.Syncs(), syncs)
	h.del("a")
	head := h.Head()
	h.del("a")
	wantEqual(t, "deleting twice", textsOf(h.Head()), textsOf(head))
	// A batch always makes an event, as in JavaScript.
	h.put(`{"_id":"b"}`, `{"_id":"c"}`)
	head = h.Head()
	h.put(`{"_id":"b"}`, `{"_id":"c"}`)
	if h.Head()[0] == head[0] {
		t.Error("a batch that changes nothing made no event")
	}
}

func TestDuplicateIDsInOneBatch(t *testing.T) {
	h := newHome(t)
	h.put(`{"_id":"a","n":1}`, `{"_id":"b","n":2}`, `{"_id":"a","n":3}`)
	wantEqual(t, "last wins", h.get("a"), `{"n":3,"_id":"a"}`)
	var ns []string
	for v, err := range h.History(t.Context(), "a") {
		if err != nil {
			t.Fatal(err)
		}
		ns = append(ns, fmt.Sprint(toJSON(t, v.Doc), v.Current))
	}
	wantEqual(t, "history", ns, []string{`{"n":3,"_id":"a"}true`, `{"n":1,"_id":"a"}false`})
	want := h.dump()
	h.reopen()
	wantEqual(t, "after a restart", h.dump(), want)
}

// The header of a commit does not grow with history: at most 1 KiB with one writer.
func TestHeaderIsIndependentOfHistory(t *testing.T) {
	h := newHome(t)
	sizes := map[int]bool{}
	for i := range 300 {
		h.put(fmt.Sprintf(`{"_id":"d%d"}`, i))
		_, blocks, _ := h.tipCAR()
		n, err := h.cars.Size(blocks[0])
		if err != nil {
			t.Fatal(err)
		}
		sizes[int(n)] = true
	}
	if len(sizes) != 1 {
		t.Errorf("header sizes %v", sizes)
	}
	for n := range sizes {
		if n > 1024 {
			t.Errorf("header of %d bytes", n)
		}
	}
}

// At most 4 KiB where 64 siblings are joined, and it names each of their groups once, sorted.
func TestHeaderAmongSiblings(t *testing.T) {
	base, h := newHome(t), newHome(t)
	base.put(`{"_id":"base"}`)
	const n = 64
	for i := range n {
		o := newHome(t)
		o.mergeFrom(base)
		o.put(fmt.Sprintf(`{"_id":"s%d"}`, i))
		h.mergeFrom(o)
		o.close()
	}
	wantEqual(t, "tips", len(h.Tips()), n)
	wantEqual(t, "heads", len(h.Head()), n)
	h.put(`{"_id":"join"}`)
	header, blocks, _ := h.tipCAR()
	size := must(h.cars.Size(blocks[0]))
	if size > 4096 {
		t.Errorf("header of %d bytes among %d siblings", size, n)
	}
	wantEqual(t, "groups", len(header.Cars), n)
	if !slices.IsSortedFunc(header.Cars, func(a, b []cid.Cid) int { return strings.Compare(a[0].KeyString(), b[0].KeyString()) }) {
		t.Error("groups are not sorted")
	}
	wantEqual(t, "heads afterwards", len(h.Head()), 1)
}

func TestClose(t *testing.T) {
	h := newHome(t)
	h.put(`{"_id":"a"}`)
	if err := h.Ledger.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := h.Put(t.Context(), draft(t, `{"_id":"b"}`)); !errors.Is(err, ErrClosed) {
		t.Errorf("put after Close: %v", err)
	}
	if err := h.Ledger.Close(); err != nil {
		t.Errorf("second Close: %v", err)
	}
}

// A put whose context ends while it waits was not written.
func TestPutGivesUpWhileItWaits(t *testing.T) {
	h := newHome(t)
	h.put(`{"_id":"a"}`)
	release := h.hold()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() {
		_, err := h.Put(ctx, draft(t, `{"_id":"b"}`))
		done <- err
	}()
	h.waitQueued(1)
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("put: %v", err)
	}
	release()
	h.put(`{"_id":"c"}`)
	wantEqual(t, "documents", h.list(ListOptions{}), []string{`{"_id":"a"}`, `{"_id":"c"}`})
}

// When the queue is full a put waits for room, and gives up with its context.
func TestQueueIsBounded(t *testing.T) {
	h := newHome(t)
	release := h.hold()
	var wg sync.WaitGroup
	for range writeQueue {
		wg.Go(func() { h.exclusive(context.Background(), func() error { return nil }) })
	}
	h.waitQueued(writeQueue)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := h.Put(ctx, draft(t, `{"_id":"b"}`)); !errors.Is(err, context.Canceled) {
		t.Errorf("put on a full queue: %v", err)
	}
	release()
	wg.Wait()
}

func TestGroupLimits(t *testing.T) {
	h := newHome(t)
	h.put(`{"_id":"a"}`)
	release := h.hold()
	var wg sync.WaitGroup
	for i := range groupJobs + 10 {
		wg.Go(func() { h.put(fmt.Sprintf(`{"_id":"p%d"}`, i)) })
	}
	h.waitQueued(groupJobs + 10)
	syncs := h.store.Syncs()
	release()
	wg.Wait()
	wantEqual(t, "commits of more than groupJobs puts", h.store.Syncs()-syncs, int64(2))

	release = h.hold()
	big := strings.Repeat("x", groupBytes/2+1)
	for i := range 3 {
		wg.Go(func() { h.put(fmt.Sprintf(`{"_id":"big%d","b":%q}`, i, big)) })
	}
	h.waitQueued(3)
	syncs = h.store.Syncs()
	release()
	wg.Wait()
	wantEqual(t, "commits of more than groupBytes", h.store.Syncs()-syncs, int64(2))
}

func TestBulkOfFiveThousandIsOneCAR(t *testing.T) {
	h := newHome(t)
	drafts := make([]Draft, 5000)
	for i := range drafts {
		drafts[i] = must(FromMap(map[string]any{"n": i, "text": strings.Repeat("x", 100)}))
	}
	r, err := h.Put(t.Context(), drafts...)
	if err != nil {
		t.Fatal(err)
	}
	wantEqual(t, "CARs with genesis", h.cars.Stats().Cars, int64(2))
	wantEqual(t, "documents", must(h.Info(t.Context())).Docs, 5000)
	wantEqual(t, "ids", len(r.IDs), 5000)
	h.reopen()
	wantEqual(t, "documents", len(h.list(ListOptions{})), 5000)
}
