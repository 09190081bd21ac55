package agent

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"reflect"
	"strings"
	"testing"

	"github.com/postern-proxy/postern/config"
)

// What becomes of each field of the configuration when it changes while the agent runs.
const (
	restart = "restart" // the reload is refused, and says so
	taken   = "taken"   // the new generation has it; TestWhatAReloadTakes shows it
	checked = "checked" // it decides only whether the configuration is valid
)

// Every field has a line: who adds one decides what a reload does with it.
var fields = map[string]string{
	"Version": checked, "RequireAPIKey": checked, "Source": checked, "Notes": checked, "where": checked, "file": checked,
	"Server": checked, "Issuers": checked, // the server's
	"Environment": restart, "ProxyID": restart,
	"Listen.Proxy": restart, "Listen.AllowUIDs": restart, "Listen.Admin": restart, "Listen.AllowRemote": checked, "Listen.Hosts": taken,
	"CA.Dir": restart, "CA.StateDir": restart, "Audit.File": restart, "Log.Level": restart, "Log.Format": restart,
	"Service": taken, "Unmatched": taken,
	"Egress.Proxy": checked, "Egress.proxy": taken, "Egress.NoProxy": taken, "Egress.CAFile": taken,
	"Store.Vault": taken, "Store.Sealed": taken, "Providers": taken,
	"Rotation.Ramp": taken, "Rotation.Grace": taken, "Rotation.RejectRatio": taken,
}

// leaves calls f for each field of a configuration; those of its own structs count one by one.
func leaves(v reflect.Value, prefix string, f func(name string, v reflect.Value)) {
	for i := range v.NumField() {
		name := prefix + v.Type().Field(i).Name
		if v.Field(i).Kind() == reflect.Struct {
			leaves(v.Field(i), name+".", f)
			continue
		}
		f(name, v.Field(i))
	}
}

func TestEveryFieldIsClassified(t *testing.T) {
	seen := map[string]bool{}
	leaves(reflect.ValueOf(config.Config{}), "", func(name string, _ reflect.Value) {
		seen[name] = true
		if fields[name] == "" {
			t.Errorf("config.Config has %s, of which nobody said what a reload does with it: add it to fields, and to fixed() if only a restart can take it", name)
		}
	})
	for name := range fields {
		if !seen[name] {
			t.Errorf("%s is a field no more", name)
		}
	}
}

// fixed refuses a change of each field that needs a restart, by the name that it has in YAML, and of no other.
func TestWhatNeedsARestart(t *testing.T) {
	h := newHouse(t)
	leaves(reflect.ValueOf(config.Config{}), "", func(name string, _ reflect.Value) {
		was, next := h.parsed(), h.parsed()
		changed := false
		leaves(reflect.ValueOf(next).Elem(), "", func(n string, v reflect.Value) {
			if n == name && v.CanSet() {
				change(v)
				changed = true
			}
		})
		if !changed {
			return // not exported
		}
		err := fixed(was, next)
		if (err != nil) != (fields[name] == restart) {
			t.Errorf("%s: %v", name, err)
		}
		if err == nil {
			return
		}
		yaml := map[string]string{"Environment": "environment", "ProxyID": "proxy_id", "Listen.Proxy": "listen.proxy", "Listen.AllowUIDs": "listen.allow_uids", "Listen.Admin": "listen.admin"}[name]
		if yaml == "" {
			yaml, _, _ = strings.Cut(strings.ToLower(name), ".")
		}
		if err.Error() != yaml+": cannot change while the agent runs; restart it" {
			t.Errorf("%s: %v", name, err)
		}
	})
	was, next := h.parsed(), h.parsed()
	next.Environment, next.Log.Level = "other", "debug"
	if err := fixed(was, next); err == nil || !strings.HasPrefix(err.Error(), "environment, log: ") {
		t.Errorf("two at once: %v", err)
	}
}

func change(v reflect.Value) {
	switch v.Kind() {
	case reflect.String:
		v.SetString(v.String() + "x")
	case reflect.Bool:
		v.SetBool(!v.Bool())
	case reflect.Int, reflect.Int64:
		v.SetInt(v.Int() + 1)
	case reflect.Float64:
		v.SetFloat(v.Float() + 1)
	case reflect.Slice:
		v.Set(reflect.Append(v, reflect.Zero(v.Type().Elem())))
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
	default:
		panic("a kind of field that no test knows: " + v.Kind().String())
	}
}

