package keys

import (
	"context"
	"time"

	"github.com/postern-proxy/postern/agent/audit"
	"github.com/postern-proxy/postern/agent/store"
)

// Trail is the record of operations in a store: an audit.Sink whose entries lie
// below audit/<environment>/, each written once by check-and-set 0. Any number
// of Trails, in any number of processes, append to one chain. It is safe for concurrent use.
type Trail struct{}

// NewTrail returns the record of one environment. Boot names this process in its entries.
func NewTrail(s store.Store, environment, boot string) *Trail { panic("unwritten") }

// Append implements audit.Sink.
func (t *Trail) Append(ctx context.Context, e audit.Event) (audit.Head, error) { panic("unwritten") }

// On returns the same record, its place in the chain remembered, written with another Store's rights.
func (t *Trail) On(s store.Store) *Trail { panic("unwritten") }

// TrailFilter chooses entries; zero members choose all.
type TrailFilter struct {
	Since, Until time.Time
	Key, Actor   string
	Event        string
	After        uint64 // sequence number
	Limit        int    // the newest so many
}

// Entries returns the entries that the filter chooses, oldest first.
func (t *Trail) Entries(ctx context.Context, f TrailFilter) ([]audit.Entry, error) {
	panic("unwritten")
}

// Verify reads the whole record and reports every edit, gap, reordering,
// truncation against an anchor, entry out of place and forged actor.
func (t *Trail) Verify(ctx context.Context, anchors ...audit.Head) (audit.Report, error) {
	panic("unwritten")
}
