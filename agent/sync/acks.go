package sync

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"log/slog"
	mathrand "math/rand/v2"
	"os"
	"slices"
	"strings"
	stdsync "sync"
	"time"

	"github.com/postern-proxy/postern/agent/rotation"
	"github.com/postern-proxy/postern/agent/store"
)

// AcksOptions are the settings of Acks. Store and Logger are required.
type AcksOptions struct {
	Store                store.Store
	Environment, ProxyID string
	// Local says that the store tells no identities apart: there is one writer.
	// Elsewhere the entity that the store knows us by stands in the path, and
	// who has none writes no acknowledgement.
	Local   bool
	Agent   string // the name of this agent, unique; "" means NewAgentName
	Logger  *slog.Logger
	Metrics *Metrics       // nil: none
	Rand    func() float64 // jitter, in [0, 1); nil means math/rand/v2
}

// Acks tells those who carry rotations out how far this agent is with each:
// acks/<environment>/<proxy_id>/<entity>/<agent>. There is an entry only while a
// rotation of a key is open; it counts as alive for 3 minutes after it was
// refreshed, and an agent that is killed leaves it behind. All Loops over one
// store share an Acks. It never keeps a Loop waiting.
type Acks struct {
	o   AcksOptions
	log *slog.Logger

	mu      stdsync.Mutex
	reports []*report // in the order their Loops were started
	changed chan struct{}

	// What follows belongs to the goroutine of Run.
	seen     string    // what is to be told, as of the last look at the reports
	told     string    // what the store has been told; "" if nothing
	at       string    // where an entry stands, or may stand; "" if nowhere
	tried    time.Time // the last write
	next     time.Time // of the next one; zero if none is due
	failures int       // in a row
	said     string    // why writing failed, as it was logged last
	saidOf   string    // why removing failed, as it was logged last
	nameless bool      // it was said that there is no entity
}

// Ack is how far an agent is with one open rotation.
type Ack struct {
	To        rotation.ID    `json:"to"`
	ToState   rotation.State `json:"to_state"` // Unknown: nothing was done with it yet
	FromState rotation.State `json:"from_state"`
	Reason    string         `json:"reason,omitempty"` // why To was rejected
}

// report is what one Loop says about its key.
type report struct {
	acks   *Acks
	name   string
	looked bool // false: it does not know yet
	ack    *Ack // nil: no rotation is open
}

const (
	ackRefresh  = time.Minute            // at most, between two writes
	ackGap      = time.Second            // at least, between two writes
	ackSpread   = 500 * time.Millisecond // before a change is written: a thousand agents change at one moment
	ackMostWait = time.Minute            // of the back-off
	ackLimit    = 15 * time.Second       // of one write
	ackStop     = 2 * time.Second        // of the removal at the end
	ackReason   = 300                    // bytes at most

	localEntity = "local"
)

// The outcomes in postern_ack_writes_total.
const (
	ackWritten = "written"
	ackRemoved = "removed"
	ackFailed  = "failed"
)

// NewAgentName is a name for an agent of this machine, for people to recognise
// and fit for a path. No two are the same.
func NewAgentName() string {
	host, err := os.Hostname()
	if err != nil || host == "" {
		host = "agent"
	}
	var random [4]byte
	rand.Read(random[:])
	return pathSafe(host[:min(len(host), 64)]) + "-" + hex.EncodeToString(random[:])
}

// pathSafe makes a text one element of a path.
func pathSafe(s string) string {
	safe := strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z', r >= 'A' && r <= 'Z', r >= '0' && r <= '9', r == '-', r == '_', r == '.':
			return r
		}
		return '-'
	}, s)
	if strings.Trim(safe, ".") == "" {
		return "-" + safe
	}
	return safe
}

// NewAcks makes an Acks. It starts nothing.
func NewAcks(o AcksOptions) *Acks {
	if o.Agent == "" {
		o.Agent = NewAgentName()
	}
	if o.Metrics == nil {
		o.Metrics = newMetrics()
	}
	if o.Rand == nil {
		o.Rand = mathrand.Float64
	}
	return &Acks{o: o, log: o.Logger, changed: make(chan struct{}, 1)}
}

// Agent is the name under which this agent is known to others; "" for a nil Acks.
func (a *Acks) Agent() string {
	if a == nil {
		return ""
	}
	return a.o.Agent
}

