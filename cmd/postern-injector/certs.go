package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// certs keeps what is served fresh. Either somebody else writes files, and they
// are re-read when they change, or the injector's own certificates are kept in a
// Secret, which every replica follows: whichever sees first that something is due
// writes it, the Secret's resource version settles a race, and nobody elects.
type certs struct {
	o       options
	kube    *kube
	log     *slog.Logger
	metrics *metrics
	now     func() time.Time
	names   []string

	serving   atomic.Pointer[tls.Certificate]
	published atomic.Bool       // the API server's bundle was seen to hold our CA
	ca        *x509.Certificate // of what is served, if it is our own
	filePEM   []byte            // what was last read from files
}

// interval is how soon a replica sees what another wrote.
const interval = 5 * time.Second

func newCerts(o options, k *kube, log *slog.Logger, m *metrics) *certs {
	c := &certs{o: o, kube: k, log: log, metrics: m, now: time.Now}
	for _, service := range o.services {
		c.names = append(c.names, service+"."+o.namespace+".svc") // what the API server asks for
	}
	return c
}

// certificate is what is served at the moment.
func (c *certs) certificate(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	if cert := c.serving.Load(); cert != nil {
		return cert, nil
	}
	return nil, errors.New("there is no certificate yet")
}

func (c *certs) notReady(now time.Time) string {
	cert := c.serving.Load()
	switch {
	case cert == nil:
		return "there is no certificate yet"
	case now.After(cert.Leaf.NotAfter):
		return "the certificate has expired"
	case c.o.certDir == "" && !c.published.Load():
		return "the webhook's caBundle does not hold the certificate's CA yet"
	}
	return ""
}

func (c *certs) run(ctx context.Context) {
	every(ctx, interval, func(ctx context.Context) {
		ctx, cancel := context.WithTimeout(ctx, 15*time.Second)
		defer cancel()
		if err := c.tick(ctx); err != nil && ctx.Err() == nil {
			c.metrics.certFails.Inc()
			c.log.Warn("certificates", "error", err)
		}
	})
}

func (c *certs) tick(ctx context.Context) error {
	if c.o.certDir != "" {
		return c.fromFiles()
	}
	var p pki
	for try := 0; ; try++ {
		var err error
		if p, err = c.follow(ctx); err == nil {
			break
		}
		if try == 3 || !answered(err, http.StatusConflict) { // a conflict: another replica was first
			return err
		}
	}
	// What is served is trusted before it is served: the bundle goes first.
	if err := c.publish(ctx, p.bundle(c.now())); err != nil {
		return err
	}
	c.serve(&tls.Certificate{Certificate: [][]byte{p.leaf.cert.Raw}, PrivateKey: p.leaf.key, Leaf: p.leaf.cert})
	c.ca = p.issuer()
	c.metrics.notAfter.WithLabelValues("ca").Set(float64(p.ca.cert.NotAfter.Unix()))
	return nil
}

func (c *certs) serve(cert *tls.Certificate) {
	if old := c.serving.Swap(cert); old == nil || !bytes.Equal(old.Leaf.Raw, cert.Leaf.Raw) {
		c.log.Info("serving a certificate", "until", cert.Leaf.NotAfter.UTC().Format(time.RFC3339))
	}
	c.metrics.notAfter.WithLabelValues("serving").Set(float64(cert.Leaf.NotAfter.Unix()))
}

func (c *certs) fromFiles() error {
	cert, err := os.ReadFile(filepath.Join(c.o.certDir, keyLeaf))
	if err != nil {
		return err
	}
	key, err := os.ReadFile(filepath.Join(c.o.certDir, keyLeafKey))
	if err != nil {
		return err
	}
	both := append(append([]byte{}, cert...), key...)
	if bytes.Equal(both, c.filePEM) {
		return nil
	}
	p, err := tls.X509KeyPair(cert, key)
	if err != nil {
		return fmt.Errorf("-cert-dir: %w", err) // a pair that is being replaced: the old one goes on
	}
	c.filePEM = both
	c.serve(&p)
	return nil
}

func (c *certs) secretPath() string {
	return "/api/v1/namespaces/" + url.PathEscape(c.o.namespace) + "/secrets"
}

// follow reads the Secret and writes what is due.
func (c *certs) follow(ctx context.Context) (pki, error) {
	var secret corev1.Secret
	err := c.kube.get(ctx, c.secretPath()+"/"+url.PathEscape(c.o.certSecret), &secret)
	missing := answered(err, http.StatusNotFound)
	if err != nil && !missing {
		return pki{}, fmt.Errorf("the Secret %s: %w", c.o.certSecret, err)
	}
	// Where somebody has emptied the Secret, what is served until the replicas have followed stays trusted.
	p, changed, err := parsePKI(secret.Data).keep(c.ca).next(c.now(), c.names)
	if err != nil || !changed {
		return p, err
	}
	data, err := p.data()
	if err != nil {
		return p, err
	}
	const manager = "?fieldManager=" + fieldManager
	if missing {
		secret = corev1.Secret{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Secret"}, ObjectMeta: metav1.ObjectMeta{Name: c.o.certSecret, Namespace: c.o.namespace}, Data: data}
		err = c.kube.do(ctx, http.MethodPost, c.secretPath()+manager, asJSON, secret, nil)
	} else {
		// The resource version is a precondition: of two replicas one writes.
		err = c.kube.do(ctx, http.MethodPatch, c.secretPath()+"/"+url.PathEscape(c.o.certSecret)+manager, "application/merge-patch+json",
			map[string]any{"metadata": map[string]string{"resourceVersion": secret.ResourceVersion}, "data": data}, nil)
	}
	if err != nil {
		return p, fmt.Errorf("writing the Secret %s: %w", c.o.certSecret, err)
	}
	c.log.Info("certificates written", "ca until", p.ca.cert.NotAfter.UTC().Format(time.RFC3339), "old CAs", len(p.old))
	return p, nil
}

// hook is what matters here of a MutatingWebhookConfiguration's webhook.
type hook struct {
	Name         string `json:"name"`
	ClientConfig struct {
		CABundle []byte `json:"caBundle"`
	} `json:"clientConfig"`
}

// publish makes every webhook of the configuration trust the bundle.
func (c *certs) publish(ctx context.Context, bundle []byte) error {
	path := "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations/" + url.PathEscape(c.o.configuration)
	var now struct {
		Webhooks []hook `json:"webhooks"`
	}
	if err := c.kube.get(ctx, path, &now); err != nil {
		return fmt.Errorf("the MutatingWebhookConfiguration %s: %w", c.o.configuration, err)
	}
	var patch []hook
	for _, h := range now.Webhooks {
		if !bytes.Equal(h.ClientConfig.CABundle, bundle) {
			h.ClientConfig.CABundle = bundle
			patch = append(patch, h)
		}
	}
	if len(patch) > 0 {
		// A strategic merge names what it changes: nothing else of the configuration is touched, or ours.
		err := c.kube.do(ctx, http.MethodPatch, path+"?fieldManager="+fieldManager, asMerge, map[string]any{"webhooks": patch}, nil)
		if err != nil {
			return fmt.Errorf("writing the MutatingWebhookConfiguration %s: %w", c.o.configuration, err)
		}
		c.log.Info("caBundle written", "webhooks", len(patch))
	}
	if len(now.Webhooks) > 0 {
		c.published.Store(true)
	}
	return nil
}
