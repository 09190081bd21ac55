package main

import (
	"flag"
	"io"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
)

// docs/INJECTION.md lists every flag and every metric.
func TestDocs(t *testing.T) {
	raw, err := os.ReadFile("../../docs/INJECTION.md")
	if err != nil {
		t.Fatal(err)
	}
	_, text, _ := strings.Cut(string(raw), "## The injector")
	var usage strings.Builder
	if _, err := parse([]string{"-h"}, &usage); err != flag.ErrHelp {
		t.Fatal(err)
	}
	io.WriteString(&usage, "\n")
	compare(t, "flags", find(usage.String(), `(?m)^  (-[a-z-]+)`), find(text, "(?m)^\\| `(-[a-z-]+)`"))

	m := newMetrics()
	ours := prometheus.NewRegistry()
	ours.MustRegister(m.reviews, m.findings, m.seconds, m.missed, m.watchdog, m.notAfter, m.certFails, m.dropped)
	m.findings.WithLabelValues("x")
	m.missed.WithLabelValues("x")
	m.notAfter.WithLabelValues("x")
	families, err := ours.Gather()
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, f := range families {
		names = append(names, f.GetName())
	}
	compare(t, "metrics", names, find(text, "(?m)^\\| `(postern_injector_[a-z_]+)`"))
}

func find(text, form string) (out []string) {
	for _, m := range regexp.MustCompile(form).FindAllStringSubmatch(text, -1) {
		out = append(out, m[1])
	}
	return out
}

func compare(t *testing.T, what string, there, listed []string) {
	t.Helper()
	slices.Sort(there)
	slices.Sort(listed)
	if !slices.Equal(there, listed) {
		t.Errorf("%s: there are\n%q\nlisted are\n%q", what, there, listed)
	}
}
