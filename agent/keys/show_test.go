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

// A name is a single path element that cannot lead elsewhere, and what
// providers[].key of the configuration may be.
func TestNames(t *testing.T) {
	o := newOperator(t)
	for _, name := range []string{"openai", "a", "7", "azure-openai", "house_llm", "x" + strings.Repeat("-", 62)} {
		if err := CheckName(name); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, name := range []string{
		"", "OpenAI", "-a", "_a", "a/b", "../px_other/openai", "..", ".", "a.b", "a b", "a\n", "a\x00", "ä", "a%2fb", "x" + strings.Repeat("y", 63),
	} {
		_, err := o.Add(t.Context(), name, o.value(key(1)), Meta{})
		if err == nil {
			t.Errorf("%q was stored", name)
		}
		if _, err := o.Show(t.Context(), name); err == nil || errors.Is(err, store.ErrNotFound) {
			t.Errorf("%q was looked up: %v", name, err)
		}
	}
	if names, err := o.store.List(t.Context(), "provider-keys"); err != nil || len(names) != 0 {
		t.Errorf("%v, %v", names, err)
	}
}

func TestShowTellsVersionsApart(t *testing.T) {
	o := newOperator(t)
	for n := range 5 {
		o.add("openai", n, Meta{Service: "checkout"})
	}
	// The newest was soft-deleted, as only Vault can; the second is destroyed.
	if err := o.store.Destroy(t.Context(), o.Scope.Path("openai"), 2); err != nil {
		t.Fatal(err)
	}
	deleting := &Manager{Store: deleted{o.store}, Scope: o.Scope}
	i, err := deleting.Show(t.Context(), "openai")
	if err != nil {
		t.Fatal(err)
	}
	var states []string
	for _, v := range i.Versions {
		states = append(states, fmt.Sprint(v.Number, " ", v.State))
	}
	if want := []string{"5 deleted", "4 active", "3 older", "2 destroyed", "1 older"}; !slices.Equal(states, want) {
		t.Errorf("%q, want %q", states, want)
	}
	if c := i.Current(); c.Number != 4 || c.Created.IsZero() {
		t.Errorf("active is %+v", c)
	}
	if i.ID != "prod.px_acme.openai" || i.Environment != "prod" || i.ProxyID != "px_acme" || i.Provider != "openai" || i.Label != "prod-openai" || i.Service != "checkout" {
		t.Errorf("%+v", i)
	}
	b, err := json.Marshal(i)
	if err != nil || strings.Contains(string(b), "sk-test") {
		t.Errorf("%s, %v", b, err)
	}
	if (Info{Versions: []Version{{Number: 1, State: "destroyed"}}}).Current() != (Version{}) {
		t.Error("a destroyed version takes requests")
	}
}

// deleted is a store whose newest version is soft-deleted.
type deleted struct{ store.Store }

func (d deleted) Metadata(ctx context.Context, path string) (*store.Metadata, error) {
	md, err := d.Store.Metadata(ctx, path)
	if err == nil {
		md.Versions[len(md.Versions)-1].Deleted = time.Now()
	}
	return md, err
}

func TestAKeyThatIsNotThere(t *testing.T) {
	o := newOperator(t)
	_, err := o.Show(t.Context(), "openai")
	if !errors.Is(err, store.ErrNotFound) || err.Error() != "there is no key openai in prod, px_acme; `postern keys list` shows what there is" {
		t.Errorf("%v", err)
	}
	if infos, err := o.List(t.Context()); err != nil || infos == nil || len(infos) != 0 {
		t.Errorf("%v, %v: a list without keys is a list", infos, err)
	}
}

// List shows the keys of the scope by name: those that `keys add` can make, and no other scope's.
func TestList(t *testing.T) {
	o := newOperator(t)
	for _, name := range []string{"openai", "anthropic", "house_llm"} {
		o.add(name, 1, Meta{})
	}
	for _, path := range []string{"provider-keys/prod/px_acme/Not-Ours", "provider-keys/prod/px_acme/folder/openai", "provider-keys/prod/px_other/gemini", "provider-keys/dev/px_acme/cohere"} {
		if _, err := o.store.Put(t.Context(), path, map[string]*secret.Value{Field: o.value(key(1))}, 0); err != nil {
			t.Fatal(err)
		}
	}
	infos, err := o.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, i := range infos {
		names = append(names, i.Name)
		if i.Current().Number != 1 {
			t.Errorf("%+v", i)
		}
	}
	if want := []string{"anthropic", "house_llm", "openai"}; !slices.Equal(names, want) {
		t.Errorf("%q, want %q", names, want)
	}
}

// A key that is removed between the listing and the look at it is left out; any
// other trouble is that key's.
func TestAListThatIsOvertaken(t *testing.T) {
	o := newOperator(t)
	o.add("openai", 1, Meta{})
	o.add("anthropic", 2, Meta{})
	for reason, want := range map[error]int{store.ErrNotFound: 1, store.ErrForbidden: 2, store.ErrUnavailable: 2} {
		o.store.read = func(method, path string) error {
			if method == "metadata" && path == o.Scope.Path("openai") {
				return fmt.Errorf("metadata: %w", reason)
			}
			return nil
		}
		infos, err := o.List(t.Context())
		if err != nil || len(infos) != want || infos[0].Name != "anthropic" || infos[0].Error != "" || infos[0].Current().Number != 1 {
			t.Fatalf("%v: %+v, %v", reason, infos, err)
		}
		if want == 2 && (infos[1].ID != "prod.px_acme.openai" || infos[1].Error != "metadata: "+reason.Error() || infos[1].Versions == nil) {
			t.Errorf("%+v", infos[1])
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	o.store.read = func(method, _ string) error {
		if method == "metadata" {
			cancel()
		}
		return nil
	}
	if infos, err := o.List(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("a list that was broken off: %+v", infos)
	}
}

// A server looks after every scope of its environment, and no other one's.
func TestScopes(t *testing.T) {
	o := newOperator(t)
	o.add("openai", 1, Meta{})
	o.as("prod", "px_zoo").add("gemini", 2, Meta{})
	o.as("staging", "px_other").add("openai", 4, Meta{})
	if scopes, err := o.Scopes(t.Context()); err != nil || !slices.Equal(scopes, []Scope{{"prod", "px_acme"}, {"prod", "px_zoo"}}) {
		t.Errorf("%v, %v", scopes, err)
	}
}

// What the caller may not read is left out, and said.
func TestShowWithoutTheRightToLookAtRotations(t *testing.T) {
	o := newOperator(t)
	o.add("openai", 1, Meta{})
	for what, path := range map[string]string{"rotations": "rotations/", "halts": "halts/"} {
		for reason, fails := range map[error]bool{store.ErrForbidden: false, store.ErrUnavailable: true} {
			o.store.read = func(_, p string) error {
				if strings.HasPrefix(p, path) {
					return fmt.Errorf("%s: %w", p, reason)
				}
				return nil
			}
			i, err := o.Show(t.Context(), "openai")
			if fails != (err != nil) {
				t.Errorf("%s, %v: %v", what, reason, err)
			}
			if !fails && (i.Current().Number != 1 || len(i.Notes) != 1 || !strings.HasPrefix(i.Notes[0], what)) {
				t.Errorf("%s: %+v", what, i)
			}
		}
	}
}

func TestShowAKeyOfAnotherEnvironment(t *testing.T) {
	o := newOperator(t)
	o.add("openai", 1, Meta{})
	if err := o.store.SetMetadata(t.Context(), o.Scope.Path("openai"), map[string]string{"environment": "staging"}, 0); err != nil {
		t.Fatal(err)
	}
	i, err := o.Show(t.Context(), "openai")
	if err != nil || len(i.Notes) != 1 || i.Notes[0] != `openai belongs to environment "staging", not to "prod": agents refuse it` {
		t.Errorf("%+v, %v", i.Notes, err)
	}
}

// What a halt says counts before anybody wrote it into the record.
func TestShowKnowsHalts(t *testing.T) {
	o := newOperator(t)
	o.add("openai", 1, Meta{})
	o.add("openai", 2, Meta{})
	halt := func(n int, h rotation.Halt) {
		fields, err := h.Encode()
		if err == nil {
			_, err = store.PutText(t.Context(), o.store, fmt.Sprint("halts/prod/px_acme/openai-", n), fields, store.Any)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	states := func() (s []string) {
		i, err := o.Show(t.Context(), "openai")
		if err != nil {
			t.Fatal(err)
		}
		for _, v := range i.Versions {
			s = append(s, strings.TrimSpace(fmt.Sprint(v.Number, " ", v.State, " ", v.Weight, " ", v.Reason)))
		}
		return append(s, i.Notes...)
	}
	old := o.id("openai", 2)
	old.Created = old.Created.Add(-time.Hour)
	halt(2, rotation.Halt{To: old, Reason: "of a key that is gone"})
	if got := states(); !slices.Equal(got, []string{"2 active 100", "1 older 0"}) {
		t.Errorf("%q", got)
	}
	halt(2, rotation.Halt{To: o.id("openai", 2), Reason: "requests were refused"})
	if got := states(); !slices.Equal(got, []string{"2 rejected 0 requests were refused", "1 active 100"}) {
		t.Errorf("%q", got)
	}
	halt(1, rotation.Halt{To: o.id("openai", 1), Reason: "these too"})
	if got := states(); !slices.Equal(got, []string{"2 rejected 0 requests were refused", "1 rejected 0 these too"}) {
		t.Errorf("%q", got)
	}
	if _, err := store.PutText(t.Context(), o.store, "halts/prod/px_acme/openai-2", map[string][]byte{"to": []byte("7")}, store.Any); err != nil {
		t.Fatal(err)
	}
	if got := states(); len(got) != 3 || got[0] != "2 active 100" || !strings.Contains(got[2], "the halt cannot be read") {
		t.Errorf("%q", got)
	}
}

// States are what the record, the halts and the time say, as for every agent.
func TestStatesOfARotation(t *testing.T) {
	now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	created := func(n int) time.Time { return now.Add(time.Duration(n-10) * time.Hour) }
	id := func(n int) rotation.ID { return rotation.ID{Number: n, Created: created(n)} }
	ramp := rotation.Ramp{{Weight: 1, For: time.Minute}, {Weight: 50, For: time.Minute}}
	rec := func(phase rotation.Phase, started time.Duration) *rotation.Record {
		r := &rotation.Record{Phase: phase, From: id(2), To: id(3), Ramp: ramp, Grace: time.Minute, StartedAt: now.Add(-started)}
		if started == 0 {
			r.StartedAt = time.Time{}
		}
		r.Closed = slices.Contains([]rotation.Phase{rotation.PhaseDone, rotation.PhaseRejected, rotation.PhaseRolledBack, rotation.PhaseAbandoned}, phase)
		return r
	}
	with := func(r *rotation.Record, vs ...rotation.VersionRecord) *rotation.Record {
		r.Versions = vs
		return r
	}
	unwritten := rec(rotation.PhaseGenerate, 0)
	unwritten.To = rotation.ID{Number: 4}
	ahead := rec(rotation.PhaseValidate, 0)
	ahead.To.Created = time.Time{}
	young := rec(rotation.PhaseAbandoned, 0)
	young.From, young.To = id(1), rotation.ID{Number: 3}
	for name, c := range map[string]struct {
		record *rotation.Record
		gone   []int
		ramp   rotation.Ramp
		want   string
	}{
		"no record":                      {nil, nil, nil, "3 active 100, 2 older 0, 1 older 0"},
		"no record, a configured ramp":   {nil, nil, rotation.Ramp{{Weight: 10, For: 8 * time.Hour}}, "3 active 10, 2 active 90, 1 older 0"},
		"not written yet":                {unwritten, nil, nil, "3 active 100, 2 older 0, 1 older 0"},
		"written, and the record behind": {ahead, nil, nil, "3 pending 0, 2 active 100, 1 older 0"},
		"being validated":                {rec(rotation.PhaseValidate, 0), nil, nil, "3 pending 0, 2 active 100, 1 older 0"},
		"about to start":                 {rec(rotation.PhaseMigrate, -time.Second), nil, nil, "3 pending 0, 2 active 100, 1 older 0"},
		"first step":                     {rec(rotation.PhaseMigrate, time.Second), nil, nil, "3 active 1, 2 active 99, 1 older 0"},
		"second step":                    {rec(rotation.PhaseMigrate, 61*time.Second), nil, nil, "3 active 50, 2 active 50, 1 older 0"},
		"ramp over":                      {rec(rotation.PhaseMigrate, 2*time.Minute), nil, nil, "3 active 100, 2 draining 0, 1 older 0"},
		"grace over":                     {rec(rotation.PhaseRevoke, 3*time.Minute), nil, nil, "3 active 100, 2 retired 0, 1 older 0"},
		"done":                           {rec(rotation.PhaseDone, time.Hour), []int{2}, nil, "3 active 100, 2 destroyed 0, 1 older 0"},
		"rejected":                       {with(rec(rotation.PhaseRejected, 0), rotation.VersionRecord{ID: id(3), State: rotation.Rejected}), []int{3}, nil, "3 rejected 0, 2 active 100, 1 older 0"},
		"rolled back":                    {with(rec(rotation.PhaseRolledBack, time.Second), rotation.VersionRecord{ID: id(3), State: rotation.Rejected}), nil, nil, "3 rejected 0, 2 active 100, 1 older 0"},
		"the old one revoked":            {with(rec(rotation.PhaseMigrate, time.Second), rotation.VersionRecord{ID: id(2), State: rotation.Compromised}), nil, nil, "3 active 1, 2 compromised 0, 1 active 99"},
		"the new one revoked":            {with(rec(rotation.PhaseRolledBack, time.Second), rotation.VersionRecord{ID: id(3), State: rotation.Compromised}), []int{3}, nil, "3 compromised 0, 2 active 100, 1 older 0"},
		"all revoked":                    {with(rec(rotation.PhaseDone, time.Hour), rotation.VersionRecord{ID: id(3), State: rotation.Compromised}, rotation.VersionRecord{ID: id(2), State: rotation.Compromised}, rotation.VersionRecord{ID: id(1), State: rotation.Compromised}), []int{3}, nil, "3 compromised 0, 2 compromised 0, 1 compromised 0"},
		"only the new one is left":       {rec(rotation.PhaseValidate, 0), []int{1, 2}, nil, "3 active 100, 2 destroyed 0, 1 destroyed 0"},
		"nothing to take over from":      {nil, []int{1, 2}, rotation.Ramp{{Weight: 10, For: 8 * time.Hour}}, "3 active 100, 2 destroyed 0, 1 destroyed 0"},
		"left alone during the ramp":     {rec(rotation.PhaseMigrate, time.Second), []int{1, 2}, nil, "3 active 100, 2 destroyed 0, 1 destroyed 0"},
		"nothing is left":                {nil, []int{1, 2, 3}, nil, "3 destroyed 0, 2 destroyed 0, 1 destroyed 0"},
		"retired, and not destroyed":     {with(&rotation.Record{}, rotation.VersionRecord{ID: id(2), State: rotation.Retired}), nil, nil, "3 active 100, 2 retired 0, 1 older 0"},
		"a number that was given up":     {young, nil, nil, "3 active 100, 2 older 0, 1 older 0"},
	} {
		md := &store.Metadata{Current: 3}
		for n := 1; n <= 3; n++ {
			md.Versions = append(md.Versions, store.Version{Number: n, Created: created(n), Destroyed: slices.Contains(c.gone, n)})
		}
		if c.record == nil {
			c.record = &rotation.Record{}
		}
		var got []string
		for _, v := range (&picture{md: md, record: c.record, ramp: c.ramp, now: now}).versions() {
			got = append(got, fmt.Sprint(v.Number, " ", v.State, " ", v.Weight))
		}
		if s := strings.Join(got, ", "); s != c.want {
			t.Errorf("%s: %s, want %s", name, s, c.want)
		}
	}
}

func TestShowTellsWhatTheRecordKnows(t *testing.T) {
	o := newOperator(t)
	o.add("openai", 1, Meta{})
	o.add("openai", 2, Meta{})
	expires := o.store.Now().Add(time.Hour).UTC().Truncate(time.Second)
	o.writes("openai", rotation.Record{Closed: true, Phase: rotation.PhaseRolledBack, To: o.id("openai", 2), Reason: "version 2 was revoked: it leaked", Versions: []rotation.VersionRecord{
		{ID: o.id("openai", 2), State: rotation.Compromised, ProviderID: "svc_2", Revoked: true, Trouble: "disk is full"},
		{ID: o.id("openai", 1), ProviderID: "svc_1", Expires: expires},
	}})
	i, err := o.Show(t.Context(), "openai")
	if err != nil || i.Rotation != nil {
		t.Fatalf("%+v, %v", i, err)
	}
	if v := i.Versions[0]; v.State != "compromised" || v.ProviderID != "svc_2" || !v.Revoked || !v.Readable || v.Reason != "version 2 was revoked: it leaked" {
		t.Errorf("%+v", v)
	}
	if v := i.Versions[1]; v.State != "active" || v.ProviderID != "svc_1" || !v.Expires.Equal(expires) || v.Weight != 100 {
		t.Errorf("%+v", v)
	}
	if want := []string{"version 2 is compromised and not yet destroyed in the store: disk is full"}; !slices.Equal(i.Overdue, want) {
		t.Errorf("%q", i.Overdue)
	}
}
