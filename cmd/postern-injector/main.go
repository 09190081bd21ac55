// Command postern-injector is the admission webhook that gives labelled pods
// their agent. It decides nothing itself: agent/webhook says what becomes of a
// pod, and this program receives reviews, keeps a certificate that the API
// server trusts, counts, and reports. It is the only one that knows Kubernetes;
// of its API it uses a handful of requests, so it carries no client library.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/postern-proxy/postern/agent/webhook"
)

// version is set when the image is built.
var version = "dev"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:], os.Stderr)
	stop()
	switch {
	case errors.Is(err, flag.ErrHelp):
	case errors.As(err, new(usageError)):
		fmt.Fprintln(os.Stderr, "postern-injector:", err)
		os.Exit(2)
	case err != nil:
		fmt.Fprintln(os.Stderr, "postern-injector:", err)
		os.Exit(1)
	}
}

type usageError struct{ error }

// options are the flags.
type options struct {
	listen, admin string
	defaults      string   // file of chart-wide defaults; "" for none
	certDir       string   // tls.crt and tls.key that somebody else keeps fresh; "" for our own
	certSecret    string   // where our own are kept; in the injector's namespace
	configuration string   // the MutatingWebhookConfiguration whose caBundle is ours to fill
	services      []string // the webhook's, one for each replica
	namespace     string   // the injector's own
	drain         time.Duration
	watch         time.Duration
	logLevel      slog.Level
}

func parse(args []string, out io.Writer) (options, error) {
	var o options
	f := flag.NewFlagSet("postern-injector", flag.ContinueOnError)
	f.SetOutput(out)
	f.StringVar(&o.listen, "listen", ":8443", "address for the API server's reviews, TLS")
	f.StringVar(&o.admin, "admin", ":8080", "address for /livez, /readyz and /metrics")
	f.StringVar(&o.defaults, "defaults", "", "YAML file of defaults for annotations")
	f.StringVar(&o.certDir, "cert-dir", "", "directory with tls.crt and tls.key, re-read when they change (cert-manager, or your own); without it the injector makes its own")
	f.StringVar(&o.certSecret, "cert-secret", "postern-injector-certs", "Secret for the injector's own certificates, in its namespace")
	f.StringVar(&o.configuration, "webhook", "postern-injector", "MutatingWebhookConfiguration whose caBundle is filled in; not with -cert-dir")
	services := f.String("services", "postern-injector", "the webhook's Services with commas between, for the certificate's names")
	f.StringVar(&o.namespace, "namespace", "", "namespace of the injector (default: that of its ServiceAccount)")
	f.DurationVar(&o.drain, "drain", 8*time.Second, "how long reviews are still answered after SIGTERM")
	f.DurationVar(&o.watch, "watch", 30*time.Second, "how often to look for pods that should have been injected and were not; 0: never")
	f.TextVar(&o.logLevel, "log-level", slog.LevelInfo, "debug, info, warn or error")
	if err := f.Parse(args); err != nil {
		if !errors.Is(err, flag.ErrHelp) {
			err = usageError{err}
		}
		return o, err
	}
	if f.NArg() > 0 {
		return o, usageError{fmt.Errorf("takes no argument: %s", strings.Join(f.Args(), " "))}
	}
	o.services = strings.Split(*services, ",")
	if o.drain < 0 || o.watch < 0 {
		return o, usageError{errors.New("-drain and -watch must not be negative")}
	}
	return o, nil
}

func run(ctx context.Context, args []string, stderr io.Writer) error {
	o, err := parse(args, stderr)
	if err != nil {
		return err
	}
	log := slog.New(slog.NewJSONHandler(stderr, &slog.HandlerOptions{Level: o.logLevel}))
	var text []byte
	if o.defaults != "" {
		if text, err = os.ReadFile(o.defaults); err != nil {
			return fmt.Errorf("defaults: %w", err)
		}
	}
	defaults, err := webhook.ParseDefaults(text)
	if err != nil {
		return err
	}
	kube, err := inCluster(os.Getenv)
	if err != nil {
		return err
	}
	if o.namespace == "" {
		if o.namespace, err = ownNamespace(); err != nil {
			return err
		}
	}
	listener, err := net.Listen("tcp", o.listen)
	if err != nil {
		return err
	}
	admin, err := net.Listen("tcp", o.admin)
	if err != nil {
		listener.Close()
		return err
	}
	return newApp(o, defaults, kube, log).serve(ctx, listener, admin)
}

// app is the running injector.
type app struct {
	o       options
	kube    *kube
	log     *slog.Logger
	metrics *metrics
	review  *reviewer
	certs   *certs
	events  *events
	stopped chan struct{} // closed when readiness ends
}

func newApp(o options, d *webhook.Defaults, k *kube, log *slog.Logger) *app {
	a := &app{o: o, kube: k, log: log, metrics: newMetrics(), stopped: make(chan struct{})}
	a.events = newEvents(k, log, a.metrics)
	a.review = &reviewer{defaults: d, kube: k, log: log, metrics: a.metrics, events: a.events, now: time.Now}
	a.certs = newCerts(o, k, log, a.metrics)
	return a
}

// serve runs until ctx ends, then answers reviews a while longer, because the
// API server learns only by and by that it should ask another replica.
func (a *app) serve(ctx context.Context, listener, admin net.Listener) error {
	work, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	reviews := a.review.server(a.certs)
	figures := &http.Server{Handler: a.admin(), ReadHeaderTimeout: 5 * time.Second}
	failed := make(chan error, 2)
	go func() { failed <- reviews.ServeTLS(listener, "", "") }()
	go func() { failed <- figures.Serve(admin) }()
	var loops sync.WaitGroup
	for _, loop := range []func(context.Context){a.certs.run, a.review.keepVersion, a.events.run, a.watchdog} {
		loops.Go(func() { loop(work) })
	}
	a.log.Info("started", "version", version, "listen", listener.Addr().String(), "admin", admin.Addr().String(), "namespace", a.o.namespace)
	var err error
	select {
	case err = <-failed:
	case <-ctx.Done():
		close(a.stopped)
		a.log.Info("stopping", "drain", a.o.drain.String())
		select {
		case <-time.After(a.o.drain):
		case err = <-failed:
		}
	}
	end, done := context.WithTimeout(context.Background(), 5*time.Second)
	defer done()
	reviews.Shutdown(end)
	figures.Shutdown(end)
	cancel()
	loops.Wait()
	return err
}

// admin answers what kubelets and Prometheus ask.
func (a *app) admin() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /livez", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		if why := a.notReady(); why != "" {
			http.Error(w, "not ready: "+why, http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintln(w, "ok")
	})
	mux.Handle("GET /metrics", a.metrics.handler())
	return mux
}

func (a *app) notReady() string {
	select {
	case <-a.stopped:
		return "stopping"
	default:
	}
	if why := a.certs.notReady(time.Now()); why != "" {
		return why
	}
	if a.review.version.Load() == nil {
		return "the cluster's version is not known yet"
	}
	return ""
}
