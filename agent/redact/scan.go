package redact

import (
	"bytes"
	"crypto/subtle"
	"encoding/binary"
	"sync"
)

// find is one occurrence: [start, end) of the text. start is negative if it
// began in bytes that went out before.
type find struct {
	start, end int
	entry      *Entry // nil for a pattern's
}

// scan is one look through a text: b, which follows ctx. It lives on the
// caller's stack; only finds cost anything.
type scan struct {
	set    *Set
	sn     *snapshot
	t      table
	ctx, b []byte
	// hold is where the earliest occurrence begins that b's end cuts short, at
	// least 0 and at most len(b). Not looked for if final.
	hold  int
	final bool
	found []find
	home  *[]find // what found was lent from
}

var findPool = sync.Pool{New: func() any { s := make([]find, 0, 16); return &s }}

func (sc *scan) add(f find) {
	if sc.home == nil {
		sc.home = findPool.Get().(*[]find)
		sc.found = (*sc.home)[:0]
	}
	// A value known twice is one occurrence.
	for i := len(sc.found) - 1; i >= 0 && i >= len(sc.found)-16; i-- {
		if sc.found[i].start == f.start && sc.found[i].end == f.end {
			return
		}
	}
	sc.found = append(sc.found, f)
}

// done gives the finds back for reuse.
func (sc *scan) done() {
	if sc.home != nil {
		clear(sc.found)
		*sc.home = sc.found[:0]
		findPool.Put(sc.home)
		sc.home, sc.found = nil, nil
	}
}

// run looks through b with the Set's present snapshot.
func (sc *scan) run() {
	for {
		sc.hold = len(sc.b)
		if sc.sn = sc.set.snap.Load(); sc.sn == nil {
			return
		}
		if sc.sn.index.Use(sc.through) {
			return
		}
		// Another snapshot took its place between the two lines above.
	}
}

func (sc *scan) through(index []byte) {
	sc.t = sc.sn.table(index)
	key, filter, shift := sc.t.key, sc.t.filter, sc.t.shift&31
	p := sc.b
	for len(p) >= 32 {
		h0 := hashWord(binary.LittleEndian.Uint64(p), key)
		h1 := hashWord(binary.LittleEndian.Uint64(p[8:]), key)
		h2 := hashWord(binary.LittleEndian.Uint64(p[16:]), key)
		h3 := hashWord(binary.LittleEndian.Uint64(p[24:]), key)
		b0, b1, b2, b3 := h0>>shift, h1>>shift, h2>>shift, h3>>shift
		some := filter[b0>>6]>>(b0&63) | filter[b1>>6]>>(b1&63) |
			filter[b2>>6]>>(b2&63) | filter[b3>>6]>>(b3&63)
		if some&1 != 0 {
			at := len(sc.b) - len(p)
			sc.word(at, h0)
			sc.word(at+8, h1)
			sc.word(at+16, h2)
			sc.word(at+24, h3)
		}
		p = p[32:]
	}
	for len(p) >= 8 {
		sc.word(len(sc.b)-len(p), hashWord(binary.LittleEndian.Uint64(p), key))
		p = p[8:]
	}
	if !sc.final {
		sc.tail()
	}
}

// tail looks at b's last word where it is no multiple of 8 from its beginning.
// A cut-short occurrence of which fewer than wordSpan bytes behind the prefix
// are there ends in one of its eight words; a longer one has one at a multiple of 8.
func (sc *scan) tail() {
	at := len(sc.b) - 8
	switch {
	case at > 0 && at%8 != 0:
		sc.word(at, hashWord(binary.LittleEndian.Uint64(sc.b[at:]), sc.t.key))
	case at < 0 && at >= -len(sc.ctx):
		var w [8]byte
		n := copy(w[:], sc.ctx[len(sc.ctx)+at:])
		copy(w[n:], sc.b)
		sc.word(at, hashWord(binary.LittleEndian.Uint64(w[:]), sc.t.key))
	}
}

// word looks up the word at a place by its hash.
func (sc *scan) word(at int, h uint32) {
	if bit := h >> sc.t.shift; sc.t.filter[bit>>6]>>(bit&63)&1 == 0 {
		return
	}
	for i := int(h) & (len(sc.t.slots) - 1); ; i = (i + 1) & (len(sc.t.slots) - 1) {
		s := sc.t.slots[i]
		if s.ref == 0 {
			return
		}
		if s.hash == h {
			f := &sc.sn.forms[(s.ref-1)/words]
			sc.candidate(f, at-f.off-int((s.ref-1)%words), at%8 == 0 && at >= 0)
		}
	}
}

// candidate decides whether form f begins at start. Every whole occurrence has
// exactly one word at a multiple of 8, so those alone count it.
func (sc *scan) candidate(f *formRef, start int, aligned bool) {
	end := start + f.n
	switch {
	case start < -len(sc.ctx):
	case end <= len(sc.b):
		if aligned && sc.matches(f, start, f.n) {
			sc.add(find{start: start, end: end, entry: f.entry})
		}
	case !sc.final && max(start, 0) < sc.hold:
		if sc.matches(f, start, len(sc.b)-start) {
			sc.hold = max(start, 0)
		}
	}
}

// matches compares n bytes at start with the form's first n. Of a retired value
// only whole forms can be compared; a part is taken for one, on the strength of
// its one word.
func (sc *scan) matches(f *formRef, start, n int) bool {
	var before []byte
	if start < 0 {
		before = sc.ctx[len(sc.ctx)+start:]
		before = before[:min(n, len(before))]
	}
	rest := sc.b[max(start, 0):][:n-len(before)]
	eq := false
	if f.entry.bytes.Use(func(all []byte) {
		want := all[f.pos : f.pos+n]
		eq = bytes.Equal(before, want[:len(before)]) && bytes.Equal(rest, want[len(before):])
	}) {
		return eq
	}
	if sc.set.forgotten(f.entry) {
		return false
	}
	if n < f.n {
		return true
	}
	sum, err := sc.set.mac.Sum(before, rest)
	if err != nil {
		return true // nothing can be computed; what the filter said stands
	}
	mac := f.mac()
	return subtle.ConstantTimeCompare(sum[:macSize], mac[:]) == 1
}
