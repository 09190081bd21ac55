package keys

import (
	"strings"
	"testing"
)

func TestLabels(t *testing.T) {
	for _, c := range []struct {
		environment, service, label string
		ok                          bool
	}{
		{"prod", "checkout", "prod-checkout", true},
		{"prod", "checkout", "prod-checkout-eu", true},
		{"prod", "checkout", "prod-checkout-eu-2", true},
		{"prod", "check-out", "prod-check-out-eu", true},
		{"pre-prod", "checkout", "pre-prod-checkout", true},
		{"prod", "", "prod-anything", true},
		{"prod", "", "prod-anything-else_7", true},
		{"prod", "checkout", "prod-checkouts", false},
		{"prod", "checkout", "prod-billing", false},
		{"prod", "checkout", "checkout-prod", false},
		{"prod", "checkout", "staging-checkout", false},
		{"prod", "checkout", "prod-checkout-", false},
		{"prod", "checkout", "prod-checkout--eu", false},
		{"prod", "checkout", "Prod-checkout", false},
		{"prod", "", "prod-", false},
		{"prod", "", "prod", false},
		{"prod", "", "production-checkout", false},
		{"prod", "", "OpenAI Production", false},
		{"prod", "", "prod-Checkout", false},
		{"prod", "", "prod-a\nb", false},
		{"prod", "", "", false},
	} {
		err := CheckLabel(c.environment, c.service, c.label)
		if (err == nil) != c.ok {
			t.Errorf("%q for %s, %s: %v", c.label, c.environment, c.service, err)
		}
		if err != nil && !strings.Contains(err.Error(), "as in "+c.environment+"-") {
			t.Errorf("no hint: %v", err)
		}
	}
}

func FuzzCheckLabel(f *testing.F) {
	f.Add("prod", "checkout", "prod-checkout-eu")
	f.Add("", "", "-")
	f.Fuzz(func(t *testing.T, environment, service, label string) {
		if CheckLabel(environment, service, label) != nil {
			return
		}
		if !strings.HasPrefix(label, environment+"-"+service) || strings.HasSuffix(label, "-") || strings.ContainsAny(label[len(environment):], " \n\"\x00A") {
			t.Errorf("%q is taken for %q, %q", label, environment, service)
		}
		if service != "" && hasSuffix(environment, service, label) == (label == environment+"-"+service) {
			t.Errorf("%q: has a suffix, and has not", label)
		}
	})
}

// Within a scope a label names one key, and a service without a suffix does too.
func TestOneKeyAService(t *testing.T) {
	o := newOperator(t)
	refused := func(name string, meta Meta, with string) {
		t.Helper()
		if _, err := o.Add(t.Context(), name, o.value(key(100+len(name))), meta); err == nil || !strings.Contains(err.Error(), with) {
			t.Errorf("%s with %+v: %v", name, meta, err)
		}
	}
	o.add("openai", 1, Meta{Service: "checkout"})
	if c := o.metadata("openai").Custom; c["label"] != "prod-openai" || c["service"] != "checkout" {
		t.Errorf("%v", c)
	}
	refused("anthropic", Meta{Service: "checkout"}, "prod-checkout-anthropic")
	refused("anthropic", Meta{Service: "checkout"}, "has the key openai already")
	refused("anthropic", Meta{Service: "checkout", Label: "prod-checkout"}, "has the key openai already")
	refused("anthropic", Meta{Service: "checkout", Label: "prod-billing"}, "as in prod-checkout or prod-checkout-<suffix>")
	refused("anthropic", Meta{Label: "prod-openai"}, "is that of the key openai")
	refused("anthropic", Meta{Label: "billing team"}, "<environment>-<service>[-<suffix>]")
	refused("anthropic", Meta{Service: "Check Out"}, `service "Check Out"`)
	refused("anthropic", Meta{Label: "prod-" + strings.Repeat("x", 600)}, "at most 512")
	refused("anthropic", Meta{Provider: "open\nai"}, "cannot be shown")
	o.add("anthropic", 2, Meta{Service: "checkout", Label: "prod-checkout-claude"})
	o.add("gemini", 3, Meta{Service: "search"})
	o.add("mistral", 4, Meta{})

	// A further version keeps what is there, whatever it looks like.
	o.add("openai", 5, Meta{Service: "checkout", Label: "prod-openai"})
	o.add("anthropic", 6, Meta{})
	// A change is held to the same rules.
	refused("mistral", Meta{Service: "checkout"}, "has the key openai already")
	refused("anthropic", Meta{Label: "prod-checkout"}, "has the key openai already")
	refused("gemini", Meta{Label: "prod-checkout-claude"}, "as in prod-search")
	// Another scope is another matter.
	o.as("prod", "px_other").add("openai", 7, Meta{Service: "checkout", Label: "prod-checkout"})
}

// Who asks for it has a loose label, with what is wrong as a warning.
func TestLooseLabels(t *testing.T) {
	o := newOperator(t)
	a := o.add("openai", 1, Meta{Label: "OpenAI Production", LooseLabel: true})
	if len(a.Warnings) != 1 || !strings.Contains(a.Warnings[0], "prod-<service>") || o.metadata("openai").Custom["label"] != "OpenAI Production" {
		t.Errorf("%q", a.Warnings)
	}
	if a := o.add("gpt", 2, Meta{Label: "OpenAI Production", LooseLabel: true}); len(a.Warnings) != 1 {
		t.Errorf("%q", a.Warnings)
	}
	if a := o.add("openai", 3, Meta{Label: "OpenAI Production"}); len(a.Warnings) != 0 {
		t.Errorf("what it has already: %q", a.Warnings)
	}
	if _, err := o.Add(t.Context(), "gpt", o.value(key(4)), Meta{Label: "a\x1b[2Jb", LooseLabel: true}); err == nil {
		t.Error("a label that clears the screen was taken")
	}
}
