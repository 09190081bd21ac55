package redact

import "slices"

// Text returns b with every known value, and whatever a pattern matches,
// replaced by [redacted]. If there is nothing to replace it returns b itself and
// allocates nothing. It never writes to b.
func (s *Set) Text(b []byte) []byte {
	out, found := s.scrub(b, true)
	s.report(found, WhereLog)
	return out
}

// scrub is Text without the report, which is left to the caller.
func (s *Set) scrub(b []byte, patterns bool) ([]byte, []find) {
	sc := scan{set: s, b: b, final: true}
	if len(b) >= MinValue {
		sc.run()
	}
	if patterns {
		s.patterns.find(&sc)
	}
	if len(sc.found) == 0 {
		return b, nil
	}
	order := slices.Clone(sc.found)
	sc.done()
	slices.SortStableFunc(order, func(a, b find) int { return a.start - b.start })
	out := make([]byte, 0, len(b)+len(order)*len(Redacted))
	at := 0
	for i, f := range order {
		if i == 0 || f.start >= at {
			out = append(append(out, b[at:f.start]...), Redacted...)
		}
		at = max(at, f.end)
	}
	return append(out, b[at:]...), order
}
