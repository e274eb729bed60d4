package blockstore_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"fpnode/blockstore"
)

func TestOpenBlock(t *testing.T) {
	const mib = 1 << 20
	l := openLedger(t, openStore(t, config(vfs.NewMem())), 1)
	rng := rand.NewChaCha8([32]byte{})
	for _, size := range []int{0, 1, mib - 1, mib, mib + 1, 3*mib + 7} {
		data := make([]byte, size)
		rng.Read(data)
		b := rawBlock(data)
		mustCommit(t, l, dataCAR(t, l, block(rand.New(rng), 100), b))
		r, err := l.OpenBlock(ctx, b.CID)
		if err != nil {
			t.Fatalf("%d bytes: %v", size, err)
		}
		if r.Size() != int64(size) {
			t.Errorf("%d bytes: size %d", size, r.Size())
		}
		var got bytes.Buffer
		if size > 0 {
			one := make([]byte, 1)
			if n, err := r.Read(one); n != 1 || err != nil {
				t.Fatal(n, err)
			}
			got.Write(one)
		}
		if _, err := io.CopyBuffer(&got, struct{ io.Reader }{r}, make([]byte, 70_001)); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got.Bytes(), data) {
			t.Errorf("%d bytes: other bytes", size)
		}
		if n, err := r.Read(make([]byte, 1)); n != 0 || err != io.EOF {
			t.Errorf("%d bytes: after the end: %d %v", size, n, err)
		}
		if err := r.Close(); err != nil {
			t.Error(err)
		}
		if _, err := r.Read(make([]byte, 1)); err == nil || err == io.EOF {
			t.Errorf("%d bytes: after Close: %v", size, err)
		}
	}
	if _, err := l.OpenBlock(ctx, rawBlock([]byte("nowhere")).CID); !errors.Is(err, blockstore.ErrNotFound) {
		t.Errorf("a block that is not there: %v", err)
	}
	b := rawBlock(make([]byte, 2*mib))
	mustCommit(t, l, dataCAR(t, l, b))
	over, cancel := context.WithCancel(ctx)
	cancel()
	if _, err := l.OpenBlock(over, b.CID); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}
