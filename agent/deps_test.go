package agent

import (
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/postern-proxy/postern"

// arrow is one allowed import and why it is there.
type arrow struct{ to, why string }

// rooms lists every package of the module with the packages of the module that
// it may import. A package that is not listed, and an arrow that is not, fails:
// whoever adds one writes down why.
var rooms = map[string][]arrow{
	"agent/secret":        {}, // the leaf that everything secret goes through
	"agent/rotation":      {},
	"agent/provider/spec": {},
	"agent/audit":         {},
	"agent/roles":         {},

	"agent/store":           {{"agent/secret", "values never travel as strings"}},
	"agent/store/vault":     {{"agent/secret", "answers are parsed into the arena"}, {"agent/store", "implements it"}},
	"agent/store/sealed":    {{"agent/secret", "plaintexts live in the arena"}, {"agent/store", "implements it"}},
	"agent/store/storetest": {{"agent/secret", "makes values"}, {"agent/store", "what it tests"}},

	"agent/redact":        {{"agent/secret", "the known values"}},
	"agent/keyring":       {{"agent/rotation", "a version's identity"}, {"agent/secret", "the values it leases"}},
	"agent/provider":      {{"agent/provider/spec", "what it gives behaviour"}, {"agent/rotation", "a probe's verdict"}, {"agent/secret", "what it attaches"}},
	"agent/provider/fake": {{"agent/provider/spec", "the wire formats it speaks"}, {"agent/provider", "the error shapes it answers with"}},
	"agent/keys": {
		{"agent/secret", "the value it stores"}, {"agent/store", "where it stores"}, {"agent/rotation", "the record it moves on"},
		{"agent/provider", "a probe's result"}, {"agent/issuer", "who makes and revokes managed keys"}, {"agent/audit", "the record of what it did"},
	},
	"agent/issuer":      {{"agent/secret", "new keys go straight into the arena"}, {"agent/store", "a lease's shape, and what its errors mean"}, {"agent/upstream", "why a vendor could not be reached"}},
	"agent/issuer/fake": {},
	"agent/sync": {
		{"agent/store", "what it polls"}, {"agent/rotation", "what decides"}, {"agent/keyring", "what it fills"},
		{"agent/provider", "the probe's result"}, {"agent/redact", "is told first"}, {"agent/audit", "records promotions"}, {"agent/secret", "values on their way"},
	},
	"agent/clientenv": {{"agent/provider/spec", "which variables SDKs read"}},
	"agent/webhook": {
		{"config", "what it writes the agent must be able to read"}, {"agent/clientenv", "the application's variables"},
	},
	"agent/socket":   {},
	"agent/upstream": {{"agent/socket", "fewer calls of the kernel"}},
	"agent/proxy/h1": {},
	"agent/mitm":     {},
	"agent/admin":    {{"agent/secret", "the arena's gauges"}},
	"agent/proxy": {
		{"agent/keyring", "picks a version"}, {"agent/provider", "attaches it"}, {"agent/provider/spec", "error shapes and hosts"},
		{"agent/redact", "scrubs answers"}, {"agent/upstream", "dials"}, {"agent/audit", "records refusals"}, {"agent/proxy/h1", "reads and frames strictly"},
		{"agent/socket", "fewer calls of the kernel"},
		{"agent/secret", "wipes what a key was sent from"},
	},
	"config": {{"agent/provider/spec", "a provider's shape"}, {"agent/rotation", "a ramp's shape"}},
	"agent": {
		{"config", "what it is built from"}, {"agent/admin", "composition"}, {"agent/audit", "composition"}, {"agent/keyring", "composition"},
		{"agent/keys", "where keys are kept"}, {"agent/mitm", "composition"}, {"agent/provider", "composition"}, {"agent/provider/spec", "composition"},
		{"agent/proxy", "composition"}, {"agent/redact", "composition"}, {"agent/rotation", "verdicts in check"}, {"agent/secret", "hardening"},
		{"agent/store", "composition"}, {"agent/store/sealed", "composition"}, {"agent/store/vault", "composition"}, {"agent/sync", "composition"}, {"agent/upstream", "composition"},
	},
	"agent/server": {
		{"config", "what it is built from"}, {"agent", "opens the store and composes what callers do"}, {"agent/admin", "the process's figures"},
		{"agent/audit", "records denials"}, {"agent/issuer", "makes and revokes keys at providers"}, {"agent/keys", "the operations it translates"},
		{"agent/redact", "scrubs logs and answers"}, {"agent/rotation", "ramps and phases"}, {"agent/secret", "tokens and keys on their way"},
		{"agent/store", "why a store refused"}, {"agent/store/vault", "one store for each caller's token"},
	},
	"cmd/postern-injector": {{"agent/webhook", "decides; it answers, never the agent"}},
	"cmd/postern": {
		{"agent", "runs it"}, {"agent/audit", "verify and show"}, {"agent/clientenv", "exec's environment"}, {"agent/keys", "the keys commands"},
		{"agent/provider/fake", "the demo's provider"}, {"agent/secret", "reads keys into the arena"}, {"config", "reads it"},
		{"agent/rotation", "ramps and phases of the keys commands"}, {"agent/store", "why a store refused"},
		{"agent/roles", "policy and whoami"}, {"agent/server", "runs it"},
	},
}

// forbidden are imports that no package may have, with the reason.
var forbidden = map[string]string{
	"k8s.io/":           "Kubernetes libraries belong to cmd/postern-injector and agent/webhook only: the agent's binary stays small",
	"sigs.k8s.io/":      "Kubernetes libraries belong to cmd/postern-injector and agent/webhook only: the agent's binary stays small",
	"testing":           "test code is no part of a product package",
	"net/http/httptest": "test code is no part of a product package",
	"net/http/pprof":    "it would put heap contents behind a URL",
	"expvar":            "it would put the command line behind a URL",
}

// kubernetes is where those libraries may be.
var kubernetes = []string{"agent/webhook", "cmd/postern-injector"}

// mayTest are the packages that tests import.
var mayTest = map[string]bool{"agent/store/storetest": true}

type pkg struct {
	ImportPath string
	Imports    []string
}

func list(t *testing.T) []pkg {
	t.Helper()
	cmd := exec.Command("go", "list", "-json=ImportPath,Imports", "./...")
	cmd.Dir = ".."
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	var pkgs []pkg
	for dec := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p pkg
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			return pkgs
		} else if err != nil {
			t.Fatal(err)
		}
		pkgs = append(pkgs, p)
	}
}

