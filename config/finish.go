package config

import (
	"errors"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"gopkg.in/yaml.v3"
)

const mappingNode = yaml.MappingNode

// Bounds of what may be configured.
const (
	minPollVault  = time.Second
	minPollSealed = 200 * time.Millisecond
	// maxDuration keeps sums of durations far from overflowing, and typing errors out.
	maxDuration = 365 * 24 * time.Hour
	maxRamp     = 20
	// maxProviders bounds what is compared in pairs.
	maxProviders = 2000
	maxSocket    = 103 // the shortest sun_path of the platforms, without its NUL
)

const proxyIDSay = "px_ and then lower-case letters, digits, _ and -, at most 64 in all, as in px_acme_prod"

var (
	environmentForm = regexp.MustCompile(`^[a-z][a-z0-9-]{0,62}$`)
	proxyIDForm     = regexp.MustCompile(`^px_[a-z0-9_-]{1,61}$`)
	serviceForm     = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?$`)
	variableName    = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)
)

// CheckProxyID says whether a proxy id has the form of one. The error reads on
// from the name of the field, or from "must be".
func CheckProxyID(s string) error {
	if !proxyIDForm.MatchString(s) {
		return errors.New("px_ and then lower-case letters, digits, _ and -, as in px_acme_prod")
	}
	return nil
}

// finish fills in defaults, makes paths absolute and says what is wrong.
type finish struct {
	*Config
	*report
	env    func(string) string
	dir    string
	broken map[string]bool // paths of fields that could not be decoded
}

func newFinish(c *Config, r *report, env func(string) string, dir string) *finish {
	f := &finish{Config: c, report: r, env: env, dir: dir, broken: map[string]bool{}}
	for _, e := range r.list {
		f.broken[e.Path] = true
	}
	return f
}

// written reports whether the document has the field.
func (f *finish) written(path string) bool { return f.lines[path] > 0 }

func (f *finish) complete() {
	f.identity()
	f.listen()
	f.egress()
	f.store()
	f.rotation()
	f.providers()
	f.rest()
	f.server()
	f.issuers()
}

func (f *finish) identity() {
	switch {
	case f.mistyped("version"):
	case f.Version == 0 && !f.written("version"):
		f.at("version", "is required: write version: 1")
	case f.Version != 1:
		f.at("version", "is not known to this postern: write version: 1")
	}
	f.form("environment", f.Environment, environmentForm, true, "a lower-case letter, then letters, digits and -, at most 63 in all, as in prod")
	f.form("proxy_id", f.ProxyID, proxyIDForm, f.Server == nil && !f.mistyped("server"), proxyIDSay)
	f.form("service", f.Service, serviceForm, false, "letters, digits, '.', _ and -, at most 63, as in checkout")
}

// form checks a value's characters.
func (f *finish) form(path, value string, form *regexp.Regexp, required bool, say string) {
	switch {
	case f.mistyped(path), value == "" && !required, form.MatchString(value):
	case value == "":
		f.at(path, "is required: %s", say)
	default:
		f.at(path, "%s is not allowed here: write %s", shown(value), say)
	}
}

// mistyped reports whether decoding has found fault with the field, or with
// what it stands in, so that its emptiness is no second mistake.
func (f *finish) mistyped(path string) bool {
	for path != "" {
		if f.broken[path] {
			return true
		}
		path = path[:max(strings.LastIndexAny(path, ".["), 0)]
	}
	return false
}

// oneOf sets a default and checks the value against all that there are.
func (f *finish) oneOf(path string, value *string, choices ...string) {
	if *value == "" {
		*value = choices[0]
	}
	for _, c := range choices {
		if *value == c {
			return
		}
	}
	f.at(path, "%s is not one of %s%s", shown(*value), strings.Join(choices, ", "), didYouMean(*value, choices))
}

// length sets a default for a duration that is not written and checks the bounds of one that is.
func (f *finish) length(path string, d *time.Duration, def, least time.Duration) {
	if f.mistyped(path) {
		*d = def // so that nothing that is compared with it is a mistake too
		return
	}
	if *d == 0 && !f.written(path) {
		*d = def
	}
	switch {
	case *d < least && least > time.Nanosecond:
		f.at(path, "%v is too short: write %v or more", *d, least)
	case *d < least:
		f.at(path, "%v is not a length of time: write one above zero, as in %v", *d, max(def, 30*time.Second))
	case *d > maxDuration:
		f.at(path, "%v is more than a year: write less", *d)
	}
}

// file makes a path absolute. An empty one stays empty.
func (f *finish) file(path string, p *string) {
	switch {
	case *p == "":
	case strings.ContainsRune(*p, 0):
		f.at(path, "holds a NUL byte, so it names no file")
	case strings.HasPrefix(*p, "~"):
		f.at(path, "~ is not expanded here: write the whole path, or one relative to the configuration")
	case !filepath.IsAbs(*p) && f.dir != "":
		*p = filepath.Join(f.dir, *p)
	default:
		*p = filepath.Clean(*p)
	}
}

// need checks that a field is there.
func (f *finish) need(path, value, say string) {
	if value == "" && !f.mistyped(path) {
		f.at(path, "is required: %s", say)
	}
}

func (f *finish) rotation() {
	r := &f.Rotation
	f.length("rotation.grace", &r.Grace, 10*time.Minute, time.Nanosecond)
	if r.RejectRatio == 0 && !f.written("rotation.reject_ratio") {
		r.RejectRatio = 0.05
	}
	if !f.mistyped("rotation.reject_ratio") && (r.RejectRatio <= 0 || r.RejectRatio > 1) {
		f.at("rotation.reject_ratio", "must be above 0 and at most 1, as in 0.05 for 5 %%")
	}
	if len(r.Ramp) > maxRamp {
		f.at("rotation.ramp", "has more than %d steps: write fewer", maxRamp)
	}
	last := 0
	for i, s := range r.Ramp {
		p := item("rotation.ramp", i)
		switch {
		case f.mistyped(p + ".weight"):
		case !f.written(p + ".weight"):
			f.at(p+".weight", "is required: the new version's share in percent, 1 to 100")
		case s.Weight < 1 || s.Weight > 100:
			f.at(p+".weight", "%d is no share: write 1 to 100 (percent for the new version)", s.Weight)
		case s.Weight <= last:
			f.at(p+".weight", "%d is not above the step before (%d): a ramp only rises", s.Weight, last)
		default:
			last = s.Weight
		}
		switch {
		case f.mistyped(p + ".for"):
		case !f.written(p + ".for"):
			f.at(p+".for", "is required: how long this step lasts, as in 30s")
		default:
			f.length(p+".for", &r.Ramp[i].For, 0, time.Nanosecond)
		}
	}
	if poll := f.Poll(); poll > 0 && r.Grace > 0 && r.Grace < 2*poll && !f.mistyped("rotation.grace") {
		f.at("rotation.grace", "%v is under twice %s (%v): an agent may see a new version only after that long, so write %v or more, or poll more often",
			r.Grace, f.pollPath(), poll, 2*poll)
	}
}

func (f *finish) pollPath() string {
	if f.Store.Vault != nil {
		return "store.vault.poll"
	}
	return "store.sealed.poll"
}

func (f *finish) rest() {
	f.oneOf("unmatched", &f.Unmatched, "deny", "tunnel")
	f.oneOf("log.level", &f.Log.Level, "info", "debug", "warn", "error")
	f.oneOf("log.format", &f.Log.Format, "json", "text")
	if f.RequireAPIKey {
		f.at("require_api_key", "API keys are not available in this version of postern, so they cannot be required: remove it or write false")
	}
	if f.Audit.File == "" {
		f.Audit.File = "-"
	}
	if f.Audit.File != "-" {
		f.file("audit.file", &f.Audit.File)
	}
	f.file("ca.dir", &f.CA.Dir)
	f.file("ca.state_dir", &f.CA.StateDir)
	if within(f.CA.Dir, f.CA.StateDir) || within(f.CA.StateDir, f.CA.Dir) {
		f.at("ca.state_dir", "is ca.dir or one lies inside the other: applications read ca.dir and must never see the private key, so write two separate directories")
	}
}

// within reports whether file is dir or lies below it.
func within(dir, file string) bool {
	if dir == "" || file == "" {
		return false
	}
	rel, err := filepath.Rel(dir, file)
	return err == nil && rel != ".." && !strings.HasPrefix(rel, ".."+string(filepath.Separator))
}
