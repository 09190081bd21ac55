package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	admissionv1 "k8s.io/api/admission/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/yaml"

	"github.com/postern-proxy/postern/agent/webhook"
)

func newTestApp(t *testing.T) (*app, *apiserver) {
	t.Helper()
	api, k := newAPI(t)
	d, err := webhook.ParseDefaults([]byte("{image: postern:v1, vault-address: https://vault.example, vault-role: app}"))
	if err != nil {
		t.Fatal(err)
	}
	o := testOptions
	o.watch = time.Hour
	a := newApp(o, d, k, quiet())
	version := api.version
	a.review.version.Store(&version)
	return a, api
}

func pod(change func(*corev1.Pod)) *corev1.Pod {
	p := &corev1.Pod{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"},
		ObjectMeta: metav1.ObjectMeta{GenerateName: "app-", Labels: map[string]string{}, Annotations: map[string]string{}},
		Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "app", Image: "app"}}},
	}
	if change != nil {
		change(p)
	}
	return p
}

func request(p *corev1.Pod, namespace string) *admissionv1.AdmissionRequest {
	raw, _ := json.Marshal(p)
	return &admissionv1.AdmissionRequest{UID: types.UID("u"), Operation: admissionv1.Create, Namespace: namespace,
		Resource: metav1.GroupVersionResource{Version: "v1", Resource: "pods"}, Object: runtime.RawExtension{Raw: raw}}
}

// post sends a review as the API server does.
func post(t *testing.T, h http.Handler, req *admissionv1.AdmissionRequest) (*admissionv1.AdmissionResponse, int) {
	t.Helper()
	body, _ := json.Marshal(admissionv1.AdmissionReview{TypeMeta: metav1.TypeMeta{APIVersion: "admission.k8s.io/v1", Kind: "AdmissionReview"}, Request: req})
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest(http.MethodPost, "/inject", bytes.NewReader(body)))
	if w.Code != http.StatusOK {
		return nil, w.Code
	}
	var out admissionv1.AdmissionReview
	if err := json.Unmarshal(w.Body.Bytes(), &out); err != nil {
		t.Fatal(err)
	}
	if out.Kind != "AdmissionReview" || out.Response.UID != req.UID {
		t.Fatalf("%s", w.Body)
	}
	return out.Response, w.Code
}

func drain(a *app) {
	for {
		select {
		case e := <-a.events.queue:
			a.events.write(context.Background(), e)
		default:
			return
		}
	}
}

func count(a *app, result, reason string) float64 {
	return testutil.ToFloat64(a.metrics.reviews.WithLabelValues(result, reason))
}

func TestAPodIsInjected(t *testing.T) {
	a, api := newTestApp(t)
	yes := true
	p := pod(func(p *corev1.Pod) {
		p.OwnerReferences = []metav1.OwnerReference{{APIVersion: "apps/v1", Kind: "ReplicaSet", Name: "app-1", UID: "rs", Controller: &yes}}
		p.Spec.Containers[0].Env = []corev1.EnvVar{{Name: "OPENAI_BASE_URL", Value: "https://gateway.example/v1"}}
	})
	for range 3 { // three replicas of one Deployment are one piece of news
		got, _ := post(t, a.review, request(p, "shop"))
		if !got.Allowed || got.PatchType == nil || *got.PatchType != admissionv1.PatchTypeJSONPatch || !bytes.Contains(got.Patch, []byte("POSTERN_CONFIG")) {
			t.Fatalf("%+v", got)
		}
		if len(got.Warnings) != 1 || !strings.Contains(got.Warnings[0], "OPENAI_BASE_URL") {
			t.Errorf("warnings: %q", got.Warnings)
		}
	}
	drain(a)
	told := api.told()
	if len(told) != 1 || told[0].Reason != webhook.BaseURLBypasses || told[0].InvolvedObject.Kind != "ReplicaSet" || told[0].Namespace != "shop" {
		t.Errorf("events: %+v", told)
	}
	if count(a, "injected", "") != 3 || testutil.ToFloat64(a.metrics.findings.WithLabelValues(webhook.BaseURLBypasses)) != 3 {
		t.Error("not counted")
	}
}

