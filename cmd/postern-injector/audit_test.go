package main

import (
	"encoding/json"
	"testing"

	jsonpatch "gopkg.in/evanphx/json-patch.v4"
	corev1 "k8s.io/api/core/v1"
)

// The API server asks twice about a pod that another webhook has changed, and
// keeps one audit annotation of each name.
func TestAuditAnnotationsAreWrittenOnce(t *testing.T) {
	a, _ := newTestApp(t)
	p := pod(nil)
	first, _ := post(t, a.review, request(p, "shop"))
	if got := first.AuditAnnotations["result"]; got != "injected" {
		t.Errorf("audited as %q", got)
	}
	patch, err := jsonpatch.DecodePatch(first.Patch)
	if err != nil {
		t.Fatal(err)
	}
	raw, _ := json.Marshal(p)
	if raw, err = patch.Apply(raw); err != nil {
		t.Fatal(err)
	}
	var injected corev1.Pod
	if err := json.Unmarshal(raw, &injected); err != nil {
		t.Fatal(err)
	}
	second, _ := post(t, a.review, request(&injected, "shop"))
	if !second.Allowed || len(second.Patch) > 0 || len(second.AuditAnnotations) > 0 {
		t.Errorf("a second time: %+v", second)
	}
}
