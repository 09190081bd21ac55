package issuer

import (
	"net/http"
	"strconv"
	"testing"
	"time"
)

// FuzzRetryAfter: whatever a vendor asks for, the wait is between nothing and a
// day; seconds and dates in the forms of RFC 9110 section 10.2.3 are exact.
func FuzzRetryAfter(f *testing.F) {
	now := time.Date(2026, 3, 2, 12, 0, 0, 0, time.UTC)
	for _, s := range []string{"", "0", "1", "30", "-5", "1.5", "1e300", "NaN", "Inf", "0x10", " 7 ", "86401", "99999999999999999999", "Mon, 02 Mar 2026 12:00:30 GMT", "Mon, 02 Mar 2026 11:00:00 GMT", "Monday, 02-Mar-26 12:01:00 GMT", "soon"} {
		f.Add(s, "", "")
	}
	f.Add("", "1500", "6m0s")
	f.Add("", "-1", "1h")
	f.Add("", "", "6m0s")
	f.Add("", "", "-1s")
	f.Fuzz(func(t *testing.T, after, ms, reset string) {
		h := http.Header{}
		for name, v := range map[string]string{"Retry-After": after, "Retry-After-Ms": ms, "X-Ratelimit-Reset-Requests": reset} {
			if v != "" {
				h.Set(name, v)
			}
		}
		got := retryAfter(h, now)
		if got < 0 || got > maxRetryAfter {
			t.Fatalf("%q %q %q: %v", after, ms, reset, got)
		}
		if n, err := strconv.ParseUint(after, 10, 63); err == nil && n > 0 && got != min(time.Duration(min(n, 1e6))*time.Second, maxRetryAfter) {
			t.Errorf("%q: %v", after, got)
		}
		if at, err := time.Parse(http.TimeFormat, after); err == nil && got != min(max(at.Sub(now), 0), maxRetryAfter) {
			t.Errorf("%q: %v", after, got)
		}
	})
}
