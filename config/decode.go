package config

import (
	"maps"
	"math"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"time"

	"gopkg.in/yaml.v3"

	"github.com/postern-proxy/postern/agent/provider/spec"
)

// decoder fills a value from a document and collects every mistake on the way;
// after one it goes on with the next field. Lines of everything written go into
// report.lines.
type decoder struct {
	*report
	// elsewhere is where a field's name is known, for who put it in the wrong place.
	elsewhere map[string]string
}

var (
	durationType = reflect.TypeFor[time.Duration]()
	sdkEnvType   = reflect.TypeFor[spec.SDKEnv]()
)

// sdkEnv is the long form of spec.SDKEnv, whose own decoding stops at the first mistake.
type sdkEnv struct {
	Own    *bool             `yaml:"own"`
	Vars   map[string]string `yaml:"vars"`
	Shared map[string]string `yaml:"shared"`
	Keys   []string          `yaml:"keys"`
}

func (d *decoder) value(path string, line int, n *yaml.Node, v reflect.Value) {
	n = target(n)
	if v.Type() == sdkEnvType {
		d.sdkEnv(path, line, n, v.Addr().Interface().(*spec.SDKEnv))
		return
	}
	if n.Kind == yaml.ScalarNode && n.ShortTag() == "!!null" && !emptyStruct(v.Type()) {
		return // "name:" with nothing behind it is a field left out
	}
	if v.Kind() == reflect.Pointer {
		p := reflect.New(v.Type().Elem())
		d.value(path, line, n, p.Elem())
		v.Set(p)
		return
	}
	switch v.Kind() {
	case reflect.Struct:
		d.block(path, line, n, v)
	case reflect.Slice:
		d.list(path, line, n, v)
	case reflect.Map:
		d.table(path, line, n, v)
	default:
		d.scalar(path, line, n, v)
	}
}

// emptyStruct reports whether a type is a block or a pointer to one: "vault:"
// with nothing behind it means a vault block in which everything is a default.
func emptyStruct(t reflect.Type) bool {
	return t.Kind() == reflect.Struct || t.Kind() == reflect.Pointer && t.Elem().Kind() == reflect.Struct
}

func (d *decoder) block(path string, line int, n *yaml.Node, v reflect.Value) {
	fields := fieldsOf(v.Type())
	if n.Kind != yaml.MappingNode {
		if n.Kind != yaml.ScalarNode || n.ShortTag() != "!!null" {
			d.add(path, line, "must be a block of fields (%s), is %s", strings.Join(names(fields), ", "), kindOf(n))
		}
		return
	}
	d.pairs(path, n, func(key string, keyLine int, value *yaml.Node) {
		f, known := fields[key]
		if !known {
			d.unknown(path, key, keyLine, fields)
			return
		}
		d.value(field(path, key), keyLine, value, v.FieldByIndex(f))
	})
}

// sdkEnv is true, false or a block.
func (d *decoder) sdkEnv(path string, line int, n *yaml.Node, into *spec.SDKEnv) {
	var long sdkEnv
	switch {
	case n.Kind == yaml.ScalarNode && n.ShortTag() == "!!bool":
		d.value(path, line, n, reflect.ValueOf(&long.Own).Elem())
	case n.Kind == yaml.ScalarNode && n.ShortTag() != "!!null":
		d.add(path, line, "must be true, false or a block of own, vars, shared and keys, is %s", kindOf(n))
	default:
		d.value(path, line, n, reflect.ValueOf(&long).Elem())
	}
	*into = spec.SDKEnv(long)
}

