package upstream

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
)

// Error says which host could not be reached, why, and what to check. Its text
// is fit for the client: it holds no key, no header and no path.
type Error struct {
	HostPort string
	// Kind is one of dns, refused, timeout, unreachable, reset, tls, guard, proxy, closed, protocol, other: a metric's label.
	Kind string
	Hint string
	err  error
}

func (e *Error) Error() string {
	return "cannot reach " + e.HostPort + ": " + e.Hint
}

func (e *Error) Unwrap() error { return e.err }

type proxyStatus int

func (s proxyStatus) Error() string {
	text := "answered CONNECT with " + strings.TrimSpace(strconv.Itoa(int(s))+" "+http.StatusText(int(s)))
	switch {
	case s == http.StatusProxyAuthRequired:
		text += "; check the user and password in egress.proxy"
	case s == http.StatusForbidden:
		text += "; check whether it lets this host and port pass"
	case s >= 500:
		text += "; it could not reach the host itself"
	}
	return text
}

// errHead: an egress proxy's answer had no end.
var errHead = errors.New("headers exceeded the limit")

// Explain turns an error of a Transport's RoundTrip to host:port into an
// *Error. A cancelled context stays what it is.
func Explain(hostport string, err error) error {
	var e *Error
	if err == nil || errors.As(err, &e) || errors.Is(err, context.Canceled) {
		if e != nil {
			return e
		}
		return err
	}
	return explain(hostport, err)
}

func explain(hostport string, err error) error {
	if errors.Is(err, context.Canceled) {
		return err
	}
	kind, hint := diagnose(err)
	return &Error{HostPort: hostport, Kind: kind, Hint: hint, err: err}
}

// explainProxy is explain for what went wrong at the egress proxy, on the way to host:port.
func explainProxy(hostport, proxy string, err error) error {
	if errors.Is(err, context.Canceled) {
		return err
	}
	_, hint := diagnose(err)
	hint = "the egress proxy " + proxy + ": " + strings.TrimSuffix(hint, andProxy)
	var status proxyStatus
	if errors.As(err, &status) {
		hint = "the egress proxy " + proxy + " " + status.Error()
	}
	return &Error{HostPort: hostport, Kind: "proxy", Hint: hint, err: err}
}

// andProxy ends a hint for a host that was dialled directly.
const andProxy = ", and whether an egress proxy is needed (egress.proxy)"

func diagnose(err error) (kind, hint string) {
	var (
		dns    *net.DNSError
		netErr net.Error
	)
	if hint := diagnoseTLS(err); hint != "" {
		return "tls", hint
	}
	switch {
	case errors.Is(err, errGuard):
		return "guard", "refused by the address guard: " + errGuard.Error()
	case errors.Is(err, errTarget):
		return "guard", "refused by the address guard: " + errTarget.Error()
	case errors.As(err, &dns):
		if dns.IsNotFound {
			return "dns", "the name does not resolve; check the spelling of the host and the resolver"
		}
		return "dns", "the name could not be resolved; check the resolver (network, DNS policy)"
	case errors.Is(err, syscall.ECONNREFUSED):
		return "refused", "connection refused; check that something listens there and that the port is right"
	case errors.Is(err, syscall.ENETUNREACH), errors.Is(err, syscall.EHOSTUNREACH):
		return "unreachable", "no route; check the network" + andProxy
	case errors.Is(err, syscall.EMFILE), errors.Is(err, syscall.ENFILE):
		return "other", "no file descriptor is left; raise the limit of open files"
	case errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		return "reset", "the connection was reset"
	case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, context.DeadlineExceeded), errors.As(err, &netErr) && netErr.Timeout():
		return "timeout", "no answer in time; check the network, a firewall" + andProxy
	}
	return diagnoseHTTP(err)
}

// diagnoseTLS is the hint for an error of TLS; "" for any other.
func diagnoseTLS(err error) string {
	var (
		unknown x509.UnknownAuthorityError
		name    x509.HostnameError
		invalid x509.CertificateInvalidError
		cert    *tls.CertificateVerificationError
		record  tls.RecordHeaderError
		op      *net.OpError
	)
	switch {
	case errors.As(err, &unknown):
		return "its certificate is signed by an unknown authority; if a corporate proxy or a private CA stands there, name its root in egress.ca_file or in the provider's ca_file"
	case errors.As(err, &name):
		return "its certificate is for another name; check the host and what answers there"
	case errors.As(err, &invalid):
		return "its certificate is not valid (expired, not yet valid, or not for servers); check the clock and the certificate"
	case errors.As(err, &cert):
		return "its certificate cannot be verified; check the certificate and the system's roots"
	case errors.As(err, &record):
		return "it does not speak TLS on this port; check the port"
	case errors.As(err, &op) && (op.Op == "remote error" || op.Op == "local error"): // an alert: one of a few fixed texts
		return "the TLS handshake failed (" + strings.TrimPrefix(op.Err.Error(), "tls: ") + "); TLS 1.2 or 1.3 is needed, and no client certificate is offered"
	case strings.HasPrefix(root(err).Error(), "tls: "):
		return "the TLS handshake failed; TLS 1.2 or 1.3 is needed"
	}
	return ""
}

// diagnoseHTTP sorts what net/http says in words only.
func diagnoseHTTP(err error) (kind, hint string) {
	says := func(texts ...string) bool {
		return slices.ContainsFunc(texts, func(s string) bool { return strings.Contains(err.Error(), s) })
	}
	switch {
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF),
		says("server closed", "GOAWAY", "client connection lost", "client connection force closed", "use of closed network connection"):
		return "closed", "the connection was closed before an answer came"
	case says("stream error:"):
		return "reset", "the request was reset by the other side"
	case says("malformed HTTP", "malformed MIME", "headers exceeded", "transport connection broken"):
		return "protocol", "the answer is not valid HTTP"
	}
	return "other", fmt.Sprintf("the exchange failed (%T)", root(err))
}

func root(err error) error {
	for {
		next := errors.Unwrap(err)
		if next == nil {
			return err
		}
		err = next
	}
}
