package keys

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/postern-proxy/postern/agent/rotation"
	"github.com/postern-proxy/postern/agent/secret"
	"github.com/postern-proxy/postern/agent/store"
)

// forge writes a record as somebody does who may write it and means no good.
func (g *stage) forge(fields map[string]string) {
	g.t.Helper()
	b := map[string][]byte{}
	for name, text := range fields {
		b[name] = []byte(text)
	}
	if _, err := store.PutText(g.t.Context(), g.real, "rotations/prod/px_acme/openai", b, store.Any); err != nil {
		g.t.Fatal(err)
	}
}

func (g *stage) id(n int) string {
	g.t.Helper()
	for _, v := range g.metadata().Versions {
		if v.Number == n {
			return fmt.Sprintf(`{"number":%d,"created":%q}`, n, v.Created.Format(time.RFC3339Nano))
		}
	}
	return fmt.Sprintf(`{"number":%d}`, n)
}

// forgeries are records that nobody would write who means well.
func forgeries() map[string]func(g *stage) map[string]string {
	far, past := "9999-12-31T23:59:59Z", "0001-01-01T00:00:01Z"
	year := `[{"weight":1,"for":"8760h"}]`
	return map[string]func(g *stage) map[string]string{
		"garbage": func(*stage) map[string]string { return map[string]string{"phase": "migrate", "versions": "{{{"} },
		"a phase of its own": func(g *stage) map[string]string {
			return map[string]string{"phase": "party", "from": g.id(1), "to": g.id(2)}
		},
		"numbers below zero": func(g *stage) map[string]string {
			return map[string]string{"phase": "revoke", "from": `{"number":-1}`, "to": `{"number":-2}`, "versions": `[{"number":-1,"state":"retired"}]`}
		},
		"from is to": func(g *stage) map[string]string {
			return map[string]string{"phase": "revoke", "from": g.id(2), "to": g.id(2), "requested_at": past, "started_at": past, "validated": "true"}
		},
		"to is not there": func(g *stage) map[string]string {
			return map[string]string{"phase": "revoke", "from": g.id(2), "to": `{"number":99}`, "requested_at": past, "started_at": past, "validated": "true"}
		},
		"to is not there, and agents are to move": func(g *stage) map[string]string {
			return map[string]string{"phase": "migrate", "from": g.id(2), "to": `{"number":99}`, "requested_at": past, "started_at": past, "validated": "true"}
		},
		"to is not there, and validated": func(g *stage) map[string]string {
			return map[string]string{"phase": "validate", "from": g.id(2), "to": `{"number":99}`, "requested_at": past}
		},
		"attempts below zero": func(g *stage) map[string]string {
			return map[string]string{"phase": "done", "closed": "true", "from": g.id(1), "to": g.id(2), "versions": `[{"number":1,"created":"2020-01-01T00:00:00Z","state":"retired","provider_id":"cred-9","attempts":-7}]`}
		},
		"attempts below zero, at the provider": func(g *stage) map[string]string {
			return map[string]string{"phase": "requested", "managed": "true", "from": g.id(2), "versions": `[{"number":0,"created":"0001-01-01T00:00:00Z","state":"unknown","attempts":-7,"trouble":"x"}]`}
		},
		"a beginning in the far future": func(g *stage) map[string]string {
			return map[string]string{"phase": "migrate", "from": g.id(1), "to": g.id(2), "started_at": far, "ramp": year, "grace": "2562047h47m16.854775807s"}
		},
		"a beginning in the far past": func(g *stage) map[string]string {
			return map[string]string{"phase": "migrate", "from": g.id(1), "to": g.id(2), "started_at": past, "ramp": year, "grace": "2562047h47m16.854775807s"}
		},
		"a ramp beyond all time": func(g *stage) map[string]string {
			return map[string]string{"phase": "migrate", "from": g.id(1), "to": g.id(2), "started_at": far, "ramp": `[{"weight":1,"for":"2562047h"},{"weight":2,"for":"2562047h"}]`}
		},
		"a ramp backwards": func(g *stage) map[string]string {
			return map[string]string{"phase": "migrate", "from": g.id(1), "to": g.id(2), "ramp": `[{"weight":-1,"for":"-2h"}]`}
		},
		"the greatest numbers": func(g *stage) map[string]string {
			return map[string]string{"phase": "generate", "from": `{"number":9223372036854775807}`, "to": `{"number":9223372036854775807}`, "held_until": far, "holder": "x"}
		},
	}
}

