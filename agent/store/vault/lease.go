package vault

import (
	"context"
	"errors"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/postern-proxy/postern/agent/store"
)

// heldLease is a lease that we read: it ends with the token that read it.
type heldLease struct {
	life  *life
	until time.Time
}

// ReadPath implements store.PathReader. A lease's term is never longer than
// the life of the token that read it, for Vault revokes it with that token.
func (s *Store) ReadPath(ctx context.Context, path string) (*store.Secret, error) {
	if err := checkPath(path); err != nil {
		return nil, at(opReadPath, path, err)
	}
	c := &call{op: opReadPath, method: http.MethodGet, path: path}
	r, err := s.request(ctx, c)
	if err != nil {
		return nil, at(opReadPath, path, err)
	}
	defer r.release()
	found, err := s.parseAny(r)
	if err != nil {
		return nil, at(opReadPath, path, err)
	}
	if found.Lease != nil {
		s.hold(found.Lease, r)
	}
	return found, nil
}

// parseAny reads a secret of any engine.
func (s *Store) parseAny(r *reply) (*store.Secret, error) {
	e, err := parseEnvelope(r.body)
	if err != nil {
		return nil, s.malformed(err)
	}
	if isNull(e.data) {
		return nil, fail(store.ErrNotFound, "the answer holds no data")
	}
	if kv, err := parseKVData(e.data); err == nil && isObject(kv.data) && isObject(kv.metadata) {
		if version, err := parseVersion(kv.metadata); err == nil && version.Number > 0 {
			return s.parseKV(r)
		}
	}
	lease, err := e.lease()
	if err != nil {
		return nil, s.malformed(err)
	}
	fields, err := parseFields(e.data)
	if err != nil {
		return nil, s.malformed(err)
	}
	return &store.Secret{Version: store.Version{Created: s.Now(), RequestID: e.request()}, Fields: fields, Lease: lease}, nil
}

func isObject(v []byte) bool { return len(v) > 0 && v[0] == '{' }

// hold remembers whose a lease is and cuts its term to the token's life.
func (s *Store) hold(lease *store.Lease, r *reply) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.opts.Now()
	for id, held := range s.leases {
		if held.until.Before(now) {
			delete(s.leases, id)
		}
	}
	s.leases[lease.ID] = heldLease{life: r.by.life, until: r.sent.Add(lease.Duration)}
	lease.Duration = cut(lease.Duration, r.by.life, now)
}

// cut is a term that does not outlive a token.
func cut(term time.Duration, l *life, now time.Time) time.Duration {
	if left, ok := l.remaining(now); ok && left < term {
		return max(left, 0)
	}
	return term
}

// RenewLease implements store.PathReader: it asks for the lease's own Duration
// again. A lease that has ended is ErrNotFound.
func (s *Store) RenewLease(ctx context.Context, l store.Lease) (store.Lease, error) {
	body := append([]byte(`{"lease_id":`), appendQuoted(nil, []byte(l.ID))...)
	body = append(body, `,"increment":`...)
	body = strconv.AppendInt(body, int64(l.Duration/time.Second), 10)
	body = append(body, '}')
	r, err := s.request(ctx, &call{op: opRenewLease, method: http.MethodPut, path: "sys/leases/renew", body: body})
	var f *failure
	if errors.As(err, &f) && f.status == 400 && (strings.Contains(f.said, "lease not found") || strings.Contains(f.said, "lease expired")) {
		err = fail(store.ErrNotFound, "the lease has ended")
	}
	if err != nil {
		return store.Lease{}, at(opRenewLease, l.ID, err)
	}
	defer r.release()
	e, err := parseEnvelope(r.body)
	if err != nil {
		return store.Lease{}, at(opRenewLease, l.ID, s.malformed(err))
	}
	renewed, err := e.lease()
	if err == nil && renewed == nil {
		err = expect("lease_id")
	}
	if err != nil {
		return store.Lease{}, at(opRenewLease, l.ID, s.malformed(err))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if held, ok := s.leases[l.ID]; ok { // it is still the token's that read it, whoever renews it
		held.until = r.sent.Add(renewed.Duration)
		s.leases[l.ID] = held
		renewed.Duration = cut(renewed.Duration, held.life, s.opts.Now())
	}
	return *renewed, nil
}

// RevokeLease implements store.LeaseRevoker. It waits for the engine that
// issued the lease; store.ErrUnavailable means that the engine failed, or that
// the answer took longer than Options.Timeout: ask again.
func (s *Store) RevokeLease(ctx context.Context, id string) error {
	if err := checkPath(id); err != nil {
		return at(opRevokeLease, id, err)
	}
	body := append([]byte(`{"sync":true,"lease_id":`), appendQuoted(nil, []byte(id))...)
	body = append(body, '}')
	r, err := s.request(ctx, &call{op: opRevokeLease, method: http.MethodPut, path: "sys/leases/revoke", body: body})
	r.release()
	var f *failure
	if errors.As(err, &f) && f.status == http.StatusBadRequest {
		// The lease exists and the engine could not end it: Vault reports that as a bad request too.
		err = fail(store.ErrUnavailable, "Vault could not revoke the lease (HTTP 400, %s)", f.said)
	}
	if err != nil {
		return at(opRevokeLease, id, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.leases, id)
	return nil
}
