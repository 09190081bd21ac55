package main

import "testing"

func TestThreads(t *testing.T) {
	th := threads{most: 6, now: 6}
	steps := func(n int, used float64) (got int) {
		for range n {
			got = th.next(used)
		}
		return got
	}
	for _, c := range []struct {
		ticks int
		used  float64
		want  int
	}{
		{threadsTicks - 1, 0.1, 6}, {1, 2, 6}, {threadsTicks - 1, 0.1, 6}, // not yet, and from the beginning
		{1, 0.1, 3}, {threadsTicks, 0.1, 2}, {threadsTicks, 0.1, 1}, {10 * threadsTicks, 0, 1},
		{10 * threadsTicks, 0.7, 1}, {1, 0.9, 2}, {10 * threadsTicks, 0.9, 2},
		{1, 1.8, 4}, {1, 3.9, 6}, {1, 6, 6}, {10 * threadsTicks, 2, 6},
	} {
		if got := steps(c.ticks, c.used); got != c.want {
			t.Errorf("%d ticks of %v processors: %d threads, want %d", c.ticks, c.used, got, c.want)
		}
	}
}
