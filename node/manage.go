package node

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"fpnode/api"
	"fpnode/keyring"
	"fpnode/ledger"
)

// Import makes a ledger from a directory of JavaScript Fireproof, or brings
// one that was made from it up to date. After a failure there is no new
// ledger, and an old one is as it was.
func (n *Node) Import(ctx context.Context, req api.ImportRequest, progress func(api.Progress)) (api.ImportResult, error) {
	if err := keyring.CheckName(req.Ledger); err != nil {
		return api.ImportResult{}, err
	}
	if err := absolute(req.From); err != nil {
		return api.ImportResult{}, err
	}
	info, err := os.Stat(req.From)
	if err == nil && !info.IsDir() {
		err = fmt.Errorf("%s is not a directory", req.From)
	}
	if err != nil {
		return api.ImportResult{}, &api.Error{Code: api.NotFound, Message: err.Error(), Hint: "--from is the directory that holds data/ and meta/"}
	}
	src := ledger.ImportSource{Dir: os.DirFS(req.From), Insecure: req.KeyBag == ""}
	var keys *keyring.Keys
	if !src.Insecure {
		if keys, err = n.bagKeys(req.KeyBag, req.As, filepath.Base(req.From), req.Ledger); err != nil {
			return api.ImportResult{}, err
		}
		src.Opener = keys
	}
	fresh, err := n.claim(req.Ledger, keys)
	if api.CodeOf(err) == api.Conflict && keys != nil { // perhaps only because the keys are of another ledger
		err = cmp.Or(otherKeys(src.Dir, keys), err)
	}
	if err != nil {
		return api.ImportResult{}, err
	}
	res, err := n.importInto(ctx, req.Ledger, src, progress)
	if err != nil {
		if fresh {
			err = errors.Join(err, n.Remove(context.WithoutCancel(ctx), req.Ledger))
		}
		return api.ImportResult{}, noKeyBag(src, err)
	}
	if err := n.addKeys(req.Ledger, keys, true); err != nil {
		return api.ImportResult{}, err
	}
	return res, n.share(ctx, req.Ledger)
}

// claim makes the ledger of an import, or finds that it is there.
func (n *Node) claim(name string, keys *keyring.Keys) (fresh bool, err error) {
	there, err := n.ring.Lookup(name)
	switch {
	case err == nil && keys != nil && there.Keys.Pinned().Equal(keys.Pinned()):
		return false, nil
	case err == nil:
		return false, &api.Error{
			Code:    api.Conflict,
			Message: fmt.Sprintf("there is a ledger %q already, and it is another one", name),
			Hint:    "import it under another name, or remove that one with: fpnode ledger rm " + name,
		}
	case !errors.Is(err, keyring.ErrNotFound):
		return false, err
	}
	if keys == nil {
		_, err = n.ring.Create(name, nil)
		return true, err
	}
	return true, n.adopt(name, keys)
}

// adopt makes a ledger with keys that exist elsewhere.
func (n *Node) adopt(name string, keys *keyring.Keys) error {
	_, err := n.ring.Adopt(name, keys)
	if !errors.Is(err, keyring.ErrExists) {
		return err
	}
	id := keyring.IDOf(keys.Pinned().Fingerprint())
	for _, e := range n.ring.Ledgers() {
		if e.ID == id {
			return &api.Error{Code: api.Conflict, Message: fmt.Sprintf("this ledger is here already: %q", e.Name), Hint: "use it by that name; if it is another ledger, its keys are in another key bag"}
		}
	}
	return taken(name, err)
}

// otherKeys says if a directory is sealed under none of keys. One CAR is
// tried, of a directory as Import takes them; what else is wrong with it is
// not asked here.
func otherKeys(dir fs.FS, keys *keyring.Keys) error {
	for _, pattern := range []string{"data/*.car", "*/data/*.car", "*/*/data/*.car"} {
		files, err := fs.Glob(dir, pattern)
		if err != nil || len(files) == 0 {
			continue
		}
		b, err := fs.ReadFile(dir, files[0])
		if err != nil {
			return nil
		}
		if _, err := keys.Open(b); errors.Is(err, keyring.ErrKeyUnknown) {
			return &ledger.ImportError{Reason: ledger.ReasonWrongKey, Path: files[0], Err: err}
		}
		return nil
	}
	return nil
}