// pairs gives every distinct name of a block; names given twice, and names that are no text, are mistakes.
func (d *decoder) pairs(path string, n *yaml.Node, each func(key string, line int, value *yaml.Node)) {
	first := map[string]int{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		k := target(n.Content[i])
		switch {
		case k.Kind != yaml.ScalarNode:
			d.add(path, k.Line, "a field's name must be a word, is %s", kindOf(k))
			continue
		case k.ShortTag() == "!!merge":
			d.add(path, k.Line, "merging with << is not understood: write the fields out, or use an alias (*name) for a whole value")
			continue
		}
		shownPath := field(path, name(k.Value))
		if before, twice := first[k.Value]; twice {
			d.add(shownPath, k.Line, "is written twice (first on line %d): keep one", before)
			continue
		}
		first[k.Value] = k.Line
		d.lines[shownPath] = k.Line
		each(k.Value, k.Line, n.Content[i+1])
	}
}

func (d *decoder) list(path string, line int, n *yaml.Node, v reflect.Value) {
	if n.Kind != yaml.SequenceNode {
		d.add(path, line, "must be a list ([…], or lines that begin with -), is %s", kindOf(n))
		return
	}
	out := reflect.MakeSlice(v.Type(), len(n.Content), len(n.Content))
	for i, c := range n.Content {
		p := item(path, i)
		d.lines[p] = c.Line
		if t := target(c); t.Kind == yaml.ScalarNode && t.ShortTag() == "!!null" {
			d.add(p, c.Line, "is empty: fill it in or remove it")
			continue
		}
		d.value(p, c.Line, c, out.Index(i))
	}
	v.Set(out)
}

// table is a map of text to text.
func (d *decoder) table(path string, line int, n *yaml.Node, v reflect.Value) {
	if n.Kind != yaml.MappingNode {
		d.add(path, line, "must be a block of names and values ({name: value}), is %s", kindOf(n))
		return
	}
	out := reflect.MakeMapWithSize(v.Type(), len(n.Content)/2)
	d.pairs(path, n, func(key string, keyLine int, value *yaml.Node) {
		text := reflect.New(v.Type().Elem()).Elem()
		if t := target(value); t.Kind == yaml.ScalarNode && t.ShortTag() == "!!null" {
			d.add(field(path, name(key)), keyLine, `has no value: write one, or "" for an empty one`)
			return
		}
		d.value(field(path, name(key)), keyLine, value, text)
		out.SetMapIndex(reflect.ValueOf(key), text)
	})
	v.Set(out)
}

func (d *decoder) scalar(path string, line int, n *yaml.Node, v reflect.Value) {
	tag := n.ShortTag()
	if n.Kind != yaml.ScalarNode {
		tag = ""
	}
	switch {
	case v.Type() == durationType:
		d.duration(path, line, n, v)
	case v.Kind() == reflect.String && (tag == "!!str" || tag == "!!timestamp"):
		v.SetString(n.Value) // a date needs no quotes: its text is what is meant
	case v.Kind() == reflect.String && (tag == "!!int" || tag == "!!float" || tag == "!!bool"):
		d.add(path, line, "must be text, is %s: put it in quotes", kindOf(n))
	case v.Kind() == reflect.String:
		d.add(path, line, "must be text, is %s", kindOf(n))
	case v.Kind() == reflect.Bool && tag == "!!bool":
		v.SetBool(strings.EqualFold(n.Value, "true"))
	case v.Kind() == reflect.Bool:
		d.add(path, line, "must be true or false (without quotes), is %s", kindOf(n))
	case v.Kind() == reflect.Int && tag == "!!int":
		var i int
		if n.Decode(&i) != nil || i > math.MaxInt32 || i < math.MinInt32 {
			d.add(path, line, "is a number out of range")
			return
		}
		v.SetInt(int64(i))
	case v.Kind() == reflect.Int:
		d.add(path, line, "must be a whole number (without quotes), is %s", kindOf(n))
	case v.Kind() == reflect.Float64 && (tag == "!!int" || tag == "!!float"):
		var f float64
		if n.Decode(&f) != nil || math.IsNaN(f) || math.IsInf(f, 0) {
			d.add(path, line, "must be a finite number")
			return
		}
		v.SetFloat(f)
	case v.Kind() == reflect.Float64:
		d.add(path, line, "must be a number (without quotes), is %s", kindOf(n))
	default:
		panic("config: no decoding for " + v.Type().String())
	}
}

