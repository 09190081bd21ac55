package issuer

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/postern-proxy/postern/agent/store"
	"github.com/postern-proxy/postern/agent/upstream"
)

// Error is what went wrong at a vendor, or on the way there. It holds nothing
// of what the vendor wrote but its own name for the mistake.
type Error struct {
	// Reason is ErrUnsupported, ErrRefused, ErrLimited or ErrForeign.
	Reason error
	// Status is the answer's; 0 where there was none.
	Status int
	// Code is the vendor's name for the mistake, as in insufficient_permissions; "" where
	// it gave none that can be told.
	Code string
	// RetryAfter is how long the vendor wants to be left alone, at most a day; 0 where it did not say.
	RetryAfter time.Duration

	text string
}

// Error names the vendor, what was tried and the setting to look at.
func (e *Error) Error() string { return e.text }

// Unwrap gives the reason.
func (e *Error) Unwrap() error { return e.Reason }

// fail makes an Error of a reason and a sentence.
func fail(reason error, format string, args ...any) *Error {
	return &Error{Reason: reason, text: fmt.Sprintf(format, args...)}
}

// maxRetryAfter bounds what a vendor may ask for.
const maxRetryAfter = 24 * time.Hour

// refusal makes an Error of an answer that is no success. where names the
// settings that say what was asked about; secrets are never repeated.
func refusal(what, where string, status int, header http.Header, body []byte, now time.Time, secrets []string) *Error {
	e := &Error{Reason: ErrRefused, Status: status, Code: vendorCode(body, secrets)}
	hint := "look at " + where
	switch {
	case status == http.StatusTooManyRequests:
		e.Reason, hint = ErrLimited, "too many requests"
	case status == http.StatusRequestTimeout || status == http.StatusTooEarly || status >= 500:
		e.Reason, hint = ErrLimited, "a failure of its own"
	case status < 400:
		hint = "redirects are not followed: look at base_url"
	case status == http.StatusUnauthorized:
		hint = "the admin credential is not accepted: look at the entry that admin_key names"
	case status == http.StatusForbidden:
		hint = "the admin credential lacks the right: look at the entry that admin_key names, and at " + where
	}
	if e.Reason == ErrLimited {
		if e.RetryAfter = retryAfter(header, now); e.RetryAfter > 0 {
			hint += fmt.Sprintf(", try again in %v", e.RetryAfter)
		}
	}
	code := ""
	if e.Code != "" {
		code = " (" + e.Code + ")"
	}
	e.text = fmt.Sprintf("%s: the answer is %d%s: %s", what, status, code, hint)
	return e
}

// retryAfter reads how long to wait: Retry-After in seconds or as a date, and
// what the vendors have beside it (OpenAI: retry-after-ms, x-ratelimit-reset-requests as in 6m0s).
func retryAfter(h http.Header, now time.Time) time.Duration {
	var d time.Duration
	text := strings.TrimSpace(h.Get("Retry-After"))
	switch n, err := strconv.ParseFloat(text, 64); {
	case err == nil && n > 0:
		d = time.Duration(min(n, maxRetryAfter.Seconds()) * float64(time.Second))
	case err != nil && text != "":
		if at, err := http.ParseTime(text); err == nil {
			d = at.Sub(now)
		}
	case h.Get("Retry-After-Ms") != "":
		if ms, err := strconv.ParseUint(h.Get("Retry-After-Ms"), 10, 32); err == nil {
			d = time.Duration(ms) * time.Millisecond
		}
	default:
		d, _ = time.ParseDuration(h.Get("X-Ratelimit-Reset-Requests"))
	}
	return min(max(d, 0), maxRetryAfter)
}

// codeForm has neither the digits nor the dashes of a key among letters.
var codeForm = regexp.MustCompile(`^([A-Za-z][A-Za-z_.]{0,63}|[0-9]{1,6})$`)

// vendorCode is the vendor's own name for a mistake: error.code or error.type
// (OpenAI, OpenRouter, Anthropic, Azure), or error itself where that is a word (OAuth 2).
func vendorCode(body []byte, secrets []string) string {
	var outer struct {
		Error json.RawMessage `json:"error"`
	}
	if json.Unmarshal(body, &outer) != nil {
		return ""
	}
	defer wipe(outer.Error)
	var inner struct {
		Code, Type json.RawMessage
	}
	candidates := []json.RawMessage{outer.Error}
	if json.Unmarshal(outer.Error, &inner) == nil {
		candidates = []json.RawMessage{inner.Code, inner.Type}
	}
	defer wipe(inner.Code)
	defer wipe(inner.Type)
	for _, raw := range candidates {
		word := strings.Trim(string(raw), `"`)
		if word == "null" || !codeForm.MatchString(word) {
			continue
		}
		if !tells(word, secrets) {
			return word
		}
	}
	return ""
}

// tells reports whether a text holds a secret, or is a good part of one.
func tells(text string, secrets []string) bool {
	for _, s := range secrets {
		if s != "" && (strings.Contains(text, s) || len(text) >= 8 && strings.Contains(s, text)) {
			return true
		}
	}
	return false
}

// unreachable makes an Error of a request to host:port that got no answer. The
// caller's own end is told as such.
func unreachable(ctx context.Context, what, hostport string, err error) error {
	if ctx.Err() != nil {
		return fmt.Errorf("%s: %w", what, ctx.Err())
	}
	if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled) {
		return fail(ErrLimited, "%s: no answer in time", what)
	}
	return fail(ErrLimited, "%s: %v", what, upstream.Explain(hostport, err)) // which repeats nothing of what was sent
}

// fromStore makes an Error of what a store said. Its texts name paths and settings, never a value.
func fromStore(ctx context.Context, what string, err error) error {
	reason := ErrLimited
	switch {
	case ctx.Err() != nil:
		return fmt.Errorf("%s: %w", what, ctx.Err())
	case errors.Is(err, store.ErrNotFound), errors.Is(err, store.ErrDeleted), errors.Is(err, store.ErrForbidden), errors.Is(err, store.ErrInvalid):
		reason = ErrRefused
	}
	return fail(reason, "%s: %v", what, err)
}
