package server

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"

	"github.com/postern-proxy/postern/agent/keys"
	"github.com/postern-proxy/postern/agent/store"
)

// The codes of the management API's problems; docs/ERRORS.md explains each. They are stable.
const (
	codeInvalid          = "invalid_request"
	codeUnauthenticated  = "unauthenticated"
	codeForbidden        = "forbidden"
	codeCrossSite        = "cross_site"
	codeNotFound         = "not_found"
	codeMethod           = "method_not_allowed"
	codeExists           = "key_exists"
	codeOpen             = "rotation_open"
	codeConflict         = "conflict"
	codeTooLarge         = "body_too_large"
	codeUnsupportedMedia = "unsupported_media_type"
	codeRefused          = "refused"
	codeKeyRejected      = "key_rejected"
	codeLimited          = "rate_limited"
	codeInternal         = "internal"
	codeUnavailable      = "store_unavailable"
	codeTimeout          = "timeout"
)

// statuses are the codes' HTTP statuses.
var statuses = map[string]int{
	codeInvalid:          http.StatusBadRequest,
	codeUnauthenticated:  http.StatusUnauthorized,
	codeForbidden:        http.StatusForbidden,
	codeCrossSite:        http.StatusForbidden,
	codeNotFound:         http.StatusNotFound,
	codeMethod:           http.StatusMethodNotAllowed,
	codeExists:           http.StatusConflict,
	codeOpen:             http.StatusConflict,
	codeConflict:         http.StatusConflict,
	codeTooLarge:         http.StatusRequestEntityTooLarge,
	codeUnsupportedMedia: http.StatusUnsupportedMediaType,
	codeRefused:          http.StatusUnprocessableEntity,
	codeKeyRejected:      http.StatusUnprocessableEntity,
	codeLimited:          http.StatusTooManyRequests,
	codeInternal:         http.StatusInternalServerError,
	codeUnavailable:      http.StatusServiceUnavailable,
	codeTimeout:          http.StatusGatewayTimeout,
}

// problem is an error of RFC 9457 with two members of our own: its code, and
// the field or parameter that is at fault.
type problem struct {
	Type   string `json:"type"`
	Title  string `json:"title"`
	Status int    `json:"status"`
	Detail string `json:"detail"`
	Code   string `json:"code"`
	Field  string `json:"field,omitempty"`

	retryAfter int   // seconds; 0: not said
	cause      error // for the log, where it says more than Detail
}

func (p *problem) Error() string { return p.Detail }

func refusal(code, format string, args ...any) *problem {
	status := statuses[code]
	return &problem{Type: "about:blank", Title: http.StatusText(status), Status: status, Code: code, Detail: fmt.Sprintf(format, args...)}
}

// badField is a refusal that names what of the request is at fault.
func badField(field, format string, args ...any) *problem {
	p := refusal(codeInvalid, field+": "+format, args...)
	p.Field = field
	return p
}

// ownError is trouble with what the server does in its own name: nothing that
// the caller may or may not do changes it.
type ownError struct{ error }

func (e ownError) Unwrap() error { return e.error }

// explain turns what an operation failed with into what the caller is told. The
// texts of package keys and of the stores are made for callers: they name paths
// and fields, never a value.
func explain(err error) *problem {
	if p, ok := errors.AsType[*problem](err); ok {
		return p
	}
	if own, ok := errors.AsType[ownError](err); ok {
		p := refusal(codeUnavailable, "the server itself could not do its part; its log says why")
		p.cause, p.retryAfter = own.error, 30
		return p
	}
	code := codeRefused
	switch {
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		p := refusal(codeTimeout, "it took too long; look at how far it came before trying again")
		p.cause = err
		return p
	case errors.Is(err, store.ErrUnauthenticated):
		return refusal(codeUnauthenticated, "Vault does not know the token: it expired or was revoked")
	case errors.Is(err, store.ErrForbidden):
		code = codeForbidden
	case errors.Is(err, keys.ErrOpen):
		code = codeOpen
	case errors.Is(err, keys.ErrRejected):
		code = codeKeyRejected
	case errors.Is(err, store.ErrConflict):
		code = codeConflict
	case errors.Is(err, store.ErrNotFound), errors.Is(err, store.ErrDeleted):
		code = codeNotFound
	case errors.Is(err, store.ErrUnavailable):
		p := refusal(codeUnavailable, "%v", err)
		p.retryAfter = 5
		return p
	case errors.Is(err, store.ErrInvalid):
		code = codeInvalid
	}
	return refusal(code, "%v", err)
}

const (
	jsonType    = "application/json"
	problemType = "application/problem+json"
)

// refuse writes a problem.
func (a *api) refuse(w http.ResponseWriter, p *problem) {
	if p.retryAfter > 0 {
		w.Header().Set("Retry-After", fmt.Sprint(p.retryAfter))
	}
	if p.Status == http.StatusUnauthorized {
		w.Header().Set("WWW-Authenticate", `Bearer realm="postern"`)
	}
	a.write(w, p.Status, problemType, p)
}

// write writes an answer, scrubbed of whatever has the form of a key or a token.
func (a *api) write(w http.ResponseWriter, status int, contentType string, body any) {
	b, err := json.Marshal(body)
	if err != nil { // what is answered with is made of plain values
		a.o.Logger.Error("an answer cannot be written", "error", err)
		status, contentType = http.StatusInternalServerError, problemType
		b, _ = json.Marshal(refusal(codeInternal, "the answer cannot be written"))
	}
	w.Header().Set("Content-Type", contentType)
	w.WriteHeader(status)
	w.Write(append(a.o.Scrub(b), '\n'))
}
