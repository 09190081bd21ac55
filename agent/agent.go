// Package agent composes the sidecar: it builds generations from
// configurations, starts them, swaps them and stops them. What there is to do
// is done by the packages below it.
package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"runtime/debug"
	"strings"
	stdsync "sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/postern-proxy/postern/agent/admin"
	"github.com/postern-proxy/postern/agent/audit"
	"github.com/postern-proxy/postern/agent/mitm"
	"github.com/postern-proxy/postern/agent/provider/spec"
	"github.com/postern-proxy/postern/agent/proxy"
	"github.com/postern-proxy/postern/agent/redact"
	"github.com/postern-proxy/postern/agent/secret"
	"github.com/postern-proxy/postern/config"
)

// How long requests under way may take to end at stop, and an audit entry to be written.
const (
	drainTimeout = 25 * time.Second
	auditTimeout = 2 * time.Second
)

// Options make an agent.
type Options struct {
	Config *config.Config
	// Load reads the configuration again, for Reload; nil where it cannot change.
	Load func() (*config.Config, error)
	// Getenv looks up variables that the configuration names; os.Getenv by default.
	Getenv func(string) string
	// Log and Audit take the log and the audit record where its file is "-";
	// standard error and standard output by default.
	Log, Audit io.Writer
	Version    string
}

// Agent is one running sidecar.
type Agent struct {
	o      Options
	cfg    atomic.Pointer[config.Config]
	gen    atomic.Pointer[generation]
	number uint64 // of the newest generation; touched by New and Reload only

	registry *prometheus.Registry
	metrics  *metrics
	known    *redact.Set
	patterns []string // of keys, as known was made with
	logOut   *redact.Writer
	flushLog func()
	log      *slog.Logger
	audit    *audit.File
	sink     auditSink
	ca       *mitm.CA
	proxy    *proxy.Server
	own      *ownListeners

	exposures        exposures
	proxyLn, adminLn net.Listener
	admin            *http.Server
	undo             []func() // LIFO; what New opened and Start began
	stopping         stdsync.Once
	failed           chan error
	draining         stdsync.WaitGroup // generations that were replaced
	reloading        chan struct{}     // holds one token
	refused          string            // why the last reload failed; belongs to who has the token
	asked            chan struct{}     // by ReloadSoon
	endReloads       func()            // of those; nil before Start
	retryFirst       time.Duration     // the constant, but for tests
	started          time.Time
}

// New builds an agent and its first generation without starting anything: what
// it refuses, `postern check` refuses as well. It hardens the process. Whoever
// has an agent calls Stop, unless Start failed.
func New(o Options) (*Agent, error) {
	if o.Getenv == nil {
		o.Getenv = os.Getenv
	}
	if o.Log == nil {
		o.Log = os.Stderr
	}
	if o.Audit == nil {
		o.Audit = os.Stdout
	}
	if strings.Contains(o.Getenv("GODEBUG"), "http2debug") {
		return nil, errors.New("GODEBUG=http2debug prints header values, keys included; start without it")
	}
	if err := o.Config.ValidateAgent(); err != nil {
		return nil, err
	}
	a, err := assemble(o)
	if err != nil {
		a.unwind()
		return nil, err
	}
	return a, nil
}

// assemble is New for options that are complete. What was opened before an error
// is to be unwound.
func assemble(o Options) (*Agent, error) {
	a := &Agent{o: o, own: &ownListeners{}, failed: make(chan error, 4), reloading: make(chan struct{}, 1), asked: make(chan struct{}, 1), retryFirst: retryFirst, registry: prometheus.NewRegistry()}
	a.reloading <- struct{}{}
	a.cfg.Store(o.Config)
	hardening := secret.Harden()
	a.metrics = newMetrics(a.registry, o.Version)
	var err error
	a.patterns = keyPatterns(o.Config)
	if a.known, err = redact.New(redact.Options{Patterns: a.patterns, OnHit: a.exposed}); err != nil {
		return a, err
	}
	batch := newBatchWriter(withoutWaiting(o.Log))
	a.logOut = a.known.Writer(batch, redact.WhereLog)
	flush := func() {
		a.logOut.Flush()
		batch.Flush()
	}
	a.flushLog = flush
	a.log = slog.New(urgent{newLogHandler(o.Config.Log, a.known, a.logOut), flush})
	// Libraries log by themselves: net/http's transport quotes what an upstream sent unasked.
	slog.SetLogLoggerLevel(slog.LevelDebug)
	slog.SetDefault(a.log)
	for _, n := range hardening.Notes {
		a.log.Warn("this platform lacks a protection", "what", n)
	}
	a.onStop(a.flushLog)
	if a.audit, err = a.openAudit(o.Config.Audit.File); err != nil {
		return a, err
	}
	a.onStop(func() { a.audit.Close() })
	a.onStop(a.exposures.wg.Wait)
	a.sink = auditSink{a.audit, a.metrics}
	if a.ca, err = mitm.New(mitm.Options{Hosts: forwardHosts(o.Config), StateDir: o.Config.CA.StateDir}); err != nil {
		return a, err
	}
	a.onStop(a.ca.Close)
	a.proxy = proxy.New(proxy.Options{
		Known: a.known, Leaf: a.ca.Leaf, Metrics: proxy.NewMetrics(a.registry), Logger: a.log, Audit: a.sink,
		Lines:       &proxy.Lines{Write: func(line []byte) { batch.Write(line) }, Text: o.Config.Log.Format == "text"},
		Environment: o.Config.Environment, ProxyID: o.Config.ProxyID, Why: a.why,
	})
	a.onStop(func() { a.proxy.Shutdown(context.Background()) }) // where nothing was served, nothing is waited for
	g, err := a.build(o.Config, nil)
	if err != nil {
		return a, err
	}
	a.gen.Store(g)
	a.onStop(func() { a.gen.Load().closeStore() })
	return a, nil
}

