package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"log/slog"
	"net/http"
	"net/url"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/postern-proxy/postern/agent/webhook"
)

const (
	maxEventText = 1000
	// eventAgain is how long the same news of the same object is not told again.
	eventAgain = 10 * time.Minute
)

// events writes Events, without ever holding up a review.
type events struct {
	kube    *kube
	log     *slog.Logger
	metrics *metrics
	queue   chan corev1.Event
	now     func() time.Time

	mu   sync.Mutex
	told map[string]time.Time // by name
}

func newEvents(k *kube, log *slog.Logger, m *metrics) *events {
	return &events{kube: k, log: log, metrics: m, queue: make(chan corev1.Event, 256), now: time.Now, told: map[string]time.Time{}}
}

// about queues an Event on a pod or, as that does not exist yet, on what makes it.
func (e *events) about(namespace string, pod *corev1.Pod, reason, text string) {
	on := corev1.ObjectReference{APIVersion: "v1", Kind: "Pod", Namespace: namespace, Name: podName(pod), UID: pod.UID}
	if owner := metav1.GetControllerOf(pod); owner != nil && pod.UID == "" {
		on = corev1.ObjectReference{APIVersion: owner.APIVersion, Kind: owner.Kind, Namespace: namespace, Name: owner.Name, UID: owner.UID}
	}
	text = cut(text, maxEventText)
	// The name is that of the news: two replicas tell it once.
	sum := sha256.Sum256([]byte(on.Kind + "\x00" + on.Name + "\x00" + string(on.UID) + "\x00" + reason + "\x00" + text))
	now := e.now()
	name := "postern-" + hex.EncodeToString(sum[:8])
	key := namespace + "/" + name
	e.mu.Lock()
	last, known := e.told[key]
	if known && now.Sub(last) < eventAgain {
		e.mu.Unlock()
		return
	}
	if len(e.told) > 5000 {
		clear(e.told)
	}
	e.told[key] = now
	e.mu.Unlock()
	kind := corev1.EventTypeWarning
	if reason == webhook.MirrorPod || reason == webhook.HasSidecar || reason == webhook.HostNetwork || reason == webhook.Windows {
		kind = corev1.EventTypeNormal
	}
	select {
	case e.queue <- corev1.Event{
		TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Event"}, ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: namespace},
		InvolvedObject: on, Reason: reason, Message: text, Type: kind, Count: 1,
		FirstTimestamp: metav1.NewTime(now), LastTimestamp: metav1.NewTime(now), Source: corev1.EventSource{Component: fieldManager}, ReportingController: fieldManager,
	}:
	default:
		e.metrics.dropped.Inc()
	}
}

func (e *events) run(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case ev := <-e.queue:
			e.write(ctx, ev)
		}
	}
}

func (e *events) write(ctx context.Context, ev corev1.Event) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	path := "/api/v1/namespaces/" + url.PathEscape(ev.Namespace) + "/events"
	err := e.kube.do(ctx, http.MethodPost, path, asJSON, ev, nil)
	if answered(err, http.StatusConflict) { // told before, here or by another replica: the time is the news
		err = e.kube.do(ctx, http.MethodPatch, path+"/"+ev.Name, "application/merge-patch+json", map[string]any{"lastTimestamp": ev.LastTimestamp}, nil)
	}
	if err != nil && ctx.Err() == nil {
		e.metrics.dropped.Inc()
		e.log.Warn("an Event could not be written", "reason", ev.Reason, "namespace", ev.Namespace, "error", err)
	}
}
