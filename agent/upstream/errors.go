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
	return "answered CONNECT with " + strconv.Itoa(int(s)) + " " + http.StatusText(int(s))
}

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

func explainProxy(proxy string, err error) error {
	if errors.Is(err, context.Canceled) {
		return err
	}
	_, hint := diagnose(err)
	var status proxyStatus
	if errors.As(err, &status) {
		hint = status.Error()
		if status == http.StatusProxyAuthRequired {
			hint += "; check the user and password in egress.proxy"
		}
	}
	return &Error{HostPort: proxy, Kind: "proxy", Hint: "the egress proxy: " + hint, err: err}
}

func diagnose(err error) (kind, hint string) {
	var (
		dns     *net.DNSError
		unknown x509.UnknownAuthorityError
		name    x509.HostnameError
		invalid x509.CertificateInvalidError
		record  tls.RecordHeaderError
		alert   tls.AlertError
		netErr  net.Error
	)
	switch {
	case errors.Is(err, errGuard):
		return "guard", "refused by the address guard: " + errGuard.Error()
	case errors.As(err, &dns):
		if dns.IsNotFound {
			return "dns", "the name does not resolve; check the spelling of the host and the resolver"
		}
		return "dns", "the name could not be resolved; check the resolver (network, DNS policy)"
	case errors.As(err, &unknown):
		return "tls", "its certificate is signed by an unknown authority; if a corporate proxy or a private CA stands there, name its root in egress.ca_file or in the provider's ca_file"
	case errors.As(err, &name):
		return "tls", "its certificate is for another name; check the host and what answers there"
	case errors.As(err, &invalid):
		return "tls", "its certificate is not valid (expired, not yet valid, or not for servers); check the clock and the certificate"
	case errors.As(err, &record):
		return "tls", "it does not speak TLS on this port; check the port"
	case errors.As(err, &alert):
		return "tls", "the TLS handshake was refused"
	case errors.Is(err, syscall.ECONNREFUSED):
		return "refused", "connection refused; check that something listens there and that the port is right"
	case errors.Is(err, syscall.ENETUNREACH), errors.Is(err, syscall.EHOSTUNREACH):
		return "unreachable", "no route; check the network and whether an egress proxy is needed (egress.proxy)"
	case errors.Is(err, syscall.EMFILE), errors.Is(err, syscall.ENFILE):
		return "other", "no file descriptor is left; raise the limit of open files"
	case errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		return "reset", "the connection was reset"
	case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, context.DeadlineExceeded), errors.As(err, &netErr) && netErr.Timeout():
		return "timeout", "no answer in time; check the network, a firewall, and whether an egress proxy is needed (egress.proxy)"
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), strings.Contains(err.Error(), "server closed"):
		return "closed", "the connection was closed before an answer came"
	case strings.Contains(err.Error(), "malformed HTTP"), strings.Contains(err.Error(), "headers exceeded"):
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
