package agent

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	stdsync "sync"

	"github.com/postern-proxy/postern/agent/keys"
	"github.com/postern-proxy/postern/agent/provider"
	"github.com/postern-proxy/postern/agent/provider/spec"
	"github.com/postern-proxy/postern/agent/redact"
	"github.com/postern-proxy/postern/agent/secret"
	"github.com/postern-proxy/postern/agent/store"
	"github.com/postern-proxy/postern/agent/upstream"
	"github.com/postern-proxy/postern/config"
)

// ManagerOptions say on whose behalf keys are managed, and with what.
type ManagerOptions struct {
	// Store is opened with the caller's rights. Required; it stays the caller's to close.
	Store store.Store
	// Trail is the record of operations; nil: the Store's own, of the configuration's environment.
	Trail *keys.Trail
	// Source is the address the caller works from; "": cli@ and this machine's name.
	Source string
	Logger *slog.Logger // nil discards
	// NoProbe asks no provider about a key: agents do.
	NoProbe bool
	// Reach is the way to the providers, for callers who make many Managers; nil: one of the Manager's own.
	Reach *Reach
}

// NewManager returns the operations on the keys of the configuration's scope.
// It asks the store who the caller is, so that a caller whom the store does not
// know is told so here.
func NewManager(ctx context.Context, c *config.Config, o ManagerOptions) (*keys.Manager, error) {
	if o.Store == nil {
		return nil, errors.New("no store to manage keys in")
	}
	if o.Source == "" {
		o.Source = thisMachine()
	}
	if o.Trail == nil {
		o.Trail = keys.NewTrail(o.Store, c.Environment, Boot())
	}
	m := &keys.Manager{
		Store: o.Store, Scope: keys.Scope{Environment: c.Environment, ProxyID: c.ProxyID},
		Audit: o.Trail, Ramp: c.Rotation.Ramp, Grace: c.Rotation.Grace, Poll: c.Poll(), Logger: o.Logger,
	}
	var err error
	if m.Actor, err = actor(ctx, o.Store); err != nil {
		return nil, err
	}
	m.Actor.Source = o.Source
	if o.NoProbe {
		return m, nil
	}
	if o.Reach == nil {
		if o.Reach, err = NewReach(c); err != nil {
			return nil, err
		}
	}
	m.Probe = o.Reach.Probe
	return m, nil
}

// Boot names this process in the records that it writes to.
var Boot = stdsync.OnceValue(func() string {
	var b [4]byte
	rand.Read(b[:]) // never fails
	return hex.EncodeToString(b[:])
})

func thisMachine() string {
	host, err := os.Hostname()
	if err != nil || host == "" {
		return "cli"
	}
	return "cli@" + host
}

// actor is who the store takes its user for.
func actor(ctx context.Context, st store.Store) (keys.Actor, error) {
	s, ok := st.(store.Identifier)
	if !ok {
		return keys.Actor{Name: "unidentified"}, nil
	}
	who, err := s.Identity(ctx)
	if err != nil {
		return keys.Actor{}, err
	}
	a := keys.Actor{Name: who.DisplayName, Entity: who.EntityID}
	switch {
	case a.Name != "":
	case a.Entity != "":
		a.Name = a.Entity
	default: // a token that may not look itself up
		a.Name = "unidentified"
	}
	return a, nil
}

// Reach is the way to the providers as a configuration describes it: the egress
// proxy, further roots, and what each provider entry says of its own. It is safe
// for concurrent use.
type Reach struct {
	cfg    *config.Config
	dialer *upstream.Dialer

	mu   stdsync.Mutex
	made map[string]*reached
}

// reached is a provider that was asked for before.
type reached struct {
	provider  *provider.Provider
	transport *http.Transport
	err       error
}

