package vault

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strings"
	"syscall"
	"unicode"

	"github.com/postern-proxy/postern/agent/store"
)

// failure is an error of this package: one reason of package store, and a text
// that names what to look at. What Vault or the network said is in the text
// only, cut and cleaned, so that no other error hides in the chain.
type failure struct {
	reason error
	text   string
	// badToken: Vault does not know the token, so that a new login helps.
	badToken bool
	// status and said are Vault's answer, if there was one.
	status int
	said   string
}

func (f *failure) Error() string { return f.reason.Error() + ": " + f.text }
func (f *failure) Unwrap() error { return f.reason }

func fail(reason error, format string, args ...any) *failure {
	return &failure{reason: reason, text: fmt.Sprintf(format, args...)}
}

// at puts the operation and the path before an error.
func at(op operation, path string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("vault: %s %s: %w", op, path, err)
}

// unreachable explains why there was no answer. If the caller's context ended,
// that is the reason.
func (s *Store) unreachable(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	var urlErr *url.Error
	if errors.As(err, &urlErr) {
		err = urlErr.Err // the URL adds nothing to what the caller knows
	}
	where := s.endpoint()
	var (
		unknownCA x509.UnknownAuthorityError
		wrongHost x509.HostnameError
		invalid   x509.CertificateInvalidError
		plain     tls.RecordHeaderError
		noHost    *net.DNSError
		late      net.Error
	)
	switch {
	case errors.Is(err, context.DeadlineExceeded), errors.As(err, &late) && late.Timeout():
		return fail(store.ErrUnavailable, "%s did not answer within %v: is it Vault, and is it overloaded?", where, s.opts.Timeout)
	case errors.Is(err, context.Canceled):
		return fail(store.ErrUnavailable, "the store was closed")
	case errors.As(err, &unknownCA):
		return fail(store.ErrUnavailable, "the certificate of %s comes from an unknown authority: set store.vault.ca_file to its root", where)
	case errors.As(err, &wrongHost), errors.As(err, &invalid):
		return fail(store.ErrUnavailable, "the certificate of %s is not valid for it: %s", where, clean(err.Error()))
	case errors.As(err, &plain), errors.Is(err, http.ErrSchemeMismatch):
		return fail(store.ErrUnavailable, "%s does not speak TLS: does store.vault.address want http://?", where)
	case errors.Is(err, syscall.ECONNREFUSED):
		return fail(store.ErrUnavailable, "%s refused the connection: is Vault running there? See store.vault.address", where)
	case errors.As(err, &noHost):
		return fail(store.ErrUnavailable, "the name in %s does not resolve (%s): see store.vault.address", where, clean(noHost.Err))
	}
	return fail(store.ErrUnavailable, "no answer from %s: %s", where, clean(err.Error()))
}

// endpoint is the host:port to look at when a connection fails.
func (s *Store) endpoint() string {
	u, err := url.Parse(s.cfg.Address)
	if err != nil {
		return "store.vault.address"
	}
	if u.Port() != "" {
		return u.Host
	}
	if u.Scheme == "http" {
		return u.Host + ":80"
	}
	return u.Host + ":443"
}

// maxDetail bounds how much of a foreign text an error repeats.
const maxDetail = 300

// clean makes a foreign text fit for one line of a log: white space is folded,
// what cannot be printed is dropped, and it is cut.
func clean(foreign string) string {
	printable := strings.Map(func(r rune) rune {
		switch {
		case unicode.IsSpace(r):
			return ' '
		case !unicode.IsPrint(r):
			return -1
		}
		return r
	}, foreign)
	folded := strings.Join(strings.Fields(printable), " ")
	if len(folded) > maxDetail {
		folded = strings.ToValidUTF8(folded[:maxDetail], "") + "…"
	}
	return folded
}

// explain turns an answer that is no success into an error.
func (s *Store) explain(c *call, r *reply, token string) error {
	said, isVault := vaultErrors(r.body, func(text []byte) []byte { return redact(text, c.body, token) })
	f := s.sort(c, r, said, isVault)
	f.status, f.said = r.status, said
	return f
}

