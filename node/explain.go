package node

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"syscall"

	"fpnode/api"
	"fpnode/blockstore"
	"fpnode/clock"
	"fpnode/internal/dagcbor"
	"fpnode/keyring"
	"fpnode/ledger"
	"fpnode/p2p"
)

// Explain gives any error of this node its code and hint.
func (n *Node) Explain(err error) *api.Error { return explain(err) }

// explain gives an error its code and hint. The message is the error's own:
// the packages below put no secret and no content into theirs.
func explain(err error) *api.Error {
	if e, ok := errors.AsType[*api.Error](err); ok {
		return e
	}
	e := &api.Error{Code: api.Failed, Message: err.Error()}
	if h, ok := errors.AsType[interface {
		error
		Hint() string
	}](err); ok {
		e.Hint = h.Hint()
	}
	e.Code, e.Hint = classify(err, e.Hint)
	return e
}

const idHint = "an id is up to 4096 printable ASCII characters, as JavaScript Fireproof allows"

// classify returns the code of err, and a hint if hint is empty.
func classify(err error, hint string) (api.Code, string) {
	or := func(text string) string {
		if hint != "" {
			return hint
		}
		return text
	}
	if e, ok := errors.AsType[*blockstore.LockedError](err); ok {
		if e.PID == 0 {
			return api.Locked, or("stop the other fpnode, or use another home with --home")
		}
		return api.Locked, or(fmt.Sprintf("stop process %d, or use another home with --home", e.PID))
	}
	if _, ok := errors.AsType[*blockstore.VersionError](err); ok {
		return api.NewerStore, or("use the newer fpnode that wrote it; this one leaves it alone")
	}
	if e, ok := errors.AsType[*blockstore.ModeError](err); ok {
		return api.NotPermitted, or(fmt.Sprintf("chmod %o %s", e.Want.Perm(), e.Path))
	}
	if _, ok := errors.AsType[*keyring.ModeError](err); ok {
		return api.NotPermitted, hint
	}
	if _, ok := errors.AsType[*ledger.ForeignError](err); ok {
		return api.Conflict, hint
	}
	if e, ok := errors.AsType[*ledger.ImportError](err); ok {
		return importCode(e.Reason), hint
	}
	if e, ok := errors.AsType[*blockstore.AcceptError](err); ok {
		if e.Check == "key" {
			return api.WrongKey, or("fpnode key import adds a key")
		}
		return api.Corrupt, or("bring it back from a backup or another copy of the ledger")
	}
	if e, ok := errors.AsType[*blockstore.CorruptError](err); ok {
		return api.Corrupt, or(e.Advice)
	}
	if _, ok := errors.AsType[*keyring.FileError](err); ok {
		return api.Corrupt, hint
	}
	if _, ok := errors.AsType[*keyring.CollisionError](err); ok {
		return api.Conflict, hint
	}
	if _, ok := errors.AsType[*ledger.IndexError](err); ok {
		return api.BadInput, or("only null, booleans, numbers, text and lists of them can be indexed; change that document, or query another field")
	}
	if e, ok := errors.AsType[*ledger.LimitError](err); ok {
		switch {
		case strings.HasPrefix(e.What, "id "):
			return api.TooLarge, or(idHint)
		case strings.HasPrefix(e.What, "document"):
			return api.TooLarge, or("put large content into a file: fpnode file add")
		}
		return api.TooLarge, or("ask for less at once")
	}
	if _, ok := errors.AsType[*ledger.IDError](err); ok {
		return api.BadInput, or(idHint)
	}
	if _, ok := errors.AsType[*ledger.DocError](err); ok {
		return api.BadInput, or(`a document is a JSON object, as {"text":"buy milk"}; "_id" is a string`)
	}
	for _, known := range []struct {
		err  error
		code api.Code
		hint string
	}{
		{blockstore.ErrDiskFull, api.DiskFull, "nothing was written, and reading still works; make room and try again"},
		{syscall.ENOSPC, api.DiskFull, "nothing was written, and reading still works; make room and try again"},
		{blockstore.ErrPoisoned, api.Failed, "the disk failed to store something; look at it, then start fpnode again"},
		{keyring.ErrPoisoned, api.Failed, "the disk failed to store something; look at it, then start fpnode again"},
		{blockstore.ErrLimit, api.TooLarge, ""},
		{blockstore.ErrClosed, api.Failed, "the node is stopping"},
		{errClosed, api.Failed, "start it again with: fpnode up"},
		{keyring.ErrBusy, api.Locked, "try again"},
		{keyring.ErrExists, api.Conflict, "fpnode ledger ls and fpnode key ls show what is there"},
		{keyring.ErrName, api.Misuse, "take another name"},
		{blockstore.ErrVault, api.WrongKey, "bring back the keys directory that belongs to this home; nothing was changed"},
		{keyring.ErrKeyUnknown, api.WrongKey, "fpnode key import adds a key"},
		{keyring.ErrTag, api.WrongKey, ""},
		{ledger.ErrNotFound, api.NotFound, ""},
		{ledger.ErrNoFile, api.NotFound, "fpnode file ls lists the files of a document"},
		{ledger.ErrNoContent, api.NotSynced, "a peer that has it can bring it, or an import of a directory that holds it"},
		{ledger.ErrBadQuery, api.Misuse, ""},
		{ledger.ErrUnknownClock, api.NotFound, "the clock is of another ledger, or of a replica with newer changes; without --since all changes are listed"},
		{ledger.ErrEmpty, api.NotFound, "put a document first"},
		{ledger.ErrClosed, api.NotFound, "the ledger was removed, or the node is stopping"},
		{keyring.ErrNotFound, api.NotFound, ""},
		{dagcbor.ErrLimit, api.TooLarge, "make it smaller, or flatter"},
		{p2p.ErrAddr, api.Misuse, "an address is like /ip4/192.168.1.4/tcp/4001, and that of a peer ends in /p2p/ and its id, as its up prints it"},
		{clock.ErrGenesis, api.Conflict, "the two ledgers began apart; keep them under two names"},
		{fs.ErrPermission, api.NotPermitted, "who owns it? fpnode has to run as that user"},
		{context.Canceled, api.Interrupted, ""},
		{context.DeadlineExceeded, api.Timeout, ""},
	} {
		if errors.Is(err, known.err) {
			return known.code, or(known.hint)
		}
	}
	return api.Failed, hint
}

// importCode says what kind of failure an import had.
func importCode(r ledger.ImportReason) api.Code {
	switch r {
	case ledger.ReasonNoMeta:
		return api.NotFound
	case ledger.ReasonWrongKey:
		return api.WrongKey
	case ledger.ReasonMissing, ledger.ReasonDamaged, ledger.ReasonIncomplete, ledger.ReasonBadMeta:
		return api.Corrupt
	case ledger.ReasonGenesis:
		return api.Conflict
	}
	return api.BadInput
}
