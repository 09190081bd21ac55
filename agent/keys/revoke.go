package keys

import (
	"context"

	"github.com/postern-proxy/postern/agent/secret"
)

// RevokeOptions say what an emergency revocation ends.
type RevokeOptions struct {
	Versions []int // none: the newest readable one
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
// record says so, whatever else fails (I15).
func (m *Manager) Revoke(ctx context.Context, name string, o RevokeOptions) (Revoked, error) {
	panic("unwritten")
}

// Found is a key that a value belongs to.
type Found struct {
	ID          string `json:"id"`
	Name        string `json:"name"`
	Environment string `json:"environment"`
	ProxyID     string `json:"proxy_id"`
	Version     int    `json:"version"`
}

// Identify says which key a value is, in whatever scope of the store, by its
// digest. store.ErrNotFound: no key that was stored with postern.
func (m *Manager) Identify(ctx context.Context, value *secret.Value) (Found, error) {
	panic("unwritten")
}
