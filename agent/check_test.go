package agent

import (
	"encoding/json"
	"fmt"
	"maps"
	"net"
	"os"
	"strings"
	"testing"
)

func (h *house) check(probe bool) Report {
	h.t.Helper()
	r, err := Check(h.t.Context(), h.options(), probe)
	if err != nil {
		h.t.Fatal(err)
	}
	if b, err := json.Marshal(r); err != nil || strings.Contains(string(b), firstKey) {
		h.t.Errorf("the report cannot be shown: %s, %v", b, err)
	}
	return r
}

// problems are what a report complains of.
func (r Report) problems() string {
	var all []string
	for _, s := range r.Steps {
		if s.Problem != "" {
			all = append(all, s.What+": "+s.Problem)
		}
	}
	return strings.Join(all, "\n")
}

func TestCheckOfWhatIsWell(t *testing.T) {
	h := newHouse(t)
	h.replace("rotation:", "ca: {dir: ca}\naudit: {file: audit.jsonl}\nrotation:")
	before := h.files()
	r := h.check(true)
	if !r.OK || r.problems() != "" {
		t.Errorf("%+v", r)
	}
	var steps []string
	for _, s := range r.Steps {
		what, _, _ := strings.Cut(s.What, " ")
		steps = append(steps, what)
	}
	if got := strings.Join(steps, " "); got != "configuration listen.proxy listen.admin ca.dir audit.file" {
		t.Errorf("steps: %s", got)
	}
	if len(r.Keys) != 1 || r.Keys[0].State != "present" || r.Keys[0].Version != 1 || !r.Keys[0].Required || r.Keys[0].Probe != "live" || r.Keys[0].Status != 200 {
		t.Errorf("%+v", r.Keys)
	}
	if after := h.files(); !maps.Equal(before, after) {
		t.Errorf("looking made or removed files: %v, then %v", before, after)
	}
	if h.audit.String() != "" {
		t.Errorf("looking was recorded: %s", h.audit)
	}
}

func TestCheckOfKeys(t *testing.T) {
	h := newHouse(t)
	h.set(h.config(h.entry("openai", ""), h.entry("dead", ""), h.entry("limited", ", optional: true"), h.entry("absent", ", optional: true")))
	h.put("dead", "sk-test-dead-000000000000000000000000")
	h.provider.Revoke("sk-test-dead-000000000000000000000000")
	h.put("limited", "sk-test-forbidden-0000000000000000000")
	h.provider.Forbid("sk-test-forbidden-0000000000000000000")
	by := map[string]KeyCheck{}
	r := h.check(false)
	if !r.OK {
		t.Errorf("not probed, all is well: %+v", r)
	}
	if r = h.check(true); r.OK {
		t.Error("a required key is dead, and all is well")
	}
	for _, k := range r.Keys {
		by[k.Name] = k
	}
	if k := by["dead"]; k.Probe != "dead" || k.Status != 401 || k.State != "present" {
		t.Errorf("%+v", k)
	}
	if k := by["absent"]; !k.Missing || k.Required || k.Probe != "" || k.State != "missing: store it with `postern keys add absent`" {
		t.Errorf("%+v", k)
	}
	if k := by["limited"]; k.Probe == "dead" {
		t.Errorf("%+v", k)
	}
	h.set(h.config(h.entry("openai", ""), h.entry("absent", "")))
	if r := h.check(false); r.OK {
		t.Error("a required key is missing, and all is well")
	}
}

// Where nobody can be asked, a probe says so and condemns nothing.
func TestCheckWhereTheProviderIsAway(t *testing.T) {
	h := newHouse(t)
	h.provider.Close()
	r := h.check(true)
	if !r.OK || r.Keys[0].Probe != "unknown" || r.Keys[0].Status != 0 || r.Keys[0].Meaning == "" {
		t.Errorf("%+v", r.Keys)
	}
}

func TestCheckOfWhatIsWrong(t *testing.T) {
	for _, c := range []struct{ what, old, with, says string }{
		{"an address of another machine", `proxy: "127.0.0.1:0"`, `proxy: "192.0.2.1:8700", allow_remote: true`, "listen.proxy 192.0.2.1:8700: "},
		{"a socket in a directory that is not there", `proxy: "127.0.0.1:0"`, `proxy: "unix:///nowhere/proxy.sock", allow_uids: [0]`, "listen.proxy unix:///nowhere/proxy.sock: "},
		{"a file where the socket should be", `proxy: "127.0.0.1:0"`, `proxy: "unix:///etc/passwd", allow_uids: [0]`, "is no socket"},
		{"ca.dir below nothing", "rotation:", "ca: {dir: nowhere/ca}\nrotation:", "ca.dir "},
		{"ca.dir is a link", "rotation:", "ca: {dir: link}\nrotation:", "symbolic link"},
		{"ca.dir is a file", "rotation:", "ca: {dir: provider-ca.pem}\nrotation:", "not a directory"},
		{"audit.file is a directory", "rotation:", "audit: {file: .}\nrotation:", "audit.file "},
	} {
		t.Run(c.what, func(t *testing.T) {
			h := newHouse(t)
			try(t, os.Symlink("elsewhere", h.path("link")))
			h.replace(c.old, c.with)
			if r := h.check(false); r.OK || !strings.Contains(r.problems(), c.says) {
				t.Errorf("%q, want %q", r.problems(), c.says)
			}
		})
	}
}

func TestCheckOfWhatCannotBeBuilt(t *testing.T) {
	h := newHouse(t)
	h.replace("provider-ca.pem", "nowhere.pem")
	if _, err := Check(t.Context(), h.options(), false); err == nil || !strings.Contains(err.Error(), "ca_file") {
		t.Errorf("%v", err)
	}
}

// A check beside the running agent disturbs nothing: its trust files stay, its
// record is not written to, and that its addresses are in use is no fault.
func TestCheckBesideARunningAgent(t *testing.T) {
	h := newHouse(t)
	h.replace("rotation:", "ca: {dir: ca}\naudit: {file: audit.jsonl}\nrotation:")
	a := h.start()
	ca, err := os.ReadFile(h.path("ca/ca.pem"))
	try(t, err)
	_, proxy, _ := net.SplitHostPort(a.ProxyAddr().String())
	_, admin, _ := net.SplitHostPort(a.AdminAddr().String())
	h.replace(`proxy: "127.0.0.1:0", admin: "127.0.0.1:0"`, fmt.Sprintf(`proxy: "127.0.0.1:%s", admin: "127.0.0.1:%s"`, proxy, admin))
	r := h.check(true)
	notes := strings.Join(r.Notes, "\n")
	if !r.OK || strings.Count(notes, "in use") != 3 {
		t.Errorf("%q, notes %q", r.problems(), notes)
	}
	if now, err := os.ReadFile(h.path("ca/ca.pem")); err != nil || string(now) != string(ca) {
		t.Errorf("the running agent's certificate was replaced: %v", err)
	}
	record, err := os.ReadFile(h.path("audit.jsonl"))
	try(t, err)
	boot := first(cut(string(record), `"boot":"`)) // of the process that wrote an entry
	if strings.Count(string(record), `"boot":`) != strings.Count(string(record), `"boot":"`+boot+`"`) {
		t.Error("somebody else wrote to the running agent's record")
	}
	h.serves(a, "openai")
	if s := a.Status(); !s.Ready || s.Generation != 1 {
		t.Errorf("%+v", s)
	}
}
