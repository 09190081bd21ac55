package vault

import (
	"net/http"
	"sync"
	"time"
)

// clock follows the Date of Vault's answers. A Date is cut to the second, so
// each answer only bounds the difference between Vault's clock and the local
// one; bounds of successive answers are intersected, which after a few polls
// leaves far less than a second. Bounds that exclude each other mean that a
// clock was set, and the newest win.
type clock struct {
	local func() time.Time

	mu        sync.Mutex
	known     bool
	base      time.Time // local time that the bounds refer to
	low, high time.Time // Vault's time was between these at base
	last      time.Time // what now said last
}

// slack is how far narrower bounds may move the estimate back; now waits for
// the time to catch up then, so that it does not go back.
const slack = 2 * time.Second

// observe takes note of an answer's Date; sent and received are local times.
func (c *clock) observe(header http.Header, sent, received time.Time) {
	date, err := http.ParseTime(header.Get("Date"))
	if err != nil {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.known {
		c.known, c.base = true, received
		c.low, c.high = date, date.Add(time.Second)
	}
	// The answer was dated between sending and receiving: at base, Vault's
	// clock said at least low and at most high.
	low := date.Add(-received.Sub(c.base))
	high := date.Add(time.Second).Add(-sent.Sub(c.base))
	if low.After(c.high) || high.Before(c.low) {
		c.low, c.high = low, high
		return
	}
	if low.After(c.low) {
		c.low = low
	}
	if high.Before(c.high) {
		c.high = high
	}
}

// now is Vault's time, the local one before the first answer.
func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := c.local()
	if c.known {
		now = c.low.Add(c.high.Sub(c.low) / 2).Add(now.Sub(c.base))
	}
	if back := c.last.Sub(now); back <= 0 || back > slack {
		c.last = now.Round(0).UTC()
	}
	return c.last
}

// latest is a time that Vault's clock has not passed yet.
func (c *clock) latest() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := c.local()
	if c.known {
		now = c.high.Add(now.Sub(c.base))
	}
	return now
}
