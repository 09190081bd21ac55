package vault

import (
	"context"
	"errors"
	"net/http"
	"net/url"
	"strings"

	"github.com/postern-proxy/postern/agent/store"
)

// noNamespace is the name of a namespace that nobody has.
const noNamespace = "postern-does-not-exist-5d1c0a7e"

// anyNode makes sys/health answer 200 on every unsealed node.
var anyNode = url.Values{"standbyok": {"true"}, "perfstandbyok": {"true"}}

// verifyNamespace fails unless there is evidence that the server honours the
// namespace header. Vault's Community Edition ignores it: a configured
// namespace would silently mean the root's secrets. Evidence is, in this order:
// the token says it lives in that namespace; the server says it is an
// Enterprise one; the server answers an open question differently for a
// namespace that nobody has.
func (s *Store) verifyNamespace(ctx context.Context, sess *session) error {
	unverified := func(err error) error {
		return fail(store.ErrUnauthenticated, "store.vault.namespace %q could not be verified: %v", s.cfg.Namespace, err)
	}
	lives, err := s.tokenNamespace(ctx, sess)
	if errors.Is(err, store.ErrUnavailable) || ctx.Err() != nil {
		return err
	}
	if err == nil && lives == s.cfg.Namespace {
		return nil
	}
	enterprise, err := s.isEnterprise(ctx)
	if err != nil {
		if errors.Is(err, store.ErrUnavailable) {
			return err
		}
		return unverified(err)
	}
	if enterprise {
		return nil
	}
	real, err := s.servesNamespace(ctx, "")
	if err != nil {
		return err
	}
	invented, err := s.servesNamespace(ctx, noNamespace)
	if err != nil {
		return err
	}
	if real && !invented {
		return nil
	}
	return fail(store.ErrUnauthenticated,
		"store.vault.namespace is %q, but %s does not honour namespaces (they are an Enterprise feature): everything would be read from the root. Remove the setting or correct store.vault.address",
		s.cfg.Namespace, s.endpoint())
}

// tokenNamespace is the namespace that the token says it lives in.
func (s *Store) tokenNamespace(ctx context.Context, sess *session) (string, error) {
	r, err := s.lookup(ctx, sess.token)
	if err != nil {
		return "", err
	}
	defer r.release()
	e, err := parseEnvelope(r.body)
	if err != nil {
		return "", s.malformed(err)
	}
	var path string
	err = members(e.data, func(name, value []byte) (err error) {
		if is(name, "namespace_path") {
			path, err = text(value)
		}
		return err
	})
	return strings.Trim(path, "/"), err
}

// isEnterprise asks the server, without a token, what it is.
func (s *Store) isEnterprise(ctx context.Context) (yes bool, err error) {
	r, err := s.do(ctx, &call{op: opNamespace, method: http.MethodGet, path: "sys/health", query: anyNode}, "")
	if err != nil {
		return false, err
	}
	defer r.release()
	root, err := document(r.body)
	if err != nil {
		return false, s.malformed(err)
	}
	err = members(root, func(name, value []byte) (err error) {
		if is(name, "enterprise") {
			yes, err = boolean(value)
		}
		return err
	})
	return yes, err
}

// servesNamespace asks, without a token, for what every namespace shows.
func (s *Store) servesNamespace(ctx context.Context, namespace string) (bool, error) {
	r, err := s.do(ctx, &call{op: opNamespace, method: http.MethodGet, path: "sys/internal/ui/mounts", namespace: namespace}, "")
	r.release()
	if errors.Is(err, store.ErrUnavailable) || ctx.Err() != nil {
		return false, err
	}
	return err == nil, nil
}
