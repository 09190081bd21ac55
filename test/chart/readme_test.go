package chart_test

import (
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"gopkg.in/yaml.v3"
)

// What charts/postern/README.md says of values is made from the comments of values.yaml; what stands above is kept.
func TestReadmeIsMadeFromTheValues(t *testing.T) {
	var doc yaml.Node
	if err := yaml.Unmarshal([]byte(read(t, "charts/postern/values.yaml")), &doc); err != nil {
		t.Fatal(err)
	}
	have := read(t, "charts/postern/README.md")
	const heading = "\n## Values\n"
	above, _, found := strings.Cut(have, heading)
	if !found {
		t.Fatal("charts/postern/README.md has no heading Values")
	}
	var b strings.Builder
	b.WriteString(above + heading + "\nMade from the comments of values.yaml. A value that is not here is refused.\n\n| value | default | meaning |\n|---|---|---|\n")
	rows(t, &b, "", doc.Content[0])
	if *update {
		if err := os.WriteFile(path(t, "charts/postern/README.md"), []byte(b.String()), 0o644); err != nil {
			t.Fatal(err)
		}
		have = b.String()
	}
	if have != b.String() {
		t.Errorf("charts/postern/README.md is not what values.yaml says (go test ./test/chart -update writes it): %s", firstDifference(b.String(), have))
	}

	// Its commands render.
	line := regexp.MustCompile(`(?m)^helm install ((?:.*\\\n)*.*)$`).FindStringSubmatch(above)
	if line == nil {
		t.Fatal("charts/postern/README.md does not say how to install the chart")
	}
	args := strings.Fields(strings.ReplaceAll(line[1], "\\\n", " "))
	if _, err := helm(t, append([]string{"template"}, args...)...); err != nil {
		t.Error(err)
	}
}

func rows(t *testing.T, b *strings.Builder, prefix string, n *yaml.Node) {
	for i := 0; i+1 < len(n.Content); i += 2 {
		k, v := n.Content[i], n.Content[i+1]
		var said []string
		for _, c := range []string{k.HeadComment, k.LineComment, v.LineComment} {
			for line := range strings.Lines(c) {
				if s := strings.TrimSpace(strings.TrimLeft(strings.TrimSpace(line), "#")); s != "" && !slices.Contains(said, s) {
					said = append(said, s)
				}
			}
		}
		text := strings.ReplaceAll(strings.Join(said, " "), "|", "\\|")
		if prefix == "" && text == "" {
			t.Errorf("%s has no comment", k.Value)
		}
		if v.Kind == yaml.MappingNode && len(v.Content) > 0 && v.Style&yaml.FlowStyle == 0 {
			if text != "" {
				fmt.Fprintf(b, "| **`%s%s`** | | %s |\n", prefix, k.Value, text)
			}
			rows(t, b, prefix+k.Value+".", v)
			continue
		}
		fmt.Fprintf(b, "| `%s%s` | `%s` | %s |\n", prefix, k.Value, flow(t, v), text)
	}
}

// flow is a value in one line.
func flow(t *testing.T, v *yaml.Node) string {
	plain := *v
	plain.LineComment, plain.HeadComment, plain.FootComment = "", "", ""
	plain.Style |= yaml.FlowStyle
	out, err := yaml.Marshal(&plain)
	if err != nil {
		t.Fatal(err)
	}
	return strings.ReplaceAll(strings.TrimSpace(string(out)), "\n", " ")
}