func TestSkipsAndRefusalsSayWhy(t *testing.T) {
	for name, c := range map[string]struct {
		namespace, result, reason, event string
		change                           func(*corev1.Pod)
	}{
		"opted out":     {"shop", "skipped", webhook.OptedOut, "", func(p *corev1.Pod) { p.Labels[webhook.LabelInject] = "false" }},
		"not selected":  {"plain", "skipped", webhook.NotSelected, "", nil},
		"host network":  {"shop", "skipped", webhook.HostNetwork, webhook.HostNetwork, func(p *corev1.Pod) { p.Spec.HostNetwork = true }},
		"by hand":       {"shop", "skipped", webhook.HasSidecar, webhook.HasSidecar, func(p *corev1.Pod) { p.Spec.Containers[0].Name = "postern" }},
		"mistake":       {"shop", "refused", webhook.BadAnnotation, webhook.BadAnnotation, func(p *corev1.Pod) { p.Annotations["postern.dev/mode"] = "x" }},
		"asked for":     {"plain", "refused", webhook.HostNetwork, webhook.HostNetwork, func(p *corev1.Pod) { p.Labels[webhook.LabelInject] = "true"; p.Spec.HostNetwork = true }},
		"port conflict": {"shop", "refused", webhook.Conflict, webhook.Conflict, func(p *corev1.Pod) { p.Spec.Containers[0].Ports = []corev1.ContainerPort{{ContainerPort: 8701}} }},
	} {
		a, api := newTestApp(t)
		got, _ := post(t, a.review, request(pod(c.change), c.namespace))
		if got.Allowed != (c.result == "skipped") || len(got.Patch) > 0 {
			t.Errorf("%s: %+v", name, got)
		}
		if !got.Allowed && !strings.HasPrefix(got.Result.Message, "postern: ") {
			t.Errorf("%s: %q", name, got.Result.Message)
		}
		if count(a, c.result, c.reason) != 1 {
			t.Errorf("%s is not counted", name)
		}
		drain(a)
		if told := api.told(); (c.event == "") != (len(told) == 0) || c.event != "" && told[0].Reason != c.event {
			t.Errorf("%s: events %+v", name, told)
		}
	}
}

func TestOldKubernetesIsRefused(t *testing.T) {
	a, _ := newTestApp(t)
	old := "v1.28.4"
	a.review.version.Store(&old)
	if got, _ := post(t, a.review, request(pod(nil), "shop")); got.Allowed || !strings.Contains(got.Result.Message, "1.29") {
		t.Errorf("%+v", got)
	}
}

// What cannot be decided is no answer: the failurePolicy decides then.
func TestUndecided(t *testing.T) {
	a, api := newTestApp(t)
	if _, code := post(t, a.review, request(pod(nil), "gone")); code != http.StatusServiceUnavailable {
		t.Errorf("an unknown namespace: %d", code)
	}
	api.mu.Lock()
	api.down = true
	api.mu.Unlock()
	if _, code := post(t, a.review, request(pod(nil), "shop")); code != http.StatusServiceUnavailable {
		t.Errorf("without the API: %d", code)
	}
	labelled := pod(func(p *corev1.Pod) { p.Labels[webhook.LabelInject] = "true" })
	if got, _ := post(t, a.review, request(labelled, "shop")); got == nil || len(got.Patch) == 0 {
		t.Error("a pod with its own label needs no API")
	}
	bad := request(pod(nil), "shop")
	bad.Object.Raw = []byte(`{"spec": 1}`)
	if _, code := post(t, a.review, bad); code != http.StatusBadRequest {
		t.Errorf("no pod: %d", code)
	}
	w := httptest.NewRecorder()
	a.review.ServeHTTP(w, httptest.NewRequest(http.MethodPost, "/inject", strings.NewReader("{}")))
	if w.Code != http.StatusBadRequest {
		t.Errorf("no review: %d", w.Code)
	}
	a.review.version.Store(nil)
	if _, code := post(t, a.review, request(labelled, "shop")); code != http.StatusServiceUnavailable {
		t.Errorf("without a version: %d", code)
	}
	if a.notReady() == "" {
		t.Error("ready without a version")
	}
}

// A namespace that was labelled a moment ago counts from then on.
func TestALabelCountsAtOnce(t *testing.T) {
	a, api := newTestApp(t)
	if got, _ := post(t, a.review, request(pod(nil), "plain")); len(got.Patch) > 0 {
		t.Fatal("injected too early")
	}
	api.mu.Lock()
	api.namespaces["plain"] = map[string]string{webhook.LabelInject: "true"}
	api.mu.Unlock()
	for range 5 {
		if got, _ := post(t, a.review, request(pod(nil), "plain")); len(got.Patch) == 0 {
			t.Fatal("not injected")
		}
	}
	asked := 0
	for _, p := range api.asked {
		if p == "GET /api/v1/namespaces/plain" {
			asked++
		}
	}
	if asked != 2 {
		t.Errorf("asked %d times", asked)
	}
}

