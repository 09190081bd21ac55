package webhook

import (
	"bytes"
	"errors"
	"fmt"
	"net/url"
	"regexp"
	"slices"
	"strings"

	"gopkg.in/yaml.v3"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	k8syaml "sigs.k8s.io/yaml"

	"github.com/postern-proxy/postern/agent/clientenv"
	"github.com/postern-proxy/postern/config"
)

// document is the agent's configuration as it is written; config has the whole shape.
type document struct {
	Version     int             `yaml:"version"`
	Environment string          `yaml:"environment"`
	ProxyID     string          `yaml:"proxy_id"`
	Listen      documentListen  `yaml:"listen,flow"`
	Egress      *documentEgress `yaml:"egress,omitempty,flow"`
	Store       struct {
		Vault documentVault `yaml:"vault"`
	} `yaml:"store"`
	Providers *yaml.Node  `yaml:"providers"`
	CA        documentCA  `yaml:"ca,flow"`
	Unmatched string      `yaml:"unmatched"`
	Log       documentLog `yaml:"log,flow"`
}

type documentListen struct {
	Proxy string `yaml:"proxy"`
	Admin string `yaml:"admin"`
}

type documentEgress struct {
	Proxy   string `yaml:"proxy,omitempty"`
	NoProxy string `yaml:"no_proxy,omitempty"`
	CAFile  string `yaml:"ca_file,omitempty"`
}

type documentVault struct {
	Address   string                  `yaml:"address"`
	Namespace string                  `yaml:"namespace,omitempty"`
	CAFile    string                  `yaml:"ca_file,omitempty"`
	Mount     string                  `yaml:"mount"`
	Prefix    string                  `yaml:"prefix"`
	Auth      map[string]documentAuth `yaml:"auth"`
}

type documentAuth struct {
	Mount     string `yaml:"mount,omitempty"`
	Role      string `yaml:"role"`
	TokenFile string `yaml:"token_file"`
}

type documentCA struct {
	Dir      string `yaml:"dir,omitempty"`
	StateDir string `yaml:"state_dir"`
}

type documentLog struct {
	Level string `yaml:"level"`
}

const (
	proxyPort, adminPort = 8700, 8701

	proxyURL   = "http://127.0.0.1:8700"
	tokenDir   = "/var/run/secrets/postern"
	stateMount = "/run/postern"
	stateDir   = stateMount + "/ca" // made by the agent: the mount itself is not its own
	publicDir  = "/run/postern-ca"
	vaultCADir = "/etc/postern/vault-ca"
	rootsDir   = "/etc/postern/roots"
	configDir  = "/etc/postern/config"
	rootsFile  = "ca.crt"
	configFile = "postern.yaml"

	configVariable = "POSTERN_CONFIG"
	egressVariable = "POSTERN_EGRESS_PROXY"

	// maxConfig leaves room under what Linux takes as one variable (128 KiB).
	maxConfig = 96 << 10
)

// compose writes the agent's configuration and has it checked as the agent would.
func (s *settings) compose(e *egress) (text string, cfg *config.Config, err error) {
	providers, err := providerList(s.values["providers"])
	if err != nil {
		return "", nil, &Refusal{BadAnnotation, []Mistake{s.mistake("providers", "%v", err)}}
	}
	v := s.values
	if s.configMap != nil { // only the providers are of use then
		v = map[string]string{"providers": v["providers"], "environment": "prod", "vault-address": "https://vault.invalid", "vault-role": "any",
			"vault-auth-method": "kubernetes", "unmatched": "tunnel", "log-level": "info"}
	}
	doc := document{Version: 1, Environment: v["environment"], ProxyID: s.proxyID,
		Listen:    documentListen{Proxy: fmt.Sprintf("127.0.0.1:%d", proxyPort), Admin: fmt.Sprintf("0.0.0.0:%d", adminPort)},
		Providers: providers, CA: documentCA{StateDir: stateDir}, Unmatched: v["unmatched"], Log: documentLog{v["log-level"]}}
	doc.Store.Vault = documentVault{Address: v["vault-address"], Namespace: v["vault-namespace"], Mount: v["vault-mount"], Prefix: v["vault-prefix"],
		Auth: map[string]documentAuth{v["vault-auth-method"]: {Mount: v["vault-auth-mount"], Role: v["vault-role"], TokenFile: tokenDir + "/token"}}}
	var out documentEgress
	if e != nil {
		out.Proxy, out.NoProxy = e.config, e.noProxy
	}
	if s.vaultCA != nil {
		doc.Store.Vault.CAFile = vaultCADir + "/" + rootsFile
	}
	if s.roots != nil {
		out.CAFile = rootsDir + "/" + rootsFile
	}
	if out != (documentEgress{}) {
		doc.Egress = &out
	}
	if s.mode != clientenv.Routes {
		doc.CA.Dir = publicDir
	}
	raw, err := marshal(doc)
	if err != nil {
		return "", nil, &Refusal{BadAnnotation, []Mistake{s.mistake("providers", "cannot be written as YAML")}}
	}
	cfg, err = config.Parse(raw, configVariable, func(name string) string {
		if e != nil && name == egressVariable {
			return e.value
		}
		return ""
	}, "/")
	if err == nil {
		err = cfg.ValidateAgent()
	}
	switch {
	case err != nil:
		return "", nil, s.explain(err, e)
	case len(raw) > maxConfig:
		return "", nil, &Refusal{BadAnnotation, []Mistake{s.mistake("providers", "makes a configuration of more than %d KiB, which is no variable any more: write it into a ConfigMap and name that in %sconfig-map", maxConfig>>10, Prefix)}}
	}
	return string(raw), cfg, nil
}

