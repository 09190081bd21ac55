package agent

import (
	"context"
	"errors"
	"math/rand/v2"
	"time"
)

// When a reload that failed for a reason that may pass is tried again: first,
// then twice as late each time; and how long one that is under way may go on
// once another was asked for.
const (
	retryFirst = 5 * time.Second
	retryMost  = 5 * time.Minute
	giveWay    = time.Second
)

// errPassing is why a configuration was not taken that may be taken later as it
// stands: a key could not be loaded, or an entry not be recorded.
type errPassing struct{ error }

func (e errPassing) Unwrap() error { return e.error }

// errGaveWay ends a reload that waits for keys when another is asked for.
var errGaveWay = errors.New("a newer configuration is looked at instead")

// ReloadSoon asks for a Reload and returns at once. One that is under way, and
// waits for keys that do not come, gives way to it. One that fails because the
// store is away, or a key is not there, is tried again until it succeeds or
// another is asked for. Before Start, and after Stop, nothing happens.
func (a *Agent) ReloadSoon() {
	select {
	case a.asked <- struct{}{}:
	default: // it is asked for already
	}
}

// keepReloading does what ReloadSoon asks for until endReloads is called.
func (a *Agent) keepReloading() {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		again := time.NewTimer(time.Hour)
		defer again.Stop()
		again.Stop()
		for failures := 0; ; {
			select {
			case <-ctx.Done():
				return
			case <-a.asked:
				failures = 0
			case <-again.C:
			}
			again.Stop()
			if _, passing := errors.AsType[errPassing](a.attempt(ctx, failures > 0)); passing {
				wait := min(a.retryFirst<<min(failures, 16), retryMost)
				failures++
				again.Reset(wait + time.Duration(rand.Int64N(int64(wait/4))))
			}
		}
	}()
	a.endReloads = func() {
		cancel()
		<-done
	}
}

// attempt is one Reload. It is given up if it does not come to its end and another was asked for.
func (a *Agent) attempt(ctx context.Context, again bool) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	done := make(chan error, 1)
	go func() { done <- a.take(ctx, again) }()
	select {
	case err := <-done:
		return err
	case <-a.asked:
	}
	a.ReloadSoon() // what was taken out belongs to the next one
	patience := time.NewTimer(giveWay)
	defer patience.Stop()
	select {
	case err := <-done:
		return err
	case <-patience.C:
	}
	cancel(errGaveWay)
	return <-done
}
