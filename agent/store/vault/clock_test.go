package vault

import (
	"net/http"
	"testing"
	"time"
)

func TestClockFollowsTheServersDate(t *testing.T) {
	local := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	ahead := 90*time.Minute + 437*time.Millisecond // what Vault's clock is ahead of ours
	c := clock{local: func() time.Time { return local }}
	if got := c.now(); !got.Equal(local) {
		t.Errorf("before the first answer %v, want the local time %v", got, local)
	}

	answer := func() {
		sent := local
		local = local.Add(20 * time.Millisecond)
		dated := local.Add(ahead).Truncate(time.Second)
		local = local.Add(20 * time.Millisecond)
		c.observe(http.Header{"Date": {dated.Format(http.TimeFormat)}}, sent, local)
	}
	answer()
	if off := c.now().Sub(local.Add(ahead)).Abs(); off > time.Second {
		t.Errorf("after one answer %v off", off)
	}
	for range 50 {
		local = local.Add(5100 * time.Millisecond)
		answer()
	}
	if off := c.now().Sub(local.Add(ahead)).Abs(); off > 100*time.Millisecond {
		t.Errorf("after fifty answers %v off", off)
	}

	ahead = -time.Hour // an operator sets Vault's clock back
	answer()
	if off := c.now().Sub(local.Add(ahead)).Abs(); off > time.Second {
		t.Errorf("after a clock was set %v off", off)
	}

	before := c.now()
	c.observe(http.Header{"Date": {"yesterday"}}, local, local)
	c.observe(http.Header{}, local, local)
	if !c.now().Equal(before) {
		t.Error("an answer without a Date moved the clock")
	}
}
