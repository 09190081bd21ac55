package e2e_test

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// hunt looks for keys in everything that it is shown, in every form in which
// one could have been written down.
type hunt struct {
	forms []form
	found []string // "the log: base64"; each once
}

type form struct{ name, text string }

// part is how much of a key's own bytes, in a row, gives it away.
const part = 16

func newHunt(keys ...string) *hunt {
	h := &hunt{}
	for _, key := range keys {
		h.forms = append(h.forms, encodings(key)...)
	}
	return h
}

// encodings are the forms of one key, and every part of it.
func encodings(key string) []form {
	out := []form{{"raw", key}, {"lower case", strings.ToLower(key)}}
	for i := 0; i+part <= len(key); i++ {
		out = append(out, form{fmt.Sprintf("bytes %d to %d", i, i+part), key[i : i+part]})
	}
	for skip := range 3 { // what does not depend on the bytes around it
		b := []byte(key)[(3-skip)%3:]
		b = b[:len(b)/3*3]
		out = append(out,
			form{fmt.Sprintf("base64, alignment %d", skip), base64.StdEncoding.EncodeToString(b)},
			form{fmt.Sprintf("base64url, alignment %d", skip), base64.URLEncoding.EncodeToString(b)})
	}
	every := ""
	for _, c := range []byte(key) {
		every += fmt.Sprintf("%%%02X", c)
	}
	for _, p := range []string{url.QueryEscape(key), url.PathEscape(key), every} {
		out = append(out, form{"percent, upper case", p}, form{"percent, lower case", lowerHex(p)})
	}
	var plain bytes.Buffer
	enc := json.NewEncoder(&plain)
	enc.SetEscapeHTML(false)
	enc.Encode(key)
	html, _ := json.Marshal(key)
	for _, j := range []string{strings.Trim(strings.TrimSpace(plain.String()), `"`), string(html[1 : len(html)-1])} {
		out = append(out, form{"JSON", j}, form{`JSON with \/`, strings.ReplaceAll(j, "/", `\/`)})
	}
	h := hex.EncodeToString([]byte(key))
	return append(out, form{"hex", h}, form{"hex, upper case", strings.ToUpper(h)})
}

// lowerHex writes %2F as %2f.
func lowerHex(s string) string {
	b := []byte(s)
	for i := 0; i+2 < len(b); i++ {
		if b[i] == '%' {
			copy(b[i+1:i+3], bytes.ToLower(b[i+1:i+3]))
		}
	}
	return string(b)
}

// look searches one text.
func (h *hunt) look(what string, text []byte) {
	for _, f := range h.forms {
		if bytes.Contains(text, []byte(f.text)) {
			name, _, _ := strings.Cut(f.name, " to ")
			if strings.HasPrefix(name, "bytes ") {
				name = "part of it"
			}
			if said := what + ": " + name; !slices.Contains(h.found, said) {
				h.found = append(h.found, said)
			}
		}
	}
}

// files searches every file below a folder, its name included.
func (h *hunt) files(t *testing.T, dir string) {
	t.Helper()
	n := 0
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil // of something that was just replaced
		}
		if err != nil {
			return err
		}
		h.look("the name "+path, []byte(path))
		if !d.Type().IsRegular() {
			return nil
		}
		b, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		n++
		h.look("the file "+path, b)
		return err
	})
	if err != nil {
		t.Error(err)
	}
	if n == 0 {
		t.Errorf("%s holds no file: nothing was searched", dir)
	}
}

// process searches what others can read of a process without tracing it.
func (h *hunt) process(t *testing.T, what string, pid int) {
	t.Helper()
	for _, name := range []string{"environ", "cmdline", "comm", "status"} {
		file := fmt.Sprintf("/proc/%d/%s", pid, name)
		b, err := os.ReadFile(file)
		if errors.Is(err, fs.ErrNotExist) {
			continue // no such thing on this system
		}
		if err != nil {
			t.Errorf("%s: %v", file, err)
		}
		h.look(what+"'s "+name, b)
	}
}

