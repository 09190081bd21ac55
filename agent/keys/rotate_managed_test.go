package keys

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/postern-proxy/postern/agent/issuer"
	"github.com/postern-proxy/postern/agent/rotation"
)

const firstLabel = "postern prod px_acme openai 2"

// requested is a managed rotation that an operator asked for.
func requested(t *testing.T) (*stage, *maker) {
	t.Helper()
	g := newHeapStage(t)
	g.add(1)
	ada := g.process("ada")
	rot, err := ada.Rotate(t.Context(), "openai", nil, RotateOptions{Managed: true, Reason: "scheduled"})
	if err != nil || rot.Phase != rotation.PhaseRequested || !rot.Managed || rot.To != 0 || !strings.Contains(rot.Waiting, "postern server") || !rot.Next.IsZero() {
		t.Fatalf("%+v, %v", rot, err)
	}
	if rot, err = ada.Advance(t.Context(), "openai"); err != nil || rot.Phase != rotation.PhaseRequested {
		t.Fatalf("%+v, %v", rot, err)
	}
	return g, newMaker(g)
}

// made rotates once, so that version 2 is one that the provider knows.
func made(t *testing.T) (*stage, *maker, *process) {
	t.Helper()
	g, m := requested(t)
	s := g.server("server", m)
	if rot := g.finish(s); rot.Phase != rotation.PhaseDone {
		t.Fatalf("%+v", rot)
	}
	return g, m, s
}

func TestAManagedRotation(t *testing.T) {
	g, m := requested(t)
	g.strict = true
	one := g.pod("one")
	s := g.server("server", m)
	rot, err := s.Advance(t.Context(), "openai")
	if err != nil || rot.Phase != rotation.PhaseMigrate || rot.To != 2 || rot.From != 1 || rot.Actor != "ada" {
		t.Fatalf("%+v, %v", rot, err)
	}
	r := g.record()
	if v := r.Version(r.To); v.ProviderID != "cred-100" || !r.Validated || r.Holder != "" {
		t.Errorf("%+v", r)
	}
	g.holds(2, 100)
	if want := []string{"sweep " + firstLabel, "create " + firstLabel + " instead of "}; !slices.Equal(m.calls, want) {
		t.Errorf("%q, want %q", m.calls, want)
	}
	if rot = g.finish(s); rot.Phase != rotation.PhaseDone || one.state(2) != rotation.Active || !slices.Equal(g.readable(), []int{2}) {
		t.Errorf("%+v, readable %v", rot, g.readable())
	}
	// The next one ends this one at the provider too.
	if _, err := s.Rotate(t.Context(), "openai", nil, RotateOptions{Managed: true}); err != nil {
		t.Fatal(err)
	}
	if rot = g.finish(s); rot.Phase != rotation.PhaseDone || !slices.Equal(m.living(), []string{"cred-101"}) {
		t.Errorf("%+v, living %v", rot, m.living())
	}
	if want := "create postern prod px_acme openai 3 instead of cred-100"; !slices.Contains(m.calls, want) {
		t.Errorf("%q lacks %q", m.calls, want)
	}
	r = g.record()
	if v := r.Version(r.From); v.ProviderID != "cred-100" || !v.Revoked || !v.Destroyed || v.State != rotation.Retired {
		t.Errorf("%+v", v)
	}
}

