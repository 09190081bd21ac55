package chart_test

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"gopkg.in/yaml.v3"

	"github.com/postern-proxy/postern/agent/agenttest"
	"github.com/postern-proxy/postern/test/tools"
)

type rule struct {
	Alert       string            `yaml:"alert"`
	Expr        string            `yaml:"expr"`
	For         string            `yaml:"for,omitempty"`
	Labels      map[string]string `yaml:"labels"`
	Annotations map[string]string `yaml:"annotations"`
}

// rules are the PrometheusRule's groups with everything on, and each alert by its name.
func rules(t *testing.T) (groups any, byName map[string]rule) {
	t.Helper()
	groups = at(objects(t, template(t, "full")...)["PrometheusRule/postern-alerts"], "spec", "groups")
	text, err := yaml.Marshal(groups)
	if err != nil {
		t.Fatal(err)
	}
	var list []struct{ Rules []rule }
	if err := yaml.Unmarshal(text, &list); err != nil {
		t.Fatal(err)
	}
	byName = map[string]rule{}
	for _, g := range list {
		for _, r := range g.Rules {
			if byName[r.Alert].Alert != "" {
				t.Errorf("there are two alerts %s", r.Alert)
			}
			byName[r.Alert] = r
		}
	}
	if len(byName) < 20 {
		t.Fatalf("%d alerts", len(byName))
	}
	return groups, byName
}

// documented are the metrics that docs list. Others' tests hold the docs to what programs really show.
func documented(t *testing.T) map[string]bool {
	known := map[string]bool{}
	for _, file := range []string{"docs/METRICS.md", "docs/INJECTION.md"} {
		for _, m := range regexp.MustCompile("(?m)^\\| `(postern_[a-z_]+)` \\|").FindAllStringSubmatch(read(t, file), -1) {
			known[m[1]] = true
		}
	}
	return known
}

// Every metric that an alert or the dashboard names is documented, and so exists.
func TestRulesAndDashboardNameMetricsThatExist(t *testing.T) {
	known := documented(t)
	metric := regexp.MustCompile(`\bpostern_[a-z_]+`)
	check := func(where, expr string) {
		names := metric.FindAllString(expr, -1)
		if len(names) == 0 {
			t.Errorf("%s names no metric: %s", where, expr)
		}
		for _, n := range names {
			if !known[n] && !known[strings.TrimSuffix(n, "_bucket")] {
				t.Errorf("%s: %s is not documented", where, n)
			}
		}
	}
	_, alerts := rules(t)
	for name, r := range alerts {
		check(name, r.Expr)
		if r.Annotations["summary"] == "" || r.Annotations["description"] == "" || len(r.Annotations) != 2 || !slices.Contains([]string{"critical", "warning", "info"}, r.Labels["severity"]) {
			t.Errorf("%s: %v, %v", name, r.Labels, r.Annotations)
		}
		for _, text := range r.Annotations {
			for _, n := range metric.FindAllString(text, -1) {
				if !known[n] {
					t.Errorf("%s tells of %s, which is not documented", name, n)
				}
			}
		}
	}

	var dash struct {
		UID        string
		Templating struct {
			List []struct{ Name string }
		}
		Panels []struct {
			ID      int
			Title   string
			GridPos struct{ X, Y, W, H int }
			Targets []struct{ Expr, LegendFormat string }
		}
	}
	text, _ := at(objects(t, template(t, "full")...)["ConfigMap/postern-dashboard"], "data", "postern.json").(string)
	if err := json.Unmarshal([]byte(text), &dash); err != nil {
		t.Fatal(err)
	}
	places, ids := map[string]bool{}, map[int]bool{}
	for _, p := range dash.Panels {
		place := fmt.Sprint(p.GridPos)
		if ids[p.ID] || places[place] || p.Title == "" || len(p.Targets) == 0 {
			t.Errorf("panel %d %q at %s", p.ID, p.Title, place)
		}
		ids[p.ID], places[place] = true, true
		for _, q := range p.Targets {
			check(p.Title, q.Expr)
		}
	}
	if len(dash.Panels) < 15 || dash.UID == "" || len(dash.Templating.List) != 2 {
		t.Errorf("%d panels", len(dash.Panels))
	}
}