func TestManyAtOnce(t *testing.T) {
	a, api := newTestApp(t)
	var all sync.WaitGroup
	for n := range 8 {
		all.Go(func() {
			for i := range 10 {
				p := pod(func(p *corev1.Pod) {
					p.GenerateName = fmt.Sprint("app-", n, "-", i, "-")
					p.Spec.HostNetwork = i%5 == 0
				})
				if got, _ := post(t, a.review, request(p, []string{"shop", "plain"}[i%2])); got == nil || !got.Allowed {
					t.Errorf("%+v", got)
				}
				if i == 5 {
					drain(a)
				}
			}
		})
	}
	all.Wait()
	drain(a)
	if n := len(api.told()); n != 8*2-8 { // of the two with hostNetwork one is in a labelled namespace
		t.Errorf("%d Events", n)
	}
	if got := count(a, "injected", ""); got != 8*4 {
		t.Errorf("%v injected", got)
	}
}

func TestOtherRequestsPass(t *testing.T) {
	a, _ := newTestApp(t)
	for _, change := range []func(*admissionv1.AdmissionRequest){
		func(r *admissionv1.AdmissionRequest) { r.SubResource = "ephemeralcontainers" },
		func(r *admissionv1.AdmissionRequest) { r.Operation = admissionv1.Update },
		func(r *admissionv1.AdmissionRequest) { r.Resource.Resource = "services" },
	} {
		r := request(pod(nil), "shop")
		change(r)
		if got, _ := post(t, a.review, r); !got.Allowed || len(got.Patch) > 0 {
			t.Errorf("%+v", got)
		}
	}
}

func TestADryRunLeavesNoTrace(t *testing.T) {
	a, api := newTestApp(t)
	r := request(pod(func(p *corev1.Pod) { p.Annotations["postern.dev/mode"] = "x" }), "shop")
	yes := true
	r.DryRun = &yes
	post(t, a.review, r)
	drain(a)
	if len(api.told()) > 0 {
		t.Error("an Event of a dry run")
	}
}

// The golden pods give the same answer through the server.
func TestGoldenPodsThroughTheServer(t *testing.T) {
	files, _ := filepath.Glob("../../agent/webhook/testdata/*/input.yaml")
	if len(files) < 40 {
		t.Fatal("no golden pods")
	}
	for _, f := range files {
		a, _ := newTestApp(t)
		text, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		raw, err := yaml.YAMLToJSON(text)
		if err != nil {
			t.Fatal(err)
		}
		r := request(pod(nil), "shop")
		r.Object.Raw = raw
		got, code := post(t, a.review, r)
		if code != http.StatusOK {
			t.Errorf("%s: %d", f, code)
			continue
		}
		for _, w := range got.Warnings {
			if len(w) > 256 {
				t.Errorf("%s: a warning of %d bytes", f, len(w))
			}
		}
	}
}

func TestWatchdogReportsEachOnce(t *testing.T) {
	a, api := newTestApp(t)
	ours := func(namespace, name string, change func(*corev1.Pod)) {
		p := pod(change)
		p.Namespace, p.Name, p.UID = namespace, name, types.UID(name)
		api.pods = append(api.pods, *p)
	}
	yes := func(p *corev1.Pod) { p.Labels[webhook.LabelInject] = "true" }
	ours("plain", "labelled", yes)
	ours("plain", "not", nil)
	ours("shop", "by-namespace", nil)
	ours("shop", "second", nil)
	ours("shop", "out", func(p *corev1.Pod) { p.Labels[webhook.LabelInject] = "false" })
	ours("shop", "done", func(p *corev1.Pod) { p.Labels[webhook.LabelInjected] = "true" })
	ours("shop", "host", func(p *corev1.Pod) { p.Spec.HostNetwork = true })
	ours("shop", "hand", func(p *corev1.Pod) { p.Spec.Containers[0].Name = "postern" })
	ours("shop", "leaving", func(p *corev1.Pod) { p.DeletionTimestamp = &metav1.Time{Time: time.Now()} })
	ours("shop", "wrong", func(p *corev1.Pod) { p.Annotations["postern.dev/mode"] = "x" })
	for range 2 {
		if err := a.look(context.Background()); err != nil {
			t.Fatal(err)
		}
	}
	drain(a)
	names := map[string]int{}
	for _, e := range api.told() {
		names[e.InvolvedObject.Name]++
		if e.Reason != notInjected || e.InvolvedObject.Kind != "Pod" {
			t.Errorf("%+v", e)
		}
	}
	if fmt.Sprint(names) != "map[by-namespace:1 labelled:1 second:1 wrong:1]" {
		t.Error(names)
	}
	if got := testutil.ToFloat64(a.metrics.missed.WithLabelValues("shop")); got != 3 {
		t.Errorf("%v missed in shop", got)
	}
	api.pods = nil
	if err := a.look(context.Background()); err != nil || testutil.CollectAndCount(a.metrics.missed) != 0 {
		t.Error("what is gone is still counted")
	}
}

