package secret

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"gopkg.in/yaml.v3"
)

const canary = "sk-canary-5f0e7d3b9a1c2468"

// showsCanary looks for the canary in the renderings that fmt and the encoders
// can give bytes: text, hex, decimal, base64.
func showsCanary(s string) bool {
	dec := strings.Trim(fmt.Sprint([]byte(canary)), "[]")
	for _, form := range []string{
		canary, fmt.Sprintf("%x", canary), fmt.Sprintf("%X", canary), fmt.Sprintf("% x", canary), dec,
		strings.ReplaceAll(dec, " ", ", "), base64.StdEncoding.EncodeToString([]byte(canary))[:32],
	} {
		if strings.Contains(s, form) {
			return true
		}
	}
	return false
}

type holder struct {
	Name   string
	Public *Value
	hidden *Value
	Any    any
	ByKey  map[string]*Value
	List   []*Value
	ByName map[*Value]string
}

func TestEveryVerbPrintsRedacted(t *testing.T) {
	v := mustNew(t, canary)
	for _, flag := range []string{"", "+", "#", "-", " ", "0", "20", ".3", "#+"} {
		for verb := 'A'; verb <= 'z'; verb++ {
			got := fmt.Sprintf("%"+flag+string(verb), v)
			switch verb {
			case 'T', 'p', 'w': // fmt's own: the type, the handle's address, a complaint
				if showsCanary(got) {
					t.Errorf("%%%s%c shows the key: %s", flag, verb, got)
				}
			default:
				if verb >= '[' && verb <= '`' {
					continue // no letters
				}
				if got != Redacted {
					t.Errorf("%%%s%c prints %q", flag, verb, got)
				}
			}
		}
	}
	for _, got := range []string{fmt.Sprint(v), fmt.Sprintln(v), v.String(), v.GoString()} {
		if strings.TrimSpace(got) != Redacted {
			t.Errorf("prints %q", got)
		}
	}
	var none *Value
	if got := fmt.Sprintf("%v %s %+v", none, none, none); got != "[redacted] [redacted] [redacted]" {
		t.Errorf("nil prints %q", got)
	}
}

func TestNestedValuesStayHidden(t *testing.T) {
	v := mustNew(t, canary)
	h := holder{Name: "n", Public: v, hidden: v, Any: v, ByKey: map[string]*Value{"k": v}, List: []*Value{v}, ByName: map[*Value]string{v: "x"}}
	for _, x := range []any{h, &h, []any{h}, map[string]any{"h": &h}, struct{ holder }{h}, fmt.Errorf("wrapped: %v: %w", v, errors.New("inner"))} {
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d"} {
			if got := fmt.Sprintf(verb, x); showsCanary(got) {
				t.Errorf("%s of %T shows the key: %s", verb, x, got)
			}
		}
	}
	// A Value in a struct by value, unexported: fmt walks into it with no method to ask.
	inner := struct {
		v Value
	}{}
	inner.v.p, inner.v.n, inner.v.fingerprint = v.p, v.n, v.fingerprint
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%x", "%d"} {
		if got := fmt.Sprintf(verb, &inner); showsCanary(got) {
			t.Errorf("%s of an embedded Value shows the key: %s", verb, got)
		}
	}
}

// A LogValuer nested in a struct is never asked by slog; the encoders' methods
// have to hold by themselves.
func TestSlog(t *testing.T) {
	v := mustNew(t, canary)
	for name, handler := range map[string]func(*bytes.Buffer) slog.Handler{
		"text": func(b *bytes.Buffer) slog.Handler { return slog.NewTextHandler(b, nil) },
		"json": func(b *bytes.Buffer) slog.Handler { return slog.NewJSONHandler(b, nil) },
	} {
		var out bytes.Buffer
		log := slog.New(handler(&out)).With("with", v).WithGroup("g")
		h := holder{Name: "n", Public: v, hidden: v, Any: v, ByKey: map[string]*Value{"k": v}, List: []*Value{v}}
		log.Info("m", "value", v, "struct", h, "pointer", &h, slog.Group("in", "v", v, "s", h), "err", fmt.Errorf("x %s", v))
		if showsCanary(out.String()) {
			t.Errorf("%s shows the key: %s", name, out.String())
		}
		if strings.Count(out.String(), Redacted) < 8 {
			t.Errorf("%s: not everything was printed: %s", name, out.String())
		}
	}
}

type document struct{ V *Value }

func TestEncoders(t *testing.T) {
	v := mustNew(t, canary)
	in := struct {
		V *Value
		M map[string]any
	}{v, map[string]any{"k": v}}
	js, err := json.Marshal(in)
	if err != nil || string(js) != `{"V":"[redacted]","M":{"k":"[redacted]"}}` {
		t.Errorf("json: %s, %v", js, err)
	}
	x, err := xml.Marshal(document{V: v})
	if err != nil || !strings.Contains(string(x), "<V>[redacted]</V>") {
		t.Errorf("xml: %s, %v", x, err)
	}
	y, err := yaml.Marshal(map[string]any{"v": v})
	if err != nil || strings.TrimSpace(string(y)) != "v: '[redacted]'" {
		t.Errorf("yaml: %s, %v", y, err)
	}
	text, err := v.MarshalText()
	if err != nil || string(text) != Redacted {
		t.Errorf("text: %s, %v", text, err)
	}
}
