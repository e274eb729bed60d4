package ledger

import (
	"bytes"
	"context"
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

	"fpnode/clock"
	"fpnode/internal/car"
	"fpnode/internal/dagcbor"
	"fpnode/keyring"
	"fpnode/pail"
)

// copyDir reads a fixture into memory, where a test can damage it.
func (f fixture) copyDir(t testing.TB) fstest.MapFS {
	t.Helper()
	m := fstest.MapFS{}
	root := os.DirFS(path.Join(fixtures, f.dir, f.store))
	err := fs.WalkDir(root, ".", func(p string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := fs.ReadFile(root, p)
		m[p] = &fstest.MapFile{Data: b}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return m
}

var basic = fixture{dir: "a_basic", store: "store/basic-ledger", name: "basic-ledger"}

// TestImportRefuses has one row for each way a directory can be unusable. Whatever happens, the ledger shows
// afterwards what it showed before, and the error says what to do.
func TestImportRefuses(t *testing.T) {
	log := basic.expected(t).CarLog
	newest := jsData + "/" + log[0][0] + jsSuffix
	older := jsData + "/" + log[5][0] + jsSuffix
	keys := basic.keys(t)
	other := newTestKeys(t)
	seal := func(plain []byte) (name cid.Cid, sealed []byte) {
		sealed, err := keys.Seal(plain)
		if err != nil {
			t.Fatal(err)
		}
		return car.NameOf(plain), sealed
	}
	// put makes plain the newest CAR of the directory.
	put := func(m fstest.MapFS, plain []byte) {
		name, sealed := seal(plain)
		m[jsData+"/"+name.String()+jsSuffix] = &fstest.MapFile{Data: sealed}
		m[jsMeta] = &fstest.MapFile{Data: metaJSON(t, []cid.Cid{name})}
	}
	commit := func(h car.Header, blocks ...car.Block) []byte {
		root := headerBlock(h)
		return car.Append(nil, []cid.Cid{root.CID}, append([]car.Block{root}, blocks...))
	}
	block := func(v any) car.Block {
		b, err := dagcbor.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		return car.Block{CID: dagcbor.Sum(b), Data: b}
	}
	raw := func(b []byte) car.Block { return car.Block{CID: dagcbor.Sum(b), Data: b} }
	nested := bytes.Repeat([]byte{0x81}, 100_000)

	for _, tc := range []struct {
		name   string
		damage func(fstest.MapFS)
		keys   *keyring.Keys // those of the fixture if nil
		reason ImportReason
		path   string // the error must name it
	}{
		{"no meta", func(m fstest.MapFS) { delete(m, jsMeta) }, nil, ReasonNoMeta, jsMeta},
		{"meta is not JSON", func(m fstest.MapFS) { m[jsMeta] = &fstest.MapFile{Data: []byte("<html>")} }, nil, ReasonBadMeta, jsMeta},
		{"meta of Fireproof 0.18", func(m fstest.MapFS) { m[jsMeta] = &fstest.MapFile{Data: []byte(`{"car":{"/":"bafy"},"key":"00"}`)} }, nil, ReasonTooOld, jsMeta},
		{"newest CAR missing", func(m fstest.MapFS) { delete(m, newest) }, nil, ReasonMissing, newest},
		{"newest CAR cut off", func(m fstest.MapFS) { m[newest].Data = m[newest].Data[:200] }, nil, ReasonDamaged, newest},
		{"newest CAR empty", func(m fstest.MapFS) { m[newest].Data = nil }, nil, ReasonDamaged, newest},
		{"newest CAR is another one", func(m fstest.MapFS) { m[newest].Data = m[older].Data }, nil, ReasonDamaged, newest},
		{"older CAR cut off", func(m fstest.MapFS) { m[older].Data = m[older].Data[:200] }, nil, ReasonDamaged, older},
		{"older CAR is another one", func(m fstest.MapFS) { m[older].Data = m[newest].Data }, nil, ReasonDamaged, older},
		{"older CAR missing and needed", func(m fstest.MapFS) { delete(m, older) }, nil, ReasonIncomplete, older},
		{"wrong key", func(fstest.MapFS) {}, other, ReasonWrongKey, newest},
		{"a CAR that is not encrypted", func(m fstest.MapFS) {
			plain, err := keys.Open(m[newest].Data)
			if err != nil {
				t.Fatal(err)
			}
			m[newest].Data = plain
		}, nil, ReasonDamaged, newest},
		{"newest CAR has no header", func(m fstest.MapFS) {
			b := block(map[string]any{"del": true})
			put(m, car.Append(nil, []cid.Cid{b.CID}, []car.Block{b}))
		}, nil, ReasonDamaged, ""},
		{"header without a head", func(m fstest.MapFS) { put(m, commit(car.Header{})) }, nil, ReasonDamaged, ""},
		{"head of no event", func(m fstest.MapFS) {
			put(m, commit(car.Header{Head: []cid.Cid{block(map[string]any{"not": "here"}).CID}, HasHead: true}))
		}, nil, ReasonIncomplete, ""},
		{"another genesis", func(m fstest.MapFS) {
			empty := block(map[string]any{"entries": []any{}, "keyChars": "ascii", "maxKeySize": int64(4096), "prefix": "", "version": int64(1)})
			doc := block(map[string]any{"doc": map[string]any{"_id": "x"}})
			shard := block(map[string]any{"entries": []any{[]any{"x", doc.CID}}, "keyChars": "ascii", "maxKeySize": int64(4096), "prefix": "", "version": int64(1)})
			event := block(map[string]any{"data": map[string]any{"key": "x", "root": shard.CID, "type": "put", "value": doc.CID}, "parents": []any{}})
			put(m, commit(car.Header{Head: []cid.Cid{event.CID}, HasHead: true}, empty, doc, shard, event))
		}, nil, ReasonGenesis, ""},
		{"a root that does not follow", func(m fstest.MapFS) {
			empty := block(map[string]any{"entries": []any{}, "keyChars": "ascii", "maxKeySize": int64(4096), "prefix": "", "version": int64(1)})
			doc := block(map[string]any{"doc": map[string]any{"_id": "x"}})
			event := block(map[string]any{"data": map[string]any{"key": "x", "root": empty.CID, "type": "put", "value": doc.CID}, "parents": []any{pail.GenesisEvent}})
			put(m, commit(car.Header{Cars: [][]cid.Cid{{mustParse(t, log[17][0])}}, Head: []cid.Cid{event.CID}, HasHead: true}, empty, doc, event))
		}, nil, ReasonRefused, ""},
		{"a document that is in no CAR", func(m fstest.MapFS) {
			empty := block(map[string]any{"entries": []any{}, "keyChars": "ascii", "maxKeySize": int64(4096), "prefix": "", "version": int64(1)})
			doc := block(map[string]any{"doc": map[string]any{"_id": "x"}})
			shard := block(map[string]any{"entries": []any{
				[]any{pail.GenesisKey, pail.GenesisDoc}, []any{"x", doc.CID},
			}, "keyChars": "ascii", "maxKeySize": int64(4096), "prefix": "", "version": int64(1)})
			event := block(map[string]any{"data": map[string]any{"key": "x", "root": shard.CID, "type": "put", "value": doc.CID}, "parents": []any{pail.GenesisEvent}})
			put(m, commit(car.Header{Cars: [][]cid.Cid{{mustParse(t, log[17][0])}}, Head: []cid.Cid{event.CID}, HasHead: true}, empty, shard, event))
		}, nil, ReasonIncomplete, ""},
		{"CBOR bomb as an event", func(m fstest.MapFS) {
			b := raw(nested)
			put(m, commit(car.Header{Head: []cid.Cid{b.CID}, HasHead: true}, b))
		}, nil, ReasonRefused, ""},
		{"CBOR bomb as a header", func(m fstest.MapFS) {
			b := raw(append([]byte("\xa1\x62fp"), nested...))
			put(m, car.Append(nil, []cid.Cid{b.CID}, []car.Block{b}))
		}, nil, ReasonDamaged, ""},
		{"CBOR bomb as an envelope", func(m fstest.MapFS) { m[newest].Data = nested }, nil, ReasonDamaged, newest},
		{"a list that claims 2^40 entries", func(m fstest.MapFS) {
			b := raw([]byte("\xa1\x62fp\xa3\x64cars\x9b\x00\x00\x01\x00\x00\x00\x00\x00"))
			put(m, car.Append(nil, []cid.Cid{b.CID}, []car.Block{b}))
		}, nil, ReasonDamaged, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			m := basic.copyDir(t)
			tc.damage(m)
			open := tc.keys
			if open == nil {
				open = keys
			}
			l := newTestHome(t).ledger(t, "test", newTestKeys(t))
			before := mine(t, l)
			_, err := Import(t.Context(), l, ImportSource{Dir: m, Opener: open}, nil)
			var ie *ImportError
			if !errors.As(err, &ie) || ie.Reason != tc.reason {
				t.Fatalf("error %v, want reason %s", err, tc.reason)
			}
			if ie.Hint() == "" || !strings.Contains(err.Error(), tc.path) {
				t.Errorf("error %q, hint %q: want %q named and a hint", err, ie.Hint(), tc.path)
			}
			if d := cmp.Diff(before, mine(t, l, before...)); d != "" {
				t.Errorf("the ledger changed: %s", d)
			}
			// The good directory still imports afterwards.
			res, err := Import(t.Context(), l, basic.source(keys), nil)
			if err != nil {
				t.Fatal(err)
			}
			if res.Docs != len(before)+11 {
				t.Errorf("%d documents after the good import", res.Docs)
			}
		})
	}
}

// mine gives a ledger a document of its own, unless it has one, and lists all documents.
func mine(t testing.TB, l *Ledger, have ...string) []string {
	t.Helper()
	if len(have) == 0 {
		d, err := FromMap(map[string]any{"_id": "mine", "n": int64(1)})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := l.Put(t.Context(), d); err != nil {
			t.Fatal(err)
		}
	}
	var ids []string
	for d, err := range l.AllDocs(t.Context(), ListOptions{IncludeDeleted: true}) {
		if err != nil {
			t.Fatal(err)
		}
		ids = append(ids, d.ID+" "+d.CID.String())
	}
	return ids
}

// TestImportFindsEveryFlippedByte flips one byte in each region of a CAR: envelope, IV, length, ciphertext of the CAR's
// roots, header and blocks, tag, key id.
func TestImportFindsEveryFlippedByte(t *testing.T) {
	keys := basic.keys(t)
	log := basic.expected(t).CarLog
	l := newTestHome(t).ledger(t, "test", keys)
	for _, group := range []int{0, 7} {
		file := jsData + "/" + log[group][0] + jsSuffix
		good := basic.copyDir(t)
		size := len(good[file].Data)
		_, _, dataOff, dataLen, err := keys.Inspect(good[file].Data)
		if err != nil {
			t.Fatal(err)
		}
		offsets := map[string]int{
			"map head": 0, "iv name": 2, "iv": 6, "data name": 18, "data length": int(dataOff) - 1, "roots": int(dataOff),
			"header block": int(dataOff) + 60, "middle": int(dataOff + dataLen/2), "last block": int(dataOff+dataLen) - 17,
			"tag": int(dataOff + dataLen - 1), "key id name": size - 37, "key id": size - 32, "end": size - 1,
		}
		for region, at := range offsets {
			m := basic.copyDir(t)
			m[file].Data[at] ^= 0x20
			_, err := Import(t.Context(), l, ImportSource{Dir: m, Opener: keys}, nil)
			var ie *ImportError
			if !errors.As(err, &ie) || ie.Reason != ReasonDamaged && ie.Reason != ReasonWrongKey || ie.Path != file {
				t.Errorf("flipped in %s of group %d: %v", region, group, err)
			}
			if wrong := strings.HasPrefix(region, "key id") && region != "key id name" || region == "end"; wrong != (ie != nil && ie.Reason == ReasonWrongKey) {
				t.Errorf("flipped in %s: %v", region, err)
			}
			if head := l.Head(); len(head) != 0 {
				t.Fatalf("flipped in %s: the ledger shows %v", region, head)
			}
		}
	}
}

// TestImportTakesWhatJavaScriptCannot has the cases in which JS shows less than is there, or nothing.
func TestImportTakesWhatJavaScriptCannot(t *testing.T) {
	keys := basic.keys(t)
	want := listDocs(t, first(basic.load(t)), true)
	log := basic.expected(t).CarLog
	for _, tc := range []struct {
		name   string
		change func(fstest.MapFS)
		stale  int
	}{
		{"CARs without suffix", func(m fstest.MapFS) {
			for name, f := range m {
				if trimmed, ok := strings.CutSuffix(name, jsSuffix); ok {
					delete(m, name)
					m[trimmed] = f
				}
			}
		}, 0},
		{"no version files", func(m fstest.MapFS) {
			for name := range m {
				if strings.HasSuffix(name, "version") {
					delete(m, name)
				}
			}
		}, 0},
		{"unrelated files in data", func(m fstest.MapFS) {
			m["data/notes.txt"] = &fstest.MapFile{Data: []byte("hello")}
			m["data/"+testCID("junk").String()+jsSuffix] = &fstest.MapFile{Data: []byte("junk")}
		}, 0},
		{"an older CAR overwritten with an empty one", func(m fstest.MapFS) {
			// Its blocks are in a CAR that another header's compact lists, so nothing is missing.
			moveAway(t, keys, m, log, 4)
		}, 1},
	} {
		t.Run(tc.name, func(t *testing.T) {
			m := basic.copyDir(t)
			tc.change(m)
			l := newTestHome(t).ledger(t, "test", keys)
			res, err := Import(t.Context(), l, ImportSource{Dir: m, Opener: keys}, nil)
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(want, listDocs(t, l, true)); d != "" {
				t.Fatal(d)
			}
			if len(res.Stale) != tc.stale || (len(res.Warnings) > 0) != (tc.stale > 0) {
				t.Errorf("stale %v, warnings %q", res.Stale, res.Warnings)
			}
		})
	}
}

func first[A, B any](a A, _ B) A { return a }

// moveAway overwrites one older CAR of a_basic as a JavaScript attach does, and gives its blocks to a CAR that is
// reachable only through compact.
func moveAway(t testing.TB, keys *keyring.Keys, m fstest.MapFS, log [][]string, i int) {
	t.Helper()
	open := func(name string) (cid.Cid, []car.Section) {
		plain, err := keys.Open(m[jsData+"/"+name+jsSuffix].Data)
		if err != nil {
			t.Fatal(err)
		}
		roots, sections, err := car.Read(plain)
		if err != nil {
			t.Fatal(err)
		}
		return roots[0], sections
	}
	write := func(name string, h car.Header, blocks []car.Block) cid.Cid {
		root := headerBlock(h)
		plain := car.Append(nil, []cid.Cid{root.CID}, append([]car.Block{root}, blocks...))
		sealed, err := keys.Seal(plain)
		if err != nil {
			t.Fatal(err)
		}
		if name == "" {
			name = car.NameOf(plain).String()
		}
		m[jsData+"/"+name+jsSuffix] = &fstest.MapFile{Data: sealed}
		return car.NameOf(plain)
	}
	var blocks []car.Block
	_, sections := open(log[i][0])
	for _, s := range sections[1:] {
		blocks = append(blocks, s.Block)
	}
	saved := write("", car.Header{}, blocks)
	write(log[i][0], car.Header{}, nil)

	_, sections = open(log[0][0])
	h, err := car.DecodeHeader(sections[0].Data)
	if err != nil {
		t.Fatal(err)
	}
	h.Compact = append(h.Compact, []cid.Cid{saved})
	blocks = nil
	for _, s := range sections[1:] {
		blocks = append(blocks, s.Block)
	}
	newest := write("", h, blocks)
	m[jsMeta] = &fstest.MapFile{Data: metaJSON(t, []cid.Cid{newest})}
}

// TestImportOfSeveralMetas imports the directory on which JavaScript waits for ever, and compares with what it shows
// when it reads the same metas from a remote.
func TestImportOfSeveralMetas(t *testing.T) {
	f := fixture{dir: "w_written", store: "store/two-metas", name: "two-metas"}
	l, res := f.load(t)
	if len(res.Head) != 2 || len(l.Head()) != 2 {
		t.Fatalf("head %v, of the directory %v", l.Head(), res.Head)
	}
	var js map[string]struct {
		Head    []string
		AllDocs json.RawMessage // rows, or for large ledgers something shorter
	}
	readJSON(t, path.Join(fixtures, "w_written/opened_by_js.json"), &js)
	want := js["attach-two-metas"]
	got := textsOf(l.Head())
	slices.Sort(got)
	slices.Sort(want.Head)
	if d := cmp.Diff(want.Head, got); d != "" {
		t.Errorf("head: %s", d)
	}
	var rows []expectedRow
	if err := json.Unmarshal(want.AllDocs, &rows); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(rows, listDocs(t, l, true)); d != "" {
		t.Errorf("documents: %s", d)
	}
}

// TestImportRandomIV is the ledger at which JavaScript logs an error and then starts an empty one.
func TestImportRandomIV(t *testing.T) {
	f := fixture{dir: "w_written", store: "store/random-iv", name: "random-iv"}
	keys := f.keys(t)
	found := false
	entries, err := os.ReadDir(path.Join(fixtures, f.dir, f.store, jsData))
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		name, ok := strings.CutSuffix(e.Name(), jsSuffix)
		if !ok {
			continue
		}
		b, err := os.ReadFile(path.Join(fixtures, f.dir, f.store, jsData, e.Name()))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := keys.Open(b); !errors.Is(err, keyring.ErrIV) {
			continue
		}
		found = true
		m := f.copyDir(t)
		m[jsMeta] = &fstest.MapFile{Data: metaJSON(t, []cid.Cid{mustParse(t, name)})}
		l := newTestHome(t).ledger(t, "test", keys)
		_, err = Import(t.Context(), l, ImportSource{Dir: m, Opener: keys}, nil)
		var ie *ImportError
		if !errors.As(err, &ie) || ie.Reason != ReasonDamaged || !errors.Is(err, keyring.ErrIV) {
			t.Fatal(err)
		}
	}
	if !found {
		t.Fatal("the fixture has no CAR with a random IV")
	}
}

