package provider

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/postern-proxy/postern/agent/provider/spec"
	"github.com/postern-proxy/postern/agent/rotation"
	"github.com/postern-proxy/postern/agent/secret"
)

// maxProbeBody bounds what a probe reads of an answer, in bytes.
const maxProbeBody = 64 << 10

// Result is what a probe found.
type Result struct {
	Verdict rotation.Verdict
	Status  int           // 0 if no answer came
	Latency time.Duration // until the answer was read; 0 if nothing was sent
	// Meaning says in a few words what the answer means; it never holds a key or any of the answer's text.
	Meaning string
	// Err is why there is no answer; nil if there is one. Its text never holds
	// a key. It wraps a context's error and nothing else.
	Err error
}

// What a probe's answer means.
const (
	meansLive       = "live"
	meansRestricted = "live but restricted"
	meansLimited    = "live but limited"
	meansDead       = "missing, malformed or revoked"
	meansDisabled   = "known to the provider but switched off"
	meansNoProbe    = "unknown: this provider has no cheap request that tells"
	meansNotAsked   = "unknown: could not ask"
	meansNoAnswer   = "unknown: no answer"
	meansOdd        = "unknown: the answer is not what this request should draw"
)

// Probe asks the provider whether a key is live: one request through rt, no
// redirect followed, no retry, bounded by the spec's timeout and by ctx. A 403
// and a 429 are live: the provider knew the key. Whatever says nothing about
// the key is VerdictUnknown.
func (p *Provider) Probe(ctx context.Context, rt http.RoundTripper, fields map[string]*secret.Value) Result {
	if p.spec.Probe.Path == "" {
		return Result{Meaning: meansNoProbe}
	}
	ctx, cancel := context.WithTimeout(ctx, p.spec.Probe.Timeout)
	defer cancel()
	req, err := p.probeRequest(ctx)
	if err != nil {
		return Result{Meaning: meansNotAsked, Err: fmt.Errorf("probe: %w", err)}
	}
	host := req.URL.Host
	if err := p.Attach(req.Header, req.URL, fields); err != nil {
		return Result{Meaning: meansNotAsked, Err: fmt.Errorf("probe: %w", err)}
	}
	start := time.Now()
	resp, err := rt.RoundTrip(req)
	if err != nil {
		return Result{Latency: time.Since(start), Meaning: meansNoAnswer, Err: p.unanswered(ctx, host, err, fields)}
	}
	defer resp.Body.Close()
	buf := make([]byte, maxProbeBody)
	defer secret.Wipe(buf) // it may repeat the key
	n, err := readUpTo(resp.Body, buf)
	if err != nil && bodyDecides(p.spec.Probe, resp.StatusCode) {
		return Result{Status: resp.StatusCode, Latency: time.Since(start), Meaning: meansNoAnswer, Err: p.unanswered(ctx, host, err, fields)}
	}
	r := Result{Status: resp.StatusCode, Latency: time.Since(start)}
	r.Verdict, r.Meaning = judge(p.spec.Probe, resp.StatusCode, buf[:n])
	return r
}

func (p *Provider) probeRequest(ctx context.Context) (*http.Request, error) {
	probe := p.spec.Probe
	target := p.scheme + "://" + p.host + p.base + probe.Path
	if probe.Host != "" {
		target = "https://" + probe.Host + probe.Path
	}
	var body io.Reader
	if probe.Body != "" {
		body = strings.NewReader(probe.Body)
	}
	req, err := http.NewRequestWithContext(ctx, probe.Method, target, body)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Accept", "application/json")
	req.Header.Set("Accept-Encoding", "identity")
	req.Header.Set("User-Agent", "postern")
	if probe.Body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	for k, v := range probe.Headers {
		req.Header.Set(k, v)
	}
	return req, nil
}

// readUpTo fills buf as far as r goes. Unlike io.ReadFull it tells an end from
// a body that broke off.
func readUpTo(r io.Reader, buf []byte) (n int, err error) {
	for n < len(buf) && err == nil {
		var m int
		m, err = r.Read(buf[n:])
		n += m
	}
	if err == io.EOF {
		err = nil
	}
	return n, err
}

