package proxy

import (
	"context"
	"log/slog"
	"net"
	"strconv"
	"sync"
	"time"

	"github.com/postern-proxy/postern/agent/audit"
)

// denialEvery is how often refusals of one kind become an entry: the first at
// once, later ones together with their count, so that a client in a loop fills
// no disk.
const denialEvery = 10 * time.Second

type denialKey struct{ code, provider, source string }

// denials turns refusals into audit entries, off the data path.
type denials struct {
	o    Options
	in   chan denialKey
	done chan struct{}
	once sync.Once
	quit chan struct{}
}

func newDenials(o Options) *denials {
	d := &denials{o: o, in: make(chan denialKey, 256), done: make(chan struct{}), quit: make(chan struct{})}
	go d.run()
	return d
}

// add notes one refusal; it never blocks the request.
func (d *denials) add(code, provider, remote string) {
	host, _, err := net.SplitHostPort(remote)
	if err != nil {
		host = "local"
	}
	select {
	case d.in <- denialKey{code, provider, host}:
	default: // the metric has counted it
	}
}

func (d *denials) stop() {
	d.once.Do(func() { close(d.quit) })
	<-d.done
}

func (d *denials) run() {
	defer close(d.done)
	waiting := map[denialKey]int{}
	tick := time.NewTicker(denialEvery)
	defer tick.Stop()
	flush := func() {
		for k, n := range waiting {
			if n == 0 {
				delete(waiting, k)
				continue
			}
			d.append(k, n)
			waiting[k] = 0
		}
	}
	note := func(k denialKey) {
		n, seen := waiting[k]
		if !seen {
			d.append(k, 1)
			n = -1
		}
		waiting[k] = n + 1
	}
	for {
		select {
		case k := <-d.in:
			note(k)
		case <-tick.C:
			flush()
		case <-d.quit:
			for len(d.in) > 0 {
				note(<-d.in)
			}
			flush()
			return
		}
	}
}

func (d *denials) append(k denialKey, n int) {
	if d.o.Audit == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	_, err := d.o.Audit.Append(ctx, audit.Event{
		Event: "request.denied", Actor: "client", Source: k.source, Environment: d.o.Environment, ProxyID: d.o.ProxyID,
		Key: k.provider, Outcome: "denied", Reason: k.code, Detail: map[string]string{"count": strconv.Itoa(n)},
	})
	if err != nil {
		d.o.Logger.Warn("the audit entry of a refusal could not be written", slog.String("error", err.Error()))
	}
}
