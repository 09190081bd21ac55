package main

import (
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	labels "k8s.io/apimachinery/pkg/labels"
)

// apiserver is as much of one as the injector asks for, in memory.
type apiserver struct {
	mu         sync.Mutex
	version    string
	namespaces map[string]map[string]string
	pods       []corev1.Pod
	secret     *corev1.Secret
	revision   int
	bundles    map[string][]byte // by webhook's name
	patches    int
	events     []corev1.Event
	conflicts  int // that many writes of the Secret are refused
	asked      []string
	down       bool
}

func newAPI(t *testing.T) (*apiserver, *kube) {
	t.Helper()
	a := &apiserver{version: "v1.36.3", namespaces: map[string]map[string]string{"shop": {"postern.dev/inject": "true"}, "plain": {}}, bundles: map[string][]byte{"pods-0.postern.dev": nil, "namespaces-0.postern.dev": nil, "pods-1.postern.dev": nil, "namespaces-1.postern.dev": nil}}
	s := httptest.NewServer(a)
	t.Cleanup(s.Close)
	return a, &kube{base: s.URL, http: s.Client(), token: func() (string, error) { return "token", nil }}
}

func (a *apiserver) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.asked = append(a.asked, r.Method+" "+r.URL.Path)
	body, _ := io.ReadAll(r.Body)
	switch {
	case a.down || r.Header.Get("Authorization") != "Bearer token":
		status(w, 503, "ServiceUnavailable")
	case r.URL.Path == "/version":
		answer(w, map[string]string{"gitVersion": a.version})
	case r.URL.Path == "/api/v1/namespaces":
		var list corev1.NamespaceList
		for name, l := range a.namespaces {
			if selects(r, l) {
				list.Items = append(list.Items, corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: l}})
			}
		}
		answer(w, list)
	case strings.HasSuffix(r.URL.Path, "/events") && r.Method == http.MethodPost:
		var e corev1.Event
		json.Unmarshal(body, &e)
		for _, have := range a.events {
			if have.Name == e.Name {
				status(w, 409, "AlreadyExists")
				return
			}
		}
		a.events = append(a.events, e)
		answer(w, e)
	case strings.Contains(r.URL.Path, "/events/"):
		answer(w, map[string]string{})
	case strings.HasSuffix(r.URL.Path, "/pods"):
		a.list(w, r)
	case strings.Contains(r.URL.Path, "/secrets"):
		a.secrets(w, r, body)
	case strings.HasSuffix(r.URL.Path, "/mutatingwebhookconfigurations/postern-injector"):
		a.hooks(w, r, body)
	case strings.HasPrefix(r.URL.Path, "/api/v1/namespaces/"):
		name := strings.TrimPrefix(r.URL.Path, "/api/v1/namespaces/")
		l, ok := a.namespaces[name]
		if !ok {
			status(w, 404, "NotFound")
			return
		}
		answer(w, corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: l}})
	default:
		status(w, 404, "NotFound")
	}
}

func selects(r *http.Request, l map[string]string) bool {
	s, err := labels.Parse(r.URL.Query().Get("labelSelector"))
	return err == nil && s.Matches(labels.Set(l))
}

// list pages by one.
func (a *apiserver) list(w http.ResponseWriter, r *http.Request) {
	namespace := ""
	if p := strings.Split(r.URL.Path, "/"); len(p) > 5 {
		namespace = p[4]
	}
	from, _ := strconv.Atoi(r.URL.Query().Get("continue"))
	var out corev1.PodList
	for i := from; i < len(a.pods); i++ {
		if p := a.pods[i]; selects(r, p.Labels) && (namespace == "" || p.Namespace == namespace) {
			out.Items = append(out.Items, p)
			if i+1 < len(a.pods) {
				out.Continue = strconv.Itoa(i + 1)
			}
			break
		}
	}
	answer(w, out)
}

func (a *apiserver) secrets(w http.ResponseWriter, r *http.Request, body []byte) {
	switch {
	case r.Method == http.MethodGet && a.secret == nil:
		status(w, 404, "NotFound")
	case r.Method == http.MethodGet:
		answer(w, a.secret)
	case a.conflicts > 0:
		a.conflicts--
		status(w, 409, "Conflict")
	case r.Method == http.MethodPost && a.secret != nil:
		status(w, 409, "AlreadyExists")
	default:
		var s corev1.Secret
		json.Unmarshal(body, &s)
		if r.Method == http.MethodPatch && (a.secret == nil || s.ResourceVersion != a.secret.ResourceVersion) {
			status(w, 409, "Conflict")
			return
		}
		a.revision++
		s.ResourceVersion = strconv.Itoa(a.revision)
		a.secret = &s
		answer(w, s)
	}
}

func (a *apiserver) hooks(w http.ResponseWriter, r *http.Request, body []byte) {
	var sent struct {
		Webhooks []hook `json:"webhooks"`
	}
	if r.Method == http.MethodPatch {
		a.patches++
		json.Unmarshal(body, &sent)
		for _, h := range sent.Webhooks {
			a.bundles[h.Name] = h.ClientConfig.CABundle
		}
	}
	sent.Webhooks = nil
	for name, b := range a.bundles {
		h := hook{Name: name}
		h.ClientConfig.CABundle = b
		sent.Webhooks = append(sent.Webhooks, h)
	}
	answer(w, sent)
}

func answer(w http.ResponseWriter, v any) { json.NewEncoder(w).Encode(v) }

func status(w http.ResponseWriter, code int, reason string) {
	w.WriteHeader(code)
	json.NewEncoder(w).Encode(metav1.Status{Status: "Failure", Code: int32(code), Reason: metav1.StatusReason(reason), Message: fmt.Sprint("no: ", reason)})
}

func (a *apiserver) told() []corev1.Event {
	a.mu.Lock()
	defer a.mu.Unlock()
	return append([]corev1.Event(nil), a.events...)
}

func quiet() *slog.Logger { return slog.New(slog.NewTextHandler(io.Discard, nil)) }
