package p2p

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
)

// ErrTooLong is returned by a read on a stream whose peer has sent more than allowed.
var ErrTooLong = errors.New("p2p: peer sent more than allowed")

// limited is a stream with a budget of bytes to read.
type limited struct {
	network.Stream
	left int64
}

func (l *limited) Read(b []byte) (int, error) {
	if l.left <= 0 {
		return 0, ErrTooLong
	}
	if int64(len(b)) > l.left {
		b = b[:l.left]
	}
	n, err := l.Stream.Read(b)
	l.left -= int64(n)
	return n, err
}

// Handle serves a protocol until stop is called: serve is called for each stream
// that a peer opens, on a goroutine of its own, with at most maxBytes to read and
// timeout in all. If serve returns an error the stream is reset, otherwise closed.
// Streams above the limits of one peer or of the host are reset unread. stop resets the
// streams that are being served and returns when serve does not run any more.
func (h *Host) Handle(
	proto string, maxBytes int64, timeout time.Duration,
	serve func(ctx context.Context, p peer.ID, s io.ReadWriter) error,
) (stop func()) {
	all, cancelAll := context.WithCancel(h.ctx)
	var serving sync.WaitGroup // Add happens with h.mu held and stopped unset
	stopped := false
	h.host.SetStreamHandler(protocol.ID(proto), func(s network.Stream) {
		p := s.Conn().RemotePeer()
		if !h.enter(p) {
			s.Reset()
			return
		}
		defer h.exit(p)
		h.mu.Lock()
		late := stopped
		if !late {
			serving.Add(1)
		}
		h.mu.Unlock()
		if late {
			s.Reset()
			return
		}
		defer serving.Done()
		ctx, cancel := context.WithTimeout(all, timeout)
		defer cancel()
		if err := converse(ctx, s, maxBytes, func(rw io.ReadWriter) error { return serve(ctx, p, rw) }); err != nil {
			h.log.Debug("stream refused", "proto", proto, "peer", p, "err", err)
		}
	})
	return func() {
		h.host.RemoveStreamHandler(protocol.ID(proto))
		h.mu.Lock()
		stopped = true
		h.mu.Unlock()
		cancelAll()
		serving.Wait()
	}
}

// Call opens a stream to a connected peer and runs talk on it, with at most maxBytes
// to read and the deadline of ctx. It does not dial.
func (h *Host) Call(
	ctx context.Context, p peer.ID, proto string, maxBytes int64, talk func(s io.ReadWriter) error,
) error {
	s, err := h.host.NewStream(network.WithNoDial(ctx, "call"), p, protocol.ID(proto))
	if err != nil {
		return fmt.Errorf("p2p: opening a stream: %w", err)
	}
	return converse(ctx, s, maxBytes, talk)
}

// converse runs talk on s and ends the stream with it: reset on error or when ctx
// ends first, closed otherwise.
func converse(ctx context.Context, s network.Stream, maxBytes int64, talk func(io.ReadWriter) error) error {
	if deadline, ok := ctx.Deadline(); ok {
		// Transports without deadlines (in-memory ones) are ended by AfterFunc below.
		_ = s.SetDeadline(deadline)
	}
	stop := context.AfterFunc(ctx, func() { s.Reset() })
	defer stop()
	if err := talk(&limited{s, maxBytes}); err != nil {
		s.Reset()
		return err
	}
	return s.Close()
}

func (h *Host) enter(p peer.ID) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed || h.served >= maxStreams || h.serving[p] >= maxStreamsPerPeer {
		return false
	}
	h.served++
	h.serving[p]++
	h.running.Add(1)
	return true
}

func (h *Host) exit(p peer.ID) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.served--
	if h.serving[p]--; h.serving[p] == 0 {
		delete(h.serving, p)
	}
	h.running.Done()
}