// TestImportOtherLedgersOfTheWriter imports what JavaScript appended to after an independent writer began it.
func TestImportOtherLedgersOfTheWriter(t *testing.T) {
	var js map[string]struct {
		CarLog   [][]string
		AfterPut struct {
			Head []string
			N    int
		}
	}
	readJSON(t, path.Join(fixtures, "w_written/opened_by_js.json"), &js)
	for _, name := range []string{"from-spec", "two-heads", "no-genesis", "32byte-key"} {
		t.Run(name, func(t *testing.T) {
			f := fixture{dir: "w_written", store: "store/" + name, name: name}
			l, res := f.load(t)
			if d := cmp.Diff(js[name].AfterPut.Head, textsOf(l.Head())); d != "" {
				t.Errorf("head: %s", d)
			}
			if d := cmp.Diff(js[name].CarLog, texts(res.CarLog[1:])); d != "" {
				t.Errorf("car log before the last commit: %s", d)
			}
			if res.Docs != js[name].AfterPut.N {
				t.Errorf("%d documents, want %d", res.Docs, js[name].AfterPut.N)
			}
		})
	}
}

// TestImportRemoteThatLacksCARs imports the remote to which JavaScript did not upload the commits made before the
// attach, first alone and then into the ledger that has them.
func TestImportRemoteThatLacksCARs(t *testing.T) {
	keys := fixture{dir: "m_remote", name: "up"}.keys(t)
	remote := fixture{dir: "m_remote", store: "remote/remote", name: "up"}
	l := newTestHome(t).ledger(t, "test", keys)
	_, err := Import(t.Context(), l, remote.source(keys), nil)
	var ie *ImportError
	if !errors.As(err, &ie) || ie.Reason != ReasonIncomplete {
		t.Fatal(err)
	}
	if len(l.Head()) != 0 {
		t.Fatal("an incomplete ledger shows a head")
	}
	if _, err := Import(t.Context(), l, fixtureLedgers[15].source(keys), nil); err != nil {
		t.Fatal(err)
	}
	want := fixtureLedgers[15].expected(t)
	if d := cmp.Diff(want.Head, textsOf(l.Head())); d != "" {
		t.Fatal(d)
	}
	res, err := Import(t.Context(), l, remote.source(keys), nil)
	if err != nil || res.Cars != 0 {
		t.Fatalf("%+v, %v", res, err)
	}
}

