package ledger

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/ipfs/go-cid"

	"fpnode/blockstore"
	"fpnode/clock"
	"fpnode/internal/car"
)

// noteJoined is the note of heads that joined ours without a tip of their own, as 36-byte CIDs. JavaScript sends
// metas whose CARs bring no block that is not here already (compactions, the empty commit of an attach). Their CARs
// are not kept, so no tip can lead to such a head after a restart; the note does, until the next commit builds on it.
//
// INVARIANT: the head is the maximal events among the heads in the headers of the tips and the note.
const noteJoined = "joined"

// candidate is a meta that may become a tip.
type candidate struct {
	blockstore.Meta
	head []cid.Cid
}

// tipsOf keeps the candidates that somebody needs to find head, and that nobody has replaced. A candidate is left out
// if another one leads to everything of head it leads to, and more; if both lead to the same, the one that replaced
// the other stays, else the one with the smaller CID. So the outcome does not depend on the order of arrival.
func tipsOf(candidates []candidate, head []cid.Cid) []candidate {
	current := make(map[cid.Cid]bool, len(head))
	for _, h := range head {
		current[h] = true
	}
	needed := make([][]cid.Cid, len(candidates))
	leading := map[cid.Cid][]int{} // who leads to an event of head
	for i, c := range candidates {
		for _, h := range c.head {
			if current[h] {
				needed[i] = append(needed[i], h)
				leading[h] = append(leading[h], i)
			}
		}
	}
	covers := func(i, j int) bool {
		if !containsAll(needed[i], needed[j]) {
			return false
		}
		if len(needed[i]) > len(needed[j]) {
			return true
		}
		a, b := candidates[i], candidates[j]
		if slices.Contains(a.Parents, b.CID) || slices.Contains(b.Parents, a.CID) {
			return slices.Contains(a.Parents, b.CID)
		}
		return cmp.Compare(a.CID.KeyString(), b.CID.KeyString()) < 0
	}
	var out []candidate
	for j, c := range candidates {
		if len(needed[j]) == 0 {
			continue
		}
		covered := slices.ContainsFunc(leading[needed[j][0]], func(i int) bool {
			return i != j && candidates[i].CID != c.CID && covers(i, j)
		})
		if !covered && !slices.ContainsFunc(out, func(o candidate) bool { return o.CID == c.CID }) {
			out = append(out, c)
		}
	}
	slices.SortFunc(out, func(a, b candidate) int { return cmp.Compare(a.CID.KeyString(), b.CID.KeyString()) })
	return out
}

func containsAll(big, small []cid.Cid) bool {
	for _, c := range small {
		if !slices.Contains(big, c) {
			return false
		}
	}
	return true
}

// orderHead is the order in which a head is kept: that of the only tip's header, which is JavaScript's if JavaScript
// wrote it, else by text. It depends on nothing but tips and note, so a restart gives the same.
func orderHead(head []cid.Cid, tipHeads [][]cid.Cid) []cid.Cid {
	if len(tipHeads) == 1 && len(tipHeads[0]) == len(head) && containsAll(tipHeads[0], head) {
		return tipHeads[0]
	}
	head = slices.Clone(head)
	clock.SortText(head)
	return head
}

// tipCandidates is the tips of a state with their heads.
func (l *Ledger) tipCandidates(ctx context.Context, s *state) ([]candidate, error) {
	var out []candidate
	for _, t := range s.tips {
		head, ok := l.tipHeads[t.CID]
		if !ok {
			h, found, err := l.storedHeader(ctx, t.Group[0].Name)
			if err != nil {
				return nil, err
			}
			if !found {
				return nil, fmt.Errorf("the CAR of tip %s has no header", t.CID)
			}
			head = h.Head
			l.tipHeads[t.CID] = head
		}
		out = append(out, candidate{Meta: t, head: head})
	}
	return out, nil
}

// canBeTip says whether a restart could find a meta's head: the CAR with its header is kept, and the store knows the
// other parts of the group at least by name.
func (m *merging) canBeTip(c candidate, kept map[blockstore.Name]bool) (bool, error) {
	for i, r := range c.Group {
		if kept[r.Name] {
			continue
		}
		_, held, err := m.l.store.Ref(r.Name)
		if err != nil {
			return false, err
		}
		if !held && (i == 0 || !m.l.store.Known(r.Name)) {
			return false, nil
		}
	}
	return true, nil
}

// keepTipHeads forgets the heads of metas that are no tips.
func (m *merging) keepTipHeads() {
	for c := range m.l.tipHeads {
		if !slices.ContainsFunc(m.next.tips, func(t blockstore.Meta) bool { return t.CID == c }) {
			delete(m.l.tipHeads, c)
		}
	}
}

// storedHeader reads the header of a CAR in the store, false if there is none or only the name is known.
func (l *Ledger) storedHeader(ctx context.Context, n blockstore.Name) (car.Header, bool, error) {
	blocks, err := l.store.BlocksOf(ctx, n)
	if errors.Is(err, blockstore.ErrNotFound) || err == nil && len(blocks) == 0 {
		return car.Header{}, false, nil
	}
	if err != nil {
		return car.Header{}, false, err
	}
	b, err := l.store.Block(ctx, blocks[0])
	if err != nil {
		return car.Header{}, false, err
	}
	h, err := car.DecodeHeader(b)
	if err != nil {
		return car.Header{}, false, fmt.Errorf("CAR %s: %w", n, err)
	}
	return h, true, nil
}

func joinCIDs(l []cid.Cid) []byte {
	var b []byte
	for _, c := range l {
		b = append(b, c.KeyString()...)
	}
	return b
}

func splitCIDs(b []byte) ([]cid.Cid, error) {
	var out []cid.Cid
	for ; len(b) > 0; b = b[cidBytes:] {
		if len(b) < cidBytes {
			return nil, errors.New("half a CID")
		}
		c, err := cid.Cast(b[:cidBytes])
		if err != nil {
			return nil, err
		}
		out = append(out, c)
	}
	return out, nil
}