// addKeys adds those keys that the ledger does not have. With follow, what
// seals there seals here.
func (n *Node) addKeys(name string, keys *keyring.Keys, follow bool) error {
	if keys == nil {
		return nil
	}
	e, err := n.entry(name)
	if err != nil {
		return err
	}
	for _, k := range keys.All() {
		if e.Keys.Has(k.Fingerprint()) {
			continue
		}
		if err := n.ring.AddKey(name, k, follow && k.Equal(keys.Default())); err != nil {
			return fmt.Errorf("adding key %s: %w", k.Fingerprint().Short(), err)
		}
	}
	return nil
}

func (n *Node) importInto(ctx context.Context, name string, src ledger.ImportSource, progress func(api.Progress)) (api.ImportResult, error) {
	l, err := n.Ledger(ctx, name)
	if err != nil {
		return api.ImportResult{}, err
	}
	res, err := ledger.Import(ctx, l, src, steps(progress))
	if err != nil {
		return api.ImportResult{}, err
	}
	return api.ImportResult{NewCars: res.Cars, Repeated: res.Repeated, Absent: len(res.Stale), Warnings: res.Warnings}, nil
}

// steps turns the progress of a ledger into that of the API.
func steps(progress func(api.Progress)) func(ledger.Progress) {
	return func(p ledger.Progress) {
		progress(api.Progress{Stage: p.Step, Done: p.Done, Total: p.Total})
	}
}

// noKeyBag adds to the error of an import what was probably forgotten.
func noKeyBag(src ledger.ImportSource, err error) error {
	e, ok := errors.AsType[*ledger.ImportError](err)
	if !ok || !src.Insecure || e.Reason != ledger.ReasonDamaged {
		return err
	}
	return &api.Error{
		Code:    api.WrongKey,
		Message: "no key bag was given, and this is no unencrypted ledger: " + err.Error(),
		Hint:    "name the directory of its keys with --keybag",
	}
}

// bagKeys reads the keys of a ledger from a key bag: as if it is named, else
// the first of names that is there, else the only one.
func (n *Node) bagKeys(dir, as string, names ...string) (*keyring.Keys, error) {
	if err := absolute(dir); err != nil {
		return nil, err
	}
	bag, err := keyring.OpenBag(n.fs, dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, &api.Error{Code: api.NotFound, Message: fmt.Sprintf("there is no key bag in %s", dir), Hint: "programs keep it in ~/.fireproof/keybag if nobody told them otherwise"}
	}
	if err != nil {
		return nil, err
	}
	if as != "" {
		names = []string{as}
	}
	for _, name := range names {
		keys, err := bag.Keys(name)
		if !errors.Is(err, keyring.ErrNotFound) {
			return keys, err
		}
	}
	there, err := bag.Ledgers()
	if err != nil {
		return nil, err
	}
	if as == "" && len(there) == 1 {
		return bag.Keys(there[0])
	}
	hint := "it holds no key of any ledger"
	if len(there) > 0 {
		hint = "it has keys of " + strings.Join(there, ", ") + "; name one with --as"
	}
	return nil, &api.Error{Code: api.WrongKey, Message: fmt.Sprintf("the key bag in %s has no keys of %q", dir, names[0]), Hint: hint}
}

