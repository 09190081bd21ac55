package keys

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/postern-proxy/postern/agent/rotation"
	"github.com/postern-proxy/postern/agent/store"
)

// listMost is how many keys List looks at at once.
const listMost = 8

// The states of a version that Show knows beside those of rotation.State.
const (
	StateOlder     = "older" // readable, and no record says what became of it
	StateDeleted   = "deleted"
	StateDestroyed = "destroyed"
)

// Version is one version of a key, as Show lists it.
type Version struct {
	Number    int       `json:"version"`
	Created   time.Time `json:"created"`
	CreatedBy string    `json:"created_by,omitempty"`
	// State is pending, active, draining, retired, rejected or compromised, as
	// the record, the halts and the time say for all agents; or older, deleted or destroyed.
	State string `json:"state"`
	// Weight is the percentage of requests that the version takes now.
	Weight int `json:"weight"`
	// Reason says why it is rejected or compromised, where that is known.
	Reason string `json:"reason,omitempty"`
	// Readable: the store still has its data.
	Readable bool `json:"readable"`
	// ProviderID is what the provider calls it, where an issuer made it or somebody
	// said so; Expires is when it ends there by itself.
	ProviderID string    `json:"provider_id,omitempty"`
	Expires    time.Time `json:"expires,omitzero"`
	Revoked    bool      `json:"revoked_at_provider,omitempty"`
}

// Info is a key without its value.
type Info struct {
	Name        string `json:"name"`
	ID          string `json:"id"` // <environment>.<proxy_id>.<name>
	Environment string `json:"environment"`
	ProxyID     string `json:"proxy_id"`
	Provider    string `json:"provider,omitempty"`
	Label       string `json:"label,omitempty"`
	Service     string `json:"service,omitempty"`
	// RotateEvery is a duration, as in 720h0m0s; "" where nothing is scheduled.
	RotateEvery string    `json:"rotate_every,omitempty"`
	NextDue     time.Time `json:"next_due,omitzero"`
	LastRotated time.Time `json:"last_rotated,omitzero"` // or created
	Versions    []Version `json:"versions"`              // newest first
	// Rotation is the one under way; nil if there is none, or it may not be seen.
	Rotation *Rotation `json:"rotation,omitempty"`
	// Overdue says in sentences what should have been done by now.
	Overdue []string `json:"overdue,omitempty"`
	// Notes say what is odd, and what could not be looked at.
	Notes []string `json:"notes,omitempty"`
	// Error, in a list, is why nothing more than the name is known.
	Error string `json:"error,omitempty"`
}

// Current is the newest version that takes requests; the zero Version if none does.
func (i Info) Current() Version {
	for _, v := range i.Versions {
		if v.State == rotation.Active.String() {
			return v
		}
	}
	return Version{}
}

func (m *Manager) info(name string) Info {
	return Info{
		Name: name, ID: m.Scope.ID(name), Environment: m.Scope.Environment, ProxyID: m.Scope.ProxyID, Versions: []Version{},
	}
}

// Show describes one key. What the caller may not read is left out, and said in Notes.
func (m *Manager) Show(ctx context.Context, name string) (Info, error) {
	if err := CheckName(name); err != nil {
		return Info{}, err
	}
	md, err := m.mustMetadata(ctx, name)
	if err != nil {
		return Info{}, err
	}
	i := m.info(name)
	i.Provider, i.Label, i.Service = md.Custom[metaProvider], md.Custom[metaLabel], md.Custom[metaService]
	if err := m.ours(name, md.Custom); err != nil {
		i.Notes = append(i.Notes, err.Error()+": agents refuse it")
	}
	r, err := m.recordFor(ctx, name, &i)
	if err != nil {
		return Info{}, err
	}
	now := m.Store.Now()
	p := &picture{md: md, record: r, now: now, ramp: m.Ramp}
	if err := m.lookForHalts(ctx, name, p, &i); err != nil {
		return Info{}, err
	}
	i.Versions = p.versions()
	i.schedule(md, r)
	if underWay(r) {
		i.Rotation = m.rotationOf(ctx, name, r, &i)
	}
	i.overdue(r, now)
	return i, ctx.Err()
}