// Run keeps the entry until ctx ends, then removes it and returns. Call it once.
func (a *Acks) Run(ctx context.Context) {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			a.leave(ctx)
			return
		case <-a.changed:
		case <-timer.C:
		}
		a.look()
		if !a.next.IsZero() && !time.Now().Before(a.next) && ctx.Err() == nil {
			a.write(ctx)
		}
		wait := time.Hour
		if !a.next.IsZero() {
			wait = max(time.Until(a.next), 0)
		}
		timer.Reset(wait)
	}
}

// look takes in what the Loops say, and when that is to be told.
func (a *Acks) look() {
	now := a.current()
	if now == a.seen {
		return
	}
	a.seen = now
	if now == a.told || a.failures > 0 { // nothing to tell, or its time is set
		return
	}
	at := time.Now().Add(time.Duration(float64(ackSpread) * a.o.Rand()))
	if soonest := a.tried.Add(ackGap); at.Before(soonest) {
		at = soonest
	}
	if a.next.IsZero() || at.Before(a.next) {
		a.next = at
	}
}

// current is what is to be told: "" if no rotation is open. Of two Loops with
// one name the younger one counts, once it knows.
func (a *Acks) current() string {
	a.mu.Lock()
	defer a.mu.Unlock()
	open := map[string]*Ack{}
	for _, r := range a.reports {
		if r.looked {
			open[r.name] = r.ack
		}
	}
	for name, ack := range open {
		if ack == nil {
			delete(open, name)
		}
	}
	if len(open) == 0 {
		return ""
	}
	b, err := json.Marshal(open)
	if err != nil {
		a.log.Error("what is to be acknowledged cannot be written down", "error", err.Error())
		return ""
	}
	return string(b)
}

// write tells the store what is to be told, or that there is nothing.
func (a *Acks) write(ctx context.Context) {
	a.tried = time.Now()
	limited, cancel := context.WithTimeout(ctx, ackLimit)
	defer cancel()
	err := a.tell(limited)
	switch {
	case err == nil && a.seen == "":
		a.failures, a.next, a.told = 0, time.Time{}, ""
	case err == nil:
		if a.said != "" {
			a.log.Info("others are told again how far this agent is with a rotation")
		}
		a.failures, a.told, a.said = 0, a.seen, ""
		a.next = time.Now().Add(time.Duration(float64(ackRefresh) * (0.8 + 0.2*a.o.Rand())))
	case ctx.Err() != nil: // stopped
	default:
		a.o.Metrics.acks.WithLabelValues(ackFailed).Inc()
		wait := min(ackGap<<min(a.failures, 16), ackMostWait)
		a.failures++
		a.next = time.Now().Add(wait + time.Duration(float64(wait)*a.o.Rand()/4))
		a.say(&a.said, "others cannot be told how far this agent is with a rotation; serving is not touched", err)
	}
}

// say logs what failed, once for each reason.
func (a *Acks) say(last *string, msg string, err error) {
	kind := kindOf(err)
	text := kind
	if kind != kindUnavailable {
		text += err.Error()
	}
	if text == *last {
		return
	}
	*last = text
	a.log.Warn(msg, "kind", kind, "error", err.Error())
}

const notRemoved = "what others were told about this agent and a rotation cannot be removed; it counts for some minutes yet"

// tell makes the store hold what is to be told, once.
func (a *Acks) tell(ctx context.Context) error {
	if a.seen == "" {
		return a.remove(ctx)
	}
	at, err := a.Place(ctx)
	if err != nil {
		return err
	}
	if a.at != "" && a.at != at { // another identity
		if err := a.remove(ctx); err != nil {
			return err
		}
	}
	if at == "" {
		if !a.nameless {
			a.nameless = true
			a.log.Info("nobody is told how far this agent is with a rotation: its identity in the store has no entity (an authentication method would give it one)")
		}
		return nil
	}
	a.nameless = false
	a.at = at
	_, err = store.PutText(ctx, a.o.Store, at, map[string][]byte{
		"agent": []byte(a.o.Agent),
		"at":    []byte(a.o.Store.Now().UTC().Format(time.RFC3339Nano)),
		"keys":  []byte(a.seen),
	}, store.Any)
	if err == nil {
		a.o.Metrics.acks.WithLabelValues(ackWritten).Inc()
	} else if a.told == "" && kindOf(err) != kindUnavailable {
		a.at = "" // refused: nothing stands there
	}
	return err
}

