package keys

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/postern-proxy/postern/agent/rotation"
	"github.com/postern-proxy/postern/agent/store"
)

// migrating is a rotation from 1 to 2 whose agents may move.
func migrating(t *testing.T, o RotateOptions) (*stage, *process) {
	t.Helper()
	g := newStage(t)
	g.add(1)
	ada := g.process("ada")
	if rot, err := ada.Rotate(t.Context(), "openai", g.value(key(2)), o); err != nil || rot.Phase != rotation.PhaseMigrate {
		t.Fatalf("%+v, %v", rot, err)
	}
	return g, ada
}

func TestAHaltRollsBack(t *testing.T) {
	g, ada := migrating(t, RotateOptions{Ramp: &halfHalf})
	g.strict = true
	one := g.pod("one")
	g.pass(20 * time.Second)
	if one.state(2) != rotation.Active {
		t.Fatalf("%s", one.describe())
	}
	// A halt of another version of that number says nothing.
	other := g.record().To
	other.Created = other.Created.Add(-time.Hour)
	g.veto(other, "an old story")
	if rot, err := ada.Advance(t.Context(), "openai"); err != nil || rot.Closed {
		t.Fatalf("%+v, %v", rot, err)
	}
	if err := g.real.Remove(t.Context(), "halts/prod/px_acme/openai-2"); err != nil {
		t.Fatal(err)
	}
	ada.book.told()
	g.veto(g.record().To, "requests were refused with this version and not with the other one")
	rot, err := ada.Advance(t.Context(), "openai")
	if err != nil || rot.Phase != rotation.PhaseRolledBack || !rot.Closed || rot.Weight != 0 {
		t.Errorf("%+v, %v", rot, err)
	}
	if want := "halted: requests were refused with this version and not with the other one (7 of 20 requests)"; rot.Reason != want {
		t.Errorf("%q, want %q", rot.Reason, want)
	}
	if r := g.record(); r.Version(r.To).State != rotation.Rejected {
		t.Errorf("%+v", r)
	}
	if one.state(1) != rotation.Active || one.state(2) != rotation.Rejected || !slices.Equal(g.readable(), []int{1, 2}) {
		t.Errorf("%s; readable %v", one.describe(), g.readable())
	}
	if told := ada.book.told(); !slices.Equal(told, []string{"rotation.halt ok openai 2", "rotation.rollback ok openai 2", "rotation.close failed openai 2"}) {
		t.Errorf("%q", told)
	}
	// The next one starts from the version that is in use, not from the halted one.
	if rot, err = ada.Rotate(t.Context(), "openai", g.value(key(3)), RotateOptions{}); err != nil || rot.From != 1 || rot.To != 3 {
		t.Errorf("%+v, %v", rot, err)
	}
}

func TestAnAgentThatRejectsRollsBack(t *testing.T) {
	g, ada := migrating(t, RotateOptions{})
	r := g.record()
	a := &pod{g: g, name: "pod-7"}
	a.ack(r.To, rotation.Rejected, rotation.Active, "probe: missing, malformed or revoked (status 401)")
	g.pass(4 * time.Minute) // so long ago that nobody knows whether it lives
	if rot, err := ada.Advance(t.Context(), "openai"); err != nil || rot.Closed || len(rot.Agents) != 1 || rot.Agents[0].Live || rot.Agents[0].To != rotation.Rejected {
		t.Fatalf("%+v, %v", rot, err)
	}
	a.ack(r.To, rotation.Rejected, rotation.Active, "probe: missing, malformed or revoked (status 401)")
	rot, err := ada.Advance(t.Context(), "openai")
	if err != nil || rot.Phase != rotation.PhaseRolledBack || rot.Reason != "agent pod-7 rejected version 2: probe: missing, malformed or revoked (status 401)" {
		t.Errorf("%+v, %v", rot, err)
	}
}

// With no other version to go back to, a veto would leave nothing.
func TestNothingToRollBackTo(t *testing.T) {
	g, ada := migrating(t, RotateOptions{})
	g.strict = true
	g.pod("one")
	if err := g.real.Destroy(t.Context(), "provider-keys/prod/px_acme/openai", 1); err != nil {
		t.Fatal(err)
	}
	g.pass(15 * time.Minute)
	g.strict = false // one that starts now follows the halt, whatever is done here
	g.veto(g.record().To, "refused")
	rot, err := ada.Status(t.Context(), "openai")
	if err != nil || rot.Phase == rotation.PhaseRolledBack || !slices.ContainsFunc(rot.Warnings, func(w string) bool { return strings.Contains(w, "no other version to go back to") }) {
		t.Errorf("%+v, %v", rot, err)
	}
	if rot = g.finish(ada); rot.Phase != rotation.PhaseDone {
		t.Errorf("%+v", rot)
	}
}

