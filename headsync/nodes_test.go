package headsync_test

// Whole nodes in one process: real stores in memory, real ledgers, real hosts on
// loopback.

import (
	"context"
	"crypto/ed25519"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"fpnode/bitswap"
	"fpnode/blockstore"
	"fpnode/clock"
	"fpnode/headsync"
	"fpnode/keyring"
	"fpnode/ledger"
	"fpnode/p2p"
)

// testKey is the key that the members of the tests' ledger share.
var testKey = sync.OnceValue(func() keyring.Key {
	key, err := keyring.NewKey()
	if err != nil {
		panic(err)
	}
	return key
})

// replica is the wiring that package node does.
type replica struct {
	*blockstore.Ledger
	db *ledger.Ledger
}

func (r replica) Stage(ctx context.Context, cars []blockstore.CAR) error {
	return r.db.Stage(ctx, cars)
}

func (r replica) Merge(ctx context.Context, metas []blockstore.Meta, cars []blockstore.CAR) (headsync.Merged, error) {
	res, err := r.db.Merge(ctx, metas, cars)
	if err != nil {
		return headsync.Merged{}, err
	}
	out := headsync.Merged{Accepted: res.Accepted}
	for _, w := range res.Waiting {
		out.Waiting = append(out.Waiting, w.Meta)
	}
	for _, q := range res.Quarantined {
		out.Refused = append(out.Refused, q.Meta)
	}
	return out, nil
}

type testNode struct {
	t     testing.TB
	name  string
	fs    vfs.FS
	ring  *keyring.Ring
	entry keyring.Entry
	log   *slog.Logger

	store *blockstore.Store
	cars  *blockstore.Ledger
	db    *ledger.Ledger
	host  *p2p.Host
	swap  *bitswap.Exchange
	sync  *headsync.Sync

	stop func()
}

// openNode makes a node that is not up yet.
func openNode(t testing.TB, name string, key keyring.Key) *testNode {
	t.Helper()
	n := &testNode{t: t, name: name, fs: vfs.NewMem(), log: slog.New(slog.DiscardHandler)}
	if os.Getenv("FPNODE_TEST_LOG") != "" {
		n.log = slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug})).With("node", name)
	}
	var err error
	if err = n.fs.MkdirAll("home", 0o700); err != nil {
		t.Fatal(err)
	}
	if n.ring, err = keyring.Open(n.fs, "home/keys"); err != nil {
		t.Fatal(err)
	}
	if n.entry, err = n.ring.Create("shared", []keyring.Key{key}); err != nil {
		t.Fatal(err)
	}
	n.open()
	t.Cleanup(n.close)
	return n
}

func (n *testNode) open() {
	n.t.Helper()
	var err error
	n.store, err = blockstore.Open(blockstore.Config{FS: n.fs, Dir: "home", Vault: n.ring.Vault()})
	if err != nil {
		n.t.Fatal(err)
	}
	if n.cars, err = n.store.Ledger(n.entry.ID, n.entry.Keys); err != nil {
		n.t.Fatal(err)
	}
	n.db, err = ledger.Open(context.Background(), ledger.Config{Name: n.name, ID: n.entry.ID, Store: n.cars, Logger: n.log})
	if err != nil {
		n.t.Fatal(err)
	}
}

