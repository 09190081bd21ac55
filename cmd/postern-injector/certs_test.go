package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
)

var testOptions = options{services: []string{"postern-injector-0", "postern-injector-1"}, namespace: "postern", certSecret: "certs", configuration: "postern-injector"}

func replica(k *kube, now *time.Time) *certs {
	c := newCerts(testOptions, k, quiet(), newMetrics())
	c.now = func() time.Time { return *now }
	return c
}

// trusts reports whether an API server with this bundle accepts what a replica serves.
func trusts(t *testing.T, bundle []byte, c *certs, now time.Time) bool {
	t.Helper()
	cert, err := c.certificate(&tls.ClientHelloInfo{})
	if err != nil {
		return false
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(bundle)
	_, err = cert.Leaf.Verify(x509.VerifyOptions{Roots: roots, DNSName: "postern-injector-1.postern.svc", CurrentTime: now})
	return err == nil
}

// Over three years of two replicas that look at different times, an API server that
// learns of a new bundle a minute late trusts both at every moment.
func TestCertificatesRollWithoutAGap(t *testing.T) {
	api, k := newAPI(t)
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	one, two := replica(k, &now), replica(k, &now)
	tick := func(c *certs) {
		if err := c.tick(context.Background()); err != nil {
			t.Fatal(err)
		}
	}
	tick(one)
	tick(two)
	late := api.bundles["pods-0.postern.dev"]
	cas, leaves := map[string]bool{}, map[string]bool{}
	for step := 0; now.Year() < 2029; step++ {
		for range 6 { // after each long pause a few short ones, in which the steps happen
			now = now.Add(time.Minute)
			if step%2 == 0 {
				tick(one)
			}
			if !trusts(t, late, one, now) || !trusts(t, late, two, now) {
				t.Fatalf("%v: a replica serves what an API server does not trust", now)
			}
			tick(two)
			if !trusts(t, late, one, now) || !trusts(t, late, two, now) {
				t.Fatalf("%v: a replica serves what an API server does not trust", now)
			}
			tick(one)
			late = api.bundles["pods-0.postern.dev"]
		}
		p := parsePKI(api.secret.Data)
		cas[p.ca.cert.SerialNumber.String()], leaves[p.leaf.cert.SerialNumber.String()] = true, true
		if n := len(p.old); n > 1 {
			t.Fatalf("%d old CAs are kept", n)
		}
		now = now.Add(6 * 24 * time.Hour)
	}
	if len(cas) < 2 || len(leaves) < 20 {
		t.Errorf("%d CAs and %d certificates in three years", len(cas), len(leaves))
	}
}

func TestAReplicaServesOnlyWhatIsPublished(t *testing.T) {
	api, k := newAPI(t)
	now := time.Now()
	c := replica(k, &now)
	if c.notReady(now) == "" {
		t.Error("ready without a certificate")
	}
	api.bundles = nil // the configuration has no webhook yet
	if err := c.tick(context.Background()); err != nil {
		t.Fatal(err)
	}
	if c.notReady(now) == "" {
		t.Error("ready although no webhook trusts it")
	}
	api.mu.Lock()
	api.bundles = map[string][]byte{"pods-0.postern.dev": nil}
	api.mu.Unlock()
	if err := c.tick(context.Background()); err != nil || c.notReady(now) != "" {
		t.Errorf("%v, %s", err, c.notReady(now))
	}
	before := api.patches
	for range 3 {
		c.tick(context.Background())
	}
	if api.patches != before {
		t.Error("an unchanged bundle is written again")
	}
	if c.notReady(now.Add(10*365*24*time.Hour)) == "" {
		t.Error("ready with an expired certificate")
	}
}

func TestARaceForTheSecretIsSettled(t *testing.T) {
	api, k := newAPI(t)
	now := time.Now()
	api.conflicts = 2
	one, two := replica(k, &now), replica(k, &now)
	if err := one.tick(context.Background()); err != nil {
		t.Fatal(err)
	}
	if err := two.tick(context.Background()); err != nil {
		t.Fatal(err)
	}
	a, b := one.serving.Load(), two.serving.Load()
	if string(a.Certificate[0]) != string(b.Certificate[0]) {
		t.Error("two replicas serve two certificates")
	}
}

// Somebody empties the Secret: what replicas serve that have not looked yet goes on being trusted.
func TestAnEmptiedSecretLeavesNoGap(t *testing.T) {
	api, k := newAPI(t)
	now := time.Now()
	one, two := replica(k, &now), replica(k, &now)
	for _, c := range []*certs{one, two} {
		if err := c.tick(context.Background()); err != nil {
			t.Fatal(err)
		}
	}
	before := one.serving.Load().Leaf
	api.mu.Lock()
	api.secret.Data = nil
	api.mu.Unlock()
	if err := one.tick(context.Background()); err != nil {
		t.Fatal(err)
	}
	bundle := api.bundles["pods-0.postern.dev"]
	if one.serving.Load().Leaf.Equal(before) || !trusts(t, bundle, one, now) || !trusts(t, bundle, two, now) {
		t.Error("a replica serves what is not trusted")
	}
	patches := api.patches
	if err := two.tick(context.Background()); err != nil {
		t.Fatal(err)
	}
	if !two.serving.Load().Leaf.Equal(one.serving.Load().Leaf) || api.patches != patches {
		t.Error("the other replica goes its own way")
	}
	now = now.Add(2 * 24 * time.Hour)
	if err := two.tick(context.Background()); err != nil || countCerts(api.bundles["pods-0.postern.dev"]) != 1 {
		t.Errorf("%d CAs are trusted two days later: %v", countCerts(api.bundles["pods-0.postern.dev"]), err)
	}
}

// More replicas have more Services: the certificate names them all, and replicas of before go on with it.
func TestAServiceMoreIsNamedAtOnce(t *testing.T) {
	api, k := newAPI(t)
	now := time.Now()
	old := replica(k, &now)
	if err := old.tick(context.Background()); err != nil {
		t.Fatal(err)
	}
	more := replica(k, &now)
	more.names = append(more.names, "postern-injector-2.postern.svc")
	for range 2 {
		for _, c := range []*certs{more, old} {
			if err := c.tick(context.Background()); err != nil {
				t.Fatal(err)
			}
		}
	}
	if names := old.serving.Load().Leaf.DNSNames; len(names) != 3 || !trusts(t, api.bundles["pods-1.postern.dev"], old, now) {
		t.Errorf("the certificate names %v", names)
	}
	if api.patches != 1 {
		t.Errorf("the configuration was written %d times, although the CA is the same", api.patches)
	}
}

// A Secret without data is what the chart renders; rubbish and expired ones are made anew at once.
func TestWhatIsOfNoUseIsReplaced(t *testing.T) {
	old := time.Now().Add(-10 * 365 * 24 * time.Hour)
	ca, _ := makeCA(old)
	leaf, _ := makeLeaf(old, ca, []string{"postern-injector-0.postern.svc"})
	expired, err := pki{ca: ca, leaf: leaf, old: []*x509.Certificate{ca.cert}}.data()
	if err != nil {
		t.Fatal(err)
	}
	fresh, _ := makeCA(time.Now())
	foreign, _ := makeLeaf(time.Now(), fresh, []string{"another.example"})
	other, _ := pki{ca: fresh, leaf: foreign}.data()
	for name, data := range map[string]map[string][]byte{
		"none": nil, "rubbish": {keyCA: []byte("x"), keyLeaf: []byte("y"), keyOld: []byte("z")}, "expired": expired, "another name": other,
		"key lost": {keyCA: expired[keyCA]},
	} {
		api, k := newAPI(t)
		api.secret = &corev1.Secret{Data: data}
		now := time.Now()
		c := replica(k, &now)
		if err := c.tick(context.Background()); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if !trusts(t, api.bundles["namespaces-1.postern.dev"], c, now) || c.notReady(now) != "" {
			t.Errorf("%s: what is served is not trusted", name)
		}
		if n := countCerts(api.bundles["pods-0.postern.dev"]); n != 1 {
			t.Errorf("%s: %d CAs are trusted", name, n)
		}
	}
}

func countCerts(text []byte) (n int) {
	for {
		block, rest := pem.Decode(text)
		if block == nil {
			return n
		}
		n, text = n+1, rest
	}
}

func TestAnUnreachableAPIChangesNothing(t *testing.T) {
	api, k := newAPI(t)
	now := time.Now()
	c := replica(k, &now)
	if err := c.tick(context.Background()); err != nil {
		t.Fatal(err)
	}
	api.mu.Lock()
	api.down = true
	api.mu.Unlock()
	if err := c.tick(context.Background()); err == nil {
		t.Error("no error")
	}
	if c.notReady(now) != "" {
		t.Error("no longer ready")
	}
}