// The old version stays until every live agent has said that it uses the new one, and the old one no more.
func TestAgentsHoldUpTheEnd(t *testing.T) {
	g, ada := migrating(t, RotateOptions{Grace: new(time.Duration)})
	r := g.record()
	slow, old, gone, other := &pod{g: g, name: "slow"}, &pod{g: g, name: "old"}, &pod{g: g, name: "gone"}, &pod{g: g, name: "zz"}
	gone.ack(r.To, rotation.Pending, rotation.Active, "")
	g.pass(ackLife)
	before := rotation.ID{Number: 1, Created: r.From.Created}
	now := func() (rot Rotation) {
		t.Helper()
		rot, err := ada.Advance(t.Context(), "openai")
		if err != nil {
			t.Fatal(err)
		}
		return rot
	}
	for _, c := range []struct {
		name string
		do   func()
		want string
	}{
		{"not taken", func() { slow.ack(r.To, rotation.Pending, rotation.Active, "") }, "agent slow to take version 2"},
		{"another rotation", func() { old.ack(before, rotation.Active, rotation.Unknown, "") }, "agents old, slow to take version 2"},
		{"one of two", func() { slow.ack(r.To, rotation.Active, rotation.Draining, "") }, "agent old to take version 2"},
		{"draining", func() { old.ack(r.To, rotation.Active, rotation.Retired, "") }, "agent slow to let go of version 1"},
	} {
		c.do()
		g.pass(time.Minute)
		rot := now()
		if rot.Phase != rotation.PhaseMigrate || rot.Waiting != c.want || rot.Next.IsZero() || !slices.Equal(g.readable(), []int{1, 2}) {
			t.Errorf("%s: waiting for %q, want %q: %+v", c.name, rot.Waiting, c.want, rot)
		}
		if c.name == "not taken" && !rot.Overdue {
			t.Errorf("%+v", rot)
		}
	}
	// One that says nothing about the key does not count.
	other.ack(r.To, rotation.Pending, rotation.Active, "")
	fields := map[string][]byte{"agent": []byte("zz"), "at": []byte(g.clock().Format(time.RFC3339Nano)), "keys": []byte(`{"anthropic":{"to_state":"pending"}}`)}
	if _, err := store.PutText(t.Context(), g.real, other.path(), fields, store.Any); err != nil {
		t.Fatal(err)
	}
	slow.ack(r.To, rotation.Active, rotation.Retired, "")
	if rot := now(); rot.Phase != rotation.PhaseDone || !slices.Equal(g.readable(), []int{2}) {
		t.Errorf("%+v", rot)
	}
}

// However short the grace, agents that acknowledge nothing get two polls.
func TestTheLeastGrace(t *testing.T) {
	g, ada := migrating(t, RotateOptions{Grace: new(time.Duration)})
	at := g.record().StartedAt
	for range 100 {
		rot, err := ada.Advance(t.Context(), "openai")
		if err != nil {
			t.Fatal(err)
		}
		if rot.Closed {
			break
		}
		g.pass(time.Second)
	}
	if took := g.clock().Sub(at); took < 10*time.Second || took > 12*time.Second || !slices.Equal(g.readable(), []int{2}) {
		t.Errorf("the old version went after %v; readable %v", took, g.readable())
	}
}

