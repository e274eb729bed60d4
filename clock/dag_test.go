package clock

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/ipfs/go-cid"
	"pgregory.net/rapid"

	"fpnode/internal/dagcbor"
)

// A dag is a drawn graph of events. A drawing has a chain on each line, oldest
// event first; a comma joins events that have the same parents or children:
//
//	g -> a1 -> a2 -> m
//	g -> b1 -> m
//	m -> x,y -> z
type dag struct {
	names   []string // parents first
	parents map[string][]string
	cids    map[string]cid.Cid
	blocks  map[cid.Cid][]byte
	name    map[cid.Cid]string
}

func draw(drawing string) *dag {
	d := &dag{parents: map[string][]string{}}
	var seen []string
	for line := range strings.Lines(drawing) {
		var last []string
		for _, group := range strings.Split(strings.TrimSpace(line), "->") {
			var names []string
			for _, n := range strings.Split(group, ",") {
				if n = strings.TrimSpace(n); n != "" {
					names = append(names, n)
				}
			}
			for _, n := range names {
				if !slices.Contains(seen, n) {
					seen = append(seen, n)
				}
				d.parents[n] = append(d.parents[n], last...)
			}
			last = names
		}
	}
	for len(d.names) < len(seen) {
		for _, n := range seen {
			ready := !slices.Contains(d.names, n)
			for _, p := range d.parents[n] {
				ready = ready && slices.Contains(d.names, p)
			}
			if ready {
				d.names = append(d.names, n)
			}
		}
	}
	d.encode()
	return d
}

// encode makes the blocks of the graph.
func (d *dag) encode() {
	d.cids = map[string]cid.Cid{}
	d.blocks = map[cid.Cid][]byte{}
	d.name = map[cid.Cid]string{}
	for _, n := range d.names {
		data, err := dagcbor.Marshal(map[string]any{"n": n})
		if err != nil {
			panic(err)
		}
		c, block := Encode(data, d.set(d.parents[n]...))
		d.cids[n], d.blocks[c], d.name[c] = c, block, n
	}
}

func (d *dag) set(names ...string) []cid.Cid {
	cids := make([]cid.Cid, len(names))
	for i, n := range names {
		cids[i] = d.cids[n]
	}
	return cids
}

// list names events, in their order.
func (d *dag) list(cids []cid.Cid) string {
	names := make([]string, len(cids))
	for i, c := range cids {
		names[i] = d.name[c]
	}
	return strings.Join(names, " ")
}

// sorted names events in alphabetical order.
func (d *dag) sorted(cids []cid.Cid) string {
	names := strings.Fields(d.list(cids))
	slices.Sort(names)
	return strings.Join(names, " ")
}

func (d *dag) Block(_ context.Context, c cid.Cid) ([]byte, error) {
	if b, ok := d.blocks[c]; ok {
		return b, nil
	}
	return nil, &MissingError{c}
}

func (d *dag) index(t interface{ Fatalf(string, ...any) }) *Index {
	x := NewIndex()
	for _, n := range d.names {
		if _, err := x.Add(d.cids[n], d.set(d.parents[n]...)); err != nil {
			t.Fatalf("adding %s: %v", n, err)
		}
	}
	return x
}

// drawDAG draws a random graph with one genesis: chains, forks, merges,
// criss-cross merges, parents that are ancestors of other parents, or named
// twice.
func drawDAG(t *rapid.T, least, most int) *dag {
	d := &dag{parents: map[string][]string{}}
	n := rapid.IntRange(least, most).Draw(t, "events")
	reach := rapid.IntRange(1, most).Draw(t, "reach")
	for i := range n {
		name := fmt.Sprintf("e%d", i)
		if i > 0 {
			low := max(0, i-reach)
			for range rapid.IntRange(1, min(3, i)).Draw(t, "parents") {
				p := d.names[rapid.IntRange(low, i-1).Draw(t, "parent")]
				if !slices.Contains(d.parents[name], p) || rapid.IntRange(0, 9).Draw(t, "twice") == 9 {
					d.parents[name] = append(d.parents[name], p)
				}
			}
		}
		d.names = append(d.names, name)
	}
	d.encode()
	return d
}

// drawHeads draws some events; they may be ancestors of one another.
func drawHeads(t *rapid.T, d *dag) []string {
	return rapid.SliceOfNDistinct(rapid.SampledFrom(d.names), 1, min(4, len(d.names)), rapid.ID).Draw(t, "heads")
}

// ancestors returns an event and all of its ancestors.
func (d *dag) ancestors(name string) map[string]bool {
	all := map[string]bool{name: true}
	for _, p := range d.parents[name] {
		for a := range d.ancestors(p) {
			all[a] = true
		}
	}
	return all
}

// maximal returns the events that are no ancestors of another one.
func (d *dag) maximal(names []string) []string {
	var out []string
	for _, n := range names {
		covered := slices.Contains(out, n)
		for _, m := range names {
			covered = covered || m != n && d.ancestors(m)[n]
		}
		if !covered {
			out = append(out, n)
		}
	}
	slices.Sort(out)
	return out
}

var errTooLong = fmt.Errorf("walk too long")

// naiveAncestor is the definition of the common ancestor (Fireproof format,
// "Merging"): a chain of candidates for each event, grown in turns, until one
// candidate is in all of them.
func (d *dag) naiveAncestor(events []string, budget *int) (string, error) {
	chains := make([][]string, len(events))
	for i, e := range events {
		chains[i] = []string{e}
	}
	if len(events) == 1 {
		return events[0], nil
	}
	for {
		for i, chain := range chains {
			if *budget--; *budget < 0 {
				return "", errTooLong
			}
			next := chain[len(chain)-1]
			switch parents := d.parents[next]; len(parents) {
			case 0:
			case 1:
				next = parents[0]
			default:
				var err error
				// The order in which the event stores its parents.
				sorted := d.set(parents...)
				SortBytes(sorted)
				if next, err = d.naiveAncestor(strings.Fields(d.list(sorted)), budget); err != nil {
					return "", err
				}
			}
			chains[i] = append(chain, next)
			for j, c := range chains {
				for _, candidate := range c {
					inAll := true
					for k, other := range chains {
						inAll = inAll && (k == j || slices.Contains(other, candidate))
					}
					if inAll {
						return candidate, nil
					}
				}
			}
		}
	}
}

// naiveReplay is the definition of the order of replay: walk all paths, add up
// the depths, sort.
func (d *dag) naiveReplay(heads []string, tail string, budget *int) ([]string, error) {
	weight := map[string]int{}
	var walk func(e string, depth int) error
	walk = func(e string, depth int) error {
		if *budget--; *budget < 0 {
			return errTooLong
		}
		weight[e] += depth
		if p := d.parents[e]; len(p) == 1 && p[0] == tail {
			return nil
		}
		for _, p := range d.parents[e] {
			if err := walk(p, depth+1); err != nil {
				return err
			}
		}
		return nil
	}
	if len(heads) == 1 && heads[0] == tail {
		return nil, nil
	}
	for _, h := range heads {
		if err := walk(h, 0); err != nil {
			return nil, err
		}
	}
	var events []string
	for e := range weight {
		events = append(events, e)
	}
	slices.SortFunc(events, func(a, b string) int {
		if weight[a] != weight[b] {
			return weight[b] - weight[a]
		}
		return strings.Compare(d.cids[a].String(), d.cids[b].String())
	})
	return events, nil
}