// up brings the node onto the network.
func (n *testNode) up(peers ...*testNode) {
	n.t.Helper()
	var addrs []string
	for _, p := range peers {
		addrs = append(addrs, p.host.Addrs()...)
	}
	seed := n.ring.Identity().Libp2pSeed()
	var err error
	n.host, err = p2p.New(p2p.Config{
		Key: ed25519.NewKeyFromSeed(seed[:]), Listen: []string{"/ip4/127.0.0.1/tcp/0"}, Peers: addrs, Logger: n.log,
	})
	if err != nil {
		n.t.Fatal(err)
	}
	n.swap = bitswap.New(bitswap.Config{Host: n.host.Libp2p(), Store: n.store, NotFound: blockstore.ErrNotFound})
	n.sync = headsync.New(headsync.Config{Net: n.host, Fetcher: n.swap, Logger: n.log})
	n.cars.OnCommit(func(cars []blockstore.Ref) { n.sync.Committed(n.entry.ID, cars...) })
	err = n.sync.Add(headsync.Ledger{
		ID: n.entry.ID, Name: n.name, Secrets: n.entry.Keys, Replica: replica{n.cars, n.db},
	})
	if err != nil {
		n.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() {
		if err := n.host.Run(ctx); err != nil {
			n.t.Errorf("%s: host: %v", n.name, err)
		}
	})
	running.Go(func() {
		if err := n.sync.Run(ctx); err != nil {
			n.t.Errorf("%s: sync: %v", n.name, err)
		}
	})
	n.stop = func() {
		cancel()
		running.Wait()
		n.cars.OnCommit(nil)
		if err := n.swap.Close(); err != nil {
			n.t.Errorf("%s: bitswap: %v", n.name, err)
		}
		if err := n.host.Close(); err != nil {
			n.t.Errorf("%s: host: %v", n.name, err)
		}
	}
}

// down takes the node off the network and leaves it open.
func (n *testNode) down() {
	if n.stop != nil {
		n.stop()
		n.stop = nil
	}
}

func (n *testNode) close() {
	n.down()
	if n.db == nil {
		return
	}
	if err := n.db.Close(); err != nil {
		n.t.Error(err)
	}
	if err := n.store.Close(); err != nil {
		n.t.Error(err)
	}
	n.db = nil
}

func (n *testNode) put(doc string) {
	n.t.Helper()
	d, err := ledger.ParseJSON([]byte(doc))
	if err != nil {
		n.t.Fatal(err)
	}
	if _, err := n.db.Put(n.t.Context(), d); err != nil {
		n.t.Fatal(err)
	}
}

func (n *testNode) putMany(from, to int) {
	n.t.Helper()
	for i := from; i < to; i++ {
		n.put(fmt.Sprintf(`{"_id":"%s-%06d","n":%d}`, n.name, i, i))
	}
}

func (n *testNode) head() string {
	head := n.db.Head()
	clock.SortBytes(head)
	return fmt.Sprint(head)
}

// waitEqual waits until all nodes have the same head, and compares roots and counts.
func waitEqual(t testing.TB, nodes ...*testNode) {
	t.Helper()
	waitFor(t, "equal heads", func() bool {
		for _, n := range nodes[1:] {
			if n.head() != nodes[0].head() {
				return false
			}
		}
		return true
	}, nodes...)
	info, err := nodes[0].db.Info(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range nodes[1:] {
		other, err := n.db.Info(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if other.Root != info.Root || other.Docs != info.Docs {
			t.Errorf("%s: root %s, %d documents; %s: root %s, %d documents",
				nodes[0].name, info.Root, info.Docs, n.name, other.Root, other.Docs)
		}
	}
}

func waitFor(t testing.TB, what string, ok func() bool, nodes ...*testNode) {
	t.Helper()
	deadline := time.Now().Add(30 * time.Second)
	for !ok() {
		if time.Now().After(deadline) {
			for _, n := range nodes {
				st, err := n.sync.Status(n.entry.ID)
				t.Logf("%s: head %s, %+v, %v", n.name, n.head(), st, err)
			}
			t.Fatalf("waited in vain for %s", what)
		}
		time.Sleep(500 * time.Microsecond)
	}
}

func (n *testNode) isMember(other *testNode) bool {
	st, err := n.sync.Status(n.entry.ID)
	return err == nil && slices.Contains(st.Members, other.host.ID())
}

func waitMet(t testing.TB, a, b *testNode) {
	t.Helper()
	waitFor(t, "acquaintance", func() bool { return a.isMember(b) && b.isMember(a) }, a, b)
}
