package audit

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"strconv"
)

// Verify reads entries, one a line, and reports every edit, deletion,
// reordering and repetition, in as many chains as there are. With anchors, heads
// noted earlier, it also finds truncation and rewriting; and where the
// beginning of a chain was rotated away, the anchor just before the first entry
// that is left stands for it.
//
// A capture may hold lines of other programs. A line is ours when it begins like
// an entry, or holds "seq" and one of "prev" and "hash" as JSON names; ours but
// not an entry is a problem. Any other line is counted as foreign, no more: an
// entry that was turned into such a line is found missing all the same.
//
// The error is that of reading: it means that r could not be judged.
func Verify(r io.Reader, anchors ...Head) (Report, error) {
	v := NewVerifier(anchors...)
	err := eachLine(r, func(n int, line []byte, long bool) bool {
		v.line(n, line, long)
		return true
	})
	if err != nil {
		return Report{}, fmt.Errorf("read audit entries: %w", err)
	}
	return v.Report(), nil
}

// Verifier judges entries one after the other, for callers whose entries do not
// come as lines. It is not safe for concurrent use.
type Verifier struct {
	report  Report
	anchors map[Head]bool     // true once seen
	order   []Head            // the anchors as given
	heads   map[string]*chain // by the hash of their newest entry
	boots   map[string]*chain
	chains  []*chain
	gap     gap
}

type chain struct {
	ChainReport
	holes []hole
}

// hole is a range of numbers that were skipped, with the line that skipped them.
type hole struct {
	from, to uint64
	line     int
}

// gap is what stands between two entries: lines that may turn out to be a torn one.
type gap struct {
	problems []Problem
	size     int
	lines    int
	foreign  int // of these lines
	sum      hash.Hash
}

// NewVerifier returns a Verifier that has seen nothing.
func NewVerifier(anchors ...Head) *Verifier {
	v := &Verifier{
		anchors: make(map[Head]bool, len(anchors)),
		order:   anchors,
		heads:   make(map[string]*chain),
		boots:   make(map[string]*chain),
	}
	for _, a := range anchors {
		v.anchors[a] = false
	}
	return v
}

// Entry judges the next entry; line is where it stands, for the report.
func (v *Verifier) Entry(line int, e Entry) {
	v.closeGap(e)
	v.report.Entries++
	if e.Sum() != e.Hash {
		v.problem(line, e.Seq, Edited, "the entry's content does not give its hash: it was edited")
	}
	if _, ok := v.anchors[e.Head()]; ok {
		v.anchors[e.Head()] = true
	}
	v.link(line, e)
}

// Report returns what was found so far.
func (v *Verifier) Report() Report {
	r := v.report
	r.Problems = append(append([]Problem(nil), r.Problems...), v.gap.problems...)
	r.Chains = make([]ChainReport, 0, len(v.chains))
	for _, c := range v.chains {
		r.Chains = append(r.Chains, c.ChainReport)
		for _, h := range c.holes {
			r.Problems = append(r.Problems, Problem{h.line, h.from, Missing, missingText(h.from, h.to)})
		}
	}
	for _, a := range v.order {
		if !v.anchors[a] {
			r.Problems = append(r.Problems, Problem{0, a.Seq, Anchor, v.anchorText(a)})
		}
	}
	r.finish()
	return r
}

func (v *Verifier) line(n int, line []byte, long bool) {
	v.report.Lines++
	if long {
		v.gap.add(nil)
		if ours(line) {
			v.gap.problem(n, 0, Garbled, "the line "+errLongLine.Error())
		} else {
			v.foreign()
		}
		return
	}
	e, err := ParseEntry(line)
	switch {
	case err == nil:
		v.Entry(n, e)
	case errors.Is(err, errForm):
		v.problem(n, e.Seq, Form, "the line "+errForm.Error())
		v.Entry(n, e)
	case ours(line):
		v.gap.add(line)
		v.gap.problem(n, 0, Garbled, "the line looks like an entry but "+err.Error())
	default:
		v.gap.add(line)
		v.foreign()
	}
}

func (v *Verifier) foreign() {
	v.report.Foreign++
	v.gap.foreign++
}

// ours reports whether a line claims to be an entry.
func ours(line []byte) bool {
	if bytes.HasPrefix(line, []byte(lineStart)) {
		return true
	}
	return bytes.Contains(line, []byte(`"seq":`)) &&
		(bytes.Contains(line, []byte(`"prev":`)) || bytes.Contains(line, []byte(`"hash":`)))
}

// link finds the chain that an entry continues, and says so if it finds none.
func (v *Verifier) link(line int, e Entry) {
	if c := v.heads[e.Prev]; c != nil {
		if e.Seq != c.Head.Seq+1 {
			v.problem(line, e.Seq, Broken, fmt.Sprintf("it follows seq %d by hash but not by number", c.Head.Seq))
		}
		v.extend(c, line, e)
		return
	}
	c := v.boots[e.Boot]
	switch {
	case c == nil:
		v.start(line, e)
	case e.Seq == c.Head.Seq+1:
		v.problem(line, e.Seq, Broken, fmt.Sprintf(
			"its prev is not the hash of seq %d (line %d): that entry was edited or replaced", c.Head.Seq, c.LastLine))
		v.extend(c, line, e)
	case e.Seq > c.Head.Seq:
		if h := (hole{c.Head.Seq + 1, e.Seq - 1, line}); len(c.holes) < maxProblems {
			c.holes = append(c.holes, h)
		} else {
			v.problem(line, h.from, Missing, missingText(h.from, h.to))
		}
		v.extend(c, line, e)
	case c.fill(e.Seq) || e.Seq < c.First.Seq:
		v.problem(line, e.Seq, OutOfOrder, fmt.Sprintf("it stands after seq %d", c.Head.Seq))
		c.Entries++
	default:
		v.problem(line, e.Seq, Duplicate, fmt.Sprintf("seq %d of this chain stands earlier already", e.Seq))
	}
}