// Whatever stands in a record, nobody who reads it falls over, and the version
// that serves is neither ended nor passed over for one that is not there.
func TestForgedRecords(t *testing.T) {
	for name, fields := range forgeries() {
		t.Run(name, func(t *testing.T) {
			g := newStage(t)
			g.add(1)
			g.add(2)
			m := newMaker(g)
			m.fail = func(call string) error {
				if strings.HasPrefix(call, "revoke") || strings.HasPrefix(call, "create") {
					return errors.New("500")
				}
				return nil
			}
			server, ops := g.server("server", m), g.process("ops")
			g.forge(fields(g))
			var a *pod
			if stored, _, err := store.GetText(t.Context(), g.real, "rotations/prod/px_acme/openai"); err != nil {
				t.Fatal(err)
			} else if _, err := rotation.DecodeRecord(stored); err == nil { // else agents do without
				a = g.pod("agent")
			}
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			for range 3 {
				g.pass(time.Minute)
				for _, p := range []*process{server, ops} {
					upright(t, func() { p.Advance(ctx, "openai") })
					upright(t, func() { p.Status(ctx, "openai") })
					upright(t, func() { p.Show(ctx, "openai") })
					upright(t, func() { p.Resume(ctx, "openai", nil) })
				}
				upright(t, func() { ops.Rotate(ctx, "openai", g.value(key(3)), RotateOptions{}) })
				upright(t, func() { ops.Resume(ctx, "openai", g.value(key(3))) })
			}
			if ctx.Err() != nil {
				t.Fatal("somebody hung")
			}
			if a != nil && !a.served || a == nil && len(g.readable()) < 2 {
				t.Errorf("%v", g.readable())
			}
			if a != nil && !slices.ContainsFunc(g.readable(), func(n int) bool { return a.state(n).Usable() }) {
				t.Errorf("the agent serves with nothing that the store has: %v, %s", g.readable(), a.describe())
			}
			// Whatever it is, an emergency revocation gets through it.
			g.agents = nil
			if _, err := ops.Revoke(ctx, "openai", RevokeOptions{All: true, Reason: "enough"}); err != nil {
				t.Errorf("revoke: %v", err)
			}
			if left := g.readable(); len(left) > 0 {
				t.Errorf("after the revocation of all: %v", left)
			}
		})
	}
}

// upright fails the test if f panics.
func upright(t *testing.T, f func()) {
	t.Helper()
	defer func() {
		if x := recover(); x != nil {
			t.Errorf("panic: %v", x)
		}
	}()
	f()
}

// A record so long that no store reads it holds up no revocation.
func TestRevokeOverARecordThatCannotBeRead(t *testing.T) {
	for _, reason := range []error{store.ErrTooLarge, store.ErrInvalid} {
		g := newStage(t)
		g.add(1)
		g.add(2)
		g.forge(map[string]string{"phase": "migrate", "reason": strings.Repeat("x", 900<<10)})
		p := g.process("ada")
		p.Manager.Store = unfit{p.wire, reason}
		if _, err := p.Revoke(t.Context(), "openai", RevokeOptions{Reason: "it leaked"}); err != nil {
			t.Fatal(err)
		}
		r := g.record()
		if len(r.Versions) != 1 || r.Versions[0].State != rotation.Compromised || r.Versions[0].Number != 2 {
			t.Errorf("%+v", r)
		}
		if got := g.readable(); !slices.Equal(got, []int{1}) {
			t.Errorf("%v", got)
		}
	}
}

// unfit is a store that has a record which is longer than it reads.
type unfit struct {
	store.Store
	reason error
}

func (u unfit) Get(ctx context.Context, path string, n int) (*store.Secret, error) {
	sec, err := u.Store.Get(ctx, path, n)
	if err == nil && sec.Fields["reason"].Len() > 1000 {
		sec.Destroy()
		return nil, fmt.Errorf("%s: %w", path, u.reason)
	}
	return sec, err
}

// Whoever may write the record cannot keep a rotation from going on for longer
// than a maker may take.
func TestAClaimForEver(t *testing.T) {
	g := newStage(t)
	g.add(1)
	ada := g.process("ada")
	g.forge(map[string]string{"phase": "requested", "managed": "true", "from": g.id(1), "requested_at": g.clock().Format(time.RFC3339Nano)})
	m := newMaker(g)
	server := g.server("server", m)
	g.forge(map[string]string{
		"phase": "generate", "managed": "true", "from": g.id(1), "to": `{"number":2}`, "holder": "eve", "held_until": "9999-01-01T00:00:00Z",
		"requested_at": g.clock().Format(time.RFC3339Nano),
	})
	if rot, err := server.Advance(t.Context(), "openai"); err != nil || rot.Phase != rotation.PhaseMigrate {
		t.Errorf("%+v, %v", rot, err)
	}
	if rot := g.finish(ada); rot.Phase != rotation.PhaseDone {
		t.Errorf("%+v", rot)
	}
}

