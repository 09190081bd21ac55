package rotation

import "time"

// Event is something that happened. The types below are all there are.
type Event interface {
	at() time.Time
	apply(*step)
}

// Stored is a version as the store lists it.
type Stored struct {
	ID       ID
	Readable bool // neither deleted nor destroyed
}

// Observed is one complete look into the store. No Versions means that the path
// holds nothing; a store that did not answer is no observation.
type Observed struct {
	Now      time.Time
	Versions []Stored
	Record   *Record // nil if there is none
	Halts    []Halt
}

// Loaded answers Load: the value is in memory, known to redaction.
type Loaded struct {
	Now time.Time
	ID  ID
}

// LoadFailed answers Load. Permanent: the value as it stands can never be used.
type LoadFailed struct {
	Now       time.Time
	ID        ID
	Permanent bool
	Reason    string
}

// Vetoed says that a halt stands against a version; it also answers Load.
type Vetoed struct {
	Now  time.Time
	Halt Halt
}

// Probed answers Probe.
type Probed struct {
	Now     time.Time
	ID      ID
	Verdict Verdict
	Reason  string // for people: the provider's status and what it means
}

// Audited answers Audit: whether the promotion's entry stands.
type Audited struct {
	Now time.Time
	ID  ID
	OK  bool
}

// Tick says that time has passed.
type Tick struct{ Now time.Time }

// Evidence is what requests showed since the version became active: how many it
// answered, and on how many of them it was refused where another one was not.
type Evidence struct {
	Now            time.Time
	ID             ID
	Served, Failed uint64
}

// Compromise revokes a version in an emergency.
type Compromise struct {
	Now time.Time
	ID  ID
}

// Expired ends the use of one version whose lease is over, or, with the zero
// ID, of all versions, because the store was out of reach for too long. If
// nothing stays usable the next observation starts afresh.
type Expired struct {
	Now time.Time
	ID  ID
}

// Action is something to be done, in the order given. The types below are all
// there are. Load, Probe and Audit are each answered by one event.
type Action interface{ action() }

// Load reads a version's value into memory and makes it known to redaction first.
// Halted: a halt stands against it and is ignored, because there is nothing else.
type Load struct {
	ID     ID
	Halted bool
}

// Probe asks the provider about a loaded version. It may be put off by up to
// Spread, so that many agents do not ask at once.
type Probe struct {
	ID     ID
	Spread time.Duration
}

// Audit writes down that a version is about to be promoted.
type Audit struct{ ID ID }

// Install makes these the usable versions.
type Install struct{ Shares []Share }

// Retire ends a version that was usable or was revoked; State is why. It comes
// after the Install that leaves it out. Now: wipe it even under requests.
type Retire struct {
	ID     ID
	State  State
	Now    bool
	Reason string
}

// Discard drops a version that never took traffic, loaded or not. Rejected: it
// does not work, Again: as was known before; else it is no longer wanted.
type Discard struct {
	ID              ID
	Rejected, Again bool
	Reason          string
}

// Veto asks to write a halt against a version, for all agents to see.
type Veto struct{ Halt Halt }

// Note is for the log, the metrics and the audit trail.
type Note struct {
	Kind NoteKind
	ID   ID
	From ID // NotePromoted, NoteRolledBack: the other version; zero if none
}

// NoteKind is what a Note says.
type NoteKind string

const (
	NotePromoted    NoteKind = "promoted"     // ID is Active
	NoteRolledBack  NoteKind = "rolled-back"  // ID takes over again from From, which is out
	NoteMissing     NoteKind = "missing"      // the store lost what is being served (ID; zero: there never was any)
	NoteFound       NoteKind = "found"        // and has it, or a newer one, again
	NoteHaltIgnored NoteKind = "halt-ignored" // a halt against ID, which is all there is
)

func (Load) action()    {}
func (Probe) action()   {}
func (Audit) action()   {}
func (Install) action() {}
func (Retire) action()  {}
func (Discard) action() {}
func (Veto) action()    {}
func (Note) action()    {}
