package keys

import (
	"context"
	"time"
)

// Validation is what the provider said about one version.
type Validation struct {
	ID        string    `json:"id"`
	Name      string    `json:"name"`
	Version   int       `json:"version"`
	Verdict   string    `json:"verdict"` // live, dead or unknown
	Status    int       `json:"status,omitempty"`
	LatencyMS int64     `json:"latency_ms"`
	Meaning   string    `json:"meaning"`
	Error     string    `json:"error,omitempty"`
	At        time.Time `json:"at"`
}

// Validate asks the provider about every readable version of a key, or the
// versions given. It needs the right to read them.
func (m *Manager) Validate(ctx context.Context, name string, versions ...int) ([]Validation, error) {
	panic("unwritten")
}

// Schedule makes a key rotate every so often; 0 ends that.
func (m *Manager) Schedule(ctx context.Context, name string, every time.Duration) error {
	panic("unwritten")
}