// An acknowledgement that cannot be read may be that of an agent which still needs the old version.
func TestAcknowledgementsThatCannotBeRead(t *testing.T) {
	g, ada := migrating(t, RotateOptions{})
	g.pass(15 * time.Minute)
	ada.Store = unlisted{ada.wire}
	rot, err := ada.Advance(t.Context(), "openai")
	if err != nil || rot.Closed || !strings.Contains(rot.Waiting, "somebody who may read") || !rot.Next.IsZero() || !rot.Overdue {
		t.Errorf("%+v, %v", rot, err)
	}
	ada.Store = ada.wire
	a := &pod{g: g, name: "odd"}
	if _, err := store.PutText(t.Context(), g.real, a.path(), map[string][]byte{"at": []byte("yesterday"), "keys": []byte("{")}, store.Any); err != nil {
		t.Fatal(err)
	}
	for range 2 { // whatever its name and its text are
		if rot, err = ada.Advance(t.Context(), "openai"); err != nil || rot.Closed || rot.Next.IsZero() || !strings.Contains(rot.Waiting, "agent odd (its acknowledgement cannot be read) to take version 2") {
			t.Errorf("%+v, %v", rot, err)
		}
		if _, err := store.PutText(t.Context(), g.real, a.path(), map[string][]byte{"agent": []byte("\x1b[2J"), "at": []byte(g.clock().Format(time.RFC3339Nano)), "keys": []byte("{")}, store.Any); err != nil {
			t.Fatal(err)
		}
	}
	g.pass(4 * time.Minute)
	if rot, err = ada.Advance(t.Context(), "openai"); err != nil || rot.Phase != rotation.PhaseDone {
		t.Errorf("nothing so old keeps it up: %+v, %v", rot, err)
	}
}

// unlisted is the store of one who may not see acknowledgements.
type unlisted struct{ store.Store }

func (u unlisted) List(ctx context.Context, folder string) ([]string, error) {
	if strings.HasPrefix(folder, "acks/") {
		return nil, fmt.Errorf("%s: %w", folder, store.ErrForbidden)
	}
	return u.Store.List(ctx, folder)
}

// What agents write goes to terminals.
func TestWhatAnAgentWritesIsPrintable(t *testing.T) {
	g, ada := migrating(t, RotateOptions{})
	a := &pod{g: g, name: "\x1b[2Jroot\n"}
	keys := fmt.Sprintf(`{"openai":{"to":{"number":2,"created":%q},"to_state":"rejected","reason":"\u001b]0;x\u0007%s"}}`, g.record().To.Created.Format(time.RFC3339Nano), strings.Repeat("é", 400))
	fields := map[string][]byte{"agent": []byte(a.name), "at": []byte(g.clock().Format(time.RFC3339Nano)), "keys": []byte(keys)}
	if _, err := store.PutText(t.Context(), g.real, "acks/prod/px_acme/local/x", fields, store.Any); err != nil {
		t.Fatal(err)
	}
	rot, err := ada.Advance(t.Context(), "openai")
	if err != nil || rot.Phase != rotation.PhaseRolledBack || strings.ContainsAny(rot.Reason, "\x1b\x07\n") || !strings.Contains(rot.Reason, "[2Jroot") || len(rot.Reason) > 500 {
		t.Errorf("%+v, %v", rot, err)
	}
}

// An agent whose clock runs ahead does not live for ever.
func TestAnAgentOfTheFuture(t *testing.T) {
	g, ada := migrating(t, RotateOptions{})
	r := g.record()
	keys := fmt.Sprintf(`{"openai":{"to":{"number":2,"created":%q},"to_state":"pending"}}`, r.To.Created.Format(time.RFC3339Nano))
	fields := map[string][]byte{"at": []byte(g.clock().AddDate(1, 0, 0).Format(time.RFC3339Nano)), "keys": []byte(keys)}
	if _, err := store.PutText(t.Context(), g.real, "acks/prod/px_acme/local/pod-9", fields, store.Any); err != nil {
		t.Fatal(err)
	}
	rot, err := ada.Advance(t.Context(), "openai")
	if err != nil || len(rot.Agents) != 1 || rot.Agents[0].Name != "pod-9" || !rot.Agents[0].Live || rot.Agents[0].To != rotation.Pending {
		t.Errorf("%+v, %v", rot.Agents, err)
	}
	g.pass(4 * time.Minute)
	if rot, err = ada.Advance(t.Context(), "openai"); err != nil || rot.Agents[0].Live {
		t.Errorf("%+v, %v", rot.Agents, err)
	}
}

