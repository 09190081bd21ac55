package redact

// Mask overwrites every occurrence of a known value in b with '*' and returns
// how many there were. It allocates nothing.
func (s *Set) Mask(b []byte, where string) int {
	if s.snap.Load() == nil || len(b) < MinValue {
		return 0
	}
	sc := scan{set: s, b: b, final: true}
	sc.run()
	n := len(sc.found)
	if n == 0 {
		return 0
	}
	for _, f := range sc.found {
		stars(b[f.start:f.end])
	}
	s.report(sc.found, where)
	sc.done()
	return n
}

func stars(b []byte) {
	for i := range b {
		b[i] = '*'
	}
}
