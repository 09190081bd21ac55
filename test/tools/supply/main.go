// Command supply says what a Go program is made of, from the program itself:
//
//	supply sbom PROGRAM VERSION         a bill of materials (CycloneDX, JSON) on standard output
//	supply licenses ALLOWED PROGRAM...  each module's licenses; fails where the file ALLOWED does not list one
//
// The same program gives the same bytes: there is no serial number and no time in them.
package main

import (
	"bytes"
	"debug/buildinfo"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime/debug"
	"slices"
	"strings"
	"text/tabwriter"

	cdx "github.com/CycloneDX/cyclonedx-go"
	"github.com/google/licensecheck"
)

func main() {
	err := errors.New("usage: supply sbom PROGRAM VERSION | supply licenses ALLOWED PROGRAM...")
	switch a := os.Args[1:]; {
	case len(a) == 3 && a[0] == "sbom":
		err = sbom(os.Stdout, a[1], a[2])
	case len(a) >= 3 && a[0] == "licenses":
		err = report(os.Stdout, a[1], a[2:])
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "supply:", err)
		os.Exit(1)
	}
}

// module is one that a program is made of.
type module struct {
	path, version string
	sum           string // h1:…, go.sum's; empty for the standard library
	licenses      []string
}

// modules are a program's, with the licenses that lie in their root folders.
func modules(program string) (*buildinfo.BuildInfo, []module, error) {
	info, err := buildinfo.ReadFile(program)
	if err != nil {
		return nil, nil, err
	}
	var out []module
	var wanted []string
	for _, d := range info.Deps {
		if d.Replace != nil {
			d = d.Replace
		}
		if d.Version == "" || d.Version == "(devel)" {
			return nil, nil, fmt.Errorf("%s is made of the folder %s, of which nobody can say what is in it", program, d.Path)
		}
		out = append(out, module{path: d.Path, version: d.Version, sum: d.Sum})
		wanted = append(wanted, d.Path+"@"+d.Version)
	}
	dirs, err := folders(wanted)
	if err != nil {
		return nil, nil, err
	}
	root, err := exec.Command("go", "env", "GOROOT").Output()
	if err != nil {
		return nil, nil, fmt.Errorf("go env GOROOT: %w", err)
	}
	out = append(out, module{path: "std", version: strings.TrimPrefix(info.GoVersion, "go")})
	dirs["std@"+out[len(out)-1].version] = strings.TrimSpace(string(root))
	for i, m := range out {
		if out[i].licenses, err = licenses(dirs[m.path+"@"+m.version]); err != nil {
			return nil, nil, fmt.Errorf("%s: %w", m.path, err)
		}
	}
	return info, out, nil
}

// folders are where the module cache has modules; what is not there is loaded, and checked.
func folders(wanted []string) (map[string]string, error) {
	cmd := exec.Command("go", append([]string{"mod", "download", "-json"}, wanted...)...)
	cmd.Stderr = os.Stderr
	text, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("go mod download: %w\n%s", err, text)
	}
	out := map[string]string{}
	for dec := json.NewDecoder(bytes.NewReader(text)); ; {
		var m struct{ Path, Version, Dir string }
		if err := dec.Decode(&m); err == io.EOF {
			return out, nil
		} else if err != nil {
			return nil, err
		}
		out[m.Path+"@"+m.Version] = m.Dir
	}
}

var licenseFile = regexp.MustCompile(`(?i)^(un)?(licen[sc]e|copying)([-._].*)?$`)

// coverage is how much of a file, in per cent, must be known text. The rest are names and years.
const coverage = 75

// licenses are those of a module's root folder, by their SPDX names.
func licenses(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var out []string
	for _, e := range entries {
		if e.IsDir() || !licenseFile.MatchString(e.Name()) {
			continue
		}
		text, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			return nil, err
		}
		found := licensecheck.Scan(text)
		if found.Percent < coverage {
			return nil, fmt.Errorf("%s is no license that is known (%.0f %% of it)", e.Name(), found.Percent)
		}
		for _, m := range found.Match {
			out = append(out, m.ID)
		}
	}
	slices.Sort(out)
	if out = slices.Compact(out); len(out) == 0 {
		return nil, errors.New("its root folder has no license")
	}
	return out, nil
}

