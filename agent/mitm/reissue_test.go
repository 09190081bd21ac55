package mitm

import (
	"bytes"
	"crypto/ecdsa"
	"errors"
	"fmt"
	"io"
	"sync"
	"testing"
	"testing/iotest"
	"time"
)

func TestReissueKeepsTheTrustOfRunningClients(t *testing.T) {
	clk := newClock()
	ca := newCA(t, Options{Hosts: []string{"a.test", "b.test"}, Now: clk.now})
	before := ca.PEM()
	oldB, err := ca.Leaf("b.test")
	if err != nil {
		t.Fatal(err)
	}
	oldA, _ := ca.Leaf("a.test")
	if err := ca.Reissue([]string{"b.test:443", "A.test"}); err != nil || !bytes.Equal(before, ca.PEM()) {
		t.Fatalf("the same hosts made another CA: %v", err)
	}
	if again, _ := ca.Leaf("a.test"); again != oldA {
		t.Error("the same hosts made another leaf")
	}
	if err := ca.Reissue([]string{"b.test", "c.test"}); err != nil || bytes.Equal(before, ca.PEM()) {
		t.Fatalf("other hosts did not make another CA: %v", err)
	}
	was, is := parseCA(t, before), parseCA(t, ca.PEM())
	if !bytes.Equal(was.RawSubject, is.RawSubject) || !was.PublicKey.(*ecdsa.PublicKey).Equal(is.PublicKey) || was.SerialNumber.Cmp(is.SerialNumber) == 0 {
		t.Error("key and subject should stay, the serial number should not")
	}
	if _, err := ca.Leaf("a.test"); !errors.Is(err, ErrHost) {
		t.Errorf("a host that went: %v", err)
	}
	clk.pass(6 * 24 * time.Hour)
	newB, err := ca.Leaf("b.test")
	if err != nil || newB == oldB {
		t.Fatal(err)
	}
	if err := handshake(newB, before, "b.test", clk.now); err != nil {
		t.Errorf("a running client no longer trusts what it knew: %v", err)
	}
	newC, err := ca.Leaf("c.test")
	if err != nil {
		t.Fatal(err)
	}
	if err := handshake(newC, ca.PEM(), "c.test", clk.now); err != nil {
		t.Errorf("a new client: %v", err)
	}
	if err := handshake(newC, before, "c.test", clk.now); err == nil {
		t.Error("an old certificate vouches for a new host")
	}
	now := ca.PEM()
	if err := ca.Reissue([]string{"b.test", "not a host"}); err == nil || !bytes.Equal(now, ca.PEM()) {
		t.Errorf("after an error something changed: %v", err)
	}
	ca.random = iotest.ErrReader(io.ErrNoProgress)
	if err := ca.Reissue([]string{"d.test"}); err == nil || !bytes.Equal(now, ca.PEM()) {
		t.Errorf("after an error something changed: %v", err)
	}
	if _, err := ca.Leaf("b.test"); err != nil {
		t.Error(err)
	}
}

func TestLeafAndReissueAtOnce(t *testing.T) {
	ca := newCA(t, Options{Hosts: []string{"a.test", "*.r.test"}, MaxLeaves: 4})
	var wg sync.WaitGroup
	for w := range 4 {
		wg.Go(func() {
			for i := range 100 {
				host := "a.test"
				if i%2 == 0 {
					host = fmt.Sprintf("h%d-%d.r.test", w, i)
				}
				if l, err := ca.Leaf(host); err != nil || l.Leaf.VerifyHostname(host) != nil {
					t.Errorf("%s: %v", host, err)
				}
			}
		})
	}
	for i := range 30 {
		if err := ca.Reissue([]string{"a.test", "*.r.test", fmt.Sprintf("x%d.test", i)}); err != nil {
			t.Error(err)
		}
	}
	wg.Wait()
	if s := ca.Stats(); s.Leaves > 4 {
		t.Errorf("%+v", s)
	}
}
