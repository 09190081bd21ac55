package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/postern-proxy/postern/agent/audit"
	"github.com/postern-proxy/postern/agent/rotation"
	"github.com/postern-proxy/postern/agent/secret"
	"github.com/postern-proxy/postern/agent/store"
	"github.com/postern-proxy/postern/agent/store/vault"
	"github.com/postern-proxy/postern/agent/sync"
	"github.com/postern-proxy/postern/config"
)

// Report is what Check found.
type Report struct {
	OK    bool       `json:"ok"`
	Steps []Step     `json:"steps"`
	Notes []string   `json:"notes,omitempty"` // what works, but less well than it could
	Keys  []KeyCheck `json:"keys"`
}

// Step is one thing that the agent does at start.
type Step struct {
	What    string `json:"what"`
	Problem string `json:"problem,omitempty"`
}

// KeyCheck is one configured key.
type KeyCheck struct {
	Name     string        `json:"name"`
	Required bool          `json:"required"`
	Version  int           `json:"version"`
	Created  time.Time     `json:"created,omitzero"`
	Missing  bool          `json:"missing,omitempty"` // nothing of it is stored
	State    string        `json:"state"`             // present, missing, or the reason why it cannot be used
	Probe    string        `json:"probe,omitempty"`
	Status   int           `json:"status,omitempty"`
	Latency  time.Duration `json:"latency_ns,omitempty"`
	Meaning  string        `json:"meaning,omitempty"`
}

// Check does everything that an agent does at start but serve. The error is
// for a configuration that cannot be built at all; all else is in the report.
func Check(ctx context.Context, o Options, probe bool) (Report, error) {
	c := o.Config
	idle := *c
	idle.Audit.File = "-" // the record is looked at below, for it may be a running agent's
	o.Config, o.Audit = &idle, io.Discard
	a, err := New(o)
	if err != nil {
		return Report{}, err
	}
	defer a.unwind() // it was never started
	r := Report{OK: true}
	g := a.gen.Load()
	r.step("configuration "+c.Source, nil)
	r.listen("listen.proxy", c.Listen.Proxy)
	r.listen("listen.admin", c.Listen.Admin)
	if c.CA.Dir != "" {
		r.step("ca.dir "+c.CA.Dir, a.tryTrust(c))
	}
	if c.Audit.File != "-" {
		r.record(c.Audit.File)
	}
	if l, ok := g.store.Store.(interface{ Login(context.Context) error }); ok {
		r.step("store: log in", l.Login(ctx))
	}
	for _, name := range slices.Sorted(maps.Keys(g.keys)) {
		k := g.checkKey(ctx, name, probe)
		if k.State != statePresent && k.Required || k.Probe == "dead" {
			r.OK = false
		}
		r.Keys = append(r.Keys, k)
	}
	r.Notes = append(r.Notes, notes()...)
	if n := replaceable(c.Listen.Proxy); n != "" {
		r.Notes = append(r.Notes, n)
	}
	if v, ok := g.store.Store.(*vault.Store); ok {
		r.acks(ctx, v, g.store.acks)
	}
	for _, n := range c.Notes {
		r.Notes = append(r.Notes, fmt.Sprint(n))
	}
	return r, nil
}

func (r *Report) step(what string, err error) {
	s := Step{What: what}
	if err != nil {
		if pe, ok := err.(*fs.PathError); ok {
			err = pe.Err // the path stands in what, or is one of our own making
		}
		s.Problem = strings.TrimPrefix(err.Error(), what+": ")
		r.OK = false
	}
	r.Steps = append(r.Steps, s)
}

// listen tries an address. The agent itself may hold it, which is no fault of
// the configuration: that is said, not failed.
func (r *Report) listen(field, address string) {
	err := canListen(address)
	if errors.Is(err, syscall.EADDRINUSE) {
		r.Notes = append(r.Notes, field+": "+address+" is in use: by the agent if it runs already, else by a program that must end first")
		err = nil
	}
	r.step(field+" "+address, err)
}

