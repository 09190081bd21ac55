package redact

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"unsafe"
)

// Handler returns a slog.Handler that scrubs the message, every attribute's key
// and value, and the contents of groups, errors and anything else that is
// printed, and hands the record to h. A value of a composite type that holds
// nothing known reaches h as it is; one that does is replaced by scrubbed text.
//
// Attributes given to With are scrubbed then, with what is known then; a Writer
// below h covers them too.
func (s *Set) Handler(h slog.Handler) slog.Handler { return &handler{set: s, next: h} }

type handler struct {
	set  *Set
	next slog.Handler
}

func (h *handler) Enabled(ctx context.Context, l slog.Level) bool { return h.next.Enabled(ctx, l) }

func (h *handler) Handle(ctx context.Context, r slog.Record) error {
	msg, changed := h.set.textString(r.Message)
	// The attributes are looked at once; only if one changes is the record built anew.
	var clean []slog.Attr
	i := 0
	r.Attrs(func(a slog.Attr) bool {
		b, hit := h.set.attr(a)
		if hit && clean == nil {
			clean = make([]slog.Attr, 0, r.NumAttrs())
			r.Attrs(func(a slog.Attr) bool {
				if len(clean) < i {
					clean = append(clean, a)
				}
				return len(clean) < i
			})
		}
		if clean != nil {
			clean = append(clean, b)
		}
		i++
		return true
	})
	if !changed && clean == nil {
		return h.next.Handle(ctx, r)
	}
	fresh := slog.NewRecord(r.Time, r.Level, msg, r.PC)
	if clean != nil {
		fresh.AddAttrs(clean...)
	} else {
		r.Attrs(func(a slog.Attr) bool { fresh.AddAttrs(a); return true })
	}
	return h.next.Handle(ctx, fresh)
}

func (h *handler) WithAttrs(attrs []slog.Attr) slog.Handler {
	clean := make([]slog.Attr, len(attrs))
	for i, a := range attrs {
		clean[i], _ = h.set.attr(a)
	}
	return &handler{set: h.set, next: h.next.WithAttrs(clean)}
}

func (h *handler) WithGroup(name string) slog.Handler {
	name, _ = h.set.textString(name)
	return &handler{set: h.set, next: h.next.WithGroup(name)}
}

// textString is Text for a string; it allocates only if something changes.
func (s *Set) textString(in string) (string, bool) {
	if in == "" {
		return in, false
	}
	b := unsafe.Slice(unsafe.StringData(in), len(in)) // Text never writes to it
	out := s.Text(b)
	if unsafe.SliceData(out) == unsafe.SliceData(b) {
		return in, false
	}
	return string(out), true
}

// attr returns an attribute without known values, resolved, and whether that
// differs from what the next handler would have seen.
func (s *Set) attr(a slog.Attr) (slog.Attr, bool) {
	key, changed := s.textString(a.Key)
	if a.Value.Kind() == slog.KindLogValuer {
		// Resolved once: a second asking might answer differently.
		a.Value, changed = a.Value.Resolve(), true
	}
	v, hit := s.value(a.Value)
	return slog.Attr{Key: key, Value: v}, changed || hit
}

func (s *Set) value(v slog.Value) (slog.Value, bool) {
	switch v.Kind() {
	case slog.KindString:
		text, hit := s.textString(v.String())
		if hit {
			v = slog.StringValue(text)
		}
		return v, hit
	case slog.KindGroup:
		return s.group(v)
	case slog.KindAny:
		return s.printed(v)
	}
	return v, false // numbers, booleans, times: too short to be a value, and the Writer sees them
}

func (s *Set) group(v slog.Value) (slog.Value, bool) {
	attrs := v.Group()
	var clean []slog.Attr
	for i, a := range attrs {
		b, hit := s.attr(a)
		if hit && clean == nil {
			clean = append(make([]slog.Attr, 0, len(attrs)), attrs[:i]...)
		}
		if clean != nil {
			clean = append(clean, b)
		}
	}
	if clean == nil {
		return v, false
	}
	return slog.GroupValue(clean...), true
}

// printed looks at a value the ways a handler may print it: as text, with bytes
// as letters too, which %v prints as numbers, and as JSON, which follows pointers.
func (s *Set) printed(v slog.Value) (slog.Value, bool) {
	x := v.Any()
	plain, inPlain := s.scrub(fmt.Appendf(nil, "%+v", x), true)
	_, inLetters := s.scrub(fmt.Appendf(nil, "%+s", x), true)
	js, inJSON := s.scrub(jsonText(x), true)
	if len(inPlain)+len(inLetters)+len(inJSON) == 0 {
		return v, false
	}
	var shown []byte
	switch t := x.(type) {
	case []byte:
		shown, _ = s.scrub(t, true)
	case error:
		shown, _ = s.scrub([]byte(errorText(t)), true)
	default:
		shown = []byte(Redacted)
		if len(inJSON) > 0 {
			shown = js
		} else if len(inPlain) == len(inLetters) { // else something is in plain as numbers
			shown = plain
		}
	}
	// One printing is one exposure, in however many ways it was looked at.
	for _, found := range [][]find{inPlain, inLetters, inJSON} {
		if len(found) > 0 {
			s.report(found, WhereLog)
			break
		}
	}
	return slog.StringValue(string(shown)), true
}

// errorText is an error's text; an Error that panics is the next handler's to report.
func errorText(err error) (text string) {
	defer func() { _ = recover() }()
	return err.Error()
}

func jsonText(x any) (b []byte) {
	defer func() {
		if recover() != nil {
			b = nil // as above
		}
	}()
	b, _ = json.Marshal(x)
	return b
}