// keyPatterns are the forms by which provider keys are recognised in a log even where the value is not known.
func keyPatterns(c *config.Config) []string {
	var out []string
	seen := map[string]bool{}
	add := func(s spec.Spec) {
		if s.KeyPattern != "" && !seen[s.KeyPattern] {
			seen[s.KeyPattern] = true
			out = append(out, s.KeyPattern)
		}
	}
	for _, s := range spec.Catalog() {
		add(s)
	}
	for _, p := range c.Providers {
		add(p.Spec)
	}
	return out
}

// VaultTokens is what Vault's tokens look like, wherever they stand in a text.
const VaultTokens = `\bhv[sbr]\.[A-Za-z0-9_-]{20,}`

// Masked is a text without what has the form of a provider key or of a Vault
// token: for messages that repeat what somebody typed.
func Masked(text string) string {
	s, err := redact.New(redact.Options{Patterns: append(keyPatterns(&config.Config{}), VaultTokens)})
	if err != nil {
		return "(this message cannot be shown)"
	}
	return string(s.Text([]byte(text)))
}

// forwardHosts are the names that the interception CA may sign for.
func forwardHosts(c *config.Config) []string {
	var hosts []string
	for _, p := range c.Providers {
		if p.Forwards() {
			for _, h := range p.Hosts {
				if name, _, err := net.SplitHostPort(h); err == nil {
					h = name
				}
				hosts = append(hosts, h)
			}
		}
	}
	return hosts
}

// Start listens and serves. It returns once the listeners stand; keys may
// still be loading (see Ready). ctx bounds the start only.
func (a *Agent) Start(ctx context.Context) error {
	a.started = time.Now()
	if err := a.start(ctx); err != nil {
		a.unwind()
		return err
	}
	return nil
}

func (a *Agent) start(ctx context.Context) error {
	c := a.cfg.Load()
	if err := a.record(ctx, audit.Event{Event: "agent.started", Outcome: "ok", Detail: map[string]string{"version": a.o.Version}}); err != nil {
		return fmt.Errorf("audit.file: %w", err)
	}
	a.onStop(func() {
		a.record(context.Background(), audit.Event{Event: "agent.stopped", Outcome: "ok"})
	})
	if c.CA.Dir != "" {
		if err := a.writeTrust(c, c.CA.Dir); err != nil {
			return fmt.Errorf("ca.dir: %w", err)
		}
	}

	var err error
	if a.proxyLn, err = listen(c.Listen.Proxy); err != nil {
		return fmt.Errorf("listen.proxy: %w", err)
	}
	if a.adminLn, err = net.Listen("tcp", c.Listen.Admin); err != nil {
		a.proxyLn.Close()
		return fmt.Errorf("listen.admin: %w", err)
	}
	a.own.set(a.proxyLn.Addr(), a.adminLn.Addr())

	g := a.gen.Load()
	g.run()
	a.trimOnceSettled(g)
	a.keepCA()
	a.onStop(a.draining.Wait)
	a.onStop(func() { a.gen.Load().halt() })
	a.proxy.Swap(g.routing)
	a.metrics.generation.Set(float64(g.number))
	a.serveProxy(c)
	a.serveAdmin()
	a.keepReloading()
	for _, n := range c.Notes {
		a.log.Warn("configuration", "note", fmt.Sprint(n))
	}
	a.log.Info("serving", "proxy", a.proxyLn.Addr().String(), "admin", a.adminLn.Addr().String(),
		"providers", len(c.Providers), "environment", c.Environment, "proxy_id", c.ProxyID, "version", a.o.Version)
	return nil
}

