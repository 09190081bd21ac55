package upstream

import (
	"context"
	"net/http"
	"sync"
	"time"
)

// PerKey makes round trips by net/http over connections that carry one key each:
// what HTTP/2 remembers of a request's fields (its compression table, the frames
// written last) is closed with the connections of that key. It is safe for
// concurrent use.
type PerKey struct {
	fresh func() *http.Transport

	mu   sync.Mutex
	uses uint64
	made map[string]*keyed
}

// Lingering is how long net/http holds on to an HTTP/2 connection that was closed,
// its buffers and its table: until its next ping would have been due.
const Lingering = pingAfter + time.Second

type keyed struct {
	*http.Transport
	used uint64 // when, counted in uses
}

// keysAtOnce is for how many keys there may be connections: two versions are
// usable at a time, and those that come back after a halt are few.
const keysAtOnce = 4

// PerKey is Transport for requests that say which key they carry.
func (d *Dialer) PerKey(o TransportOptions) (*PerKey, error) {
	tr, err := d.Transport(o)
	if err != nil {
		return nil, err
	}
	return &PerKey{fresh: tr.Clone, made: map[string]*keyed{}}, nil
}

type carriedKey struct{}

// Carrying returns a context for a request that carries the key of this name,
// any text that tells it from others.
func Carrying(ctx context.Context, key string) context.Context {
	return context.WithValue(ctx, carriedKey{}, key)
}

// RoundTrip implements http.RoundTripper.
func (p *PerKey) RoundTrip(req *http.Request) (*http.Response, error) {
	key, _ := req.Context().Value(carriedKey{}).(string)
	return p.of(key).RoundTrip(req)
}

func (p *PerKey) of(key string) *http.Transport {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.uses++
	k := p.made[key]
	if k == nil {
		p.evict()
		k = &keyed{Transport: p.fresh()}
		p.made[key] = k
	}
	k.used = p.uses
	return k.Transport
}

// evict makes room for one more. What is in use ends with its idle time.
func (p *PerKey) evict() {
	if len(p.made) < keysAtOnce {
		return
	}
	oldest := ""
	for key, k := range p.made {
		if o := p.made[oldest]; o == nil || k.used < o.used {
			oldest = key
		}
	}
	p.made[oldest].CloseIdleConnections()
	delete(p.made, oldest)
}

// CloseIdleConnections closes what is idle: all connections of a key that no
// request carries any more.
func (p *PerKey) CloseIdleConnections() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, k := range p.made {
		k.CloseIdleConnections()
	}
}