// Where neither the provider nor any agent has said that the new version works,
// the old one is not destroyed.
func TestAVersionThatNobodyVouchesFor(t *testing.T) {
	t.Run("nobody can be asked", func(t *testing.T) {
		g := newStage(t)
		g.add(1)
		ada := g.process("ada")
		ada.Probe = nil
		rot, err := ada.Rotate(t.Context(), "openai", g.value(key(2)), RotateOptions{})
		if err != nil || len(rot.Warnings) != 1 || !strings.Contains(rot.Warnings[0], "without having been validated") {
			t.Errorf("%+v, %v", rot, err)
		}
		rot = g.finish(ada)
		if rot.Phase != rotation.PhaseDone || !slices.Equal(g.readable(), []int{1, 2}) || len(rot.Warnings) != 1 || !strings.Contains(rot.Warnings[0], "version 1: it stays in the store") {
			t.Errorf("%+v, readable %v", rot, g.readable())
		}
		if rot, err = ada.Rotate(t.Context(), "openai", g.value(key(3)), RotateOptions{}); err != nil || rot.From != 2 {
			t.Errorf("%+v, %v", rot, err)
		}
	})
	t.Run("the provider answers later", func(t *testing.T) {
		g := newStage(t)
		g.add(1)
		g.says(2, rotation.VerdictUnknown)
		ada := g.process("ada")
		if _, err := ada.Rotate(t.Context(), "openai", g.value(key(2)), RotateOptions{}); err != nil {
			t.Fatal(err)
		}
		g.pass(11 * time.Minute)
		rot, err := ada.Advance(t.Context(), "openai")
		if err != nil || rot.Closed || !strings.Contains(rot.Waiting, "the provider to say whether version 2 works") || rot.Next.IsZero() {
			t.Errorf("%+v, %v", rot, err)
		}
		g.says(2, rotation.VerdictLive)
		if rot = g.finish(ada); rot.Phase != rotation.PhaseDone || !slices.Equal(g.readable(), []int{2}) || len(rot.Warnings) > 0 {
			t.Errorf("%+v, readable %v", rot, g.readable())
		}
	})
	t.Run("and then refuses", func(t *testing.T) {
		g := newStage(t)
		g.add(1)
		g.says(2, rotation.VerdictUnknown)
		ada := g.process("ada")
		if _, err := ada.Rotate(t.Context(), "openai", g.value(key(2)), RotateOptions{}); err != nil {
			t.Fatal(err)
		}
		g.says(2, rotation.VerdictDead)
		if rot := g.finish(ada); rot.Phase != rotation.PhaseRolledBack || !slices.Equal(g.readable(), []int{1, 2}) {
			t.Errorf("%+v, readable %v", rot, g.readable())
		}
	})
	t.Run("it never answers", func(t *testing.T) {
		g := newStage(t)
		g.add(1)
		g.says(2, rotation.VerdictUnknown)
		ada := g.process("ada")
		if _, err := ada.Rotate(t.Context(), "openai", g.value(key(2)), RotateOptions{}); err != nil {
			t.Fatal(err)
		}
		if rot := g.finish(ada); rot.Phase != rotation.PhaseDone || !slices.Equal(g.readable(), []int{1, 2}) {
			t.Errorf("%+v, readable %v", rot, g.readable())
		}
	})
	t.Run("an agent does", func(t *testing.T) {
		g := newStage(t)
		g.add(1)
		ada := g.process("ada")
		ada.Probe = nil
		g.pod("one")
		if _, err := ada.Rotate(t.Context(), "openai", g.value(key(2)), RotateOptions{}); err != nil {
			t.Fatal(err)
		}
		if rot := g.finish(ada); rot.Phase != rotation.PhaseDone || !slices.Equal(g.readable(), []int{2}) {
			t.Errorf("%+v, readable %v", rot, g.readable())
		}
	})
}

// Who may rotate need not be allowed to destroy. Somebody else does it, and the next rotation does not wait for that.
func TestWhoMayNotDestroy(t *testing.T) {
	g, ada := migrating(t, RotateOptions{})
	ada.wire.before = func(what string) error {
		if strings.HasPrefix(what, "destroy ") {
			return fmt.Errorf("destroy: %w", store.ErrForbidden)
		}
		return nil
	}
	rot := g.finish(ada)
	if rot.Closed || rot.Phase != rotation.PhaseRevoke || !strings.Contains(rot.Waiting, "somebody who may destroy version 1") || !rot.Next.IsZero() {
		t.Fatalf("%+v", rot)
	}
	writes := len(ada.wire.writes)
	if again, err := ada.Advance(t.Context(), "openai"); err != nil || again.Waiting != rot.Waiting || len(ada.wire.writes) != writes+1 {
		t.Errorf("%+v, %v; %q", again, err, ada.wire.writes[writes:])
	}
	rot, err := ada.Rotate(t.Context(), "openai", g.value(key(3)), RotateOptions{})
	if err != nil || rot.From != 2 || rot.To != 3 || rot.Phase != rotation.PhaseMigrate {
		t.Fatalf("%+v, %v", rot, err)
	}
	if rot = g.finish(g.process("server")); rot.Phase != rotation.PhaseDone || !slices.Equal(g.readable(), []int{3}) || len(rot.Warnings) > 0 {
		t.Errorf("%+v, readable %v", rot, g.readable())
	}
}

