package sync

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"slices"
	stdsync "sync"
	"time"

	"github.com/postern-proxy/postern/agent/rotation"
	"github.com/postern-proxy/postern/agent/store"
)

// pathSource is a key that somebody else laid out: one path that has only its
// newest version, or a dynamic engine that makes a credential at every read.
// There is no metadata, no record and no place for halts.
type pathSource struct {
	reader store.PathReader // nil if the store is none
	path   string

	mu      stdsync.Mutex
	last    rotation.ID
	digest  string
	found   *store.Secret // the newest version's, until it is fetched
	fetched bool
	term    *term   // of the newest version; nil if it has no lease
	ended   []lease // of versions that newer ones replaced; some may still be in use
}

// term is the newest version's lease.
type term struct {
	lease store.Lease
	until time.Time
	renew time.Time // when it is renewed, or replaced
}

func newTerm(l store.Lease) *term {
	now := time.Now()
	return &term{lease: l, until: now.Add(l.Duration), renew: now.Add(l.Duration * 2 / 3)}
}

func newPathSource(o Options) *pathSource {
	r, _ := o.Store.(store.PathReader)
	return &pathSource{reader: r, path: o.Source.VaultPath}
}

func (s *pathSource) look(ctx context.Context, _ []rotation.ID) (sight, error) {
	if s.reader == nil {
		return sight{}, fmt.Errorf("vault_path %s: this store cannot read it; configure store.vault: %w", s.path, store.ErrInvalid)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.term != nil {
		now := time.Now()
		if now.Before(s.term.renew) {
			return s.sight(), nil
		}
		if again, err := s.extend(ctx, now); err != nil || again {
			return s.sight(), err
		}
	}
	sec, err := s.reader.ReadPath(ctx, s.path)
	switch {
	case absent(err):
		seen := s.sight()
		seen.versions = nil
		return seen, nil
	case err != nil:
		return sight{}, err
	}
	s.take(sec)
	return s.sight(), nil
}

// extend renews the lease and reports whether that gave the whole term again.
// A lease that cannot be extended is replaced: not an error.
func (s *pathSource) extend(ctx context.Context, now time.Time) (bool, error) {
	if !s.term.lease.Renewable || !now.Before(s.term.until) {
		return false, nil
	}
	asked := s.term.lease.Duration
	got, err := s.reader.RenewLease(ctx, s.term.lease)
	switch {
	case errors.Is(err, store.ErrNotFound): // revoked, or ended
		s.term.until = now
		return false, nil
	case errors.Is(err, store.ErrForbidden), errors.Is(err, store.ErrInvalid): // it runs to its end
		s.term.lease.Renewable = false
		return false, nil
	case err != nil:
		return false, err
	}
	whole := got.Duration >= asked-asked/10
	if got.ID == "" {
		got.ID = s.term.lease.ID
	}
	got.Renewable = got.Renewable && whole
	s.term = newTerm(got)
	return whole, nil
}

// take makes a secret that was read the newest version, if it is another one.
func (s *pathSource) take(sec *store.Secret) {
	id := rotation.ID{Number: sec.Version.Number, Created: sec.Version.Created}
	digest := digestOf(sec)
	switch {
	case id.Number > 0:
	case digest == s.digest:
		id = s.last
	default: // numbered here, from its first appearance on
		id.Number = s.last.Number + 1
	}
	if s.term != nil && !id.Equal(s.last) {
		s.ended = append(s.ended, lease{s.last, s.term.until})
	}
	s.ended = slices.DeleteFunc(s.ended, func(l lease) bool { return time.Since(l.until) > time.Minute })
	if s.term = nil; sec.Lease != nil {
		s.term = newTerm(*sec.Lease)
	}
	if id.Equal(s.last) && s.fetched {
		sec.Destroy() // nothing new
		return
	}
	s.found.Destroy()
	s.last, s.digest, s.found, s.fetched = id, digest, sec, false
}

func (s *pathSource) sight() sight {
	seen := sight{versions: []rotation.Stored{{ID: s.last, Readable: true}}, leases: slices.Clone(s.ended)}
	if s.term != nil {
		seen.leases = append(seen.leases, lease{s.last, s.term.until})
	}
	return seen
}

// fetch hands out what look found. A version that was fetched before is read
// again, unless it has a lease: that would be another credential.
func (s *pathSource) fetch(ctx context.Context, id rotation.ID) (*store.Secret, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.found == nil && s.term == nil {
		sec, err := s.reader.ReadPath(ctx, s.path)
		if err != nil {
			return nil, err
		}
		s.fetched = false
		s.take(sec)
	}
	if s.found == nil { // the next look reads another credential, or the same one again
		s.term.lease.Renewable, s.term.renew, s.fetched = false, time.Now(), false
	}
	if s.found == nil || !id.Equal(s.last) {
		return nil, fmt.Errorf("%s: version %d is there no more: %w", s.path, id.Number, store.ErrUnavailable)
	}
	sec := s.found
	s.found, s.fetched = nil, true
	sec.Version.Number, sec.Version.Created = id.Number, id.Created
	return sec, nil
}

func (s *pathSource) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.found.Destroy()
	s.found = nil
}

func (s *pathSource) veto(context.Context, rotation.Halt) (bool, error) { return false, errNoPlace }

// digestOf tells one version from another where the store does not.
func digestOf(sec *store.Secret) string {
	h := sha256.New()
	for _, name := range slices.Sorted(maps.Keys(sec.Fields)) {
		fmt.Fprintf(h, "%q=%s\n", name, sec.Fields[name].Digest())
	}
	return hex.EncodeToString(h.Sum(nil))
}
