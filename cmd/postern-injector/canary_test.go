package main

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"github.com/postern-proxy/postern/agent/webhook"
)

// A pod that carries a key, wherever that may be, has it repeated by nothing:
// not by the patch, a warning, a refusal, an Event, the log or a metric.
func TestAKeyInAPodIsNotRepeated(t *testing.T) {
	const key = "sk-proj-THIS-IS-NOT-A-KEY-0123456789abcdefghijklmnop"
	env := func(name, value string) func(*corev1.Pod) {
		return func(p *corev1.Pod) {
			p.Spec.Containers[0].Env = append(p.Spec.Containers[0].Env, corev1.EnvVar{Name: name, Value: value})
		}
	}
	places := map[string]func(*corev1.Pod){
		"a key's variable":       env("OPENAI_API_KEY", key),
		"a variable of its own":  env("SOMETHING", key),
		"a variable's name":      env(key, "x"),
		"a base URL":             env("OPENAI_BASE_URL", "https://x.example/?key="+key),
		"a proxy's password":     env("HTTPS_PROXY", "http://user:"+key+"@proxy.example:3128"),
		"a proxy's host":         env("HTTPS_PROXY", key),
		"NO_PROXY":               env("NO_PROXY", key),
		"an argument":            func(p *corev1.Pod) { p.Spec.Containers[0].Args = []string{"--key=" + key} },
		"an image":               func(p *corev1.Pod) { p.Spec.Containers[0].Image = key },
		"a label":                func(p *corev1.Pod) { p.Labels["key"] = key },
		"another's annotation":   func(p *corev1.Pod) { p.Annotations["key"] = key },
		"the label of injection": func(p *corev1.Pod) { p.Labels[webhook.LabelInject] = key },
		"the status":             func(p *corev1.Pod) { p.Annotations[webhook.AnnotationStatus] = key },
		"an unknown annotation":  func(p *corev1.Pod) { p.Annotations[webhook.Prefix+key] = "x" },
		"a Secret's name": func(p *corev1.Pod) {
			p.Spec.Containers[0].Env = []corev1.EnvVar{{Name: "K", ValueFrom: &corev1.EnvVarSource{SecretKeyRef: &corev1.SecretKeySelector{Key: "openai", LocalObjectReference: corev1.LocalObjectReference{Name: "s"}}}}, {Name: "OPENAI_API_KEY", Value: key}}
		},
	}
	for _, name := range []string{"environment", "proxy-id", "providers", "mode", "containers", "order", "vault-address", "vault-namespace", "vault-auth-method", "vault-auth-mount",
		"vault-role", "vault-ca-configmap", "extra-roots-configmap", "run-as-user", "unmatched", "log-level", "resources", "image", "config-map", "override"} {
		places["the annotation "+name] = func(p *corev1.Pod) { p.Annotations[webhook.Prefix+name] = key }
	}
	var log bytes.Buffer
	api, k := newAPI(t)
	d, err := webhook.ParseDefaults([]byte("{image: postern:v1, vault-address: https://vault.example, vault-role: app}"))
	if err != nil {
		t.Fatal(err)
	}
	a := newApp(testOptions, d, k, slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug})))
	version := api.version
	a.review.version.Store(&version)
	repeated := func(what string, text []byte) {
		if bytes.Contains(text, []byte(key)) || bytes.Contains(text, []byte(base64.StdEncoding.EncodeToString([]byte(key))[:60])) {
			t.Errorf("%s repeats the key: %.400s", what, text)
		}
	}
	for place, change := range places {
		got, code := post(t, a.review, request(pod(change), "shop"))
		if got == nil {
			t.Errorf("%s: status %d", place, code)
			continue
		}
		// What the pod asks for by annotation it is given, and its proxy becomes the agent's.
		if !strings.HasPrefix(place, "the annotation ") && place != "a proxy's host" {
			repeated(place+": the patch", got.Patch)
		}
		warnings, _ := json.Marshal(got.Warnings)
		repeated(place+": a warning", warnings)
		repeated(place+": the refusal", []byte(fmt.Sprint(got.Result)))
		repeated(place+": the audit annotations", []byte(fmt.Sprint(got.AuditAnnotations)))
	}
	drain(a)
	told, _ := json.Marshal(api.told())
	if !bytes.Contains(told, []byte(webhook.PodHoldsKey)) {
		t.Errorf("no Event says that a pod holds a key: %s", told)
	}
	repeated("an Event", told)
	repeated("the log", log.Bytes())
	w := httptest.NewRecorder()
	a.admin().ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	repeated("a metric", w.Body.Bytes())
	w = httptest.NewRecorder()
	a.review.ServeHTTP(w, httptest.NewRequest(http.MethodPost, "/inject?"+key, strings.NewReader(`{"kind":"`+key+`"}`)))
	repeated("the answer to what is no review", w.Body.Bytes())
	repeated("the log", log.Bytes())
}