func (s *Store) sort(c *call, r *reply, said string, isVault bool) *failure {
	switch {
	case r.status >= 300 && r.status < 400:
		return fail(store.ErrUnavailable, "%s redirects to %s, which is not followed with a token: put the address that serves into store.vault.address",
			s.endpoint(), redirectTarget(r))
	case r.status == 400 && bytes.Contains(r.body, []byte("HTTP request to an HTTPS server")):
		return fail(store.ErrUnavailable, "%s speaks TLS: store.vault.address must begin with https://", s.endpoint())
	case r.status == 400 && strings.Contains(said, "check-and-set parameter did not match"):
		return fail(store.ErrConflict, "the current version is another one")
	case r.status == 403 && strings.Contains(said, "invalid token"):
		f := fail(store.ErrUnauthenticated, "Vault does not know the token: it expired or was revoked")
		f.badToken = true
		return f
	case r.status == 403:
		return fail(store.ErrForbidden, "the token's policies do not allow %s on %s (Vault: %s)", c.capability(), c.path, said)
	case r.status == 404:
		return explainMissing(c, r, said)
	case r.status == 405:
		return fail(store.ErrInvalid, "Vault does not support this on %s: is store.vault.mount a KV v2 engine? (Vault: %s)", c.path, said)
	case r.status == 412, r.status == 429, r.status == 472, r.status == 473, r.status >= 500:
		return fail(store.ErrUnavailable, "%s answers HTTP %d (%s)", s.endpoint(), r.status, said)
	case !isVault:
		return fail(store.ErrUnavailable, "%s answers HTTP %d, but not as Vault does: see store.vault.address", s.endpoint(), r.status)
	case r.status == 401:
		return fail(store.ErrUnauthenticated, "%s answers HTTP 401 (%s)", s.endpoint(), said)
	}
	return fail(store.ErrInvalid, "Vault refuses %s: HTTP %d (%s)", c.path, r.status, said)
}

// explainMissing tells a deleted version, a missing path and a missing engine apart.
func explainMissing(c *call, r *reply, said string) *failure {
	if strings.Contains(said, "no handler for route") {
		return fail(store.ErrInvalid, "no secrets engine serves %s: see store.vault.mount and store.vault.namespace", c.path)
	}
	if _, found := missingVersion(r.body); found {
		return fail(store.ErrDeleted, "its data was deleted or destroyed")
	}
	return fail(store.ErrNotFound, "nothing is there")
}

// vaultErrors reads the list of errors of an answer, each passed through
// redact; ok is false if there is no such list.
func vaultErrors(body []byte, redact func([]byte) []byte) (said string, ok bool) {
	const none = "no reason given"
	root, err := document(body)
	if err != nil {
		return none, false
	}
	var texts []string
	err = members(root, func(name, value []byte) error {
		if !is(name, "errors") {
			return nil
		}
		ok = true
		return elements(value, func(element []byte) error {
			raw := make([]byte, len(element))
			defer clear(raw)
			n, err := unquote(raw, element)
			texts = append(texts, string(redact(raw[:n])))
			return err
		})
	})
	if err != nil || len(texts) == 0 {
		return none, ok && err == nil
	}
	return clean(strings.Join(texts, "; ")), true
}

// minRedacted is the shortest text of a request that is taken out of an
// answer's error. Shorter ones are words rather than secrets.
const minRedacted = 8

// redact takes the token and the secrets of a request's body out of a text.
func redact(said, body []byte, token string) []byte {
	const mark = "[redacted]"
	if len(token) >= minRedacted {
		said = bytes.ReplaceAll(said, []byte(token), []byte(mark))
	}
	secretsOf(body, func(secret []byte) {
		if len(secret) >= minRedacted {
			said = bytes.ReplaceAll(said, secret, []byte(mark))
		}
	})
	return said
}

// secretsOf calls f with each secret that a request's body holds: the fields
// of a secret that is written, and what a login proves itself with. The slice
// is wiped when f returns.
func secretsOf(body []byte, f func(secret []byte)) {
	each := func(value []byte) {
		content := make([]byte, len(value))
		defer clear(content)
		if n, err := unquote(content, value); err == nil {
			f(content[:n])
		}
	}
	root, err := document(body)
	if err != nil {
		return
	}
	_ = members(root, func(name, value []byte) error { // the body is our own
		switch {
		case is(name, "jwt"), is(name, "secret_id"):
			each(value)
		case is(name, "data"):
			return members(value, func(_, value []byte) error {
				each(value)
				return nil
			})
		}
		return nil
	})
}

// redirectTarget is the scheme and host that an answer points to.
func redirectTarget(r *reply) string {
	u, err := url.Parse(r.header.Get("Location"))
	if err != nil || u.Host == "" {
		return "another place"
	}
	return clean(u.Scheme + "://" + u.Host)
}
