// Package admin is the agent's read-only side: liveness, readiness, metrics, the
// interception CA's certificate, and the status that `postern status` shows. It
// knows no store and no key.
//
// No endpoint holds a secret: kubelet and Prometheus may come by any name or
// address. A web page may not read which keys there are, though: it could by a name of its own
// that it rebinds to a loopback address, so that over loopback only loopback's names count.
package admin

import (
	"bytes"
	"encoding/json"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// Limits of [NewServer]: an answer is small and made at once.
const (
	ReadHeaderTimeout = 5 * time.Second
	ReadTimeout       = 10 * time.Second
	WriteTimeout      = 30 * time.Second
	IdleTimeout       = time.Minute
	MaxHeaderBytes    = 16 << 10

	maxScrapes = 4 // at once
)

// Options are where the answers come from. All but Why, Stale and Scrub are required.
// The functions may be called concurrently and must not wait for the store.
type Options struct {
	// Ready reports whether every required key was loaded, and names those that were not.
	Ready func() (ready bool, waiting []string)
	// Why says in a sentence, the same one while nothing changes, why a key that
	// Ready names cannot be loaded; "" where there is no more to say. A probe's
	// output is an Event of the pod, so this is what `kubectl describe` shows.
	Why func(key string) string
	// Stale names the keys that are served from memory with the store out of
	// reach. They do not make the agent unready. Nil means none.
	Stale    func() []string
	Registry prometheus.Gatherer
	CAPEM    func() []byte
	// Status is shown as JSON; it must hold no secret.
	Status func() any
	// Scrub is the second net under /status and /metrics; nil leaves it out. It
	// returns its argument, unchanged, where there is nothing to scrub.
	Scrub  func([]byte) []byte
	Logger *slog.Logger
}

// Handler serves /livez, /readyz, /metrics, /ca.pem and /status for GET and
// HEAD, and nothing else. Liveness depends on nothing but the process. Errors are
// application/problem+json (RFC 9457); /readyz answers in a line of text, for
// people and probes, unless the request accepts JSON.
func Handler(o Options) http.Handler {
	if o.Scrub == nil {
		o.Scrub = func(b []byte) []byte { return b }
	}
	// An exact table, not a ServeMux: that one redirects where it guesses what was meant.
	pages := map[string]http.HandlerFunc{
		"/livez":   func(w http.ResponseWriter, _ *http.Request) { write(w, http.StatusOK, textType, []byte("ok\n")) },
		"/readyz":  o.readyz,
		"/metrics": o.metrics(),
		"/ca.pem":  o.caPEM,
		"/status":  o.status,
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("Cache-Control", "no-store")
		h.Set("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'")
		h.Set("Cross-Origin-Resource-Policy", "same-origin")
		page := pages[r.URL.Path]
		switch {
		case rebound(r):
			refuse(w, http.StatusMisdirectedRequest, "over loopback this listener answers to localhost and to addresses only")
		case page == nil:
			refuse(w, http.StatusNotFound, "this listener has /livez, /readyz, /metrics, /ca.pem and /status")
		case r.Method != http.MethodGet && r.Method != http.MethodHead:
			h.Set("Allow", "GET, HEAD")
			refuse(w, http.StatusMethodNotAllowed, "this listener is read only: use GET")
		default:
			page(w, r)
		}
	})
}

// rebound reports whether a request came over loopback under a name that is not loopback's own.
func rebound(r *http.Request) bool {
	local, _ := r.Context().Value(http.LocalAddrContextKey).(*net.TCPAddr)
	if local == nil || !local.IP.IsLoopback() || r.Host == "" {
		return false
	}
	host := (&url.URL{Host: r.Host}).Hostname()
	return net.ParseIP(host) == nil && !strings.EqualFold(host, "localhost")
}

// NewServer returns a server of Handler(o) with the limits above.
func NewServer(o Options) *http.Server {
	return &http.Server{
		Handler:           Handler(o),
		ReadHeaderTimeout: ReadHeaderTimeout,
		ReadTimeout:       ReadTimeout,
		WriteTimeout:      WriteTimeout,
		IdleTimeout:       IdleTimeout,
		MaxHeaderBytes:    MaxHeaderBytes,
		ErrorLog:          slog.NewLogLogger(o.Logger.Handler(), slog.LevelDebug),
	}
}

// readiness is /readyz as JSON; where it is not ready, a problem of RFC 9457.
type readiness struct {
	Type    string   `json:"type,omitempty"`
	Title   string   `json:"title,omitempty"`
	Status  int      `json:"status"`
	Detail  string   `json:"detail"`
	Ready   bool     `json:"ready"`
	Waiting []string `json:"waiting,omitempty"`
	Stale   []string `json:"stale,omitempty"`
}

