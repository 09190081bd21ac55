// Package vault is a store.Store over HashiCorp Vault's KV v2 engine, and a
// store.PathReader over anything else that Vault can read.
//
// It logs in by itself and keeps its token alive; a token that ends all the
// same is replaced at the next request. Answers are read into one buffer that
// is wiped after use, and secrets go from there straight into package secret.
// Environment variables are never read.
package vault

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/time/rate"

	"github.com/postern-proxy/postern/agent/secret"
	"github.com/postern-proxy/postern/agent/store"
)

var (
	_ store.Store        = (*Store)(nil)
	_ store.PathReader   = (*Store)(nil)
	_ store.LeaseRevoker = (*Store)(nil)
	_ store.Identifier   = (*Store)(nil)
	_ store.Capable      = (*Store)(nil)
)

// Config says where Vault is and who we are. Relative file names are relative
// to the process's working directory.
type Config struct {
	// Address is https://host:port, required. With http:// whoever can listen
	// on the network reads tokens and keys.
	Address string
	// Namespace is an Enterprise namespace, "" for the root. A login fails if
	// the server does not honour it.
	Namespace string
	// CAFile holds the only roots that Vault's certificate may come from, PEM;
	// "" means the system's. It is read again at every login.
	CAFile string
	Mount  string // the KV v2 engine; "" means secret
	Prefix string // the folder in it that is the store's root; "" means postern
	// Auth is required unless Token is set.
	Auth Auth
	// Token is a token that the caller obtained (an operator's). The Store
	// neither renews nor replaces it; it stays the caller's to destroy, after Close.
	Token *secret.Value
}

// Auth is the way to log in: exactly one member is set. Every file is read
// again at each login.
type Auth struct {
	Kubernetes *KubernetesAuth
	AppRole    *AppRoleAuth
	JWT        *JWTAuth
	Cert       *CertAuth
	Token      *TokenAuth
}

// KubernetesAuth logs in with a ServiceAccount's projected token.
type KubernetesAuth struct {
	Mount     string // "" means kubernetes
	Role      string
	TokenFile string // "" means /var/run/secrets/postern/token
}

// AppRoleAuth logs in with a role id and a secret id.
type AppRoleAuth struct {
	Mount        string // "" means approle
	RoleID       string
	SecretIDFile string
}

// JWTAuth logs in with a signed token.
type JWTAuth struct {
	Mount     string // "" means jwt
	Role      string
	TokenFile string
}

// CertAuth logs in with a TLS client certificate.
type CertAuth struct {
	Mount    string // "" means cert
	Role     string
	CertFile string // PEM, with intermediates
	KeyFile  string // PEM
}

// TokenAuth uses a token that something else keeps fresh in a file.
type TokenAuth struct {
	File string
}

// Options are what a Store needs of its process. All may be zero.
type Options struct {
	Logger *slog.Logger // nil discards
	// Now is the local clock; nil means time.Now. It must carry a monotonic reading.
	Now func() time.Time
	// Rand returns a number in [0,1) for jitter; nil means math/rand/v2's.
	Rand func() float64
	// Limiter bounds the requests to Vault; nil means one that all Stores of
	// the process share: 50 a second in bursts of up to 100.
	Limiter    *rate.Limiter
	Registerer prometheus.Registerer // nil: metrics are kept but not shown
	UserAgent  string                // "" means postern
	// Proxy chooses a proxy as http.Transport does; nil means none, whatever the environment says.
	Proxy func(*http.Request) (*url.URL, error)
	// Timeout bounds one request; 0 means 10 s.
	Timeout time.Duration
	// BackoffMin and BackoffMax bound the time between two attempts to log in
	// or to renew; 0 means 1 s and 30 s. It doubles with every failure, and half of it is jitter.
	BackoffMin, BackoffMax time.Duration
	// OutageJitter spreads the first login after an outage, so that many agents
	// do not come back at once; 0 means 5 s, less than 0 none.
	OutageJitter time.Duration
	// StartJitter spreads the very first login; 0 means none.
	StartJitter time.Duration
}

// processLimiter is the default of Options.Limiter.
var processLimiter = rate.NewLimiter(50, 100)

// Store talks to one Vault. It logs in when it is first used, at the latest; a
// Store that is used for longer than a token lives needs Start. Its methods may
// be called concurrently.
type Store struct {
	cfg     Config
	opts    Options
	log     *slog.Logger
	metrics *metrics
	clock   *clock
	method  method // how to log in
	parent  *Store // of a Store that As made: its connections are used

	client atomic.Pointer[client] // nil where there is a parent

	// ctx ends with Close; everything that outlives a call waits for it.
	ctx  context.Context
	stop context.CancelFunc
	wg   sync.WaitGroup

	session atomic.Pointer[session]
	outage  atomic.Bool   // the last answer was none
	wake    chan struct{} // the session or the back-off changed; one place

	mu     sync.Mutex
	gate   gate    // when the next login may begin
	flight *flight // the login under way
	leases map[string]heldLease
	layout *layout // what kind of engine the mount is, once known
	closed bool
}