// bodyDecides reports whether an answer's status alone could mislead.
func bodyDecides(probe spec.Probe, status int) bool {
	if slices.Contains(probe.Live, status) {
		return probe.DeadBody != "" || len(probe.DeadIf) > 0
	}
	return status >= 400 && len(probe.DeadText) > 0 && !slices.Contains(probe.Dead, status)
}

// judge says what an answer means.
func judge(probe spec.Probe, status int, body []byte) (rotation.Verdict, string) {
	if slices.Contains(probe.Live, status) {
		return judgeBody(probe, body)
	}
	if status >= 400 && slices.ContainsFunc(probe.DeadText, func(t string) bool { return bytes.Contains(body, []byte(t)) }) {
		return rotation.VerdictDead, meansDead
	}
	switch {
	case slices.Contains(probe.Dead, status):
		return rotation.VerdictDead, meansDead
	case status == http.StatusForbidden:
		return rotation.VerdictLive, meansRestricted
	case status == http.StatusTooManyRequests:
		return rotation.VerdictLive, meansLimited
	case status >= 300 && status < 400:
		return rotation.VerdictUnknown, fmt.Sprintf("unknown: status %d, a redirect, which a key does not follow", status)
	}
	return rotation.VerdictUnknown, fmt.Sprintf("unknown: status %d says nothing about the key", status)
}

// judgeBody looks at a live status's body, where the spec says that it decides.
func judgeBody(probe spec.Probe, body []byte) (rotation.Verdict, string) {
	if probe.DeadBody == "" && len(probe.DeadIf) == 0 {
		return rotation.VerdictLive, meansLive
	}
	var answer map[string]any
	if json.Unmarshal(body, &answer) != nil {
		return rotation.VerdictUnknown, meansOdd
	}
	if probe.DeadBody != "" {
		switch valid, isBool := answer[probe.DeadBody].(bool); {
		case !isBool:
			return rotation.VerdictUnknown, meansOdd
		case !valid:
			return rotation.VerdictDead, meansDead
		}
	}
	for _, name := range probe.DeadIf {
		if off, _ := answer[name].(bool); off {
			return rotation.VerdictDead, meansDisabled
		}
	}
	return rotation.VerdictLive, meansLive
}

// unanswered says why no answer came. A transport's error may quote the URL or
// what the server sent: it is passed on only where it repeats no key.
func (p *Provider) unanswered(ctx context.Context, host string, err error, fields map[string]*secret.Value) error {
	if cause := ctx.Err(); cause != nil {
		if errors.Is(cause, context.DeadlineExceeded) {
			return fmt.Errorf("probe: %s did not answer within %s: %w", host, p.spec.Probe.Timeout, cause)
		}
		return fmt.Errorf("probe: %w", cause)
	}
	var outer *url.Error
	if errors.As(err, &outer) {
		err = outer.Err
	}
	text := err.Error()
	if repeats(text, fields) {
		text = "the connection failed with an error that repeats what was sent"
	}
	return fmt.Errorf("probe: %s: %s", host, text)
}

// repeats reports whether text holds a field's value of 8 bytes or more, as it
// is, percent-encoded or in base64.
func repeats(text string, fields map[string]*secret.Value) bool {
	found := false
	for _, v := range fields {
		v.Use(func(b []byte) {
			if len(b) < 8 {
				return // an identifier: any text may hold it
			}
			enc := make([]byte, base64.RawStdEncoding.EncodedLen(len(b)))
			defer secret.Wipe(enc)
			base64.RawStdEncoding.Encode(enc, b)
			escaped := appendEscaped(make([]byte, 0, 3*len(b)), b)
			defer func() { secret.Wipe(escaped) }()
			found = found || bytes.Contains([]byte(text), b) || bytes.Contains([]byte(text), escaped) || bytes.Contains([]byte(text), enc[:len(enc)-1])
		})
	}
	return found
}
