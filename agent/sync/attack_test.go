package sync

import (
	"testing"
	"time"

	"github.com/postern-proxy/postern/agent/rotation"
	"github.com/postern-proxy/postern/agent/store"
)

// A record, or a halt, that is longer than anything that is read is done without:
// it neither keeps newer versions out nor lets max_stale end what serves.
func TestEntriesThatAreTooLongAreDoneWithout(t *testing.T) {
	inBubble(t, func(r *rig) {
		r.store.broken(record, store.ErrTooLarge)
		r.store.broken(halt2, store.ErrTooLarge)
		a := r.rotated(nil)
		pass(time.Minute)
		a.shares("2:100")
		if r.logged("done without") == 0 {
			t.Error("nothing is said")
		}
		pass(3 * time.Hour) // max_stale is an hour
		a.shares("2:100")
		r.store.write(keyPath, key(3))
		pass(time.Minute)
		a.shares("3:100")
	})
}

// A halt against the only version there is takes it from nobody: not from an
// agent that serves with it, and not from one that starts.
func TestAHaltAgainstTheOnlyVersion(t *testing.T) {
	inBubble(t, func(r *rig) {
		r.store.write(keyPath, key(1))
		v := r.store.write(keyPath, key(2))
		r.says(key(1), rotation.VerdictDead)
		first := r.start(nil)
		pass(time.Minute)
		first.shares("2:100")
		h := rotation.Halt{To: rotation.ID{Number: v.Number, Created: v.Created}, Reason: "forged", Served: 9, Failed: 9}
		fields, err := h.Encode()
		if err != nil {
			t.Fatal(err)
		}
		text := map[string]string{}
		for name, b := range fields {
			text[name] = string(b)
		}
		r.store.writeFields(halt2, text)
		second := r.start(nil)
		pass(time.Minute)
		first.shares("2:100")
		second.shares("2:100")
		r.store.write(keyPath, key(3))
		pass(time.Minute)
		second.shares("3:100")

		// What a record says is another matter.
		r.store.writeFields(record, map[string]string{"phase": "rejected", "closed": "true", "versions": `[{"number":2,"created":"` + h.To.Created.Format(time.RFC3339Nano) + `","state":"rejected"}]`})
		r.says(key(3), rotation.VerdictDead)
		third := r.start(nil)
		pass(10 * time.Minute)
		third.shares("")
	})
}