// New checks the configuration and returns a Store that has not yet spoken to
// Vault. Errors wrap store.ErrInvalid and name the setting.
func New(cfg Config, opts Options) (*Store, error) {
	cfg, err := cfg.complete()
	if err != nil {
		return nil, fmt.Errorf("%w: %w", store.ErrInvalid, err)
	}
	opts = opts.complete()
	s := &Store{
		cfg:    cfg,
		opts:   opts,
		log:    opts.Logger,
		clock:  &clock{local: opts.Now},
		wake:   make(chan struct{}, 1),
		gate:   gate{min: opts.BackoffMin, max: opts.BackoffMax, rand: opts.Rand},
		leases: map[string]heldLease{},
	}
	if s.method, err = cfg.method(); err != nil {
		return nil, fmt.Errorf("%w: %w", store.ErrInvalid, err)
	}
	if s.metrics, err = newMetrics(opts.Registerer); err != nil {
		return nil, err
	}
	if err := s.connect(); err != nil {
		return nil, fmt.Errorf("%w: %w", store.ErrInvalid, err)
	}
	if u, _ := url.Parse(cfg.Address); u.Scheme == "http" && !isLoopback(u.Hostname()) {
		s.log.Warn("store.vault.address is plain http: tokens and keys cross the network in the clear", "address", cfg.Address)
	}
	s.ctx, s.stop = context.WithCancel(context.Background())
	return s, nil
}

// Start keeps the token alive until ctx ends or Close is called. It returns at
// once; the first login happens in the background. Call it once.
func (s *Store) Start(ctx context.Context) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return
	}
	s.wg.Go(func() { s.keepAlive(ctx) })
}

// Close ends what Start began and every connection. Calls under way fail with
// the context's error or store.ErrUnavailable. The token is not revoked.
func (s *Store) Close() error {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.stop()
	s.wg.Wait()
	s.client.Load().close() // a Store that As made has none
	return nil
}

// Login logs in if that has not happened yet. It fails with the reason of the
// last attempt while a new one would come too early.
func (s *Store) Login(ctx context.Context) error {
	_, err := s.current(ctx)
	return at(opLogin, s.endpoint(), err)
}

// Now is Vault's time; see store.Store.
func (s *Store) Now() time.Time { return s.clock.now() }

func (o Options) complete() Options {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Rand == nil {
		o.Rand = rand.Float64
	}
	if o.Limiter == nil {
		o.Limiter = processLimiter
	}
	if o.UserAgent == "" {
		o.UserAgent = "postern"
	}
	if o.Timeout <= 0 {
		o.Timeout = 10 * time.Second
	}
	if o.BackoffMin <= 0 {
		o.BackoffMin = time.Second
	}
	if o.BackoffMax <= 0 {
		o.BackoffMax = 30 * time.Second
	}
	if o.OutageJitter == 0 {
		o.OutageJitter = 5 * time.Second
	}
	return o
}

// complete checks a configuration and fills in what "" stands for.
func (c Config) complete() (Config, error) {
	u, err := url.Parse(c.Address)
	switch {
	case err != nil:
		return c, errors.New("store.vault.address is no URL: write https://host:port")
	case u.Scheme != "https" && u.Scheme != "http", u.Host == "", u.User != nil, u.RawQuery != "", u.Fragment != "":
		return c, errors.New("store.vault.address must be https://host:port, without user, query or fragment")
	}
	c.Mount = strings.Trim(c.Mount, "/")
	if c.Mount == "" {
		c.Mount = "secret"
	}
	c.Prefix = strings.Trim(c.Prefix, "/")
	if c.Prefix == "" {
		c.Prefix = "postern"
	}
	if err := checkPath(c.Mount); err != nil {
		return c, fmt.Errorf("store.vault.mount: %w", err)
	}
	if err := checkPath(c.Prefix); err != nil {
		return c, fmt.Errorf("store.vault.prefix: %w", err)
	}
	c.Namespace = strings.Trim(c.Namespace, "/")
	if c.Namespace != "" {
		if err := checkPath(c.Namespace); err != nil {
			return c, fmt.Errorf("store.vault.namespace: %w", err)
		}
	}
	return c, nil
}

func isLoopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}
