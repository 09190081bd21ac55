// Command lint runs the checks that need no test: gofmt, go vet on every
// platform that is supported, staticcheck, govulncheck and go mod verify.
package main

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"strings"
)

const (
	staticcheck = "honnef.co/go/tools/cmd/staticcheck@v0.8.2"
	govulncheck = "golang.org/x/vuln/cmd/govulncheck@v1.8.0"
)

var platforms = [][2]string{{"linux", "amd64"}, {"linux", "arm64"}, {"darwin", "amd64"}, {"darwin", "arm64"}}

func main() {
	failed := 0
	check := func(name string, err error) {
		if err != nil {
			failed++
			fmt.Printf("FAILED  %s: %v\n", name, err)
			return
		}
		fmt.Printf("ok      %s\n", name)
	}
	check("gofmt", gofmt())
	for _, p := range platforms {
		env := []string{"GOOS=" + p[0], "GOARCH=" + p[1], "CGO_ENABLED=0"}
		check("go vet "+p[0]+"/"+p[1], run(env, "go", "vet", "./..."))
		check("go build "+p[0]+"/"+p[1], run(env, "go", "build", "-o", os.DevNull, "./cmd/postern"))
	}
	check("go mod verify", run(nil, "go", "mod", "verify"))
	check("staticcheck", run(nil, "go", "run", staticcheck, "./..."))
	if notRun, err := vulnerabilities(); notRun != "" {
		fmt.Printf("NOT RUN govulncheck: %s\n", notRun)
	} else {
		check("govulncheck", err)
	}
	if failed > 0 {
		os.Exit(1)
	}
}

func gofmt() error {
	files, err := exec.Command("git", "ls-files", "-co", "--exclude-standard", "*.go").Output()
	if err != nil {
		return err
	}
	out, err := exec.Command("gofmt", append([]string{"-l"}, strings.Fields(string(files))...)...).CombinedOutput()
	if err == nil && len(out) > 0 {
		err = fmt.Errorf("would change:\n%s", out)
	}
	return err
}

func run(env []string, args ...string) error {
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Env = append(os.Environ(), env...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("%w\n%s", err, out)
	}
	return nil
}

// vulnerabilities runs govulncheck. Where its data cannot be had, notRun says why.
func vulnerabilities() (notRun string, err error) {
	out, err := exec.Command("go", "run", govulncheck, "./...").CombinedOutput()
	if err != nil && bytes.Contains(out, []byte("fetching vulnerabilities")) {
		return firstLine(out), nil
	}
	if err != nil {
		return "", fmt.Errorf("%w\n%s", err, out)
	}
	return "", nil
}

func firstLine(b []byte) string {
	line, _, _ := bytes.Cut(bytes.TrimSpace(b), []byte("\n"))
	return string(line)
}
