// Package server is `postern server`: the management API over HTTPS, and the
// scheduler that carries rotations out. It keeps no state of its own: any
// number of servers may stand beside each other over one Vault.
//
// Every request is done with the rights of the Vault token that came with it.
// The server's own rights are for what nobody asked for in person: the steps of
// rotations, the issuers' credentials, reading a key to validate it, and the
// record of denials.
//
// A key goes from a request's body straight into the arena, and the body is
// wiped. A token comes as a header, which net/http makes a string of: that, and
// what stays in a connection's buffers, is left to the garbage collector, in a
// process that cannot be dumped.
package server

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"strings"
	stdsync "sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"golang.org/x/net/netutil"
	"golang.org/x/time/rate"

	"github.com/postern-proxy/postern/agent"
	"github.com/postern-proxy/postern/agent/admin"
	"github.com/postern-proxy/postern/agent/issuer"
	"github.com/postern-proxy/postern/agent/keys"
	"github.com/postern-proxy/postern/agent/redact"
	"github.com/postern-proxy/postern/agent/secret"
	"github.com/postern-proxy/postern/agent/store"
	"github.com/postern-proxy/postern/agent/store/vault"
	"github.com/postern-proxy/postern/config"
)

// Limits of the listener.
const (
	readHeaderTimeout = 5 * time.Second
	readTimeout       = 30 * time.Second
	idleTimeout       = time.Minute
	maxHeaderBytes    = 32 << 10
	maxConnections    = 512
	drainTime         = 25 * time.Second
	maxScrapes        = 4
)

// The time between two attempts to learn who the server itself is, for Vault.
const (
	introduceMin = time.Second
	introduceMax = 30 * time.Second
)

// vaultRate is how many requests a second go to Vault, callers' included: a page
// of 200 keys takes about a thousand.
const vaultRate = 500

// Options are what a Server is made of. All but Config may be zero.
type Options struct {
	Config  *config.Config
	Getenv  func(string) string // os.Getenv by default
	Log     io.Writer           // standard error by default
	Version string
}

// Server is one running management server.
type Server struct {
	o        Options
	cfg      *config.Config
	log      *slog.Logger
	known    *redact.Set
	registry *prometheus.Registry
	figures  *metrics
	store    *vault.Store
	reach    *agent.Reach
	issuers  map[string]issuer.Issuer // by provider
	trail    *keys.Trail
	own      atomic.Pointer[keys.Manager] // nil until Vault has said who we are
	schedule atomic.Pointer[scheduler]    // nil until then
	cert     *certificate

	ln       net.Listener
	http     *http.Server
	undo     []func() // LIFO
	stopping stdsync.Once
	failed   chan error
}

// New builds a server without starting anything. It hardens the process. Errors
// name the setting. Whoever has a server calls Stop, unless Start failed.
func New(o Options) (*Server, error) {
	if o.Getenv == nil {
		o.Getenv = os.Getenv
	}
	if o.Log == nil {
		o.Log = os.Stderr
	}
	if strings.Contains(o.Getenv("GODEBUG"), "http2debug") {
		return nil, errors.New("GODEBUG=http2debug prints header values, tokens included; start without it")
	}
	if err := o.Config.ValidateServer(); err != nil {
		return nil, err
	}
	if o.Config.Store.Vault == nil {
		return nil, errors.New("store: the server needs store.vault: callers are told apart by their Vault tokens, and a sealed file knows nobody. On this machine, `postern keys` manages the keys of a sealed file")
	}
	s := &Server{o: o, cfg: o.Config, registry: prometheus.NewRegistry(), failed: make(chan error, 1)}
	if err := s.assemble(); err != nil {
		s.unwind()
		return nil, err
	}
	return s, nil
}

