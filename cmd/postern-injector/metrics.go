package main

import (
	"net/http"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// metrics are the injector's figures. Labels come from fixed lists, and namespaces.
type metrics struct {
	registry  *prometheus.Registry
	reviews   *prometheus.CounterVec // result: injected, again, skipped, refused, failed; reason
	findings  *prometheus.CounterVec // reason
	seconds   prometheus.Histogram
	missed    *prometheus.GaugeVec // namespace
	watchdog  prometheus.Gauge
	notAfter  *prometheus.GaugeVec // certificate: ca, serving
	certFails prometheus.Counter
	dropped   prometheus.Counter
}

func newMetrics() *metrics {
	m := &metrics{
		registry: prometheus.NewRegistry(),
		reviews: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "postern_injector_reviews_total",
			Help: "Pods that the API server asked about, by result (injected, again, skipped, refused, failed) and reason."}, []string{"result", "reason"}),
		findings: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "postern_injector_findings_total",
			Help: "What was found in injected pods that their owners should change, by reason (PodHoldsKey, BaseURLBypasses, …)."}, []string{"reason"}),
		seconds: prometheus.NewHistogram(prometheus.HistogramOpts{Name: "postern_injector_review_seconds",
			Help: "Time to answer a review.", Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 3}, NativeHistogramBucketFactor: 1.1, NativeHistogramMaxBucketNumber: 40}),
		missed: prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "postern_injector_missed_pods",
			Help: "Running pods that should have a sidecar and have none, by namespace."}, []string{"namespace"}),
		watchdog: prometheus.NewGauge(prometheus.GaugeOpts{Name: "postern_injector_watchdog_timestamp_seconds",
			Help: "When pods were last looked through for missing sidecars."}),
		notAfter: prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "postern_injector_certificate_not_after_seconds",
			Help: "When the certificate (ca, serving) ends."}, []string{"certificate"}),
		certFails: prometheus.NewCounter(prometheus.CounterOpts{Name: "postern_injector_certificate_errors_total",
			Help: "Failed attempts to read, make or publish certificates."}),
		dropped: prometheus.NewCounter(prometheus.CounterOpts{Name: "postern_injector_events_dropped_total",
			Help: "Events that could not be written."}),
	}
	m.registry.MustRegister(m.reviews, m.findings, m.seconds, m.missed, m.watchdog, m.notAfter, m.certFails, m.dropped,
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	for _, r := range []string{"injected", "again", "skipped", "refused", "failed"} {
		m.reviews.WithLabelValues(r, "") // so that a rate exists before the first
	}
	return m
}

func (m *metrics) handler() http.Handler {
	return promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{})
}
