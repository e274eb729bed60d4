package ledger

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/ipfs/go-cid"

	"fpnode/blockstore"
	"fpnode/internal/car"
	"fpnode/internal/dagcbor"
	"fpnode/internal/planted"
)

// JavaScript loads every CAR its car log names into memory and repeats the log in each commit, so it is never shown
// this node's commits. It is shown packs and one border instead:
//
//	pack    CARv1, root and first block = header {cars: [], compact: [], meta: {}}, then blocks by CID bytes
//	border  CARv1, root and first block = header {cars: [[pack], …], compact: [[retired], …], meta: {head}}
//
// The packs of a target are disjoint and hold every block the ledger has, history too, except header blocks and the
// content of files, which JS looks for in CARs of its own. What compact lists, JS forgets. If the head has several
// events, the shards of their merged root that no CAR holds follow in the border: JS computes that root too, but when
// a replay comes back to an earlier state it loses shards doing so.

// Target is what is known to be at one place JavaScript reads: an export directory, the apps of this node, a js remote.
// The zero Target is an empty place.
type Target struct {
	// Packs are there, disjoint, and every block of theirs has been verified.
	Packs []Pack
	// Border is the group of the newest border there, nil before the first.
	Border []cid.Cid
	// Head is what that border shows.
	Head []cid.Cid
	// Logs are the car logs that devices last had from there, the most recently seen device first: the groups of its
	// newest meta and that meta's header, or of the last border it was served.
	Logs [][][]cid.Cid
	// Read names other CARs there of which it is known that the ledger has all their blocks, such as older packs and
	// borders.
	Read []cid.Cid
	// Parents are the metas read there that the new border's meta replaces; none in an export.
	Parents []cid.Cid
}

// Pack is one CAR of blocks at a target.
type Pack struct {
	Ref    blockstore.Ref
	Blocks []cid.Cid // by CID bytes, without the header block
}

// Border is what MakeBorder made of a target.
type Border struct {
	CAR  blockstore.CAR
	Meta blockstore.Meta
	// Next is the target once the new packs, the border and the meta are there, in that order.
	Next Target
	// Added and Retired are the packs that are new and those the border no longer lists. A retired pack, and the
	// border before, stay at the target for [RetireAfter]: a reader may still hold a log that names them.
	Added, Retired []Pack
}

// ErrEmpty is returned where a ledger without a single commit has nothing to show.
var ErrEmpty = errors.New("the ledger is empty")

// packRoot is the first block of every pack.
var packRoot = headerBlock(car.Header{})

func headerBlock(h car.Header) car.Block {
	b := h.Encode()
	return car.Block{CID: dagcbor.Sum(b), Data: b}
}

