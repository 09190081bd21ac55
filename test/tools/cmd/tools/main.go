// Command tools builds the programs that tests run against, so that no test
// has to wait for a build, and prints where they are and how long it took:
//
//	go run ./test/tools/cmd/tools          all of them
//	go run ./test/tools/cmd/tools vault    only these
package main

import (
	"fmt"
	"maps"
	"os"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/postern-proxy/postern/test/tools"
)

var builders = map[string]func() (string, error){
	"compose":       tools.Compose.Build,
	"helm":          tools.BuildHelm,
	"helm-unittest": tools.HelmUnittest.Build,
	"kubeconform":   tools.Kubeconform.Build,
	"schemas":       tools.BuildSchemas,
	"vault":         tools.BuildVault,
}

// long is a build that is worth a mention.
const long = 30 * time.Second

func main() {
	packaged := map[string]bool{}
	if runtime.GOOS == "linux" { // what a cluster is made of
		for _, b := range slices.Concat(tools.ControlPlane, tools.Node) {
			builders[b.Name] = b.Build
		}
		for _, p := range tools.Debian {
			builders[p.Name], packaged[p.Name] = p.Find, true
		}
	}
	known := slices.Sorted(maps.Keys(builders))
	names := os.Args[1:]
	if len(names) == 0 { // packages first: they take seconds, and some tests need no more
		for _, first := range []bool{true, false} {
			for _, name := range known {
				if packaged[name] == first {
					names = append(names, name)
				}
			}
		}
	}
	var slow []string
	for _, name := range names {
		build, ok := builders[name]
		if !ok {
			fmt.Fprintf(os.Stderr, "tools: %q is not one of: %s\n", name, strings.Join(known, ", "))
			os.Exit(2)
		}
		start := time.Now()
		path, err := build()
		if err != nil && packaged[name] { // the tests that need it say so themselves
			fmt.Printf("%s\tNOT RUN: %v\n", name, err)
			continue
		}
		if err != nil {
			fmt.Fprintf(os.Stderr, "tools: %v\n", err)
			os.Exit(1)
		}
		took := time.Since(start).Round(time.Millisecond)
		fmt.Printf("%s\t%s\t%v\n", name, path, took)
		if took >= long {
			slow = append(slow, fmt.Sprintf("%s %v", name, took.Round(time.Second)))
		}
	}
	if len(slow) > 0 {
		fmt.Printf("took long, once: %s\n", strings.Join(slow, ", "))
	}
}
