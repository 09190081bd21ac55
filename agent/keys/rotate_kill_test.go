package keys

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/postern-proxy/postern/agent/rotation"
	"github.com/postern-proxy/postern/agent/secret"
)

// life is a rotation from the beginning to its end, by one process.
func life(t *testing.T, g *stage, p *process) (rot Rotation, err error) {
	t.Helper()
	ramp := rotation.Ramp{{Weight: 50, For: time.Minute}}
	if rot, err = p.Rotate(t.Context(), "openai", g.value(key(2)), RotateOptions{Ramp: &ramp}); err != nil {
		return rot, err
	}
	for range 100 {
		if rot, err = p.Advance(t.Context(), "openai"); err != nil || rot.Closed {
			return rot, err
		}
		g.pass(20 * time.Second)
	}
	t.Fatalf("the rotation does not end: %+v", rot)
	return rot, err
}

// Wherever the process is killed, before any of its writes or after it, another
// one ends the rotation, and at no moment is there an agent that cannot serve:
// neither one that has been there all the time nor one that starts just then.
func TestKilledBetweenAnyTwoWrites(t *testing.T) {
	g := newStage(t)
	g.add(1)
	p := g.process("ada")
	if rot, err := life(t, g, p); err != nil || rot.Phase != rotation.PhaseDone {
		t.Fatalf("%+v, %v", rot, err)
	}
	writes := slices.Clone(p.wire.writes)
	t.Logf("%d writes: %s", len(writes), strings.Join(writes, "; "))
	if len(writes) < 15 {
		t.Fatalf("only %d writes were seen: %q", len(writes), writes)
	}
	for _, verdict := range []rotation.Verdict{rotation.VerdictLive, rotation.VerdictDead} {
		for k := range writes {
			for _, after := range []bool{false, true} {
				for _, how := range []string{"resumed with the value", "resumed without", "advanced by others", "advanced by one who cannot probe"} {
					name := fmt.Sprintf("%s/%d %s/after %v/%s", verdict, k+1, strings.ReplaceAll(writes[k], "/", "_"), after, how)
					t.Run(name, func(t *testing.T) {
						t.Parallel()
						killed(t, k+1, after, how, verdict)
					})
				}
			}
		}
	}
}

func killed(t *testing.T, cut int, after bool, how string, verdict rotation.Verdict) {
	g := newHeapStage(t)
	if how == "resumed without" && verdict == rotation.VerdictLive {
		g = newStage(t)
	}
	g.strict = true
	g.says(2, verdict)
	g.add(1)
	g.pod("one")
	g.pod("two").silent = true
	ada := g.process("ada")
	ada.wire.cut, ada.wire.after = cut, after
	rot, err := life(t, g, ada)
	if !ada.wire.dead {
		if verdict == rotation.VerdictDead && errors.Is(err, ErrRejected) || after && rot.Closed && err == nil {
			return // it was over before
		}
		t.Fatalf("it was not killed: %+v, %v", rot, err)
	}
	began := g.record() != nil
	_, written := situation{md: g.metadata()}.stored(2)

	bob := g.process("bob")
	var value *secret.Value
	switch how {
	case "resumed with the value":
		value = g.value(key(2))
		fallthrough
	case "resumed without":
		rot, err = bob.Resume(t.Context(), "openai", value)
		switch open := began && !g.record().Closed; {
		case err == nil, errors.Is(err, ErrRejected):
		case value != nil && !open && strings.Contains(err.Error(), "no rotation of openai is under way"):
		default:
			t.Fatalf("resume: %v", err)
		}
	case "advanced by one who cannot probe":
		bob.Probe = nil
	}
	rot = g.finish(bob)
	if !rot.Closed && rot.Phase == rotation.PhaseGenerate { // the value is missing, and only an operator can give it
		if how == "resumed without" || how == "resumed with the value" || written || !strings.Contains(rot.Waiting, "postern keys resume openai") {
			t.Fatalf("%+v", rot)
		}
		g.pass(5 * time.Minute)
		if rot, err = bob.Status(t.Context(), "openai"); err != nil || !rot.Overdue {
			t.Errorf("nobody sees that it is overdue: %+v, %v", rot, err)
		}
		if rot, err = bob.Resume(t.Context(), "openai", nil); err != nil || rot.Phase != rotation.PhaseAbandoned {
			t.Fatalf("%+v, %v", rot, err)
		}
	}
	want := []rotation.Phase{rotation.PhaseDone}
	switch {
	case !began:
		want = []rotation.Phase{rotation.PhaseNone}
	case !written && value == nil:
		want = []rotation.Phase{rotation.PhaseAbandoned}
	case verdict == rotation.VerdictDead:
		want = []rotation.Phase{rotation.PhaseRejected, rotation.PhaseRolledBack}
	}
	if !slices.Contains(want, rot.Phase) || rot.Closed != began {
		t.Errorf("it ended as %+v, want %v", rot, want)
	}
	versions := []int{1}
	switch {
	case rot.Phase == rotation.PhaseDone:
		versions = []int{2}
		g.holds(2, 2)
	case written || value != nil && began:
		versions = []int{1, 2}
	}
	if !slices.Equal(g.readable(), versions) {
		t.Errorf("readable %v, want %v", g.readable(), versions)
	}
	// The next rotation finds nothing in its way.
	if verdict == rotation.VerdictLive {
		if rot, err = bob.Rotate(t.Context(), "openai", g.value(key(3)), RotateOptions{}); err != nil {
			t.Fatal(err)
		}
		bob.Probe = g.probe
		if rot = g.finish(bob); rot.Phase != rotation.PhaseDone || !slices.Equal(g.readable(), []int{rot.To}) {
			t.Errorf("the next one: %+v, readable %v", rot, g.readable())
		}
	}
}
