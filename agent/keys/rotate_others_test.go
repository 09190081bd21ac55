package keys

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/postern-proxy/postern/agent/rotation"
	"github.com/postern-proxy/postern/agent/secret"
	"github.com/postern-proxy/postern/agent/store"
)

// Of two operators who rotate at once one wins, and the other is told who.
func TestTwoOperatorsRotateAtOnce(t *testing.T) {
	g := newStage(t)
	g.add(1)
	ada, bob := g.process("ada"), g.process("bob")
	other := false
	ada.wire.before = func(what string) error {
		if strings.HasPrefix(what, "put rotations/") && !other { // both have found nothing open
			other = true
			if _, err := bob.Rotate(t.Context(), "openai", g.value(key(3)), RotateOptions{}); err != nil {
				t.Error(err)
			}
		}
		return nil
	}
	_, err := ada.Rotate(t.Context(), "openai", g.value(key(2)), RotateOptions{})
	var open *OpenError
	if !errors.Is(err, ErrOpen) || !errors.As(err, &open) || open.Actor != "bob" || open.Phase != rotation.PhaseMigrate || open.Since.Before(noon) {
		t.Fatalf("%v", err)
	}
	for _, want := range []string{"bob", "2026-03-01T12:00:0", "migrate", "`postern keys resume openai`"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%v: lacks %q", err, want)
		}
	}
	g.holds(2, 3)
	if n := g.metadata().Current; n != 2 {
		t.Errorf("%d versions", n)
	}
	if told := ada.book.told(); !slices.Equal(told, []string{"rotation.generate intent openai 2", "rotation.generate failed openai 2"}) {
		t.Errorf("the one who lost recorded %q", told)
	}
}

