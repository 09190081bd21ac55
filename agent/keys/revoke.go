package keys

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/postern-proxy/postern/agent/audit"
	"github.com/postern-proxy/postern/agent/rotation"
	"github.com/postern-proxy/postern/agent/store"
)

const (
	insist      = 15 * time.Second // how long a revocation is tried while the store does not answer
	insistTries = 20               // before a conflict is waited after
	insistFirst = 100 * time.Millisecond
	insistMost  = 2 * time.Second
	revokeMost  = 8 // keys of a scope that are revoked at once
)

// RevokeOptions say what an emergency revocation ends.
type RevokeOptions struct {
	Versions []int // none: the newest readable one, or the newest if none is
	All      bool  // all versions
	Reason   string
}

// Revoked is the outcome of Revoke.
type Revoked struct {
	ID       string `json:"id"`
	Name     string `json:"name"`
	Versions []int  `json:"versions"` // from now on no agent takes them, from its next look on
	// Destroyed and AtProvider are done already; what is missing there is tried
	// again by the server, or said in Warnings.
	Destroyed  []int    `json:"destroyed"`
	AtProvider []int    `json:"revoked_at_provider"`
	Remaining  int      `json:"remaining"` // versions that are usable still
	Warnings   []string `json:"warnings,omitempty"`
}

// Revoke ends versions at once: no ramp, no grace. It succeeds as soon as the
// record says so, whatever else fails (I15). A rotation to one of them is over with
// that; a rotation from one of them goes on. To call it again tries again what failed.
func (m *Manager) Revoke(ctx context.Context, name string, o RevokeOptions) (Revoked, error) {
	if err := CheckName(name); err != nil {
		return Revoked{}, err
	}
	var md *store.Metadata
	err := insistOn(ctx, func() (err error) { md, err = m.mustMetadata(ctx, name); return err })
	switch {
	case errors.Is(err, store.ErrNotFound):
		return Revoked{}, err
	case err != nil:
		return Revoked{}, fmt.Errorf("%s is not revoked: %w", name, err)
	}
	ids, err := revocable(name, md, o)
	if err != nil {
		return Revoked{}, err
	}
	r := Revoked{ID: m.Scope.ID(name), Name: name, Destroyed: []int{}, AtProvider: []int{}}
	for _, id := range ids {
		r.Versions = append(r.Versions, id.Number)
	}
	slices.Sort(r.Versions)
	event := audit.Event{Event: EventRevoke, Key: name, Reason: o.Reason, Detail: map[string]string{"versions": ranges(r.Versions)}}
	if len(r.Versions) == 1 {
		event.Version, event.Detail = r.Versions[0], nil
	}
	unsaid := m.intendBeside(ctx, event)
	e, replaced, err := m.condemn(ctx, name, ids, md, o.Reason)
	if err != nil {
		unsaid()
		event.Outcome, event.Reason = OutcomeFailed, err.Error()
		m.record(ctx, event)
		return Revoked{}, fmt.Errorf("%s is not revoked: %w", name, err)
	}
	r.Warnings = append(appendText(nil, replaced), m.carryOut(ctx, name, e)...)
	m.sum(&r, ids, md, e)
	intent := unsaid()
	event.Outcome = OutcomeOK
	r.Warnings = appendText(r.Warnings, cmp.Or(m.record(ctx, event), intent))
	return r, nil
}

// RevokeScope revokes every version of every key of the scope. The error joins
// those of the keys that are not revoked; the others are returned beside it.
func (m *Manager) RevokeScope(ctx context.Context, reason string) ([]Revoked, error) {
	all, err := m.Names(ctx)
	if err != nil {
		return nil, err
	}
	done, errs := make([]Revoked, len(all)), make([]error, len(all))
	inParallel(len(all), revokeMost, func(i int) {
		done[i], errs[i] = m.Revoke(ctx, all[i], RevokeOptions{All: true, Reason: reason})
		if errors.Is(errs[i], errNoVersion) || errors.Is(errs[i], store.ErrNotFound) {
			errs[i] = nil // there is nothing that an agent could have taken
		}
	})
	done = slices.DeleteFunc(done, func(r Revoked) bool { return r.Name == "" })
	return done, errors.Join(errs...)
}