// MakeBorder computes the packs and the border that show the ledger's present head at a target. It is a function of
// the ledger's blocks and head and of prev alone. Each new pack is handed to emit, one at a time, before the border
// exists; the caller makes the packs durable at the target, then the border, then the meta.
//
// Peak memory is about four times [MaxPackBytes] (a pack's blocks, its plain and its sealed CAR, and the copy that
// checks it) and 150 bytes for each block of the ledger. More than [MaxPacks] packs are refused with a *LimitError.
func (l *Ledger) MakeBorder(ctx context.Context, prev Target, emit func(blockstore.CAR) error) (Border, error) {
	// The head comes before the blocks: those of a later commit may be in the packs, but none of this head can miss.
	m := packer{store: l.store, packBytes: MaxPackBytes, emit: emit, emitted: map[blockstore.Name]bool{}}
	head, loose, err := l.shown(ctx)
	if err != nil {
		return Border{}, fmt.Errorf("making border: %w", err)
	}
	if len(head) == 0 {
		return Border{}, ErrEmpty
	}
	fresh, err := m.fresh(ctx, prev.Packs)
	if err != nil {
		return Border{}, fmt.Errorf("making border: %w", err)
	}
	packs := slices.Clone(prev.Packs)
	cut, err := m.cut(ctx, fresh)
	if err != nil {
		return Border{}, fmt.Errorf("making border: %w", err)
	}
	packs, err = cascade(append(packs, cut...), func(blocks []cid.Cid) (Pack, error) { return m.build(ctx, blocks, nil) })
	if err != nil {
		return Border{}, fmt.Errorf("making border: %w", err)
	}
	if len(packs) > MaxPacks {
		return Border{}, tooManyPacks(packs)
	}
	b := Border{}
	b.Added, b.Retired = packDiff(prev.Packs, packs)
	for _, p := range b.Added {
		if m.emitted[p.Ref.Name] {
			continue
		}
		if _, err := m.build(ctx, p.Blocks, emit); err != nil {
			return Border{}, fmt.Errorf("making border: %w", err)
		}
	}

	names := make([][]cid.Cid, len(packs))
	for i, p := range packs {
		names[i] = []cid.Cid{p.Ref.Name.Cid}
	}
	h := car.Header{
		Cars:    names,
		Compact: compactGroups(prev, names, l.covered(prev)),
		Head:    byBytes(head),
		HasHead: true,
	}
	root := headerBlock(h)
	b.CAR, err = l.store.Pack([]cid.Cid{root.CID}, append([]car.Block{root}, loose...))
	if err != nil {
		return Border{}, fmt.Errorf("making border: %w", err)
	}
	b.Meta = blockstore.NewMeta([]blockstore.Ref{b.CAR.Ref}, byBytes(prev.Parents))
	group := []cid.Cid{b.CAR.Ref.Name.Cid}
	b.Next = Target{
		Packs:  packs,
		Border: group,
		Head:   h.Head,
		Logs:   [][][]cid.Cid{append([][]cid.Cid{group}, names...)},
		Read:   retiredNames(prev, b.Retired),
	}
	return b, nil
}

func tooManyPacks(packs []Pack) error {
	return &LimitError{
		What: "the number of packs of a border (JavaScript loads all of them into memory)",
		Size: int64(len(packs)), Max: MaxPacks,
	}
}

// packer cuts and builds packs from the blocks of a store.
type packer struct {
	store     *blockstore.Ledger
	packBytes int
	emit      func(blockstore.CAR) error
	emitted   map[blockstore.Name]bool
}

// shown is the head, and the shards of its root that no CAR holds yet, by CID bytes.
func (l *Ledger) shown(ctx context.Context) (head []cid.Cid, loose []car.Block, err error) {
	err = l.exclusive(ctx, func() error {
		if err := l.ready(ctx); err != nil {
			return err
		}
		head = slices.Clone(l.state.Load().head)
		for c, b := range l.blocks.extra {
			loose = append(loose, car.Block{CID: c, Data: b})
		}
		return nil
	})
	slices.SortFunc(loose, func(a, b car.Block) int { return compareBytes(a.CID, b.CID) })
	return head, loose, err
}

// fresh lists the blocks of the store that belong into packs and are in none of packs, by CID bytes.
func (m *packer) fresh(ctx context.Context, packs []Pack) ([]cid.Cid, error) {
	in := map[cid.Cid]struct{}{}
	for _, p := range packs {
		for _, c := range p.Blocks {
			in[c] = struct{}{}
		}
	}
	var fresh []cid.Cid
	for c, err := range m.store.Blocks(ctx) {
		if err != nil {
			return nil, err
		}
		if _, ok := in[c]; ok || isFileBlock(c) {
			continue
		}
		fresh = append(fresh, c)
	}
	slices.SortFunc(fresh, compareBytes)
	if planted.PackLacksBlock && len(fresh) > 1 {
		fresh = fresh[:len(fresh)-1]
	}
	return fresh, nil
}

