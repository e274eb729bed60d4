package keyring

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
)

// errMarshal is what every encoder gets from a type that holds a secret. An error rather than a
// placeholder: a file that silently holds "[redacted]" where a key should be is a lost ledger.
var errMarshal = errors.New("keyring: secrets do not marshal; Key.Export is the one way out")

// opaque is embedded in every type that holds a secret. It answers all the ways in which Go programs
// turn a value into text, and makes the type incomparable, since == on secrets is always a mistake.
//
// It does not help in unexported fields of other structs: there fmt calls no methods but prints by
// reflection, and follows pointers when a verb does not fit. That is what hidden is for.
type opaque struct{ _ [0]func() }

// hidden is a value behind a function, which fmt prints as an address whatever the verb.
type hidden[T any] func() T

func hide[T any](v T) hidden[T] { return func() T { return v } }

const redacted = "[redacted]"

func (opaque) String() string               { return redacted }
func (opaque) GoString() string             { return redacted }
func (opaque) Format(f fmt.State, _ rune)   { io.WriteString(f, redacted) }
func (opaque) LogValue() slog.Value         { return slog.StringValue(redacted) }
func (opaque) MarshalJSON() ([]byte, error) { return nil, errMarshal }
func (opaque) MarshalText() ([]byte, error) { return nil, errMarshal }

// MarshalBinary also serves encoding/gob.
func (opaque) MarshalBinary() ([]byte, error) { return nil, errMarshal }
