package ledger

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/ipfs/go-cid"
	"pgregory.net/rapid"

	"fpnode/blockstore"
	"fpnode/internal/car"
	"fpnode/internal/dagcbor"
)

// sizedPacks plays the store for cascade: a block's size is known, a pack's is the sum and a little more.
type sizedPacks struct {
	size  map[cid.Cid]int64
	built int64 // bytes of all packs built
	n     int
}

func (s *sizedPacks) block(size int64) cid.Cid {
	s.n++
	c := dagcbor.Sum([]byte(fmt.Sprint("block ", s.n)))
	s.size[c] = size
	return c
}

func (s *sizedPacks) build(blocks []cid.Cid) (Pack, error) {
	p := Pack{Blocks: blocks}
	var all []byte
	for _, b := range blocks {
		p.Ref.Size += s.size[b]
		all = append(all, b.Bytes()...)
	}
	p.Ref.Size += 100
	p.Ref.Name = blockstore.Name{Cid: dagcbor.SumCodec(car.CodecName, all)}
	s.built += p.Ref.Size
	return p, nil
}

// checkPacks checks what must hold of a target's packs whatever happened.
func checkPacks(t interface{ Fatalf(string, ...any) }, packs []Pack, want int) {
	seen := map[cid.Cid]bool{}
	for i, p := range packs {
		if i > 0 && compareBytes(packs[i-1].Ref.Name.Cid, p.Ref.Name.Cid) >= 0 {
			t.Fatalf("packs are not ordered by name")
		}
		for j, b := range p.Blocks {
			if seen[b] {
				t.Fatalf("block %s is in two packs", b)
			}
			seen[b] = true
			if j > 0 && compareBytes(p.Blocks[j-1], b) >= 0 {
				t.Fatalf("blocks of a pack are not ordered")
			}
		}
	}
	if len(seen) != want {
		t.Fatalf("packs hold %d blocks, want %d", len(seen), want)
	}
	if crowded(packs) != classFull {
		t.Fatalf("a size class holds too many packs")
	}
}

func TestCascadeKeepsEveryBlockOnce(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := &sizedPacks{size: map[cid.Cid]int64{}}
		sizes := rapid.SliceOfN(rapid.Int64Range(1, 40<<20), 0, 60).Draw(t, "sizes")
		var packs []Pack
		for _, n := range sizes {
			p, _ := s.build([]cid.Cid{s.block(n)})
			packs = append(packs, p)
		}
		shuffled := append([]Pack(nil), packs...)
		r := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 0))
		r.Shuffle(len(shuffled), func(i, j int) { shuffled[i], shuffled[j] = shuffled[j], shuffled[i] })

		got, err := cascade(packs, s.build)
		if err != nil {
			t.Fatal(err)
		}
		checkPacks(t, got, len(sizes))
		for _, p := range got {
			if len(p.Blocks) > 1 && p.Ref.Size > MaxPackBytes+1<<10 {
				t.Fatalf("joined to %d bytes", p.Ref.Size)
			}
		}
		other, err := cascade(shuffled, s.build)
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(names(got), names(other)); d != "" {
			t.Fatalf("the order of the packs matters: %s", d)
		}
	})
}

func names(packs []Pack) (out []string) {
	for _, p := range packs {
		out = append(out, p.Ref.Name.String())
	}
	return out
}

// TestCascadeRewritesLittle adds 5,000 commits one by one, as a target that follows every put would.
func TestCascadeRewritesLittle(t *testing.T) {
	s := &sizedPacks{size: map[cid.Cid]int64{}}
	var packs []Pack
	var added, worst int64
	most := 0
	const commits = 5000
	for i := range commits {
		p, _ := s.build([]cid.Cid{s.block(1500)})
		added += p.Ref.Size
		before := s.built
		var err error
		if packs, err = cascade(append(packs, p), s.build); err != nil {
			t.Fatal(err)
		}
		worst = max(worst, s.built-before)
		most = max(most, len(packs))
		if i%1000 == 0 {
			checkPacks(t, packs, i+1)
		}
	}
	checkPacks(t, packs, commits)
	if limit := maxSmallPacks + int(added>>24) + 1; most > limit {
		t.Errorf("%d packs at once, limit %d", most, limit)
	}
	if ratio := float64(s.built) / float64(added); ratio > 12 {
		t.Errorf("each byte was written %.1f times", ratio)
	} else {
		t.Logf("%d commits: %d packs, each byte written %.1f times, at most %d bytes in one step", commits, len(packs), ratio, worst)
	}
	if worst > 2*MaxPackBytes {
		t.Errorf("one step wrote %d bytes", worst)
	}
}

func TestCompactGroups(t *testing.T) {
	g := func(names ...string) (out []cid.Cid) {
		for _, n := range names {
			out = append(out, testCID(n))
		}
		return out
	}
	unknown := testCID("unknown")
	covered := func(group []cid.Cid) bool {
		for _, c := range group {
			if c == unknown {
				return false
			}
		}
		return true
	}
	prev := Target{
		Border: g("border"),
		Logs:   [][][]cid.Cid{{g("js2"), g("js1"), g("border"), g("pack")}, {g("old"), {unknown}, g("a", "b")}},
	}
	got := compactGroups(prev, [][]cid.Cid{g("pack"), g("new pack")}, covered)
	want := [][]cid.Cid{g("border"), g("js2"), g("js1"), g("old"), g("a", "b")}
	if d := cmp.Diff(sortedTexts(want), sortedTexts(got)); d != "" {
		t.Fatal(d)
	}
	for i := 1; i < len(got); i++ {
		if compareBytes(got[i-1][0], got[i][0]) >= 0 {
			t.Fatal("not ordered by the first CID")
		}
	}

	// Over the limit, the device seen last is remembered.
	var long [][]cid.Cid
	for i := range MaxCompact {
		long = append(long, g(fmt.Sprint(i)))
	}
	prev = Target{Border: g("border"), Logs: [][][]cid.Cid{{g("recent")}, long}}
	got = compactGroups(prev, nil, covered)
	if len(got) != MaxCompact {
		t.Fatalf("%d groups", len(got))
	}
	have := map[string]bool{}
	for _, x := range got {
		have[groupKey(x)] = true
	}
	if !have[groupKey(g("recent"))] || !have[groupKey(g("border"))] || have[groupKey(long[MaxCompact-1])] {
		t.Fatal("the wrong groups were left out")
	}
}

func sortedTexts(groups [][]cid.Cid) map[string]bool {
	out := map[string]bool{}
	for _, g := range texts(groups) {
		out[fmt.Sprint(g)] = true
	}
	return out
}