// Places far ahead in the record, taken once each by somebody who may append,
// keep nobody from appending, and cost nobody more than a few reads.
func TestSquattersCannotEndTheRecord(t *testing.T) {
	for name, squat := range map[string]func(s *shelf){
		"every power of two": func(s *shelf) {
			for k := range 40 {
				s.put(uint64(1)<<k, "squatted")
			}
		},
		"every power of two, from the end of the record": func(s *shelf) {
			for k := range 40 {
				if at := uint64(37) + uint64(1)<<k; at > 37 && at <= lastPlace {
					s.put(at, "squatted")
				}
			}
		},
		"the next ten thousand": func(s *shelf) {
			for n := range uint64(10_000) {
				s.put(38+n, "squatted")
			}
		},
		"the very last one": func(s *shelf) { s.put(lastPlace, "squatted") },
	} {
		t.Run(name, func(t *testing.T) {
			s := newShelf()
			s.fill(37)
			squat(s)
			for n := range 3 {
				reads := s.counted(func() {
					must(t, NewTrail(s, "prod", fmt.Sprintf("boot%d", n)), happened("key.add"))
				})
				if reads > 600 {
					t.Errorf("appending took %d reads", reads)
				}
			}
		})
	}
}

// What is there under acks, whoever put it there, neither holds up a rotation
// for ever nor breaks one.
func TestForgedAcknowledgements(t *testing.T) {
	g := newStage(t)
	g.add(1)
	a := g.pod("agent")
	ada := g.process("ada")
	put := func(path string, fields map[string]string) {
		t.Helper()
		b := map[string][]byte{}
		for n, v := range fields {
			b[n] = []byte(v)
		}
		if _, err := store.PutText(t.Context(), g.real, path, b, store.Any); err != nil {
			t.Fatal(err)
		}
	}
	const under = "acks/prod/px_acme/e-pods/"
	put(under+"garbage", map[string]string{"at": "yesterday", "keys": "{{{"})
	put(under+"empty", map[string]string{})
	put(under+"eternal", map[string]string{"agent": "eternal", "at": "9999-01-01T00:00:00Z", "keys": `{"openai":{"to":{"number":2},"to_state":"pending","from_state":"active","reason":""}}`})
	put(under+"odd name ü%2F..", map[string]string{"agent": "\x1b[2J\x1b[31mroot\n", "at": "9999-01-01T00:00:00Z", "keys": `{"openai":{"to":{"number":2},"to_state":"pending","from_state":"active","reason":"\u001b]0;x\u0007"}}`})
	put(under+"deep", map[string]string{"agent": "deep", "at": noon.Format(time.RFC3339), "keys": `{"openai":` + strings.Repeat(`[`, 5000) + strings.Repeat(`]`, 5000) + `}`})
	for n := range 100 {
		put(fmt.Sprintf("acks/prod/px_acme/e-%d/many", n), map[string]string{"agent": "many", "at": noon.Format(time.RFC3339Nano), "keys": "{}"})
	}
	rot, err := ada.Rotate(t.Context(), "openai", g.value(key(2)), RotateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if rot = g.finish(ada); rot.Phase != rotation.PhaseDone || a.state(2) != rotation.Active {
		t.Errorf("%+v", rot)
	}
	if b, err := json.Marshal(rot); err != nil || strings.Contains(string(b), "\x1b") {
		t.Errorf("%s, %v", b, err)
	}
}

// Deleted, destroyed, brought back or forgotten by hand in the middle of each
// phase: the rotation ends, or says what it waits for, and somebody serves.
func TestHandsInTheMiddle(t *testing.T) {
	const data, rec = "provider-keys/prod/px_acme/openai", "rotations/prod/px_acme/openai"
	hands := map[string]func(g *stage){
		"the record is removed": func(g *stage) { g.real.Remove(g.t.Context(), rec) },
		"the record's version is destroyed": func(g *stage) {
			if md, err := g.real.Metadata(g.t.Context(), rec); err == nil {
				g.real.Destroy(g.t.Context(), rec, md.Current)
			}
		},
		"the new version is destroyed": func(g *stage) {
			if n := g.readable(); len(n) > 1 {
				g.real.Destroy(g.t.Context(), data, n[len(n)-1])
			}
		},
		"the old version is destroyed": func(g *stage) {
			if n := g.readable(); len(n) > 1 {
				g.real.Destroy(g.t.Context(), data, n[0])
			}
		},
		"the key is removed, and stored anew": func(g *stage) {
			g.real.Remove(g.t.Context(), data)
			g.real.SetMetadata(g.t.Context(), data, map[string]string{"environment": "prod", "provider": "openai"}, 100)
			g.real.Put(g.t.Context(), data, map[string]*secret.Value{Field: g.value(key(8))}, 0)
		},
		"a version is written": func(g *stage) {
			g.real.Patch(g.t.Context(), data, map[string]*secret.Value{Field: g.value(key(7))}, store.Any)
		},
	}
	for what, hand := range hands {
		for write := 1; write <= 12; write++ {
			t.Run(fmt.Sprintf("%s before write %d", what, write), func(t *testing.T) {
				g := newHeapStage(t)
				g.add(1)
				g.pod("agent")
				p := g.process("ada")
				done := false
				n := 0
				p.wire.before = func(what string) error {
					// Between the last look and the end of the old version there is no room for a check.
					if n++; n >= write && !done && !strings.HasPrefix(what, "destroy") {
						done = true
						hand(g)
					}
					return nil
				}
				ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
				defer cancel()
				p.Rotate(ctx, "openai", g.value(key(2)), RotateOptions{})
				for range 200 {
					rot, err := p.Advance(ctx, "openai")
					if err != nil && !errors.Is(err, store.ErrConflict) && !errors.Is(err, store.ErrNotFound) {
						t.Fatalf("%v", err)
					}
					if rot.Closed || rot.Phase == rotation.PhaseNone || rot.Next.IsZero() {
						break
					}
					g.pass(min(max(rot.Next.Sub(g.clock()), time.Second), time.Minute))
				}
				if rot, err := p.Resume(ctx, "openai", nil); err == nil && !rot.Closed && rot.Phase != rotation.PhaseNone {
					t.Errorf("still open: %+v", rot)
				}
				if len(g.readable()) == 0 {
					t.Error("the store has no version left")
				}
				// And the next rotation is none the worse.
				rot, err := p.Rotate(ctx, "openai", g.value(key(3)), RotateOptions{})
				if err != nil {
					t.Fatalf("the next one: %+v, %v", rot, err)
				}
				if rot = g.finish(p); rot.Phase != rotation.PhaseDone {
					t.Errorf("the next one: %+v", rot)
				}
			})
		}
	}
}

// A halt that is none, or was put there beforehand, holds up no rotation.
func TestForgedHalts(t *testing.T) {
	for name, fields := range map[string]map[string]string{
		"garbage":               {"to": "{{{"},
		"of no version":         {"reason": "x"},
		"of another version":    {"to": `{"number":2,"created":"2020-01-01T00:00:00Z"}`, "reason": "x"},
		"of a number alone":     {"to": `{"number":2}`, "reason": "x"},
		"of the version in use": {"to": `{"number":1,"created":"2020-01-01T00:00:00Z"}`, "reason": "x"},
	} {
		t.Run(name, func(t *testing.T) {
			g := newHeapStage(t)
			g.add(1)
			a := g.pod("agent")
			for _, n := range []int{1, 2} {
				b := map[string][]byte{}
				for f, text := range fields {
					b[f] = []byte(text)
				}
				if _, err := store.PutText(t.Context(), g.real, fmt.Sprintf("halts/prod/px_acme/openai-%d", n), b, 0); err != nil {
					t.Fatal(err)
				}
			}
			p := g.process("ada")
			if _, err := p.Rotate(t.Context(), "openai", g.value(key(2)), RotateOptions{}); err != nil {
				t.Fatal(err)
			}
			if rot := g.finish(p); rot.Phase != rotation.PhaseDone || a.state(2) != rotation.Active {
				t.Errorf("%+v", rot)
			}
		})
	}
}

// A halt against the only version there is takes it from nobody, be it an agent
// that serves with it or one that starts.
func TestAHaltAgainstTheOnlyVersion(t *testing.T) {
	g := newHeapStage(t)
	g.strict = true
	g.add(1)
	a := g.pod("agent")
	g.veto(rotation.ID{Number: 1, Created: g.metadata().Versions[0].Created}, "forged")
	g.pass(time.Minute)
	if !a.served || a.state(1) != rotation.Active {
		t.Errorf("%s", a.describe())
	}
}

// A key of which nobody could tell that it is one is not written down in clear
// beside itself either.
func TestTheKeyBesideItself(t *testing.T) {
	g := newHeapStage(t)
	g.add(1)
	p := g.process("ada")
	plain := strings.Repeat("0a1b2c3d", 6)
	for _, o := range []RotateOptions{{Reason: "was " + plain + "."}, {IdempotencyKey: plain}} {
		if _, err := p.Rotate(t.Context(), "openai", g.value(plain), o); err == nil || strings.Contains(err.Error(), plain) {
			t.Errorf("%+v: %v", o, err)
		}
	}
	for _, m := range []Meta{{Label: "prod-" + plain}, {Provider: plain}, {Service: plain}} {
		if _, err := p.Add(t.Context(), "other", g.value(plain), m); err == nil || strings.Contains(err.Error(), plain) {
			t.Errorf("%+v: %v", m, err)
		}
	}
	if len(p.wire.writes) > 0 {
		t.Errorf("something was written: %q", p.wire.writes)
	}
}
