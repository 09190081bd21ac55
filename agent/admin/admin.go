// Package admin is the agent's read-only side: liveness, readiness, metrics, the
// interception CA's certificate, and the status that `postern status` shows. It
// knows no store and no key.
package admin

import (
	"bytes"
	"encoding/json"
	"log/slog"
	"net/http"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// Options are where the answers come from. All but Scrub are required.
type Options struct {
	// Ready reports whether every required key was loaded, and names those that were not.
	Ready    func() (ready bool, waiting []string)
	Registry prometheus.Gatherer
	CAPEM    func() []byte
	// Status is shown as JSON; it must hold no secret.
	Status func() any
	// Scrub is the second net under /status and /metrics; nil leaves it out.
	Scrub  func([]byte) []byte
	Logger *slog.Logger
}

// Handler serves /livez, /readyz, /metrics, /ca.pem and /status for GET and
// HEAD, and nothing else. Liveness depends on nothing but the process.
func Handler(o Options) http.Handler {
	if o.Scrub == nil {
		o.Scrub = func(b []byte) []byte { return b }
	}
	metrics := promhttp.HandlerFor(o.Registry, promhttp.HandlerOpts{
		EnableOpenMetrics:  true, // native histograms and created timestamps need it or protobuf
		ErrorHandling:      promhttp.ContinueOnError,
		DisableCompression: true, // what is compressed cannot be scrubbed
		ErrorLog:           slog.NewLogLogger(o.Logger.Handler(), slog.LevelWarn),
	})
	mux := http.NewServeMux()
	mux.HandleFunc("/livez", func(w http.ResponseWriter, _ *http.Request) { text(w, http.StatusOK, "ok\n") })
	mux.HandleFunc("/readyz", o.readyz)
	mux.HandleFunc("/ca.pem", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/x-pem-file")
		w.Write(o.CAPEM())
	})
	mux.HandleFunc("/status", o.status)
	mux.HandleFunc("/metrics", func(w http.ResponseWriter, r *http.Request) {
		rec := &recorder{header: w.Header(), status: http.StatusOK}
		metrics.ServeHTTP(rec, r)
		w.WriteHeader(rec.status)
		w.Write(o.Scrub(rec.body.Bytes()))
	})
	return readOnly(mux)
}

// readOnly refuses what would change something, and keeps answers out of caches and frames.
func readOnly(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("Cache-Control", "no-store")
		h.Set("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'")
		if r.Method != http.MethodGet && r.Method != http.MethodHead {
			h.Set("Allow", "GET, HEAD")
			text(w, http.StatusMethodNotAllowed, "read only: use GET\n")
			return
		}
		next.ServeHTTP(w, r)
	})
}

func (o Options) readyz(w http.ResponseWriter, _ *http.Request) {
	ready, waiting := o.Ready()
	if ready {
		text(w, http.StatusOK, "ok\n")
		return
	}
	text(w, http.StatusServiceUnavailable, "waiting for keys: "+strings.Join(waiting, ", ")+"\n")
}

func (o Options) status(w http.ResponseWriter, _ *http.Request) {
	b, err := json.Marshal(o.Status())
	if err != nil {
		o.Logger.Error("the status cannot be shown", "error", err.Error())
		text(w, http.StatusInternalServerError, "the status cannot be shown\n")
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.Write(append(o.Scrub(b), '\n'))
}

func text(w http.ResponseWriter, status int, body string) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.WriteHeader(status)
	w.Write([]byte(body))
}

// recorder holds an answer back until it is whole, so that it can be scrubbed.
type recorder struct {
	header http.Header
	status int
	body   bytes.Buffer
}

func (r *recorder) Header() http.Header         { return r.header }
func (r *recorder) WriteHeader(status int)      { r.status = status }
func (r *recorder) Write(b []byte) (int, error) { return r.body.Write(b) }
