package keys

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"unicode"

	"github.com/postern-proxy/postern/agent/secret"
	"github.com/postern-proxy/postern/agent/store"
)

// labelRest is what may follow "<environment>-" in a label.
var labelRest = regexp.MustCompile(`^[a-z0-9_]+(-[a-z0-9_]+)*$`)

// maxText is the most bytes that Vault takes as one field of custom metadata.
const maxText = 512

// CheckLabel says whether a label reads <environment>-<service>[-<suffix>]. With
// service "" it may name any. The error says what to write instead.
func CheckLabel(environment, service, label string) error {
	rest, ok := strings.CutPrefix(label, environment+"-")
	if ok && labelRest.MatchString(rest) && (service == "" || strings.HasPrefix(rest+"-", service+"-")) {
		return nil
	}
	hint := environment + "-" + cmp.Or(service, "<service>")
	return fmt.Errorf("label %q: write <environment>-<service>[-<suffix>] in lower-case letters, digits and '_', as in %s or %s-<suffix>", label, hint, hint)
}

// hasSuffix reports whether a label says more than environment and service.
func hasSuffix(environment, service, label string) bool {
	return strings.HasPrefix(label, environment+"-"+service+"-")
}

func (m *Manager) defaultLabel(name string) string { return m.Scope.Environment + "-" + name }

// checkMeta refuses a description that breaks a rule: a label's shape, and that in
// a scope a label names one key, and a service does whose label has no suffix.
// The last is as far as two who add at the same time can see each other. With
// LooseLabel the rules for labels give warnings.
func (m *Manager) checkMeta(ctx context.Context, name string, had map[string]string, meta Meta) (warnings []string, err error) {
	for what, s := range map[string]string{"label": meta.Label, "provider": meta.Provider} {
		if err := checkText(what, s); err != nil {
			return nil, err
		}
	}
	if meta.Service != "" && !nameShape.MatchString(meta.Service) {
		return nil, fmt.Errorf("service %q: use 1 to 63 lower-case letters, digits, '_' and '-', beginning with a letter or digit", meta.Service)
	}
	label := cmp.Or(meta.Label, had[metaLabel], m.defaultLabel(name))
	service := cmp.Or(meta.Service, had[metaService])
	if label == cmp.Or(had[metaLabel], m.defaultLabel(name)) && service == had[metaService] {
		return nil, nil // as it was
	}
	var broken error
	if label != m.defaultLabel(name) {
		broken = CheckLabel(m.Scope.Environment, service, label)
	}
	if broken == nil {
		broken, err = m.labelTaken(ctx, name, service, label)
		if errors.Is(err, store.ErrForbidden) {
			return []string{"whether another key has the label " + label + " or its service could not be seen: " + err.Error()}, nil
		}
	}
	if broken != nil && meta.LooseLabel {
		return []string{broken.Error()}, nil
	}
	return nil, cmp.Or(err, broken)
}

// checkText refuses what cannot stand in metadata, or would break a line of output.
func checkText(what, s string) error {
	if len(s) > maxText {
		return fmt.Errorf("%s: %d bytes; at most %d can be stored", what, len(s), maxText)
	}
	if strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) }) {
		return fmt.Errorf("%s %q: has a character that cannot be shown", what, s)
	}
	return nil
}

// notIn refuses texts that are written down in clear and hold the key itself,
// whatever form it has.
func notIn(value *secret.Value, texts ...string) error {
	held := false
	value.Use(func(b []byte) {
		for _, t := range texts {
			held = held || bytes.Contains([]byte(t), b)
		}
	})
	if held {
		return errors.New("the key itself stands in what would be written down in clear (label, provider, service, reason or idempotency key); write it without")
	}
	return nil
}

// labelTaken returns in broken which other key of the scope is in the way.
func (m *Manager) labelTaken(ctx context.Context, name, service, label string) (broken, err error) {
	names, err := m.Names(ctx)
	if err != nil {
		return nil, err
	}
	env := m.Scope.Environment
	for _, other := range names {
		if other == name {
			continue
		}
		md, err := m.Store.Metadata(ctx, m.Scope.Path(other))
		if errors.Is(err, store.ErrNotFound) {
			continue
		}
		if err != nil {
			return nil, err
		}
		theirs := md.Custom[metaLabel]
		if theirs == label {
			return fmt.Errorf("label %q is that of the key %s; give this one a suffix, as in %s-%s", label, other, label, name), nil
		}
		if service != "" && md.Custom[metaService] == service && !hasSuffix(env, service, label) && !hasSuffix(env, service, theirs) {
			return fmt.Errorf("service %q has the key %s already; give this one a label with a suffix, as in %s-%s-%s", service, other, env, service, name), nil
		}
	}
	return nil, nil
}
