package keys

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/postern-proxy/postern/agent/audit"
	"github.com/postern-proxy/postern/agent/store"
)

// validateMost is how many versions are asked about at once.
const validateMost = 4

// Validation is what the provider said about one version.
type Validation struct {
	ID        string    `json:"id"`
	Name      string    `json:"name"`
	Version   int       `json:"version"`
	Verdict   string    `json:"verdict"` // live, dead or unknown
	Status    int       `json:"status,omitempty"`
	LatencyMS int64     `json:"latency_ms"`
	Meaning   string    `json:"meaning"`
	Error     string    `json:"error,omitempty"`
	At        time.Time `json:"at"`
}

// Validate asks the provider about every readable version of a key, or the
// versions given, and returns them newest first. It needs the right to read them;
// without it the error is a store.ErrForbidden. Nothing changes in the store.
func (m *Manager) Validate(ctx context.Context, name string, versions ...int) ([]Validation, error) {
	if err := CheckName(name); err != nil {
		return nil, err
	}
	if m.Probe == nil {
		return nil, fmt.Errorf("validating %s: no provider can be asked from here; give the key a provider that the configuration or the catalog has", name)
	}
	md, err := m.mustMetadata(ctx, name)
	if err != nil {
		return nil, err
	}
	if err := m.ours(name, md.Custom); err != nil {
		return nil, err
	}
	asked, err := validatable(name, md, versions)
	if err != nil {
		return nil, err
	}
	providerName := providerOf(md, name)
	said, errs := make([]Validation, len(asked)), make([]error, len(asked))
	inParallel(len(asked), validateMost, func(i int) {
		said[i], errs[i] = m.validate(ctx, name, providerName, asked[i])
	})
	err = errors.Join(errs...)
	if i := slices.IndexFunc(errs, func(err error) bool { return errors.Is(err, store.ErrForbidden) }); i >= 0 {
		err = fmt.Errorf("validating %s takes the right to read its data, which this token has not; `postern server` has it, and validates for you: %w", name, errs[i])
	}
	m.record(ctx, validated(name, asked, said, err))
	if err != nil {
		return nil, err
	}
	return said, nil
}

// validatable are the versions to ask about, newest first.
func validatable(name string, md *store.Metadata, versions []int) (asked []int, err error) {
	for _, v := range slices.Backward(md.Versions) {
		if v.Readable() && (len(versions) == 0 || slices.Contains(versions, v.Number)) {
			asked = append(asked, v.Number)
		}
	}
	for _, n := range versions {
		if !slices.Contains(asked, n) {
			return nil, fmt.Errorf("%s has no version %d that can be read; `postern keys show %s` lists them", name, n, name)
		}
	}
	if len(asked) == 0 {
		return nil, fmt.Errorf("%s has no version that can be read; `postern keys add %s` stores one", name, name)
	}
	return asked, nil
}

// validate asks about one version. Its value is wiped before it returns.
func (m *Manager) validate(ctx context.Context, name, providerName string, version int) (Validation, error) {
	v := Validation{ID: m.Scope.ID(name), Name: name, Version: version, Verdict: "unknown", At: m.Store.Now()}
	sec, err := m.Store.Get(ctx, m.Scope.Path(name), version)
	if errors.Is(err, store.ErrDeleted) || errors.Is(err, store.ErrNotFound) {
		v.Meaning, v.Error = "unknown: it was deleted meanwhile", err.Error()
		return v, nil
	}
	if err != nil {
		return v, err
	}
	defer sec.Destroy()
	r := m.Probe(ctx, providerName, sec.Fields)
	v.Verdict, v.Status, v.LatencyMS, v.Meaning = r.Verdict.String(), r.Status, r.Latency.Milliseconds(), r.Meaning
	if r.Err != nil {
		v.Error = r.Err.Error()
	}
	return v, ctx.Err()
}

// validated is what the record of operations says of it.
func validated(name string, asked []int, said []Validation, err error) audit.Event {
	e := audit.Event{Event: EventValidate, Key: name, Outcome: OutcomeOK}
	if len(asked) == 1 {
		e.Version = asked[0]
	}
	if err != nil {
		e.Outcome, e.Reason = OutcomeFailed, err.Error()
		return e
	}
	by := map[string][]int{}
	for _, v := range slices.Backward(said) {
		by[v.Verdict] = append(by[v.Verdict], v.Version)
	}
	e.Detail = map[string]string{}
	for verdict, versions := range by {
		e.Detail[verdict] = ranges(versions)
	}
	return e
}
