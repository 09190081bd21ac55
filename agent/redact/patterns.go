package redact

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"regexp"
	"regexp/syntax"
)

// patterns finds what looks like a key. Most patterns' matches begin with one of
// a few literals ("sk-", "AIza"); text is read two bytes at a time, and a
// pattern is run only if a literal of it is there.
type patterns struct {
	list   []*regexp.Regexp
	always []int                    // those without such a literal
	pairs  [1 << 16 / 64]uint64     // the two-byte words to stop at
	lits   map[uint16][]patternText // what may stand there
}

// patternText is a literal with a pair of its bytes at `at`.
type patternText struct {
	text    string
	at      int
	pattern int
}

const (
	maxPatterns = 512
	minLiteral  = 3 // so that two neighbouring pairs lie within it
)

func compilePatterns(exprs []string) (*patterns, error) {
	if len(exprs) == 0 {
		return nil, nil
	}
	if len(exprs) > maxPatterns {
		return nil, fmt.Errorf("redact: %d patterns; at most %d", len(exprs), maxPatterns)
	}
	p := &patterns{lits: make(map[uint16][]patternText)}
	for i, expr := range exprs {
		re, err := regexp.Compile(expr)
		if err != nil {
			return nil, fmt.Errorf("redact: pattern %d (%q): %w", i+1, expr, err)
		}
		if re.Match(nil) {
			return nil, fmt.Errorf("redact: pattern %d (%q) matches the empty text; it must ask for what a key begins with", i+1, expr)
		}
		p.list = append(p.list, re)
		lits := beginnings(expr)
		if len(lits) == 0 {
			p.always = append(p.always, i)
		}
		for _, lit := range lits {
			p.addLiteral(lit, i)
		}
	}
	return p, nil
}

// addLiteral enters two neighbouring pairs of a literal, one of which begins at
// an even place wherever the literal stands: the two that are rarest in text.
func (p *patterns) addLiteral(lit string, pattern int) {
	best, score := 0, -1
	for at := 0; at+minLiteral <= len(lit); at++ {
		n := 0
		for _, c := range []byte(lit[at : at+minLiteral]) {
			switch { // digits abound in logs
			case c >= 'a' && c <= 'z':
			case c >= '0' && c <= '9':
				n++
			default:
				n += 2
			}
		}
		if n > score {
			best, score = at, n
		}
	}
	for _, at := range []int{best, best + 1} {
		w := pair(lit[at], lit[at+1])
		p.pairs[w>>6] |= 1 << (w & 63)
		p.lits[w] = append(p.lits[w], patternText{text: lit, at: at, pattern: pattern})
	}
}

func pair(a, b byte) uint16 { return uint16(a) | uint16(b)<<8 }

// dueSet is a set of patterns' numbers.
type dueSet [maxPatterns / 64]uint64

// find adds every match to the finds.
func (p *patterns) find(sc *scan) {
	if p == nil {
		return
	}
	for _, i := range p.always {
		sc.addMatches(p.list[i])
	}
	var due dueSet
	some := false
	b := sc.b
	for len(b) >= 8 {
		w := binary.LittleEndian.Uint64(b)
		if (p.maybe(uint16(w))|p.maybe(uint16(w>>16))|p.maybe(uint16(w>>32))|p.maybe(uint16(w>>48)))&1 != 0 {
			for k := range 4 {
				some = p.look(sc.b, len(sc.b)-len(b)+2*k, uint16(w>>(16*k)), &due) || some
			}
		}
		b = b[8:]
	}
	for len(b) >= 2 {
		some = p.look(sc.b, len(sc.b)-len(b), binary.LittleEndian.Uint16(b), &due) || some
		b = b[2:]
	}
	if !some {
		return
	}
	for i := range p.list {
		if due[i>>6]>>(i&63)&1 != 0 {
			sc.addMatches(p.list[i])
		}
	}
}

// maybe has bit 0 set if a literal's pair is w.
func (p *patterns) maybe(w uint16) uint64 { return p.pairs[w>>6] >> (w & 63) }

// look marks the patterns of which a literal stands around the pair at i, and
// reports whether there is one.
func (p *patterns) look(b []byte, i int, w uint16, due *dueSet) bool {
	if p.maybe(w)&1 == 0 {
		return false
	}
	some := false
	for _, l := range p.lits[w] {
		at := i - l.at
		if at >= 0 && at+len(l.text) <= len(b) && string(b[at:at+len(l.text)]) == l.text {
			due[l.pattern>>6] |= 1 << (l.pattern & 63)
			some = true
		}
	}
	return some
}

// addMatches adds what of a pattern's matches no find covers yet.
func (sc *scan) addMatches(re *regexp.Regexp) {
	for _, m := range re.FindAllIndex(sc.b, -1) {
		covered := false
		for _, f := range sc.found {
			covered = covered || f.start <= m[0] && m[1] <= f.end
		}
		if !covered && m[0] < m[1] && !bytes.Equal(sc.b[m[0]:m[1]], []byte(Redacted)) {
			sc.add(find{start: m[0], end: m[1]})
		}
	}
}

// beginnings returns literals of at least minLiteral bytes such that every match
// of expr begins with one of them, or nil if there is no short list of these.
func beginnings(expr string) []string {
	re, err := syntax.Parse(expr, syntax.Perl)
	if err != nil {
		return nil
	}
	lits, _ := heads(re.Simplify())
	for _, l := range lits {
		if len(l) < minLiteral {
			return nil
		}
	}
	return lits
}

const (
	maxHeads   = 64
	maxHeadLen = 12
)

// heads returns texts of which every match of re begins with one; whole says
// that each of them is a whole match. nil, false means nothing is known, as
// would a list that holds "".
func heads(re *syntax.Regexp) (list []string, whole bool) {
	switch re.Op {
	case syntax.OpEmptyMatch, syntax.OpBeginLine, syntax.OpBeginText, syntax.OpEndLine, syntax.OpEndText,
		syntax.OpWordBoundary, syntax.OpNoWordBoundary:
		return []string{""}, true
	case syntax.OpLiteral:
		if re.Flags&syntax.FoldCase != 0 {
			return []string{""}, false
		}
		return []string{string(re.Rune)}, true
	case syntax.OpCharClass:
		for i := 0; i < len(re.Rune); i += 2 {
			for r := re.Rune[i]; r <= re.Rune[i+1]; r++ {
				if list = append(list, string(r)); len(list) > 8 {
					return []string{""}, false
				}
			}
		}
		return list, true
	case syntax.OpCapture:
		return heads(re.Sub[0])
	case syntax.OpPlus:
		list, _ = heads(re.Sub[0])
		return list, false
	case syntax.OpRepeat:
		if re.Min > 0 {
			list, _ = heads(re.Sub[0])
			return list, false
		}
	case syntax.OpAlternate:
		whole = true
		for _, sub := range re.Sub {
			l, w := heads(sub)
			list, whole = append(list, l...), whole && w
		}
		if len(list) <= maxHeads {
			return list, whole
		}
	case syntax.OpConcat:
		return concatHeads(re.Sub)
	}
	return []string{""}, false
}

func concatHeads(subs []*syntax.Regexp) (list []string, whole bool) {
	list = []string{""}
	for _, sub := range subs {
		next, w := heads(sub)
		if len(list)*len(next) > maxHeads {
			return list, false
		}
		var product []string
		for _, a := range list {
			for _, b := range next {
				product = append(product, a+b)
			}
		}
		list = product
		if !w || len(list[0]) >= maxHeadLen {
			return list, false
		}
	}
	return list, true
}
