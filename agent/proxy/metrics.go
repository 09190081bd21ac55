package proxy

import (
	"github.com/prometheus/client_golang/prometheus"
)

// Metrics are the data path's figures. Labels take their values from the
// configuration and from constants, never from a request.
type Metrics struct {
	requests     *prometheus.CounterVec
	overhead     *prometheus.HistogramVec
	upstream     *prometheus.HistogramVec
	duration     *prometheus.HistogramVec
	failures     *prometheus.CounterVec
	rescued      *prometheus.CounterVec
	opaque       *prometheus.CounterVec
	unmatched    *prometheus.CounterVec
	tunnels      *prometheus.CounterVec
	refusedConns *prometheus.CounterVec
}

// NewMetrics registers them.
func NewMetrics(reg prometheus.Registerer) *Metrics {
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		c := prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, labels)
		reg.MustRegister(c)
		return c
	}
	histogram := func(name, help string, buckets []float64) *prometheus.HistogramVec {
		h := prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: name, Help: help, Buckets: buckets,
			NativeHistogramBucketFactor: 1.1, NativeHistogramMaxBucketNumber: 100,
		}, []string{"provider"})
		reg.MustRegister(h)
		return h
	}
	slow := []float64{.005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60, 120, 300}
	return &Metrics{
		requests:     counter("postern_requests_total", "Requests to configured providers.", "provider", "via", "status", "outcome"),
		overhead:     histogram("postern_overhead_seconds", "Time the agent itself added to a request: until it was sent and from its answer's head on.", []float64{.00001, .000025, .00005, .0001, .00025, .0005, .001, .0025, .005, .01, .05, .1}),
		upstream:     histogram("postern_upstream_seconds", "Time from sending a request to the head of the provider's answer.", slow),
		duration:     histogram("postern_request_seconds", "Time from a request's head to the end of its answer.", slow),
		failures:     counter("postern_upstream_failures_total", "Requests for which the provider could not be reached, by kind.", "provider", "kind"),
		rescued:      counter("postern_retries_rescued_total", "Requests that one version of a key was refused on and the other answered.", "provider"),
		opaque:       counter("postern_unscrubbed_responses_total", "Answers that could not be scrubbed because the provider compressed them unasked.", "provider"),
		unmatched:    counter("postern_unmatched_requests_total", "Requests that matched no configured provider.", "via", "outcome"),
		tunnels:      counter("postern_tunnels_total", "CONNECT tunnels, by what became of them.", "outcome"),
		refusedConns: counter("postern_refused_connections_total", "Client connections closed at once: over the cap, or a user that is not listed.", "reason"),
	}
}

// targetMetrics are one provider's, with their labels looked up once.
type targetMetrics struct {
	m                            *Metrics
	name                         string
	ok                           map[string]*[6]prometheus.Counter // by via, then status class
	overhead, upstream, duration prometheus.Observer
	rescued, opaque              prometheus.Counter
}

var classes = [6]string{"none", "1xx", "2xx", "3xx", "4xx", "5xx"}

func class(status int) int {
	if status < 100 || status > 599 {
		return 0
	}
	return status / 100
}

func (m *Metrics) target(name string) targetMetrics {
	t := targetMetrics{
		m: m, name: name, ok: map[string]*[6]prometheus.Counter{},
		overhead: m.overhead.WithLabelValues(name), upstream: m.upstream.WithLabelValues(name), duration: m.duration.WithLabelValues(name),
		rescued: m.rescued.WithLabelValues(name), opaque: m.opaque.WithLabelValues(name),
	}
	for _, via := range []string{viaRoute, viaAbsolute, viaConnect} {
		var by [6]prometheus.Counter
		for i, c := range classes {
			by[i] = m.requests.WithLabelValues(name, via, c, "ok")
		}
		t.ok[via] = &by
	}
	return t
}

func (t *targetMetrics) request(via string, status int, outcome string) {
	if outcome == "ok" {
		t.ok[via][class(status)].Inc()
		return
	}
	t.m.requests.WithLabelValues(t.name, via, classes[class(status)], outcome).Inc()
}

func (t *targetMetrics) failure(kind string) {
	t.m.failures.WithLabelValues(t.name, kind).Inc()
}
