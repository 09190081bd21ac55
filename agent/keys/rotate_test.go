package keys

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/postern-proxy/postern/agent/audit"
	"github.com/postern-proxy/postern/agent/rotation"
)

var halfHalf = rotation.Ramp{{Weight: 10, For: time.Minute}, {Weight: 50, For: 2 * time.Minute}}

// The whole life of a rotation, seen from the record, the agents and the store.
func TestARotation(t *testing.T) {
	g := newStage(t)
	g.strict = true
	g.add(1)
	one, two := g.pod("one"), g.pod("two")
	ada := g.process("ada")
	rot, err := ada.Rotate(t.Context(), "openai", g.value(key(2)), RotateOptions{Ramp: &halfHalf, Reason: "quarterly"})
	if err != nil {
		t.Fatal(err)
	}
	if rot.Phase != rotation.PhaseMigrate || rot.From != 1 || rot.To != 2 || rot.Closed || rot.Weight != 0 || rot.Actor != "ada" || rot.Reason != "quarterly" || rot.ID != "prod.px_acme.openai" {
		t.Errorf("%+v", rot)
	}
	g.holds(2, 2)
	r := g.record()
	if lead := r.StartedAt.Sub(g.clock()); lead < 9*time.Second || lead > 10*time.Second || !r.Validated {
		t.Errorf("the ramp begins in %v, validated %v; every agent should have seen the record by then", lead, r.Validated)
	}
	if one.state(2) != rotation.Pending || one.state(1) != rotation.Active {
		t.Errorf("before the ramp: %s", one.describe())
	}
	g.pass(11 * time.Second)
	for _, weight := range []int{10, 50, 100} {
		rot, err = ada.Advance(t.Context(), "openai")
		if err != nil || rot.Weight != weight || rot.Phase != rotation.PhaseMigrate {
			t.Errorf("weight %d, want %d; %v", rot.Weight, weight, err)
		}
		for _, a := range []*pod{one, two} {
			if s := a.k.Weights(g.clock()); s[0].Weight != weight || s[0].ID.Number != 2 {
				t.Errorf("%s: %v, want %d %%", a.name, s, weight)
			}
		}
		if len(rot.Agents) != 2 || rot.Agents[0].Name != "one" || !rot.Agents[0].Live || rot.Agents[0].To != rotation.Active {
			t.Errorf("%+v", rot.Agents)
		}
		g.pass(time.Minute)
		if weight == 50 {
			g.pass(time.Minute)
		}
	}
	if !strings.Contains(rot.Waiting, "grace") || rot.Next.IsZero() || rot.Overdue || !slices.Equal(g.readable(), []int{1, 2}) {
		t.Errorf("%+v", rot)
	}
	rot = g.finish(ada)
	if rot.Phase != rotation.PhaseDone || !rot.Closed || rot.Weight != 100 || rot.Waiting != "" || !rot.Next.IsZero() || len(rot.Warnings) > 0 {
		t.Errorf("%+v", rot)
	}
	if now := g.clock(); now.Sub(r.StartedAt) < 13*time.Minute || now.Sub(r.StartedAt) > 15*time.Minute {
		t.Errorf("it took %v", now.Sub(r.StartedAt))
	}
	if !slices.Equal(g.readable(), []int{2}) || one.state(2) != rotation.Active || one.state(1).Usable() {
		t.Errorf("readable %v; %s", g.readable(), one.describe())
	}
	want := []string{
		"rotation.generate intent openai 2", "rotation.generate ok openai 2", "rotation.validate ok openai 2",
		"rotation.migrate intent openai 2", "rotation.migrate ok openai 2", "rotation.revoke ok openai 1", "rotation.close ok openai 2",
	}
	if told := ada.book.told(); !slices.Equal(told, want) {
		t.Errorf("%q, want %q", told, want)
	}
	// And again: nothing of the last one is in the way.
	if rot, err = ada.Rotate(t.Context(), "openai", g.value(key(3)), RotateOptions{}); err != nil || rot.From != 2 || rot.To != 3 {
		t.Errorf("%+v, %v", rot, err)
	}
	if rot = g.finish(ada); rot.Phase != rotation.PhaseDone || !slices.Equal(g.readable(), []int{3}) {
		t.Errorf("%+v", rot)
	}
}

