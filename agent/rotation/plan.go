package rotation

import (
	"encoding/json"
	"fmt"
	"math"
	"time"
)

// RampStep gives the new version Weight percent of requests for a duration.
type RampStep struct {
	Weight int           `yaml:"weight" json:"weight"` // 1–100
	For    time.Duration `yaml:"for" json:"for"`       // in JSON as "30s"
}

// Ramp is how traffic moves to a new version. After its last step, and for an
// empty ramp at once, the new version has all of it.
type Ramp []RampStep

// Weight is the new version's percentage so long after the ramp began. Before
// the beginning it is that of the beginning: clocks differ a little.
func (r Ramp) Weight(elapsed time.Duration) int {
	for _, s := range r {
		if elapsed < s.For {
			return min(max(s.Weight, 0), 100)
		}
		elapsed -= max(s.For, 0)
	}
	return 100
}

// Length is how long all steps take together.
func (r Ramp) Length() time.Duration {
	var sum time.Duration
	for _, s := range r {
		if s.For > math.MaxInt64-sum {
			return math.MaxInt64
		}
		sum += max(s.For, 0)
	}
	return sum
}

// maxSteps is how many steps a ramp may have: agents look at all of them again and again.
const maxSteps = 100

// Check refuses weights that are no percentage, times that run backwards, and too many steps.
func (r Ramp) Check() error {
	if len(r) > maxSteps {
		return fmt.Errorf("ramp: has %d steps; at most %d are allowed", len(r), maxSteps)
	}
	for i, s := range r {
		if s.Weight < 1 || s.Weight > 100 {
			return fmt.Errorf("ramp[%d].weight: %d is not between 1 and 100", i, s.Weight)
		}
		if s.For < 0 {
			return fmt.Errorf("ramp[%d].for: %v is negative", i, s.For)
		}
	}
	return nil
}

// Plan is how one version takes over from another: a ramp that began at
// StartedAt, then the time that the other one stays usable.
type Plan struct {
	StartedAt time.Time
	Ramp      Ramp
	Grace     time.Duration
}

// weight is the new version's percentage at a time.
func (p Plan) weight(now time.Time) int { return p.Ramp.Weight(max(now.Sub(p.StartedAt), 0)) }

// rampEnd is when the new version has all traffic.
func (p Plan) rampEnd() time.Time { return p.StartedAt.Add(p.Ramp.Length()) }

// open reports whether the other version is still wanted.
func (p Plan) open(now time.Time) bool { return now.Before(p.rampEnd().Add(p.Grace)) }

// steps calls f with the end of each step.
func (p Plan) steps(f func(end time.Time)) {
	for i := range p.Ramp {
		f(p.StartedAt.Add(p.Ramp[:i+1].Length()))
	}
}

// duration is written as "1m30s".
type duration time.Duration

func (d duration) MarshalText() ([]byte, error) { return []byte(time.Duration(d).String()), nil }

func (d *duration) UnmarshalText(b []byte) error {
	v, err := time.ParseDuration(string(b))
	*d = duration(v)
	return err
}

type rampStepJSON struct {
	Weight int      `json:"weight"`
	For    duration `json:"for"`
}

// MarshalJSON writes the duration as text.
func (s RampStep) MarshalJSON() ([]byte, error) {
	return json.Marshal(rampStepJSON{s.Weight, duration(s.For)})
}

// UnmarshalJSON reads what MarshalJSON wrote.
func (s *RampStep) UnmarshalJSON(b []byte) error {
	var j rampStepJSON
	if err := json.Unmarshal(b, &j); err != nil {
		return err
	}
	*s = RampStep{j.Weight, time.Duration(j.For)}
	return nil
}