func TestManyOperatorsRotateAtOnce(t *testing.T) {
	g := newStage(t)
	g.add(1)
	var mu sync.Mutex
	var wg sync.WaitGroup
	won := 0
	for n := range 6 {
		p, v := g.process(fmt.Sprint("operator ", n)), g.value(key(10+n))
		wg.Go(func() {
			_, err := p.Rotate(t.Context(), "openai", v, RotateOptions{})
			mu.Lock()
			defer mu.Unlock()
			if err == nil {
				won++
			} else if !errors.Is(err, ErrOpen) {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if n := g.metadata().Current; won != 1 || n != 2 {
		t.Errorf("%d won, %d versions", won, n)
	}
}

// Somebody who knows nothing of postern writes a version at the worst moment.
func TestAVersionWrittenByHandMeanwhile(t *testing.T) {
	g := newStage(t)
	g.strict = true
	g.add(1)
	one := g.pod("one")
	ada := g.process("ada")
	ada.wire.before = func(what string) error {
		if strings.HasPrefix(what, "patch ") {
			g.add(7)
		}
		return nil
	}
	rot, err := ada.Rotate(t.Context(), "openai", g.value(key(2)), RotateOptions{})
	if !errors.Is(err, store.ErrConflict) || !strings.Contains(err.Error(), "somebody wrote version 2 by hand") || rot.Phase != rotation.PhaseAbandoned || !rot.Closed {
		t.Errorf("%+v, %v", rot, err)
	}
	g.holds(2, 7)
	if one.state(2) != rotation.Active {
		t.Errorf("%s", one.describe())
	}
	if r := g.record(); !r.Closed || !strings.Contains(r.Reason, "by hand") {
		t.Errorf("%+v", r)
	}
}

// And later, while agents move: they follow what was written last, and the old version stays.
func TestAVersionWrittenByHandWhileAgentsMove(t *testing.T) {
	g := newStage(t)
	g.strict = true
	g.add(1)
	one := g.pod("one")
	ada := g.process("ada")
	if _, err := ada.Rotate(t.Context(), "openai", g.value(key(2)), RotateOptions{Ramp: &halfHalf}); err != nil {
		t.Fatal(err)
	}
	g.pass(20 * time.Second)
	g.add(3)
	rot := g.finish(ada)
	if rot.Phase != rotation.PhaseAbandoned || !strings.Contains(rot.Reason, "version 3") || !slices.Equal(g.readable(), []int{1, 2, 3}) {
		t.Errorf("%+v, readable %v", rot, g.readable())
	}
	if one.state(3) != rotation.Active {
		t.Errorf("%s", one.describe())
	}
	if len(rot.Warnings) != 2 || !strings.HasPrefix(rot.Warnings[0], "version 1: it stays in the store, because somebody wrote version 3 meanwhile") || !strings.HasPrefix(rot.Warnings[1], "version 2: it stays") {
		t.Errorf("%q", rot.Warnings)
	}
}

// Who resumes while the first one is still at it does not make two of it.
func TestResumedWhileItIsBeingWritten(t *testing.T) {
	for _, value := range []bool{true, false} {
		g := newStage(t)
		g.strict = true
		g.add(1)
		g.pod("one")
		ada, bob := g.process("ada"), g.process("bob")
		once := false
		ada.wire.before = func(what string) error {
			if !strings.HasPrefix(what, "patch ") || once {
				return nil
			}
			once = true
			var rot Rotation
			var err error
			if value {
				rot, err = bob.Resume(t.Context(), "openai", g.value(key(3)))
			} else {
				rot, err = bob.Resume(t.Context(), "openai", nil)
			}
			if want := map[bool]rotation.Phase{true: rotation.PhaseMigrate, false: rotation.PhaseAbandoned}[value]; err != nil || rot.Phase != want {
				t.Errorf("%+v, %v", rot, err)
			}
			return nil
		}
		rot, err := ada.Rotate(t.Context(), "openai", g.value(key(2)), RotateOptions{})
		if value { // bob's is the version, and his the rotation
			if err != nil || rot.Phase != rotation.PhaseMigrate {
				t.Errorf("%+v, %v", rot, err)
			}
			g.holds(2, 3)
		} else { // given up, and then it was written after all
			if err != nil || rot.Phase != rotation.PhaseMigrate {
				t.Errorf("%+v, %v", rot, err)
			}
			g.holds(2, 2)
		}
		if rot = g.finish(bob); rot.Phase != rotation.PhaseDone || !slices.Equal(g.readable(), []int{2}) {
			t.Errorf("%+v, readable %v", rot, g.readable())
		}
	}
}

// Given up by another, who begins his own: the first one is told whose it is, and does not touch it.
func TestReplacedWhileItIsBeingWritten(t *testing.T) {
	for _, at := range []string{"patch ", "digest"} {
		g := newStage(t)
		g.add(1)
		ada, bob := g.process("ada"), g.process("bob")
		once := false
		ada.wire.before = func(what string) error {
			if !strings.HasPrefix(what, "patch ") || once {
				return nil
			}
			once = true
			if _, err := bob.Resume(t.Context(), "openai", nil); err != nil {
				t.Error(err)
			}
			if at == "digest" { // bob is cut off before he writes his value
				bob.wire.cut = len(bob.wire.writes) + 4
			}
			if _, err := bob.Rotate(t.Context(), "openai", g.value(key(3)), RotateOptions{}); err != nil && at != "digest" {
				t.Error(err)
			}
			return nil
		}
		_, err := ada.Rotate(t.Context(), "openai", g.value(key(2)), RotateOptions{})
		var open *OpenError
		if !errors.As(err, &open) || open.Actor != "bob" || open.Closed {
			t.Errorf("%s: %v", at, err)
		}
		if r := g.record(); r.Actor != "bob" || r.Closed {
			t.Errorf("%s: %+v", at, r)
		}
	}
}

// A resumed rotation does not believe that any value is the one that was written.
func TestResumedWithAnotherValue(t *testing.T) {
	for _, forbidden := range []bool{false, true} {
		g := newStage(t)
		g.add(1)
		ada, bob := g.process("ada"), g.process("bob")
		ada.wire.cut = 6 // the record that says it is written
		if _, err := ada.Rotate(t.Context(), "openai", g.value(key(2)), RotateOptions{}); err == nil {
			t.Fatal("it was not killed")
		}
		g.says(2, rotation.VerdictDead)
		if forbidden {
			bob.Store = unreadable{bob.wire}
		}
		rot, err := bob.Resume(t.Context(), "openai", g.value(key(3)))
		if g.record().Validated {
			t.Error("version 2 counts as validated because another value works")
		}
		if !slices.ContainsFunc(rot.Warnings, func(w string) bool { return strings.Contains(w, "not that of version 2") }) {
			t.Errorf("%q", rot.Warnings)
		}
		if forbidden && (err != nil || rot.Phase != rotation.PhaseMigrate) || !forbidden && !errors.Is(err, ErrRejected) {
			t.Errorf("%+v, %v", rot, err)
		}
		if n := g.metadata().Current; n != 2 {
			t.Errorf("%d versions", n)
		}
	}
}

// The one who was thought dead writes first after all: what the provider says of the value given again is of no use.
func TestResumedAndBeaten(t *testing.T) {
	g := newStage(t)
	g.add(1)
	ada, bob := g.process("ada"), g.process("bob")
	ada.wire.cut = 4
	if _, err := ada.Rotate(t.Context(), "openai", g.value(key(2)), RotateOptions{}); err == nil {
		t.Fatal("it was not killed")
	}
	bob.Store = unreadable{bob.wire}
	bob.wire.before = func(what string) error {
		if strings.HasPrefix(what, "patch ") {
			g.add(2)
		}
		return nil
	}
	rot, err := bob.Resume(t.Context(), "openai", g.value(key(3)))
	if err != nil || rot.Phase != rotation.PhaseMigrate || g.record().Validated {
		t.Errorf("%+v, %v", rot, err)
	}
	if !slices.ContainsFunc(rot.Warnings, func(w string) bool { return strings.Contains(w, "version 2 was written by somebody else meanwhile") }) {
		t.Errorf("%q", rot.Warnings)
	}
	g.holds(2, 2)
}

// The right to rotate is not the right to read: the value given again tells what the provider thinks of it.
func TestResumedWithTheValueByOneWhoCannotRead(t *testing.T) {
	for verdict, validated := range map[rotation.Verdict]bool{rotation.VerdictLive: true, rotation.VerdictDead: false} {
		g := newStage(t)
		g.add(1)
		ada, bob := g.process("ada"), g.process("bob")
		ada.wire.cut = 6
		if _, err := ada.Rotate(t.Context(), "openai", g.value(key(2)), RotateOptions{}); err == nil {
			t.Fatal("it was not killed")
		}
		g.says(2, verdict)
		bob.Store = unreadable{bob.wire}
		rot, err := bob.Resume(t.Context(), "openai", g.value(key(2)))
		if g.record().Validated != validated || errors.Is(err, ErrRejected) == validated {
			t.Errorf("%v: %+v, %v", verdict, rot, err)
		}
	}
}

// An emergency comes while the rotation is begun.
func TestRevokedWhileItIsBegun(t *testing.T) {
	g := newStage(t)
	g.add(1)
	ada, bob := g.process("ada"), g.process("bob")
	once := false
	ada.wire.before = func(what string) error {
		if !once && what == "audit rotation.migrate intent" {
			once = true
			if _, err := bob.Revoke(t.Context(), "openai", RevokeOptions{Versions: []int{2}, Reason: "it was in the chat"}); err != nil {
				t.Error(err)
			}
		}
		return nil
	}
	rot, err := ada.Rotate(t.Context(), "openai", g.value(key(2)), RotateOptions{})
	if err == nil || !strings.Contains(err.Error(), "it was in the chat") || rot.Phase != rotation.PhaseRolledBack || !rot.Closed {
		t.Errorf("%+v, %v", rot, err)
	}
}

// The value that is in use already is most likely a mistake.
func TestRotatingToTheSameValue(t *testing.T) {
	g := newStage(t)
	ada := g.process("ada")
	if _, err := ada.Add(t.Context(), "openai", g.value(key(1)), Meta{}); err != nil {
		t.Fatal(err)
	}
	rot, err := ada.Rotate(t.Context(), "openai", g.value(key(1)), RotateOptions{})
	if err != nil || len(rot.Warnings) != 1 || !strings.Contains(rot.Warnings[0], "the same value was stored as version 1") {
		t.Errorf("%+v, %v", rot, err)
	}
}

// The same request, sent twice, begins one rotation.
func TestIdempotency(t *testing.T) {
	g := newStage(t)
	g.add(1)
	ada, bob := g.process("ada"), g.process("bob")
	o := RotateOptions{IdempotencyKey: "req-1"}
	once := false
	ada.wire.before = func(what string) error {
		if strings.HasPrefix(what, "put rotations/") && !once {
			once = true
			if _, err := bob.Rotate(t.Context(), "openai", g.value(key(2)), o); err != nil {
				t.Error(err)
			}
		}
		return nil
	}
	rot, err := ada.Rotate(t.Context(), "openai", g.value(key(2)), o)
	if err != nil || rot.To != 2 || rot.Actor != "bob" || rot.Phase != rotation.PhaseMigrate {
		t.Errorf("%+v, %v", rot, err)
	}
	g.finish(ada)
	if rot, err = ada.Rotate(t.Context(), "openai", g.value(key(2)), o); err != nil || rot.To != 2 || !rot.Closed {
		t.Errorf("once it is over: %+v, %v", rot, err)
	}
	if n := g.metadata().Current; n != 2 {
		t.Errorf("%d versions", n)
	}
	if rot, err = ada.Rotate(t.Context(), "openai", g.value(key(3)), RotateOptions{IdempotencyKey: "req-2"}); err != nil || rot.To != 3 {
		t.Errorf("another request: %+v, %v", rot, err)
	}
	if _, err = ada.Rotate(t.Context(), "openai", g.value(key(4)), RotateOptions{}); !errors.Is(err, ErrOpen) {
		t.Errorf("no key is no key: %v", err)
	}
}

// What grants waits for its entry; what removes does not.
func TestWhatWaitsForItsEntry(t *testing.T) {
	g := newStage(t)
	g.add(1)
	ada := g.process("ada")
	full := errors.New("disk full")
	refuse := ""
	ada.wire.before = func(what string) error {
		if refuse != "" && strings.HasPrefix(what, "audit "+refuse) {
			return full
		}
		return nil
	}
	refuse = "rotation.generate intent"
	if _, err := ada.Rotate(t.Context(), "openai", g.value(key(2)), RotateOptions{}); !errors.Is(err, full) {
		t.Errorf("%v", err)
	}
	if g.record() != nil || g.metadata().Current != 1 {
		t.Error("something was written although its entry was not")
	}
	refuse = "rotation.migrate intent"
	rot, err := ada.Rotate(t.Context(), "openai", g.value(key(2)), RotateOptions{})
	if !errors.Is(err, full) || rot.Phase != rotation.PhaseValidate || !g.record().StartedAt.IsZero() {
		t.Errorf("%+v, %v", rot, err)
	}
	refuse = ""
	if rot, err = ada.Resume(t.Context(), "openai", nil); err != nil || rot.Phase != rotation.PhaseMigrate {
		t.Fatalf("%+v, %v", rot, err)
	}
	refuse = "rotation."
	g.veto(g.record().To, "refused where the other one was not")
	rot, err = ada.Advance(t.Context(), "openai")
	if err != nil || rot.Phase != rotation.PhaseRolledBack {
		t.Errorf("%+v, %v", rot, err)
	}
	if !slices.ContainsFunc(rot.Warnings, func(w string) bool {
		return strings.Contains(w, "rotation.rollback") && strings.Contains(w, "disk full")
	}) {
		t.Errorf("nobody is told that the entry is missing: %q", rot.Warnings)
	}
	ada.Audit = nil
	if _, err := ada.Rotate(t.Context(), "openai", g.value(key(5)), RotateOptions{}); err == nil || !strings.Contains(err.Error(), "Manager.Audit") {
		t.Errorf("%v", err)
	}
}

// Who repeats a request because the first was cut off before the value was written gets what he asked for.
func TestARepeatedRequestGoesOn(t *testing.T) {
	g := newStage(t)
	g.add(1)
	ada, bob := g.process("ada"), g.process("bob")
	o := RotateOptions{IdempotencyKey: "req-1"}
	ada.wire.cut = 4 // the value
	if _, err := ada.Rotate(t.Context(), "openai", g.value(key(2)), o); err == nil {
		t.Fatal("it was not killed")
	}
	if rot, err := bob.Rotate(t.Context(), "openai", g.value(key(2)), o); err != nil || rot.Phase != rotation.PhaseGenerate || !strings.Contains(rot.Waiting, "ada") {
		t.Errorf("while the first may be at it: %+v, %v", rot, err)
	}
	g.pass(holdTime)
	if rot, err := bob.Rotate(t.Context(), "openai", g.value(key(2)), o); err != nil || rot.Phase != rotation.PhaseMigrate || rot.Actor != "ada" {
		t.Errorf("%+v, %v", rot, err)
	}
	g.holds(2, 2)
}

func TestWhatCannotBeRotated(t *testing.T) {
	g := newStage(t)
	ada := g.process("ada")
	for name, c := range map[string]struct {
		name, value string
		o           RotateOptions
		want        string
	}{
		"no such key":        {"openai", key(2), RotateOptions{}, "postern keys add openai"},
		"no name":            {"Open AI", key(2), RotateOptions{}, "key name"},
		"no value":           {"openai", "", RotateOptions{}, "there is none"},
		"no key":             {"openai", "a key with spaces in it", RotateOptions{}, "the key of openai: "},
		"value and managed":  {"openai", key(2), RotateOptions{Managed: true}, "takes no value"},
		"a ramp of nonsense": {"openai", key(2), RotateOptions{Ramp: &rotation.Ramp{{Weight: 120}}}, "ramp[0].weight"},
		"a negative grace":   {"openai", key(2), RotateOptions{Grace: new(-time.Second)}, "grace"},
	} {
		var v *secret.Value
		if c.value != "" {
			v = g.value(c.value)
		}
		if _, err := ada.Rotate(t.Context(), c.name, v, c.o); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	g.add(1)
	if err := g.real.SetMetadata(t.Context(), "provider-keys/prod/px_acme/openai", map[string]string{"environment": "staging"}, 0); err != nil {
		t.Fatal(err)
	}
	if _, err := ada.Rotate(t.Context(), "openai", g.value(key(2)), RotateOptions{}); err == nil || !strings.Contains(err.Error(), "staging") {
		t.Errorf("%v", err)
	}
	if g.record() != nil || len(ada.wire.writes) > 0 {
		t.Errorf("%q", ada.wire.writes)
	}
}

// After the newest version was destroyed there is nothing to replace; the other fields come from the one in use.
func TestRotatingAfterTheNewestWasDestroyed(t *testing.T) {
	for _, forbidden := range []bool{false, true} {
		g := newStage(t)
		g.add(1)
		g.add(2)
		if err := g.real.Destroy(t.Context(), "provider-keys/prod/px_acme/openai", 2); err != nil {
			t.Fatal(err)
		}
		ada := g.process("ada")
		if forbidden {
			ada.Store = unreadable{ada.wire}
		}
		rot, err := ada.Rotate(t.Context(), "openai", g.value(key(3)), RotateOptions{})
		if err != nil || rot.From != 1 || rot.To != 3 {
			t.Fatalf("%+v, %v", rot, err)
		}
		if forbidden {
			if len(rot.Warnings) != 1 || !strings.Contains(rot.Warnings[0], "version 1 may not be read") {
				t.Errorf("%q", rot.Warnings)
			}
			continue
		}
		g.holds(3, 3)
	}
}
