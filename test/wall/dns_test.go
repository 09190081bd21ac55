package wall_test

import (
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"

	"golang.org/x/net/dns/dnsmessage"
)

// names is the world's name server. Every name has an address of its own, 10.77.x.y;
// a case can give one others, and let them change from one question to the next.
type names struct {
	mu    sync.Mutex
	own   map[string]netip.Addr
	back  map[netip.Addr]string
	given map[string][]netip.Addr // the n-th question is answered with the n-th, the last stays
	asked map[string]int
}

func serveNames(t *testing.T) *names {
	t.Helper()
	n := &names{own: map[string]netip.Addr{}, back: map[netip.Addr]string{}}
	n.forget()
	pc, err := net.ListenPacket("udp", "127.0.0.1:53")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { pc.Close() })
	go func() {
		buf := make([]byte, 4096)
		for {
			k, from, err := pc.ReadFrom(buf)
			if err != nil {
				return
			}
			if out, err := n.answer(buf[:k]); err == nil {
				pc.WriteTo(out, from)
			}
		}
	}()
	return n
}

func (n *names) answer(question []byte) ([]byte, error) {
	var p dnsmessage.Parser
	h, err := p.Start(question)
	if err != nil {
		return nil, err
	}
	q, err := p.Question()
	if err != nil {
		return nil, err
	}
	b := dnsmessage.NewBuilder(nil, dnsmessage.Header{ID: h.ID, Response: true, Authoritative: true, RecursionAvailable: true, RecursionDesired: h.RecursionDesired})
	b.StartQuestions()
	b.Question(q)
	b.StartAnswers()
	head := dnsmessage.ResourceHeader{Name: q.Name, Class: q.Class}
	a := n.next(strings.ToLower(strings.TrimSuffix(q.Name.String(), ".")), q.Type)
	switch {
	case a.Is4() && q.Type == dnsmessage.TypeA:
		b.AResource(head, dnsmessage.AResource{A: a.As4()})
	case a.Is6() && q.Type == dnsmessage.TypeAAAA:
		b.AAAAResource(head, dnsmessage.AAAAResource{AAAA: a.As16()})
	}
	return b.Finish()
}

// next is the answer to one question; a zero address is no answer.
func (n *names) next(name string, kind dnsmessage.Type) netip.Addr {
	n.mu.Lock()
	defer n.mu.Unlock()
	if list := n.given[name]; len(list) > 0 {
		at := fmt.Sprint(name, kind)
		a := list[min(n.asked[at], len(list)-1)]
		n.asked[at]++
		return a
	}
	return n.address(name)
}

// address is a name's own; the lock is held.
func (n *names) address(name string) netip.Addr {
	a, ok := n.own[name]
	if !ok {
		k := len(n.own) + 1
		a = netip.AddrFrom4([4]byte{10, 77, byte(k >> 8), byte(k)})
		n.own[name], n.back[a] = a, name
	}
	return a
}

// of is the name whose own address this is, or the address.
func (n *names) of(a netip.Addr) string {
	n.mu.Lock()
	defer n.mu.Unlock()
	a = a.Unmap().WithZone("")
	if name, ok := n.back[a]; ok {
		return name
	}
	return a.String()
}

// give lets a name have these addresses, one after another.
func (n *names) give(name string, addresses ...string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, s := range addresses {
		a := n.address(name)
		if s != "own" {
			a = netip.MustParseAddr(s)
		}
		n.given[name] = append(n.given[name], a)
	}
}

// forget ends what cases gave.
func (n *names) forget() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.given, n.asked = map[string][]netip.Addr{}, map[string]int{}
}
