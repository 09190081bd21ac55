// Package store is the contract of a versioned secret store: what postern
// needs of HashiCorp Vault's KV v2, and what the sealed file gives in its place.
//
// Paths are slash-separated and relative to the store's root (Vault:
// <mount>/<prefix>/), without a leading slash:
// "provider-keys/prod/px_acme/openai".
package store

import (
	"context"
	"errors"
	"time"

	"github.com/postern-proxy/postern/agent/secret"
)

// The reasons a store gives. Every error of a Store wraps exactly one of them
// or the context's error; its text names the path or the setting to look at and
// never holds a value.
var (
	// ErrNotFound: nothing was ever written at the path, or its metadata was deleted.
	ErrNotFound = errors.New("not found")
	// ErrDeleted: the path exists, but the version asked for was deleted or destroyed.
	ErrDeleted = errors.New("version deleted")
	// ErrConflict: the check-and-set value is not the current version.
	ErrConflict = errors.New("check-and-set conflict")
	// ErrForbidden: the identity is known and its policy says no. Logging in again does not help.
	ErrForbidden = errors.New("forbidden by policy")
	// ErrUnauthenticated: the store does not accept the identity (a wrong role, an expired credential).
	ErrUnauthenticated = errors.New("not authenticated")
	// ErrUnavailable: no answer, or one that says try again later (sealed, standby, 5xx, 429).
	ErrUnavailable = errors.New("store unavailable")
	// ErrInvalid: the request can never succeed as it stands (a malformed path, a value too large).
	ErrInvalid = errors.New("invalid request")
	// ErrTooLarge is an ErrInvalid: something is there, and more than the store reads or writes.
	ErrTooLarge error = tooLarge{}
)

type tooLarge struct{}

func (tooLarge) Error() string { return ErrInvalid.Error() + ": too large" }
func (tooLarge) Unwrap() error { return ErrInvalid }

// Version is one version of a secret, as metadata tells it.
type Version struct {
	Number  int       // from 1; after a metadata delete numbering starts at 1 again
	Created time.Time // UTC; together with Number it identifies the version
	// Deleted is when the version was soft-deleted; the zero time if it was not.
	Deleted   time.Time
	Destroyed bool // its data is gone for good
	// CreatedBy is the writer's entity id as the store itself recorded it; ""
	// where it records none, or does not tell it in this answer: Vault tells it in Metadata only.
	CreatedBy string
	// RequestID is what Vault calls the request whose answer told this version,
	// for its audit log; "" where a store has none. It is no part of the version's identity.
	RequestID string
}

// Readable reports whether the version's data can still be read.
func (v Version) Readable() bool { return v.Deleted.IsZero() && !v.Destroyed }

// Metadata describes a path without any secret in it.
type Metadata struct {
	Current     int       // the newest version's number; 0 if no version was ever written
	MaxVersions int       // how many versions the store keeps; 0 means the store's default
	Versions    []Version // ascending by Number
	Custom      map[string]string
}

// Secret is one version's data. Its values belong to the caller, who calls
// Destroy (or destroys each value) when done.
type Secret struct {
	Version Version
	// Fields maps field names to values. A JSON string is held as its bytes
	// without quotes; any other JSON value as its JSON text.
	Fields map[string]*secret.Value
	// Lease is nil for what does not expire.
	Lease *Lease
}

// Destroy wipes every field.
func (s *Secret) Destroy() {
	if s == nil {
		return
	}
	for _, v := range s.Fields {
		v.Destroy()
	}
}

// Lease is a dynamic secret's term.
type Lease struct {
	ID        string
	Duration  time.Duration // from the answer on
	Renewable bool
}

// Any, as the check-and-set value of a Put or Patch, writes whatever the current version is.
const Any = -1

// Store is a versioned secret store. Its methods may be called concurrently.
// They never retry by themselves: the caller owns the back-off.
type Store interface {
	// Get reads one version; version 0 is the newest. A deleted or destroyed
	// version (the newest one included) is ErrDeleted.
	Get(ctx context.Context, path string, version int) (*Secret, error)

	// Put writes a new version holding exactly these fields. cas is the number
	// the current version must have, 0 that the path must have none (a deleted
	// one counts), or Any. The values stay the caller's.
	Put(ctx context.Context, path string, fields map[string]*secret.Value, cas int) (Version, error)

	// Patch writes a new version with these fields replaced and all others
	// kept; it needs no right to read. ErrNotFound where the newest version
	// does not exist or is deleted.
	Patch(ctx context.Context, path string, fields map[string]*secret.Value, cas int) (Version, error)

	// Metadata reads versions and custom metadata; it holds no secret.
	Metadata(ctx context.Context, path string) (*Metadata, error)

	// SetMetadata replaces the custom metadata (≤ 64 strings of ≤ 512 bytes)
	// and, if maxVersions > 0, how many versions are kept.
	SetMetadata(ctx context.Context, path string, custom map[string]string, maxVersions int) error

	// List returns the names directly below a folder, sorted; a folder's name
	// ends in "/". A folder that does not exist is empty, not an error.
	List(ctx context.Context, folder string) ([]string, error)

	// Destroy makes the data of versions unreadable for good. Destroying what is destroyed is no error.
	Destroy(ctx context.Context, path string, versions ...int) error

	// Remove deletes a path with all its versions and metadata. Removing what is not there is no error.
	Remove(ctx context.Context, path string) error

	// Now is the store's clock: what its answers said, carried on with the
	// monotonic clock, so that agents agree on a ramp without agreeing on the
	// time of day. Before the first answer it is the local clock.
	Now() time.Time
}

// PathReader is implemented by stores that can read secrets laid out by
// somebody else (vault_path + field), dynamic engines included.
type PathReader interface {
	// ReadPath reads a full API path, outside the store's own root. Where the
	// answer is KV v2's, Version is the stored one; elsewhere Version.Number is
	// 0 and Created the time of the answer, and only a change of value tells versions apart.
	ReadPath(ctx context.Context, path string) (*Secret, error)
	// RenewLease extends a lease; a shorter term than asked means it ends for good soon.
	RenewLease(ctx context.Context, l Lease) (Lease, error)
}

// LeaseRevoker is implemented by stores that can end a lease before its time.
type LeaseRevoker interface {
	// RevokeLease makes the secret behind a lease invalid where it was issued,
	// and returns once that is done. A lease that has ended, or never was, is no error.
	RevokeLease(ctx context.Context, id string) error
}

// Identifier is implemented by stores that know on whose behalf they work.
type Identifier interface {
	// Identity says who the store takes us for. It may ask the store; errors are those of a Store.
	Identity(ctx context.Context) (Identity, error)
}

// Identity is who a store takes us for.
type Identity struct {
	EntityID    string // what the store itself records with each write; "" where it knows none
	DisplayName string // for people; "" where the store does not tell it
	Policies    []string
	// Expires is when the credential ends, local time; zero if it does not or that is not known.
	Expires time.Time
}

// Capable is implemented by stores that can say what the credential in use may do.
type Capable interface {
	// Capabilities returns, for each of the full API paths, what is allowed
	// there: "create", "read", "update", "patch", "delete", "list", "sudo", or
	// "root" alone for everything, or "deny" alone for nothing. A path that
	// ends in a slash is asked about as List reads it.
	Capabilities(ctx context.Context, paths ...string) (map[string][]string, error)
}
