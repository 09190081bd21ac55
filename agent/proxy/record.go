package proxy

import (
	"context"
	"log/slog"
	"net/http"
	"time"
)

// errorField names the field of our own errors; its value is one of the codes below.
const errorField = "Postern-Error"

// The codes of errors that the agent itself answers. They are stable; docs/ERRORS.md explains each.
const (
	codeBadPath      = "bad_path"
	codeBadHost      = "bad_host"
	codeHost         = "host_not_allowed"
	codeFraming      = "bad_framing"
	codeCrossSite    = "cross_site"
	codeNoRoute      = "no_such_route"
	codeMisdirected  = "host_mismatch"
	codeUnmatched    = "unmatched_denied"
	codeNoKey        = "no_usable_key"
	codeUnreachable  = "upstream_unreachable"
	codeTimeout      = "upstream_timeout"
	codeGuard        = "address_refused"
	codeUnscrubbable = "unscrubbable"
	codeCutShort     = "cut_short"   // the answer broke off; the connection was cut
	codeClientGone   = "client_gone" // the client left first
	codePanic        = "panic"       // a mistake of the agent's own; the connection was cut
)

// Codes that are entries in the audit record, not only in the log.
var denied = map[string]bool{
	codeHost: true, codeCrossSite: true, codeMisdirected: true, codeUnmatched: true, codeGuard: true, codeUnscrubbable: true,
}

// fail notes why the exchange did not go as asked.
func (x *exchange) fail(code string, err error) {
	x.code, x.err = code, err
}

// finish records the exchange: metrics, one log line, an audit entry where
// something was denied. A panic ends here, recorded, and with it the connection.
func (x *exchange) finish(end *ending) {
	p := recover()
	if p != nil && p != http.ErrAbortHandler { // which goproxy cuts connections by
		x.code = codePanic
	}
	now := time.Now()
	x.measure(now)
	x.log(now)
	if denied[x.code] {
		x.s.denials.add(x.code, x.name(), x.c.conn.RemoteAddr().String())
	}
	switch {
	case p == http.ErrAbortHandler:
		*end = endNow
	case p != nil:
		// The value may hold anything: it is logged through the scrubber, and goes no further.
		x.s.Logger.Error("panic in an exchange", "panic", p, "provider", x.name())
		*end = endNow
	case x.aborted:
		*end = endNow
	case x.last:
		*end = endAfter
	}
}

func (x *exchange) name() string {
	if x.t == nil {
		return ""
	}
	return x.t.Name
}

func (x *exchange) measure(end time.Time) {
	if x.t == nil {
		x.s.Metrics.unmatched.WithLabelValues(x.via, x.codeOr("tunnelled")).Inc()
		return
	}
	x.t.metrics.request(x.via, x.status, x.codeOr("ok"))
	if !x.sent.IsZero() && !x.answered.IsZero() && !x.wrote.IsZero() {
		x.t.metrics.overhead.Observe((x.sent.Sub(x.start) + x.wrote.Sub(x.answered)).Seconds())
		x.t.metrics.upstream.Observe(x.answered.Sub(x.sent).Seconds())
	}
	x.t.metrics.duration.Observe(end.Sub(x.start).Seconds())
}

func (x *exchange) codeOr(ok string) string {
	if x.code == "" {
		return ok
	}
	return x.code
}

// log writes the one line. It never holds a path's query, a header or a body.
func (x *exchange) log(end time.Time) {
	level := slog.LevelInfo
	if x.err != nil || x.status >= 500 && x.code != "" {
		level = slog.LevelWarn
	}
	ctx := context.Background()
	if !x.s.Logger.Enabled(ctx, level) || level == slog.LevelInfo && x.line(end) {
		return
	}
	attrs := make([]slog.Attr, 0, 12)
	attrs = append(attrs,
		slog.String("via", x.via), slog.String("provider", x.name()), slog.String("method", string(x.req.Method)),
		slog.Int("status", x.status), slog.Duration("took", end.Sub(x.start)))
	if x.version > 0 {
		attrs = append(attrs, slog.Int("key_version", x.version))
	}
	if x.retried {
		attrs = append(attrs, slog.Bool("retried", true))
	}
	if x.masked > 0 {
		attrs = append(attrs, slog.Int("masked", x.masked))
	}
	if x.code != "" {
		attrs = append(attrs, slog.String("code", x.code))
	}
	if x.err != nil {
		attrs = append(attrs, slog.String("error", x.err.Error()))
	}
	x.s.Logger.LogAttrs(ctx, level, "request", attrs...)
}

// recordConnect records a CONNECT that was refused or failed.
func (s *Server) recordConnect(r *http.Request, code string) {
	s.Metrics.unmatched.WithLabelValues(viaConnect, code).Inc()
	s.Logger.LogAttrs(r.Context(), slog.LevelInfo, "request",
		slog.String("via", viaConnect), slog.String("method", http.MethodConnect), slog.String("code", code))
	if denied[code] {
		s.denials.add(code, "", r.RemoteAddr)
	}
}