// Of two servers one makes the credential.
func TestTwoServers(t *testing.T) {
	g, m := requested(t)
	var wg sync.WaitGroup
	for n := range 4 {
		s := g.server(fmt.Sprint("server-", n), m)
		wg.Go(func() {
			if _, err := s.Advance(t.Context(), "openai"); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if n := g.metadata().Current; n != 2 || len(m.living()) != 1 {
		t.Errorf("%d versions, living %v, %q", n, m.living(), m.calls)
	}
	if r := g.record(); r.Phase != rotation.PhaseMigrate && r.Phase != rotation.PhaseValidate {
		t.Errorf("%+v", r)
	}
}

// A server is killed before or after each of its writes; the next one takes
// over, and no credential is left behind that nobody uses.
func TestAServerIsKilled(t *testing.T) {
	g, m := requested(t)
	s := g.server("server-0", m)
	if rot := g.finish(s); rot.Phase != rotation.PhaseDone {
		t.Fatalf("%+v", rot)
	}
	writes := slices.Clone(s.wire.writes)
	t.Logf("%d writes: %s", len(writes), strings.Join(writes, "; "))
	for k := range writes {
		for _, after := range []bool{false, true} {
			t.Run(fmt.Sprintf("%d %s/%v", k+1, strings.ReplaceAll(writes[k], "/", "_"), after), func(t *testing.T) {
				t.Parallel()
				g, m := requested(t)
				g.strict = true
				g.pod("one")
				s := g.server("server-0", m)
				s.wire.cut, s.wire.after = k+1, after
				for range 100 {
					if rot, err := s.Advance(t.Context(), "openai"); err != nil || rot.Closed {
						break
					}
					g.pass(20 * time.Second)
				}
				next := g.server("server-1", m)
				if r := g.record(); r.Phase == rotation.PhaseGenerate {
					if rot, err := next.Advance(t.Context(), "openai"); err != nil || rot.Phase != rotation.PhaseGenerate || !strings.Contains(rot.Waiting, "server-0") {
						t.Errorf("nobody waits for the one who holds it: %+v, %v", rot, err)
					}
				}
				rot := g.finish(next)
				if rot.Phase != rotation.PhaseDone || !slices.Equal(g.readable(), []int{2}) {
					t.Errorf("%+v, readable %v", rot, g.readable())
				}
				r := g.record()
				if id := r.Version(r.To).ProviderID; !slices.Equal(m.living(), []string{id}) {
					t.Errorf("living %v, in use %q: %q", m.living(), id, m.calls)
				}
			})
		}
	}
}

// Between the provider's answer and the first write after it a credential exists that nobody noted.
func TestKilledRightAfterTheCredentialWasMade(t *testing.T) {
	g, m := requested(t)
	s := g.server("server-0", m)
	m.created = func() {
		s.wire.mu.Lock()
		s.wire.dead = true
		s.wire.mu.Unlock()
		m.fail = func(string) error { return issuer.ErrLimited } // a dead process revokes nothing
	}
	if _, err := s.Advance(t.Context(), "openai"); err == nil {
		t.Fatal("it was not killed")
	}
	m.created, m.fail = nil, nil
	if !slices.Equal(m.living(), []string{"cred-100"}) {
		t.Fatalf("%v", m.living())
	}
	m.calls = nil
	g.pass(holdTime)
	rot := g.finish(g.server("server-1", m))
	if rot.Phase != rotation.PhaseDone || !slices.Equal(m.living(), []string{"cred-101"}) || m.calls[0] != "sweep "+firstLabel {
		t.Errorf("%+v, living %v, %q", rot, m.living(), m.calls)
	}
	g.holds(2, 101)
}

// A provider that is busy is asked again, ever more rarely, and everybody sees why it takes so long.
func TestABusyProvider(t *testing.T) {
	g, m := requested(t)
	m.fail = func(call string) error {
		if strings.HasPrefix(call, "create ") {
			return fmt.Errorf("429: %w", issuer.ErrLimited)
		}
		return nil
	}
	s := g.server("server", m)
	var waits []time.Duration
	for range 9 {
		rot, err := s.Advance(t.Context(), "openai")
		if err != nil || rot.Phase != rotation.PhaseGenerate || !strings.Contains(rot.Waiting, "429: provider busy") {
			t.Fatalf("%+v, %v", rot, err)
		}
		wait := rot.Next.Sub(g.clock()).Round(time.Second)
		waits = append(waits, wait)
		made := len(m.calls)
		if _, err := s.Advance(t.Context(), "openai"); err != nil || len(m.calls) != made {
			t.Errorf("it is asked before its time: %v", err)
		}
		g.pass(wait + time.Second)
	}
	if want := []time.Duration{30 * time.Second, time.Minute, 2 * time.Minute, 4 * time.Minute, 8 * time.Minute, 16 * time.Minute, 32 * time.Minute, time.Hour, time.Hour}; !slices.Equal(waits, want) {
		t.Errorf("%v, want %v", waits, want)
	}
	if rot, err := g.process("ada").Status(t.Context(), "openai"); err != nil || !strings.Contains(rot.Waiting, "postern server") {
		t.Errorf("%+v, %v", rot, err)
	}
	m.fail = nil
	if rot := g.finish(s); rot.Phase != rotation.PhaseDone || len(rot.Warnings) > 0 {
		t.Errorf("%+v", rot)
	}
}

func TestAProviderThatRefuses(t *testing.T) {
	for _, reason := range []error{issuer.ErrRefused, issuer.ErrUnsupported} {
		g, m := requested(t)
		m.fail = func(call string) error {
			if strings.HasPrefix(call, "create ") {
				return fmt.Errorf("issuers[0].admin_key: %w", reason)
			}
			return nil
		}
		s := g.server("server", m)
		rot, err := s.Advance(t.Context(), "openai")
		if err != nil || rot.Phase != rotation.PhaseAbandoned || !rot.Closed || !strings.Contains(rot.Reason, "issuers[0].admin_key: "+reason.Error()) {
			t.Errorf("%+v, %v", rot, err)
		}
		if told := s.book.told(); !slices.Equal(told, []string{"rotation.generate intent openai 2", "rotation.generate failed openai 2", "rotation.close failed openai 2"}) {
			t.Errorf("%q", told)
		}
		if rot, err = g.process("ada").Rotate(t.Context(), "openai", g.value(key(2)), RotateOptions{}); err != nil || rot.To != 2 {
			t.Errorf("%+v, %v", rot, err)
		}
	}
}

func TestNoIssuer(t *testing.T) {
	g, _ := requested(t)
	s := g.process("server")
	s.Issuer = func(string) issuer.Issuer { return nil }
	if rot, err := s.Advance(t.Context(), "openai"); err != nil || rot.Phase != rotation.PhaseAbandoned || !strings.Contains(rot.Reason, "no issuer") {
		t.Errorf("%+v, %v", rot, err)
	}
	if _, err := s.Rotate(t.Context(), "openai", nil, RotateOptions{Managed: true}); err == nil || !strings.Contains(err.Error(), `no issuer for the provider "openai"`) {
		t.Errorf("%v", err)
	}
}

// A request that no server takes up can be given up, but not at once.
func TestNoServer(t *testing.T) {
	g, _ := requested(t)
	ada := g.process("ada")
	if _, err := ada.Resume(t.Context(), "openai", g.value(key(2))); err == nil || !strings.Contains(err.Error(), "is managed") {
		t.Errorf("%v", err)
	}
	if rot, err := ada.Resume(t.Context(), "openai", nil); err != nil || rot.Phase != rotation.PhaseRequested {
		t.Errorf("%+v, %v", rot, err)
	}
	g.pass(11 * time.Minute)
	if rot, err := ada.Status(t.Context(), "openai"); err != nil || !rot.Overdue {
		t.Errorf("%+v, %v", rot, err)
	}
	if rot, err := ada.Resume(t.Context(), "openai", nil); err != nil || rot.Phase != rotation.PhaseAbandoned || !strings.Contains(rot.Reason, "no server took it up") {
		t.Errorf("%+v, %v", rot, err)
	}
}

// Somebody writes a version by hand while the credential is made: it is of no use any more.
func TestAManagedRotationThatIsOutrun(t *testing.T) {
	for _, busy := range []bool{false, true} {
		g, m := requested(t)
		m.created = func() {
			g.add(7)
			if busy {
				m.fail = func(call string) error {
					if strings.HasPrefix(call, "revoke ") {
						return issuer.ErrLimited
					}
					return nil
				}
			}
		}
		s := g.server("server", m)
		rot, err := s.Advance(t.Context(), "openai")
		if err != nil || rot.Phase != rotation.PhaseAbandoned || !strings.Contains(rot.Reason, "by hand") {
			t.Errorf("%+v, %v", rot, err)
		}
		g.holds(2, 7)
		if busy {
			if len(rot.Warnings) != 1 || !strings.Contains(rot.Warnings[0], "not revoked at the provider") {
				t.Errorf("%q", rot.Warnings)
			}
			m.fail = nil
			g.pass(time.Minute)
			if rot, err = s.Advance(t.Context(), "openai"); err != nil || len(rot.Warnings) > 0 {
				t.Errorf("%+v, %v", rot, err)
			}
		}
		if len(m.living()) > 0 {
			t.Errorf("living %v", m.living())
		}
	}
}

// A provider may take a moment to know its own new credential.
func TestAManagedVersionThatIsNotKnownYet(t *testing.T) {
	g, m := requested(t)
	g.says(100, rotation.VerdictDead)
	rot, err := g.server("server", m).Advance(t.Context(), "openai")
	if err != nil || rot.Phase != rotation.PhaseValidate || !strings.Contains(rot.Waiting, "new credential") || rot.Next.IsZero() {
		t.Errorf("%+v, %v", rot, err)
	}
	g.says(100, rotation.VerdictLive)
	g.pass(rot.Next.Sub(g.clock()))
	if rot, err = g.server("another", m).Advance(t.Context(), "openai"); err != nil || rot.Phase != rotation.PhaseMigrate || len(m.living()) != 1 {
		t.Errorf("%+v, %v; living %v", rot, err, m.living())
	}
}

// A credential that the provider itself goes on refusing is ended there.
func TestAManagedVersionThatIsRejected(t *testing.T) {
	g, m := requested(t)
	g.says(100, rotation.VerdictDead)
	s := g.server("server", m)
	rot, err := s.Advance(t.Context(), "openai")
	for err == nil && !rot.Closed && !rot.Next.IsZero() {
		g.pass(rot.Next.Sub(g.clock()))
		rot, err = s.Advance(t.Context(), "openai")
	}
	if err != nil || rot.Phase != rotation.PhaseRejected || len(m.living()) > 0 || !slices.Equal(g.readable(), []int{1, 2}) {
		t.Errorf("%+v, %v; living %v, readable %v", rot, err, m.living(), g.readable())
	}
}

// The old credential is revoked at the provider until that succeeds, visibly, and nothing else waits for it.
func TestARevocationAtTheProviderThatFails(t *testing.T) {
	g, m, s := made(t)
	busy := errors.New("500: internal error")
	m.fail = func(call string) error {
		if strings.HasPrefix(call, "revoke ") {
			return fmt.Errorf("%w: %w", busy, issuer.ErrLimited)
		}
		return nil
	}
	if _, err := s.Rotate(t.Context(), "openai", nil, RotateOptions{Managed: true}); err != nil {
		t.Fatal(err)
	}
	var rot Rotation
	var err error
	for range 60 {
		if rot, err = s.Advance(t.Context(), "openai"); err != nil || rot.Phase == rotation.PhaseRevoke {
			break
		}
		g.pass(20 * time.Second)
	}
	if err != nil || rot.Closed || !strings.Contains(rot.Waiting, "500: internal error") || rot.Next.IsZero() {
		t.Fatalf("%+v, %v", rot, err)
	}
	if rot, err = g.process("ada").Advance(t.Context(), "openai"); err != nil || !strings.Contains(rot.Waiting, "`postern server`, which revokes version 2 at the provider (the last try failed: 500") {
		t.Errorf("%+v, %v", rot, err)
	}
	// The next rotation begins although that is not done.
	if _, err := s.Rotate(t.Context(), "openai", nil, RotateOptions{Managed: true}); err != nil {
		t.Fatal(err)
	}
	for range 60 {
		if rot, err = s.Advance(t.Context(), "openai"); err != nil || rot.Phase == rotation.PhaseRevoke {
			break
		}
		g.pass(20 * time.Second)
	}
	if len(rot.Warnings) != 1 || !strings.Contains(rot.Warnings[0], "version 2 is not revoked at the provider") || len(m.living()) != 3 {
		t.Errorf("%+v, living %v", rot, m.living())
	}
	m.fail = nil
	rot = g.finish(s)
	g.pass(time.Hour)
	rot, err = s.Advance(t.Context(), "openai")
	if err != nil || rot.Phase != rotation.PhaseDone || !slices.Equal(m.living(), []string{"cred-102"}) || len(rot.Warnings) > 0 || !slices.Equal(g.readable(), []int{4}) {
		t.Errorf("%+v, %v; living %v, readable %v", rot, err, m.living(), g.readable())
	}
}

// Some vendors have no request for it.
func TestARevocationThatTheProviderDoesNotHave(t *testing.T) {
	g, m, s := made(t)
	m.fail = func(call string) error {
		if strings.HasPrefix(call, "revoke ") {
			return issuer.ErrUnsupported
		}
		return nil
	}
	if _, err := s.Rotate(t.Context(), "openai", nil, RotateOptions{Managed: true}); err != nil {
		t.Fatal(err)
	}
	rot := g.finish(s)
	if rot.Phase != rotation.PhaseDone || !slices.Equal(g.readable(), []int{3}) || len(rot.Warnings) != 1 || !strings.Contains(rot.Warnings[0], "cred-100: do it there by hand") {
		t.Errorf("%+v, readable %v", rot, g.readable())
	}
}

// A credential is not made without its entry in the record of operations.
func TestNothingIsMadeWithoutItsEntry(t *testing.T) {
	g, m := requested(t)
	s := g.server("server", m)
	full := errors.New("disk full")
	s.wire.before = func(what string) error {
		if what == "audit rotation.generate intent" {
			return full
		}
		return nil
	}
	rot, err := s.Advance(t.Context(), "openai")
	if !errors.Is(err, full) || rot.Phase != rotation.PhaseRequested || len(m.calls) > 0 || g.record().Phase != rotation.PhaseRequested {
		t.Errorf("%+v, %v; %q", rot, err, m.calls)
	}
}

// The record changes while the credential is made: it is made anew, and the first one ends.
func TestARecordThatChangesWhileTheCredentialIsMade(t *testing.T) {
	g, m := requested(t)
	g.add(2) // so that there is one to be left
	once := false
	m.created = func() {
		if !once {
			once = true
			if _, err := g.process("bob").Revoke(t.Context(), "openai", RevokeOptions{Versions: []int{1}}); err != nil {
				t.Error(err)
			}
		}
	}
	s := g.server("server", m)
	rot, err := s.Advance(t.Context(), "openai")
	if err != nil || rot.Phase != rotation.PhaseMigrate || rot.To != 3 || !slices.Equal(m.living(), []string{"cred-101"}) {
		t.Errorf("%+v, %v; living %v", rot, err, m.living())
	}
	if !slices.Contains(m.calls, "revoke cred-100") {
		t.Errorf("%q", m.calls)
	}
}
