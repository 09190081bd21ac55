package keys

import (
	"testing"

	"github.com/postern-proxy/postern/agent/rotation"
)

// A record that somebody writes between the look for it and the look at its
// versions is read, and not taken for one that was deleted: who writes next would write over it.
func TestARecordThatComesWhileItIsLookedFor(t *testing.T) {
	o := newOperator(t)
	other := &Manager{Store: o.store.Store, Scope: o.Scope}
	written := false
	o.store.read = func(method, path string) error {
		if method == "metadata" && path == o.Scope.record("openai") && !written {
			written = true
			return other.writeRecord(t.Context(), "openai", &entry{Record: rotation.Record{Phase: rotation.PhaseGenerate, Actor: "bob"}})
		}
		return nil
	}
	e, err := o.readRecord(t.Context(), "openai")
	if err != nil || !written || e.Actor != "bob" || e.cas != 1 {
		t.Errorf("%+v, %v", e, err)
	}
}

// One that was deleted by hand is none, and the next one is written behind it.
func TestARecordThatWasDestroyed(t *testing.T) {
	o := newOperator(t)
	if err := o.writeRecord(t.Context(), "openai", &entry{Record: rotation.Record{Phase: rotation.PhaseDone, Actor: "bob"}}); err != nil {
		t.Fatal(err)
	}
	if err := o.store.Destroy(t.Context(), o.Scope.record("openai"), 1); err != nil {
		t.Fatal(err)
	}
	e, err := o.readRecord(t.Context(), "openai")
	if err != nil || e.Actor != "" || e.cas != 1 {
		t.Fatalf("%+v, %v", e, err)
	}
	if err := o.writeRecord(t.Context(), "openai", e); err != nil || e.cas != 2 {
		t.Errorf("%+v, %v", e, err)
	}
}
