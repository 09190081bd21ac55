package main

import (
	"os"
	"path/filepath"
	"testing"
)

// What could not run fails where everything has to run; what ran as far as the machine allows fails nowhere.
func TestWhatFailsAndWhere(t *testing.T) {
	file := filepath.Join(t.TempDir(), "notes")
	for _, c := range []struct {
		notes, ci string
		want      int
	}{
		{"", "true", 0},
		{"NOT RUN: images: no buildah: none\n", "", 0},
		{"NOT RUN: images: no buildah: none\n", "true", 1},
		{"FELL BACK: injection: level pods ran: no iptables\n", "true", 0},
		{"FELL BACK: injection: level pods ran\nNOT RUN: images: none\n", "true", 1},
	} {
		if err := os.WriteFile(file, []byte(c.notes), 0o600); err != nil {
			t.Fatal(err)
		}
		t.Setenv("CI", c.ci)
		if got := summary(append([]outcome{{part: "tools", result: "passed"}}, reported(file)...)); got != c.want {
			t.Errorf("%q with CI=%q: exit code %d, want %d", c.notes, c.ci, got, c.want)
		}
	}
	if got := reported(file); len(got) != 2 || got[1].part != "images" || got[1].reason != "none" || got[0].result != "FELL BACK" {
		t.Errorf("%+v", got)
	}
	if summary([]outcome{{part: "x", result: "FAILED"}}) != 1 {
		t.Error("a part that failed fails nothing")
	}
}
