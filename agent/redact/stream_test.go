package redact

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
)

// through sends b through a stream in pieces that end at the cuts, and returns
// what came out after each piece.
func through(s *Set, b []byte, cuts ...int) (outs [][]byte, st *Stream) {
	st = s.NewStream(WhereResponse)
	at := 0
	for _, c := range append(cuts, len(b)) {
		outs = append(outs, bytes.Clone(st.Next(bytes.Clone(b[at:c]))))
		at = c
	}
	return append(outs, bytes.Clone(st.Close())), st
}

// checkStream says what is wrong with a stream's output: it must equal the
// masked whole, but for the first off+7 bytes of each occurrence, which may have
// gone out before there was enough to know it by.
func checkStream(b, out []byte, spans []span) error {
	if len(out) != len(b) {
		return fmt.Errorf("%d bytes became %d", len(b), len(out))
	}
	want := naiveMask(b, spans)
	for i := range out {
		if out[i] == want[i] {
			continue
		}
		allowed := false
		for _, s := range spans {
			allowed = allowed || s.start <= i && i < s.start+s.off+words-1
		}
		if !allowed || out[i] != b[i] {
			return fmt.Errorf("byte %d is %q, want %q\n in %q\nout %q", i, out[i], want[i], b, out)
		}
	}
	return nil
}

// The promise: a server-sent event with a key in any form, cut anywhere, shows
// the public prefix and at most 7 bytes.
func TestStreamCutAnywhere(t *testing.T) {
	for _, retire := range []bool{false, true} {
		s, es := knowing(t, Options{})
		if retire {
			for _, e := range es {
				s.Retire(e)
			}
		}
		for _, f := range allForms(testKeys...) {
			text := []byte(`data: {"delta":"` + f.text + "\"}\n\ndata: [DONE]\n\n")
			start := bytes.Index(text, []byte(f.text))
			spans := naive(text, testKeys...)
			for cut := range len(text) + 1 {
				outs, st := through(s, text, cut)
				out := bytes.Join(outs, nil)
				if err := checkStream(text, out, spans); err != nil {
					t.Fatalf("retired %v, cut at %d: %v", retire, cut, err)
				}
				shown := 0
				for shown < len(f.text) && out[start+shown] == f.text[shown] && f.text[shown] != '*' {
					shown++
				}
				if shown > f.off+7 || bytes.Contains(out, []byte(f.text[f.off+7:])) {
					t.Fatalf("retired %v, cut at %d: %d bytes of the form are seen: %s", retire, cut, shown, out)
				}
				if st.Hits() != len(spans) {
					t.Fatalf("retired %v, cut at %d: %d hits, want %d: %s", retire, cut, st.Hits(), len(spans), out)
				}
			}
		}
	}
}

func TestStreamOfSingleBytes(t *testing.T) {
	for _, retire := range []bool{false, true} {
		s, es := knowing(t, Options{})
		if retire {
			for _, e := range es {
				s.Retire(e)
			}
		}
		for _, f := range allForms(testKeys...) {
			text := []byte("event: x\ndata: " + f.text + f.text + "\n\n")
			spans := naive(text, testKeys...)
			for size := 1; size < 20; size++ {
				var cuts []int
				for c := size; c < len(text); c += size {
					cuts = append(cuts, c)
				}
				outs, st := through(s, text, cuts...)
				if err := checkStream(text, bytes.Join(outs, nil), spans); err != nil {
					t.Fatalf("retired %v, pieces of %d: %v", retire, size, err)
				}
				if st.Hits() != len(spans) {
					t.Fatalf("retired %v, pieces of %d: %d hits, want %d", retire, size, st.Hits(), len(spans))
				}
			}
		}
	}
}

