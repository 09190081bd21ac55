package redact

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"strings"
	"testing"
	"testing/slogtest"
)

type stringer struct{ s string }

func (s stringer) String() string { return "stringer " + s.s }

type formatter struct{ s string }

func (formatter) Error() string { return "short" }
func (f formatter) Format(w fmt.State, verb rune) {
	if w.Flag('+') {
		fmt.Fprint(w, "long ", f.s)
		return
	}
	fmt.Fprint(w, "short")
}

type valuer struct{ s string }

func (v valuer) LogValue() slog.Value { return slog.GroupValue(slog.String("inner", v.s)) }

type inside struct {
	Deep   *inside
	Key    string
	hidden string
	Raw    []byte
	V      valuer // a LogValuer in a struct is not asked
}

type textMarshaler struct{ s string }

func (m textMarshaler) MarshalText() ([]byte, error) { return []byte("text " + m.s), nil }

type panics struct{}

func (panics) Error() string                { panic("Error") }
func (panics) MarshalJSON() ([]byte, error) { panic("MarshalJSON") }

// leaks tries every way a value can get into a record.
func leaks(key string) []slog.Attr {
	deep := &inside{Deep: &inside{Key: key}}
	return []slog.Attr{
		slog.String("string", "x "+key),
		slog.Any("error", errors.New("failed with "+key)),
		slog.Any("wrapped", fmt.Errorf("outer: %w", &url.Error{Op: "Get", URL: "https://h/?key=" + url.QueryEscape(key), Err: errors.New("refused")})),
		slog.Any("joined", errors.Join(errors.New("a"), errors.New(key))),
		slog.Any("formatter", formatter{key}),
		slog.Any("stringer", stringer{key}),
		slog.Any("stringer pointer", &stringer{key}),
		slog.Any("text", textMarshaler{key}),
		slog.Any("bytes", []byte(key)),
		slog.Any("raw json", json.RawMessage(`"`+key+`"`)),
		slog.Any("struct", inside{Key: key}),
		slog.Any("unexported", inside{hidden: key}),
		slog.Any("pointer", &inside{Key: key}),
		slog.Any("behind pointers", deep),
		slog.Any("bytes inside", inside{Raw: []byte(key)}),
		slog.Any("pointer to bytes inside", &inside{Deep: &inside{Raw: []byte(key)}}),
		slog.Any("unexported bytes", struct{ b []byte }{[]byte(key)}),
		slog.Any("both", struct {
			S string
			b []byte
		}{key, []byte(key)}),
		slog.Any("nested valuer", inside{V: valuer{key}}),
		slog.Any("valuer", valuer{key}),
		slog.Any("map", map[string]any{"a": map[string]string{"b": key}}),
		slog.Any("map key", map[string]int{key: 1}),
		slog.Any("slice", []string{"a", key}),
		slog.Any("attrs", []slog.Attr{slog.String("a", key)}),
		slog.Group("group", slog.String("a", "b"), slog.Group("group", slog.Any("error", errors.New(key)), slog.Int("n", 1))),
		slog.Any("url", &url.URL{Scheme: "https", Host: "h", Path: "/" + key}),
		slog.Any("userinfo", url.UserPassword("user", key)),
		slog.String("basic", "Basic "+base64.StdEncoding.EncodeToString([]byte("user:"+key))),
		slog.String(key, "as a name"),
	}
}

// shows looks for a key in any form, as decimal numbers, and for most of it.
func shows(out, key string) string {
	for _, f := range allForms(struct{ value, prefix string }{key, ""}) {
		if strings.Contains(out, f.text) {
			return f.text
		}
	}
	dec := strings.Trim(fmt.Sprint([]byte(key)), "[]")
	for _, d := range []string{dec, strings.ReplaceAll(dec, " ", ","), strings.ReplaceAll(dec, " ", ", "), key[4:16]} {
		if strings.Contains(out, d) {
			return d
		}
	}
	return ""
}

func handlers() map[string]func(*bytes.Buffer) slog.Handler {
	return map[string]func(*bytes.Buffer) slog.Handler{
		"text": func(b *bytes.Buffer) slog.Handler { return slog.NewTextHandler(b, nil) },
		"json": func(b *bytes.Buffer) slog.Handler { return slog.NewJSONHandler(b, nil) },
	}
}

func TestHandlerScrubsEverything(t *testing.T) {
	for _, k := range testKeys {
		s := newSet(t, Options{})
		add(t, s, Label{"k", 1}, k.value, k.prefix)
		for name, h := range handlers() {
			for _, a := range leaks(k.value) {
				for way, log := range map[string]func(*slog.Logger){
					"attr":    func(l *slog.Logger) { l.LogAttrs(context.Background(), slog.LevelInfo, "m", slog.Int("n", 1), a) },
					"with":    func(l *slog.Logger) { l.With(a).Info("m") },
					"group":   func(l *slog.Logger) { l.WithGroup("g").With("x", 1).Info("m", slog.Group("h", a)) },
					"message": func(l *slog.Logger) { l.Info("the message "+k.value, "n", 1) },
					"name":    func(l *slog.Logger) { l.WithGroup(k.value).Info("m", "n", 1) },
					"many":    func(l *slog.Logger) { l.Info("m", "a", 2, "b", 4, "c", 6, "d", 8, "e", 10, "f", 12, a, a) },
				} {
					var out bytes.Buffer
					before := s.Hits()
					log(slog.New(s.Handler(h(&out))))
					if leak := shows(out.String(), k.value); leak != "" {
						t.Errorf("%s, %s, %q: %q in %s", name, way, a.Key, leak, out.String())
					}
					shown := strings.Contains(out.String(), Redacted) || a.Key == "formatter" // whose text is harmless
					if s.Hits() == before || !shown {
						t.Errorf("%s, %s, %q: not counted, or not shown as redacted: %s", name, way, a.Key, out.String())
					}
					if name == "json" && !json.Valid(out.Bytes()) {
						t.Errorf("%s, %q: no JSON: %s", way, a.Key, out.String())
					}
				}
			}
		}
	}
}

