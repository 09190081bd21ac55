package sync

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"time"

	"github.com/postern-proxy/postern/agent/audit"
	"github.com/postern-proxy/postern/agent/keyring"
	"github.com/postern-proxy/postern/agent/provider"
	"github.com/postern-proxy/postern/agent/redact"
	"github.com/postern-proxy/postern/agent/rotation"
	"github.com/postern-proxy/postern/agent/secret"
	"github.com/postern-proxy/postern/agent/store"
)

// do does one action. What takes time runs beside the loop and comes back as an event.
func (l *Loop) do(a rotation.Action) {
	switch a := a.(type) {
	case rotation.Load:
		l.load(a)
	case rotation.Probe:
		l.probe(a)
	case rotation.Audit:
		l.intend(a.ID)
	case rotation.Install:
		l.install(a.Shares)
	case rotation.Retire:
		l.retire(a)
	case rotation.Discard:
		l.discard(a)
	case rotation.Veto:
		l.veto(a.Halt)
	case rotation.Note:
		l.note(a)
	}
}

func (l *Loop) find(id rotation.ID) *held {
	for _, h := range l.held {
		if h.v.ID().Equal(id) {
			return h
		}
	}
	return nil
}

// load reads a version into memory. Redaction knows it before anything else does.
func (l *Loop) load(a rotation.Load) {
	id, fetch := a.ID, l.src.fetch
	if kv, ok := l.src.(*kvSource); ok && a.Halted {
		fetch = kv.read
	}
	l.beside(readLimit, func(ctx context.Context) func() {
		sec, err := l.fetch(ctx, id, fetch)
		var h *held
		if err == nil {
			h, err = l.hold(id, sec)
		}
		return func() { l.loadedOrNot(id, h, err) }
	})
}

// fetch reads a version as the source has it and checks it.
func (l *Loop) fetch(ctx context.Context, id rotation.ID, fetch func(context.Context, rotation.ID) (*store.Secret, error)) (*store.Secret, error) {
	sec, err := fetch(ctx, id)
	l.o.Metrics.read(err)
	if err != nil {
		return nil, err
	}
	where := fmt.Sprintf("%s version %d", l.o.Source.Path+l.o.Source.VaultPath, id.Number)
	return checked(sec, where, l.o.Source.Field)
}

// hold makes a secret known to redaction and takes its fields over. Where it fails the secret is destroyed.
func (l *Loop) hold(id rotation.ID, sec *store.Secret) (*held, error) {
	h := &held{}
	for _, name := range append([]string{keyring.KeyField}, l.o.Credentials...) {
		v := sec.Fields[name]
		if v == nil {
			continue
		}
		e, err := l.redact(id, name, v)
		if err != nil {
			l.forgetValues(h)
			sec.Destroy()
			return nil, fmt.Errorf("field %q: %w", name, err)
		}
		h.known = append(h.known, e)
	}
	h.v = keyring.NewVersion(id, sec.Fields)
	return h, nil
}

func (l *Loop) redact(id rotation.ID, field string, v *secret.Value) (*redact.Entry, error) {
	if n := v.Len(); n < redact.MinValue {
		return nil, errUnusable{fmt.Errorf("%d bytes could not be told from ordinary text in a log; use at least %d", n, redact.MinValue)}
	}
	prefix := ""
	if field == keyring.KeyField {
		prefix = l.o.KeyPrefix
	}
	return l.o.Redact.Add(redact.Label{Key: l.o.Name, Version: id.Number}, v, prefix)
}

// forgetValues leaves redaction with hashes only.
func (l *Loop) forgetValues(h *held) {
	for _, e := range h.known {
		l.o.Redact.Retire(e)
	}
}

// loadedOrNot takes in what became of a load.
func (l *Loop) loadedOrNot(id rotation.ID, h *held, err error) {
	var halted errHalted
	switch {
	case err != nil && l.stopped:
	case err == nil && (l.stopped || l.find(id) != nil): // too late, or read twice
		l.end(h, false)
	case err == nil:
		l.held = append(l.held, h)
		l.unloaded = trouble{}
		l.forget(saidLoad)
		delete(l.why, id.Number)
		l.log.Info("version loaded", "version", id.Number, "fingerprint", h.v.Fingerprint())
		l.step(rotation.Loaded{Now: l.now(), ID: id})
	case errors.As(err, &halted):
		l.step(rotation.Vetoed{Now: l.now(), Halt: halted.halt})
	default:
		l.unloaded = trouble{kindOf(err), err.Error()}
		l.say(saidLoad, slog.LevelError, err.Error(), "version cannot be loaded", "version", id.Number, "kind", l.unloaded.Kind, "error", err.Error())
		l.step(rotation.LoadFailed{Now: l.now(), ID: id, Permanent: l.unloaded.Kind == kindUnusable, Reason: err.Error()})
	}
}

