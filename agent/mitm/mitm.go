// Package mitm is the certificate authority of one agent: it makes the
// certificates that CONNECT clients see for the configured hosts, and no others.
//
// The CA's key is an ECDSA P-256 key in memory, or in a state directory that is
// memory too (see [Options.StateDir]). The CA carries critical name constraints
// for the configured hosts, so that a client which trusts it does so for these
// alone, whatever happens to the key.
package mitm

import (
	"container/list"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"golang.org/x/sync/singleflight"
)

// ErrHost is the reason a leaf is refused: its host is not configured.
var ErrHost = errors.New("host is not configured")

// ErrClosed is the reason after Close.
var ErrClosed = errors.New("the CA is closed")

// Options are the settings of New.
type Options struct {
	// Hosts are the only ones that get a certificate: "host", "host:port", an
	// address, or "*.host" for exactly one label. None: every leaf is refused.
	Hosts []string
	// StateDir keeps key and certificate for a restarted agent, so that running
	// clients keep their trust. A directory on a tmpfs, ours, mode 0700, made if only
	// its last element is missing; anything else is refused. "": nothing is kept.
	StateDir string
	// Now is the clock; nil means time.Now.
	Now func() time.Time
	// Rand gives serial numbers; nil means crypto/rand. Keys never come from it.
	Rand io.Reader
	// MaxLeaves bounds the certificates held; 0 means 256.
	MaxLeaves int
}

// CA issues leaves. Its methods may be called concurrently.
type CA struct {
	now    func() time.Time
	random io.Reader
	state  *state // nil without StateDir
	flight singleflight.Group
	change sync.Mutex // held by Reissue and Close

	signing sync.RWMutex // read while a key signs, written to wipe it

	mu     sync.Mutex
	issuer *issuer // nil once closed
	max    int
	leaves map[string]*list.Element // of *leaf
	recent *list.List               // the most recently used first
	minted uint64
}

type leaf struct {
	host  string
	cert  *tls.Certificate
	renew time.Time
}

