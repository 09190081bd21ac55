package config

import (
	"fmt"
	"reflect"
	"regexp"
	"sort"
	"strconv"
	"strings"
)

// Error is one mistake in a configuration.
type Error struct {
	// Path is the field, as "providers[2].attach.header"; "" for the document as a whole.
	Path string
	// Line is the line it stands on, from 1; 0 where it is not known (a
	// default, a field that is missing altogether).
	Line int
	// Message says what is wrong and what to write instead. It never holds a
	// value that could be a secret.
	Message string
}

// Error is "line 7: providers[2].name: …".
func (e Error) Error() string {
	var b strings.Builder
	if e.Line > 0 {
		fmt.Fprintf(&b, "line %d: ", e.Line)
	}
	if e.Path != "" {
		b.WriteString(e.Path + ": ")
	}
	b.WriteString(e.Message)
	return b.String()
}

// Errors is every mistake found, in the order of their lines; those without a line come last.
type Errors struct {
	// Source is where the configuration was read from.
	Source string
	List   []Error
}

// Error is one line per mistake, after a heading that counts them.
func (e *Errors) Error() string {
	if len(e.List) == 1 {
		return e.Source + ": " + e.List[0].Error()
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%s: %d mistakes", e.Source, len(e.List))
	for _, m := range e.List {
		b.WriteString("\n  " + m.Error())
	}
	return b.String()
}

// Unwrap gives errors.As each Error.
func (e *Errors) Unwrap() []error {
	out := make([]error, len(e.List))
	for i, m := range e.List {
		out[i] = m
	}
	return out
}

// report collects mistakes; lines are looked up by path.
type report struct {
	lines map[string]int
	list  []Error
	seen  map[Error]bool
	more  int // mistakes over the limit
}

// maxErrors is how many mistakes are told; the rest is counted.
const maxErrors = 100

func newReport(lines map[string]int) *report {
	return &report{lines: lines, seen: map[Error]bool{}}
}

func (r *report) add(path string, line int, format string, args ...any) {
	e := Error{Path: path, Line: line, Message: fmt.Sprintf(format, args...)}
	switch {
	case r.seen[e]:
	case len(r.list) >= maxErrors:
		r.more++
	default:
		r.seen[e] = true
		r.list = append(r.list, e)
	}
}

// at adds a mistake on the line of path or, where path was not written, of the
// nearest thing around it that was.
func (r *report) at(path, format string, args ...any) {
	r.add(path, lineOf(r.lines, path), format, args...)
}

func lineOf(lines map[string]int, path string) int {
	for path != "" {
		if n := lines[path]; n > 0 {
			return n
		}
		i := strings.LastIndexAny(path, ".[")
		if i < 0 {
			return 0
		}
		path = path[:i]
	}
	return 0
}

// err is nil or an *Errors.
func (r *report) err(source string) error {
	if len(r.list) == 0 {
		return nil
	}
	sort.SliceStable(r.list, func(i, j int) bool {
		a, b := r.list[i].Line, r.list[j].Line
		return a != b && a != 0 && (b == 0 || a < b)
	})
	if r.more > 0 {
		r.list = append(r.list, Error{Message: fmt.Sprintf("and %d more mistakes", r.more)})
	}
	return &Errors{Source: source, List: r.list}
}

var (
	// plain is what a value must look like to be repeated in a message.
	plain = regexp.MustCompile(`^[A-Za-z0-9._:/*{}-]{1,40}$`)
	// run is long enough to be a key, a token or a generated password.
	run = regexp.MustCompile(`[A-Za-z0-9_+=-]{16,}`)
	// prefixed is how some of them begin.
	prefixed = regexp.MustCompile(`\b(sk-|pstn_|hv[sbr]\.|s\.|gh[pousr]_|gsk_|xai-|pplx-|hf_|qbt_|AKIA|AIza|ya29\.|eyJ|ABSK)[A-Za-z0-9_-]{6,}`)
	// userPassword is a colon that neither a port nor a path follows.
	userPassword = regexp.MustCompile(`[A-Za-z0-9_.-]:[^0-9/:\]]`)
)

const withheld = "this value"

// shown quotes a value for a message, or says that it is not repeated: for
// everything long, unusual, or like a key.
func shown(s string) string {
	switch {
	case s == "":
		return "empty"
	case !showable(s):
		return withheld
	}
	return `"` + s + `"`
}

func showable(s string) bool {
	return plain.MatchString(s) && !userPassword.MatchString(s) && !secretLike(s)
}

// secretLike reports whether a text holds what looks like a key, a token, or a
// URL with a password. A person's words may look so too; they are then just not repeated.
func secretLike(s string) bool {
	if prefixed.MatchString(s) {
		return true
	}
	if i := strings.IndexByte(s, '@'); i > 0 && i < len(s)-1 {
		return true
	}
	for _, r := range run.FindAllString(s, -1) {
		if mixed(r) {
			return true
		}
	}
	return false
}

// mixed reports digits, or capitals in the middle of words: what
// Transfer-Encoding and OPENAI_BASE_URL do not have and random text does.
func mixed(s string) bool {
	lower, camel := false, false
	for i := range len(s) {
		switch c := s[i]; {
		case c >= '0' && c <= '9':
			return true
		case c >= 'a' && c <= 'z':
			lower = true
		case c >= 'A' && c <= 'Z':
			camel = camel || i > 0 && s[i-1] != '-' && s[i-1] != '_'
		}
	}
	return lower && camel
}

// masked is a message made elsewhere without those of the given values that are
// not to be repeated, and without words that look like a secret.
func masked(message string, values ...string) string {
	for _, v := range values {
		if len(v) < 5 || showable(v) {
			continue
		}
		if len(v) > 80 {
			v = strings.ToValidUTF8(v[:80], "") // as much as anyone would quote
		}
		quoted := strconv.Quote(v)
		for _, form := range []string{v, quoted[1 : len(quoted)-1], strings.TrimSpace(v)} {
			if form == "" || !strings.Contains(strings.ToLower(message), strings.ToLower(form)) {
				continue
			}
			message = regexp.MustCompile(`(?i)`+regexp.QuoteMeta(form)).ReplaceAllLiteralString(message, "…")
		}
	}
	words := strings.Split(message, " ")
	for i, w := range words {
		if core := strings.Trim(w, "\"'`,;:.()[]{}"); secretLike(core) {
			words[i] = strings.Replace(w, core, "…", 1)
		}
	}
	return strings.Join(words, " ")
}

// texts is every string in a value, names of maps included.
func texts(v reflect.Value) []string {
	var out []string
	switch v.Kind() {
	case reflect.String:
		out = append(out, v.String())
	case reflect.Pointer:
		if !v.IsNil() {
			out = texts(v.Elem())
		}
	case reflect.Struct:
		for i := range v.NumField() {
			out = append(out, texts(v.Field(i))...)
		}
	case reflect.Slice:
		for i := range v.Len() {
			out = append(out, texts(v.Index(i))...)
		}
	case reflect.Map:
		for it := v.MapRange(); it.Next(); {
			out = append(append(out, texts(it.Key())...), texts(it.Value())...)
		}
	}
	return out
}
