package audit

import (
	"io"
	"iter"
	"time"
)

// Filter chooses entries. The zero Filter chooses all; what is set must all hold.
type Filter struct {
	Since time.Time // entries at or after it
	Until time.Time // entries before it
	Event string    // exactly
	Key   string    // exactly
	Actor string    // exactly
}

// Match reports whether the filter chooses e.
func (f Filter) Match(e Entry) bool {
	return (f.Since.IsZero() || !e.Time.Before(f.Since)) &&
		(f.Until.IsZero() || e.Time.Before(f.Until)) &&
		(f.Event == "" || e.Event.Event == f.Event) &&
		(f.Key == "" || e.Key == f.Key) &&
		(f.Actor == "" || e.Actor == f.Actor)
}

// Show yields the entries of r that the filter chooses, in order, and skips what
// is no entry. It judges nothing: that is Verify's. A read error is yielded last.
func Show(r io.Reader, f Filter) iter.Seq2[Entry, error] {
	return func(yield func(Entry, error) bool) {
		err := eachLine(r, func(_ int, line []byte, long bool) bool {
			e, err := ParseEntry(line)
			if long || err != nil && e.Seq == 0 || !f.Match(e) {
				return true
			}
			return yield(e, nil)
		})
		if err != nil {
			yield(Entry{}, err)
		}
	}
}
