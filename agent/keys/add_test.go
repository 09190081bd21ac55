package keys

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/postern-proxy/postern/agent/audit"
	"github.com/postern-proxy/postern/agent/rotation"
	"github.com/postern-proxy/postern/agent/secret"
	"github.com/postern-proxy/postern/agent/store"
)

var errKilled = errors.New("the process was killed")

// killAfter lets so many writes to the store and, if counted, the record of operations happen,
// after which nothing works any more. revive is the next process; it returns
// how many writes there were.
func (o *operator) killAfter(n int, entries bool) (revive func() int) {
	writes := 0
	write := func() error {
		if writes == n {
			return errKilled
		}
		writes++
		return nil
	}
	o.store.before = func(string) error { return write() }
	o.store.read = func(string, string) error {
		if writes == n {
			return errKilled
		}
		return nil
	}
	if entries {
		o.trail.before = func(audit.Event) error { return write() }
	}
	return func() int {
		o.store.before, o.store.read, o.trail.before = nil, nil, nil
		return writes
	}
}

// record writes a rotation record as it is given.
func (o *operator) writes(name string, r rotation.Record) {
	o.t.Helper()
	e, err := o.readRecord(o.t.Context(), name)
	if err == nil {
		err = o.writeRecord(o.t.Context(), name, &entry{r, e.cas})
	}
	if err != nil {
		o.t.Fatal(err)
	}
}

func (o *operator) id(name string, n int) rotation.ID {
	o.t.Helper()
	for _, v := range o.metadata(name).Versions {
		if v.Number == n {
			return rotation.ID{Number: n, Created: v.Created}
		}
	}
	o.t.Fatalf("%s has no version %d", name, n)
	return rotation.ID{}
}

func TestAddIsRecordedAsIntentAndOutcome(t *testing.T) {
	o := newOperator(t)
	o.add("openai", 1, Meta{})
	o.add("openai", 2, Meta{})
	want := []string{"key.create intent openai 1", "key.create ok openai 1", "key.add intent openai 2", "key.add ok openai 2"}
	if e := o.trail.events[0]; e.Actor != "ada" || e.Source != "cli@host" || e.Environment != "prod" || e.ProxyID != "px_acme" || e.Detail["entity_id"] != "e-ada" {
		t.Errorf("%+v", e)
	}
	if got := o.trail.told(); !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
	o.store.before = func(method string) error {
		if method == "patch" {
			return store.ErrUnavailable
		}
		return nil
	}
	if _, err := o.Add(t.Context(), "openai", o.value(key(3)), Meta{}); !errors.Is(err, store.ErrUnavailable) {
		t.Errorf("%v", err)
	}
	if got := o.trail.told(); !slices.Equal(got, []string{"key.add intent openai 3", "key.add failed openai 3"}) {
		t.Errorf("%q", got)
	}
}

// Without its intent nothing is written (I15); a missing outcome is a warning.
func TestAddWithoutARecordOfOperations(t *testing.T) {
	o := newOperator(t)
	o.trail.before = func(audit.Event) error { return errors.New("the disk is full") }
	o.store.before = func(method string) error {
		t.Errorf("%s was written", method)
		return nil
	}
	if _, err := o.Add(t.Context(), "openai", o.value(key(1)), Meta{}); err == nil || !strings.Contains(err.Error(), "the disk is full") {
		t.Errorf("%v", err)
	}
	none := &Manager{Store: o.store, Scope: o.Scope}
	if _, err := none.Add(t.Context(), "openai", o.value(key(1)), Meta{}); err == nil {
		t.Error("a key was added with no record of operations at all")
	}
	o.store.before = nil
	o.trail.before = func(e audit.Event) error {
		if e.Outcome == OutcomeOK {
			return errors.New("the disk is full")
		}
		return nil
	}
	if a := o.add("openai", 1, Meta{}); len(a.Warnings) != 1 || !strings.Contains(a.Warnings[0], "the disk is full") {
		t.Errorf("%+v", a)
	}
}

// Killed between any two writes, what served goes on serving, and the same
// command again does what it was to do; the value is recognised as what it became.
func TestAddKilledAnywhere(t *testing.T) {
	for _, first := range []bool{true, false} {
		for n := 0; ; n++ {
			o := newOperator(t)
			before := 0
			if !first {
				o.add("openai", 1, Meta{})
				before = 1
			}
			revive := o.killAfter(n, true)
			meta := Meta{Label: "prod-openai-eu"}
			_, err := o.Add(t.Context(), "openai", o.value(key(2)), meta)
			if writes := revive(); writes < n {
				if err != nil || n < 5 {
					t.Fatalf("%d writes, %v", writes, err)
				}
				break
			}
			md, merr := o.store.Metadata(t.Context(), o.Scope.Path("openai"))
			if merr != nil && !errors.Is(merr, store.ErrNotFound) {
				t.Fatal(merr)
			}
			switch {
			case md != nil && md.Current > before:
				o.holds("openai", map[string]string{Field: key(2)})
			case !first:
				o.holds("openai", map[string]string{Field: key(1)})
			}
			a, err := o.Add(t.Context(), "openai", o.value(key(2)), meta)
			if err != nil {
				t.Fatalf("killed after %d writes: %v", n, err)
			}
			o.holds("openai", map[string]string{Field: key(2)})
			if f, err := o.Identify(t.Context(), o.value(key(2))); err != nil || f.Version != a.Version || !f.Verified {
				t.Errorf("killed after %d writes: the value is %+v, %v; want version %d", n, f, err, a.Version)
			}
			if md := o.metadata("openai"); md.MaxVersions != 100 || md.Custom["label"] != "prod-openai-eu" || md.Custom["environment"] != "prod" {
				t.Errorf("killed after %d writes: %+v", n, md)
			}
		}
	}
}

