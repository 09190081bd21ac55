package roles

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
)

// Options say whom a policy is for. Names that could mean something else to
// Vault's parser or matcher are refused.
type Options struct {
	Role Role // required
	// Mount is of the KV v2 engine, "" meaning secret; Prefix is the folder in it, "" meaning postern.
	Mount, Prefix string
	// Environment is the one whose keys the policy is for. Required.
	Environment string
	// ProxyIDs are those whose keys it is for. A developer, a team lead and an
	// agent need one at least; for devops and security none means all; a server
	// is for all.
	ProxyIDs []string
	// Accessor of the Kubernetes auth method stands for ProxyIDs in an agent's
	// policy: one policy serves every namespace and ServiceAccount, each the
	// proxy id px_<namespace>_<serviceaccount>. It is auth_kubernetes_ and hex
	// digits, as `vault auth list` shows.
	Accessor string
	// With are further verbs, for people's roles.
	With []Verb
	// Paths are secrets outside the store's layout that an agent reads
	// (vault_path), or the engines whose leases a server gives out, as Vault's
	// API has them. Default none.
	Paths []string
}

var (
	segment  = regexp.MustCompile(`^[A-Za-z0-9._@~=-]+$`)
	apiName  = regexp.MustCompile(`^[A-Za-z0-9_-]+$`)
	proxyIDs = regexp.MustCompile(`^px_[A-Za-z0-9._-]+$`)
)

// Policy returns a role's policy as `vault policy fmt` formats it. Equal options
// make equal text. The error names the option.
func Policy(o Options) (string, error) {
	if err := o.complete(); err != nil {
		return "", err
	}
	var b strings.Builder
	o.head(&b)
	for _, r := range o.rules() {
		r.write(&b)
	}
	return b.String(), nil
}

func (o *Options) complete() error {
	o.Mount, o.Prefix = strings.Trim(o.Mount, "/"), strings.Trim(o.Prefix, "/")
	if o.Mount == "" {
		o.Mount = "secret"
	}
	if o.Prefix == "" {
		o.Prefix = "postern"
	}
	if o.Role.Verbs() == nil {
		return fmt.Errorf("role %q: write %s", o.Role, list(Roles()))
	}
	for _, p := range []struct{ name, path string }{{"mount", o.Mount}, {"prefix", o.Prefix}} {
		if !plain(p.path) {
			return fmt.Errorf("%s %q: write names with single slashes between, as in secret", p.name, p.path)
		}
	}
	switch {
	case o.Environment == "":
		return errors.New("environment: is required, as in prod: a policy is for the keys of one environment")
	case !apiName.MatchString(o.Environment):
		return fmt.Errorf("environment %q: write letters, digits and '-', as in prod", o.Environment)
	}
	if err := o.scope(); err != nil {
		return err
	}
	for _, v := range o.With {
		switch {
		case !o.Role.person():
			return fmt.Errorf("with %s: role %s has what its program needs and nothing more", v, o.Role)
		case needs[v] == nil || v == Use || v == Issue:
			return fmt.Errorf("with %q: write %s", v, list([]Verb{View, Rotate, Add, Schedule, Revoke, Validate, Audit}))
		}
	}
	for _, p := range o.Paths {
		if o.Role.person() || !plain(p) {
			return fmt.Errorf("path %q: write a path of Vault's API, as in secret/data/team/openai, for an agent or a server", p)
		}
	}
	o.ProxyIDs, o.Paths = slices.Compact(slices.Sorted(slices.Values(o.ProxyIDs))), slices.Compact(slices.Sorted(slices.Values(o.Paths)))
	return nil
}

func (o *Options) scope() error {
	for _, px := range o.ProxyIDs {
		if !proxyIDs.MatchString(px) {
			return fmt.Errorf("proxy id %q: write px_ and letters, digits, '_' and '-', as in px_acme_prod", px)
		}
	}
	switch {
	case o.Accessor != "" && o.Role != Agent:
		return fmt.Errorf("accessor: is for the policy of agents, not of %s", o.Role)
	case o.Accessor != "" && len(o.ProxyIDs) > 0:
		return errors.New("accessor: stands for every proxy id: leave the proxy ids out")
	case o.Accessor != "" && !apiName.MatchString(o.Accessor):
		return fmt.Errorf("accessor %q: write it as `vault auth list` shows it, as in auth_kubernetes_0a1b2c3d", o.Accessor)
	case o.Role == Server && len(o.ProxyIDs) > 0:
		return errors.New("proxy id: a server is for every proxy id of its environment: leave it out")
	case o.Role == Agent && o.Accessor == "" && len(o.ProxyIDs) == 0:
		return errors.New("proxy id: is required: the one that the agent serves; or give the accessor of the Kubernetes auth method")
	case o.Role.bound() && o.Accessor == "" && len(o.ProxyIDs) == 0:
		return fmt.Errorf("proxy id: is required for role %s: the ones whose keys it is for", o.Role)
	}
	return nil
}

func plain(path string) bool {
	for s := range strings.SplitSeq(path, "/") {
		if s == "." || s == ".." || !segment.MatchString(s) {
			return false
		}
	}
	return true
}

