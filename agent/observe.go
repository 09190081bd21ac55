package agent

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	stdsync "sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/postern-proxy/postern/agent/admin"
	"github.com/postern-proxy/postern/agent/audit"
	"github.com/postern-proxy/postern/agent/redact"
	"github.com/postern-proxy/postern/agent/sync"
	"github.com/postern-proxy/postern/config"
)

// metrics are the process's own; each room registers what it knows itself.
type metrics struct {
	sync       *sync.Metrics
	redactions *prometheus.CounterVec
	exposures  prometheus.Counter
	reloads    *prometheus.CounterVec
	reloadOK   prometheus.Gauge
	generation prometheus.Gauge
	auditFails prometheus.Counter
}

func newMetrics(reg *prometheus.Registry, version string) *metrics {
	admin.RegisterProcess(reg, version)
	m := &metrics{
		sync: sync.NewMetrics(reg),
		redactions: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "postern_redactions_total",
			Help: "Occurrences of a known key that were scrubbed, by where they stood. Anything but 0 is an exposure to look into."}, []string{"where"}),
		exposures: prometheus.NewCounter(prometheus.CounterOpts{Name: "postern_key_exposures_total",
			Help: "key.exposed events: at most one a minute per version."}),
		reloads: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "postern_config_reloads_total", Help: "Attempts to take a new configuration."}, []string{"outcome"}),
		reloadOK: prometheus.NewGauge(prometheus.GaugeOpts{Name: "postern_config_last_reload_successful",
			Help: "1 if the configuration in force is the one on disk."}),
		generation: prometheus.NewGauge(prometheus.GaugeOpts{Name: "postern_config_generation", Help: "The generation in force, counted from 1."}),
		auditFails: prometheus.NewCounter(prometheus.CounterOpts{Name: "postern_audit_failures_total", Help: "Audit entries that could not be written."}),
	}
	reg.MustRegister(m.redactions, m.exposures, m.reloads, m.reloadOK, m.generation, m.auditFails)
	m.reloadOK.Set(1)
	return m
}

func newLogHandler(c config.Log, known *redact.Set, out io.Writer) slog.Handler {
	var level slog.Level
	if err := level.UnmarshalText([]byte(c.Level)); err != nil {
		level = slog.LevelInfo
	}
	o := &slog.HandlerOptions{Level: level}
	var h slog.Handler = slog.NewJSONHandler(out, o)
	if c.Format == "text" {
		h = slog.NewTextHandler(out, o)
	}
	return known.Handler(h)
}

// auditSink is the audit file with its figures.
type auditSink struct {
	audit.Sink
	m *metrics
}

func (s auditSink) Append(ctx context.Context, e audit.Event) (audit.Head, error) {
	head, err := s.Sink.Append(ctx, e)
	if err != nil {
		s.m.auditFails.Inc()
	}
	return head, err
}

// exposureEvery is how often one version's exposure becomes an event.
const exposureEvery = time.Minute

// exposures remembers when a version was last reported.
type exposures struct {
	mu   stdsync.Mutex
	last map[redact.Label]time.Time
	wg   stdsync.WaitGroup
}

func (e *exposures) due(l redact.Label, now time.Time) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	if t, ok := e.last[l]; ok && now.Sub(t) < exposureEvery {
		return false
	}
	if e.last == nil {
		e.last = map[redact.Label]time.Time{}
	}
	e.last[l] = now
	return true
}

// exposed is told of each occurrence of a known key that was scrubbed. A real
// key that stood somewhere is something that someone must hear of.
func (a *Agent) exposed(l redact.Label, where string) {
	a.metrics.redactions.WithLabelValues(where).Inc()
	if l.Key == "" {
		return // something of a key's form in a log: no key that is known
	}
	if !a.exposures.due(l, time.Now()) {
		return
	}
	a.metrics.exposures.Inc()
	// Its own goroutine: the scrubber may be inside the logger or the audit sink right now.
	a.exposures.wg.Go(func() {
		a.log.Error("a key was about to be exposed and was scrubbed; rotate it if it may have been seen before", "key", l.Key, "key_version", l.Version, "where", where)
		err := a.record(context.Background(), audit.Event{Event: "key.exposed", Key: l.Key, Version: l.Version, Outcome: "scrubbed", Reason: where})
		if err != nil {
			a.log.Warn("the audit entry of an exposure could not be written", "error", err.Error())
		}
	})
}

func (a *Agent) openAudit(path string) (*audit.File, error) {
	f, err := audit.Open(path, audit.Options{Stdout: a.o.Audit, Scrub: a.known.Text})
	if err != nil {
		return nil, fmt.Errorf("audit.file: %w", err)
	}
	a.registry.MustRegister(admin.NewAuditHead(func() (uint64, string) { h := f.Head(); return h.Seq, h.Hash }, nil))
	return f, nil
}
