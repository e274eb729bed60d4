package dagcbor

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"unicode/utf8"

	"github.com/ipfs/go-cid"
)

// Marshal encodes a value: nil, bool, the integer types, float32, float64,
// string, []byte, cid.Cid, []any and map[string]any, however nested.
// Map keys are sorted; floats follow AppendNumber. Text that is not UTF-8,
// NaN, infinities, an undefined CID and more than MaxDepth levels are errors.
func Marshal(v any) ([]byte, error) {
	b, err := appendValue(nil, v, 0)
	if err != nil {
		return nil, fmt.Errorf("dagcbor: %w", err)
	}
	if len(b) > MaxSizeBytes {
		return nil, fmt.Errorf("dagcbor: block of %d bytes: %w", len(b), ErrLimit)
	}
	return b, nil
}

func appendValue(dst []byte, v any, depth int) ([]byte, error) {
	switch v := v.(type) {
	case nil:
		return AppendNull(dst), nil
	case bool:
		return AppendBool(dst, v), nil
	case int:
		return AppendInt(dst, int64(v)), nil
	case int8:
		return AppendInt(dst, int64(v)), nil
	case int16:
		return AppendInt(dst, int64(v)), nil
	case int32:
		return AppendInt(dst, int64(v)), nil
	case int64:
		return AppendInt(dst, v), nil
	case uint:
		return AppendUint(dst, uint64(v)), nil
	case uint8:
		return AppendUint(dst, uint64(v)), nil
	case uint16:
		return AppendUint(dst, uint64(v)), nil
	case uint32:
		return AppendUint(dst, uint64(v)), nil
	case uint64:
		return AppendUint(dst, v), nil
	case float32:
		return appendFinite(dst, float64(v))
	case float64:
		return appendFinite(dst, v)
	case string:
		if !utf8.ValidString(v) {
			return nil, errUTF8
		}
		return AppendText(dst, v), nil
	case []byte:
		return AppendBytes(dst, v), nil
	case cid.Cid:
		if !v.Defined() {
			return nil, errors.New("link to an undefined CID")
		}
		return AppendLink(dst, v), nil
	case []any:
		return appendArrayValue(dst, v, depth)
	case map[string]any:
		return appendMapValue(dst, v, depth)
	}
	return nil, fmt.Errorf("cannot encode a %T", v)
}

func appendFinite(dst []byte, v float64) ([]byte, error) {
	if math.IsNaN(v) || math.IsInf(v, 0) {
		return nil, errFloat
	}
	return AppendNumber(dst, v), nil
}

func appendArrayValue(dst []byte, v []any, depth int) ([]byte, error) {
	if depth == MaxDepth {
		return nil, fmt.Errorf("more than %d levels: %w", MaxDepth, ErrLimit)
	}
	dst = AppendArray(dst, len(v))
	for i, x := range v {
		var err error
		if dst, err = appendValue(dst, x, depth+1); err != nil {
			return nil, fmt.Errorf("[%d]: %w", i, err)
		}
	}
	return dst, nil
}

func appendMapValue(dst []byte, v map[string]any, depth int) ([]byte, error) {
	if depth == MaxDepth {
		return nil, fmt.Errorf("more than %d levels: %w", MaxDepth, ErrLimit)
	}
	keys := make([]string, 0, len(v))
	for k := range v {
		if !utf8.ValidString(k) {
			return nil, errUTF8
		}
		keys = append(keys, k)
	}
	slices.SortFunc(keys, compareKeys)
	dst = AppendMap(dst, len(v))
	for _, k := range keys {
		var err error
		dst = AppendText(dst, k)
		if dst, err = appendValue(dst, v[k], depth+1); err != nil {
			return nil, fmt.Errorf("%q: %w", k, err)
		}
	}
	return dst, nil
}

// Unmarshal decodes a block to nil, bool, int64 (uint64 above MaxInt64),
// float64, string, []byte, cid.Cid, []any or map[string]any. The result
// shares no memory with b.
func Unmarshal(b []byte) (any, error) {
	r := NewReader(b)
	v := r.value()
	if err := r.End(); err != nil {
		return nil, err
	}
	return v, nil
}

func (r *Reader) value() any {
	switch r.Kind() {
	case KindUint:
		if n := r.Uint(); n > math.MaxInt64 {
			return n
		} else {
			return int64(n)
		}
	case KindInt:
		return r.Int()
	case KindBytes:
		return append([]byte{}, r.Bytes()...)
	case KindText:
		return r.Text()
	case KindArray:
		n := r.ArrayLen()
		a := make([]any, 0, n)
		for range n {
			a = append(a, r.value())
		}
		return a
	case KindMap:
		n := r.MapLen()
		m := make(map[string]any, n)
		for range n {
			k := r.Text()
			m[k] = r.value()
		}
		return m
	case KindLink:
		return r.Link()
	case KindFloat:
		return r.Float()
	case KindBool:
		return r.Bool()
	case KindNull:
		r.Null()
	}
	return nil
}
