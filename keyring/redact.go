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
// fmt does not call methods of values in unexported fields of other structs but prints them by
// reflection. Secrets therefore sit behind a pointer inside a struct, which fmt prints as an address.
type opaque struct{ _ [0]func() }

const redacted = "[redacted]"

func (opaque) String() string               { return redacted }
func (opaque) GoString() string             { return redacted }
func (opaque) Format(f fmt.State, _ rune)   { io.WriteString(f, redacted) }
func (opaque) LogValue() slog.Value         { return slog.StringValue(redacted) }
func (opaque) MarshalJSON() ([]byte, error) { return nil, errMarshal }
func (opaque) MarshalText() ([]byte, error) { return nil, errMarshal }

// MarshalBinary also serves encoding/gob.
func (opaque) MarshalBinary() ([]byte, error) { return nil, errMarshal }