// NewReach reads egress.ca_file. Nothing is dialled yet.
func NewReach(c *config.Config) (*Reach, error) {
	roots, err := readOptional(c.Egress.CAFile)
	if err != nil {
		return nil, fmt.Errorf("egress.ca_file: %w", err)
	}
	d, err := upstream.New(upstream.Options{EgressProxy: c.Egress.ProxyURL(), NoProxy: c.Egress.NoProxy, Roots: roots})
	if err != nil {
		return nil, err
	}
	return &Reach{cfg: c, dialer: d, made: map[string]*reached{}}, nil
}

// Probe asks a provider about a credential. The name is a provider entry's of
// the configuration, or a key's that an entry carries, or the catalog's; one
// that is none of them is not asked, and the result says so.
func (r *Reach) Probe(ctx context.Context, name string, fields map[string]*secret.Value) provider.Result {
	p := r.provider(name)
	if p.err != nil {
		return provider.Result{Meaning: "unknown: could not ask", Err: p.err}
	}
	return p.provider.Probe(ctx, p.transport, fields)
}

// Transport makes a connection pool on this way, trusting the roots of caFile ("":
// none) beside the others.
func (r *Reach) Transport(caFile string, http2 bool) (*http.Transport, error) {
	roots, err := readOptional(caFile)
	if err != nil {
		return nil, fmt.Errorf("ca_file: %w", err)
	}
	return r.dialer.Transport(upstream.TransportOptions{CAFile: roots, HTTP2: http2})
}

func (r *Reach) provider(name string) *reached {
	r.mu.Lock()
	defer r.mu.Unlock()
	p := r.made[name]
	if p == nil {
		p = r.make(name)
		if p.err == nil { // what fails may be there later, and names that are nobody's come from metadata
			r.made[name] = p
		}
	}
	return p
}

func (r *Reach) make(name string) *reached {
	s, caFile, http2, err := r.spec(name)
	if err != nil {
		return &reached{err: err}
	}
	p, err := provider.New(s)
	if err != nil {
		return &reached{err: fmt.Errorf("providers (%s): %w", name, err)}
	}
	t, err := r.Transport(caFile, http2)
	if err != nil {
		return &reached{err: fmt.Errorf("providers (%s): %w", name, err)}
	}
	t.DisableKeepAlives = true // an idle connection keeps the key that it carried last
	return &reached{provider: p, transport: t}
}

// entry is the configuration's provider of this name, else the one that carries a key of this name.
func (r *Reach) entry(name string) (config.Provider, bool) {
	for _, p := range r.cfg.Providers {
		if p.Name == name {
			return p, true
		}
	}
	for _, p := range r.cfg.Providers {
		if p.VaultPath == "" && p.Key == name {
			return p, true
		}
	}
	return config.Provider{}, false
}

// spec is what a name stands for, with the roots and the protocol of its entry.
func (r *Reach) spec(name string) (s spec.Spec, caFile string, http2 bool, err error) {
	if p, ok := r.entry(name); ok {
		return p.Spec, p.CAFile, p.HTTP2, nil
	}
	if _, known := spec.Lookup(name); !known {
		return s, "", false, fmt.Errorf("neither the configuration nor the catalog has a provider %q; describe it under providers", name)
	}
	s, problems := spec.Resolve(spec.Spec{Name: name}, "", nil)
	if len(problems) > 0 {
		return s, "", false, fmt.Errorf("the catalog's provider %s is incomplete by itself (%s); write an entry of it under providers", name, problems[0])
	}
	return s, s.CAFile, false, nil
}

// NewRedactor knows what provider keys look like, the configuration's own
// included, and what more is given as regular expressions.
func NewRedactor(c *config.Config, more ...string) (*redact.Set, error) {
	return redact.New(redact.Options{Patterns: append(keyPatterns(c), more...)})
}

// NewLogger writes to w as the configuration says, scrubbed of what the redactor knows.
func NewLogger(c config.Log, known *redact.Set, w io.Writer) *slog.Logger {
	return slog.New(newLogHandler(c, known, known.Writer(w, redact.WhereLog)))
}
