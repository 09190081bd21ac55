package main

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"runtime/debug"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	admissionv1 "k8s.io/api/admission/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/postern-proxy/postern/agent/webhook"
)

const (
	maxReview = 16 << 20
	// maxWarning and maxWarnings are what the API server passes on to whoever applied the pod.
	maxWarning, maxWarnings = 250, 12
	// namespaceTTL is how long a namespace's labels are believed.
	namespaceTTL = 5 * time.Second
)

// reviewer answers admission reviews. Safe for concurrent use.
type reviewer struct {
	defaults *webhook.Defaults
	kube     *kube
	log      *slog.Logger
	metrics  *metrics
	events   *events
	now      func() time.Time
	version  atomic.Pointer[string] // of the cluster; nil until it is known

	mu         sync.Mutex
	namespaces map[string]cached
}

type cached struct {
	labels map[string]string
	until  time.Time
}

func (r *reviewer) server(c *certs) *http.Server {
	mux := http.NewServeMux()
	mux.Handle("POST /inject", r)
	return &http.Server{
		Handler: mux, ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 15 * time.Second, WriteTimeout: 15 * time.Second, IdleTimeout: 3 * time.Minute,
		TLSConfig: &tls.Config{MinVersion: tls.VersionTLS12, GetCertificate: c.certificate},
		ErrorLog:  slog.NewLogLogger(r.log.Handler(), slog.LevelDebug),
	}
}

func (r *reviewer) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	began := r.now()
	defer func() { r.metrics.seconds.Observe(r.now().Sub(began).Seconds()) }()
	body, err := io.ReadAll(http.MaxBytesReader(w, req.Body, maxReview))
	var review admissionv1.AdmissionReview
	if err == nil {
		err = json.Unmarshal(body, &review)
	}
	if err != nil || review.Request == nil || review.APIVersion != admissionv1.SchemeGroupVersion.String() {
		r.failed(w, http.StatusBadRequest, "BadReview", "this is no AdmissionReview of admission.k8s.io/v1")
		return
	}
	answer, status, reason, err := r.answer(req.Context(), review.Request)
	if err != nil {
		r.log.Error("review failed", "namespace", review.Request.Namespace, "reason", reason, "error", err)
		r.failed(w, status, reason, err.Error())
		return
	}
	answer.UID = review.Request.UID
	w.Header().Set("Content-Type", asJSON)
	json.NewEncoder(w).Encode(admissionv1.AdmissionReview{TypeMeta: review.TypeMeta, Response: answer})
}

// failed is an answer that the API server treats as its failurePolicy says.
func (r *reviewer) failed(w http.ResponseWriter, status int, reason, text string) {
	r.metrics.reviews.WithLabelValues("failed", reason).Inc()
	http.Error(w, text, status)
}

// answer decides about one object. An error means that nothing could be decided.
func (r *reviewer) answer(ctx context.Context, req *admissionv1.AdmissionRequest) (a *admissionv1.AdmissionResponse, status int, reason string, err error) {
	defer func() {
		if p := recover(); p != nil {
			r.log.Error("panic", "at", string(debug.Stack()))
			a, status, reason, err = nil, http.StatusInternalServerError, "Panic", errors.New("the injector has a fault: see its log")
		}
	}()
	if req.Operation != admissionv1.Create || req.SubResource != "" || req.Resource.Resource != "pods" || req.Resource.Group != "" {
		r.metrics.reviews.WithLabelValues("skipped", "NotAPodsCreation").Inc()
		return &admissionv1.AdmissionResponse{Allowed: true}, 0, "", nil
	}
	var pod corev1.Pod
	if err := json.Unmarshal(req.Object.Raw, &pod); err != nil {
		return nil, http.StatusBadRequest, "BadPod", errors.New("the review's object is no pod")
	}
	at := webhook.Place{Namespace: req.Namespace}
	if v := r.version.Load(); v != nil {
		at.Kubernetes = *v
	} else {
		return nil, http.StatusServiceUnavailable, "NoVersion", errors.New("the cluster's version is not known yet")
	}
	if _, own := pod.Labels[webhook.LabelInject]; !own {
		if at.NamespaceLabels, err = r.labels(ctx, req.Namespace); err != nil {
			return nil, http.StatusServiceUnavailable, "NoNamespace", fmt.Errorf("namespace %s: %w", req.Namespace, err)
		}
	}
	res, err := webhook.Inject(&pod, at, r.defaults)
	if refusal, refused := errors.AsType[*webhook.Refusal](err); refused {
		return r.refuse(req, &pod, refusal), 0, "", nil
	} else if err != nil {
		return nil, http.StatusInternalServerError, "Undecided", err
	}
	return r.allow(req, &pod, res)
}

