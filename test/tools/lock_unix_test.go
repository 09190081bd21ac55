//go:build unix

package tools

import (
	"bufio"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/gofrs/flock"
)

// What a killed builder has started goes on, and nobody else builds beside it.
func TestKilledBuildersProgramsAreWaitedFor(t *testing.T) {
	const hold = "POSTERN_TEST_HOLD"
	if os.Getenv(hold) != "" { // the builder: its program runs until the input ends
		_, err := Cached("thing", key, func(string) error {
			cmd := exec.Command("sh", "-c", "echo builds; exec cat")
			cmd.Stdin, cmd.Stdout = os.Stdin, os.Stdout
			return cmd.Run()
		})
		t.Fatalf("the build ended: %v", err)
	}
	cache := t.TempDir()
	builder := exec.Command(os.Args[0], "-test.run=^"+t.Name()+"$")
	builder.Env = append(os.Environ(), hold+"=1", "POSTERN_TEST_CACHE="+cache)
	out, err := builder.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	in, err := builder.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	if err := builder.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	killed := builder.Process.Kill()
	if line != "builds\n" || err != nil || killed != nil {
		t.Fatalf("the builder says %q: %v, %v", line, err, killed)
	}
	if _, err := builder.Process.Wait(); err != nil {
		t.Fatal(err)
	}
	other := flock.New(filepath.Join(cache, "build.lock"))
	defer other.Close()
	if got, err := other.TryLock(); err != nil || got {
		t.Errorf("beside the program another builds: %v, %v", got, err)
	}
	in.Close() // and with it the program ends
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if got, err := other.TryLockContext(ctx, 10*time.Millisecond); err != nil || !got {
		t.Errorf("after it nobody does: %v, %v", got, err)
	}
}