// start begins a chain with an entry that continues none.
func (v *Verifier) start(line int, e Entry) {
	before := Head{Seq: e.Seq - 1, Hash: e.Prev}
	_, anchored := v.anchors[before]
	switch {
	case e.Seq == 1 && e.Prev == Genesis(e.Boot):
	case anchored:
		v.anchors[before] = true
	default:
		v.problem(line, e.Seq, Start, fmt.Sprintf(
			"it continues no entry that is here: what came before is missing or was rewritten"+
				" (if it was rotated away, give the anchor %d:HASH)", before.Seq))
	}
	c := &chain{ChainReport: ChainReport{First: e.Head(), FirstLine: line, Since: e.Time}}
	v.chains = append(v.chains, c)
	v.extend(c, line, e)
}

func (v *Verifier) extend(c *chain, line int, e Entry) {
	if v.heads[c.Head.Hash] == c {
		delete(v.heads, c.Head.Hash)
	}
	c.Head, c.LastLine, c.Until, c.LastEvent = e.Head(), line, e.Time, e.Event.Event
	c.Entries++
	v.heads[e.Hash] = c
	if v.boots[e.Boot] != c {
		v.boots[e.Boot] = c
		c.Boots = append(c.Boots, e.Boot)
	}
}

// fill takes one number out of the holes, if it is in one.
func (c *chain) fill(seq uint64) bool {
	for i, h := range c.holes {
		if seq < h.from || seq > h.to {
			continue
		}
		c.holes = append(c.holes[:i:i], c.holes[i+1:]...)
		if seq > h.from {
			c.holes = append(c.holes, hole{h.from, seq - 1, h.line})
		}
		if seq < h.to {
			c.holes = append(c.holes, hole{seq + 1, h.to, h.line})
		}
		return true
	}
	return false
}

func (v *Verifier) problem(line int, seq uint64, kind, text string) {
	if len(v.report.Problems) >= 2*maxProblems {
		v.report.More++
		return
	}
	v.report.Problems = append(v.report.Problems, Problem{line, seq, kind, text})
}

func missingText(from, to uint64) string {
	if from == to {
		return fmt.Sprintf("seq %d before it is missing", from)
	}
	return fmt.Sprintf("seq %d to %d before it are missing", from, to)
}

func (v *Verifier) anchorText(a Head) string {
	var newest uint64
	for _, c := range v.chains {
		newest = max(newest, c.Head.Seq)
	}
	if newest < a.Seq {
		return fmt.Sprintf("the anchor's entry is not here: the newest is seq %d, the end was cut off", newest)
	}
	return "no entry has the anchor's number and hash: the chain was rewritten, or this is another one"
}

func (g *gap) problem(line int, seq uint64, kind, text string) {
	if len(g.problems) >= 2*maxProblems {
		return
	}
	g.problems = append(g.problems, Problem{line, seq, kind, text})
}

// add takes a line that is no entry; nil for one too long to be kept, which nothing explains.
func (g *gap) add(line []byte) {
	if g.sum == nil {
		g.sum = sha256.New()
	}
	if g.lines > 0 {
		g.sum.Write([]byte{'\n'})
		g.size++
	}
	if line == nil {
		g.size = -1 << 40
	}
	g.sum.Write(line)
	g.size += len(line)
	g.lines++
}

// closeGap judges the lines before an entry: exactly what a chain.resumed entry
// found is a torn line, anything else keeps its problems.
func (v *Verifier) closeGap(e Entry) {
	g := v.gap
	v.gap = gap{}
	if e.Event.Event == EventResumed && g.lines > 0 && e.Detail["torn_bytes"] == strconv.Itoa(g.size) &&
		e.Detail["torn_sha256"] == hex.EncodeToString(g.sum.Sum(nil)) {
		v.report.Torn += g.lines
		v.report.Foreign -= g.foreign
		return
	}
	for _, p := range g.problems {
		v.problem(p.Line, p.Seq, p.Kind, p.Text)
	}
}

// eachLine calls f with each line without its newline, until f says stop. Of a line longer
// than maxLine it gives the beginning. The slice is valid until f returns.
func eachLine(r io.Reader, f func(n int, line []byte, long bool) bool) error {
	br := bufio.NewReaderSize(r, 64<<10)
	var held []byte
	for n := 1; ; n++ {
		held = held[:0]
		long := false
		for {
			part, err := br.ReadSlice('\n')
			if room := maxLine + 1 - len(held); len(part) > room {
				long = true
				part = part[:max(room, 0)]
			}
			held = append(held, part...)
			if err == bufio.ErrBufferFull {
				continue
			}
			if err != nil && err != io.EOF {
				return err
			}
			if err == io.EOF && len(held) == 0 {
				return nil
			}
			if k := len(held) - 1; !long && held[k] == '\n' {
				held = held[:k]
			}
			if !f(n, held, long) || err == io.EOF {
				return nil
			}
			break
		}
	}
}
