// Package issuer makes and revokes credentials at the providers themselves, one
// file a vendor. It reads an admin credential that is stronger than any key it
// makes, so only `postern server` uses it.
//
// It dials nothing itself: requests go through the http.RoundTripper it is
// given. A new key goes from the answer's bytes, which are wiped, straight into
// the arena. The admin credential becomes a header, which is a Go string and
// cannot be wiped: it is read anew for each operation and kept nowhere.
//
// Of what a vendor answers to a request that it refuses, errors repeat the
// status and the vendor's one-word name for the mistake, nothing else.
package issuer

import (
	"context"
	"errors"
	"time"

	"github.com/postern-proxy/postern/agent/secret"
)

// The reasons an issuer gives. Every error wraps at most one of them, or the
// context's error; its text names the setting to look at, and never holds a credential.
var (
	// ErrUnsupported: the vendor has no such operation.
	ErrUnsupported = errors.New("not supported by this provider")
	// ErrRefused: the vendor understood and said no; trying again does not help
	// until somebody changes the admin credential or the settings.
	ErrRefused = errors.New("refused by the provider")
	// ErrLimited: too many requests, or a passing failure at the vendor: try again later.
	ErrLimited = errors.New("provider busy")
)

// Issuer makes credentials at one vendor. Its methods may be called
// concurrently, make one attempt each, and are bounded by ctx.
type Issuer interface {
	// Create makes a credential.
	Create(ctx context.Context, r Request) (*Issued, error)
	// Revoke ends one; one that is gone already is no error.
	Revoke(ctx context.Context, id string) error
	// Sweep revokes every credential that was made with this label except those
	// in keep: what a process left that was killed between the provider's answer and the store's.
	Sweep(ctx context.Context, label string, keep []string) error
}

// Request is what a credential is wanted for.
type Request struct {
	// Label names this one attempt at the provider, as in "postern prod px_acme openai 8".
	Label string
	// Current is the provider's id of the credential that is to be replaced, "" if
	// there is none or it is not known. Vendors with two slots make the other one.
	Current string
}

// Issued is a new credential.
type Issued struct {
	ID     string                   // what Revoke takes; no secret
	Fields map[string]*secret.Value // api_key and what else belongs to it; the caller's to destroy
	// Expires is when it ends by itself; zero if it does not.
	Expires time.Time
}

// Destroy wipes the credential's fields.
func (i *Issued) Destroy() {
	if i == nil {
		return
	}
	for _, v := range i.Fields {
		v.Destroy()
	}
}