// fields leads from the configuration's fields to the annotations they come from; the longest counts.
var fields = []struct{ path, setting string }{
	{"environment", "environment"}, {"proxy_id", "proxy-id"}, {"providers", "providers"},
	{"store.vault.address", "vault-address"}, {"store.vault.namespace", "vault-namespace"}, {"store.vault.mount", "vault-mount"},
	{"store.vault.prefix", "vault-prefix"}, {"unmatched", "unmatched"}, {"log.level", "log-level"},
}

var authField = regexp.MustCompile(`^store\.vault\.auth\.[a-z]+\.(mount|role)$`)

// explain turns the configuration's mistakes into the annotations'.
func (s *settings) explain(err error, e *egress) error {
	all, ok := errors.AsType[*config.Errors](err)
	if !ok {
		return refuse(BadAnnotation, "", "the agent's configuration cannot be made: %v", err)
	}
	r := &Refusal{Reason: BadAnnotation}
	for _, m := range all.List {
		m.Line, m.Message = 0, strings.ReplaceAll(m.Message, ", or set VAULT_ADDR", "")
		name := ""
		if a := authField.FindStringSubmatch(m.Path); a != nil {
			name = "vault-auth-" + a[1]
			if a[1] == "role" {
				name = "vault-role"
			}
		}
		for _, f := range fields {
			if m.Path == f.path || strings.HasPrefix(m.Path, f.path+".") || strings.HasPrefix(m.Path, f.path+"[") {
				name = f.setting
			}
		}
		switch {
		case name == "proxy-id" && s.values["proxy-id"] == "":
			r.Mistakes = append(r.Mistakes, Mistake{Prefix + name, "what the namespace and the ServiceAccount give is no proxy id: annotate the pod with px_ and then lower-case letters, digits, _ and -, at most 64 in all"})
		case name == "providers" && m.Path != "providers":
			r.Mistakes = append(r.Mistakes, s.mistake(name, "%v", m))
		case name != "":
			r.Mistakes = append(r.Mistakes, s.mistake(name, "%s", m.Message))
		case strings.HasPrefix(m.Path, "egress.") && e != nil:
			r.Mistakes = append(r.Mistakes, Mistake{e.where, "cannot become egress.proxy: it " + strings.TrimPrefix(m.Message, "the variable "+egressVariable+" ")})
		default:
			r.Mistakes = append(r.Mistakes, Mistake{"", m.Error()})
		}
	}
	return r
}

var plainProviders = regexp.MustCompile(`^[A-Za-z0-9_-]+( *, *[A-Za-z0-9_-]+)*$`)

const providersSay = "must be names of providers with commas between (openai, anthropic), or a YAML list of entries as the agent's configuration has them ([{name: azure, provider: azure-openai, with: {resource: acme}}])"

