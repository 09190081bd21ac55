package main

import (
	"context"
	"errors"
	"net/url"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/postern-proxy/postern/agent/webhook"
)

// notInjected is the Event of a pod that was created while nobody answered.
const notInjected = "NotInjected"

// watchdog looks for pods that should have a sidecar and have none: the webhook
// fails open by default, so that its absence stops nobody's deployment.
func (a *app) watchdog(ctx context.Context) {
	if a.o.watch == 0 {
		return
	}
	select { // the rest must be up first
	case <-ctx.Done():
		return
	case <-time.After(min(a.o.watch, 3*time.Second)):
	}
	every(ctx, a.o.watch, func(ctx context.Context) {
		if err := a.look(ctx); err != nil && ctx.Err() == nil {
			a.log.Warn("watchdog", "error", err)
		}
	})
}

func (a *app) look(ctx context.Context) error {
	version := a.review.version.Load()
	if version == nil {
		return errors.New("the cluster's version is not known yet")
	}
	missed := map[string]int{}
	check := func(pod *corev1.Pod, labels map[string]string) {
		res, err := webhook.Inject(pod, webhook.Place{Namespace: pod.Namespace, NamespaceLabels: labels, Kubernetes: *version}, a.review.defaults)
		if err == nil && (len(res.Patch) == 0 || res.Again) {
			return // what it is, it is for a reason
		}
		missed[pod.Namespace]++
		text := "this pod was created while no injector answered, so it has no agent: delete it, and its owner makes a new one"
		if err != nil {
			text = "this pod was created while no injector answered, and it would have been refused: " + err.Error()
		}
		a.events.about(pod.Namespace, pod, notInjected, text)
	}
	const (
		none  = "!" + webhook.LabelInjected
		alive = "status.phase!=Succeeded,status.phase!=Failed"
	)
	err := a.pods(ctx, "/api/v1/pods", webhook.LabelInject+"=true,"+none, alive, func(p *corev1.Pod) { check(p, nil) })
	if err != nil {
		return err
	}
	var namespaces corev1.NamespaceList
	if err := a.kube.get(ctx, "/api/v1/namespaces?labelSelector="+url.QueryEscape(webhook.LabelInject+"=true"), &namespaces); err != nil {
		return err
	}
	for _, ns := range namespaces.Items {
		// Those with a label of their own were looked at above, or want none.
		err := a.pods(ctx, "/api/v1/namespaces/"+url.PathEscape(ns.Name)+"/pods", "!"+webhook.LabelInject+","+none, alive, func(p *corev1.Pod) { check(p, ns.Labels) })
		if err != nil {
			return err
		}
	}
	a.metrics.missed.Reset()
	for ns, n := range missed {
		a.metrics.missed.WithLabelValues(ns).Set(float64(n))
	}
	a.metrics.watchdog.SetToCurrentTime()
	if len(missed) > 0 {
		a.log.Warn("pods without their sidecar", "by namespace", missed)
	}
	return nil
}

// pods lists in pages.
func (a *app) pods(ctx context.Context, path, labels, fields string, each func(*corev1.Pod)) error {
	q := url.Values{"labelSelector": {labels}, "fieldSelector": {fields}, "limit": {"200"}}
	for {
		var list corev1.PodList
		if err := a.kube.get(ctx, path+"?"+q.Encode(), &list); err != nil {
			return err
		}
		for i := range list.Items {
			if list.Items[i].DeletionTimestamp == nil {
				each(&list.Items[i])
			}
		}
		if list.Continue == "" {
			return nil
		}
		q.Set("continue", list.Continue)
	}
}