func (r *reviewer) refuse(req *admissionv1.AdmissionRequest, pod *corev1.Pod, refusal *webhook.Refusal) *admissionv1.AdmissionResponse {
	r.metrics.reviews.WithLabelValues("refused", refusal.Reason).Inc()
	r.log.Info("refused", "namespace", req.Namespace, "pod", podName(pod), "reason", refusal.Reason, "text", refusal.Error())
	if !dryRun(req) {
		r.events.about(req.Namespace, pod, refusal.Reason, refusal.Error())
	}
	return &admissionv1.AdmissionResponse{
		Result:           &metav1.Status{Status: metav1.StatusFailure, Code: http.StatusUnprocessableEntity, Reason: metav1.StatusReasonInvalid, Message: refusal.Error()},
		AuditAnnotations: map[string]string{"result": "refused " + refusal.Reason},
	}
}

func (r *reviewer) allow(req *admissionv1.AdmissionRequest, pod *corev1.Pod, res webhook.Result) (*admissionv1.AdmissionResponse, int, string, error) {
	a := &admissionv1.AdmissionResponse{Allowed: true}
	result, findings := "injected", res.Findings
	switch {
	case res.Skipped != (webhook.Finding{}):
		result = "skipped"
		if res.Skipped.Reason != webhook.OptedOut && res.Skipped.Reason != webhook.NotSelected && res.Skipped.Reason != webhook.AlreadyInjected {
			findings = append(findings, res.Skipped) // somebody wanted it otherwise
		}
	case res.Again:
		result = "again"
	}
	r.metrics.reviews.WithLabelValues(result, res.Skipped.Reason).Inc()
	r.log.Debug(result, "namespace", req.Namespace, "pod", podName(pod), "reason", res.Skipped.Reason)
	if !res.Again && res.Skipped.Reason != webhook.AlreadyInjected { // asked again about one pod, the API server would refuse, and log, a second text
		a.AuditAnnotations = map[string]string{"result": strings.TrimSpace(result + " " + res.Skipped.Reason)}
	}
	if len(res.Patch) > 0 {
		text, err := json.Marshal(res.Patch)
		if err != nil {
			return nil, http.StatusInternalServerError, "BadPatch", err
		}
		kind := admissionv1.PatchTypeJSONPatch
		a.Patch, a.PatchType = text, &kind
	}
	for _, f := range findings {
		if f != res.Skipped {
			r.metrics.findings.WithLabelValues(f.Reason).Inc()
		}
		if f.Reason != webhook.NoBaseURL && !dryRun(req) { // that one is advice to whoever applies the pod
			r.events.about(req.Namespace, pod, f.Reason, f.Text)
		}
		if len(a.Warnings) < maxWarnings {
			a.Warnings = append(a.Warnings, cut("postern: "+f.Text, maxWarning))
		}
	}
	return a, 0, "", nil
}

func dryRun(req *admissionv1.AdmissionRequest) bool { return req.DryRun != nil && *req.DryRun }

func podName(pod *corev1.Pod) string {
	if pod.Name != "" {
		return pod.Name
	}
	return pod.GenerateName
}

// cut shortens a text to at most n bytes, not within a character.
func cut(s string, n int) string {
	if len(s) <= n {
		return s
	}
	n -= len("…")
	for n > 0 && s[n]&0xc0 == 0x80 {
		n--
	}
	return s[:n] + "…"
}

// labels are a namespace's. Those that select may be a few seconds old; those
// that do not are asked for anew, because it may just have been labelled.
func (r *reviewer) labels(ctx context.Context, namespace string) (map[string]string, error) {
	now := r.now()
	r.mu.Lock()
	have, ok := r.namespaces[namespace]
	r.mu.Unlock()
	if ok && now.Before(have.until) && have.labels[webhook.LabelInject] == "true" {
		return have.labels, nil
	}
	var ns corev1.Namespace
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	if err := r.kube.get(ctx, "/api/v1/namespaces/"+url.PathEscape(namespace), &ns); err != nil {
		return nil, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.namespaces == nil || len(r.namespaces) > 1000 {
		r.namespaces = map[string]cached{}
	}
	r.namespaces[namespace] = cached{ns.Labels, now.Add(namespaceTTL)}
	return ns.Labels, nil
}

// keepVersion asks for the cluster's version until ctx ends: clusters are upgraded.
func (r *reviewer) keepVersion(ctx context.Context) {
	wait := time.Second
	for ctx.Err() == nil {
		var v struct {
			GitVersion string `json:"gitVersion"`
		}
		if err := r.kube.get(ctx, "/version", &v); err == nil && v.GitVersion != "" {
			r.version.Store(&v.GitVersion)
			wait = 5 * time.Minute
		} else if ctx.Err() == nil {
			r.log.Warn("the cluster's version is not to be had", "error", err)
			wait = min(2*wait, 30*time.Second)
		}
		select {
		case <-ctx.Done():
		case <-time.After(wait):
		}
	}
}
