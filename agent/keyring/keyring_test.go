package keyring

import (
	"fmt"
	"math/rand/v2"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/postern-proxy/postern/agent/rotation"
	"github.com/postern-proxy/postern/agent/secret"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var epoch = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

func id(n int) rotation.ID {
	return rotation.ID{Number: n, Created: epoch.Add(time.Duration(n) * time.Second)}
}

func version(t testing.TB, n int) *Version {
	t.Helper()
	key, err := secret.New(fmt.Appendf(nil, "sk-test-%016d", n))
	if err != nil {
		t.Fatal(err)
	}
	return NewVersion(id(n), map[string]*secret.Value{KeyField: key})
}

func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

func readable(v *Version) bool { return v.Field(KeyField).Use(func([]byte) {}) }

func TestPickFollowsTheWeights(t *testing.T) {
	k := NewKey("openai")
	if _, ok := k.Pick(0); ok {
		t.Fatal("a key without versions gave a lease")
	}
	a, b, c := version(t, 1), version(t, 2), version(t, 3)
	k.Install([]Entry{{b, 10}, {a, 90}, {c, 0}})
	const rounds = 1000
	got := map[int]int{}
	for i := range uint64(rounds) {
		l, ok := k.Pick(uint32(i * (1 << 32) / rounds)) // evenly over r's whole range
		if !ok {
			t.Fatal("no lease")
		}
		got[l.Version().Number()]++
		l.Release()
	}
	if got[2] < 99 || got[2] > 101 || got[3] != 0 {
		t.Errorf("1000 picks at 10:90:0 went %v", got)
	}
	if l, ok := k.Pick(1<<32 - 1); !ok || l.Version() != a {
		t.Error("the largest r fell out of the weights")
	}
}

func TestPickGivesNothingWithoutWeight(t *testing.T) {
	k := NewKey("openai")
	k.Install([]Entry{{version(t, 1), 0}, {version(t, 2), -5}})
	if _, ok := k.Pick(7); ok {
		t.Error("a version of weight 0 was picked")
	}
	if k.Entries()[1].Weight != 0 {
		t.Error("a negative weight stands in the snapshot")
	}
}

func TestOtherIsTheHeaviestElse(t *testing.T) {
	k := NewKey("openai")
	a, b, c := version(t, 1), version(t, 2), version(t, 3)
	k.Install([]Entry{{a, 0}, {b, 100}, {c, 0}})
	for than, want := range map[*Version]*Version{a: b, c: b, b: a} {
		l, ok := k.Other(than.ID())
		if !ok || l.Version() != want {
			t.Errorf("other than %d: %v, want %d", than.Number(), l, want.Number())
		}
		l.Release()
	}
	// The same number from before a metadata delete is another version.
	if l, ok := k.Other(rotation.ID{Number: 2, Created: epoch}); !ok || l.Version() != b {
		t.Error("versions are told apart by number alone")
	}
	if !k.Spare() {
		t.Error("three versions, no spare")
	}
	k.Install([]Entry{{a, 100}})
	if _, ok := k.Other(a.ID()); ok || k.Spare() {
		t.Error("the only version was offered as the other one")
	}
}

func TestEntriesAreACopy(t *testing.T) {
	k := NewKey("openai")
	given := []Entry{{version(t, 1), 100}}
	k.Install(given)
	given[0].Weight = 0
	k.Entries()[0].Weight = 0
	if l, ok := k.Pick(0); !ok {
		t.Error("the snapshot changed under its readers")
	} else {
		l.Release()
	}
}

func TestCloseWipesWhenTheLastLeaseEnds(t *testing.T) {
	v := version(t, 1)
	k := NewKey("openai")
	k.Install([]Entry{{v, 100}})
	one, _ := k.Pick(0)
	two, _ := k.Pick(0)
	k.Install(nil)
	wiped := v.Close()
	one.Release()
	if isClosed(wiped) || !readable(v) {
		t.Fatal("wiped under a lease")
	}
	two.Release()
	if !isClosed(wiped) || readable(v) {
		t.Fatal("not wiped after the last lease")
	}
	if v.Fingerprint() == "" {
		t.Error("the fingerprint did not survive")
	}
	if c := v.Close(); !isClosed(c) {
		t.Error("a second Close forgot that it is wiped")
	}
	if !isClosed(version(t, 2).Close()) {
		t.Error("a version without leases is not wiped by Close")
	}
}

func TestAClosedVersionIsNotPicked(t *testing.T) {
	v := version(t, 1)
	k := NewKey("openai")
	k.Install([]Entry{{v, 100}})
	v.Close()
	if _, ok := k.Pick(0); ok {
		t.Error("a lease on a wiped version")
	}
	if _, ok := k.Other(id(2)); ok {
		t.Error("a lease on a wiped version as the other one")
	}
}

func TestWipeDoesNotWaitForLeases(t *testing.T) {
	v := version(t, 1)
	k := NewKey("openai")
	k.Install([]Entry{{v, 100}})
	l, _ := k.Pick(0)
	v.Wipe()
	if readable(v) {
		t.Fatal("still readable")
	}
	if _, ok := k.Pick(0); ok {
		t.Error("a lease on a wiped version")
	}
	if !isClosed(v.Close()) {
		t.Fatal("wiped, but the channel says no")
	}
	l.Release() // must not wipe twice
	v.Wipe()
}

func TestTheZeroLeaseHoldsNothing(t *testing.T) {
	var l Lease
	l.Release()
	if l.Version() != nil {
		t.Error("the zero lease has a version")
	}
}

func TestReleasingTwicePanics(t *testing.T) {
	for _, shut := range []bool{false, true} {
		v := version(t, 1)
		k := NewKey("openai")
		k.Install([]Entry{{v, 100}})
		l, _ := k.Pick(0)
		if shut {
			v.Close()
		}
		l.Release()
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("closed %v: no panic", shut)
				}
			}()
			l.Release()
		}()
	}
}