// report fails the test for everything that was found.
func (h *hunt) report(t *testing.T) {
	t.Helper()
	for _, f := range h.found {
		t.Errorf("found in %s", f)
	}
}

// The hunt finds what leaks, or a canary's silence would mean nothing: here a
// careless proxy attaches the key, logs what comes back, and passes it on.
func TestTheHuntFindsALeak(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	key := w.Key()
	w.Secrets = nil // it is leaked on purpose
	p, _ := w.parroting("echo")
	careless := w.careless(p, key)
	h := newHunt(key)
	for path, want := range map[string]string{
		"/v1/echo?in=header": "raw", "/v1/echo?as=base64": "base64, alignment", "/v1/events?seed=1": "raw", "/v1/memory": "raw",
		"/v1/cut": "part of it", "/v1/hints": "raw", "/v1/echo?in=trailer": "raw",
	} {
		req, err := http.NewRequest(http.MethodGet, careless.URL+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		_, text := heard(t, careless.Client(), req)
		h.look("the answer to "+path, []byte(text))
		if !h.has("the answer to " + path + ": " + want) {
			t.Errorf("the hunt does not find the key in the answer to %s:\n%s", path, text)
		}
	}
	h.files(t, w.Dir)
	if want := "the file " + w.Path("careless.log") + ": raw"; !h.has(want) {
		t.Errorf("the hunt does not find %q", want)
	}
}

func (h *hunt) has(found string) bool {
	return slices.ContainsFunc(h.found, func(s string) bool { return strings.HasPrefix(s, found) })
}

// careless is a proxy that does all that an agent must not.
func (w *world) careless(p *provider, key string) *httptest.Server {
	w.T.Helper()
	target, err := url.Parse(p.URL())
	if err != nil {
		w.T.Fatal(err)
	}
	log, err := os.Create(w.Path("careless.log"))
	if err != nil {
		w.T.Fatal(err)
	}
	tr := p.Transport()
	tr.ForceAttemptHTTP2 = false // the parrot takes connections over
	s := httptest.NewServer(&httputil.ReverseProxy{
		Transport: tr, FlushInterval: -1,
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(target)
			r.Out.Header.Set("Authorization", "Bearer "+key)
		},
		ModifyResponse: func(r *http.Response) error {
			for name, values := range r.Header {
				fmt.Fprintln(log, name, values)
			}
			return nil
		},
	})
	w.T.Cleanup(func() {
		s.Close()
		tr.CloseIdleConnections()
		log.Close()
	})
	return s
}

// It knows a key in whatever a common encoder makes of it, wherever it stands.
func TestTheHuntKnowsTheEncodings(t *testing.T) {
	w := newWorld(t)
	key := w.gnarly()
	escaped, _ := json.Marshal(map[string]string{"k": key})
	texts := map[string]string{
		"raw": "a" + key + "b", "JSON": string(escaped), "query": url.Values{"k": {key}}.Encode(), "path": url.PathEscape("a/" + key),
		"hex": hex.EncodeToString([]byte("abc" + key + "d")), "a part": key[5:25], "lower case": strings.ToLower(key), "Go": fmt.Sprintf("%q", key),
		"query, lower case": lowerHex(url.QueryEscape(key)), "JSON, slashes": strings.ReplaceAll(string(escaped), "/", `\/`),
	}
	for n := range 3 {
		text := strings.Repeat("x", n) + key + "yz"
		texts[fmt.Sprintf("base64 behind %d bytes", n)] = base64.StdEncoding.EncodeToString([]byte(text))
		texts[fmt.Sprintf("base64url behind %d bytes", n)] = base64.RawURLEncoding.EncodeToString([]byte(text))
	}
	for name, text := range texts {
		h := newHunt(key)
		h.look(name, []byte(text))
		if len(h.found) == 0 {
			t.Errorf("%s: not found in %s", name, text)
		}
	}
	h := newHunt(key)
	h.look("another text", []byte("sk-proj-"+strings.Repeat("0123456789", 10)+key[:part-1]))
	if len(h.found) > 0 {
		t.Errorf("found where there is nothing: %q", h.found)
	}
}