// A key that the provider refuses stops there: nothing that is served changes.
func TestARejectedKey(t *testing.T) {
	g := newStage(t)
	g.strict = true
	g.add(1)
	one := g.pod("one")
	one.silent = true // else it could be the first to say so
	g.says(2, rotation.VerdictDead)
	ada := g.process("ada")
	rot, err := ada.Rotate(t.Context(), "openai", g.value(key(2)), RotateOptions{})
	var rejected *RejectedError
	if !errors.Is(err, ErrRejected) || !errors.As(err, &rejected) || rejected.Version != 2 || rejected.Status != 401 || !strings.Contains(err.Error(), "missing, malformed or revoked") || strings.Contains(err.Error(), key(2)) {
		t.Errorf("%v", err)
	}
	if rot.Phase != rotation.PhaseRejected || !rot.Closed || rot.Weight != 0 || !strings.Contains(rot.Reason, "401") {
		t.Errorf("%+v", rot)
	}
	r := g.record()
	if v := r.Version(r.To); v.State != rotation.Rejected || r.To.Number != 2 {
		t.Errorf("%+v", r)
	}
	if one.state(1) != rotation.Active || one.state(2).Usable() {
		t.Errorf("%s", one.describe())
	}
	if told := ada.book.told(); !slices.Contains(told, "rotation.validate failed openai 2") || slices.Contains(told, "rotation.migrate intent openai 2") {
		t.Errorf("%q", told)
	}
	// The same value is refused, another one is not; then the refused one goes.
	if _, err := ada.Rotate(t.Context(), "openai", g.value(key(2)), RotateOptions{}); err == nil || errors.Is(err, ErrRejected) {
		t.Errorf("%v", err)
	}
	if rot, err = ada.Rotate(t.Context(), "openai", g.value(key(3)), RotateOptions{}); err != nil || rot.From != 1 || rot.To != 3 {
		t.Fatalf("%+v, %v", rot, err)
	}
	g.holds(3, 3)
	if rot = g.finish(ada); rot.Phase != rotation.PhaseDone || !slices.Equal(g.readable(), []int{3}) {
		t.Errorf("%+v, readable %v", rot, g.readable())
	}
	if v := g.record().Version(r.To); v.State != rotation.Rejected {
		t.Errorf("that version 2 was rejected is forgotten: %+v", v)
	}
}

// Where the provider cannot be asked by whoever rotates, agents are the first who know.
func TestAnAgentIsTheFirstToReject(t *testing.T) {
	g := newStage(t)
	g.strict = true
	g.add(1)
	g.pod("one")
	g.says(2, rotation.VerdictDead)
	ada := g.process("ada")
	ada.Probe = nil
	rot, err := ada.Rotate(t.Context(), "openai", g.value(key(2)), RotateOptions{})
	if err == nil || !strings.Contains(err.Error(), "agent one rejected version 2") || rot.Phase != rotation.PhaseRolledBack || !rot.Closed {
		t.Errorf("%+v, %v", rot, err)
	}
	if r := g.record(); r.Version(r.To).State != rotation.Rejected {
		t.Errorf("%+v", r)
	}
}

// A version that agents halted without any rotation is not the one that is in use.
func TestTheVersionInUse(t *testing.T) {
	g := newStage(t)
	g.add(1)
	g.add(2)
	v := g.metadata().Versions[1]
	g.veto(rotation.ID{Number: 2, Created: v.Created}, "refused where the other one was not")
	rot, err := g.process("ada").Rotate(t.Context(), "openai", g.value(key(3)), RotateOptions{})
	if err != nil || rot.From != 1 || rot.To != 3 {
		t.Errorf("%+v, %v", rot, err)
	}
}

// Whoever interrupts an operation has not undone what it did: the entry is written all the same.
func TestAnEntryOutlivesTheCaller(t *testing.T) {
	ada := newStage(t).process("ada")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if w := ada.record(ctx, audit.Event{Event: EventRollback, Key: "openai", Outcome: OutcomeOK}); w != "" || len(ada.book.told()) != 1 {
		t.Errorf("%q", w)
	}
	if err := ada.intend(ctx, audit.Event{Event: EventMigrate, Key: "openai"}); err == nil {
		t.Error("what has not begun yet does not begin")
	}
}
