package rotation

import (
	"strings"
	"testing"
)

// A ramp has room for what somebody may mean, and not for what keeps every agent
// that reads it busy.
func TestRampsAreBounded(t *testing.T) {
	for n, fits := range map[int]bool{maxSteps: true, maxSteps + 1: false} {
		ramp := "[" + strings.Repeat(`{"weight":1,"for":"1h"},`, n-1) + `{"weight":1,"for":"1h"}]`
		if _, err := DecodeRecord(map[string][]byte{"ramp": []byte(ramp)}); (err == nil) != fits || err != nil && !strings.HasPrefix(err.Error(), "ramp") {
			t.Errorf("%d steps: %v", n, err)
		}
	}
}