func TestCut(t *testing.T) {
	for _, c := range []struct {
		in   string
		n    int
		want string
	}{{"short", 10, "short"}, {"0123456789", 8, "01234…"}, {"0äääääää", 8, "0ää…"}} {
		if got := cut(c.in, c.n); got != c.want || len(got) > c.n {
			t.Errorf("%q: %q", c.in, got)
		}
	}
}

func TestFlags(t *testing.T) {
	for _, args := range [][]string{{"-x"}, {"more"}, {"-drain", "-1s"}, {"-log-level", "loud"}} {
		if _, err := parse(args, new(bytes.Buffer)); err == nil {
			t.Errorf("%v is taken", args)
		}
	}
	for want, args := range map[string][]string{"postern-injector": nil, "a-0 a-1": {"-services", "a-0,a-1"}} {
		if o, err := parse(args, new(bytes.Buffer)); err != nil || !slices.Equal(o.services, strings.Fields(want)) {
			t.Errorf("%v: %+v, %v", args, o, err)
		}
	}
}

// The whole program: it becomes ready, answers over TLS that its own bundle
// verifies, and goes on answering for a while after it was told to stop.
func TestServe(t *testing.T) {
	a, api := newTestApp(t)
	a.review.version.Store(nil)
	a.o.drain = 300 * time.Millisecond
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	admin, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	ended := make(chan error, 1)
	go func() { ended <- a.serve(ctx, listener, admin) }()
	ask := func(path string) (int, string) {
		resp, err := http.Get("http://" + admin.Addr().String() + path)
		if err != nil {
			return 0, err.Error()
		}
		defer resp.Body.Close()
		var b bytes.Buffer
		b.ReadFrom(resp.Body)
		return resp.StatusCode, b.String()
	}
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		code, why := ask("/readyz")
		if code == http.StatusOK {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("not ready: %s", why)
		}
	}
	api.mu.Lock()
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(api.bundles["pods-0.postern.dev"])
	api.mu.Unlock()
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, ServerName: "postern-injector-0.postern.svc"}, DisableKeepAlives: true}}
	body, _ := json.Marshal(admissionv1.AdmissionReview{TypeMeta: metav1.TypeMeta{APIVersion: "admission.k8s.io/v1", Kind: "AdmissionReview"}, Request: request(pod(nil), "shop")})
	inject := func() error {
		resp, err := client.Post("https://"+listener.Addr().String()+"/inject", asJSON, bytes.NewReader(body))
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			return fmt.Errorf("%s", resp.Status)
		}
		return nil
	}
	if err := inject(); err != nil {
		t.Fatal(err)
	}
	if code, text := ask("/metrics"); code != http.StatusOK || !strings.Contains(text, `postern_injector_reviews_total{reason="",result="injected"} 1`) {
		t.Errorf("metrics: %d", code)
	}
	if code, _ := ask("/livez"); code != http.StatusOK {
		t.Errorf("livez: %d", code)
	}
	stop()
	for deadline := time.Now().Add(5 * time.Second); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		if code, _ := ask("/readyz"); code != http.StatusOK {
			break
		}
	}
	if err := inject(); err != nil {
		t.Errorf("while it drains: %v", err)
	}
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if err := inject(); err == nil {
		t.Error("it goes on after its end")
	}
}

func TestCertificatesFromFiles(t *testing.T) {
	dir := t.TempDir()
	ca, _ := makeCA(time.Now())
	write := func(p *pair) {
		d, err := pki{ca: ca, leaf: p}.data()
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range []string{keyLeaf, keyLeafKey} {
			if err := os.WriteFile(filepath.Join(dir, f), d[f], 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	o := testOptions
	o.certDir = dir
	c := newCerts(o, nil, quiet(), newMetrics())
	if err := c.tick(context.Background()); err == nil {
		t.Error("no error without files")
	}
	one, _ := makeLeaf(time.Now(), ca, c.names)
	two, _ := makeLeaf(time.Now(), ca, c.names)
	for _, p := range []*pair{one, two} {
		write(p)
		if err := c.tick(context.Background()); err != nil || c.notReady(time.Now()) != "" {
			t.Fatalf("%v, %s", err, c.notReady(time.Now()))
		}
		if !bytes.Equal(c.serving.Load().Certificate[0], p.cert.Raw) {
			t.Error("another certificate is served")
		}
	}
	if err := os.WriteFile(filepath.Join(dir, keyLeaf), []byte("half"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := c.tick(context.Background()); err == nil || c.notReady(time.Now()) != "" {
		t.Error("half a pair must be an error and change nothing")
	}
}
