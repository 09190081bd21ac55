package sync

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	stdsync "sync"
	"time"

	"github.com/postern-proxy/postern/agent/audit"
	"github.com/postern-proxy/postern/agent/rotation"
	"github.com/postern-proxy/postern/agent/secret"
	"github.com/postern-proxy/postern/agent/store"
)

// memory is a store in memory that can fail and hang, and a PathReader.
type memory struct {
	mu    stdsync.Mutex
	kv    map[string]*entry
	fail  map[string]error // by path; "" fails everything
	hang  bool             // everything waits for its context
	slow  time.Duration    // of Get below provider-keys/, whatever its context says
	reads map[string]int

	// vault_path
	paths  map[string]pathAnswer
	renews []store.Lease
	renew  func(store.Lease) (store.Lease, error)
}

type entry struct {
	versions []store.Version
	data     []map[string]string
	custom   map[string]string
}

type pathAnswer struct {
	version store.Version
	data    map[string]string
	lease   *store.Lease
}

func newMemory() *memory {
	return &memory{kv: map[string]*entry{}, fail: map[string]error{}, reads: map[string]int{}, paths: map[string]pathAnswer{}}
}

func (m *memory) Now() time.Time { return time.Now() }

// enter is what every operation does first; the caller unlocks.
func (m *memory) enter(ctx context.Context, path string) error {
	m.mu.Lock()
	m.reads[path]++
	if m.hang {
		m.mu.Unlock()
		<-ctx.Done()
		m.mu.Lock()
		return fmt.Errorf("%s: %w", path, ctx.Err())
	}
	for _, p := range []string{"", path} {
		if err := m.fail[p]; err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
	}
	return nil
}

func values(data map[string]string) map[string]*secret.Value {
	out := map[string]*secret.Value{}
	for k, s := range data {
		v, err := secret.New([]byte(s))
		if err != nil {
			panic(err)
		}
		out[k] = v
	}
	return out
}

func (m *memory) Get(ctx context.Context, path string, version int) (*store.Secret, error) {
	m.mu.Lock()
	slow := m.slow
	m.mu.Unlock()
	if strings.HasPrefix(path, "provider-keys/") {
		time.Sleep(slow)
	}
	defer m.mu.Unlock()
	if err := m.enter(ctx, path); err != nil {
		return nil, err
	}
	e := m.kv[path]
	if e == nil {
		return nil, fmt.Errorf("%s: %w", path, store.ErrNotFound)
	}
	if version == 0 {
		version = len(e.versions)
	}
	if version > len(e.versions) {
		return nil, fmt.Errorf("%s: %w", path, store.ErrNotFound)
	}
	v := e.versions[version-1]
	if !v.Readable() {
		return nil, fmt.Errorf("%s: %w", path, store.ErrDeleted)
	}
	return &store.Secret{Version: v, Fields: values(e.data[version-1])}, nil
}

func (m *memory) Put(ctx context.Context, path string, fields map[string]*secret.Value, cas int) (store.Version, error) {
	defer m.mu.Unlock()
	if err := m.enter(ctx, path); err != nil {
		return store.Version{}, err
	}
	if e := m.kv[path]; cas != store.Any && e != nil && len(e.versions) != cas {
		return store.Version{}, fmt.Errorf("%s: %w", path, store.ErrConflict)
	}
	data := map[string]string{}
	for name, v := range fields {
		v.Use(func(b []byte) { data[name] = string(b) })
	}
	return m.add(path, data), nil
}

func (m *memory) add(path string, data map[string]string) store.Version {
	e := m.kv[path]
	if e == nil {
		e = &entry{}
		m.kv[path] = e
	}
	v := store.Version{Number: len(e.versions) + 1, Created: time.Now().UTC()}
	e.versions, e.data = append(e.versions, v), append(e.data, data)
	return v
}

func (m *memory) Metadata(ctx context.Context, path string) (*store.Metadata, error) {
	defer m.mu.Unlock()
	if err := m.enter(ctx, path); err != nil {
		return nil, err
	}
	e := m.kv[path]
	if e == nil {
		return nil, fmt.Errorf("%s: %w", path, store.ErrNotFound)
	}
	return &store.Metadata{Current: len(e.versions), Versions: slices.Clone(e.versions), Custom: maps.Clone(e.custom)}, nil
}

