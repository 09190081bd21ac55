package sync

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/postern-proxy/postern/agent/rotation"
	"github.com/postern-proxy/postern/agent/secret"
	"github.com/postern-proxy/postern/agent/store"
)

// Acks that cannot be written hold nothing up and are said once; once they can be, they are.
func TestAcksThatCannotBeWritten(t *testing.T) {
	for _, c := range []struct {
		what   string
		err    error
		pauses int // failures in ten minutes, at most
	}{{"forbidden", store.ErrForbidden, 20}, {"unavailable", store.ErrUnavailable, 20}} {
		t.Run(c.what, func(t *testing.T) {
			inBubble(t, func(r *rig) {
				acks := r.acks("one", nil)
				r.store.broken(ackFolder+"local/one", c.err)
				a, rec := r.ramping(func(o *Options) { o.Acks = acks.Acks })
				pass(10 * time.Minute)
				a.shares("2:50 1:50")
				if n := r.ackWrites(ackFailed); n < 8 || n > float64(c.pauses) {
					t.Errorf("%v failures in ten minutes", n)
				}
				if n := r.logged("others cannot be told"); n != 1 || r.logged("kind="+c.what) != 1 {
					t.Errorf("said %d times", n)
				}
				r.store.broken(ackFolder+"local/one", nil)
				pass(90 * time.Second)
				r.ackIs("one", "2 active from active")
				if r.logged("others are told again") != 1 {
					t.Error("nobody was told that it works again")
				}
				rec.Closed = true
				r.store.writeRecord(record, rec)
				pass(10 * time.Second)
				r.ackIs("one", "nothing")
			})
		})
	}
}

// However much changes meanwhile, who is refused tries again later and later,
// and has nothing to take back.
func TestChangesDoNotHurryWhoIsRefused(t *testing.T) {
	inBubble(t, func(r *rig) {
		acks := r.acks("one", nil)
		r.store.broken(ackFolder+"local/one", store.ErrForbidden)
		rep := acks.join("openai")
		for n := range 600 { // in a minute
			rep.say(&Ack{To: rotation.ID{Number: n}})
			pass(100 * time.Millisecond)
		}
		if n := r.ackWrites(ackFailed); n < 4 || n > 8 {
			t.Errorf("%v tries in a minute", n)
		}
		acks.stop()
		if r.logged("cannot be removed") != 0 {
			t.Error("what was never written was to be removed")
		}
	})
}

func TestAcksThatHangHoldNothingUp(t *testing.T) {
	inBubble(t, func(r *rig) {
		slow := &hanging{memory: r.store}
		acks := r.acks("one", func(o *AcksOptions) { o.Store = slow })
		a, rec := r.ramping(func(o *Options) { o.Acks = acks.Acks })
		rec.StartedAt = time.Now().Add(-time.Hour)
		r.store.writeRecord(record, rec)
		pass(2 * time.Second)
		a.shares("2:100 1:0")
		begun := time.Now()
		a.stop()
		acks.stop()
		if took := time.Since(begun); took > ackStop {
			t.Errorf("the stop took %v", took)
		}
	})
}

// hanging writes nothing, and takes all the time there is.
type hanging struct{ *memory }

func (h *hanging) Put(ctx context.Context, path string, _ map[string]*secret.Value, _ int) (store.Version, error) {
	<-ctx.Done()
	return store.Version{}, fmt.Errorf("%s: %w", path, ctx.Err())
}

func TestAnAckThatCannotBeRemoved(t *testing.T) {
	inBubble(t, func(r *rig) {
		rep := r.acks("one", nil).join("openai")
		for range 2 {
			rep.say(&Ack{To: rotation.ID{Number: 2}})
			pass(2 * time.Second)
			r.store.broken("remove", store.ErrForbidden)
			rep.say(nil)
			pass(10 * time.Minute)
		}
		if n := r.logged("cannot be removed"); n != 1 || r.ackWrites(ackFailed) != 2 {
			t.Errorf("said %d times, tried %v times", n, r.ackWrites(ackFailed))
		}
		r.store.broken("remove", store.ErrUnavailable)
		rep.say(&Ack{To: rotation.ID{Number: 3}})
		pass(2 * time.Second)
		rep.say(nil)
		pass(time.Minute)
		r.store.broken("remove", nil)
		pass(2 * time.Minute)
		r.ackIs("one", "nothing")
		if r.ackWrites(ackRemoved) != 1 {
			t.Error("not removed once it could be")
		}
	})
}