// New makes a CA, or takes over the one in the state directory: as it is where its
// constraints are those of the hosts, else with a new certificate of the same key.
func New(o Options) (*CA, error) {
	n, err := parseNames(o.Hosts)
	if err != nil {
		return nil, err
	}
	c := &CA{
		now: o.Now, random: o.Rand, max: o.MaxLeaves,
		leaves: make(map[string]*list.Element), recent: list.New(),
	}
	if c.now == nil {
		c.now = time.Now
	}
	if c.random == nil {
		c.random = rand.Reader
	}
	if c.max <= 0 {
		c.max = 256
	}
	if o.StateDir != "" {
		if c.state, err = openState(o.StateDir); err != nil {
			return nil, err
		}
		if c.issuer, err = c.state.load(n); err != nil {
			c.state.close()
			return nil, err
		}
	}
	if err := c.begin(n); err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

// begin makes the first issuer where there is none that serves.
func (c *CA) begin(n names) error {
	if c.issuer != nil {
		return c.reissue(n)
	}
	key, err := newKey()
	if err != nil {
		return err
	}
	first, err := newIssuer(n, key, c.now(), c.random)
	if err != nil {
		wipe(key)
		return err
	}
	c.issuer = first
	return c.state.save(first)
}

// Reissue changes the hosts. The key and the subject stay, so that clients which
// trust an earlier certificate go on for the hosts that it names. Where nothing changes
// and the certificate has time left, it stays too. After an error nothing has changed.
func (c *CA) Reissue(hosts []string) error {
	n, err := parseNames(hosts)
	if err != nil {
		return err
	}
	c.change.Lock()
	defer c.change.Unlock()
	return c.reissue(n)
}

func (c *CA) reissue(n names) error {
	c.mu.Lock()
	old := c.issuer
	c.mu.Unlock()
	if old == nil {
		return ErrClosed
	}
	next := &issuer{names: n, cert: old.cert, pem: old.pem, key: old.key}
	if !old.serves(n, c.now()) {
		var err error
		if next, err = newIssuer(n, old.key, c.now(), c.random); err != nil {
			return err
		}
		if err := c.state.save(next); err != nil {
			return err
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.issuer = next
	for host, el := range c.leaves {
		if _, _, ok := n.canonical(host); !ok {
			c.recent.Remove(el)
			delete(c.leaves, host)
		}
	}
	return nil
}

// Leaf returns the certificate for a host: a DNS name or an address, without
// port or brackets, in any case. ErrHost if it is not configured. The certificate is
// shared and must not be changed; it is replaced in good time before it ends.
func (c *CA) Leaf(host string) (*tls.Certificate, error) {
	if cert := c.cached(host); cert != nil {
		return cert, nil
	}
	c.mu.Lock()
	i := c.issuer
	c.mu.Unlock()
	if i == nil {
		return nil, ErrClosed
	}
	name, ip, ok := i.names.canonical(host)
	if !ok {
		return nil, fmt.Errorf("certificate for %q: %w", cut(host), ErrHost)
	}
	cert, err, _ := c.flight.Do(name, func() (any, error) {
		if cert := c.cached(name); cert != nil {
			return cert, nil
		}
		c.signing.RLock()
		defer c.signing.RUnlock()
		c.mu.Lock()
		open := c.issuer != nil
		c.mu.Unlock()
		if !open {
			return nil, ErrClosed
		}
		cert, err := i.mint(name, ip, c.now(), c.random)
		if err != nil {
			return nil, err
		}
		c.keep(i, name, cert)
		return cert, nil
	})
	if err != nil {
		return nil, err
	}
	return cert.(*tls.Certificate), nil
}

func (c *CA) cached(host string) *tls.Certificate {
	c.mu.Lock()
	defer c.mu.Unlock()
	el := c.leaves[host]
	if el == nil {
		return nil
	}
	l := el.Value.(*leaf)
	if !c.now().Before(l.renew) {
		return nil
	}
	c.recent.MoveToFront(el)
	return l.cert
}

func (c *CA) keep(by *issuer, name string, cert *tls.Certificate) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.minted++
	if c.issuer != by {
		return // reissued meanwhile: good for this handshake, and no longer
	}
	if el := c.leaves[name]; el != nil {
		c.recent.Remove(el)
	}
	life := cert.Leaf.NotAfter.Sub(cert.Leaf.NotBefore)
	c.leaves[name] = c.recent.PushFront(&leaf{name, cert, cert.Leaf.NotAfter.Add(-life / 3)})
	for len(c.leaves) > c.max {
		oldest := c.recent.Back()
		delete(c.leaves, c.recent.Remove(oldest).(*leaf).host)
	}
}

// PEM returns the CA's certificate, for clients to trust. Nil after Close.
func (c *CA) PEM() []byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.issuer == nil {
		return nil
	}
	return append([]byte(nil), c.issuer.pem...)
}

// Stats are figures for status and metrics.
type Stats struct {
	Leaves   int       // held now
	Minted   uint64    // signed since New
	NotAfter time.Time // when the CA ends; Reissue within its last 30 days renews it. Zero after Close
}

// Stats returns the figures of this moment.
func (c *CA) Stats() Stats {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := Stats{Leaves: len(c.leaves), Minted: c.minted}
	if c.issuer != nil {
		s.NotAfter = c.issuer.cert.NotAfter
	}
	return s
}

// Close wipes the key and forgets all leaves; what the state directory holds
// stays there. It waits for signatures under way. Closing twice does nothing.
func (c *CA) Close() {
	c.change.Lock()
	defer c.change.Unlock()
	c.mu.Lock()
	i := c.issuer
	c.issuer = nil
	clear(c.leaves)
	c.recent.Init()
	c.mu.Unlock()
	if i != nil {
		c.signing.Lock()
		wipe(i.key)
		c.signing.Unlock()
	}
	c.state.close()
}

// cut keeps what a client sent from filling an error.
func cut(s string) string {
	if len(s) > 100 {
		return s[:100] + "…"
	}
	return s
}