// The dashboard and the rules look only at labels that the docs give their metrics, or that the scraper adds.
func TestLabelsExist(t *testing.T) {
	labels := map[string]bool{"namespace": true, "pod": true, "le": true, "certificate": true, "where": true}
	for _, file := range []string{"docs/METRICS.md", "docs/INJECTION.md"} {
		for _, m := range regexp.MustCompile("(?m)^\\| `postern_[a-z_]+` \\| [a-z]+ \\| ([a-z_, ]*) ?\\|").FindAllStringSubmatch(read(t, file), -1) {
			for l := range strings.SplitSeq(m[1], ",") {
				labels[strings.TrimSpace(l)] = true
			}
		}
	}
	_, alerts := rules(t)
	for name, r := range alerts {
		for _, m := range regexp.MustCompile(`(?:by|on) \(([a-z_, ]+)\)`).FindAllStringSubmatch(r.Expr, -1) {
			for l := range strings.SplitSeq(m[1], ",") {
				if !labels[strings.TrimSpace(l)] {
					t.Errorf("%s: there is no label %s", name, l)
				}
			}
		}
		for _, text := range r.Annotations {
			for _, m := range regexp.MustCompile(`\$labels\.([a-z_]+)`).FindAllStringSubmatch(text, -1) {
				if !strings.Contains(r.Expr, m[1]) {
					t.Errorf("%s tells of the label %s, which its expression does not keep", name, m[1])
				}
			}
		}
	}
}

// TestAlerts runs promtool's unit tests: each alert of testdata/alerts.yaml fires where it should and nowhere else.
func TestAlerts(t *testing.T) {
	groups, alerts := rules(t)
	var cases []struct {
		Alert  string
		Labels map[string]string // of the alert that fires
		At     string
		Fires  map[string]string // series, by name
		Quiet  []map[string]string
	}
	if err := yaml.Unmarshal([]byte(read(t, "test/chart/testdata/alerts.yaml")), &cases); err != nil {
		t.Fatal(err)
	}
	type series map[string]string
	var tests []any
	add := func(name, at string, values map[string]string, fires map[string]string) {
		var input []series
		for s, v := range values {
			input = append(input, series{"series": s, "values": v})
		}
		expected := []any{}
		if fires != nil {
			r := alerts[name]
			all := map[string]string{"severity": r.Labels["severity"]}
			told := map[string]string{}
			for k, text := range r.Annotations {
				for l, v := range fires {
					text = strings.ReplaceAll(text, "{{ $labels."+l+" }}", v)
				}
				told[k] = text
			}
			for l, v := range fires {
				all[l] = v
			}
			expected = append(expected, map[string]any{"exp_labels": all, "exp_annotations": told})
		}
		tests = append(tests, map[string]any{"interval": "30s", "input_series": input,
			"alert_rule_test": []any{map[string]any{"alertname": name, "eval_time": at, "exp_alerts": expected}}})
	}
	seen := map[string]bool{}
	for _, c := range cases {
		if alerts[c.Alert].Alert == "" || len(c.Quiet) == 0 {
			t.Errorf("%s: there is no such alert, or nothing that it must keep quiet about", c.Alert)
		}
		seen[c.Alert] = true
		if c.Labels == nil {
			c.Labels = map[string]string{}
		}
		add(c.Alert, c.At, c.Fires, c.Labels)
		for _, q := range c.Quiet {
			add(c.Alert, c.At, q, nil)
		}
	}
	for name := range alerts {
		if !seen[name] {
			t.Errorf("%s has no test", name)
		}
	}

	program, err := tools.Promtool.Find()
	if err != nil {
		agenttest.NotRun(t, "alerts by promtool", err)
		return
	}
	dir := t.TempDir()
	for file, content := range map[string]any{"rules.yaml": map[string]any{"groups": groups},
		"tests.yaml": map[string]any{"rule_files": []string{"rules.yaml"}, "evaluation_interval": "30s", "tests": tests}} {
		text, err := yaml.Marshal(content)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, file), text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, args := range [][]string{{"check", "rules", "rules.yaml"}, {"test", "rules", "tests.yaml"}} {
		cmd := exec.Command(program, args...)
		cmd.Dir = dir
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("promtool %s: %v\n%s", strings.Join(args, " "), err, out)
		}
	}
}