// tryTrust writes the trust files beside where they belong and removes them: the
// ones in ca.dir may be a running agent's.
func (a *Agent) tryTrust(c *config.Config) error {
	dir := c.CA.Dir
	switch fi, err := os.Lstat(dir); {
	case errors.Is(err, fs.ErrNotExist):
		dir = filepath.Dir(dir) // made at start
	case err != nil:
		return err
	case fi.Mode()&fs.ModeSymlink != 0:
		return errors.New("is a symbolic link: name the directory itself")
	case !fi.IsDir():
		return errors.New("is not a directory")
	}
	tmp, err := os.MkdirTemp(dir, ".postern-check-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp)
	if err := a.writeTrust(c, tmp); err != nil {
		return errors.New(strings.ReplaceAll(err.Error(), tmp, c.CA.Dir))
	}
	return nil
}

// record tries the audit record: as an agent would open it where it is there,
// else whether it can be made.
func (r *Report) record(file string) {
	what := "audit.file " + file
	if _, err := os.Lstat(file); errors.Is(err, fs.ErrNotExist) {
		f, err := os.CreateTemp(filepath.Dir(file), ".postern-check-")
		if err == nil {
			f.Close()
			err = os.Remove(f.Name())
		}
		r.step(what, err)
		return
	}
	f, err := audit.Open(file, audit.Options{})
	if err == nil {
		f.Close()
	}
	if errors.Is(err, audit.ErrInUse) {
		r.Notes = append(r.Notes, what+" is in use: by the agent if it runs already")
		err = nil
	}
	r.step(what, err)
}

// acks notes where a rotation will not hear of this agent: it then waits for
// grace alone. Where that cannot be found out nothing is said.
func (r *Report) acks(ctx context.Context, v *vault.Store, acks *sync.Acks) {
	place, err := acks.Place(ctx)
	switch {
	case err != nil:
		return
	case place == "":
		r.Notes = append(r.Notes, "rotations: nobody hears how far this agent is, for its identity in Vault has no entity (a token has none, an authentication method gives one); the old version is revoked after grace without asking")
		return
	}
	data, metadata := v.APIPath("data", place), v.APIPath("metadata", place)
	may, err := v.Capabilities(ctx, data, metadata)
	if err != nil {
		return
	}
	for _, need := range []struct{ path, capability string }{{data, "create"}, {data, "update"}, {metadata, "delete"}} {
		if has := may[need.path]; !slices.Contains(has, need.capability) && !slices.Contains(has, "root") {
			r.Notes = append(r.Notes, "rotations: others do not hear how far this agent is: its policy lacks "+need.capability+" on "+path.Dir(need.path)+"/*; the old version is revoked after grace without asking")
			return
		}
	}
}

// notes are the protections that this machine lacks.
func notes() []string {
	out := secret.Harden().Notes
	s := secret.Stats()
	if !s.Locked {
		out = append(out, "keys are not locked in memory and may be swapped; raise the limit of locked memory (ulimit -l) or turn swap off")
	}
	if !s.DontDump {
		out = append(out, "this platform cannot keep single pages out of core dumps; core dumps are off for the process instead")
	}
	return out
}

const statePresent = "present"

// checkKey reads one key as its loop would, and tries it.
func (g *generation) checkKey(ctx context.Context, name string, probe bool) KeyCheck {
	k := g.keys[name]
	out := KeyCheck{Name: name, Required: k.required, State: statePresent}
	sec, err := k.loop.Fetch(ctx)
	if err != nil {
		out.State = err.Error()
		if errors.Is(err, store.ErrNotFound) {
			out.Missing = true
			out.State = "missing: store it with `postern keys add " + name + "`"
			if path, _, elsewhere := strings.Cut(name, "#"); elsewhere {
				out.State = "missing: nothing is stored at " + path
			}
		}
		return out
	}
	defer sec.Destroy()
	out.Version, out.Created = sec.Version.Number, sec.Version.Created
	if !probe {
		return out
	}
	res := k.probe(ctx, sec.Fields)
	out.Status, out.Latency, out.Meaning = res.Status, res.Latency, res.Meaning
	out.Probe = map[rotation.Verdict]string{rotation.VerdictLive: "live", rotation.VerdictDead: "dead"}[res.Verdict]
	if out.Probe == "" {
		out.Probe = "unknown"
	}
	return out
}

// AwaitKeys waits until every key was either loaded or found to be missing. It
// fails if a required one is missing, or if there is none at all.
func (a *Agent) AwaitKeys(ctx context.Context, wait time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	g := a.gen.Load()
	if err := g.awaitSettled(ctx); err != nil {
		return err
	}
	any := false
	for _, name := range slices.Sorted(maps.Keys(g.keys)) {
		k := g.keys[name]
		usable := len(k.key.Entries()) > 0
		any = any || usable
		if !usable && k.required {
			return fmt.Errorf("the key %s cannot be used: %s", name, k.loop.Status().Reason())
		}
	}
	if !any && a.cfg.Load().BuiltIn() {
		return errors.New("no provider key is stored yet; `postern keys add openai` stores one (it asks for the key)")
	}
	return nil
}

// HasKey reports whether a version of the key is usable now.
func (a *Agent) HasKey(name string) bool {
	return a.gen.Load().serves(name)
}
