package storetest

import (
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/postern-proxy/postern/agent/store"
)

func TestReference(t *testing.T) {
	Run(t, func(*testing.T) store.Store {
		return &memory{fault: os.Getenv("STORETEST_FAULT"), paths: map[string]*mpath{}}
	})
}

// The suite fails for a store with any one of these faults.
func TestFaultsAreFound(t *testing.T) {
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for _, fault := range []string{
		"context ignored", "paths unchecked", "two reasons", "errors do not name the path", "errors hold values",
		"get ignores the number", "get falls back to an older version", "get gives its own values away", "deleted is not found", "values are escaped",
		"put keeps other fields", "put keeps the caller's value", "a destroyed value is left out", "cas ignored",
		"cas 0 takes a deleted path for a new one", "check and set with a gap", "times are local", "times stand still",
		"patch revives what is deleted", "patch creates", "patch drops other fields",
		"metadata is not a copy", "versions sort as text", "soft delete does nothing",
		"any number of labels", "labels of any length", "63 labels", "metadata is merged", "the caller's map is kept",
		"nil labels change nothing", "max versions 0 resets", "every version is kept",
		"list is recursive", "folders have no slash", "list is unsorted", "an empty folder is an error",
		"destroy of none is destroy of all", "destroy destroys all", "destroying twice fails", "destroy does nothing", "destroy forgets the time",
		"removing nothing fails", "remove keeps the numbering", "remove keeps metadata", "remove takes what is below",
		"now goes back", "now is another clock",
	} {
		t.Run(strings.ReplaceAll(fault, " ", "_"), func(t *testing.T) {
			cmd := exec.CommandContext(t.Context(), exe, "-test.run=^TestReference$", "-test.failfast", "-test.timeout=2m")
			cmd.Env = append(os.Environ(), "STORETEST_FAULT="+fault)
			out, err := cmd.CombinedOutput()
			if err == nil {
				t.Errorf("the suite passes a store whose fault is: %s", fault)
			} else if !strings.Contains(string(out), "--- FAIL") {
				t.Errorf("the run ended with %v:\n%s", err, out)
			}
		})
	}
}
