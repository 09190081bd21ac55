package agent

import (
	"maps"
	"net"
	"net/netip"
	"slices"
	stdsync "sync"
	"time"

	"github.com/postern-proxy/postern/agent/secret"
	"github.com/postern-proxy/postern/agent/sync"
)

// Status is what `postern status` shows. It holds no secret.
type Status struct {
	Version     string            `json:"version"`
	Environment string            `json:"environment"`
	ProxyID     string            `json:"proxy_id"`
	Service     string            `json:"service,omitempty"`
	Generation  uint64            `json:"generation"`
	Source      string            `json:"config"`
	Started     time.Time         `json:"started"`
	Proxy       string            `json:"proxy"`
	Ready       bool              `json:"ready"`
	Waiting     []string          `json:"waiting,omitempty"`
	Providers   []ProviderStatus  `json:"providers"`
	Keys        []sync.Status     `json:"keys"`
	Memory      secret.ArenaStats `json:"memory"`
	AuditHead   string            `json:"audit_head"`
}

// ProviderStatus is one route.
type ProviderStatus struct {
	Name  string   `json:"name"`
	Route string   `json:"route"`
	Hosts []string `json:"hosts"`
	Key   string   `json:"key"`
}

// Status describes the agent as it is now.
func (a *Agent) Status() Status {
	g := a.gen.Load()
	c := g.cfg
	ready, waiting := a.Ready()
	head := a.audit.Head()
	s := Status{
		Version: a.o.Version, Environment: c.Environment, ProxyID: c.ProxyID, Service: c.Service,
		Generation: g.number, Source: c.Source, Started: a.started, Proxy: a.proxyLn.Addr().String(),
		Ready: ready, Waiting: waiting, Memory: secret.Stats(), AuditHead: head.String(),
	}
	for _, p := range c.Providers {
		s.Providers = append(s.Providers, ProviderStatus{Name: p.Name, Route: "/" + p.Name + "/", Hosts: p.Hosts, Key: p.KeyName()})
	}
	for _, name := range slices.Sorted(maps.Keys(g.keys)) {
		s.Keys = append(s.Keys, g.keys[name].loop.Status())
	}
	return s
}

// Ready reports whether every required key was loaded, and names those that
// were not. It stays true while keys are served from memory with the store away.
func (a *Agent) Ready() (ready bool, waiting []string) {
	waiting = a.gen.Load().waiting()
	return len(waiting) == 0, waiting
}

// stale names the keys that are served from memory because the store cannot be read, sorted.
func (a *Agent) stale() []string {
	g := a.gen.Load()
	var names []string
	for _, name := range slices.Sorted(maps.Keys(g.keys)) {
		if s := g.keys[name].loop.Status(); s.Usable && s.Trouble != "" {
			names = append(names, name)
		}
	}
	return names
}

// why explains to the client that a key has no usable version, and says whether waiting helps.
func (a *Agent) why(name string) (reason string, passing bool) {
	k := a.gen.Load().keys[name]
	if k == nil {
		return "it is not configured", false
	}
	return k.loop.Status().Reason(), k.loop.Loading()
}

// reason is why's sentence alone.
func (a *Agent) reason(name string) string {
	reason, _ := a.why(name)
	return reason
}

// ownListeners knows the addresses that the agent listens on, so that nobody
// can make it connect to itself.
type ownListeners struct {
	mu    stdsync.RWMutex
	ports map[uint16]bool
}

func (o *ownListeners) set(addrs ...net.Addr) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.ports = map[uint16]bool{}
	for _, a := range addrs {
		if t, ok := a.(*net.TCPAddr); ok {
			o.ports[uint16(t.Port)] = true
		}
	}
}

// is reports whether an address is one of ours: a port that we listen on, at any address of this machine.
func (o *ownListeners) is(ap netip.AddrPort) bool {
	o.mu.RLock()
	ours := o.ports[ap.Port()]
	o.mu.RUnlock()
	if !ours {
		return false
	}
	if ap.Addr().IsLoopback() {
		return true
	}
	local, err := net.InterfaceAddrs()
	if err != nil {
		return true
	}
	for _, l := range local {
		if n, ok := l.(*net.IPNet); ok {
			if ip, ok := netip.AddrFromSlice(n.IP); ok && ip.Unmap() == ap.Addr() {
				return true
			}
		}
	}
	return false
}