func TestCounts(t *testing.T) {
	v := version(t, 1)
	v.Served()
	v.Served()
	v.Failed()
	if s, f := v.Counts(); s != 2 || f != 1 {
		t.Errorf("served %d, failed %d", s, f)
	}
}

// TestManyPickersWhileVersionsChange is the promise of the package under load:
// whoever holds a lease reads the key's bytes, and every closed version ends wiped.
func TestManyPickersWhileVersionsChange(t *testing.T) {
	k := NewKey("openai")
	first := version(t, 0)
	k.Install([]Entry{{first, 100}})
	var (
		wg    sync.WaitGroup
		stop  atomic.Bool
		picks atomic.Int64
	)
	for p := range 8 {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(1, uint64(p)))
			for !stop.Load() {
				l, ok := k.Pick(r.Uint32())
				if !ok {
					t.Error("a picker found nothing although a version was always installed")
					return
				}
				if !readable(l.Version()) {
					t.Error("a leased version was wiped")
				}
				if o, ok := k.Other(l.Version().ID()); ok {
					if o.Version() == l.Version() {
						t.Error("other is the same")
					}
					if !readable(o.Version()) {
						t.Error("a leased other version was wiped")
					}
					o.Release()
				}
				l.Release()
				picks.Add(1)
				runtime.Gosched() // two cores may be all there is
			}
		})
	}
	old := first
	var closed []<-chan struct{}
	for n := 1; n <= 300; n++ {
		next := version(t, n)
		k.Install([]Entry{{next, 50}, {old, 50}})
		for before := picks.Load(); picks.Load() < before+10 && !t.Failed(); {
			runtime.Gosched()
		}
		k.Install([]Entry{{next, 100}})
		closed = append(closed, old.Close())
		old = next
	}
	stop.Store(true)
	wg.Wait()
	for i, c := range closed {
		if !isClosed(c) {
			t.Errorf("version %d was never wiped", i)
		}
	}
}

func TestPickAllocatesNothing(t *testing.T) {
	k := NewKey("openai")
	k.Install([]Entry{{version(t, 2), 30}, {version(t, 1), 70}})
	var r uint32
	if n := testing.AllocsPerRun(1000, func() {
		r += 1 << 24
		l, ok := k.Pick(r)
		o, also := k.Other(l.Version().ID())
		if !ok || !also {
			t.Fatal("no lease")
		}
		o.Release()
		l.Release()
	}); n != 0 {
		t.Errorf("Pick, Other and Release allocate %v times", n)
	}
}

func BenchmarkPick(b *testing.B) {
	k := NewKey("openai")
	k.Install([]Entry{{version(b, 2), 30}, {version(b, 1), 70}})
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		var r uint32
		for pb.Next() {
			r += 0x9e3779b9
			l, _ := k.Pick(r)
			l.Release()
		}
	})
}
