package ledger

import (
	"bytes"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/google/go-cmp/cmp"
	"github.com/ipfs/go-cid"

	"fpnode/internal/car"
	"fpnode/internal/dagcbor"
)

// fixtures are ledgers as JavaScript Fireproof wrote them (see testdata/fireproof/README.md).
const fixtures = "testdata/fireproof"

func testCID(s string) cid.Cid { return dagcbor.SumCodec(car.CodecName, []byte(s)) }

func mustParse(t testing.TB, s string) cid.Cid {
	t.Helper()
	c, err := cid.Decode(s)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// metaJSON is a main.json of one entry for each group.
func metaJSON(t testing.TB, groups ...[]cid.Cid) []byte {
	t.Helper()
	var list []json.RawMessage
	for _, g := range groups {
		b, err := encodeMetaFile(car.EncodeMeta(g, nil), nil)
		if err != nil {
			t.Fatal(err)
		}
		var one []json.RawMessage
		if err := json.Unmarshal(b, &one); err != nil {
			t.Fatal(err)
		}
		list = append(list, one...)
	}
	b, err := json.Marshal(list)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestFindLedgerDir(t *testing.T) {
	meta := &fstest.MapFile{Data: []byte("[]")}
	for _, tc := range []struct {
		name   string
		files  []string
		want   string // a file that must be in the directory found
		reason ImportReason
	}{
		{"the directory itself", []string{"meta/main.json", "data/a.car"}, "data/a.car", ""},
		{"the storage directory of one ledger", []string{"notes/meta/main.json", "notes/data/a.car"}, "data/a.car", ""},
		{"0.19 below its version", []string{"v0.19-file/notes/meta/main.json", "v0.19-file/notes/data/a.car"}, "data/a.car", ""},
		{"0.19 version holds it", []string{"v0.19-file/meta/main.json", "v0.19-file/data/a.car"}, "data/a.car", ""},
		{"inside the version directory", []string{"meta/main.json", "v0.19-file/x/meta/main.json"}, "meta/main.json", ""},
		{"two ledgers", []string{"a/meta/main.json", "b/meta/main.json"}, "", ReasonSeveral},
		{"nothing", []string{"readme"}, "", ReasonNoMeta},
		{"data alone", []string{"data/a.car"}, "", ReasonNoMeta},
	} {
		t.Run(tc.name, func(t *testing.T) {
			m := fstest.MapFS{}
			for _, f := range tc.files {
				m[f] = meta
			}
			got, err := findLedgerDir(m)
			var ie *ImportError
			if tc.reason != "" {
				if !errors.As(err, &ie) || ie.Reason != tc.reason || ie.Hint() == "" {
					t.Fatalf("error %v, want reason %s with a hint", err, tc.reason)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if _, err := fs.Stat(got, tc.want); err != nil {
				t.Fatal(err)
			}
		})
	}
}

func TestReadEntries(t *testing.T) {
	a, b, old := testCID("a"), testCID("b"), dagcbor.SumCodec(car.CodecName019, []byte("old"))
	one := metaJSON(t, []cid.Cid{a})
	tooMany := []byte("[" + strings.Repeat("{},", MaxTips) + "{}]")
	for _, tc := range []struct {
		name   string
		json   []byte
		want   [][]cid.Cid
		reason ImportReason
	}{
		{"one entry", one, [][]cid.Cid{{a}}, ""},
		{"several entries", metaJSON(t, []cid.Cid{a}, []cid.Cid{b}), [][]cid.Cid{{a}, {b}}, ""},
		{"a group of several parts", metaJSON(t, []cid.Cid{a, b}), [][]cid.Cid{{a, b}}, ""},
		{"with keys", []byte(`{"metas":` + string(one) + `,"keys":["zabc"]}`), [][]cid.Cid{{a}}, ""},
		{"0.19 names", metaJSON(t, []cid.Cid{old}), [][]cid.Cid{{old}}, ""},
		{"no entry", []byte("[]"), nil, ReasonNoMeta},
		{"no metas", []byte("{}"), nil, ReasonNoMeta},
		{"empty file", nil, nil, ReasonBadMeta},
		{"not JSON", []byte("hello"), nil, ReasonBadMeta},
		{"cut off", one[:len(one)/2], nil, ReasonBadMeta},
		{"an entry without data", []byte(`[{"cid":"x"}]`), nil, ReasonBadMeta},
		{"an entry of another kind", []byte(`[7]`), nil, ReasonBadMeta},
		{"data that is not multibase", []byte(`[{"data":"???"}]`), nil, ReasonBadMeta},
		{"data that is no event", []byte(`[{"data":"MAAAA"}]`), nil, ReasonBadMeta},
		{"0.18", []byte(`{"car":{"/":"bafy"},"key":"00"}`), nil, ReasonTooOld},
		{"0.18 in a list", []byte(`[{"car":{"/":"bafy"}}]`), nil, ReasonTooOld},
		{"too many entries", tooMany, nil, ReasonBadMeta},
		{"too large", make([]byte, MaxMetaFileBytes+1), nil, ReasonBadMeta},
	} {
		t.Run(tc.name, func(t *testing.T) {
			entries, err := readEntries(fstest.MapFS{jsMeta: {Data: tc.json}})
			var ie *ImportError
			if tc.reason != "" {
				if !errors.As(err, &ie) || ie.Reason != tc.reason {
					t.Fatalf("error %v, want reason %s", err, tc.reason)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			var got [][]cid.Cid
			for _, e := range entries {
				got = append(got, e.group)
			}
			if d := cmp.Diff(texts(tc.want), texts(got)); d != "" {
				t.Fatal(d)
			}
		})
	}
	if _, err := readEntries(fstest.MapFS{}); !errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("without a file: %v", err)
	}
}

// TestMetaFileIsByteExact compares what we write with what JavaScript wrote.
func TestMetaFileIsByteExact(t *testing.T) {
	for _, dir := range []string{"a_basic/store/basic-ledger", "f_multipart/store/multi-ledger", "m_remote/remote/remote"} {
		want, err := os.ReadFile(path.Join(fixtures, dir, jsMeta))
		if err != nil {
			t.Fatal(err)
		}
		entries, err := readEntries(os.DirFS(path.Join(fixtures, dir)))
		if err != nil {
			t.Fatal(err)
		}
		e := entries[0]
		if again := car.EncodeMeta(e.group, e.parents); !bytes.Equal(again, e.block) {
			t.Fatalf("%s: the event block is encoded differently", dir)
		}
		got, err := encodeMetaFile(e.block, e.parents)
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(string(want), string(got)); d != "" {
			t.Fatalf("%s: %s", dir, d)
		}
	}
}

func TestCarLogForgetsWhatWasCompacted(t *testing.T) {
	group := func(names ...string) (g []cid.Cid) {
		for _, n := range names {
			g = append(g, testCID(n))
		}
		return g
	}
	var l jsLog
	l.merge(group("c"), car.Header{Cars: [][]cid.Cid{group("b"), group("a", "a2")}})
	l.merge(group("d"), car.Header{Cars: [][]cid.Cid{group("b"), group("x")}, Compact: [][]cid.Cid{group("a", "a2")}})
	want := [][]cid.Cid{group("d"), group("c"), group("b"), group("x")}
	if d := cmp.Diff(texts(want), texts(l.groups)); d != "" {
		t.Fatal(d)
	}
	if !l.has(group("c")) || l.has(group("a", "a2")) {
		t.Fatal("membership is wrong")
	}
	l.merge(group("p", "q"), car.Header{})
	if !l.has(group("q", "p")) {
		t.Fatal("a group is not found when its CARs come in another order")
	}
}

func TestFileCARs(t *testing.T) {
	a, b, c := testCID("a"), testCID("b"), testCID("c")
	content := dagcbor.SumCodec(cid.Raw, []byte("x"))
	doc := func(fields map[string]any) []byte {
		block, err := dagcbor.Marshal(map[string]any{"doc": fields})
		if err != nil {
			t.Fatal(err)
		}
		return block
	}
	file := func(car any) map[string]any { return map[string]any{"car": car, "cid": content, "size": int64(1)} }
	for _, tc := range []struct {
		name  string
		block []byte
		want  []cid.Cid
	}{
		{"no files", doc(map[string]any{"_id": "x"}), nil},
		{"two", doc(map[string]any{"_files": map[string]any{"1": file([]any{a}), "2": file([]any{b})}}), []cid.Cid{a, b}},
		{"public", doc(map[string]any{"_publicFiles": map[string]any{"1": file([]any{c})}}), []cid.Cid{c}},
		{"a single link", doc(map[string]any{"_files": map[string]any{"1": file(a)}}), []cid.Cid{a}},
		{"not a map", doc(map[string]any{"_files": "x", "_publicFiles": []any{a}}), nil},
		{"no car", doc(map[string]any{"_files": map[string]any{"1": map[string]any{"cid": content}, "2": nil}}), nil},
		{"a field of the same name elsewhere", doc(map[string]any{"x": map[string]any{"_files": map[string]any{"1": file([]any{a})}}}), nil},
		{"tombstone", delBlock, nil},
		{"cut off", doc(map[string]any{"_files": map[string]any{"1": file([]any{a})}})[:40], nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if d := cmp.Diff(texts([][]cid.Cid{tc.want}), texts([][]cid.Cid{fileCARs(tc.block)})); d != "" {
				t.Fatal(d)
			}
		})
	}
}

func texts(groups [][]cid.Cid) [][]string {
	out := make([][]string, len(groups))
	for i, g := range groups {
		out[i] = []string{}
		for _, c := range g {
			out[i] = append(out[i], c.String())
		}
	}
	return out
}

func FuzzReadEntries(f *testing.F) {
	f.Add(metaJSON(f, []cid.Cid{testCID("a")}))
	f.Add(metaJSON(f, []cid.Cid{testCID("a"), testCID("b")}, []cid.Cid{testCID("c")}))
	f.Add([]byte(`{"metas":[],"keys":["z"]}`))
	f.Add([]byte(`[{"car":{"/":"bafy"}}]`))
	f.Fuzz(func(t *testing.T, b []byte) {
		entries, err := readEntries(fstest.MapFS{jsMeta: {Data: b}})
		if err != nil {
			return
		}
		for _, e := range entries {
			again, err := encodeMetaFile(e.block, e.parents)
			if err != nil {
				t.Fatal(err)
			}
			got, err := readEntries(fstest.MapFS{jsMeta: {Data: again}})
			if err != nil || len(got) != 1 || got[0].cid != e.cid || !slices.Equal(got[0].group, e.group) {
				t.Fatalf("written again, the entry reads as %v, %v", got, err)
			}
		}
	})
}

func FuzzFileCARs(f *testing.F) {
	block, err := dagcbor.Marshal(map[string]any{"doc": map[string]any{
		"_files": map[string]any{"a": map[string]any{"car": []any{testCID("a")}}}, "_id": "x",
	}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(block)
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, c := range fileCARs(b) {
			if !c.Defined() {
				t.Fatal("an undefined CID")
			}
		}
	})
}
