package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"strconv"
	"strings"
	"sync"
	"time"
)

// talk is a slog.Handler that writes records the way the program talks:
//
//	fpnode: merged ledger=notes cars=3 elapsed=1.2ms
type talk struct {
	mu     sync.Mutex
	w      io.Writer
	level  slog.Level
	prefix string // attributes of WithAttrs, ready to append
	parent *talk  // holds mu and w for those made by With…
}

func (t *talk) Enabled(_ context.Context, l slog.Level) bool { return l >= t.level }

func (t *talk) Handle(_ context.Context, r slog.Record) error {
	var b bytes.Buffer
	b.WriteString("fpnode: ")
	if r.Level >= slog.LevelError {
		b.WriteString("error: ")
	} else if r.Level >= slog.LevelWarn {
		b.WriteString("warning: ")
	}
	b.WriteString(r.Message)
	b.WriteString(t.prefix)
	r.Attrs(func(a slog.Attr) bool {
		appendAttr(&b, a)
		return true
	})
	b.WriteByte('\n')
	top := t
	if t.parent != nil {
		top = t.parent
	}
	top.mu.Lock()
	defer top.mu.Unlock()
	_, err := io.WriteString(top.w, visible(b.String()))
	return err
}

func appendAttr(b *bytes.Buffer, a slog.Attr) {
	if a.Equal(slog.Attr{}) {
		return
	}
	v := a.Value.Resolve()
	var text string
	switch v.Kind() {
	case slog.KindGroup:
		for _, inner := range v.Group() {
			appendAttr(b, inner)
		}
		return
	case slog.KindDuration:
		text = v.Duration().Round(10 * time.Microsecond).String()
	default:
		text = v.String()
	}
	if text == "" || strings.ContainsAny(text, " \t\n\r\"=") {
		text = strconv.Quote(text)
	}
	fmt.Fprintf(b, " %s=%s", a.Key, text)
}

func (t *talk) WithAttrs(attrs []slog.Attr) slog.Handler {
	var b bytes.Buffer
	for _, a := range attrs {
		appendAttr(&b, a)
	}
	return t.child(t.prefix + b.String())
}

// WithGroup keeps the names short: attributes of groups are written flat.
func (t *talk) WithGroup(string) slog.Handler { return t.child(t.prefix) }

func (t *talk) child(prefix string) *talk {
	top := t
	if t.parent != nil {
		top = t.parent
	}
	return &talk{w: t.w, level: t.level, prefix: prefix, parent: top}
}
