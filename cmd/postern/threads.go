package main

import (
	"context"
	"runtime"
	"syscall"
	"time"
)

// Go runs as many threads as there are processors, and wakes a second one for
// whatever comes, in case there is more. Most agents need a small part of one
// processor, on a machine with many: the second thread finds nothing, at about the
// price of an event of a stream. So there are as many as the load needs.
const (
	threadsTick = 250 * time.Millisecond
	// With more than that of its processors' time used a load may need more of them.
	threadsBusy = 0.8
	// With less than that of half of them half are enough, if it stays so for some ticks.
	threadsIdle  = 0.5
	threadsTicks = 8
)

// threads decides how many there are.
type threads struct {
	most, now int
	quiet     int // ticks for which fewer were enough
}

// next takes how many processors' time was used in the last tick.
func (t *threads) next(used float64) int {
	switch half := (t.now + 1) / 2; {
	case used > threadsBusy*float64(t.now):
		t.quiet = 0
		t.now = min(2*t.now, t.most)
	case half < t.now && used < threadsIdle*float64(half):
		if t.quiet++; t.quiet == threadsTicks {
			t.quiet = 0
			t.now = half
		}
	default:
		t.quiet = 0
	}
	return t.now
}

// fitThreads runs until ctx ends.
func fitThreads(ctx context.Context) {
	t := threads{most: runtime.GOMAXPROCS(0)}
	t.now = t.most
	tick := time.NewTicker(threadsTick)
	defer tick.Stop()
	last, at := processTime(), time.Now()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		used, now := processTime(), time.Now()
		if was := t.now; t.next(float64(used-last)/float64(now.Sub(at))) != was {
			runtime.GOMAXPROCS(t.now)
		}
		last, at = used, now
	}
}

// processTime is how long the process has run, on all processors.
func processTime() time.Duration {
	var u syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &u) // fails for no process that runs
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
