package server

import (
	"fmt"
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// rows are the cells of every table row about the server in a document, by what the first one names.
func rows(t *testing.T, file string) map[string][]string {
	t.Helper()
	b, err := os.ReadFile("../../docs/" + file)
	if err != nil {
		t.Fatal(err)
	}
	_, ours, _ := strings.Cut(string(b), "\n# The management server\n")
	out := map[string][]string{}
	for line := range strings.Lines(ours) {
		cells := strings.Split(strings.Trim(strings.TrimSpace(line), "|"), "|")
		if name := regexp.MustCompile("^ `([^`]+)` $").FindStringSubmatch(cells[0]); name != nil && len(cells) == 4 {
			for i := range cells {
				cells[i] = strings.TrimSpace(cells[i])
			}
			out[name[1]] = cells
		}
	}
	return out
}

// Every code is documented with its status, in the table and in the API's description, and no other.
func TestEveryCodeIsDocumented(t *testing.T) {
	listed := rows(t, "ERRORS.md")
	for code, status := range statuses {
		row := listed[code]
		if row == nil || row[1] != fmt.Sprint(status) || row[2] == "" || row[3] == "" {
			t.Errorf("docs/ERRORS.md: %s (%d): %q", code, status, row)
		}
		delete(listed, code)
	}
	for code := range listed {
		t.Errorf("docs/ERRORS.md lists %s, which does not exist", code)
	}
	enum := regexp.MustCompile(`code: \{type: string, enum: \[(.*)\]`).FindSubmatch(openapiYAML)
	if got, want := slices.Sorted(slices.Values(strings.Split(string(enum[1]), ", "))), slices.Sorted(maps.Keys(statuses)); !slices.Equal(got, want) {
		t.Errorf("openapi.yaml lists %v, want %v", got, want)
	}
}

// Every metric of the server's own is documented with its type and labels, and no other.
func TestEveryMetricIsDocumented(t *testing.T) {
	reg := prometheus.NewRegistry()
	m := newMetrics(reg)
	m.request("x", "ok", time.Second)
	m.denied(true)
	m.steps.WithLabelValues("ok")
	m.begun.WithLabelValues("ok")
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	listed := rows(t, "METRICS.md")
	for _, f := range families {
		var labels []string
		for _, l := range f.GetMetric()[0].GetLabel() {
			labels = append(labels, l.GetName())
		}
		row := listed[f.GetName()]
		if row == nil || row[1] != strings.ToLower(f.GetType().String()) || row[2] != strings.Join(labels, ", ") {
			t.Errorf("docs/METRICS.md: %s is a %s with the labels %v: %q", f.GetName(), f.GetType(), labels, row)
		}
		delete(listed, f.GetName())
	}
	for name := range listed {
		t.Errorf("docs/METRICS.md lists %s, which does not exist", name)
	}
}
