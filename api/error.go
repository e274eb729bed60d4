package api

import (
	"encoding/json"
	"errors"
	"net/http"
)

// Code says what kind of failure an [Error] is. Codes are stable: programs
// may branch on them. The command line has an exit code for each.
type Code string

// The codes, with what each means.
const (
	Failed       Code = "failed"        // anything without a code of its own
	BadInput     Code = "bad_input"     // a document, file or key bag that cannot be taken
	TooLarge     Code = "too_large"     // over a named limit
	DiskFull     Code = "disk_full"     // nothing was stored
	Busy         Code = "busy"          // too many requests at once
	NewerStore   Code = "newer_store"   // the store was written by a newer fpnode
	Misuse       Code = "misuse"        // the request itself is wrong
	Partial      Code = "partial"       // some of it was done
	NotFound     Code = "not_found"     // no such ledger, document, file or event
	Conflict     Code = "conflict"      // the name is taken
	NoDaemon     Code = "no_daemon"     // no node answers
	Timeout      Code = "timeout"       // not in time
	NotSynced    Code = "not_synced"    // peers are behind
	NotPermitted Code = "not_permitted" // token, or modes of files
	NoStore      Code = "no_store"      // there is no store in that home
	Locked       Code = "locked"        // another process holds the store
	WrongKey     Code = "wrong_key"     // no key, or not the right one
	Corrupt      Code = "corrupt"       // stored bytes are not what they were
	Interrupted  Code = "interrupted"   // cancelled
)

// statuses maps each code to its HTTP status. A code without an entry is not
// a code.
var statuses = map[Code]int{
	Failed:       http.StatusInternalServerError,
	BadInput:     http.StatusBadRequest,
	TooLarge:     http.StatusRequestEntityTooLarge,
	DiskFull:     http.StatusInsufficientStorage,
	Busy:         http.StatusTooManyRequests,
	NewerStore:   http.StatusPreconditionFailed,
	Misuse:       http.StatusBadRequest,
	Partial:      http.StatusInternalServerError,
	NotFound:     http.StatusNotFound,
	Conflict:     http.StatusConflict,
	NoDaemon:     http.StatusServiceUnavailable,
	Timeout:      http.StatusGatewayTimeout,
	NotSynced:    http.StatusServiceUnavailable,
	NotPermitted: http.StatusForbidden,
	NoStore:      http.StatusPreconditionFailed,
	Locked:       http.StatusLocked,
	WrongKey:     http.StatusUnprocessableEntity,
	Corrupt:      http.StatusInternalServerError,
	Interrupted:  499, // as nginx says "client closed request"
}

// Codes lists every code.
func Codes() []Code {
	codes := make([]Code, 0, len(statuses))
	for c := range statuses {
		codes = append(codes, c)
	}
	return codes
}

// Error is a failure as a person and a program see it.
type Error struct {
	Code    Code   `json:"code"`
	Message string `json:"message"`
	Hint    string `json:"hint,omitempty"`
	// Index is the place in the request of the document that is at fault,
	// counted from 0; nil if no single one is.
	Index *int `json:"index,omitempty"`
}

// Error returns the message without the hint.
func (e *Error) Error() string { return e.Message }

// CodeOf returns the code of err, or Failed.
func CodeOf(err error) Code {
	if e, ok := errors.AsType[*Error](err); ok {
		return e.Code
	}
	return Failed
}

func misuse(message string) *Error { return &Error{Code: Misuse, Message: message} }

type errorBody struct {
	Error *Error `json:"error"`
}

func writeError(w http.ResponseWriter, e *Error) {
	body, err := json.Marshal(errorBody{e})
	if err != nil {
		panic("api: internal error: " + err.Error())
	}
	status, ok := statuses[e.Code]
	if !ok {
		status = http.StatusInternalServerError
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	w.Write(append(body, '\n')) // the reader may be gone: nothing to do about it
}
