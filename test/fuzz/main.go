// Command fuzz runs every fuzzer of the module, one after another, each for a
// bounded time. What one finds is kept under its package's testdata/fuzz.
package main

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"time"
)

func main() {
	each := flag.Duration("time", time.Minute, "how long each fuzzer runs")
	only := flag.String("only", "", "run only fuzzers whose package or name contains this")
	flag.Parse()
	found, failed := 0, 0
	for _, pkg := range lines("go", "list", "./...") {
		for _, name := range lines("go", "test", "-list", "^Fuzz", pkg) {
			if !strings.HasPrefix(name, "Fuzz") || !strings.Contains(pkg+" "+name, *only) {
				continue
			}
			found++
			fmt.Printf("== %s %s for %s\n", pkg, name, *each)
			cmd := exec.Command("go", "test", "-run", "^$", "-fuzz", "^"+name+"$", "-fuzztime", each.String(), pkg)
			cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
			if cmd.Run() != nil {
				failed++
			}
		}
	}
	fmt.Printf("fuzzers: %d passed, %d failed\n", found-failed, failed)
	if failed > 0 || found == 0 {
		os.Exit(1)
	}
}

// lines is what a command prints; a package without tests prints nothing of use.
func lines(args ...string) []string {
	out, err := exec.Command(args[0], args[1:]...).Output()
	if err != nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n", strings.Join(args, " "), err)
		os.Exit(1)
	}
	return strings.Fields(string(out))
}
