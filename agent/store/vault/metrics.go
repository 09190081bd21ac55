package vault

import (
	"context"
	"errors"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/postern-proxy/postern/agent/store"
)

type metrics struct {
	requests *prometheus.CounterVec
	seconds  *prometheus.HistogramVec
	expiry   prometheus.Gauge
	logins   *prometheus.CounterVec
	caller   bool // of a caller's token: the gauges and logins are about ours
}

// ofCaller are the same metrics for a Store that uses a caller's token.
func (m *metrics) ofCaller() *metrics {
	c := *m
	c.caller = true
	return &c
}

func newMetrics(reg prometheus.Registerer) (*metrics, error) {
	m := &metrics{
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "postern_vault_requests_total",
			Help: "Requests to Vault, by operation and outcome.",
		}, []string{"operation", "outcome"}),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:                            "postern_vault_request_seconds",
			Help:                            "Time from sending a request to Vault to having its whole answer.",
			Buckets:                         []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10},
			NativeHistogramBucketFactor:     1.1,
			NativeHistogramMaxBucketNumber:  100,
			NativeHistogramMinResetDuration: time.Hour,
		}, []string{"operation"}),
		expiry: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "postern_vault_token_expiry_seconds",
			Help: "When the token for Vault ends, in Unix time; 0 if it has no end, or its end is not known, or there is none.",
		}),
		logins: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "postern_vault_logins_total",
			Help: "Attempts to log in to Vault, by outcome.",
		}, []string{"outcome"}),
	}
	if reg == nil {
		return m, nil
	}
	for _, err := range []error{
		share(reg, &m.requests), share(reg, &m.seconds), share(reg, &m.expiry), share(reg, &m.logins),
	} {
		if err != nil {
			return nil, err
		}
	}
	return m, nil
}

// share registers a collector, or takes the one that another Store of the
// process has registered under the same name.
func share[C prometheus.Collector](reg prometheus.Registerer, c *C) error {
	err := reg.Register(*c)
	var already prometheus.AlreadyRegisteredError
	if errors.As(err, &already) {
		if existing, ok := already.ExistingCollector.(C); ok {
			*c = existing
			return nil
		}
	}
	return err
}

func (m *metrics) observe(op operation, err error, took time.Duration) {
	m.requests.WithLabelValues(string(op), outcome(err)).Inc()
	m.seconds.WithLabelValues(string(op)).Observe(took.Seconds())
}

func (m *metrics) login(err error) {
	if !m.caller {
		m.logins.WithLabelValues(outcome(err)).Inc()
	}
}

func (m *metrics) expires(at time.Time) {
	switch {
	case m.caller:
	case at.IsZero():
		m.expiry.Set(0)
	default:
		m.expiry.Set(float64(at.UnixMilli()) / 1000)
	}
}

// outcome names an error's reason for a label.
func outcome(err error) string {
	for _, o := range []struct {
		reason error
		name   string
	}{
		{nil, "ok"},
		{store.ErrNotFound, "not_found"},
		{store.ErrDeleted, "deleted"},
		{store.ErrConflict, "conflict"},
		{store.ErrForbidden, "forbidden"},
		{store.ErrUnauthenticated, "unauthenticated"},
		{store.ErrUnavailable, "unavailable"},
		{store.ErrInvalid, "invalid"},
		{context.Canceled, "canceled"},
		{context.DeadlineExceeded, "canceled"},
	} {
		if errors.Is(err, o.reason) {
			return o.name
		}
	}
	return "unknown"
}
