package redact

import (
	"bytes"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"testing"
)

// benchSet knows ten live keys and ten retired ones.
func benchSet(b *testing.B) *Set {
	s := newSet(b, Options{Patterns: keyPatterns})
	for i := range 20 {
		e := add(b, s, Label{fmt.Sprint("k", i), 1}, fmt.Sprintf("sk-proj-%08d%s", i*7919, strings.Repeat("aB3_x", 8)), "sk-proj-")
		if i%2 == 1 {
			s.Retire(e)
		}
	}
	return s
}

// plain is 32 KiB of what answers are made of.
var plain = bytes.Repeat([]byte(`{"id":"chatcmpl-9aBcD","object":"chat.completion.chunk","created":1735787045,"model":"gpt-4o-mini","choices":[{"index":0,"delta":{"content":" token"},"finish_reason":null}]}`+"\n\n"), 200)[:32<<10]

var line = []byte(`{"time":"2026-01-02T03:04:05.678901234Z","level":"INFO","msg":"exchange","provider":"openai","method":"POST","path":"/v1/chat/completions","status":200,"key":"openai","version":7,"fingerprint":"0a1b2c3d4e5f","upstream_ms":812,"overhead_us":93,"bytes_in":1834,"bytes_out":24811,"client":"127.0.0.1:51234"}` + "\n")

func BenchmarkMask(b *testing.B) {
	s := benchSet(b)
	for _, n := range []int{200, 4096, len(plain)} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			text := bytes.Clone(plain[:n])
			b.SetBytes(int64(n))
			b.ReportAllocs()
			for b.Loop() {
				s.Mask(text, WhereResponse)
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(n), "ns/byte")
		})
	}
}

func BenchmarkStream(b *testing.B) {
	s := benchSet(b)
	for _, n := range []int{200, 4096, len(plain)} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			text := bytes.Clone(plain[:n])
			st := s.NewStream(WhereResponse)
			b.SetBytes(int64(n))
			b.ReportAllocs()
			for b.Loop() {
				st.Next(text)
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(n), "ns/byte")
		})
	}
}

func BenchmarkText(b *testing.B) {
	s := benchSet(b)
	for name, text := range map[string][]byte{"line": line, "32KiB": plain} {
		b.Run(name, func(b *testing.B) {
			b.SetBytes(int64(len(text)))
			b.ReportAllocs()
			for b.Loop() {
				s.Text(text)
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(len(text)), "ns/byte")
		})
	}
}

func BenchmarkTextEmptySet(b *testing.B) {
	s := newSet(b, Options{})
	b.ReportAllocs()
	for b.Loop() {
		s.Text(line)
	}
}

// One line through the handler and the writer, and through slog alone.
func BenchmarkLog(b *testing.B) {
	s := benchSet(b)
	for name, h := range map[string]slog.Handler{
		"scrubbed": s.Handler(slog.NewJSONHandler(s.Writer(io.Discard, WhereLog), nil)),
		"bare":     slog.NewJSONHandler(io.Discard, nil),
	} {
		b.Run(name, func(b *testing.B) {
			l := slog.New(h)
			b.ReportAllocs()
			for b.Loop() {
				l.Info("exchange", "provider", "openai", "path", "/v1/chat/completions", "status", 200, "upstream_ms", 812)
			}
		})
	}
}

func BenchmarkAdd(b *testing.B) {
	s := benchSet(b)
	v := value(b, testKeys[0].value)
	b.ReportAllocs()
	for b.Loop() {
		e, err := s.Add(Label{"k", 1}, v, "sk-proj-")
		if err != nil {
			b.Fatal(err)
		}
		s.Retire(e)
	}
}