// assemble is New for options that are complete. What was opened before an error is to be unwound.
func (s *Server) assemble() error {
	hardening := secret.Harden()
	admin.RegisterProcess(s.registry, s.o.Version)
	s.figures = newMetrics(s.registry)
	var err error
	if s.known, err = agent.NewRedactor(s.cfg, agent.VaultTokens); err != nil {
		return err
	}
	s.log = agent.NewLogger(s.cfg.Log, s.known, s.o.Log)
	for _, n := range hardening.Notes {
		s.log.Warn("this platform lacks a protection", "what", n)
	}
	if s.cert, err = newCertificate(s.cfg.Server.CertFile, s.cfg.Server.KeyFile, s.log); err != nil {
		return err
	}
	if s.reach, err = agent.NewReach(s.cfg); err != nil {
		return err
	}
	st, closeStore, err := agent.OpenStore(s.cfg, agent.StoreOptions{
		Getenv: s.o.Getenv, Logger: s.log, Registerer: s.registry, Version: s.o.Version, Limiter: rate.NewLimiter(vaultRate, vaultRate),
	})
	if err != nil {
		return err
	}
	s.onStop(closeStore)
	s.store = st.(*vault.Store) // which store.vault is
	s.trail = keys.NewTrail(s.store, s.cfg.Environment, agent.Boot())
	return s.makeIssuers()
}

// makeIssuers makes what creates and revokes keys at the providers. The admin
// credential is read from the store for each operation, with the server's own rights.
func (s *Server) makeIssuers() error {
	s.issuers = map[string]issuer.Issuer{}
	for i, c := range s.cfg.Issuers {
		at := fmt.Sprintf("issuers[%d] (%s)", i, c.Provider)
		o := issuerOptions(c)
		o.Now = s.store.Now
		if c.Kind == config.KindVault {
			o.Leases = s.store
		} else {
			transport, err := s.reach.Transport(c.CAFile, false)
			if err != nil {
				return fmt.Errorf("%s: %w", at, err)
			}
			s.onStop(transport.CloseIdleConnections)
			o.Transport = transport
			path := c.AdminPath(s.cfg.Environment)
			o.Admin = func(ctx context.Context) (map[string]*secret.Value, error) {
				sec, err := s.store.Get(ctx, path, 0)
				if err != nil {
					return nil, err
				}
				return sec.Fields, nil
			}
		}
		is, err := issuer.New(o)
		if err != nil {
			return fmt.Errorf("%s: %w", at, err)
		}
		s.issuers[c.Provider] = is
	}
	return nil
}

// issuerOptions are those that the configuration gives.
func issuerOptions(c config.Issuer) issuer.Options {
	return issuer.Options{
		Kind: c.Kind, BaseURL: c.BaseURL, Project: c.Project,
		Subscription: c.Subscription, ResourceGroup: c.ResourceGroup, Account: c.Account, LoginURL: c.LoginURL, Spare: c.Spare,
		Path: c.Path, Field: c.Field,
	}
}

// Start listens and serves. It returns once the listener stands; until Vault has
// said who the server is, it is not ready and answers 503. ctx bounds the start only.
func (s *Server) Start(context.Context) error {
	ln, err := net.Listen("tcp", s.cfg.Server.Listen)
	if err != nil {
		s.unwind()
		return fmt.Errorf("server.listen: %w", err)
	}
	s.ln = ln
	s.work()
	s.serve()
	for _, n := range s.cfg.Notes {
		s.log.Warn("configuration", "note", fmt.Sprint(n))
	}
	s.log.Info("serving", "server", ln.Addr().String(), "environment", s.cfg.Environment, "issuers", len(s.issuers), "version", s.o.Version)
	return nil
}

// work begins to carry rotations out, as soon as Vault has said who the server is.
func (s *Server) work() {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		own := s.introduce(ctx)
		if own == nil {
			return
		}
		sched := newScheduler(own, s.figures, s.log)
		s.schedule.Store(sched)
		s.own.Store(own)
		sched.Run(ctx)
	}()
	s.onStop(func() {
		cancel()
		<-done
	})
}

// introduce logs in, however long that takes, and returns the operations with
// the server's own rights; nil if ctx ended before.
func (s *Server) introduce(ctx context.Context) *keys.Manager {
	for wait := introduceMin; ; wait = min(2*wait, introduceMax) {
		own, err := s.manager(ctx, s.store, serverSource())
		if err == nil {
			own.Issuer = s.issuer
			s.log.Info("ready", "identity", own.Actor.Name, "entity", own.Actor.Entity)
			return own
		}
		s.log.Error("the server cannot log in to Vault; nothing is served or carried out before it can", "error", err)
		timer := time.NewTimer(wait/2 + rand.N(wait/2))
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case <-timer.C:
		}
	}
}

