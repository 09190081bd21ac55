package redact

import (
	"bytes"
	"testing"
)

// Against looking at every place for every form, overlaps included.
func TestMaskLikeNaive(t *testing.T) {
	live, _ := knowing(t, Options{})
	retired, es := knowing(t, Options{})
	for _, e := range es {
		retired.Retire(e)
	}
	for seed := range uint64(300) {
		b := soup(seed, 50+int(seed)*10)
		spans := naive(b, testKeys...)
		want := naiveMask(b, spans)
		for name, s := range map[string]*Set{"live": live, "retired": retired} {
			got := bytes.Clone(b)
			if n := s.Mask(got, WhereResponse); n != len(spans) || !bytes.Equal(got, want) {
				t.Fatalf("%s, seed %d: %d hits, want %d\n in %q\ngot %q\nwant %q", name, seed, n, len(spans), b, got, want)
			}
		}
	}
}

func FuzzMask(f *testing.F) {
	s, es := knowing(f, Options{})
	s.Retire(es[1])
	for seed := range uint64(20) {
		f.Add(soup(seed, 200))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		spans := naive(b, testKeys...)
		want := naiveMask(b, spans)
		got := bytes.Clone(b)
		if n := s.Mask(got, WhereResponse); n != len(spans) || !bytes.Equal(got, want) {
			t.Errorf("%d hits, want %d\n in %q\ngot %q", n, len(spans), b, got)
		}
	})
}
