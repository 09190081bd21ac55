package rotation

import (
	"slices"
	"time"
)

// Key is all that is known of a key's versions. It is a value: Step returns a
// changed copy and leaves its argument as it was. Make one with New.
type Key struct {
	// The configured rotation, for versions that no record speaks of.
	Ramp        Ramp
	Grace       time.Duration
	RejectRatio float64 // refused ÷ answered, above which the new version is halted

	Versions []Version // newest first
	// To takes the traffic, and From what To's ramp leaves. To is Active
	// whenever any version is usable; once none is it says which was the last.
	// From is zero when no other version is wanted beside To.
	From, To ID
	Plan     Plan    // To's
	Record   *Record // as last observed; never changed
	// Flagged says that the store neither has To any more nor anything newer.
	Flagged bool
	// Installed are the shares that the last Install gave out.
	Installed []Share
}

// Version is one version of the key.
type Version struct {
	ID
	State State
	// Since is when State began. For Draining it is when the newer version had
	// taken all traffic, which may be before anyone looked.
	Since    time.Time
	Readable bool    // the store still has it
	Loaded   bool    // its value is in memory
	Verdict  Verdict // of the last probe since it was loaded
	Halted   bool    // vetoed: Rejected for good

	order      time.Time // when it was created, or a version of a lower number if that was later
	probed     bool      // a probe answered since it was loaded, be it with VerdictUnknown
	overruled  bool      // a halt was ignored because nothing else was usable
	decided    bool      // a record says Rejected: whatever else there is, it stays out
	rejections int
	retry      time.Time // when a Rejected one may be tried again, if nothing is usable

	// What stands between it and Active.
	task     task
	busy     bool // the action was given out and not answered yet
	attempts int  // answers that led nowhere
	next     time.Time
}

type task uint8

const (
	toWait task = iota
	toLoad
	toProbe
	toAudit
)

// Share is a usable version's percentage of new requests.
type Share struct {
	ID     ID
	Weight int
}

// New returns a key of which no version is known.
func New(ramp Ramp, grace time.Duration, rejectRatio float64) Key {
	return Key{Ramp: ramp, Grace: grace, RejectRatio: rejectRatio}
}

// Weights says how new requests are shared at a time, newest version first. It
// lists the usable versions; the weights sum to 100 if there is any.
func (k Key) Weights(now time.Time) []Share {
	var shares []Share
	for _, v := range k.Versions {
		if !v.State.Usable() {
			continue
		}
		w := 0
		switch {
		case v.ID.Equal(k.To) && k.From.Zero():
			w = 100
		case v.ID.Equal(k.To):
			w = k.Plan.weight(now)
		case v.ID.Equal(k.From):
			w = 100 - k.Plan.weight(now)
		}
		shares = append(shares, Share{v.ID, w})
	}
	return shares
}

// Open reports whether a rotation is under way: two versions share the traffic,
// the old one's grace runs, or a record keeps a version waiting.
func (k Key) Open(now time.Time) bool {
	if !k.From.Zero() {
		return true
	}
	r := k.Record
	return r != nil && !r.Closed && !r.To.Zero() && (r.holds(now) || k.recorded().open(now))
}

// Usable reports whether a request may be served.
func (k Key) Usable() bool { return slices.ContainsFunc(k.Versions, Version.usable) }

// Vetoable lists the versions against which a halt would count: To while there
// is another one to go back to, and those that are on their way.
func (k Key) Vetoable() []ID {
	var ids []ID
	for _, v := range k.Versions {
		if v.State == Pending || v.ID.Equal(k.To) && !k.From.Zero() {
			ids = append(ids, v.ID)
		}
	}
	return ids
}

// Busy reports whether a version is on its way to Active.
func (k Key) Busy() bool {
	return slices.ContainsFunc(k.Versions, func(v Version) bool { return v.task != toWait })
}

func (v Version) usable() bool { return v.State.Usable() }

// Wake is when the next Tick is due for time alone to change something; the zero time if never.
func (k Key) Wake(now time.Time) time.Time {
	var wake time.Time
	at := func(t time.Time) {
		if t.After(now) && (wake.IsZero() || t.Before(wake)) {
			wake = t
		}
	}
	if from := k.find(k.From); from != nil {
		k.Plan.steps(at)
		at(k.drained())
	}
	if k.Record != nil {
		at(k.Record.StartedAt)
	}
	for _, v := range k.Versions {
		switch {
		case v.State == Draining:
			at(v.Since.Add(k.Plan.Grace))
		case v.task != toWait && !v.busy:
			at(v.next)
		case v.State == Rejected && v.Readable && (!v.Halted || k.last(v)) && !k.Usable():
			at(v.retry)
		}
	}
	return wake
}

// drained is when From has no share left: at the ramp's end, or when To became
// usable if that was later, so that grace begins once the new one works.
func (k *Key) drained() time.Time {
	end := k.Plan.rampEnd()
	if to := k.find(k.To); to != nil && to.Since.After(end) {
		return to.Since
	}
	return end
}

// planOf is how a version comes in: as its record says, else by the configuration from its creation on.
func (k *Key) planOf(id ID) Plan {
	if k.Record.about(id) && !k.Record.StartedAt.IsZero() {
		return k.recorded()
	}
	return Plan{StartedAt: id.Created, Ramp: k.Ramp, Grace: k.Grace}
}

func (k *Key) recorded() Plan {
	return Plan{StartedAt: k.Record.StartedAt, Ramp: k.Record.Ramp, Grace: k.Record.Grace}
}

// held reports whether a record says that the version's time has not come.
func (k *Key) held(id ID, now time.Time) bool { return k.Record.about(id) && k.Record.holds(now) }

// last reports whether a version may come in although a halt stands against it:
// nothing was ever usable here, so that agents which were running already, and did
// not obey a halt against all they had, may be using it.
func (k *Key) last(v Version) bool {
	return k.To.Zero() && v.State == Rejected && v.Halted && !v.decided
}

func (k *Key) find(id ID) *Version {
	for i := range k.Versions {
		if k.Versions[i].ID.Equal(id) {
			return &k.Versions[i]
		}
	}
	return nil
}

// Find returns what is known of a version.
func (k Key) Find(id ID) (Version, bool) {
	if v := k.find(id); v != nil {
		return *v, true
	}
	return Version{}, false
}