// Export writes a ledger as JavaScript Fireproof reads it.
func (n *Node) Export(ctx context.Context, req api.ExportRequest, progress func(api.Progress)) (api.ExportResult, error) {
	if err := n.outside(req.To); err != nil {
		return api.ExportResult{}, err
	}
	if req.KeyBag != "" {
		if err := n.outside(req.KeyBag); err != nil {
			return api.ExportResult{}, err
		}
	}
	l, err := n.Ledger(ctx, req.Ledger)
	if err != nil {
		return api.ExportResult{}, err
	}
	res, err := l.Export(ctx, req.To, n.fs, steps(progress))
	if err != nil {
		return api.ExportResult{}, err
	}
	out := api.ExportResult{
		To: req.To, KeyBag: req.KeyBag, Docs: res.Docs, Head: []string{},
		Written: res.Written, Kept: res.Kept, Deleted: res.Deleted, Bytes: res.Bytes, Warnings: res.Warnings,
	}
	for _, c := range res.Head {
		out.Head = append(out.Head, c.String())
	}
	if res.Read != nil {
		out.Merged = res.Read.Cars
	}
	if req.KeyBag == "" {
		return out, nil
	}
	return out, n.exportBag(req.Ledger, filepath.Base(req.To), req.KeyBag)
}

// ExportBag writes the keys of a ledger as a Fireproof key bag.
func (n *Node) ExportBag(name, dir string) error { return n.exportBag(name, name, dir) }

// exportBag writes the keys of ledger name as those of the ledger as.
func (n *Node) exportBag(name, as, dir string) error {
	if err := n.outside(dir); err != nil {
		return err
	}
	e, err := n.entry(name)
	if err != nil {
		return err
	}
	return keyring.WriteBag(n.fs, dir, as, e.Keys)
}

// Keys lists the keys of a ledger, the default first.
func (n *Node) Keys(name string) ([]api.KeyInfo, error) {
	e, err := n.entry(name)
	if err != nil {
		return nil, err
	}
	def := e.Keys.Default()
	list := []api.KeyInfo{keyInfo(name, def, true)}
	for _, k := range e.Keys.All() {
		if !k.Equal(def) {
			list = append(list, keyInfo(name, k, false))
		}
	}
	return list, nil
}

func keyInfo(ledger string, k keyring.Key, isDefault bool) api.KeyInfo {
	return api.KeyInfo{Ledger: ledger, Fingerprint: k.Fingerprint().String(), Bits: k.Bits(), Default: isDefault}
}

// ExportKey returns the default key of a ledger as text: a secret.
func (n *Node) ExportKey(name string) (string, error) {
	e, err := n.entry(name)
	if err != nil {
		return "", err
	}
	return e.Keys.Default().Export(), nil
}

// ImportKey adds a key, or those of a key bag, to a ledger, or makes the
// ledger that has them. The first key of a ledger names it everywhere, so the
// new ledger is the one that others with this key have.
func (n *Node) ImportKey(ctx context.Context, req api.KeyImportRequest) (api.KeyInfo, error) {
	if err := keyring.CheckName(req.Ledger); err != nil {
		return api.KeyInfo{}, err
	}
	keys, err := n.keysOf(req)
	if err != nil {
		return api.KeyInfo{}, err
	}
	e, err := n.ring.Lookup(req.Ledger)
	switch {
	case err == nil:
		err = n.addKeys(req.Ledger, keys, false)
	case errors.Is(err, keyring.ErrNotFound):
		if err = n.adopt(req.Ledger, keys); err == nil {
			err = n.share(ctx, req.Ledger)
		}
	}
	if err != nil {
		return api.KeyInfo{}, err
	}
	got := keys.Default()
	return keyInfo(req.Ledger, got, e.Keys == nil || e.Keys.Default().Equal(got)), nil
}

func (n *Node) keysOf(req api.KeyImportRequest) (*keyring.Keys, error) {
	if (req.Key == "") == (req.KeyBag == "") {
		return nil, &api.Error{Code: api.Misuse, Message: "either a key or a key bag is needed"}
	}
	if req.KeyBag != "" {
		return n.bagKeys(req.KeyBag, req.As, req.Ledger)
	}
	key, err := keyring.ParseKey(req.Key)
	if err != nil {
		return nil, &api.Error{Code: api.BadInput, Message: "this is no key: " + err.Error(), Hint: "a key is one line that begins with z, as fpnode key export prints it"}
	}
	return keyring.NewKeys(key)
}