// cut divides blocks into packs: a new one begins before the block that would take the plain CAR over packBytes.
// Packs of the class "full" are emitted at once, since no cascade touches them.
func (m *packer) cut(ctx context.Context, blocks []cid.Cid) ([]Pack, error) {
	var packs []Pack
	var part []car.Block
	size := car.Size([]cid.Cid{packRoot.CID}, []car.Block{packRoot})
	begin := size
	flush := func() error {
		if len(part) == 0 {
			return nil
		}
		p, c, err := m.seal(part)
		if err != nil {
			return err
		}
		packs = append(packs, p)
		if len(packs) > MaxPacks+maxSmallPacks {
			return tooManyPacks(packs)
		}
		if packClass(p.Ref.Size) == classFull {
			if err := m.send(c, m.emit); err != nil {
				return err
			}
		}
		part, size = nil, begin
		return nil
	}
	for _, c := range blocks {
		data, err := m.store.Block(ctx, c)
		if err != nil {
			return nil, err
		}
		if isHeader(data) {
			continue
		}
		b := car.Block{CID: c, Data: data}
		n := car.SectionSize(b)
		if size+n > m.packBytes {
			if err := flush(); err != nil {
				return nil, err
			}
		}
		part, size = append(part, b), size+n
	}
	return packs, flush()
}

// build makes the pack of blocks, which are in the store, and hands it to emit if there is one.
func (m *packer) build(ctx context.Context, blocks []cid.Cid, emit func(blockstore.CAR) error) (Pack, error) {
	part := make([]car.Block, len(blocks))
	for i, c := range blocks {
		data, err := m.store.Block(ctx, c)
		if err != nil {
			return Pack{}, err
		}
		part[i] = car.Block{CID: c, Data: data}
	}
	p, c, err := m.seal(part)
	if err != nil || emit == nil {
		return p, err
	}
	return p, m.send(c, emit)
}

func (m *packer) seal(part []car.Block) (Pack, blockstore.CAR, error) {
	c, err := m.store.Pack([]cid.Cid{packRoot.CID}, append([]car.Block{packRoot}, part...))
	if err != nil {
		return Pack{}, blockstore.CAR{}, err
	}
	p := Pack{Ref: c.Ref, Blocks: make([]cid.Cid, len(part))}
	for i, b := range part {
		p.Blocks[i] = b.CID
	}
	return p, c, nil
}

func (m *packer) send(c blockstore.CAR, emit func(blockstore.CAR) error) error {
	m.emitted[c.Ref.Name] = true
	return emit(c)
}

// Size classes of packs by sealed size. A class may hold packsPerClass-1 packs; with one more they are joined. So of a
// target that follows every commit each byte is rewritten a few times a class, and most exports write one small pack.
const classFull = 4

var classFloor = [classFull]int64{32 << 10, 256 << 10, 2 << 20, 16 << 20}

func packClass(sealed int64) int {
	for class, floor := range classFloor {
		if sealed < floor {
			return class
		}
	}
	return classFull
}

// cascade joins packs until every class but the full one holds fewer than packsPerClass. It takes the lowest class
// that is too full, its two smallest packs, then more while their sum stays within MaxPackBytes. The result is
// ordered by name.
func cascade(packs []Pack, build func([]cid.Cid) (Pack, error)) ([]Pack, error) {
	for {
		class := crowded(packs)
		if class == classFull {
			slices.SortFunc(packs, func(a, b Pack) int { return compareBytes(a.Ref.Name.Cid, b.Ref.Name.Cid) })
			return packs, nil
		}
		slices.SortFunc(packs, func(a, b Pack) int {
			if a.Ref.Size != b.Ref.Size {
				return int(a.Ref.Size - b.Ref.Size)
			}
			return compareBytes(a.Ref.Name.Cid, b.Ref.Name.Cid)
		})
		var join, rest []Pack
		var sum int64
		closed := false
		for _, p := range packs {
			if packClass(p.Ref.Size) != class || closed || len(join) >= 2 && sum+p.Ref.Size > MaxPackBytes {
				closed = closed || packClass(p.Ref.Size) == class
				rest = append(rest, p)
				continue
			}
			join, sum = append(join, p), sum+p.Ref.Size
		}
		joined, err := build(joinBlocks(join))
		if err != nil {
			return nil, err
		}
		packs = append(rest, joined)
	}
}

