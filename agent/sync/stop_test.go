package sync

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"
)

func TestStopWaitsForRequestsAndWipes(t *testing.T) {
	inBubble(t, func(r *rig) {
		a := r.rotated(nil)
		lease, _ := a.key.Pick(0)
		rest := a.key.Entries()[1].Version
		a.cancel()
		synctest.Wait()
		a.shares("")
		if isShut(a.done) || reads(rest) || !reads(lease.Version()) {
			t.Fatal("stopping: a request's version must stay, the other one go, and Run wait")
		}
		time.Sleep(5 * time.Second)
		lease.Release()
		<-a.done
		if reads(lease.Version()) {
			t.Error("not wiped")
		}
		if a.Status().Usable || r.logged("wiped under them") != 0 {
			t.Error("a clean stop says something else")
		}
	})
}

func TestStopDoesNotWaitForEver(t *testing.T) {
	inBubble(t, func(r *rig) {
		a := r.rotated(nil)
		lease, _ := a.key.Pick(0)
		r.store.set(func() { r.store.hang = true })
		pass(2 * time.Second) // a look hangs
		begun := time.Now()
		a.stop()
		if took := time.Since(begun); took != stopWait {
			t.Errorf("stopping took %v", took)
		}
		if reads(lease.Version()) {
			t.Error("the bytes outlived the loop")
		}
		if r.logged("wiped under them") != 1 {
			t.Error("nobody was told")
		}
		lease.Release()
	})
}

func TestStopWhileAVersionIsOnItsWay(t *testing.T) {
	for at, slow := range map[string]func(a *agent){
		"load":  func(a *agent) { a.store.set(func() { a.store.slow = 3 * time.Second }) },
		"probe": func(a *agent) { a.says(key(1), verdictSlow) },
		"audit": func(a *agent) { a.journal.set(3 * time.Second) },
	} {
		t.Run(at, func(t *testing.T) {
			inBubble(t, func(r *rig) {
				a := r.start(nil)
				pass(4900 * time.Millisecond)
				r.store.write(keyPath, key(1))
				slow(a)
				pass(1100 * time.Millisecond) // the answer comes after the stop
				a.stop()
				a.shares("")
				if n := r.logged("version wiped"); n != 1 {
					t.Errorf("wiped %d times", n)
				}
				if r.logged("version promoted") != 0 {
					t.Error("promoted after the stop")
				}
			})
		})
	}
}

func TestStopWritesWhatIsNotRecordedYet(t *testing.T) {
	for _, works := range []bool{true, false} {
		inBubble(t, func(r *rig) {
			a := r.rotated(nil)
			a.journal.broken(errors.New("disk full"))
			r.store.set(func() { delete(r.store.kv, keyPath) })
			pass(10 * time.Minute)
			if n := a.journal.tries(); n > 25 {
				t.Errorf("%d tries in ten minutes", n)
			}
			if works {
				a.journal.broken(nil)
			}
			a.stop()
			if a.journal.broken(nil); works {
				a.recorded("key.missing 2 ok", "version.retired 1 ok")
			} else if r.logged("never written") != 1 {
				t.Error("an entry was lost without a word")
			}
		})
	}
}