func (d *decoder) duration(path string, line int, n *yaml.Node, v reflect.Value) {
	const example = "as in 500ms, 5s, 10m or 24h"
	switch {
	case n.Kind != yaml.ScalarNode:
		d.add(path, line, "must be a duration %s, is %s", example, kindOf(n))
	case n.ShortTag() == "!!int" || n.ShortTag() == "!!float":
		d.add(path, line, "is a number without a unit: write a duration %s", example)
	default:
		t, err := time.ParseDuration(n.Value)
		if err != nil {
			d.add(path, line, "is not a duration: write one %s", example)
			return
		}
		v.SetInt(int64(t))
	}
}

// wanted are names that people expect here, with what there is instead.
var wanted = map[string]string{
	"api_key":         "a key is never written into the configuration: `postern keys add NAME` puts it into the store",
	"secret_id":       "a credential is never written into the configuration: put it into a file and name it in secret_id_file",
	"passphrase":      "a passphrase is never written into the configuration: name the variable that holds it in passphrase_env",
	"skip_verify":     "TLS is always verified: name the authority's certificate in ca_file",
	"insecure":        "TLS is always verified: name the authority's certificate in ca_file",
	"tls_skip_verify": "TLS is always verified: name the authority's certificate in ca_file",
}

func (d *decoder) unknown(path, key string, line int, fields map[string][]int) {
	p := field(path, name(key))
	allowed := names(fields)
	if say, ok := wanted[key]; ok {
		d.add(p, line, "unknown field: %s", say)
		return
	}
	if name(key) == key {
		if n := nearest(key, allowed); n != "" {
			d.add(p, line, "unknown field; did you mean %q?", n)
			return
		}
		if where, ok := d.elsewhere[key]; ok {
			d.add(p, line, "unknown field here: it belongs at %s", where)
			return
		}
	}
	d.add(p, line, "unknown field; known here: %s", strings.Join(allowed, ", "))
}

var word = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_.-]{0,39}$`)

// name is a field's name as a path shows it: "?" for one that is no name, and could be anything.
func name(key string) string {
	if !word.MatchString(key) || secretLike(key) {
		return "?"
	}
	return key
}

// fieldsOf maps the YAML names of a struct's fields, inline ones included, to their indexes.
func fieldsOf(t reflect.Type) map[string][]int {
	out := map[string][]int{}
	for i := range t.NumField() {
		f := t.Field(i)
		tag, opts, _ := strings.Cut(f.Tag.Get("yaml"), ",")
		switch {
		case opts == "inline":
			for n, index := range fieldsOf(f.Type) {
				out[n] = append([]int{i}, index...)
			}
		case tag != "" && tag != "-":
			out[tag] = []int{i}
		}
	}
	return out
}

// names are the fields' names in alphabetical order.
func names(fields map[string][]int) []string {
	return slices.Sorted(maps.Keys(fields))
}

// places maps the name of every field below t to where it stands, if that is no more than two places.
func places(t reflect.Type) map[string]string {
	all := map[string][]string{}
	var walk func(path string, t reflect.Type)
	walk = func(path string, t reflect.Type) {
		for t.Kind() == reflect.Pointer || t.Kind() == reflect.Slice {
			if t.Kind() == reflect.Slice {
				path += "[]"
			}
			t = t.Elem()
		}
		if t.Kind() != reflect.Struct || t == sdkEnvType {
			return
		}
		for n, index := range fieldsOf(t) {
			p := field(path, n)
			all[n] = append(all[n], p)
			walk(p, t.FieldByIndex(index).Type)
		}
	}
	walk("", t)
	out := map[string]string{}
	for n, paths := range all {
		slices.Sort(paths)
		if len(paths) <= 2 {
			out[n] = strings.Join(paths, " or ")
		}
	}
	return out
}