// TestImportMergesIntoALedger imports two copies that were written apart, in both orders.
func TestImportMergesIntoALedger(t *testing.T) {
	a := fixture{dir: "b_concurrent/A", store: "store/shared", name: "shared"}
	b := fixture{dir: "b_concurrent/B", store: "store/shared", name: "shared"}
	merged := fixture{dir: "b_concurrent/merged", store: "store/shared", name: "shared"}
	want := merged.expected(t)
	slices.Sort(want.Head)
	for _, order := range [][]fixture{{a, b}, {b, a}, {a, b, merged}, {merged, a, b}} {
		l := newTestHome(t).ledger(t, "test", a.keys(t))
		for _, f := range order {
			if _, err := Import(t.Context(), l, f.source(f.keys(t)), nil); err != nil {
				t.Fatal(err)
			}
		}
		got := textsOf(l.Head())
		slices.Sort(got)
		if d := cmp.Diff(want.Head, got); d != "" {
			t.Errorf("head: %s", d)
		}
		if d := cmp.Diff(want.AllDocs.Rows, listDocs(t, l, false)); d != "" {
			t.Errorf("documents: %s", d)
		}
		if len(l.Tips()) == 0 {
			t.Error("no tip leads to the head")
		}
	}
}

// TestImportAgainDoesNothing imports the same directory twice: the second time no CAR enters and the first may have
// been cut off anywhere.
func TestImportAgainDoesNothing(t *testing.T) {
	keys := basic.keys(t)
	h := newTestHome(t)
	l := h.ledger(t, "test", keys)
	res, err := Import(t.Context(), l, basic.source(keys), nil)
	if err != nil {
		t.Fatal(err)
	}
	syncs := h.store.Syncs()
	again, err := Import(t.Context(), l, basic.source(keys), nil)
	if err != nil {
		t.Fatal(err)
	}
	if again.Cars != 0 || again.Docs != res.Docs || h.store.Syncs() != syncs {
		t.Errorf("second import: %+v, %d syncs", again, h.store.Syncs()-syncs)
	}
	if d := cmp.Diff(texts(res.CarLog), texts(again.CarLog)); d != "" {
		t.Error(d)
	}
}