// inParallel calls f with 0 to n-1, at most so many at once, and waits.
func inParallel(n, most int, f func(i int)) {
	var wg sync.WaitGroup
	slots := make(chan struct{}, most)
	for i := range n {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			f(i)
		})
	}
	wg.Wait()
}

// errNoVersion: a key without any version.
var errNoVersion = errors.New("has no version")

// revocable are the versions that the options name.
func revocable(name string, md *store.Metadata, o RevokeOptions) ([]rotation.ID, error) {
	if len(md.Versions) == 0 {
		return nil, fmt.Errorf("%s %w", name, errNoVersion)
	}
	var ids []rotation.ID
	switch {
	case o.All:
		for _, v := range md.Versions {
			ids = append(ids, idOf(v))
		}
	case len(o.Versions) > 0:
		for _, n := range o.Versions {
			i := slices.IndexFunc(md.Versions, func(v store.Version) bool { return v.Number == n })
			if i < 0 {
				return nil, fmt.Errorf("%s has no version %d; `postern keys show %s` lists them", name, n, name)
			}
			if id := idOf(md.Versions[i]); !slices.Contains(ids, id) {
				ids = append(ids, id)
			}
		}
	default:
		v := md.Versions[len(md.Versions)-1] // an agent may have it even if the store has it no more
		if i := newestReadable(md); i >= 0 {
			v = md.Versions[i]
		}
		ids = append(ids, idOf(v))
	}
	return ids, nil
}

// newestReadable is the index of a version, -1 if none is readable.
func newestReadable(md *store.Metadata) int {
	for i := len(md.Versions) - 1; i >= 0; i-- {
		if md.Versions[i].Readable() {
			return i
		}
	}
	return -1
}

// intendBeside begins to record an intent and returns at once. The result waits
// for it, as long as such a thing may take, and returns a warning if it is not recorded.
func (m *Manager) intendBeside(ctx context.Context, e audit.Event) (unsaid func() string) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), recordTime)
	done := make(chan error, 1)
	go func() { done <- m.appendEvent(ctx, withOutcome(e, OutcomeIntent)) }()
	return func() string {
		defer cancel()
		var err error
		select {
		case err = <-done:
		case <-ctx.Done():
			err = ctx.Err()
		}
		if err == nil {
			return ""
		}
		m.logger().Error("the record of operations lacks the intent of a revocation", "key", e.Key, "error", err)
		return fmt.Sprintf("the record of operations lacks the intent of revoking %s: %v", e.Key, err)
	}
}

func withOutcome(e audit.Event, outcome string) audit.Event {
	e.Outcome = outcome
	return e
}

// condemn writes into the record that versions are Compromised, over whatever
// others write at the same time.
func (m *Manager) condemn(ctx context.Context, name string, ids []rotation.ID, md *store.Metadata, reason string) (e *entry, warning string, err error) {
	err = insistOn(ctx, func() (err error) {
		if e, warning, err = m.readOrReplace(ctx, name); err != nil {
			return err
		}
		condemnIn(&e.Record, ids, md, reason)
		return m.writeRecord(ctx, name, e)
	})
	return e, warning, err
}

// insistOn does what it takes to get something done: it gives up only if the
// store says no, does not answer for too long, or ctx ends.
func insistOn(ctx context.Context, do func() error) error {
	pause, since := insistFirst, time.Now()
	for try := 0; ; try++ {
		err := do()
		conflict := errors.Is(err, store.ErrConflict)
		switch {
		case err == nil:
			return nil
		case conflict && try < insistTries:
			continue // somebody else made a step: look again
		case !errors.Is(err, store.ErrUnavailable) && !conflict || time.Since(since) > insist:
			return err
		}
		wait := pause
		if conflict { // whoever waits long is never the first: those who always write would win
			wait = time.Duration(rand.Int64N(int64(insistFirst) / 20))
		} else {
			pause = min(2*pause, insistMost)
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(wait + time.Millisecond):
		}
	}
}