// What holds nothing known comes out as it would without us.
func TestHandlerLeavesTheRestAlone(t *testing.T) {
	s, _ := knowing(t, Options{Patterns: keyPatterns})
	for name, h := range handlers() {
		for _, a := range leaks("harmless text, of some length") {
			var with, without bytes.Buffer
			for out, l := range map[*bytes.Buffer]*slog.Logger{&with: slog.New(s.Handler(h(&with))), &without: slog.New(h(&without))} {
				l.Info("message", "n", 1, a, "m", 2.5)
				l.With(a).WithGroup("g").Warn("another", a)
				out.Len()
			}
			if cut(with.String()) != cut(without.String()) {
				t.Errorf("%s, %q:\n got %s\nwant %s", name, a.Key, with.String(), without.String())
			}
		}
	}
	if s.Hits() != 0 {
		t.Errorf("%d hits", s.Hits())
	}
}

// cut removes the times.
func cut(s string) string {
	var out []string
	for line := range strings.Lines(s) {
		_, rest, _ := strings.Cut(line, "level")
		out = append(out, rest)
	}
	return strings.Join(out, "")
}

// fickle shows the key only when asked a second time.
type fickle struct {
	asked *int
	key   string
}

func (f fickle) LogValue() slog.Value {
	if *f.asked++; *f.asked > 1 {
		return slog.StringValue(f.key)
	}
	return slog.StringValue("harmless")
}

func TestHandlerAsksALogValuerOnce(t *testing.T) {
	s, _ := knowing(t, Options{})
	var out bytes.Buffer
	slog.New(s.Handler(slog.NewTextHandler(&out, nil))).Info("m", "v", fickle{new(int), testKeys[0].value})
	if !strings.Contains(out.String(), "v=harmless") {
		t.Errorf("%s", out.String())
	}
}

func TestHandlerSurvivesPanics(t *testing.T) {
	s, _ := knowing(t, Options{})
	var out bytes.Buffer
	slog.New(s.Handler(slog.NewTextHandler(&out, nil))).Info("m", "e", panics{}, "nil", (*url.Error)(nil), "k", testKeys[0].value)
	if !strings.Contains(out.String(), "k=[redacted]") {
		t.Errorf("%s", out.String())
	}
}

func TestHandlerKeepsTheRecord(t *testing.T) {
	s, _ := knowing(t, Options{})
	var out bytes.Buffer
	h := slog.NewJSONHandler(&out, &slog.HandlerOptions{AddSource: true, Level: slog.LevelWarn})
	l := slog.New(s.Handler(h))
	l.Info("below the level " + testKeys[0].value)
	if out.Len() != 0 {
		t.Error("the level is ignored")
	}
	l.Warn("m "+testKeys[0].value, "a", 1, "b", testKeys[1].value, "c", 3)
	var got struct {
		Level, Msg, B string
		A, C          int
		Source        struct{ Function string }
	}
	if err := json.Unmarshal(out.Bytes(), &got); err != nil {
		t.Fatal(err)
	}
	if got.Level != "WARN" || got.Msg != "m [redacted]" || got.A != 1 || got.B != Redacted || got.C != 3 || !strings.HasSuffix(got.Source.Function, "TestHandlerKeepsTheRecord") {
		t.Errorf("%+v", got)
	}
}

// The contract of slog.Handler, with values that are scrubbed in every record.
func TestHandlerContract(t *testing.T) {
	s, _ := knowing(t, Options{})
	var out bytes.Buffer
	slogtest.Run(t, func(*testing.T) slog.Handler {
		out.Reset()
		return s.Handler(slog.NewJSONHandler(&out, nil))
	}, func(t *testing.T) map[string]any {
		m := map[string]any{}
		if err := json.Unmarshal(out.Bytes(), &m); err != nil {
			t.Fatal(err)
		}
		return m
	})
}

func TestHandlerCountsOnce(t *testing.T) {
	s, _ := knowing(t, Options{})
	var out bytes.Buffer
	l := slog.New(s.Handler(slog.NewJSONHandler(s.Writer(&out, WhereLog), nil)))
	for _, v := range []any{testKeys[0].value, errors.New(testKeys[0].value), stringer{testKeys[0].value}, []byte(testKeys[0].value), inside{Key: testKeys[0].value}} {
		before := s.Hits()
		l.Info("m", "v", v)
		if n := s.Hits() - before; n != 1 {
			t.Errorf("%T: one value in one record was counted %d times", v, n)
		}
	}
}
