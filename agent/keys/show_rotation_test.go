package keys

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/postern-proxy/postern/agent/rotation"
	"github.com/postern-proxy/postern/agent/store"
)

// A rotation under way is shown with how far it is, and no other one is due beside it.
func TestShowARotationUnderWay(t *testing.T) {
	o := newOperator(t)
	o.add("openai", 1, Meta{})
	o.add("openai", 2, Meta{})
	if err := o.Schedule(t.Context(), "openai", time.Hour); err != nil {
		t.Fatal(err)
	}
	begun := o.store.Now().UTC().Add(-2 * time.Hour).Truncate(time.Second)
	r := rotation.Record{
		Phase: rotation.PhaseMigrate, Actor: "grace", From: o.id("openai", 1), To: o.id("openai", 2),
		RequestedAt: begun, StartedAt: begun, Ramp: rotation.Ramp{{Weight: 30, For: 100 * time.Hour}},
	}
	o.writes("openai", r)
	i, err := o.Show(t.Context(), "openai")
	if err != nil || i.Rotation == nil || i.Rotation.Phase != rotation.PhaseMigrate || i.Rotation.Actor != "grace" || i.Rotation.Weight != 30 || i.Rotation.To != 2 {
		t.Fatalf("%+v, %v", i, err)
	}
	if i.Versions[0].Weight != 30 || i.Versions[1].Weight != 70 || i.Current().Number != 2 || len(i.Notes) != 0 || len(i.Overdue) != 0 {
		t.Errorf("%+v", i)
	}
	if _, due := Due(i, i.NextDue.Add(time.Hour)); due {
		t.Error("a second rotation is due beside the one that is under way")
	}
	// A step that nobody takes shows.
	r.Ramp, r.Validated = nil, true
	o.writes("openai", r)
	if i, err = o.Show(t.Context(), "openai"); err != nil || len(i.Overdue) != 1 || !strings.HasPrefix(i.Overdue[0], "the rotation could have gone on: ") {
		t.Errorf("%q, %v", i.Overdue, err)
	}
	// What agents say may be out of sight.
	o.store.read = func(_, path string) error {
		if strings.HasPrefix(path, "acks/") {
			return fmt.Errorf("%s: %w", path, store.ErrUnavailable)
		}
		return nil
	}
	if i, err = o.Show(t.Context(), "openai"); err != nil || i.Rotation == nil || i.Rotation.Actor != "grace" || len(i.Overdue) != 0 || len(i.Notes) != 1 || !strings.Contains(i.Notes[0], "acks/") || len(i.Versions) != 2 {
		t.Errorf("%+v, %v", i, err)
	}
	o.store.read = nil
	r.Closed, r.Phase = true, rotation.PhaseDone
	o.writes("openai", r)
	if i, err = o.Show(t.Context(), "openai"); err != nil || i.Rotation != nil || len(i.Overdue) != 0 {
		t.Errorf("%+v, %v", i, err)
	}
}