func TestAddUnderARotation(t *testing.T) {
	o := newOperator(t)
	o.add("openai", 1, Meta{})
	open := rotation.Record{Phase: rotation.PhaseMigrate, Actor: "grace", RequestedAt: o.store.Now(), From: o.id("openai", 1)}
	o.writes("openai", open)
	o.trail.told()
	_, err := o.Add(t.Context(), "openai", o.value(key(2)), Meta{})
	if !errors.Is(err, ErrOpen) || !strings.Contains(err.Error(), "grace") || !strings.Contains(err.Error(), "`postern keys resume openai`") || !strings.Contains(err.Error(), "`postern keys rotate openai`") {
		t.Errorf("%v", err)
	}
	if n := o.metadata("openai").Current; n != 1 || len(o.trail.told()) != 0 {
		t.Errorf("something was written; current is %d", n)
	}
	open.Closed = true
	o.writes("openai", open)
	o.add("openai", 2, Meta{})

	// Who may not look at rotations is told.
	o.store.read = func(_, path string) error {
		if strings.HasPrefix(path, "rotations/") {
			return fmt.Errorf("%s: %w", path, store.ErrForbidden)
		}
		return nil
	}
	if a := o.add("openai", 3, Meta{}); len(a.Warnings) != 1 || !strings.Contains(a.Warnings[0], "could not be seen") {
		t.Errorf("%q", a.Warnings)
	}
	// A record that makes no sense may be that of a rotation.
	o.store.read = nil
	e, _ := o.readRecord(t.Context(), "openai")
	if _, err := store.PutText(t.Context(), o.store, "rotations/prod/px_acme/openai", map[string][]byte{"grace": []byte("[]")}, e.cas); err != nil {
		t.Fatal(err)
	}
	if _, err := o.Add(t.Context(), "openai", o.value(key(4)), Meta{}); err == nil || !strings.Contains(err.Error(), "cannot be read") {
		t.Errorf("%v", err)
	}
}

func TestPushingOut(t *testing.T) {
	at := func(n int) time.Time { return time.Date(2026, 3, n, 0, 0, 0, 0, time.UTC) }
	md := func(most, from, to int, gone ...int) *store.Metadata {
		md := &store.Metadata{Current: to, MaxVersions: most}
		for n := from; n <= to; n++ {
			md.Versions = append(md.Versions, store.Version{Number: n, Created: at(n), Destroyed: slices.Contains(gone, n)})
		}
		return md
	}
	open := &rotation.Record{Phase: rotation.PhaseMigrate, From: rotation.ID{Number: 2, Created: at(2)}, To: rotation.ID{Number: 3}}
	closed := *open
	closed.Closed = true
	other := *open
	other.From.Created = at(9)
	m := &Manager{}
	for name, c := range map[string]struct {
		md     *store.Metadata
		record *rotation.Record
		lost   int // 0: none that is in use
	}{
		"an old one goes":                 {md(10, 1, 10), nil, 0},
		"there is room":                   {md(3, 1, 2), nil, 0},
		"the only one":                    {md(1, 1, 1), nil, 1},
		"the store's default":             {md(0, 1, 10, 2, 3, 4, 5, 6, 7, 8, 9, 10), nil, 1},
		"room by the default":             {md(0, 1, 9, 2, 3, 4, 5, 6, 7, 8, 9), nil, 0},
		"what a rotation leaves":          {md(2, 2, 3), open, 2},
		"what a rotation brings":          {md(2, 3, 4), open, 3},
		"a rotation that is over":         {md(2, 2, 3), &closed, 0},
		"a rotation of an older key":      {md(2, 2, 3), &other, 0},
		"nothing readable":                {md(2, 1, 2, 1, 2), nil, 0},
		"no version at all":               {&store.Metadata{}, nil, 0},
		"lowered afterwards":              {md(2, 1, 10), &rotation.Record{Phase: rotation.PhaseMigrate, From: rotation.ID{Number: 5, Created: at(5)}}, 5},
		"the newest readable is far back": {md(5, 1, 10, 5, 6, 7, 8, 9, 10), nil, 4},
	} {
		err := m.pushesOut(c.md, c.record)
		if (err != nil) != (c.lost != 0) || err != nil && !strings.Contains(err.Error(), fmt.Sprint("destroy version ", c.lost, ",")) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// Add raises what is kept, so that nothing in use goes.
func TestAddMakesRoom(t *testing.T) {
	o := newOperator(t)
	o.add("openai", 1, Meta{})
	if err := o.store.SetMetadata(t.Context(), o.Scope.Path("openai"), o.metadata("openai").Custom, 1); err != nil {
		t.Fatal(err)
	}
	o.add("openai", 2, Meta{})
	if md := o.metadata("openai"); len(md.Versions) != 2 || md.MaxVersions != 100 {
		t.Errorf("%+v", md)
	}
	// Beyond what Add keeps, it refuses.
	path := o.Scope.Path("openai")
	for n := 3; n <= 102; n++ {
		if _, err := o.store.Put(t.Context(), path, map[string]*secret.Value{Field: o.value(key(n))}, store.Any); err != nil {
			t.Fatal(err)
		}
		if n > 3 {
			if err := o.store.Destroy(t.Context(), path, n); err != nil {
				t.Fatal(err)
			}
		}
	}
	o.trail.told()
	_, err := o.Add(t.Context(), "openai", o.value(key(103)), Meta{})
	if err == nil || !strings.Contains(err.Error(), "destroy version 3,") || len(o.trail.told()) != 0 {
		t.Errorf("%v", err)
	}
}