// TestImportInterrupted cancels an import at every step of its progress. The ledger shows nothing until the end, and
// the next import ends as one that was never interrupted.
func TestImportInterrupted(t *testing.T) {
	keys := basic.keys(t)
	want := basic.expected(t)
	steps := 0
	l := newTestHome(t).ledger(t, "test", keys)
	if _, err := Import(t.Context(), l, basic.source(keys), func(Progress) { steps++ }); err != nil {
		t.Fatal(err)
	}
	if steps < 10 {
		t.Fatalf("only %d steps", steps)
	}
	for stop := 1; stop <= steps; stop++ {
		l := newTestHome(t).ledger(t, "test", keys)
		ctx, cancel := context.WithCancel(t.Context())
		n := 0
		_, err := Import(ctx, l, basic.source(keys), func(Progress) {
			if n++; n == stop {
				cancel()
			}
		})
		cancel()
		if !errors.Is(err, context.Canceled) {
			t.Fatalf("stopped at step %d: %v", stop, err)
		}
		if len(l.Head()) != 0 {
			t.Fatalf("stopped at step %d, it shows a head", stop)
		}
		res, err := Import(t.Context(), l, basic.source(keys), nil)
		if err != nil {
			t.Fatal(err)
		}
		want.check(t, l, res)
	}
}