// Place is the path of the entry, below the store's root; "" for an identity that
// has no entity. It may ask the store who we are, and may be called concurrently.
func (a *Acks) Place(ctx context.Context) (string, error) {
	entity := localEntity
	if id, ok := a.o.Store.(store.Identifier); ok && !a.o.Local {
		who, err := id.Identity(ctx)
		if err != nil || who.EntityID == "" {
			return "", err
		}
		entity = pathSafe(who.EntityID)
	}
	return strings.Join([]string{"acks", a.o.Environment, a.o.ProxyID, entity, pathSafe(a.o.Agent)}, "/"), nil
}

// remove takes back what was told.
func (a *Acks) remove(ctx context.Context) error {
	if a.at == "" {
		return nil
	}
	err := a.o.Store.Remove(ctx, a.at)
	switch {
	case err == nil:
		a.o.Metrics.acks.WithLabelValues(ackRemoved).Inc()
		a.saidOf = ""
	case errors.Is(err, store.ErrForbidden), errors.Is(err, store.ErrInvalid):
		// Trying again does not help. In a few minutes it counts no more.
		a.o.Metrics.acks.WithLabelValues(ackFailed).Inc()
		a.say(&a.saidOf, notRemoved, err)
	default:
		return err
	}
	a.at, a.told = "", ""
	return nil
}

// leave takes back what was told, because the agent ends.
func (a *Acks) leave(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), ackStop)
	defer cancel()
	if err := a.remove(ctx); err != nil {
		a.o.Metrics.acks.WithLabelValues(ackFailed).Inc()
		a.say(&a.saidOf, notRemoved, err)
	}
}

// join makes room for what a Loop says. A nil Acks listens to nobody.
func (a *Acks) join(name string) *report {
	r := &report{acks: a, name: name}
	if a != nil {
		a.mu.Lock()
		defer a.mu.Unlock()
		a.reports = append(a.reports, r)
	}
	return r
}

// say tells how far the Loop is; nil: no rotation is open.
func (r *report) say(ack *Ack) {
	if r.acks == nil {
		return
	}
	r.acks.mu.Lock()
	same := r.looked && (r.ack == nil) == (ack == nil) && (ack == nil || r.ack.equal(*ack))
	r.looked, r.ack = true, ack
	r.acks.mu.Unlock()
	if !same {
		r.acks.wake()
	}
}

// leave ends what the Loop says.
func (r *report) leave() {
	if r.acks == nil {
		return
	}
	r.acks.mu.Lock()
	r.acks.reports = slices.DeleteFunc(r.acks.reports, func(o *report) bool { return o == r })
	r.acks.mu.Unlock()
	r.acks.wake()
}

func (a *Acks) wake() {
	select {
	case a.changed <- struct{}{}:
	default:
	}
}

func (a *Ack) equal(b Ack) bool {
	return a.To.Equal(b.To) && a.ToState == b.ToState && a.FromState == b.FromState && a.Reason == b.Reason
}

// ack is how far the Loop is with the rotation that the record describes; nil if none is open.
func (l *Loop) ack() *Ack {
	r := l.k.Record
	if r == nil || r.Closed || r.To.Zero() {
		return nil
	}
	a := &Ack{To: r.To}
	if to, ok := l.k.Find(l.incoming()); ok {
		a.To, a.ToState = to.ID, to.State
	}
	if from, ok := l.k.Find(r.From); ok && !r.From.Zero() {
		a.FromState = from.State
	}
	if a.ToState == rotation.Rejected {
		reason := l.o.Redact.Text([]byte(l.why[a.To.Number]))
		a.Reason = strings.ToValidUTF8(string(reason[:min(len(reason), ackReason)]), "")
	}
	return a
}

// incoming is the record's To, found by its number alone while the record does
// not say which of that number it is.
func (l *Loop) incoming() rotation.ID {
	to := l.k.Record.To
	if !to.Created.IsZero() {
		return to
	}
	for _, v := range l.k.Versions { // newest first
		if v.Number == to.Number {
			return v.ID
		}
	}
	return to
}
