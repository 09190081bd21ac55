package sealed

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/postern-proxy/postern/agent/store"
)

// The limits of what one store takes. Those of custom metadata are Vault's.
const (
	maxPath        = 512 // bytes
	maxName        = 128 // bytes of a field's or label's name
	maxLabels      = 64
	maxLabel       = 512     // bytes
	maxFields      = 128     // of one version
	maxVersionSize = 1 << 20 // bytes of all values of one version

	defaultMaxVersions = 10 // where a path sets none; the same as Vault's
)

// document is what a file holds. A document that has been installed in a Store
// is never changed again: writers change a clone.
type document struct {
	Format     string            `json:"format"`
	Key        keySlot           `json:"key"`
	Generation uint64            `json:"generation"`
	Written    time.Time         `json:"written"`
	Paths      map[string]*entry `json:"paths"`
}

// entry is one path.
type entry struct {
	Current     int               `json:"current"`
	MaxVersions int               `json:"max_versions,omitempty"`
	Custom      map[string]string `json:"custom,omitempty"`
	Versions    []version         `json:"versions,omitempty"` // ascending; the newest max_versions of them
}

// version is one version with its sealed values.
type version struct {
	Number    int               `json:"number"`
	Created   time.Time         `json:"created"`
	Destroyed bool              `json:"destroyed,omitempty"`
	Fields    map[string][]byte `json:"fields,omitempty"` // name → nonce, ciphertext, tag
}

func (v version) public() store.Version {
	return store.Version{Number: v.Number, Created: v.Created, Destroyed: v.Destroyed}
}

// clone copies the document so far that paths can be replaced in it.
func (d *document) clone() *document {
	c := *d
	c.Paths = maps.Clone(d.Paths)
	if c.Paths == nil {
		c.Paths = map[string]*entry{}
	}
	return &c
}

// edit puts a copy of a path's entry, or a new one, in its place.
func (d *document) edit(path string) *entry {
	c := &entry{}
	if e := d.Paths[path]; e != nil {
		*c = *e
		c.Versions = slices.Clone(e.Versions)
	}
	d.Paths[path] = c
	return c
}

// newest returns the current version, or nil if it is gone or none was written.
func (e *entry) newest() *version { return e.find(e.Current) }

func (e *entry) find(number int) *version {
	i, ok := slices.BinarySearchFunc(e.Versions, number, func(v version, n int) int { return v.Number - n })
	if !ok {
		return nil
	}
	return &e.Versions[i]
}

// add appends a version and drops those over the limit.
func (e *entry) add(v version) {
	e.Current = v.Number
	limit := e.MaxVersions
	if limit == 0 {
		limit = defaultMaxVersions
	}
	e.Versions = slices.DeleteFunc(append(e.Versions, v), func(old version) bool { return old.Number <= v.Number-limit })
}

// check is the structure's own consistency. The mac says that postern wrote
// the file, this that it wrote what the rest of the package relies on.
func (d *document) check() error {
	if d.Generation == 0 {
		return errors.New("generation is 0")
	}
	for path, e := range d.Paths {
		if err := checkPath(path); err != nil {
			return err
		}
		if e == nil {
			return fmt.Errorf("%s: null", path)
		}
		if err := e.check(); err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
	}
	return nil
}

func (e *entry) check() error {
	if e.MaxVersions < 0 || e.Current < 0 {
		return errors.New("a negative number")
	}
	last := 0
	for _, v := range e.Versions {
		if v.Number <= last {
			return fmt.Errorf("version %d after version %d", v.Number, last)
		}
		last = v.Number
		if v.Created.IsZero() || v.Created.Location() != time.UTC {
			return fmt.Errorf("version %d: created is not a UTC time", v.Number)
		}
		if v.Destroyed && len(v.Fields) > 0 {
			return fmt.Errorf("version %d is destroyed and has data", v.Number)
		}
		for name := range v.Fields {
			if err := checkName("field", name); err != nil {
				return fmt.Errorf("version %d: %w", v.Number, err)
			}
		}
	}
	if last != e.Current {
		return fmt.Errorf("current is %d, the last version %d", e.Current, last)
	}
	return checkCustom(e.Custom)
}

// checkPath is the form of a path; the error wraps store.ErrInvalid.
func checkPath(path string) error {
	bad := func(why string) error { return fmt.Errorf("path %q %s: %w", path, why, store.ErrInvalid) }
	switch {
	case path == "":
		return bad("is empty")
	case len(path) > maxPath:
		return fmt.Errorf("path %q… is longer than %d bytes: %w", path[:32], maxPath, store.ErrInvalid)
	case !printable(path):
		return bad("has characters that cannot be printed")
	}
	for part := range strings.SplitSeq(path, "/") {
		switch part {
		case "":
			return bad("begins or ends with a slash or has two in a row")
		case ".", "..":
			return bad("has a relative segment")
		}
	}
	return nil
}

// checkFolder is checkPath for List: the root is empty, and a slash may end it.
func checkFolder(folder string) (prefix string, err error) {
	if folder == "" {
		return "", nil
	}
	folder = strings.TrimSuffix(folder, "/")
	return folder + "/", checkPath(folder)
}

func checkName(what, name string) error {
	if name == "" || len(name) > maxName || !printable(name) {
		return fmt.Errorf("%s name %.*q needs 1 to %d bytes of printable text: %w", what, maxName, name, maxName, store.ErrInvalid)
	}
	return nil
}

func checkCustom(custom map[string]string) error {
	if len(custom) > maxLabels {
		return fmt.Errorf("custom metadata has %d entries, at most %d are kept: %w", len(custom), maxLabels, store.ErrInvalid)
	}
	for name, text := range custom {
		if err := checkName("custom metadata", name); err != nil {
			return err
		}
		if text == "" || len(text) > maxLabel || !printable(text) {
			return fmt.Errorf("custom metadata %q has %d bytes, needs 1 to %d bytes of printable text: %w", name, len(text), maxLabel, store.ErrInvalid)
		}
	}
	return nil
}

func printable(s string) bool {
	return utf8.ValidString(s) && !strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) })
}
