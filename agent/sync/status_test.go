package sync

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/postern-proxy/postern/agent/keyring"
	"github.com/postern-proxy/postern/agent/rotation"
	"github.com/postern-proxy/postern/agent/store"
)

func TestFetch(t *testing.T) {
	inBubble(t, func(r *rig) {
		r.store.write(keyPath, key(1))
		r.store.writeFields(keyPath, map[string]string{"token": key(2), "organization": "org-1"})
		a := r.start(func(o *Options) { o.Source.Field = "token" })
		sec, err := a.Fetch(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer sec.Destroy()
		r.store.write(keyPath, key(3))
		r.store.set(func() { r.store.kv[keyPath].versions[2].Destroyed = true })
		again, err := a.Fetch(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		again.Destroy()
		if sec.Version.Number != 2 || again.Version.Number != 2 || sec.Fields[keyring.KeyField].Len() != len(key(2)) || sec.Fields["token"] != nil || sec.Fields["organization"].Len() != 5 {
			t.Errorf("fetched version %d, %d fields", sec.Version.Number, len(sec.Fields))
		}
	})
}

func TestMetrics(t *testing.T) {
	inBubble(t, func(r *rig) {
		a := r.rotated(nil)
		a.gauge("postern_key_versions", `
# HELP postern_key_versions Versions of a key that the agent did something with, by state.
# TYPE postern_key_versions gauge
postern_key_versions{key="openai",state="active"} 1
postern_key_versions{key="openai",state="compromised"} 0
postern_key_versions{key="openai",state="draining"} 1
postern_key_versions{key="openai",state="pending"} 0
postern_key_versions{key="openai",state="rejected"} 0
postern_key_versions{key="openai",state="retired"} 0
`)
		a.gauge("postern_key_version_active", `
# HELP postern_key_version_active Number of the newest active version; 0 if there is none.
# TYPE postern_key_version_active gauge
postern_key_version_active{key="openai"} 2
`)
		a.gauge("postern_rotations_total", `
# HELP postern_rotations_total What became of versions: promoted, rejected, rolled_back, revoked.
# TYPE postern_rotations_total counter
postern_rotations_total{key="openai",outcome="promoted"} 2
`)
		// A second Loop of the same name, as while a configuration is replaced, does not disturb the figures.
		b := r.start(nil)
		if n, err := testutil.GatherAndCount(r.reg, "postern_key_usable"); err != nil || n != 1 {
			t.Errorf("%d series, %v", n, err)
		}
		a.stop()
		if n, err := testutil.GatherAndCount(r.reg, "postern_key_usable"); err != nil || n != 1 {
			t.Errorf("after the older one ended: %d series, %v", n, err)
		}
		a.gauge("postern_key_usable", `
# HELP postern_key_usable 1 if requests can be served with the key.
# TYPE postern_key_usable gauge
postern_key_usable{key="openai"} 1
`)
		b.stop()
		if n, _ := testutil.GatherAndCount(r.reg, "postern_key_usable"); n != 0 {
			t.Errorf("after both ended: %d series", n)
		}
		if problems, err := testutil.GatherAndLint(r.reg); err != nil || len(problems) > 0 {
			t.Errorf("%v %v", problems, err)
		}
	})
}

func TestReasons(t *testing.T) {
	for want, s := range map[string]Status{
		"":                               {Usable: true, Error: "old"},
		"policy":                         {Error: "policy", Missing: true},
		"it is being loaded and checked": {busy: true, looked: true},
		"version 2 was rejected: dead":   {looked: true, Versions: []VersionStatus{{Number: 2, State: "rejected", Reason: "dead"}}},
		"no version of it is stored":     {looked: true, Missing: true},
		"the store has not answered yet": {},
		"no version of it is usable":     {looked: true, Versions: []VersionStatus{{Number: 1, State: "retired"}}},
		"version 1 was revoked":          {looked: true, Versions: []VersionStatus{{Number: 1, State: "compromised"}}},
	} {
		if got := s.Reason(); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}

func TestKinds(t *testing.T) {
	for want, err := range map[string]error{
		"": nil, "not_found": store.ErrDeleted, "forbidden": store.ErrForbidden, "unauthenticated": store.ErrUnauthenticated,
		"invalid": store.ErrInvalid, "unavailable": context.DeadlineExceeded, "environment": errEnvironment{}, "unusable": errUnusable{errors.New("x")},
		"halted": errHalted{},
	} {
		if err != nil {
			err = fmt.Errorf("path: %w", err)
		}
		if got := kindOf(err); got != want {
			t.Errorf("%v is %q, want %q", err, got, want)
		}
	}
}

func TestStatusShowsTheOpenRotation(t *testing.T) {
	inBubble(t, func(r *rig) {
		is := func(a *agent, want string) {
			t.Helper()
			b, err := json.Marshal(a.Status().Rotation)
			if string(b) != want || err != nil {
				t.Errorf("%s, want %s", b, want)
			}
		}
		r.store.write(keyPath, key(1))
		a := r.start(func(o *Options) { o.Ramp = rotation.Ramp{{Weight: 5, For: time.Minute}} })
		is(a, "null")
		rec := rotation.Record{From: r.id(1), Phase: rotation.PhaseRequested, Ramp: rotation.Ramp{{Weight: 20, For: time.Minute}}, Grace: time.Minute}
		r.store.writeRecord(record, rec)
		pass(6 * time.Second)
		is(a, `{"from":1,"to":0,"weight":0,"phase":"requested"}`)
		rec.Phase, rec.To = rotation.PhaseGenerate, rotation.ID{Number: 2}
		r.store.writeRecord(record, rec)
		r.store.write(keyPath, key(2))
		pass(6 * time.Second)
		is(a, `{"from":1,"to":2,"weight":0,"phase":"generate"}`)
		rec.Phase, rec.StartedAt = rotation.PhaseMigrate, time.Now()
		r.store.writeRecord(record, rec) // To's time of creation is not in it yet
		pass(2 * time.Second)
		is(a, `{"from":1,"to":2,"weight":20,"phase":"migrate"}`)
		pass(time.Minute)
		is(a, `{"from":1,"to":2,"weight":100,"phase":"migrate"}`)
		rec.Phase = rotation.PhaseRevoke
		r.store.writeRecord(record, rec)
		pass(5 * time.Minute)
		is(a, `{"from":1,"to":2,"weight":100,"phase":"revoke"}`) // nothing of it is left here
		rec.Phase, rec.Closed = rotation.PhaseDone, true
		r.store.writeRecord(record, rec)
		pass(6 * time.Second)
		is(a, "null")
		r.store.write(keyPath, key(3)) // by hand
		pass(7 * time.Second)
		is(a, `{"from":2,"to":3,"weight":5}`)
		r.revoke(rotation.Record{}, r.id(3)) // a record that is about no rotation
		pass(7 * time.Second)
		is(a, "null")
	})
}
