package server

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics are the server's own figures. No label comes from a request.
type metrics struct {
	requests *prometheus.CounterVec
	seconds  *prometheus.HistogramVec
	denials  *prometheus.CounterVec

	keys      prometheus.Gauge
	open      prometheus.Gauge
	overdue   prometheus.Gauge
	late      prometheus.Gauge
	steps     *prometheus.CounterVec
	begun     *prometheus.CounterVec
	lastSweep prometheus.Gauge
}

func newMetrics(reg prometheus.Registerer) *metrics {
	m := &metrics{
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "postern_api_requests_total", Help: "Requests to the management API."}, []string{"operation", "outcome"}),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "postern_api_request_seconds", Help: "From a request's head to its answer.",
			Buckets: []float64{.005, .02, .1, .5, 2, 10, 60}, NativeHistogramBucketFactor: 1.1, NativeHistogramMaxBucketNumber: 64}, []string{"operation"}),
		denials: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "postern_api_denials_total", Help: "Requests that the store's policies refused."}, []string{"recorded"}),
		keys:    prometheus.NewGauge(prometheus.GaugeOpts{Name: "postern_scheduler_keys", Help: "Keys of the environment."}),
		open:    prometheus.NewGauge(prometheus.GaugeOpts{Name: "postern_rotations_open", Help: "Rotations under way, revocations that wait included."}),
		overdue: prometheus.NewGauge(prometheus.GaugeOpts{Name: "postern_rotation_overdue_seconds", Help: "How long the key that should have been rotated first is overdue; 0 if none is."}),
		late:    prometheus.NewGauge(prometheus.GaugeOpts{Name: "postern_rotations_overdue", Help: "Keys that should have been rotated by now, and rotations of which a step is overdue."}),
		steps:   prometheus.NewCounterVec(prometheus.CounterOpts{Name: "postern_scheduler_steps_total", Help: "Looks at a key by the scheduler."}, []string{"outcome"}),
		begun:   prometheus.NewCounterVec(prometheus.CounterOpts{Name: "postern_scheduler_rotations_total", Help: "Rotations that the scheduler was to begin because they were due."}, []string{"outcome"}),
		lastSweep: prometheus.NewGauge(prometheus.GaugeOpts{Name: "postern_scheduler_last_list_timestamp_seconds",
			Help: "When the environment's keys were last listed, in Unix time; 0 before the first time."}),
	}
	reg.MustRegister(m.requests, m.seconds, m.denials, m.keys, m.open, m.overdue, m.late, m.steps, m.begun, m.lastSweep)
	return m
}

func (m *metrics) request(operation, outcome string, took time.Duration) {
	m.requests.WithLabelValues(operation, outcome).Inc()
	m.seconds.WithLabelValues(operation).Observe(took.Seconds())
}

func (m *metrics) denied(recorded bool) {
	value := "no"
	if recorded {
		value = "yes"
	}
	m.denials.WithLabelValues(value).Inc()
}