// crowded returns the lowest class that holds too many packs, or classFull.
func crowded(packs []Pack) int {
	var n [classFull + 1]int
	for _, p := range packs {
		n[packClass(p.Ref.Size)]++
	}
	for class := range classFull {
		if n[class] >= packsPerClass {
			return class
		}
	}
	return classFull
}

func joinBlocks(packs []Pack) []cid.Cid {
	var all []cid.Cid
	for _, p := range packs {
		all = append(all, p.Blocks...)
	}
	slices.SortFunc(all, compareBytes)
	return slices.Compact(all)
}

// packDiff returns the packs of now that were not in before, and those of before that are gone.
func packDiff(before, now []Pack) (added, retired []Pack) {
	in := func(packs []Pack) map[blockstore.Name]bool {
		m := map[blockstore.Name]bool{}
		for _, p := range packs {
			m[p.Ref.Name] = true
		}
		return m
	}
	was, is := in(before), in(now)
	for _, p := range now {
		if !was[p.Ref.Name] {
			added = append(added, p)
		}
	}
	for _, p := range before {
		if !is[p.Ref.Name] {
			retired = append(retired, p)
		}
	}
	return added, retired
}

// covered reports of a group whether all its blocks are in the packs. Packs hold whatever the ledger holds, so the
// blocks of every CAR the ledger knows by name are; so are those of earlier packs and borders.
func (l *Ledger) covered(prev Target) func([]cid.Cid) bool {
	read := map[cid.Cid]bool{}
	for _, p := range prev.Packs {
		read[p.Ref.Name.Cid] = true
	}
	for _, c := range slices.Concat(prev.Border, prev.Read) {
		read[c] = true
	}
	return func(group []cid.Cid) bool {
		for _, c := range group {
			if !read[c] && !l.store.Known(blockstore.Name{Cid: c}) {
				return false
			}
		}
		return true
	}
}

// compactGroups lists what readers of the target shall forget: the logs they last had and the previous border, without
// what the new border lists and without groups that hold a block the packs lack. Over MaxCompact (JS remembers no
// more), the devices seen last come first.
func compactGroups(prev Target, cars [][]cid.Cid, covered func([]cid.Cid) bool) [][]cid.Cid {
	seen := map[string]bool{}
	for _, g := range cars {
		seen[groupKey(g)] = true
	}
	var out [][]cid.Cid
	add := func(g []cid.Cid) {
		k := groupKey(g)
		if len(out) == MaxCompact || len(g) == 0 || seen[k] || !covered(g) {
			return
		}
		seen[k] = true
		out = append(out, g)
	}
	add(prev.Border)
	for _, log := range prev.Logs {
		for _, g := range log {
			add(g)
		}
	}
	slices.SortFunc(out, func(a, b []cid.Cid) int {
		if c := compareBytes(a[0], b[0]); c != 0 {
			return c
		}
		return strings.Compare(groupKey(a), groupKey(b))
	})
	return out
}

// retiredNames are the packs and borders before, which a later border may still tell readers to forget.
func retiredNames(prev Target, retired []Pack) []cid.Cid {
	names := slices.Clone(prev.Border)
	for _, p := range retired {
		names = append(names, p.Ref.Name.Cid)
	}
	return names
}

// isHeader reports whether a block is the header of a CAR, {fp: …}; no document, shard or event begins like that.
func isHeader(block []byte) bool { return bytes.HasPrefix(block, []byte("\xa1\x62fp")) }

// compareBytes orders CIDs by their bytes, as Fireproof orders parents; their text orders differently.
func compareBytes(a, b cid.Cid) int { return strings.Compare(a.KeyString(), b.KeyString()) }

func byBytes(cids []cid.Cid) []cid.Cid {
	s := slices.Clone(cids)
	slices.SortFunc(s, compareBytes)
	return s
}