// verbs are all that the policy is for.
func (o *Options) verbs() []Verb {
	has := append(o.Role.Verbs(), o.With...)
	return slices.DeleteFunc(Verbs(), func(v Verb) bool { return !slices.Contains(has, v) })
}

// places are the proxy ids as the policy's paths have them.
func (o *Options) places() []string {
	switch {
	case o.Accessor != "":
		alias := "{{identity.entity.aliases." + o.Accessor + ".metadata."
		return []string{"px_" + alias + "service_account_namespace}}_" + alias + "service_account_name}}"}
	case len(o.ProxyIDs) == 0:
		return []string{"+"}
	}
	return o.ProxyIDs
}

func (o *Options) head(b *strings.Builder) {
	whose := "every proxy id"
	switch {
	case o.Accessor != "":
		whose = "every namespace and ServiceAccount that logs in by " + o.Accessor
	case len(o.ProxyIDs) > 0:
		whose = strings.Join(o.ProxyIDs, ", ")
	}
	verbs := make([]string, 0, len(needs))
	for _, v := range o.verbs() {
		verbs = append(verbs, string(v))
	}
	fmt.Fprintf(b, "# postern: %s of %s, for %s.\n# May: %s.\n", o.Role, o.Environment, whose, strings.Join(verbs, ", "))
}

// rule is one path of a policy.
type rule struct {
	path     string
	why      []reason
	caps     []string
	leasesOf []string // the only leases that it is for; none: not about leases
}

// reason is why verbs need a rule; none is named where it stands for itself.
type reason struct {
	verbs []string
	text  string
}

func (r *rule) add(v Verb, g grant) {
	r.caps = append(r.caps, strings.Fields(g.caps)...)
	i := slices.IndexFunc(r.why, func(w reason) bool { return w.text == g.why })
	if i < 0 {
		i, r.why = len(r.why), append(r.why, reason{text: g.why})
	}
	if v != "" && !slices.Contains(r.why[i].verbs, string(v)) {
		r.why[i].verbs = append(r.why[i].verbs, string(v))
	}
}

func (r *rule) write(b *strings.Builder) {
	b.WriteByte('\n')
	for _, why := range r.why {
		b.WriteString("# ")
		if len(why.verbs) > 0 {
			b.WriteString(strings.Join(why.verbs, ", ") + ": ")
		}
		b.WriteString(why.text + "\n")
	}
	slices.Sort(r.caps)
	fmt.Fprintf(b, "path %q {\n  capabilities = [\"%s\"]\n", r.path, strings.Join(slices.Compact(r.caps), `", "`))
	if r.leasesOf != nil {
		fmt.Fprintf(b, "\n  allowed_parameters = {\n    \"*\"        = []\n    \"lease_id\" = [\"%s/*\"]\n  }\n", strings.Join(r.leasesOf, `/*", "`))
	}
	b.WriteString("}\n")
}

// rules are the policy's, each path once, in the order of the layout.
func (o *Options) rules() []*rule {
	var all []*rule
	byPath := map[string]*rule{}
	add := func(path string, v Verb, g grant) {
		r := byPath[path]
		if r == nil {
			r = &rule{path: path}
			byPath[path] = r
			all = append(all, r)
		}
		r.add(v, g)
	}
	verbs := o.verbs()
	for _, g := range self {
		add(g.on.path, "", g)
	}
	for _, px := range o.places() {
		for _, on := range layout {
			for _, v := range verbs {
				for _, g := range needs[v] {
					if g.on == on && (!g.wide || px == "+") {
						add(on.at(o.Mount, o.Prefix, o.fill(px)), v, g)
					}
				}
			}
		}
	}
	for _, g := range guards {
		path := g.on.at(o.Mount, o.Prefix, o.fill("+"))
		if byPath[path] == nil { // who reads how entries were written cannot be denied it
			add(path, "", g)
		}
	}
	return append(all, o.elsewhere()...)
}

// fill makes a policy's path of a resource's: of what is not given, any.
func (o *Options) fill(px string) *strings.Replacer {
	entity := "+"
	if o.Role == Agent {
		entity = "{{identity.entity.id}}"
	}
	return strings.NewReplacer("{env}", o.Environment, "{px}", px, "{entity}", entity,
		"{name}-{to}", "+", "{name}", "+", "{issuer}", "+", "{agent}", "+", "{digest}", "+", "{seq}", "+")
}

// elsewhere are the rules for paths outside the layout.
func (o *Options) elsewhere() []*rule {
	if len(o.Paths) == 0 {
		return nil
	}
	var all []*rule
	for _, p := range o.Paths {
		all = append(all, &rule{path: p, caps: []string{"read"}, why: []reason{{text: "a secret that the configuration names by its path"}}})
	}
	leases := []*rule{{path: "sys/leases/renew", why: []reason{{text: "keep its lease alive, if it has one"}}}}
	if o.Role == Server {
		leases = append(leases, &rule{path: "sys/leases/revoke", why: []reason{{text: "and end it, which revokes the key at its provider"}}})
	}
	for _, r := range leases {
		r.caps, r.leasesOf = []string{"update"}, o.Paths
	}
	return append(all, leases...)
}
