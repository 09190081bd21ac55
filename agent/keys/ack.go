package keys

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode"

	"github.com/postern-proxy/postern/agent/rotation"
	"github.com/postern-proxy/postern/agent/store"
)

const (
	// ackLife is how long after its last word an agent counts as live.
	ackLife = 3 * time.Minute
	// ackReaders is how many acknowledgements are read at a time.
	ackReaders = 16
)

// ackState is what an agent says of one key.
type ackState struct {
	To     rotation.ID    `json:"to"`
	State  rotation.State `json:"to_state"`
	From   rotation.State `json:"from_state"`
	Reason string         `json:"reason"`
}

// readAcks returns what the agents of the scope that hold a key say of it, by
// name. An agent that speaks of another rotation has not seen this one: To is Unknown.
func (m *Manager) readAcks(ctx context.Context, name string, to rotation.ID) ([]Agent, error) {
	paths, err := m.ackPaths(ctx)
	if err != nil {
		return nil, err
	}
	now := m.now()
	var (
		mu     sync.Mutex
		agents []Agent
		failed error
	)
	inParallel(len(paths), ackReaders, func(i int) {
		a, ok, err := m.readAck(ctx, paths[i], name, to, now)
		mu.Lock()
		defer mu.Unlock()
		if err != nil {
			failed = err
		} else if ok {
			agents = append(agents, a)
		}
	})
	slices.SortFunc(agents, func(a, b Agent) int { return cmp.Or(cmp.Compare(a.Name, b.Name), a.At.Compare(b.At)) })
	return agents, failed
}

func (m *Manager) ackPaths(ctx context.Context) ([]string, error) {
	entities, err := m.Store.List(ctx, m.Scope.acks())
	if err != nil {
		return nil, err
	}
	var paths []string
	for _, entity := range entities {
		if !strings.HasSuffix(entity, "/") {
			continue
		}
		names, err := m.Store.List(ctx, m.Scope.acks()+entity)
		if err != nil {
			return nil, err
		}
		for _, n := range names {
			if !strings.HasSuffix(n, "/") {
				paths = append(paths, m.Scope.acks()+entity+n)
			}
		}
	}
	return paths, nil
}

// readAck returns what one agent says of a key. Nothing: it does not hold it, or has left.
func (m *Manager) readAck(ctx context.Context, path, name string, to rotation.ID, now time.Time) (Agent, bool, error) {
	fields, v, err := store.GetText(ctx, m.Store, path)
	if errors.Is(err, store.ErrNotFound) {
		return Agent{}, false, nil
	}
	if err != nil {
		return Agent{}, false, err
	}
	var keys map[string]ackState
	at, err := time.Parse(time.RFC3339Nano, string(fields["at"]))
	if err == nil {
		err = json.Unmarshal(fields["keys"], &keys)
	}
	if err != nil || v.Created.Before(at) { // an agent's own clock must not make it live for ever
		at = v.Created
	}
	base := path[strings.LastIndexByte(path, '/')+1:]
	a := Agent{Name: printable(cmp.Or(string(fields["agent"]), base)), At: at.UTC(), Live: now.Sub(at) <= ackLife}
	if err != nil { // as long as it can be meant, it may be that of an agent which needs the old version
		a.Name, a.Reason = printable(base), "its acknowledgement cannot be read"
		return a, a.Live, nil
	}
	k, ok := keys[name]
	if !ok {
		return Agent{}, false, nil
	}
	if k.To.Equal(to) {
		a.To, a.From, a.Reason = k.State, k.From, printable(k.Reason)
	}
	return a, true, nil
}

// printable is a text of somebody else's, fit for a terminal.
func printable(s string) string {
	const most = 300
	s = strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return '\uFFFD'
		}
		return r
	}, strings.ToValidUTF8(s, "\uFFFD"))
	if len(s) <= most {
		return s
	}
	return strings.ToValidUTF8(s[:most], "") + "…"
}