// TestImportDivergingGenesis merges two ledgers that have nothing in common.
func TestImportDivergingGenesis(t *testing.T) {
	f := fixture{dir: "w_written", store: "store/no-genesis", name: "no-genesis"}
	l, _ := basic.load(t)
	before := listDocs(t, l, true)
	_, err := Import(t.Context(), l, f.source(f.keys(t)), nil)
	var ie *ImportError
	if !errors.As(err, &ie) || ie.Reason != ReasonGenesis || !errors.Is(err, clock.ErrGenesis) {
		t.Fatal(err)
	}
	if d := cmp.Diff(before, listDocs(t, l, true)); d != "" {
		t.Fatal(d)
	}
}

// TestImportNeedsTheKeyOfEveryCAR imports a ledger into which JavaScript copied CARs of a remote that are still under
// the remote's key. JavaScript cannot read them after a restart; the error says why, and with both keys they enter.
func TestImportNeedsTheKeyOfEveryCAR(t *testing.T) {
	f := fixture{dir: "w_written", store: "store/attach-two-metas", name: "attach-two-metas"}
	own := f.keys(t)
	l := newTestHome(t).ledger(t, "test", own)
	_, err := Import(t.Context(), l, f.source(own), nil)
	var ie *ImportError
	if !errors.As(err, &ie) || ie.Reason != ReasonWrongKey || !errors.Is(err, keyring.ErrKeyUnknown) {
		t.Fatal(err)
	}
	both, err := keyring.NewKeys(own.Pinned(), fixture{dir: "w_written", name: "two-metas-remote"}.keys(t).Pinned())
	if err != nil {
		t.Fatal(err)
	}
	res, err := Import(t.Context(), l, f.source(both), nil)
	if err != nil || res.Docs != 3 {
		t.Fatalf("%+v, %v", res, err)
	}
}
