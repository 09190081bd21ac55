package redact

import "slices"

// Stream masks known values in bytes that come in pieces, wherever the pieces
// are cut, and keeps their number.
//
// A piece goes out at once, but for a tail that is the beginning of a known
// form and reaches at least 8 bytes beyond its public prefix: that waits for
// what follows. Of a value that arrives in pieces at most its public prefix and
// 7 bytes are seen (of its raw form; of another form, what stands for the
// prefix, and 7 bytes). Of a value with fewer than 15 bytes behind its public
// prefix the waiting begins earlier, 15 bytes before the form's end counted as
// the prefix's.
//
// The bytes of a retired value are not there to compare with: a tail waits
// if one aligned word of it has the hash of one of the eight words behind the
// public prefix, at most until the form's length is there.
//
// A Stream is for one goroutine at a time. Values added or retired meanwhile are
// honoured from the next piece on.
type Stream struct {
	set   *Set
	where string
	ctx   []byte // the last bytes that went out, as they came in
	held  []byte // what waits, as it came in
	carry int    // how many bytes of held belong to an occurrence already found
	buf   []byte
	hits  int
}

// NewStream begins a stream.
func (s *Set) NewStream(where string) *Stream { return &Stream{set: s, where: where} }

// Next takes the next piece and returns what may go out now, which is valid
// until the next call. It may write to chunk and return part of it.
func (st *Stream) Next(chunk []byte) []byte { return st.next(chunk, false) }

// Close returns what was held back. The Stream can then begin anew.
func (st *Stream) Close() []byte {
	out := st.next(nil, true)
	clear(st.ctx[:cap(st.ctx)])
	st.ctx, st.carry = st.ctx[:0], 0
	return out
}

// Hits is how many occurrences were masked so far.
func (st *Stream) Hits() int { return st.hits }

func (st *Stream) next(chunk []byte, final bool) []byte {
	cur := chunk
	if len(st.held) > 0 {
		// Grown before anything is in it: no copy stays behind in a smaller one.
		st.buf = slices.Grow(st.buf[:0], len(st.held)+len(chunk))
		st.buf = append(append(st.buf, st.held...), chunk...)
		cur = st.buf
		clear(st.held)
		st.held = st.held[:0]
	}
	sc := scan{set: st.set, ctx: st.ctx, b: cur, final: final}
	sc.run()
	if sc.sn == nil && st.carry == 0 {
		st.ctx = st.ctx[:0]
		return cur
	}
	out := cur[:sc.hold]
	st.held = append(st.held, cur[sc.hold:]...)
	st.remember(sc.sn, out)
	carried := st.carry
	stars(out[:min(carried, len(out))])
	st.carry = max(0, carried-len(out))
	fresh := sc.found[:0]
	for _, f := range sc.found {
		if f.start >= len(out) && len(out) < len(cur) {
			continue // all of it waits, and will be found again
		}
		stars(out[min(max(f.start, 0), len(out)):min(f.end, len(out))])
		st.carry = max(st.carry, f.end-len(out))
		if f.start >= 0 || f.end > carried {
			fresh = append(fresh, f) // else counted when its first part went out
		}
	}
	st.hits += len(fresh)
	st.set.report(fresh, st.where)
	sc.done()
	if len(out) < len(cur) {
		clear(cur[len(out):])
	}
	return out
}

// remember keeps the end of what went out, as far as an occurrence may have
// begun in it.
func (st *Stream) remember(sn *snapshot, out []byte) {
	back := 0
	if sn != nil {
		back = sn.back
	}
	if len(out) >= back {
		st.ctx = append(st.ctx[:0], out[len(out)-back:]...)
		return
	}
	if drop := len(st.ctx) + len(out) - back; drop > 0 {
		st.ctx = st.ctx[:copy(st.ctx, st.ctx[drop:])]
	}
	st.ctx = append(st.ctx, out...)
}
