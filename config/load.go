package config

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"strings"

	"github.com/postern-proxy/postern/agent/provider/spec"
)

// variable is the environment variable that names the configuration where no argument does.
const variable = "POSTERN_CONFIG"

// Load reads the configuration that ref names: a file, or the variable NAME for
// "env:NAME". For "" it is what $POSTERN_CONFIG holds (a file's name, env:NAME, or
// the YAML itself), else ./postern.yaml, else the built-in default.
//
// Relative paths in a file are relative to the file, elsewhere to the working
// directory. env is os.Getenv or a stand-in. The error is an *Errors where the
// content is at fault.
func Load(ref string, env func(string) string) (*Config, error) {
	if ref != "" {
		return load(ref, env)
	}
	if ref = env(variable); ref != "" {
		if strings.ContainsAny(ref, "\n{") {
			return Parse([]byte(ref), "env:"+variable, env, workingDir())
		}
		return load(ref, env)
	}
	const here = "postern.yaml"
	switch _, err := os.Lstat(here); {
	case err == nil:
		return load(here, env)
	case !errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("./%s: %w", here, reason(err))
	}
	return Default(env)
}

func load(ref string, env func(string) string) (*Config, error) {
	if v, ok := strings.CutPrefix(ref, "env:"); ok {
		if !variableName.MatchString(v) {
			return nil, errors.New("the configuration's name begins with env: but no variable's name follows: write env:NAME")
		}
		text := env(v)
		if text == "" {
			return nil, fmt.Errorf("env:%s: the variable %s is not set or empty: it must hold the YAML itself", v, v)
		}
		return Parse([]byte(text), ref, env, workingDir())
	}
	data, err := read(ref)
	if err != nil {
		return nil, fmt.Errorf("configuration file %s: %w", ref, err)
	}
	file, err := filepath.Abs(ref)
	if err != nil {
		return nil, fmt.Errorf("configuration file %s: %w", ref, err)
	}
	c, err := Parse(data, ref, env, filepath.Dir(file))
	if err != nil {
		return nil, err
	}
	c.file = file
	return c, nil
}

// read gives at most one byte more than a configuration may have.
func read(file string) ([]byte, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, reason(err)
	}
	defer f.Close()
	if st, err := f.Stat(); err == nil && st.IsDir() {
		return nil, errors.New("is a directory: name the file in it")
	}
	data, err := io.ReadAll(io.LimitReader(f, maxBytes+1))
	if err != nil {
		return nil, reason(err)
	}
	return data, nil
}

// reason is a file error without the name, which the caller says already.
func reason(err error) error {
	if pe, ok := errors.AsType[*fs.PathError](err); ok {
		return pe.Err
	}
	return err
}

// workingDir is "" where it cannot be told: relative paths then stay relative.
func workingDir() string {
	dir, err := os.Getwd()
	if err != nil {
		return ""
	}
	return dir
}

// Parse reads one configuration. source names it in messages; relative paths in
// it are relative to dir. The error is an *Errors with every mistake at once,
// what ValidateAgent (ValidateServer for a file with a server section) would say
// included.
func Parse(data []byte, source string, env func(string) string, dir string) (*Config, error) {
	c := &Config{Source: source, where: map[string]int{}}
	r := newReport(c.where)
	root := document(data, r)
	if root == nil {
		return nil, r.err(source)
	}
	d := decoder{report: r, elsewhere: places(reflect.TypeFor[Config]())}
	d.value("", root.Line, root, reflect.ValueOf(c).Elem())
	if root.Kind != mappingNode {
		return nil, r.err(source)
	}
	f := newFinish(c, r, env, dir)
	f.complete()
	if len(r.list) > 0 {
		if f.Server != nil {
			f.validateServer()
		} else {
			f.validateAgent()
		}
		return nil, r.err(source)
	}
	return c, nil
}

// Default is the configuration that works without a file: environment dev,
// px_local, a sealed store in the user's data directory, and every provider of
// the catalog that needs no parameters, each of them optional. It fails where
// no data directory can be told.
func Default(env func(string) string) (*Config, error) {
	dir, err := dataDir(env, runtime.GOOS)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", builtIn, err)
	}
	c := &Config{
		Version: 1, Environment: "dev", ProxyID: "px_local",
		Store: Store{Sealed: &Sealed{
			File:    filepath.Join(dir, "postern.sealed"),
			KeyFile: filepath.Join(dir, "postern.key"),
		}},
		Source: builtIn, where: map[string]int{},
	}
	for _, e := range catalogDefaults() {
		c.Providers = append(c.Providers, Provider{Spec: spec.Spec{Name: e}, Optional: true})
	}
	f := newFinish(c, newReport(c.where), env, dir)
	f.complete()
	if err := f.err(builtIn); err != nil {
		return nil, err
	}
	return c, nil
}

// dataDir is where a user's own data goes: $XDG_DATA_HOME/postern, else
// ~/Library/Application Support/postern on macOS and ~/.local/share/postern elsewhere.
func dataDir(env func(string) string, goos string) (string, error) {
	if d := env("XDG_DATA_HOME"); filepath.IsAbs(d) {
		return filepath.Join(d, "postern"), nil
	}
	home := env("HOME")
	if !filepath.IsAbs(home) {
		return "", errors.New("HOME is not set: set it or XDG_DATA_HOME to an absolute path, or name a configuration with -c")
	}
	if goos == "darwin" {
		return filepath.Join(home, "Library", "Application Support", "postern"), nil
	}
	return filepath.Join(home, ".local", "share", "postern"), nil
}