// Every pair of cuts, for one key in all its forms.
func TestStreamCutTwice(t *testing.T) {
	s := newSet(t, Options{})
	k := testKeys[0]
	add(t, s, Label{"k", 1}, k.value, k.prefix)
	for _, f := range allForms(k) {
		text := []byte("{\"e\":\"" + f.text + "\"}")
		spans := naive(text, k)
		for a := range len(text) + 1 {
			for b := a; b <= len(text); b++ {
				outs, _ := through(s, text, a, b)
				if err := checkStream(text, bytes.Join(outs, nil), spans); err != nil {
					t.Fatalf("cut at %d and %d: %v", a, b, err)
				}
			}
		}
	}
}

// An ordinary stream is never kept waiting, and what waits is no more than it must be.
func TestStreamHoldsBackOnlyBeginnings(t *testing.T) {
	key := testKeys[0] // sk-proj-9fK2mQ7xT4v…
	s := newSet(t, Options{})
	add(t, s, Label{"k", 1}, key.value, key.prefix)
	for _, c := range []struct {
		piece string
		held  int
	}{
		{"data: an ordinary event\n\n", 0},
		{"the public prefix sk-proj-", 0},
		{"and seven more sk-proj-9fK2mQ7", 0},
		{"and eight more sk-proj-9fK2mQ7x", 16},
		{"and nine more sk-proj-9fK2mQ7xT", 17},
		{"all but one " + key.value[:len(key.value)-1], len(key.value) - 1},
		{"all " + key.value, 0},
		{"not at the end sk-proj-9fK2mQ7x ", 0},
		{"another key with the prefix sk-proj-AAAAAAAAAAAAAAAA", 0},
		{"twice sk-proj-9fK2mQ7xsk-proj-9fK2mQ7x", 16},
		{"", 0},
		{"s", 0},
	} {
		st := s.NewStream(WhereResponse)
		out := st.Next([]byte(c.piece))
		if len(out) != len(c.piece)-c.held {
			t.Errorf("%q: %d bytes held, want %d", c.piece, len(c.piece)-len(out), c.held)
		}
		if rest := string(out) + string(st.Close()); !strings.Contains(c.piece, key.value) && rest != c.piece {
			t.Errorf("%q came out as %q", c.piece, rest)
		}
	}
}

// What waited for nothing comes out with the next piece.
func TestStreamReleasesWhatDoesNotComplete(t *testing.T) {
	for _, retire := range []bool{false, true} {
		s, es := knowing(t, Options{})
		if retire {
			for _, e := range es {
				s.Retire(e)
			}
		}
		key := testKeys[0].value
		st := s.NewStream(WhereResponse)
		out := string(st.Next([]byte("a " + key[:30])))
		if out != "a " {
			t.Fatalf("retired %v: %q went out", retire, out)
		}
		// A live value is compared at once; a retired one when its length is there.
		more := " is not the key, and this goes on for a while"
		if out = string(st.Next([]byte(more))); out != key[:30]+more {
			t.Errorf("retired %v: %q", retire, out)
		}
		if st.Hits() != 0 || len(st.Close()) != 0 {
			t.Errorf("retired %v: %d hits", retire, st.Hits())
		}
	}
}

func TestStreamAgainstMask(t *testing.T) {
	live, _ := knowing(t, Options{})
	retired, es := knowing(t, Options{})
	for _, e := range es {
		retired.Retire(e)
	}
	for seed := range uint64(400) {
		b := soup(seed, 300)
		spans := naive(b, testKeys...)
		for name, s := range map[string]*Set{"live": live, "retired": retired} {
			r := rand.New(rand.NewPCG(seed, 2))
			var cuts []int
			for at := 0; at < len(b); {
				cuts = append(cuts, at)
				at += r.IntN(1 + []int{2, 10, 80, 400}[seed%4])
			}
			outs, st := through(s, b, cuts...)
			if err := checkStream(b, bytes.Join(outs, nil), spans); err != nil {
				t.Fatalf("%s, seed %d, cuts %v: %v", name, seed, cuts, err)
			}
			if st.Hits() != len(spans) {
				t.Fatalf("%s, seed %d: %d hits, want %d", name, seed, st.Hits(), len(spans))
			}
		}
	}
}

