//go:build linux

package cluster

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"
)

// kubeconfig is one user's, whole in one file.
func (c *Cluster) kubeconfig(user pair) []byte {
	encode := base64.StdEncoding.EncodeToString
	config, err := json.MarshalIndent(map[string]any{
		"apiVersion": "v1", "kind": "Config", "current-context": "test",
		"contexts": []any{map[string]any{"name": "test", "context": map[string]any{"cluster": "test", "user": "test"}}},
		"clusters": []any{map[string]any{"name": "test", "cluster": map[string]any{"server": "https://" + c.api, "certificate-authority-data": encode(c.CA.PEM)}}},
		"users":    []any{map[string]any{"name": "test", "user": map[string]any{"client-certificate-data": encode(user.cert), "client-key-data": encode(user.key)}}},
	}, "", "  ")
	if err != nil {
		panic(err) // strings only
	}
	return config
}

// Client is an HTTP client in the cluster's network that trusts its CA and, to
// the API server, is the administrator.
func (c *Cluster) Client() (*http.Client, error) {
	admin, err := tls.X509KeyPair(c.users["admin"].cert, c.users["admin"].key)
	if err != nil {
		return nil, err
	}
	return &http.Client{Timeout: 30 * time.Second, Transport: &http.Transport{
		DialContext:     c.Dial,
		TLSClientConfig: &tls.Config{RootCAs: c.CA.Pool(), Certificates: []tls.Certificate{admin}},
	}}, nil
}

// get asks the API server.
func (c *Cluster) get(ctx context.Context, path string) ([]byte, error) {
	client, err := c.Client()
	if err != nil {
		return nil, err
	}
	defer client.CloseIdleConnections()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+c.api+path, nil)
	if err != nil {
		return nil, err
	}
	resp, err := client.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: HTTP %d", path, resp.StatusCode)
	}
	return body, err
}

func (c *Cluster) found(path string) func(context.Context) error {
	return func(ctx context.Context) error {
		_, err := c.get(ctx, path)
		return err
	}
}

func (c *Cluster) nodeReady(ctx context.Context) error {
	body, err := c.get(ctx, "/api/v1/nodes/"+nodeName)
	if err != nil {
		return err
	}
	var node struct {
		Status struct {
			Conditions []struct{ Type, Status, Message string }
		}
	}
	if err := json.Unmarshal(body, &node); err != nil {
		return err
	}
	for _, condition := range node.Status.Conditions {
		if condition.Type == "Ready" {
			if condition.Status == "True" {
				return nil
			}
			return errors.New(condition.Message)
		}
	}
	return errors.New("no condition yet")
}

// await waits for something that the cluster does by itself.
func (c *Cluster) await(ctx context.Context, what string, holds func(context.Context) error) error {
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		err := holds(ctx)
		if err == nil {
			return nil
		}
		if ended := c.procs.ended(); ended != nil {
			return ended
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("waiting for %s: %w: %w", what, ctx.Err(), err)
		}
	}
}

// Start is [Up] for a test: it prints what was brought up, and takes it down
// with the test. A machine that cannot run even a control plane fails it.
func Start(t testing.TB) *Cluster {
	t.Helper()
	c, err := Up(context.Background())
	if err != nil {
		t.Fatalf("no cluster: %v", err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the cluster's logs:\n%s", c.Logs())
		}
		if err := c.Down(); err != nil {
			t.Errorf("the cluster was not taken down: %v", err)
		}
	})
	fmt.Println(c)
	return c
}

// String says what runs, and how long it took.
func (c *Cluster) String() string {
	line := fmt.Sprintf("cluster: level %v, ready in %v", c.Level, c.UpIn.Round(10*time.Millisecond))
	if c.Why != "" {
		line += " (no more than that: " + c.Why + ")"
	}
	return line
}

// Kubectl runs kubectl; failing fails the test.
func (c *Cluster) Kubectl(t testing.TB, args ...string) string {
	t.Helper()
	out, err := c.TryKubectl(t.Context(), "", args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// Apply applies manifests.
func (c *Cluster) Apply(t testing.TB, manifests string) {
	t.Helper()
	if _, err := c.TryKubectl(t.Context(), manifests, "apply", "-f", "-"); err != nil {
		t.Fatal(err)
	}
}

// TryKubectl runs kubectl with some standard input and returns its standard output.
func (c *Cluster) TryKubectl(ctx context.Context, stdin string, args ...string) (string, error) {
	return c.try(ctx, stdin, "kubectl", args...)
}

// TryHelm runs helm and returns its standard output.
func (c *Cluster) TryHelm(ctx context.Context, args ...string) (string, error) {
	return c.try(ctx, "", "helm", args...)
}

func (c *Cluster) try(ctx context.Context, stdin, program string, args ...string) (string, error) {
	cmd := c.Command(ctx, program, args...)
	var out, said bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &out, &said
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("%s %s: %w\n%s", program, strings.Join(args, " "), err, said.String())
	}
	return out.String(), nil
}