// Each setting that a reload takes is in force after it.
func TestWhatAReloadTakes(t *testing.T) {
	h := newHouse(t)
	a := h.start()
	reload := func(old, with string) {
		t.Helper()
		h.replace(old, with)
		if err := a.Reload(t.Context()); err != nil {
			t.Fatalf("%s: %v", with, err)
		}
	}
	head := func(request string) string {
		t.Helper()
		c, err := net.Dial("tcp", a.ProxyAddr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		io.WriteString(c, request)
		resp, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil {
			t.Fatal(err)
		}
		return resp.Status
	}

	models := "GET /openai/v1/models HTTP/1.1\r\nHost: postern.corp:8700\r\n\r\n"
	if got := head(models); !strings.HasPrefix(got, "421") {
		t.Errorf("a host that is not listed: %s", got)
	}
	reload(`admin: "127.0.0.1:0"`, `admin: "127.0.0.1:0", hosts: ["postern.corp:8700"]`)
	if got := head(models); !strings.HasPrefix(got, "200") {
		t.Errorf("listen.hosts: %s", got)
	}

	elsewhere, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer elsewhere.Close()
	tunnel := fmt.Sprintf("CONNECT %s HTTP/1.1\r\nHost: %[1]s\r\n\r\n", elsewhere.Addr())
	if got := head(tunnel); !strings.HasPrefix(got, "403") {
		t.Errorf("unmatched: deny: %s", got)
	}
	reload("rotation:", "unmatched: tunnel\nrotation:")
	if got := head(tunnel); !strings.HasPrefix(got, "200") {
		t.Errorf("unmatched: tunnel: %s", got)
	}

	reload("version: 1", "version: 1\nservice: checkout")
	if s := a.Status(); s.Service != "checkout" {
		t.Errorf("service: %q", s.Service)
	}

	h.put("second", firstKey)
	reload(h.yaml, strings.Replace(h.yaml, "providers: [", "providers: ["+h.entry("second", ", forward: false, sdk_env: false")+", ", 1))
	h.serves(a, "second")
	h.serves(a, "openai")

	h.env["CORP_PROXY"] = "http://agent:corp-password@127.0.0.1:1"
	reload("rotation:", "egress: {proxy: \"env:CORP_PROXY\"}\nrotation:")
	dialer := a.gen.Load().routing.Dialer
	if _, err := dialer.Dial(t.Context(), "api.openai.com:443"); err == nil || !strings.Contains(err.Error(), "the egress proxy 127.0.0.1:1") {
		t.Errorf("egress.proxy: %v", err)
	}
	h.env["CORP_PROXY"] = "http://agent:corp-password@127.0.0.1:2"
	if err := a.Reload(t.Context()); err != nil { // the text is the same, the variable is not
		t.Fatal(err)
	}
	if _, err := a.gen.Load().routing.Dialer.Dial(t.Context(), "api.openai.com:443"); err == nil || !strings.Contains(err.Error(), "the egress proxy 127.0.0.1:2") {
		t.Errorf("egress.proxy from another variable: %v", err)
	}
	reload(`"env:CORP_PROXY"`, `"env:CORP_PROXY", no_proxy: ".invalid"`)
	if _, err := a.gen.Load().routing.Dialer.Dial(t.Context(), "api.invalid:443"); err == nil || strings.Contains(err.Error(), "egress proxy") {
		t.Errorf("egress.no_proxy: %v", err)
	}

	reload("ca_file: provider-ca.pem, forward", "forward") // second's; from here on only the egress's root is there for it
	if status, _, _ := ask(h.client(), a, "second"); status != http.StatusBadGateway {
		t.Errorf("without a root: %d", status)
	}
	reload(`no_proxy: ".invalid"`, `no_proxy: ".invalid", ca_file: provider-ca.pem`)
	h.serves(a, "second")

	reload("grace: 1s", "grace: 1h, ramp: [{weight: 30, for: 1h}]")
	h.put("openai", "sk-test-ramp-0000000000000000000000000")
	eventually(t, "the new version has the share that rotation.ramp says", func() bool {
		k := a.Status().Keys[0]
		return k.Name == "openai" && len(k.Versions) > 1 && k.Versions[0].Weight == 30 && k.Versions[1].Weight == 70
	})

	if log := h.log.String() + h.audit.String(); strings.Contains(log, "corp-password") {
		t.Error("the proxy's password was written down")
	}
}
