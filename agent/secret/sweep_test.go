package secret

import (
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// What closes at the moment of a Sweep needs its time to end: also when somebody
// else's Sweep is about to begin.
func TestSweepWaitsForEverybody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		asked := []time.Duration{0, settle - 1, 2*settle - 1, 2 * settle}
		served := make([]atomic.Int64, len(asked))
		for i, at := range asked {
			time.Sleep(at - time.Since(began))
			Sweep(func() { served[i].Add(int64(time.Since(began))) })
		}
		time.Sleep(3 * settle)
		for i, at := range asked {
			if got := time.Duration(served[i].Load()); got < at+settle || got > at+2*settle {
				t.Errorf("asked after %v and was served after %v, want %v to %v", at, got, at+settle, at+2*settle)
			}
		}
		sweep.Lock()
		defer sweep.Unlock()
		if sweep.coming || sweep.first != nil || sweep.next != nil {
			t.Error("another comes that nobody asked for")
		}
	})
}
