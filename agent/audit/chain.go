package audit

import "time"

// Chain is where a chain stands: a value, without a file or a clock. The zero
// Head is the beginning.
type Chain struct {
	Boot string // of the process that writes the next entries
	Head Head
}

// Next makes the entry that follows c.Head, and the chain after it. The event is
// brought into the format's limits; now is cut to microseconds.
func (c Chain) Next(ev Event, now time.Time) (Chain, Entry) {
	e := Entry{
		Seq:   c.Head.Seq + 1,
		Time:  now.UTC().Truncate(time.Microsecond),
		Boot:  c.Boot,
		Event: ev.clean(nil),
		Prev:  c.Head.Hash,
	}
	if c.Head.Seq == 0 {
		e.Prev = Genesis(c.Boot)
	}
	e.Hash = e.Sum()
	c.Head = e.Head()
	return c, e
}