func TestArrows(t *testing.T) {
	seen := map[string]bool{}
	for _, p := range list(t) {
		room := strings.TrimPrefix(p.ImportPath, module+"/")
		if strings.HasPrefix(room, "test/") || strings.HasPrefix(room, "agent/agenttest") {
			continue // these import what they test
		}
		seen[room] = true
		allowed, ok := rooms[room]
		if !ok {
			t.Errorf("%s is a room without a line: add it to rooms with the reason for each of its imports", room)
			continue
		}
		for _, imp := range p.Imports {
			checkImport(t, room, imp, allowed)
		}
	}
	for room := range rooms {
		if !seen[room] {
			t.Errorf("rooms lists %s, which does not exist", room)
		}
	}
}

func checkImport(t *testing.T, room, imp string, allowed []arrow) {
	t.Helper()
	for prefix, why := range forbidden {
		if (imp == prefix || strings.HasSuffix(prefix, "/") && strings.HasPrefix(imp, prefix)) && !(mayTest[room] && strings.Contains(why, "test code")) &&
			!(slices.Contains(kubernetes, room) && strings.Contains(prefix, "k8s.io/")) {
			t.Errorf("%s imports %s: %s", room, imp, why)
		}
	}
	to, ours := strings.CutPrefix(imp, module+"/")
	if ours && !slices.ContainsFunc(allowed, func(a arrow) bool { return a.to == to && a.why != "" }) {
		t.Errorf("%s imports %s: no such arrow; if it is right, add it to rooms with its reason", room, to)
	}
}

// The data path must not be able to reach the store, not even through others.
func TestDataPathCannotReachTheStore(t *testing.T) {
	cmd := exec.Command("go", "list", "-deps", "./proxy")
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	for _, dep := range strings.Fields(string(out)) {
		if strings.HasPrefix(dep, module+"/agent/store") || strings.HasPrefix(dep, "github.com/hashicorp/vault") {
			t.Errorf("agent/proxy depends on %s: keys reach the data path through the keyring only", dep)
		}
	}
}

// Whoever runs the agent or an operator's command must not carry a Kubernetes client about.
func TestAgentLinksNothingOfKubernetes(t *testing.T) {
	out, err := exec.Command("go", "list", "-deps", "../cmd/postern").Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	for _, dep := range strings.Fields(string(out)) {
		if strings.HasPrefix(dep, "k8s.io/") || strings.HasPrefix(dep, "sigs.k8s.io/") || strings.HasPrefix(dep, module+"/agent/webhook") {
			t.Errorf("cmd/postern depends on %s: %s", dep, forbidden["k8s.io/"])
		}
	}
}
