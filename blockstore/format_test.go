package blockstore

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"encoding/binary"
	"encoding/hex"
	"hash/crc32"
	"os"
	"regexp"
	"strings"
	"testing"
)

// docVector is one hex example of docs/format.md.
func docVector(t *testing.T, kind string) []byte {
	t.Helper()
	text, err := os.ReadFile("../docs/format.md")
	if err != nil {
		t.Fatal(err)
	}
	m := regexp.MustCompile("(?ms)^```hex " + kind + "\n(.*?)^```$").FindSubmatch(text)
	if m == nil {
		t.Fatalf("no vector %s", kind)
	}
	b, err := hex.DecodeString(strings.Join(strings.Fields(string(m[1])), ""))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// docVault has the metadata key of the example, whatever the salt.
type docVault struct{}

func (docVault) FileCipher([32]byte) (cipher.Block, error) { panic("not in the example") }

func (docVault) RecordAEAD([32]byte) (cipher.AEAD, error) {
	key := make([]byte, 32)
	for i := range key {
		key[i] = byte(i)
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCM(block)
}

func TestDocumentedSegment(t *testing.T) {
	segment, b := docVector(t, "segment-header"), docVector(t, "run")
	h, err := parseSegmentHeader(segment)
	if err != nil {
		t.Fatal(err)
	}
	want := segmentHeader{number: 1}
	for i := range want.ledger {
		want.ledger[i], want.salt[i] = 0x11, 0x22
	}
	if h != want || !bytes.Equal(h.append(nil), segment) {
		t.Errorf("segment header %+v", h)
	}
	sealer, err := newSegmentSealer(docVault{}, &h)
	if err != nil {
		t.Fatal(err)
	}
	rh, err := parseRunHeader(b)
	if err != nil {
		t.Fatal(err)
	}
	if int64(len(b)) != rh.size() || rh.bodyLen != 0 {
		t.Fatalf("run of %d bytes, its header says %d", len(b), rh.size())
	}
	end := len(b) - runTrailerBytes
	if got := crc32.Checksum(b[:end], castagnoli); got != binary.LittleEndian.Uint32(b[end:]) {
		t.Errorf("checksum %08x", got)
	}
	plain, _, err := sealer.open(b[:runHeaderBytes], bytes.Clone(b[runHeaderBytes:end]))
	if err != nil {
		t.Fatal(err)
	}
	rec, err := parseRecord(plain, 0)
	if err != nil {
		t.Fatal(err)
	}
	if len(rec.notes) != 1 || !bytes.Equal(rec.notes["a"], []byte{1}) {
		t.Errorf("record %+v", rec)
	}
}