func serverSource() string {
	host, err := os.Hostname()
	if err != nil || host == "" {
		return "server"
	}
	return "server@" + host
}

// manager makes the operations of whoever opened st. Their scope has no proxy id yet.
func (s *Server) manager(ctx context.Context, st store.Store, source string) (*keys.Manager, error) {
	m, err := agent.NewManager(ctx, s.cfg, agent.ManagerOptions{Store: st, Trail: s.trail.On(st), Source: source, Logger: s.log, Reach: s.reach})
	if err != nil {
		return nil, err
	}
	m.Scope.ProxyID = ""
	return m, nil
}

func (s *Server) issuer(provider string) issuer.Issuer {
	if is, ok := s.issuers[provider]; ok {
		return is
	}
	return nil
}

// as opens the store with a caller's token, for one request.
func (s *Server) as(token *secret.Value) (store.Store, func()) {
	st := s.store.As(token)
	return st, func() { st.Close() }
}

func (s *Server) ready() string {
	if s.own.Load() == nil {
		return "waiting for Vault"
	}
	return ""
}

func (s *Server) requested(proxyID, name string) {
	if sched := s.schedule.Load(); sched != nil {
		sched.Wake(proxyID, name)
	}
}

func (s *Server) serve() {
	a := newAPI(apiOptions{
		Environment: s.cfg.Environment, As: s.as, Manager: s.manager, Own: s.own.Load,
		Trail: s.trail.On, Requested: s.requested, Ready: s.ready, Metrics: s.metricsHandler(), Figures: s.figures,
		Scrub: s.known.Text, Logger: s.log, Now: time.Now,
	})
	s.listen(a)
}

// listen serves h over TLS until Stop.
func (s *Server) listen(h http.Handler) {
	// HTTP/1.1 only: HTTP/2's header tables keep copies of tokens.
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	s.http = &http.Server{
		Handler: h, Protocols: protocols,
		ReadHeaderTimeout: readHeaderTimeout, ReadTimeout: readTimeout, WriteTimeout: requestTime + readTimeout + 10*time.Second,
		IdleTimeout: idleTimeout, MaxHeaderBytes: maxHeaderBytes,
		ErrorLog: slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),
	}
	// What is not TLS gets one sentence in the clear, and no handler sees it.
	ln := tls.NewListener(netutil.LimitListener(s.ln, maxConnections), s.cert.config())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := s.http.Serve(ln); !errors.Is(err, http.ErrServerClosed) {
			s.failed <- fmt.Errorf("server.listen: %w", err)
		}
	}()
	s.onStop(func() {
		ctx, cancel := context.WithTimeout(context.Background(), drainTime)
		defer cancel()
		if err := s.http.Shutdown(ctx); err != nil {
			s.log.Warn("requests were cut off: they did not end in time", "waited", drainTime)
			s.http.Close()
		}
		<-done
	})
}

func (s *Server) metricsHandler() http.Handler {
	return promhttp.HandlerFor(s.registry, promhttp.HandlerOpts{
		EnableOpenMetrics: true, ErrorHandling: promhttp.ContinueOnError, MaxRequestsInFlight: maxScrapes,
		ErrorLog: slog.NewLogLogger(s.log.Handler(), slog.LevelWarn),
	})
}

func (s *Server) onStop(f func()) { s.undo = append(s.undo, f) }

// Stop ends what Start began and lets go of what New opened: no new connection,
// requests under way end (at most 25 s), the step of a rotation under way is cut
// off, where any server takes it up again. Calling it again does nothing.
func (s *Server) Stop() {
	s.stopping.Do(func() {
		s.log.Info("stopping")
		s.unwind()
	})
}

func (s *Server) unwind() {
	for len(s.undo) > 0 {
		last := len(s.undo) - 1
		f := s.undo[last]
		s.undo = s.undo[:last]
		f()
	}
}

// Failed yields the error of a listener that ended by itself.
func (s *Server) Failed() <-chan error { return s.failed }

// Addr is where the server listens, once started.
func (s *Server) Addr() net.Addr { return s.ln.Addr() }