// providerList is the value as a list of entries.
func providerList(v string) (*yaml.Node, error) {
	if plainProviders.MatchString(v) {
		list := &yaml.Node{Kind: yaml.SequenceNode}
		for name := range strings.SplitSeq(v, ",") {
			entry := &yaml.Node{Kind: yaml.MappingNode, Style: yaml.FlowStyle}
			entry.Content = []*yaml.Node{{Kind: yaml.ScalarNode, Value: "name"}, {Kind: yaml.ScalarNode, Tag: "!!str", Value: strings.TrimSpace(name)}}
			list.Content = append(list.Content, entry)
		}
		return list, nil
	}
	doc, err := parseNode(v)
	if err != nil || doc.Kind != yaml.SequenceNode || len(doc.Content) == 0 {
		return nil, errors.New(providersSay)
	}
	for i, n := range doc.Content { // [openai, {name: azure, …}] may mix both
		if n.Kind == yaml.ScalarNode && n.ShortTag() == "!!str" {
			doc.Content[i] = &yaml.Node{Kind: yaml.MappingNode, Style: yaml.FlowStyle, Content: []*yaml.Node{{Kind: yaml.ScalarNode, Value: "name"}, n}}
		}
	}
	return doc, nil
}

// parseNode reads one value without aliases and comments.
func parseNode(text string) (n *yaml.Node, err error) {
	defer func() {
		if recover() != nil { // the parser's own, should it have one left
			n, err = nil, errors.New("is no YAML")
		}
	}()
	var doc yaml.Node
	dec := yaml.NewDecoder(strings.NewReader(text))
	if err := dec.Decode(&doc); err != nil || len(doc.Content) != 1 {
		return nil, errors.New("is no YAML")
	}
	if err := dec.Decode(new(yaml.Node)); err == nil {
		return nil, errors.New("is more than one document")
	}
	return doc.Content[0], plain(doc.Content[0], 0)
}

// plain takes comments off and refuses what a value that is written once does not need.
func plain(n *yaml.Node, depth int) error {
	if n.Kind == yaml.AliasNode || n.Anchor != "" || depth > 40 {
		return errors.New("must be without anchors and aliases")
	}
	n.HeadComment, n.LineComment, n.FootComment = "", "", ""
	for _, c := range n.Content {
		if err := plain(c, depth+1); err != nil {
			return err
		}
	}
	return nil
}

// flow is a value in one line.
func flow(n *yaml.Node) (string, error) {
	if err := plain(n, 0); err != nil {
		return "", err
	}
	n.Style = yaml.FlowStyle
	raw, err := marshal(n)
	return strings.TrimSpace(string(raw)), err
}

func marshal(v any) (out []byte, err error) {
	defer func() {
		if recover() != nil { // yaml.v3 says some of its errors so
			out, err = nil, errors.New("cannot be written as YAML")
		}
	}()
	var b bytes.Buffer
	enc := yaml.NewEncoder(&b)
	enc.SetIndent(2)
	if err := enc.Encode(v); err != nil {
		return nil, err
	}
	return b.Bytes(), enc.Close()
}

const resourcesSay = "must be requests and limits of cpu, memory and ephemeral-storage as a container has them, no request above its limit, as in {requests: {cpu: 5m, memory: 24Mi}, limits: {memory: 64Mi}}"

func parseResources(v string) (corev1.ResourceRequirements, error) {
	var r corev1.ResourceRequirements
	bad := errors.New(resourcesSay)
	if n, err := parseNode(v); err != nil || n.Kind != yaml.MappingNode {
		return r, bad
	}
	if err := k8syaml.UnmarshalStrict([]byte(v), &r); err != nil || r.Claims != nil {
		return corev1.ResourceRequirements{}, bad
	}
	allowed := []corev1.ResourceName{corev1.ResourceCPU, corev1.ResourceMemory, corev1.ResourceEphemeralStorage}
	for _, list := range []corev1.ResourceList{r.Requests, r.Limits} {
		for name, q := range list {
			if !slices.Contains(allowed, name) || q.Sign() < 0 {
				return corev1.ResourceRequirements{}, bad
			}
		}
	}
	for name, q := range r.Requests {
		if limit, is := r.Limits[name]; is && q.Cmp(limit) > 0 {
			return corev1.ResourceRequirements{}, bad
		}
	}
	if q := r.Limits.Memory(); !q.IsZero() && q.Cmp(resource.MustParse("24Mi")) < 0 {
		return corev1.ResourceRequirements{}, errors.New("has a memory limit under 24Mi, with which the agent does not start: write 64Mi or more")
	}
	return r, nil
}

// providersOf is what the application's variables follow from.
func providersOf(cfg *config.Config) []clientenv.Provider {
	var out []clientenv.Provider
	for _, p := range cfg.Providers {
		out = append(out, clientenv.Provider{Name: p.Name, Spec: p.Spec})
	}
	return out
}

// hostOf is a URL's host without its port; "" for none.
func hostOf(raw string) string {
	u, err := url.Parse(raw)
	if err != nil {
		return ""
	}
	return u.Hostname()
}
