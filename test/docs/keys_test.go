package docs_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Every command line of the guide to key management runs, one after the other,
// as an operator would type them; times are shortened.
func TestEveryCommandOfTheKeyGuideRuns(t *testing.T) {
	dir := t.TempDir()
	_, key := stage(t, dir, replacement)
	for name, text := range map[string]string{"new-key.txt": replacement, "found.txt": replacement} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	shorter := strings.NewReplacer("1:30s,10:2m,50:5m", "1:100ms,10:200ms,50:100ms", "--grace 10m", "--grace 1s")
	n := 0
	for _, line := range commands(t, "docs/KEYS.md") {
		n++
		out, err := shell(t, dir, key, shorter.Replace(line))
		if err != nil {
			t.Errorf("%s: %v\n%s", line, err, out)
		}
		if strings.Contains(out, key) || strings.Contains(out, replacement) {
			t.Errorf("%s: printed a key", line)
		}
	}
	if n < 12 {
		t.Errorf("only %d commands were found in the guide", n)
	}
}

const replacement = "sk-proj-9876543210jihgfedcba"