// probe asks the provider about a version.
func (l *Loop) probe(a rotation.Probe) {
	h := l.find(a.ID)
	delay := time.Duration(float64(a.Spread) * l.o.Rand())
	l.beside(delay+probeLimit, func(ctx context.Context) func() {
		res := provider.Result{Verdict: rotation.VerdictLive, Meaning: "not asked: this provider has no probe"}
		switch {
		case h == nil: // cannot be, and says nothing about the key
			res = provider.Result{Meaning: "unknown: not in memory"}
		case l.o.Probe != nil:
			wait(ctx, delay)
			res = l.o.Probe(ctx, h.v.Fields())
		}
		return func() { l.probed(a.ID, res) }
	})
}

func (l *Loop) probed(id rotation.ID, res provider.Result) {
	if l.stopped {
		return
	}
	l.o.Metrics.probes.WithLabelValues(l.o.Name, res.Verdict.String()).Inc()
	attrs := []any{"version", id.Number, "verdict", res.Verdict.String(), "status", res.Status, "meaning", res.Meaning, "latency", res.Latency}
	if res.Err != nil {
		attrs = append(attrs, "error", res.Err.Error())
	}
	l.log.Info("version probed", attrs...)
	reason := "probe: " + res.Meaning
	if res.Status != 0 {
		reason += " (status " + strconv.Itoa(res.Status) + ")"
	}
	l.step(rotation.Probed{Now: l.now(), ID: id, Verdict: res.Verdict, Reason: reason})
}

// intend writes down that a version is about to be promoted.
func (l *Loop) intend(id rotation.ID) {
	e := l.event(audit.Event{Event: EventPromoted, Version: id.Number, Outcome: "intent", Reason: "it takes its share of requests"})
	l.beside(auditLimit, func(ctx context.Context) func() {
		_, err := l.o.Audit.Append(ctx, e)
		return func() {
			if err != nil {
				l.say(saidAudit, slog.LevelError, err.Error(), "version not promoted: its audit entry cannot be written", "version", id.Number, "error", err.Error())
			} else {
				l.forget(saidAudit)
			}
			l.step(rotation.Audited{Now: l.now(), ID: id, OK: err == nil})
		}
	})
}

// install makes a snapshot of what rotation says is usable.
func (l *Loop) install(shares []rotation.Share) {
	entries := make([]keyring.Entry, 0, len(shares))
	for _, s := range shares {
		if h := l.find(s.ID); h != nil {
			entries = append(entries, keyring.Entry{Version: h.v, Weight: s.Weight})
		}
	}
	l.o.Key.Install(entries)
	if l.o.OnChange != nil {
		l.o.OnChange()
	}
}

func (l *Loop) retire(a rotation.Retire) {
	var counts map[string]string
	if h := l.find(a.ID); h != nil {
		counts = evidence(h.v.Counts())
		l.end(h, a.Now)
	}
	l.log.Info("version out of use", "version", a.ID.Number, "state", a.State.String(), "reason", a.Reason)
	e := audit.Event{Event: EventRetired, Version: a.ID.Number, Reason: a.Reason}
	switch a.State {
	case rotation.Compromised:
		e.Event = EventRevoked
		l.o.Metrics.rotations.WithLabelValues(l.o.Name, "revoked").Inc()
	case rotation.Rejected:
		e.Event, e.Detail = EventHalted, counts
		l.why[a.ID.Number] = a.Reason
		l.o.Metrics.rotations.WithLabelValues(l.o.Name, "rolled_back").Inc()
	}
	l.record(e)
}

// evidence is what requests showed about a version, as it is recorded.
func evidence(served, failed uint64) map[string]string {
	return map[string]string{"served": strconv.FormatUint(served, 10), "failed": strconv.FormatUint(failed, 10)}
}

func (l *Loop) discard(a rotation.Discard) {
	if h := l.find(a.ID); h != nil {
		l.end(h, false)
	}
	if !a.Rejected {
		return
	}
	l.why[a.ID.Number] = a.Reason
	if a.Again {
		return
	}
	l.o.Metrics.rotations.WithLabelValues(l.o.Name, "rejected").Inc()
	l.log.Error("version rejected", "version", a.ID.Number, "reason", a.Reason)
	l.record(audit.Event{Event: EventRejected, Version: a.ID.Number, Reason: a.Reason})
}