// report prints the licenses of what programs are made of.
func report(w io.Writer, allowedFile string, programs []string) error {
	text, err := os.ReadFile(allowedFile)
	if err != nil {
		return err
	}
	allowed := strings.Fields(regexp.MustCompile(`(?m)#.*$`).ReplaceAllString(string(text), ""))
	rows := map[string]bool{}
	var refused []string
	for _, p := range programs {
		_, ms, err := modules(p)
		if err != nil {
			return err
		}
		for _, m := range ms {
			rows[m.path+"\t"+m.version+"\t"+strings.Join(m.licenses, ", ")] = true
			for _, l := range m.licenses {
				if !slices.Contains(allowed, l) {
					refused = append(refused, m.path+" "+m.version+": "+l)
				}
			}
		}
	}
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	lines := make([]string, 0, len(rows))
	for line := range rows {
		lines = append(lines, line)
	}
	slices.Sort(lines)
	for _, line := range lines {
		fmt.Fprintln(tw, line)
	}
	if err := tw.Flush(); err != nil {
		return err
	}
	if len(refused) > 0 {
		slices.Sort(refused)
		return fmt.Errorf("licenses that %s does not list:\n  %s", allowedFile, strings.Join(slices.Compact(refused), "\n  "))
	}
	return nil
}

// sbom writes the bill of materials of one program, whose version does not stand in it.
func sbom(w io.Writer, program, version string) error {
	info, ms, err := modules(program)
	if err != nil {
		return err
	}
	self := cdx.Component{
		Type: cdx.ComponentTypeApplication, Name: filepath.Base(info.Path), Version: version,
		PackageURL: "pkg:golang/" + info.Main.Path + "@" + version + "#" + strings.TrimPrefix(info.Path, info.Main.Path+"/"),
		Properties: properties(info),
	}
	self.BOMRef = self.PackageURL
	bom := cdx.NewBOM()
	bom.Metadata = &cdx.Metadata{Component: &self}
	components, refs := []cdx.Component{}, []string{}
	for _, m := range ms {
		c := cdx.Component{
			Type: cdx.ComponentTypeLibrary, Name: m.path, Version: m.version,
			PackageURL: "pkg:golang/" + m.path + "@" + m.version,
		}
		c.BOMRef = c.PackageURL
		if m.sum != "" {
			// go.sum's is the hash of the hashes of the module's files.
			raw, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(m.sum, "h1:"))
			if err != nil {
				return fmt.Errorf("%s: %w", m.path, err)
			}
			c.Hashes = &[]cdx.Hash{{Algorithm: cdx.HashAlgoSHA256, Value: hex.EncodeToString(raw)}}
		}
		var choices cdx.Licenses
		for _, l := range m.licenses {
			choices = append(choices, cdx.LicenseChoice{License: &cdx.License{ID: l}})
		}
		c.Evidence = &cdx.Evidence{Licenses: &choices}
		components, refs = append(components, c), append(refs, c.BOMRef)
	}
	bom.Components = &components
	bom.Dependencies = &[]cdx.Dependency{{Ref: self.BOMRef, Dependencies: &refs}}
	return cdx.NewBOMEncoder(w, cdx.BOMFileFormatJSON).SetPretty(true).EncodeVersion(bom, cdx.SpecVersion1_6)
}

// properties are how the program was built.
func properties(info *debug.BuildInfo) *[]cdx.Property {
	out := []cdx.Property{{Name: "go", Value: info.GoVersion}}
	for _, s := range info.Settings {
		out = append(out, cdx.Property{Name: s.Key, Value: s.Value})
	}
	return &out
}
