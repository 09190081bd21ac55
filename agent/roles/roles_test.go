package roles

import (
	"flag"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write the policies below testdata anew")

// What each role's policy is, to be read by people.
func TestPolicies(t *testing.T) {
	for name, o := range map[string]Options{
		"developer":        {Role: Developer, Environment: "prod", ProxyIDs: []string{"px_acme"}},
		"team-lead":        {Role: TeamLead, Environment: "prod", ProxyIDs: []string{"px_acme", "px_beta"}},
		"devops":           {Role: DevOps, Environment: "prod"},
		"devops-validates": {Role: DevOps, Environment: "prod", With: []Verb{Validate}},
		"security":         {Role: Security, Environment: "prod"},
		"agent":            {Role: Agent, Environment: "prod", ProxyIDs: []string{"px_acme"}, Paths: []string{"secret/data/team/openai"}},
		"agent-kubernetes": {Role: Agent, Environment: "prod", Accessor: "auth_kubernetes_0a1b2c3d", Mount: "kv/team", Prefix: "apps/postern"},
		"server":           {Role: Server, Environment: "prod", Paths: []string{"openai/creds/checkout"}},
	} {
		got, err := Policy(o)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		file := filepath.Join("testdata", name+".hcl")
		if *update {
			if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if got != string(want) {
			t.Errorf("%s is no longer what %s holds (-update writes it):\n%s", name, file, got)
		}
		if !wellFormed.MatchString(got) {
			t.Errorf("%s has another form than a policy's", name)
		}
	}
}

// wellFormed is all that a policy may consist of: comments and path blocks.
var wellFormed = regexp.MustCompile(`^(# [^\n\r]+\n)+(\n(# [^\n\r]+\n)+path "[A-Za-z0-9._@~=+*/{}-]+" \{\n  capabilities = \["[a-z]+"(, "[a-z]+")*\]\n` +
	`(\n  allowed_parameters = \{\n    "\*"        = \[\]\n    "lease_id" = \["[A-Za-z0-9._@~=/-]+/\*"(, "[A-Za-z0-9._@~=/-]+/\*")*\]\n  \}\n)?\}\n)+$`)

// The order in which options are given, and giving one twice, changes nothing.
func TestPolicyIsDeterministic(t *testing.T) {
	o := Options{Role: TeamLead, Environment: "prod", ProxyIDs: []string{"px_b", "px_a", "px_b"}, With: []Verb{Audit, Add}}
	one, err := Policy(o)
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(o.ProxyIDs, []string{"px_b", "px_a", "px_b"}) {
		t.Errorf("the caller's options were changed: %v", o.ProxyIDs)
	}
	o.ProxyIDs, o.With = []string{"px_a", "px_b"}, []Verb{Add, Audit}
	for range 20 {
		if two, err := Policy(o); err != nil || one != two {
			t.Fatalf("%v\n%s\nis not\n%s", err, two, one)
		}
	}
	for path, n := range paths(one) {
		if n != 1 {
			t.Errorf("%d rules for %s", n, path)
		}
	}
}

func paths(policy string) map[string]int {
	all := map[string]int{}
	for _, m := range regexp.MustCompile(`(?m)^path "([^"]+)"`).FindAllStringSubmatch(policy, -1) {
		all[m[1]]++
	}
	return all
}

func TestPolicyRefuses(t *testing.T) {
	dev := func(f func(*Options)) Options {
		o := Options{Role: Developer, Environment: "prod", ProxyIDs: []string{"px_a"}}
		f(&o)
		return o
	}
	for name, c := range map[string]struct {
		o    Options
		want string
	}{
		"no role":               {Options{Environment: "prod"}, `role "": write developer, team-lead, devops, security, agent or server`},
		"other role":            {dev(func(o *Options) { o.Role = "admin" }), `role "admin"`},
		"no environment":        {dev(func(o *Options) { o.Environment = "" }), "environment: is required"},
		"any environment":       {dev(func(o *Options) { o.Environment = "+" }), `environment "+"`},
		"path in environment":   {dev(func(o *Options) { o.Environment = "prod/px" }), `environment "prod/px"`},
		"template":              {dev(func(o *Options) { o.ProxyIDs = []string{"px_{{identity.entity.id}}"} }), "proxy id"},
		"any proxy id":          {dev(func(o *Options) { o.ProxyIDs = []string{"px_*"} }), `proxy id "px_*"`},
		"no px_":                {dev(func(o *Options) { o.ProxyIDs = []string{"acme"} }), `proxy id "acme"`},
		"quote":                 {dev(func(o *Options) { o.ProxyIDs = []string{`px_a" {}`} }), "proxy id"},
		"line":                  {dev(func(o *Options) { o.ProxyIDs = []string{"px_a\n"} }), "proxy id"},
		"developer of nothing":  {dev(func(o *Options) { o.ProxyIDs = nil }), "proxy id: is required for role developer"},
		"agent of nothing":      {dev(func(o *Options) { o.Role, o.ProxyIDs = Agent, nil }), "proxy id: is required: the one that the agent serves"},
		"server of one":         {dev(func(o *Options) { o.Role = Server }), "proxy id: a server is for every proxy id"},
		"accessor of people":    {dev(func(o *Options) { o.Accessor = "auth_kubernetes_0a" }), "accessor: is for the policy of agents"},
		"accessor and proxy id": {dev(func(o *Options) { o.Role, o.Accessor = Agent, "auth_kubernetes_0a" }), "accessor: stands for every proxy id"},
		"accessor":              {Options{Role: Agent, Environment: "prod", Accessor: "kubernetes/"}, `accessor "kubernetes/"`},
		"mount":                 {dev(func(o *Options) { o.Mount = "a/../b" }), `mount "a/../b"`},
		"mount with a glob":     {dev(func(o *Options) { o.Mount = "sec*" }), `mount "sec*"`},
		"prefix":                {dev(func(o *Options) { o.Prefix = "a//b" }), `prefix "a//b"`},
		"more for an agent":     {dev(func(o *Options) { o.Role, o.With = Agent, []Verb{Rotate} }), "with rotate: role agent"},
		"more than a person's":  {dev(func(o *Options) { o.With = []Verb{Issue} }), `with "issue"`},
		"use":                   {dev(func(o *Options) { o.With = []Verb{Use} }), `with "use": write view, rotate, add, schedule, revoke, validate or audit`},
		"other verb":            {dev(func(o *Options) { o.With = []Verb{"delete"} }), `with "delete"`},
		"path of people":        {dev(func(o *Options) { o.Paths = []string{"secret/data/x"} }), "path"},
		"path with a glob":      {dev(func(o *Options) { o.Role, o.Paths = Agent, []string{"secret/data/*"} }), `path "secret/data/*"`},
	} {
		if got, err := Policy(c.o); err == nil || got != "" || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
}

// FuzzPolicy: whatever is given is refused, or stays within the form and the place.
func FuzzPolicy(f *testing.F) {
	f.Add("agent", "secret", "postern", "prod", "px_a", "", "validate", "secret/data/x")
	f.Add("agent", "kv/x", "a/b", "prod", "", "auth_kubernetes_0a", "", "")
	f.Add("security", "", "", "prod", "", "", "validate", "")
	f.Fuzz(func(t *testing.T, role, mount, prefix, environment, px, accessor, with, path string) {
		o := Options{Role: Role(role), Mount: mount, Prefix: prefix, Environment: environment, Accessor: accessor}
		if px != "" {
			o.ProxyIDs = []string{px}
		}
		if with != "" {
			o.With = []Verb{Verb(with)}
		}
		if path != "" {
			o.Paths = []string{path}
		}
		got, err := Policy(o)
		if err != nil {
			return
		}
		if !wellFormed.MatchString(got) {
			t.Errorf("not a policy:\n%s", got)
		}
		for p := range paths(got) {
			if strings.Contains(p, "provider-keys/") && !strings.Contains(p, "/provider-keys/"+environment+"/") {
				t.Errorf("%s is of another environment than %s", p, environment)
			}
		}
	})
}

// Judge's answers follow from what Vault says, path by path.
func TestJudge(t *testing.T) {
	place := Place{Environment: "prod", ProxyID: "px_a", Key: "openai", Entity: "e-1"}
	asked := Ask(place)
	if !slices.Contains(asked, "secret/data/postern/provider-keys/prod/px_a/openai") || !slices.Contains(asked, "secret/data/postern/acks/prod/px_a/e-1/any") {
		t.Errorf("asks about %q", asked)
	}
	give := func(caps ...string) map[string][]string {
		all := map[string][]string{}
		for _, p := range asked {
			all[p] = caps
		}
		return all
	}
	verdicts := func(given map[string][]string) map[Verb]string {
		all := map[Verb]string{}
		for _, a := range Judge(place, given) {
			all[a.Verb] = a.May
			if (a.May == "yes") != (len(a.Missing) == 0) {
				t.Errorf("%s: %s with %v missing", a.Verb, a.May, a.Missing)
			}
		}
		return all
	}
	for what, given := range map[string]map[string][]string{"nothing": nil, "deny": give("deny")} {
		for verb, may := range verdicts(given) {
			if may != "no" {
				t.Errorf("%s: %s %s", what, verb, may)
			}
		}
	}
	for what, given := range map[string]map[string][]string{"root": give("root"), "everything": give("create", "delete", "list", "patch", "read", "update")} {
		for verb, may := range verdicts(given) {
			if may != "yes" {
				t.Errorf("%s: %s %s", what, verb, may)
			}
		}
	}

	// To read what one may not list is to view it partly.
	given := give("read")
	if may := verdicts(given); may[View] != "partly" || may[Use] != "partly" || may[Rotate] != "no" || may[Audit] != "partly" {
		t.Errorf("with read alone: %v", may)
	}
	// Without the destruction of old versions a rotation is somebody else's to finish.
	given = give("create", "delete", "list", "patch", "read", "update")
	given["secret/destroy/postern/provider-keys/prod/px_a/openai"] = []string{"deny"}
	for _, a := range Judge(place, given) {
		if a.Verb == Rotate && (a.May != "partly" || len(a.Missing) != 1 || a.Missing[0].Path != "secret/destroy/postern/provider-keys/prod/px_a/openai" || !slices.Equal(a.Missing[0].Capabilities, []string{"update"})) {
			t.Errorf("without destroy: %+v", a)
		}
	}
}

// A token without an entity acknowledges nothing; nothing is asked about it.
func TestJudgeWithoutAnEntity(t *testing.T) {
	for _, p := range Ask(Place{Environment: "prod", ProxyID: "px_a"}) {
		if strings.Contains(p, "/data/postern/acks/prod/px_a//") {
			t.Errorf("asks about %s", p)
		}
	}
	for _, n := range Needs(Use, Place{Environment: "prod", ProxyID: "px_a"}) {
		if strings.Contains(n.Path, "acks") {
			t.Errorf("needs %s", n.Path)
		}
	}
}

// Every verb has exactly one need without which it is nothing, and names no path twice.
func TestNeeds(t *testing.T) {
	for _, v := range Verbs() {
		core, seen := 0, map[string]bool{}
		for i, n := range Needs(v, Place{Environment: "prod", ProxyID: "px_a", Entity: "e"}) {
			if n.core {
				core++
			}
			if n.core != (i == 0) {
				t.Errorf("%s: its first need is to be the core one, as whoami shows it: %s", v, n.Path)
			}
			if seen[n.Path] {
				t.Errorf("%s: %s twice", v, n.Path)
			}
			seen[n.Path] = true
			if strings.ContainsAny(n.Path, "{}+*") {
				t.Errorf("%s: %s is no path", v, n.Path)
			}
		}
		if core != 1 {
			t.Errorf("%s has %d core needs", v, core)
		}
		for _, g := range needs[v] {
			if !slices.Contains(layout, g.on) {
				t.Errorf("%s: %v is missing in the layout, so that no policy has it", v, g.on)
			}
		}
	}
}

// Whatever a policy grants, it grants nothing that changes what was recorded, and
// admin credentials to the server alone.
func TestNoPolicyRewritesTheRecord(t *testing.T) {
	block := regexp.MustCompile(`(?m)^path "([^"]+)" \{\n  capabilities = \[([^\]]*)\]`)
	for _, role := range Roles() {
		o := Options{Role: role, Environment: "prod"}
		if role.bound() {
			o.ProxyIDs = []string{"px_a"}
		}
		if role.person() {
			o.With = []Verb{View, Rotate, Add, Schedule, Revoke, Validate, Audit}
		}
		policy, err := Policy(o)
		if err != nil {
			t.Fatal(err)
		}
		has := map[string]string{}
		for _, m := range block.FindAllStringSubmatch(policy, -1) {
			has[m[1]] = m[2]
		}
		for path, caps := range has {
			want := ""
			switch {
			case strings.HasPrefix(path, "secret/data/postern/audit/"):
				want = `"create", "read"`
			case path == "secret/metadata/postern/audit/prod/":
				want = `"list"`
			case strings.HasPrefix(path, "secret/metadata/postern/audit/") && role.person():
				want = `"read"` // with Audit
			case strings.Contains(path, "/postern/audit/"), strings.HasSuffix(path, "/postern/issuers/*"):
				want = `"deny"`
			case strings.Contains(path, "/postern/issuers/") && role == Server:
				want = `"read"`
			case strings.Contains(path, "/issuers/"):
				t.Errorf("%s has %s on %s", role, caps, path)
				continue
			default:
				continue
			}
			if caps != want {
				t.Errorf("%s has %s on %s, want %s", role, caps, path, want)
			}
		}
		for _, path := range []string{"delete/postern/audit/prod/+", "undelete/postern/audit/prod/+", "destroy/postern/audit/prod/+", "data/postern/issuers/*", "metadata/postern/issuers/*"} {
			if has["secret/"+path] != `"deny"` {
				t.Errorf("%s is not denied secret/%s", role, path)
			}
		}
	}
}