// trimOnceSettled gives back what starting needed and serving does not, once the keys are loaded.
func (a *Agent) trimOnceSettled(g *generation) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if g.awaitSettled(ctx) == nil {
			debug.FreeOSMemory()
			forgetProgram()
		}
	}()
	a.onStop(func() {
		cancel()
		<-done
	})
}

// renewEvery is how often the CA is looked at: it is issued again, with the same
// key, in its last month.
const renewEvery = 24 * time.Hour

// keepCA renews the CA's certificate before it ends, and what clients trust with it.
func (a *Agent) keepCA() {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		tick := time.NewTicker(renewEvery)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			select {
			case <-a.reloading: // a reload issues it as well
			case <-ctx.Done():
				return
			}
			a.renewCA()
			a.reloading <- struct{}{}
		}
	}()
	a.onStop(func() {
		cancel()
		<-done
	})
}

func (a *Agent) renewCA() {
	c := a.cfg.Load()
	err := a.ca.Reissue(forwardHosts(c))
	if err == nil && c.CA.Dir != "" {
		err = a.writeTrust(c, c.CA.Dir)
	}
	if err != nil {
		a.log.Error("the interception CA could not be renewed; it is tried again in a day", "error", err.Error())
	}
}

func (a *Agent) serveProxy(c *config.Config) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := a.proxy.Serve(a.proxyLn, c.Listen.AllowUIDs); err != nil {
			a.failed <- fmt.Errorf("listen.proxy: %w", err)
		}
	}()
	a.onStop(func() {
		ctx, cancel := context.WithTimeout(context.Background(), drainTimeout)
		defer cancel()
		if err := a.proxy.Shutdown(ctx); err != nil {
			a.log.Warn("requests were cut off: they did not end in time", "waited", drainTimeout)
		}
		<-done
	})
}

func (a *Agent) serveAdmin() {
	a.admin = admin.NewServer(admin.Options{
		Ready: a.Ready, Why: a.reason, Stale: a.stale, Registry: a.registry, CAPEM: a.ca.PEM, Status: func() any { return a.Status() }, Scrub: a.known.Text, Logger: a.log,
	})
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := a.admin.Serve(a.adminLn); !errors.Is(err, http.ErrServerClosed) {
			a.failed <- fmt.Errorf("listen.admin: %w", err)
		}
	}()
	a.onStop(func() {
		a.admin.Close()
		<-done
	})
}

func (a *Agent) onStop(f func()) { a.undo = append(a.undo, f) }

// Stop ends what Start began and lets go of what New opened, last first: no new
// connection, requests under way end (at most 25 s), keys are wiped, the audit
// record is closed. Calling it again does nothing.
func (a *Agent) Stop() {
	a.stopping.Do(func() {
		if a.endReloads != nil {
			a.endReloads()
		}
		<-a.reloading // a reload under way ends first
		a.log.Info("stopping")
		a.unwind()
	})
}

func (a *Agent) unwind() {
	for len(a.undo) > 0 {
		last := len(a.undo) - 1
		f := a.undo[last]
		a.undo = a.undo[:last]
		f()
	}
}

// Failed yields the error of a listener that ended by itself.
func (a *Agent) Failed() <-chan error { return a.failed }

// ProxyAddr and AdminAddr are where the agent listens, once started.
func (a *Agent) ProxyAddr() net.Addr { return a.proxyLn.Addr() }

// AdminAddr is the admin listener's address.
func (a *Agent) AdminAddr() net.Addr { return a.adminLn.Addr() }

// CAPEM is the interception CA's certificate.
func (a *Agent) CAPEM() []byte { return a.ca.PEM() }

// record appends one audit entry, with what stands in every entry filled in.
func (a *Agent) record(ctx context.Context, e audit.Event) error {
	c := a.cfg.Load()
	e.Environment, e.ProxyID = c.Environment, c.ProxyID
	if e.Actor == "" {
		e.Actor = "agent"
	}
	ctx, cancel := context.WithTimeout(ctx, auditTimeout)
	defer cancel()
	_, err := a.sink.Append(ctx, e)
	return err
}

// writeTrust writes the public certificates that clients of CONNECT need.
func (a *Agent) writeTrust(c *config.Config, dir string) error {
	more, err := readOptional(c.Egress.CAFile)
	if err != nil {
		return err
	}
	return a.ca.WriteTrust(dir, more)
}
