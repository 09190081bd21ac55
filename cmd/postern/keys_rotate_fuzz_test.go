package main

import (
	"fmt"
	"strings"
	"testing"

	"github.com/postern-proxy/postern/agent/rotation"
)

// FuzzRamp: what --ramp takes is a ramp that rises, says again what it was
// read from, and is one that the configuration would take.
func FuzzRamp(f *testing.F) {
	for _, s := range []string{"none", "", "1:30s,10:2m,50:5m", "50:1h", "1:1s,1:1s", "0:1s", "100:1s", "+5:1s", "5:-1s", "5:1", " 5:1s , 6:1s ", "5:1s,", "٥:1s", "5:1e3s", "5:9999999999h"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		ramp, err := parseRamp(s)
		if err != nil {
			if ramp != nil || len(err.Error()) > 200 || !strings.HasPrefix(err.Error(), "--ramp: ") {
				t.Errorf("%q: %v", s, err)
			}
			return
		}
		if s == "none" && len(ramp) == 0 {
			return
		}
		last := 0
		var again []string
		for _, step := range ramp {
			if step.Weight <= last || step.Weight > 99 || step.For <= 0 {
				t.Fatalf("%q: %+v", s, ramp)
			}
			last = step.Weight
			again = append(again, fmt.Sprintf("%d:%v", step.Weight, step.For))
		}
		back, err := parseRamp(strings.Join(again, ","))
		if len(ramp) == 0 || len(ramp) > maxRamp || err != nil || !equalRamps(ramp, back) {
			t.Errorf("%q was read as %v, and that as %v, %v", s, again, back, err)
		}
	})
}

func equalRamps(a, b rotation.Ramp) bool { return fmt.Sprint(a) == fmt.Sprint(b) }
