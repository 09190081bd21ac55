package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strconv"
	"strings"
	"unicode/utf8"

	"gopkg.in/yaml.v3"
)

const (
	// maxBytes is the largest configuration that is read.
	maxBytes = 1 << 20
	// maxNodes bounds a document after its aliases are followed, and so what a few
	// nested anchors can blow up.
	maxNodes = 50_000
	// maxDepth bounds its nesting; the deepest field of ours is at 6.
	maxDepth = 40
)

// document parses data to the one YAML document it must be. What is wrong with
// it as YAML goes to r, and then the answer is nil: nothing of it is trusted.
func document(data []byte, r *report) *yaml.Node {
	switch {
	case len(data) > maxBytes:
		r.add("", 0, "is larger than 1 MiB: a configuration is a few kilobytes")
		return nil
	case !utf8.Valid(data):
		r.add("", badLine(data), "is not UTF-8 text: save it as UTF-8 without a byte order mark")
		return nil
	}
	dec := yaml.NewDecoder(bytes.NewReader(data))
	first, err := next(dec)
	if errors.Is(err, io.EOF) || err == nil && empty(first) {
		r.add("", 0, `is empty: begin with "version: 1", "environment: …" and "proxy_id: px_…"`)
		return nil
	}
	if err != nil {
		syntax(err, r)
		return nil
	}
	switch second, err := next(dec); {
	case errors.Is(err, io.EOF):
	case err != nil:
		syntax(err, r)
		return nil
	default:
		r.add("", second.Line, "a second document begins here (---): one file is one document, so put it into a file of its own")
		return nil
	}
	s := survey{r: r, open: map[*yaml.Node]bool{}}
	if !s.visit(first.Content[0], 0) {
		return nil
	}
	return first.Content[0]
}

// next reads one document. The parser's panics, should it have any left, are errors.
func next(dec *yaml.Decoder) (n *yaml.Node, err error) {
	defer func() {
		if recover() != nil {
			n, err = nil, errors.New("yaml: cannot be parsed")
		}
	}()
	n = new(yaml.Node)
	if err := dec.Decode(n); err != nil {
		return nil, err
	}
	if n.Kind != yaml.DocumentNode || len(n.Content) != 1 {
		return nil, errors.New("yaml: cannot be parsed")
	}
	return n, nil
}

func empty(doc *yaml.Node) bool {
	n := doc.Content[0]
	return n.Kind == yaml.ScalarNode && n.ShortTag() == "!!null"
}

// badLine is the line of the first byte that is not UTF-8.
func badLine(data []byte) int {
	line := 1
	for len(data) > 0 {
		c, n := utf8.DecodeRune(data)
		if c == utf8.RuneError && n == 1 {
			return line
		}
		if c == '\n' {
			line++
		}
		data = data[n:]
	}
	return 0
}

var yamlError = regexp.MustCompile(`^yaml: (?:line (\d+): )?(.*)$`)

// advice is what the parser's own words mean, for mistakes people make often.
// Words that are not here are passed on: the parser quotes nothing of its
// input in them, but for the names of anchors.
var advice = []struct{ words, say string }{
	{"unknown anchor", "an alias (*name) without its anchor (&name) above: text that begins with * needs quotes"},
	{"found character that cannot start any token", "a character that cannot begin a value: indent with spaces instead of tabs, and put text that begins with @, ` or % in quotes"},
	{"mapping values are not allowed", "a second \": \" in one line, or wrong indentation: put text that holds \": \" in quotes"},
	{"could not find expected ':'", "a name without a \":\" and a value: write name: value"},
	{"control characters are not allowed", "holds a control character: remove it"},
	{"did not find expected key", "wrong indentation, or an unfinished line above: fields of one block begin in one column"},
}

func syntax(err error, r *report) {
	m := yamlError.FindStringSubmatch(err.Error())
	if m == nil {
		r.add("", 0, "is not valid YAML")
		return
	}
	line, _ := strconv.Atoi(m[1])
	for _, a := range advice {
		if strings.HasPrefix(m[2], a.words) {
			r.add("", line, "is not valid YAML: %s", a.say)
			return
		}
	}
	if strings.Contains(m[2], "'") && !strings.HasPrefix(m[2], "did not find expected") && !strings.HasPrefix(m[2], "found") {
		m[2] = "cannot be parsed"
	}
	r.add("", line, "is not valid YAML: %s", m[2])
}

// survey walks a document once with its aliases followed, so that whoever walks
// it afterwards needs no bounds of their own.
type survey struct {
	r     *report
	open  map[*yaml.Node]bool
	nodes int
}

// visit reports whether the document below n may be used.
func (s *survey) visit(n *yaml.Node, depth int) bool {
	if s.nodes++; s.nodes > maxNodes {
		s.r.add("", n.Line, "holds over %d values once its aliases (*name) are followed: write less of it", maxNodes)
		return false
	}
	if depth > maxDepth {
		s.r.add("", n.Line, "is nested over %d levels deep", maxDepth)
		return false
	}
	if n.Kind == yaml.AliasNode {
		if s.open[n.Alias] {
			s.r.add("", n.Line, "an alias (*name) stands inside of what its anchor (&name) marks: write the value out")
			return false
		}
		return s.visit(n.Alias, depth)
	}
	if n.Style&yaml.TaggedStyle != 0 {
		s.r.add("", n.Line, "YAML tags (!name) mean nothing here: remove the tag, and put text in quotes")
		return false
	}
	s.open[n] = true
	defer delete(s.open, n)
	for _, c := range n.Content {
		if !s.visit(c, depth+1) {
			return false
		}
	}
	return true
}

// target is the node itself or what an alias stands for. The survey has made sure that this ends.
func target(n *yaml.Node) *yaml.Node {
	for n.Kind == yaml.AliasNode {
		n = n.Alias
	}
	return n
}

// kindOf says what a node is, for "must be …, is …".
func kindOf(n *yaml.Node) string {
	switch n.Kind {
	case yaml.MappingNode:
		return "a block of fields"
	case yaml.SequenceNode:
		return "a list"
	}
	switch n.ShortTag() {
	case "!!int", "!!float":
		return "a number"
	case "!!bool":
		return "true or false"
	case "!!null":
		return "empty"
	}
	return "text"
}

// field is a path with one more name, list item or map key.
func field(path, name string) string {
	if path == "" {
		return name
	}
	return path + "." + name
}

func item(path string, i int) string { return fmt.Sprintf("%s[%d]", path, i) }
