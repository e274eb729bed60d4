package p2p

import (
	"errors"
	"fmt"
	"testing"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"
)

func addr(t testing.TB, s string) ma.Multiaddr {
	t.Helper()
	a, err := ma.NewMultiaddr(s)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func TestConnectionsAreBounded(t *testing.T) {
	m, err := newResourceManager(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	opened := 0
	for i := range 2 * maxConns {
		from := addr(t, fmt.Sprintf("/ip4/10.%d.%d.1/udp/1/quic-v1", i/200, i%200))
		c, err := m.OpenConnection(network.DirInbound, false, from)
		if err != nil {
			break
		}
		if err := c.SetPeer(peer.ID(fmt.Sprint("peer ", i))); err != nil {
			break
		}
		opened++
	}
	if opened != maxConns {
		t.Errorf("%d connections, want %d", opened, maxConns)
	}
}

func TestConnectionsOfOnePeerAreBounded(t *testing.T) {
	m, err := newResourceManager(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	opened := 0
	for i := range 2 * maxConnsPerPeer {
		c, err := m.OpenConnection(network.DirInbound, false, addr(t, fmt.Sprintf("/ip4/10.0.%d.1/udp/1/quic-v1", i)))
		if err != nil {
			t.Fatal(err)
		}
		if c.SetPeer("peer") == nil {
			opened++
		}
	}
	if opened != maxConnsPerPeer {
		t.Errorf("%d connections, want %d", opened, maxConnsPerPeer)
	}
}

func TestMemoryIsBounded(t *testing.T) {
	m, err := newResourceManager(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	err = m.ViewSystem(func(s network.ResourceScope) error {
		span, err := s.BeginSpan()
		if err != nil {
			return err
		}
		defer span.Done()
		if err := span.ReserveMemory(maxMemoryBytes/2, network.ReservationPriorityAlways); err != nil {
			t.Errorf("half of it: %v", err)
		}
		if span.ReserveMemory(maxMemoryBytes, network.ReservationPriorityAlways) == nil {
			t.Error("more than all of it")
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestTopicsAreBounded(t *testing.T) {
	h := newHost(t, 1)
	h.mu.Lock()
	for i := range maxTopics {
		h.topics[fmt.Sprint(i)] = &topic{}
	}
	h.mu.Unlock()
	if _, err := h.Join("one more", nil, nil); !errors.Is(err, ErrTopic) {
		t.Errorf("got %v", err)
	}
	h.mu.Lock()
	clear(h.topics)
	h.mu.Unlock()
}

func TestStreamsAreBounded(t *testing.T) {
	h := newHost(t, 1)
	for i := range maxStreams {
		if !h.enter(peer.ID(fmt.Sprint(i / maxStreamsPerPeer))) {
			t.Fatalf("stream %d refused", i)
		}
	}
	if h.enter("another") {
		t.Error("one too many")
	}
	for i := range maxStreams {
		h.exit(peer.ID(fmt.Sprint(i / maxStreamsPerPeer)))
	}
	if len(h.serving) != 0 || h.served != 0 {
		t.Errorf("%d peers, %d streams left", len(h.serving), h.served)
	}
}

func TestAddressesOfAPeerAreBounded(t *testing.T) {
	h, err := New(Config{Key: testKey(1), Listen: []string{"/ip4/127.0.0.1/tcp/0"}})
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	last := ""
	for i := range 2 * maxAddrsPerPeer {
		last = fmt.Sprintf("/ip4/10.0.0.%d/tcp/1", i)
		if err := h.remember(peer.AddrInfo{ID: "p", Addrs: []ma.Multiaddr{addr(t, last)}}); err != nil {
			t.Fatal(err)
		}
	}
	got := h.peers["p"].addrs
	if len(got) != maxAddrsPerPeer || got[len(got)-1].String() != last {
		t.Errorf("%d addresses, the last is %s", len(got), got[len(got)-1])
	}
}