// rotationOf is the rotation under way, nil if it ended meanwhile. Where its
// progress cannot be looked at it is what the record says.
func (m *Manager) rotationOf(ctx context.Context, name string, r *rotation.Record, i *Info) *Rotation {
	status, err := m.Status(ctx, name)
	switch {
	case err != nil:
		i.Notes = append(i.Notes, "how far the rotation is could not be looked at: "+err.Error())
		return &Rotation{
			ID: i.ID, Name: name, Environment: i.Environment, ProxyID: i.ProxyID, Phase: r.Phase, Managed: r.Managed, From: r.From.Number, To: r.To.Number,
			Ramp: r.Ramp, Grace: r.Grace.String(), RequestedAt: r.RequestedAt, StartedAt: r.StartedAt, Actor: r.Actor, Reason: r.Reason,
		}
	case status.Closed:
		return nil
	}
	return &status
}

// recordFor reads the record; what stands in the way of that is noted, unless it is the store's silence.
func (m *Manager) recordFor(ctx context.Context, name string, i *Info) (*rotation.Record, error) {
	e, err := m.readRecord(ctx, name)
	switch {
	case err == nil:
		return &e.Record, nil
	case !softly(err):
		return nil, err
	}
	i.Notes = append(i.Notes, "rotations and revocations could not be looked at: "+err.Error())
	return &rotation.Record{}, nil
}

// lookForHalts tells the picture whether its newest usable version was vetoed,
// and if so asks about the next one.
func (m *Manager) lookForHalts(ctx context.Context, name string, p *picture, i *Info) error {
	for {
		n := p.newest()
		if n < 0 {
			return nil
		}
		h, err := m.readHalt(ctx, name, p.id(n))
		if err != nil && softly(err) {
			i.Notes = append(i.Notes, "halts could not be looked at: "+err.Error())
			return nil
		}
		if err != nil || h == nil {
			return err
		}
		p.halts = append(p.halts, *h)
	}
}

// overdue says what should have been done by now.
func (i *Info) overdue(r *rotation.Record, now time.Time) {
	for n := range r.Versions {
		v := &r.Versions[n]
		if !unfinished(v) {
			continue
		}
		var missing []string
		if v.ProviderID != "" && !v.Revoked {
			missing = append(missing, "revoked at the provider")
		}
		if !v.Destroyed {
			missing = append(missing, "destroyed in the store")
		}
		s := fmt.Sprintf("version %d is compromised and not yet %s", v.Number, strings.Join(missing, " nor "))
		if v.Trouble != "" {
			s += ": " + v.Trouble
		}
		i.Overdue = append(i.Overdue, s)
	}
	if i.Rotation != nil && i.Rotation.Overdue {
		s := "the rotation could have gone on"
		if i.Rotation.Waiting != "" {
			s += ": " + i.Rotation.Waiting
		}
		i.Overdue = append(i.Overdue, s)
	}
	if at, due := Due(*i, now); due && now.Sub(at) > dueSlack {
		i.Overdue = append(i.Overdue, "a scheduled rotation was due at "+clock(at))
	}
}

// List describes every key of the scope, by name. A key that cannot be looked at
// is in the list, with Error.
func (m *Manager) List(ctx context.Context) ([]Info, error) {
	mine, err := m.Names(ctx)
	if err != nil {
		return nil, err
	}
	looked := make([]Info, len(mine))
	inParallel(len(mine), listMost, func(n int) {
		i, err := m.Show(ctx, mine[n])
		if err != nil && !errors.Is(err, store.ErrNotFound) {
			i = m.info(mine[n])
			i.Error = err.Error()
		}
		looked[n] = i
	})
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	infos := []Info{}
	for _, i := range looked {
		if i.Name != "" { // else removed since
			infos = append(infos, i)
		}
	}
	return infos, nil
}

// Scopes are those of the environment that have had a key, by proxy id.
func (m *Manager) Scopes(ctx context.Context) ([]Scope, error) {
	folders, err := m.Store.List(ctx, "provider-keys/"+m.Scope.Environment+"/")
	if err != nil {
		return nil, err
	}
	scopes := []Scope{}
	for _, f := range folders {
		if px, ok := strings.CutSuffix(f, "/"); ok {
			scopes = append(scopes, Scope{m.Scope.Environment, px})
		}
	}
	return scopes, nil
}
