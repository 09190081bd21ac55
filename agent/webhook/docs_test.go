package webhook

import (
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// docs/INJECTION.md lists every annotation with its built-in default, in this order, and every reason.
func TestDocs(t *testing.T) {
	raw, err := os.ReadFile("../../docs/INJECTION.md")
	if err != nil {
		t.Fatal(err)
	}
	text := string(raw)
	_, section, _ := strings.Cut(text, "## Annotations")
	section, _, _ = strings.Cut(section, "\n## ")
	var listed, want []string
	for _, m := range regexp.MustCompile("(?m)^\\| `([a-z-]+)` \\| (?:`(.*?)`)? ?\\|").FindAllStringSubmatch(section, -1) {
		listed = append(listed, m[1]+"="+m[2])
	}
	for _, s := range table {
		want = append(want, s.name+"="+s.def)
	}
	if !slices.Equal(listed, want) {
		t.Errorf("listed\n%q\nwant\n%q", listed, want)
	}
	for _, reason := range []string{OptedOut, NotSelected, MirrorPod, HostNetwork, Windows, HasSidecar, AlreadyInjected, BadAnnotation, OldKubernetes, Conflict,
		PodHoldsKey, PodMayHoldKey, BaseURLBypasses, VariableKept, VariableChanged, NoBaseURL, SharedProcesses, NothingToPointTo} {
		if !strings.Contains(text, "`"+reason+"`") {
			t.Errorf("%s is not explained", reason)
		}
	}
}
