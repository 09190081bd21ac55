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
	"slices"
	"strings"
	"time"

	"github.com/postern-proxy/postern/test/tools"
)

var builders = map[string]func() (string, error){
	"helm":  tools.BuildHelm,
	"vault": tools.BuildVault,
}

func main() {
	known := slices.Sorted(maps.Keys(builders))
	names := os.Args[1:]
	if len(names) == 0 {
		names = known
	}
	for _, name := range names {
		build, ok := builders[name]
		if !ok {
			fmt.Fprintf(os.Stderr, "tools: %q is not one of: %s\n", name, strings.Join(known, ", "))
			os.Exit(2)
		}
		start := time.Now()
		path, err := build()
		if err != nil {
			fmt.Fprintf(os.Stderr, "tools: %v\n", err)
			os.Exit(1)
		}
		fmt.Printf("%s\t%s\t%v\n", name, path, time.Since(start).Round(time.Millisecond))
	}
}
