package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

const accountDir = "/var/run/secrets/kubernetes.io/serviceaccount"

// fieldManager is who the API server says wrote a field.
const fieldManager = "postern-injector"

// kube speaks to the API server as the pod's ServiceAccount. Safe for concurrent use.
type kube struct {
	base  string // https://host:port
	http  *http.Client
	token func() (string, error) // asked for each request: tokens are replaced on disk
}

// inCluster is the way every pod is given.
func inCluster(env func(string) string) (*kube, error) {
	host, port := env("KUBERNETES_SERVICE_HOST"), env("KUBERNETES_SERVICE_PORT")
	if host == "" || port == "" {
		return nil, errors.New("KUBERNETES_SERVICE_HOST and KUBERNETES_SERVICE_PORT are not set: this program runs in a pod")
	}
	ca, err := os.ReadFile(accountDir + "/ca.crt")
	if err != nil {
		return nil, fmt.Errorf("the ServiceAccount's CA: %w", err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(ca) {
		return nil, fmt.Errorf("%s/ca.crt holds no certificate", accountDir)
	}
	return &kube{
		base: "https://" + net.JoinHostPort(host, port),
		http: &http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{
			TLSClientConfig: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}, ForceAttemptHTTP2: true, IdleConnTimeout: time.Minute,
		}},
		token: func() (string, error) {
			text, err := os.ReadFile(accountDir + "/token")
			return strings.TrimSpace(string(text)), err
		},
	}, nil
}

func ownNamespace() (string, error) {
	text, err := os.ReadFile(accountDir + "/namespace")
	if err != nil {
		return "", fmt.Errorf("the ServiceAccount's namespace (or name it with -namespace): %w", err)
	}
	return strings.TrimSpace(string(text)), nil
}

// apiError is the API server's no.
type apiError struct {
	code   int
	reason string // as NotFound, Conflict, Forbidden
	text   string
}

func (e *apiError) Error() string {
	return fmt.Sprintf("the API server answered %d: %s", e.code, e.text)
}

// answered reports whether the API server said no with one of these.
func answered(err error, codes ...int) bool {
	e, ok := errors.AsType[*apiError](err)
	if !ok {
		return false
	}
	for _, c := range codes {
		if e.code == c {
			return true
		}
	}
	return false
}

const (
	asJSON  = "application/json"
	asMerge = "application/strategic-merge-patch+json"
	maxBody = 32 << 20
)

// do sends one request. body and out may be nil. The error is an *apiError where there was an answer.
func (k *kube) do(ctx context.Context, method, path, contentType string, body, out any) error {
	var send io.Reader
	if body != nil {
		text, err := json.Marshal(body)
		if err != nil {
			return err
		}
		send = bytes.NewReader(text)
	}
	req, err := http.NewRequestWithContext(ctx, method, k.base+path, send)
	if err != nil {
		return err
	}
	token, err := k.token()
	if err != nil {
		return fmt.Errorf("the ServiceAccount's token: %w", err)
	}
	req.Header.Set("Authorization", "Bearer "+token)
	req.Header.Set("Accept", asJSON)
	req.Header.Set("User-Agent", fieldManager)
	if body != nil {
		req.Header.Set("Content-Type", contentType)
	}
	resp, err := k.http.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, maxBody))
	if err != nil {
		return err
	}
	if resp.StatusCode >= 300 {
		e := &apiError{code: resp.StatusCode, text: resp.Status}
		var st metav1.Status
		if json.Unmarshal(text, &st) == nil && st.Message != "" {
			e.reason, e.text = string(st.Reason), st.Message
		}
		return e
	}
	if out == nil {
		return nil
	}
	return json.Unmarshal(text, out)
}

func (k *kube) get(ctx context.Context, path string, out any) error {
	return k.do(ctx, http.MethodGet, path, "", nil, out)
}

// every calls f at once and then after each interval until ctx ends.
func every(ctx context.Context, interval time.Duration, f func(context.Context)) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
			f(ctx)
			timer.Reset(interval)
		}
	}
}
