package keyring

import (
	"bytes"
	"errors"
	"testing"
)

func TestInPlaceIsTheSame(t *testing.T) {
	key, err := NewKey()
	if err != nil {
		t.Fatal(err)
	}
	k, err := NewKeys(key)
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range []int{0, 1, 7, 8, 15, 16, 17, 239, 240, 65519, 65520, 1 << 20} {
		plain := bytes.Repeat([]byte{byte(n)}, n)
		want, err := k.Seal(plain)
		if err != nil {
			t.Fatal(err)
		}
		got, err := k.SealWith(n, func(dst []byte) error { copy(dst, plain); return nil })
		if err != nil || !bytes.Equal(got, want) {
			t.Fatalf("%d bytes: SealWith gives other bytes than Seal, %v", n, err)
		}
		opened, err := k.OpenInPlace(got)
		if err != nil || !bytes.Equal(opened, plain) {
			t.Fatalf("%d bytes: OpenInPlace gives other bytes than Open, %v", n, err)
		}
		keyID, iv, _, _, err := k.Inspect(got)
		if err != nil {
			t.Fatal(err)
		}
		if err := k.DecryptAt(keyID, iv, 0, opened); err != nil || !bytes.Equal(got, want) {
			t.Fatalf("%d bytes: encrypting in place does not restore the envelope, %v", n, err)
		}
		for _, i := range []int{0, len(got) / 2, len(got) - 1} {
			bad := bytes.Clone(want)
			bad[i] ^= 1
			_, wantErr := k.Open(bad)
			if _, err := k.OpenInPlace(bad); err == nil || err.Error() != wantErr.Error() {
				t.Errorf("%d bytes, byte %d flipped: OpenInPlace: %v, Open: %v", n, i, err, wantErr)
			}
		}
	}
	stop := errors.New("stop")
	if _, err := k.SealWith(3, func([]byte) error { return stop }); err != stop {
		t.Errorf("SealWith: %v, want the error of fill", err)
	}
	if _, err := k.SealWith(MaxPlainBytes+1, nil); err != ErrTooLarge {
		t.Errorf("SealWith: %v, want ErrTooLarge", err)
	}
}
