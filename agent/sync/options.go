// Package sync keeps a key in memory true to the store. One Loop per key polls,
// tells redaction what must not be seen, probes, lets package rotation decide,
// and does what it decided: fill the keyring, record, wipe.
package sync

import (
	"context"
	"log/slog"
	"math/rand/v2"
	stdsync "sync"
	"time"

	"github.com/postern-proxy/postern/agent/audit"
	"github.com/postern-proxy/postern/agent/keyring"
	"github.com/postern-proxy/postern/agent/provider"
	"github.com/postern-proxy/postern/agent/redact"
	"github.com/postern-proxy/postern/agent/rotation"
	"github.com/postern-proxy/postern/agent/secret"
	"github.com/postern-proxy/postern/agent/store"
)

// Source says where a key is stored: Path, or VaultPath for a secret laid out by somebody else.
type Source struct {
	Path      string // relative to the store's root; its last element names the key in rotations/ and halts/
	VaultPath string // a full API path; the store must be a store.PathReader
	Field     string // the field that holds the key; "" is keyring.KeyField
}

// Options are a Loop's settings. Name, Source, Store, Key, Redact, Audit and
// Logger are required.
type Options struct {
	Name   string // in logs, metrics and the audit trail
	Source Source
	// A key whose metadata names another environment is refused; if the
	// metadata is changed to that later, what is loaded serves for MaxStale.
	Environment, ProxyID string

	Store  store.Store
	Key    *keyring.Key // what is filled
	Redact *redact.Set
	Audit  audit.Sink
	// Acks is told how far the key's open rotation is here, and names this agent
	// in halts. Loops over one Store share one; nil: nobody is told.
	Acks *Acks
	// Probe asks the provider about a version; it should honour ctx. nil means
	// that nothing can be asked: then every version counts as live.
	Probe func(ctx context.Context, fields map[string]*secret.Value) provider.Result
	// KeyPrefix is the part of the key that is no secret.
	KeyPrefix string
	// Optional: that nothing of the key is stored is worth no warning.
	Optional bool
	// Credentials are fields beside the key that are secret too. Like the key
	// they are told to Redact first, and refused where it cannot recognise them.
	Credentials []string

	// How a version comes in that no rotation record speaks of.
	Ramp        rotation.Ramp
	Grace       time.Duration
	RejectRatio float64

	Poll     time.Duration // between two looks into the store, ±20 %; 0 means 5 s
	MaxStale time.Duration // how long a key serves with the store out of reach; 0 means 24 h

	Logger    *slog.Logger
	Metrics   *Metrics       // nil: none
	Rand      func() float64 // jitter, in [0, 1); nil means math/rand/v2
	OnChange  func()         // called after other versions or weights were installed; must not block
	OnRetired func()         // called after a version was wiped; may be called concurrently
}

// Limits of single operations, and paces. All jitter comes on top.
const (
	readLimit  = 30 * time.Second // one look, one load, one write
	probeLimit = time.Minute
	auditLimit = 2 * time.Second

	openPoll    = time.Second // at most, while a rotation is open
	mostBackoff = 30 * time.Second
	leastWait   = 50 * time.Millisecond // between two tries, whatever the jitter says
	longOutage  = 30 * time.Second      // after which agents must not all come back at once
	comeBack    = 5 * time.Second       // over which they spread then; before that, the most that a short outage delays a look

	stopWait = 10 * time.Second // for requests that still hold a version when the Loop ends
)

// Loop keeps one key. Make it with New and start it with Run, once; the other
// methods may be called concurrently, before and after.
type Loop struct {
	o   Options
	src source
	log *slog.Logger

	loaded  chan struct{} // closed when a version was usable for the first time
	settled chan struct{} // closed when that, or why not, is known

	mu     stdsync.Mutex
	status Status

	// What follows belongs to the goroutine of Run.
	ctx     context.Context // Run's
	results chan func()     // what ran beside the loop and is to be told to it
	wg      stdsync.WaitGroup
	stopped bool

	report *report // what Acks is told
	k      rotation.Key
	held   []*held // in memory, in whatever state
	ending []*held // closed, and waiting for their last lease to end
	leases []lease

	looking     bool
	looked      bool // there was an observation
	nextLook    time.Time
	failures    int // looks in a row
	outage      time.Time
	lastContact time.Time
	trouble     trouble // of the last look
	unloaded    trouble // of the last load
	stale       bool    // a long outage was said to have begun

	said    map[string]string // what was logged last, by kind
	why     map[int]string    // why a version was rejected, by number
	records outbox            // audit entries of what was done already
	vetoes  outbox            // halts to write
}

// held is a version in memory and what redaction knows of it.
type held struct {
	v     *keyring.Version
	known []*redact.Entry
}

// New makes a Loop. It starts nothing.
func New(o Options) *Loop {
	if o.Poll <= 0 {
		o.Poll = 5 * time.Second
	}
	if o.MaxStale <= 0 {
		o.MaxStale = 24 * time.Hour
	}
	if o.Rand == nil {
		o.Rand = rand.Float64
	}
	if o.Source.Field == "" {
		o.Source.Field = keyring.KeyField
	}
	if o.Metrics == nil {
		o.Metrics = newMetrics()
	}
	l := &Loop{
		o:       o,
		log:     o.Logger.With("key", o.Name),
		loaded:  make(chan struct{}),
		settled: make(chan struct{}),
		results: make(chan func()),
		k:       rotation.New(o.Ramp, o.Grace, o.RejectRatio),
		said:    map[string]string{},
		why:     map[int]string{},
		status:  Status{Name: o.Name},
		records: outbox{what: "audit entry", limit: auditLimit},
		vetoes:  outbox{what: "halt", limit: readLimit},
	}
	if o.Source.VaultPath != "" {
		l.src = newPathSource(o)
	} else {
		l.src = newKVSource(o)
	}
	return l
}

// Loaded is closed once a version was usable for the first time.
func (l *Loop) Loaded() <-chan struct{} { return l.loaded }

// Settled is closed once a version was usable, or it is known why none is and
// that waiting alone will not help.
func (l *Loop) Settled() <-chan struct{} { return l.settled }
