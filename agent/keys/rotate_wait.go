package keys

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/postern-proxy/postern/agent/rotation"
	"github.com/postern-proxy/postern/agent/store"
)

// waitPoll is the time between two looks. Where one takes more than a tenth of it, they come more rarely.
const waitPoll = time.Second

// Wait advances until the rotation is closed, ctx ends, or only others can go
// on. Progress is called with every change and about once a second; nil: not at
// all. A store that is out of reach is waited for.
func (m *Manager) Wait(ctx context.Context, name string, progress func(Rotation)) (Rotation, error) {
	var last Rotation
	var warnings []string // of steps that were taken earlier, too
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return last, ctx.Err()
		case <-timer.C:
		}
		began := time.Now()
		rot, err := m.Advance(ctx, name)
		if ctx.Err() != nil {
			return last, ctx.Err()
		}
		if errors.Is(err, store.ErrUnavailable) {
			if rot = last; rot.Name == "" {
				return rot, err // it never answered
			}
			rot.Waiting = fmt.Sprintf("the store: %v", err)
		} else if err != nil {
			return rot, err
		}
		for _, w := range rot.Warnings {
			if !slices.Contains(warnings, w) {
				warnings = append(warnings, w)
			}
		}
		rot.Warnings = slices.Clone(warnings)
		if progress != nil {
			progress(rot)
		}
		last = rot
		if rot.Closed || rot.Phase == rotation.PhaseNone || err == nil && rot.Next.IsZero() {
			return rot, nil
		}
		timer.Reset(max(waitPoll, 10*time.Since(began)))
	}
}