// end takes a version out of memory: at once, or when its last lease ends.
func (l *Loop) end(h *held, now bool) {
	l.held = without(l.held, h)
	if now {
		h.v.Wipe()
	}
	wiped := h.v.Close()
	select {
	case <-wiped:
		l.ended(h)
		return
	default:
	}
	l.ending = append(l.ending, h)
	l.wg.Go(func() {
		<-wiped
		l.ended(h)
		l.results <- func() { l.ending = without(l.ending, h) }
	})
}

// ended lets go of what else knew the value.
func (l *Loop) ended(h *held) {
	l.forgetValues(h)
	l.log.Info("version wiped", "version", h.v.Number(), "fingerprint", h.v.Fingerprint())
	if l.o.OnRetired != nil {
		l.o.OnRetired()
	}
}

func without(list []*held, h *held) []*held {
	var rest []*held
	for _, o := range list {
		if o != h {
			rest = append(rest, o)
		}
	}
	return rest
}

// veto writes a halt for all agents. Here it is in force already.
func (l *Loop) veto(h rotation.Halt) {
	l.log.Error("version halted: requests were refused with it and not with the other one", "version", h.To.Number, "failed", h.Failed, "served", h.Served)
	if agent := l.o.Acks.Agent(); agent != "" {
		h.Rest = map[string]string{"agent": agent}
	}
	l.later(&l.vetoes, func(ctx context.Context) (func(), error) {
		written, err := l.src.veto(ctx, h)
		if errors.Is(err, errNoPlace) {
			l.log.Warn("the halt cannot be shared; each agent finds out by itself", "version", h.To.Number, "error", err.Error())
			return nil, nil
		}
		if err != nil {
			return nil, err
		}
		e := audit.Event{Event: EventVetoed, Version: h.To.Number, Reason: h.Reason, Detail: evidence(h.Served, h.Failed)}
		if !written {
			e.Outcome = "exists"
		}
		return func() { l.record(e) }, nil
	})
}

func (l *Loop) note(n rotation.Note) {
	switch n.Kind {
	case rotation.NotePromoted:
		l.log.Info("version promoted", "version", n.ID.Number, "from", n.From.Number)
		l.o.Metrics.rotations.WithLabelValues(l.o.Name, "promoted").Inc()
		l.record(audit.Event{Event: EventPromoted, Version: n.ID.Number, Detail: from(n.From)})
	case rotation.NoteRolledBack:
		l.log.Warn("an older version takes all requests again", "version", n.ID.Number, "instead_of", n.From.Number)
		l.record(audit.Event{Event: EventRolledBack, Version: n.ID.Number, Detail: from(n.From)})
	case rotation.NoteMissing:
		if n.ID.Zero() {
			level := slog.LevelWarn
			if l.o.Optional {
				level = slog.LevelInfo
			}
			l.log.Log(context.Background(), level, "no version of the key is stored")
			return
		}
		l.log.Warn("the version that serves is stored no more; it goes on serving from memory until a newer one is stored", "version", n.ID.Number)
		l.record(audit.Event{Event: EventMissing, Version: n.ID.Number, Reason: "deleted or destroyed in the store; serving from memory"})
	case rotation.NoteFound:
		l.log.Info("the store has the key again")
	case rotation.NoteHaltIgnored:
		l.log.Warn("a halt is ignored: no other version is usable", "version", n.ID.Number)
	}
}

func from(id rotation.ID) map[string]string {
	if id.Zero() {
		return nil
	}
	return map[string]string{"from": strconv.Itoa(id.Number)}
}

func wait(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}

// Fetch reads the newest version as Run would, without using it: its key is at
// keyring.KeyField. The secret is the caller's. Nothing stored is store.ErrNotFound.
func (l *Loop) Fetch(ctx context.Context) (*store.Secret, error) {
	seen, err := l.src.look(ctx, nil)
	if err != nil {
		return nil, err
	}
	var newest rotation.ID
	for _, v := range seen.versions {
		if v.Readable && v.ID.Number > newest.Number {
			newest = v.ID
		}
	}
	if newest.Zero() {
		return nil, fmt.Errorf("%s: no version is stored: %w", l.o.Source.Path+l.o.Source.VaultPath, store.ErrNotFound)
	}
	return l.fetch(ctx, newest, l.src.fetch)
}
