package keys

import (
	"context"
	"log/slog"
	"time"

	"github.com/postern-proxy/postern/agent/audit"
	"github.com/postern-proxy/postern/agent/issuer"
	"github.com/postern-proxy/postern/agent/provider"
	"github.com/postern-proxy/postern/agent/rotation"
	"github.com/postern-proxy/postern/agent/secret"
	"github.com/postern-proxy/postern/agent/store"
)

// Scope is one environment and one proxy id: all that an agent may see.
type Scope struct{ Environment, ProxyID string }

// Path is where a key of the scope is kept, relative to the store's root.
func (s Scope) Path(name string) string { return s.folder() + name }

func (s Scope) folder() string {
	return "provider-keys/" + s.Environment + "/" + s.ProxyID + "/"
}

// ID is what the management API calls a key: <environment>.<proxy_id>.<name>.
func (s Scope) ID(name string) string { return s.Environment + "." + s.ProxyID + "." + name }

func (s Scope) record(name string) string {
	return "rotations/" + s.Environment + "/" + s.ProxyID + "/" + name
}

func (s Scope) halts() string { return "halts/" + s.Environment + "/" + s.ProxyID + "/" }

func (s Scope) acks() string { return "acks/" + s.Environment + "/" + s.ProxyID + "/" }

// Manager runs the operations of one scope with the rights of whoever opened
// its Store. It keeps no state: any number of Managers, in any number of
// processes, may work on the same keys, and check-and-set decides between them.
// It is safe for concurrent use; a copy with another Scope is a Manager of that scope.
type Manager struct {
	Store store.Store // required
	Scope Scope       // required
	// Audit is where what was done is recorded, in the Store itself or
	// elsewhere. Required for everything that writes.
	Audit audit.Sink
	Actor Actor
	// Probe asks a provider about a credential; it should honour ctx. nil:
	// nobody can be asked from here, and agents do it.
	Probe func(ctx context.Context, providerName string, fields map[string]*secret.Value) provider.Result
	// Issuer makes and revokes credentials at a provider; nil, and a nil result,
	// mean that there is none. Only the server has any.
	Issuer func(providerName string) issuer.Issuer
	// Ramp and Grace are those of rotations that say nothing else.
	Ramp  rotation.Ramp
	Grace time.Duration
	// Poll is how often agents look into the store, 0 meaning 5 s. A ramp begins
	// two of them after it was decided on, and nothing is revoked before two have passed.
	Poll   time.Duration
	Logger *slog.Logger // nil discards
}

// Actor is on whose behalf a Manager works, as the record of operations says it.
type Actor struct {
	Name   string // for people: Vault's display name, or the user of this machine
	Entity string // the store's own identity; "" where it knows none
	Source string // the address a request came from, or cli@host
}

// recordTime bounds the writing of an entry about something that was done already.
const recordTime = 10 * time.Second

func (m *Manager) logger() *slog.Logger {
	if m.Logger == nil {
		return slog.New(slog.DiscardHandler)
	}
	return m.Logger
}

// issuerOf is nil where nobody makes and revokes a provider's credentials from here.
func (m *Manager) issuerOf(providerName string) issuer.Issuer {
	if m.Issuer == nil {
		return nil
	}
	return m.Issuer(providerName)
}

// poll is how often agents look.
func (m *Manager) poll() time.Duration {
	if m.Poll <= 0 {
		return defaultPoll
	}
	return m.Poll
}

const defaultPoll = 5 * time.Second