// Values that contain one another, repeat themselves, and end as others begin.
var awkward = []struct{ value, prefix string }{
	{"abababababababababab", ""},
	{"babababababababab-cc", ""},
	{"aaaaaaaaaaaaaaaaaaaaaaaa", ""},
	{"aaaaaaaaaaaaaaaaaaaab", "aaaa"},
	{"0123456789abcdefghij", ""},
	{"0123456789abcdefghijklmnopqrstuvwxyz", "0123"},
	{"efghijklmnopqrstuvwxyz0123456789abcdefgh", "efgh"},
}

func TestAwkwardValues(t *testing.T) {
	s := newSet(t, Options{})
	for i, k := range awkward {
		add(t, s, Label{"k", i}, k.value, k.prefix)
	}
	for seed := range uint64(500) {
		r := rand.New(rand.NewPCG(seed, 5))
		var b []byte
		for len(b) < 200 {
			v := awkward[r.IntN(len(awkward))].value
			i := r.IntN(len(v))
			b = append(b, v[i:i+r.IntN(len(v)-i+1)]...)
		}
		spans := naive(b, awkward...)
		got := bytes.Clone(b)
		s.Mask(got, WhereResponse)
		if want := naiveMask(b, spans); !bytes.Equal(got, want) {
			t.Fatalf("seed %d\n in %q\ngot %q\nwant %q", seed, b, got, want)
		}
		var cuts []int
		for at := r.IntN(30); at < len(b); at += r.IntN(30) {
			cuts = append(cuts, at)
		}
		outs, _ := through(s, b, cuts...)
		if err := checkStream(b, bytes.Join(outs, nil), spans); err != nil {
			t.Fatalf("seed %d, cuts %v: %v", seed, cuts, err)
		}
	}
}

// A stream of one value upon the other neither waits for ever nor grows.
func TestStreamOfEndlessOverlaps(t *testing.T) {
	s := newSet(t, Options{})
	add(t, s, Label{"k", 1}, awkward[0].value, "")
	st := s.NewStream(WhereResponse)
	in, out := 0, 0
	for range 1000 {
		chunk := []byte("ababababab")
		in += len(chunk)
		got := st.Next(chunk)
		out += len(got)
		if in-out >= len(awkward[0].value) {
			t.Fatalf("%d bytes wait", in-out)
		}
		if i := bytes.IndexByte(got, 'a'); i >= 0 && out > 20 {
			t.Fatalf("%q went out", got)
		}
	}
}

func TestStreamWipesWhatItHeld(t *testing.T) {
	s, _ := knowing(t, Options{})
	key := testKeys[0].value
	st := s.NewStream(WhereResponse)
	chunk := []byte("x" + key[:30])
	st.Next(chunk)
	if bytes.Contains(chunk, []byte(key[20:30])) {
		t.Errorf("the piece still shows what was taken from it: %q", chunk)
	}
	st.Next([]byte(key[30:]))
	st.Close()
	for name, b := range map[string][]byte{"held": st.held[:cap(st.held)], "buf": st.buf[:cap(st.buf)], "ctx": st.ctx[:cap(st.ctx)]} {
		if bytes.Contains(b, []byte(key[:20])) || bytes.Contains(b, []byte(key[20:])) {
			t.Errorf("%s: %q", name, b)
		}
	}
}

func FuzzStream(f *testing.F) {
	s, es := knowing(f, Options{})
	s.Retire(es[1])
	for seed := range uint64(20) {
		f.Add(soup(seed, 200), []byte{1, 2, byte(seed), 40})
	}
	f.Fuzz(func(t *testing.T, b, steps []byte) {
		spans := naive(b, testKeys...)
		var cuts []int
		at := 0
		for i := 0; len(steps) > 0 && i < 1000; i++ {
			if at += int(steps[i%len(steps)]); at >= len(b) {
				break
			}
			cuts = append(cuts, at)
		}
		outs, st := through(s, b, cuts...)
		if err := checkStream(b, bytes.Join(outs, nil), spans); err != nil {
			t.Error(err)
		}
		if st.Hits() != len(spans) {
			t.Errorf("%d hits, want %d", st.Hits(), len(spans))
		}
	})
}
