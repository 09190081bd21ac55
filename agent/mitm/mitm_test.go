package mitm

import (
	"bytes"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/iotest"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// clock is a time that tests move.
type clock struct{ at atomic.Int64 }

func newClock() *clock {
	c := new(clock)
	c.at.Store(time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC).Unix())
	return c
}
func (c *clock) now() time.Time       { return time.Unix(c.at.Load(), 0) }
func (c *clock) pass(d time.Duration) { c.at.Add(int64(d / time.Second)) }

func newCA(t testing.TB, o Options) *CA {
	t.Helper()
	c, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

func parseCA(t testing.TB, text []byte) *x509.Certificate {
	t.Helper()
	b, rest := pem.Decode(text)
	if b == nil || len(rest) != 0 {
		t.Fatalf("not one PEM block: %q", text)
	}
	cert, err := x509.ParseCertificate(b.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

// handshake connects as a client that trusts roots and wants host.
func handshake(leaf *tls.Certificate, roots []byte, host string, now func() time.Time) error {
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(roots)
	ln, err := net.Listen("tcp", "127.0.0.1:0") // not net.Pipe: there both sides may wait for the other to read an alert
	if err != nil {
		return err
	}
	defer ln.Close()
	done := make(chan struct{})
	go func() {
		defer close(done)
		conn, err := ln.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		if tls.Server(conn, &tls.Config{Certificates: []tls.Certificate{*leaf}, Time: now}).Handshake() == nil {
			io.Copy(io.Discard, conn)
		}
	}()
	conn, err := net.Dial("tcp", ln.Addr().String())
	if err == nil {
		err = tls.Client(conn, &tls.Config{RootCAs: pool, ServerName: host, Time: now}).Handshake()
		conn.Close()
	} else {
		ln.Close()
	}
	<-done
	return err
}

func TestLeavesVerifyForConfiguredHostsOnly(t *testing.T) {
	clk := newClock()
	for name, c := range map[string]struct{ hosts, good, bad []string }{
		"DNS names": {
			[]string{"api.openai.com", "API.anthropic.com:443", "*.openai.azure.com", "localhost:8443"},
			[]string{"api.openai.com", "API.OpenAI.com", "api.anthropic.com", "acme.openai.azure.com", "localhost"},
			[]string{"", "openai.com", "evil.api.openai.com", "api.openai.com.", "api.openai.com.evil.test", "openai.azure.com",
				"a.b.openai.azure.com", ".openai.azure.com", "-.openai.azure.com", "a b.openai.azure.com", "*.openai.azure.com", "a\x00.openai.azure.com",
				"127.0.0.1", "::1", "api.openai.com:443", "user@api.openai.com", "2130706433"},
		},
		"addresses": {
			[]string{"127.0.0.1:8443", "[::1]:8443", "2001:DB8::1"},
			[]string{"127.0.0.1", "::1", "2001:db8:0::1"},
			[]string{"127.0.0.2", "::2", "localhost", "invalid", "x.invalid", "::ffff:127.0.0.1", "127.1", "0x7f.0.0.1", "[::1]", "::1%lo", "fe80::1%eth0"},
		},
		"both": {[]string{"llm.corp.example", "10.1.2.3"}, []string{"llm.corp.example", "10.1.2.3"}, []string{"10.1.2.4", "corp.example"}},
		"none": {nil, nil, []string{"api.openai.com", "127.0.0.1", "invalid", "::"}},
	} {
		ca := newCA(t, Options{Hosts: c.hosts, Now: clk.now})
		for _, h := range c.good {
			leaf, err := ca.Leaf(h)
			if err != nil {
				t.Errorf("%s: %v", name, err)
				continue
			}
			if err := handshake(leaf, ca.PEM(), h, clk.now); err != nil {
				t.Errorf("%s: %s: %v", name, h, err)
			}
			if err := leaf.Leaf.VerifyHostname("other.test"); err == nil {
				t.Errorf("%s: the leaf of %s is good for other hosts", name, h)
			}
		}
		for _, h := range c.bad {
			if _, err := ca.Leaf(h); !errors.Is(err, ErrHost) {
				t.Errorf("%s: %q: %v", name, h, err)
			}
		}
	}
}

func TestNewRefusesWhatIsNoHost(t *testing.T) {
	for _, h := range []string{"", "*", "*.com", "*.*.example.com", "a.*.com", "x y", "https://api.openai.com", "api.openai.com/v1",
		"{resource}.openai.azure.com", "a..b", "a.", "ünicode.test", "127.1", "1.2.3.4.5", "fe80::1%eth0", strings.Repeat("a", 64) + ".test"} {
		c, err := New(Options{Hosts: []string{"api.openai.com", h}})
		if err == nil {
			c.Close()
			t.Errorf("%q is accepted", h)
		} else if !strings.Contains(err.Error(), fmt.Sprintf("%q", h)) {
			t.Errorf("%q: %v", h, err)
		}
	}
}

func TestTheCAIsAsNarrowAsItCanBe(t *testing.T) {
	clk := newClock()
	ca := newCA(t, Options{Hosts: []string{"api.openai.com", "*.openai.azure.com"}, Now: clk.now})
	cert := parseCA(t, ca.PEM())
	var critical bool
	for _, e := range cert.Extensions {
		critical = critical || e.Critical && e.Id.String() == "2.5.29.30"
	}
	life := cert.NotAfter.Sub(cert.NotBefore)
	if !critical || !cert.MaxPathLenZero || cert.MaxPathLen != 0 || !cert.IsCA || cert.KeyUsage != x509.KeyUsageCertSign ||
		life > 366*24*time.Hour || !cert.NotBefore.Before(clk.now()) || len(cert.SubjectKeyId) == 0 ||
		!bytes.Equal(cert.AuthorityKeyId, cert.SubjectKeyId) || cert.SerialNumber.Sign() <= 0 {
		t.Errorf("%+v", cert)
	}
	if fmt.Sprint(cert.PermittedDNSDomains) != "[api.openai.com openai.azure.com]" || len(cert.ExcludedIPRanges) != 2 {
		t.Errorf("constraints: %v %v", cert.PermittedDNSDomains, cert.ExcludedIPRanges)
	}
	leaf, err := ca.Leaf("api.openai.com")
	if err != nil {
		t.Fatal(err)
	}
	l := leaf.Leaf
	if l.IsCA || l.NotAfter.Sub(l.NotBefore) > 7*24*time.Hour || !l.NotBefore.Before(clk.now()) || l.KeyUsage != x509.KeyUsageDigitalSignature ||
		len(l.ExtKeyUsage) != 1 || l.ExtKeyUsage[0] != x509.ExtKeyUsageServerAuth || fmt.Sprint(l.DNSNames) != "[api.openai.com]" ||
		len(l.IPAddresses) != 0 || !bytes.Equal(l.AuthorityKeyId, cert.SubjectKeyId) || l.Subject.CommonName != "" || len(leaf.Certificate) != 1 {
		t.Errorf("%+v", l)
	}
	if other := newCA(t, Options{Now: clk.now}); parseCA(t, other.PEM()).Subject.String() == cert.Subject.String() {
		t.Error("two CAs have one subject")
	}
}

// Even one who has the CA's key can make nothing else with it.
func TestConstraintsHoldAgainstAStolenKey(t *testing.T) {
	clk := newClock()
	forge := func(ca *CA, name string) *tls.Certificate {
		ip, _ := netip.ParseAddr(name)
		cert, err := ca.issuer.mint(name, ip, clk.now(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		return cert
	}
	dns := newCA(t, Options{Hosts: []string{"api.openai.com"}, Now: clk.now})
	ips := newCA(t, Options{Hosts: []string{"127.0.0.1"}, Now: clk.now})
	none := newCA(t, Options{Now: clk.now})
	if err := handshake(forge(dns, "api.openai.com"), dns.PEM(), "api.openai.com", clk.now); err != nil {
		t.Fatalf("the forgery itself does not work: %v", err)
	}
	if err := handshake(forge(ips, "127.0.0.1"), ips.PEM(), "127.0.0.1", clk.now); err != nil {
		t.Fatalf("the forgery itself does not work: %v", err)
	}
	for _, c := range []struct {
		ca   *CA
		name string
	}{
		{dns, "github.com"}, {dns, "openai.com"}, {dns, "xapi.openai.com"}, {dns, "127.0.0.1"}, {dns, "::1"},
		{ips, "127.0.0.2"}, {ips, "::1"}, {ips, "github.com"}, {ips, "localhost"},
		{none, "github.com"}, {none, "127.0.0.1"}, {none, "::1"},
	} {
		err := handshake(forge(c.ca, c.name), c.ca.PEM(), c.name, clk.now)
		var invalid x509.CertificateInvalidError
		if !errors.As(err, &invalid) || invalid.Reason != x509.CANotAuthorizedForThisName {
			t.Errorf("%s: %v", c.name, err)
		}
	}
	// Nor another CA below it, nor a client's certificate.
	key, _ := newKey()
	sub := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: clk.now(), NotAfter: clk.now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign, SubjectKeyId: []byte{1}, PermittedDNSDomains: []string{"api.openai.com"}}
	sub.Subject.CommonName = "sub"
	der, err := x509.CreateCertificate(rand.Reader, sub, dns.issuer.cert, &key.PublicKey, dns.issuer.key)
	if err != nil {
		t.Fatal(err)
	}
	cert, _ := x509.ParseCertificate(der)
	below := &issuer{cert: cert, key: key}
	leaf, err := below.mint("api.openai.com", netip.Addr{}, clk.now(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	leaf.Certificate = append(leaf.Certificate, der)
	var invalid x509.CertificateInvalidError
	if err := handshake(leaf, dns.PEM(), "api.openai.com", clk.now); !errors.As(err, &invalid) || invalid.Reason != x509.TooManyIntermediates {
		t.Errorf("a CA below: %v", err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(dns.issuer.cert)
	_, err = forge(dns, "api.openai.com").Leaf.Verify(x509.VerifyOptions{Roots: roots, CurrentTime: clk.now(), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
	if err == nil {
		t.Error("good as a client's certificate")
	}
}

func TestAFloodForOneHostSignsOnce(t *testing.T) {
	ca := newCA(t, Options{Hosts: []string{"api.openai.com"}})
	var wg sync.WaitGroup
	start := make(chan struct{})
	certs := make([]*tls.Certificate, 1000)
	for i := range certs {
		wg.Go(func() {
			<-start
			certs[i], _ = ca.Leaf("api.openai.com")
		})
	}
	close(start)
	wg.Wait()
	for _, c := range certs {
		if c == nil || c != certs[0] {
			t.Fatal("not everyone got the same certificate")
		}
	}
	if s := ca.Stats(); s.Minted != 1 || s.Leaves != 1 {
		t.Errorf("%+v", s)
	}
}

func TestAFloodOfHostsIsBounded(t *testing.T) {
	ca := newCA(t, Options{Hosts: []string{"api.openai.com", "*.openai.azure.com"}, MaxLeaves: 8})
	for i := range 10000 {
		if _, err := ca.Leaf(fmt.Sprintf("host%d.test", i)); !errors.Is(err, ErrHost) {
			t.Fatal(err)
		}
	}
	if s := ca.Stats(); s.Minted != 0 || s.Leaves != 0 {
		t.Errorf("after strangers: %+v", s)
	}
	first, err := ca.Leaf("api.openai.com")
	if err != nil {
		t.Fatal(err)
	}
	for i := range 50 {
		if _, err := ca.Leaf(fmt.Sprintf("r%d.openai.azure.com", i)); err != nil {
			t.Fatal(err)
		}
		if again, _ := ca.Leaf("api.openai.com"); again != first {
			t.Fatal("the most used one was forgotten")
		}
	}
	if s := ca.Stats(); s.Minted != 51 || s.Leaves != 8 || len(ca.leaves) != ca.recent.Len() {
		t.Errorf("%+v", s)
	}
	if _, err := ca.Leaf(strings.Repeat("x", 1<<20)); err == nil || len(err.Error()) > 300 {
		t.Errorf("a long name makes an error of %d bytes", len(err.Error()))
	}
}

func TestLeavesAreRenewedBeforeTheyEnd(t *testing.T) {
	clk := newClock()
	ca := newCA(t, Options{Hosts: []string{"api.openai.com"}, Now: clk.now})
	get := func() *tls.Certificate {
		l, err := ca.Leaf("api.openai.com")
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	first := get()
	end := first.Leaf.NotAfter
	for range 7 * 24 {
		clk.pass(time.Hour)
		l := get()
		if left := l.Leaf.NotAfter.Sub(clk.now()); left < 48*time.Hour {
			t.Fatalf("served with %v left", left)
		}
	}
	if s := ca.Stats(); s.Minted != 2 || s.Leaves != 1 || !get().Leaf.NotAfter.After(end) {
		t.Errorf("%+v", s)
	}
	// Towards its own end the CA makes shorter ones, and then says that it is over.
	clk.at.Store(ca.Stats().NotAfter.Add(-24 * time.Hour).Unix())
	l := get()
	if !l.Leaf.NotAfter.Equal(ca.Stats().NotAfter) {
		t.Errorf("outlives its CA: %v", l.Leaf.NotAfter)
	}
	if err := handshake(l, ca.PEM(), "api.openai.com", clk.now); err != nil {
		t.Error(err)
	}
	old := ca.PEM()
	clk.pass(24 * time.Hour)
	if _, err := ca.Leaf("api.openai.com"); err == nil || !strings.Contains(err.Error(), "ended") {
		t.Errorf("after the CA's end: %v", err)
	}
	if err := ca.Reissue([]string{"api.openai.com"}); err != nil || bytes.Equal(old, ca.PEM()) {
		t.Fatalf("not renewed: %v", err)
	}
	if err := handshake(get(), ca.PEM(), "api.openai.com", clk.now); err != nil {
		t.Error(err)
	}
}

func TestCloseWipesTheKey(t *testing.T) {
	ca := newCA(t, Options{Hosts: []string{"*.r.test"}})
	if _, err := ca.Leaf("a.r.test"); err != nil {
		t.Fatal(err)
	}
	//lint:ignore SA1019 the test looks at what wipe must reach
	words := ca.issuer.key.D.Bits()
	var wg sync.WaitGroup
	for w := range 4 {
		wg.Go(func() {
			for i := range 200 {
				if _, err := ca.Leaf(fmt.Sprintf("h%d-%d.r.test", w, i)); err != nil {
					if !errors.Is(err, ErrClosed) {
						t.Error(err)
					}
					return
				}
			}
		})
	}
	ca.Close()
	ca.Close()
	wg.Wait()
	for _, w := range words {
		if w != 0 {
			t.Fatal("the key is still there")
		}
	}
	if _, err := ca.Leaf("a.r.test"); !errors.Is(err, ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
	if err := ca.Reissue(nil); !errors.Is(err, ErrClosed) || ca.PEM() != nil || ca.Stats().Leaves != 0 {
		t.Errorf("after Close: %v", err)
	}
	if err := ca.WriteTrust(t.TempDir()); !errors.Is(err, ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
}

func TestWithoutRandomnessThereIsNoCA(t *testing.T) {
	if c, err := New(Options{Hosts: []string{"a.test"}, Rand: iotest.ErrReader(io.ErrNoProgress)}); !errors.Is(err, io.ErrNoProgress) {
		t.Errorf("%v %v", c, err)
	}
	ca := newCA(t, Options{Hosts: []string{"a.test"}})
	ca.random = iotest.ErrReader(io.ErrNoProgress)
	if _, err := ca.Leaf("a.test"); !errors.Is(err, io.ErrNoProgress) {
		t.Errorf("%v", err)
	}
}

func TestACachedLeafCostsNoAllocation(t *testing.T) {
	ca := newCA(t, Options{Hosts: []string{"api.openai.com"}})
	if n := testing.AllocsPerRun(1000, func() { ca.Leaf("api.openai.com") }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkLeafCached(b *testing.B) {
	ca := newCA(b, Options{Hosts: []string{"api.openai.com"}})
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if _, err := ca.Leaf("api.openai.com"); err != nil {
				b.Fatal(err)
			}
		}
	})
}

func BenchmarkLeafMint(b *testing.B) {
	ca := newCA(b, Options{Hosts: []string{"*.r.test"}})
	b.ReportAllocs()
	for i := range b.N {
		if _, err := ca.Leaf(fmt.Sprintf("h%d.r.test", i)); err != nil {
			b.Fatal(err)
		}
	}
}

func FuzzNames(f *testing.F) {
	for _, h := range []string{"api.openai.com:443", "*.openai.azure.com", "[::1]:8443", "127.0.0.1", "::ffff:1.2.3.4", "xn--bcher-kva.test", "A_b.test"} {
		f.Add(h, "api.openai.com")
	}
	clk := newClock()
	key, err := newKey()
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, configured, asked string) {
		n, err := parseNames([]string{configured})
		if err != nil {
			return
		}
		i, err := newIssuer(n, key, clk.now(), rand.Reader)
		if err != nil {
			t.Fatalf("%q is accepted but makes no CA: %v", configured, err)
		}
		if !i.serves(n, clk.now()) {
			t.Fatalf("%q: the CA does not serve the names it was made for", configured)
		}
		host := configured
		if h, _, err := net.SplitHostPort(configured); err == nil {
			host = h
		}
		for _, h := range []string{asked, strings.Replace(host, "*.", "label.", 1)} {
			name, ip, ok := n.canonical(h)
			if !ok {
				continue
			}
			leaf, err := i.mint(name, ip, clk.now(), rand.Reader)
			if err != nil {
				t.Fatal(err)
			}
			roots := x509.NewCertPool()
			roots.AddCert(i.cert)
			if ip.IsValid() {
				name = "[" + name + "]"
			}
			if _, err := leaf.Leaf.Verify(x509.VerifyOptions{Roots: roots, DNSName: name, CurrentTime: clk.now()}); err != nil {
				t.Fatalf("%q configured, %q asked: %v", configured, h, err)
			}
		}
	})
}