func (o Options) readyz(w http.ResponseWriter, r *http.Request) {
	a := readiness{Status: http.StatusOK, Detail: "ok"}
	a.Ready, a.Waiting = o.Ready()
	if o.Stale != nil {
		a.Stale = o.Stale()
	}
	kind := "application/json"
	switch {
	case !a.Ready:
		kind = problemType
		a.Type, a.Title, a.Status = "about:blank", "not ready", http.StatusServiceUnavailable
		a.Detail = o.waitingFor(a.Waiting)
	case len(a.Stale) > 0:
		a.Detail = "ok, though the store is out of reach; served from memory: " + strings.Join(a.Stale, ", ")
	}
	if !strings.Contains(r.Header.Get("Accept"), "json") {
		write(w, a.Status, textType, append(o.Scrub([]byte(a.Detail)), '\n'))
		return
	}
	b, err := json.Marshal(a)
	if err != nil {
		panic(err) // strings, an integer and a boolean
	}
	write(w, a.Status, kind, append(o.Scrub(b), '\n'))
}

// waitingFor names the keys that are missing and, where that is known, why.
func (o Options) waitingFor(keys []string) string {
	text := "waiting for keys: " + strings.Join(keys, ", ")
	if o.Why == nil {
		return text
	}
	told := map[string]bool{} // one store's trouble is often that of all keys
	for _, key := range keys {
		if why := o.Why(key); why != "" && !told[why] {
			told[why] = true
			text += "; " + key + ": " + why
		}
	}
	return text
}

func (o Options) caPEM(w http.ResponseWriter, _ *http.Request) {
	b := o.CAPEM()
	if len(b) == 0 {
		refuse(w, http.StatusServiceUnavailable, "there is no CA at this moment")
		return
	}
	write(w, http.StatusOK, "application/x-pem-file", b)
}

func (o Options) status(w http.ResponseWriter, _ *http.Request) {
	b, err := json.Marshal(o.Status())
	if err != nil {
		o.Logger.Error("the status cannot be shown", "error", err.Error())
		refuse(w, http.StatusInternalServerError, "the status cannot be shown: see the agent's log")
		return
	}
	write(w, http.StatusOK, "application/json", append(o.Scrub(b), '\n'))
}

// metrics holds each answer back until it is whole, so that it can be scrubbed.
func (o Options) metrics() http.HandlerFunc {
	h := promhttp.HandlerFor(o.Registry, promhttp.HandlerOpts{
		EnableOpenMetrics:   true,
		ErrorHandling:       promhttp.ContinueOnError,
		DisableCompression:  true, // what is compressed cannot be scrubbed
		MaxRequestsInFlight: maxScrapes,
		ErrorLog:            slog.NewLogLogger(o.Logger.Handler(), slog.LevelWarn),
	})
	return func(w http.ResponseWriter, r *http.Request) {
		rec := &recorder{header: http.Header{}, status: http.StatusOK}
		h.ServeHTTP(rec, r)
		body := o.Scrub(rec.body.Bytes())
		kind := rec.header.Get("Content-Type")
		if strings.Contains(kind, "protobuf") && !bytes.Equal(body, rec.body.Bytes()) {
			// Its strings carry their lengths: scrubbed, it could not be read.
			refuse(w, http.StatusInternalServerError, "a metric holds a known key; the text format shows which")
			return
		}
		maps.Copy(w.Header(), rec.header)
		write(w, rec.status, kind, body)
	}
}

const (
	textType    = "text/plain; charset=utf-8"
	problemType = "application/problem+json"
)

// refuse answers with an error of RFC 9457.
func refuse(w http.ResponseWriter, status int, detail string) {
	b, err := json.Marshal(struct {
		Type   string `json:"type"`
		Title  string `json:"title"`
		Status int    `json:"status"`
		Detail string `json:"detail"`
	}{"about:blank", http.StatusText(status), status, detail})
	if err != nil {
		panic(err) // strings and an integer
	}
	write(w, status, problemType, append(b, '\n'))
}

func write(w http.ResponseWriter, status int, contentType string, body []byte) {
	w.Header().Set("Content-Type", contentType)
	w.WriteHeader(status)
	w.Write(body)
}

// recorder is an http.ResponseWriter in memory.
type recorder struct {
	header http.Header
	status int
	body   bytes.Buffer
}

func (r *recorder) Header() http.Header         { return r.header }
func (r *recorder) WriteHeader(status int)      { r.status = status }
func (r *recorder) Write(b []byte) (int, error) { return r.body.Write(b) }