func (m *memory) ReadPath(ctx context.Context, path string) (*store.Secret, error) {
	defer m.mu.Unlock()
	if err := m.enter(ctx, path); err != nil {
		return nil, err
	}
	a, ok := m.paths[path]
	if !ok {
		return nil, fmt.Errorf("%s: %w", path, store.ErrNotFound)
	}
	if a.version.Created.IsZero() {
		a.version.Created = time.Now().UTC()
	}
	data := map[string]string{}
	for k, v := range a.data { // a dynamic engine makes another credential at each read
		data[k] = strings.ReplaceAll(v, "#", fmt.Sprintf("%04d", m.reads[path]))
	}
	s := &store.Secret{Version: a.version, Fields: values(data)}
	if a.lease != nil {
		l := *a.lease
		s.Lease = &l
	}
	return s, nil
}

func (m *memory) RenewLease(ctx context.Context, l store.Lease) (store.Lease, error) {
	defer m.mu.Unlock()
	if err := m.enter(ctx, "renew"); err != nil {
		return store.Lease{}, err
	}
	m.renews = append(m.renews, l)
	if m.renew != nil {
		return m.renew(l)
	}
	return l, nil
}

// The rest is no business of a Loop.
func (m *memory) Patch(context.Context, string, map[string]*secret.Value, int) (store.Version, error) {
	panic("a loop patches nothing")
}
func (m *memory) SetMetadata(context.Context, string, map[string]string, int) error {
	panic("a loop writes no metadata")
}
func (m *memory) List(context.Context, string) ([]string, error) { panic("a loop lists nothing") }
func (m *memory) Destroy(context.Context, string, ...int) error {
	panic("a loop destroys nothing in the store")
}

// Remove is for acknowledgements; a Loop removes nothing. Failures of "remove" hit nothing else.
func (m *memory) Remove(ctx context.Context, path string) error {
	defer m.mu.Unlock()
	if err := m.enter(ctx, path); err != nil {
		return err
	}
	if !strings.HasPrefix(path, "acks/") {
		panic("a loop removes nothing")
	}
	if err := m.fail["remove"]; err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	delete(m.kv, path)
	return nil
}

// What tests do to the store.

func (m *memory) write(path, key string) store.Version {
	return m.writeFields(path, map[string]string{"api_key": key})
}

func (m *memory) writeFields(path string, data map[string]string) store.Version {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.add(path, data)
}

func (m *memory) writeRecord(path string, r rotation.Record) {
	fields, err := r.Encode()
	if err != nil {
		panic(err)
	}
	data := map[string]string{}
	for k, b := range fields {
		data[k] = string(b)
	}
	m.writeFields(path, data)
}

func (m *memory) set(f func()) {
	m.mu.Lock()
	defer m.mu.Unlock()
	f()
}

func (m *memory) broken(path string, err error) {
	m.set(func() { m.fail[path] = err })
}

func (m *memory) count(path string) int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.reads[path]
}

// journal is an audit sink that can fail.
type journal struct {
	mu     stdsync.Mutex
	events []audit.Event
	fail   error
	failed int
	slow   time.Duration // whatever the context says
}

func (j *journal) Append(ctx context.Context, e audit.Event) (audit.Head, error) {
	j.mu.Lock()
	slow := j.slow
	j.mu.Unlock()
	if slow > 0 {
		time.Sleep(slow)
		ctx = context.Background()
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return audit.Head{}, err
	}
	if j.fail != nil {
		j.failed++
		return audit.Head{}, j.fail
	}
	j.events = append(j.events, e)
	return audit.Head{Seq: uint64(len(j.events))}, nil
}

// tries is how often an entry was refused.
func (j *journal) tries() int {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.failed
}

func (j *journal) set(slow time.Duration) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.slow = slow
}

func (j *journal) broken(err error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.fail = err
}

// told returns what was recorded since the last call, as "version.promoted 2 ok".
func (j *journal) told() []string {
	j.mu.Lock()
	defer j.mu.Unlock()
	var out []string
	for _, e := range j.events {
		out = append(out, fmt.Sprintf("%s %d %s", e.Event, e.Version, e.Outcome))
	}
	j.events = nil
	return out
}
