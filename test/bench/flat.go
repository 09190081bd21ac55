package main

import (
	"context"
	"crypto/rand"
	"fmt"
	"path/filepath"
	"strings"
	"time"

	"github.com/postern-proxy/postern/agent/keys"
	"github.com/postern-proxy/postern/agent/secret"
	"github.com/postern-proxy/postern/agent/store/sealed"
)

// many is how many providers and keys a request must not notice.
const many = 1000

// flatPeers are agents with one provider and one key, with many providers, and
// with many of both. What is asked for is the last one.
func (s *stage) flatPeers() ([]*peer, error) {
	one := s.bench()
	last := fmt.Sprintf("/p%03d/v1/models", many-1)
	configs := []struct{ name, providers, path string }{
		{"1 provider, 1 key", one, "/openai/v1/models"},
		{fmt.Sprintf("%d providers, 1 key", many), one + s.manyProviders("openai"), last},
		{fmt.Sprintf("%d providers, %d keys", many, many), one + s.manyProviders("k%03d"), last},
	}
	var peers []*peer
	for i, c := range configs {
		p, addr, err := s.startAgent(fmt.Sprintf("flat%d", i), c.providers, putMany)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", c.name, err)
		}
		peers = append(peers, &peer{name: c.name, proc: p, addr: addr, path: c.path})
	}
	return peers, nil
}

// looks is longer than two of an agent's looks into its store are apart.
const looks = 15 * time.Second

// idle measures what each peer does while nobody asks.
func idle(peers []*peer) {
	before := make([]time.Duration, len(peers))
	for i, p := range peers {
		before[i] = p.proc.cpu()
	}
	time.Sleep(looks)
	for i, p := range peers {
		p.idle = micros(p.proc.cpu()-before[i]) / looks.Seconds()
	}
}

func (s *stage) manyProviders(key string) string {
	var b strings.Builder
	for i := range many {
		k := key
		if strings.Contains(key, "%") {
			k = fmt.Sprintf(key, i)
		}
		fmt.Fprintf(&b, "  - {name: p%03d, provider: openai, hosts: [%[2]q], base_url: \"https://%[2]s\", ca_file: ../bench.pem, key: %s, forward: false}\n", i, s.upstream, k)
	}
	return b.String()
}

// putMany puts the keys into an agent's store, as `keys add` would one by one.
func putMany(dir string) error {
	st, err := sealed.Open(sealed.Options{File: filepath.Join(dir, "postern.sealed"), KeyFile: filepath.Join(dir, "postern.key")})
	if err != nil {
		return err
	}
	defer st.Close()
	scope := keys.Scope{Environment: "bench", ProxyID: "px_bench"}
	for i := range many {
		v, err := secret.New([]byte("sk-proj-bench" + rand.Text() + rand.Text()))
		if err != nil {
			return err
		}
		_, err = st.Put(context.Background(), scope.Path(fmt.Sprintf("k%03d", i)), map[string]*secret.Value{keys.Field: v}, 0)
		v.Destroy()
		if err != nil {
			return err
		}
	}
	return nil
}