// readOrReplace is readRecord, but puts an empty record in the place of one that
// nobody can read: agents do not follow such a one either.
func (m *Manager) readOrReplace(ctx context.Context, name string) (_ *entry, warning string, err error) {
	e, err := m.readRecord(ctx, name)
	if err == nil {
		return e, "", nil
	}
	path := m.Scope.record(name)
	warning = fmt.Sprintf("%v; it was replaced", err)
	_, v, unread := store.GetText(ctx, m.Store, path)
	switch {
	case unread == nil: // it makes no sense
		return &entry{cas: v.Number}, warning, nil
	case !errors.Is(unread, store.ErrInvalid): // else it is larger than anything that is read
		return nil, "", err
	}
	md, unseen := m.Store.Metadata(ctx, path)
	if unseen != nil {
		return &entry{cas: store.Any}, warning, nil
	}
	return &entry{cas: md.Current}, warning, nil
}

// condemnIn changes a record so that it says what condemn wants.
func condemnIn(r *rotation.Record, ids []rotation.ID, md *store.Metadata, reason string) {
	if r.Phase == rotation.PhaseNone {
		r.Closed = true // there is no rotation
	}
	for _, id := range ids {
		v := r.Version(id)
		v.State, v.Attempts, v.Next, v.Trouble = rotation.Compromised, 0, time.Time{}, ""
		if i := slices.IndexFunc(md.Versions, func(s store.Version) bool { return s.Number == id.Number }); i >= 0 && md.Versions[i].Destroyed {
			v.Destroyed = true
		}
		if underWay(r) && names(r.To, id) {
			r.Phase, r.Closed = rotation.PhaseRolledBack, true
			r.Reason = strings.TrimSuffix(fmt.Sprintf("version %d was revoked: %s", id.Number, reason), ": ")
		}
	}
}

// sum says in r how far the revocation of these versions is.
func (m *Manager) sum(r *Revoked, ids []rotation.ID, md *store.Metadata, e *entry) {
	for _, id := range ids {
		v := recorded(&e.Record, id)
		if v.Destroyed {
			r.Destroyed = append(r.Destroyed, id.Number)
		}
		if v.Revoked {
			r.AtProvider = append(r.AtProvider, id.Number)
		}
	}
	slices.Sort(r.Destroyed)
	slices.Sort(r.AtProvider)
	for _, v := range md.Versions {
		if v.Readable() && !barred(recorded(&e.Record, idOf(v)).State) {
			r.Remaining++
		}
	}
	if byHand := nameless(ids, md, &e.Record); len(byHand) > 0 {
		r.Warnings = append(r.Warnings, fmt.Sprintf("revoke version %s of %s at %s by hand: it was not made by postern, which does not know what it is called there",
			ranges(byHand), r.Name, cmp.Or(md.Custom[metaProvider], "its provider")))
	}
}

// nameless are the versions that only people can revoke at the provider. Of those that
// were destroyed before it is taken that it was done, unless there are no others.
func nameless(ids []rotation.ID, md *store.Metadata, r *rotation.Record) []int {
	var there, gone []int
	for _, id := range ids {
		switch {
		case recorded(r, id).ProviderID != "":
		case has(md, id):
			there = append(there, id.Number)
		default:
			gone = append(gone, id.Number)
		}
	}
	if len(there) == 0 {
		there = gone
	}
	slices.Sort(there)
	return there
}

// ranges writes ascending numbers as in 1-4, 7.
func ranges(n []int) string {
	var b strings.Builder
	for i := 0; i < len(n); {
		j := i
		for j+1 < len(n) && n[j+1] == n[j]+1 {
			j++
		}
		if i > 0 {
			b.WriteString(", ")
		}
		b.WriteString(strconv.Itoa(n[i]))
		if j > i {
			b.WriteString("-" + strconv.Itoa(n[j]))
		}
		i = j + 1
	}
	return b.String()
}