// An emergency during a rotation, of either version.
func TestARevocationMeanwhile(t *testing.T) {
	t.Run("new", func(t *testing.T) {
		g, ada := migrating(t, RotateOptions{Ramp: &halfHalf})
		one := g.pod("one")
		g.pass(20 * time.Second)
		if _, err := ada.Revoke(t.Context(), "openai", RevokeOptions{Versions: []int{2}, Reason: "leaked"}); err != nil {
			t.Fatal(err)
		}
		g.observe()
		rot, err := ada.Advance(t.Context(), "openai")
		if err != nil || rot.Phase != rotation.PhaseRolledBack || !rot.Closed || one.state(2) != rotation.Compromised || one.state(1) != rotation.Active {
			t.Errorf("%+v, %v; %s", rot, err, one.describe())
		}
		if rot, err = ada.Rotate(t.Context(), "openai", g.value(key(3)), RotateOptions{}); err != nil || rot.From != 1 || rot.To != 3 {
			t.Errorf("%+v, %v", rot, err)
		}
		if r := g.record(); !slices.ContainsFunc(r.Versions, func(v rotation.VersionRecord) bool { return v.Number == 2 && v.State == rotation.Compromised }) {
			t.Errorf("the revocation is forgotten: %+v", r.Versions)
		}
	})
	t.Run("old", func(t *testing.T) {
		g, ada := migrating(t, RotateOptions{Ramp: &halfHalf})
		one := g.pod("one")
		g.pass(20 * time.Second)
		if _, err := ada.Revoke(t.Context(), "openai", RevokeOptions{Versions: []int{1}}); err != nil {
			t.Fatal(err)
		}
		g.observe()
		if rot := g.finish(ada); rot.Phase != rotation.PhaseDone || one.state(2) != rotation.Active || one.state(1) != rotation.Compromised {
			t.Errorf("%+v; %s", rot, one.describe())
		}
		if r := g.record(); r.Version(r.From).State != rotation.Compromised {
			t.Errorf("%+v", r)
		}
	})
}

// A record that was closed by a look that was cut off: nothing is done twice.
func TestAdvanceWithoutARotation(t *testing.T) {
	g := newStage(t)
	ada := g.process("ada")
	for _, f := range []func() (Rotation, error){
		func() (Rotation, error) { return ada.Advance(t.Context(), "openai") },
		func() (Rotation, error) { return ada.Status(t.Context(), "openai") },
		func() (Rotation, error) { return ada.Resume(t.Context(), "openai", nil) },
		func() (Rotation, error) { return ada.Wait(t.Context(), "openai", nil) },
	} {
		if rot, err := f(); err != nil || rot.Phase != rotation.PhaseNone || rot.Waiting != "" || rot.Grace != "" || rot.Name != "openai" {
			t.Errorf("%+v, %v", rot, err)
		}
	}
	if len(ada.wire.writes) > 0 {
		t.Errorf("%q", ada.wire.writes)
	}
	if _, err := ada.Resume(t.Context(), "openai", g.value(key(1))); err == nil || !strings.Contains(err.Error(), "no rotation of openai is under way") {
		t.Errorf("%v", err)
	}
	for _, f := range []func() (Rotation, error){
		func() (Rotation, error) { return ada.Advance(t.Context(), "../x") },
		func() (Rotation, error) { return ada.Status(t.Context(), "../x") },
		func() (Rotation, error) { return ada.Resume(t.Context(), "../x", nil) },
	} {
		if _, err := f(); err == nil || errors.Is(err, store.ErrInvalid) {
			t.Errorf("%v", err)
		}
	}
	g.add(1)
	if _, err := ada.Rotate(t.Context(), "openai", g.value(key(2)), RotateOptions{}); err != nil {
		t.Fatal(err)
	}
	if rot, err := ada.Status(t.Context(), "openai"); err != nil || rot.Phase != rotation.PhaseMigrate || rot.Waiting == "" {
		t.Errorf("%+v, %v", rot, err)
	}
}
