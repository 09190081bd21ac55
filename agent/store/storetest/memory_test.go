package storetest

import (
	"context"
	"fmt"
	"html"
	"maps"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/postern-proxy/postern/agent/secret"
	"github.com/postern-proxy/postern/agent/store"
)

// memory is the smallest store that passes the suite, and with a fault one that
// must not: it proves that the suite notices.
type memory struct {
	fault string

	mu    sync.Mutex
	paths map[string]*mpath
}

type mpath struct {
	store.Metadata
	data map[int]map[string]*secret.Value
}

func (m *memory) has(fault string) bool { return m.fault == fault }

// enter takes the lock and checks what every method checks.
func (m *memory) enter(ctx context.Context, path string) (leave func(), err error) {
	if err := ctx.Err(); err != nil && !m.has("context ignored") {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	bad := path == ""
	for part := range strings.SplitSeq(path, "/") {
		bad = bad || part == "" || part == "." || part == ".." || strings.ContainsAny(part, "\x00\n")
	}
	if bad && !m.has("paths unchecked") {
		return nil, fmt.Errorf("%q: %w", path, store.ErrInvalid)
	}
	m.mu.Lock()
	return m.mu.Unlock, nil
}

func (m *memory) fail(path string, reason error) error {
	switch m.fault {
	case "two reasons":
		return fmt.Errorf("%s: %w (%w)", path, reason, store.ErrUnavailable)
	case "errors do not name the path":
		return reason
	}
	return fmt.Errorf("%s: %w", path, reason)
}

func (m *memory) Get(ctx context.Context, path string, n int) (*store.Secret, error) {
	leave, err := m.enter(ctx, path)
	if err != nil {
		return nil, err
	}
	defer leave()
	p := m.paths[path]
	switch {
	case n < 0:
		return nil, m.fail(path, store.ErrInvalid)
	case p == nil || n > p.Current || p.Current == 0:
		return nil, m.fail(path, store.ErrNotFound)
	case n == 0 || m.has("get ignores the number"):
		n = p.Current
	}
	i := slices.IndexFunc(p.Versions, func(v store.Version) bool { return v.Number == n })
	if m.has("get falls back to an older version") && i > 0 && !p.Versions[i].Readable() {
		i--
	}
	if i < 0 || !p.Versions[i].Readable() {
		if m.has("deleted is not found") {
			return nil, m.fail(path, store.ErrNotFound)
		}
		return nil, m.fail(path, store.ErrDeleted)
	}
	sec := &store.Secret{Version: p.Versions[i], Fields: map[string]*secret.Value{}}
	for name, v := range p.data[p.Versions[i].Number] {
		sec.Fields[name] = m.copy(v)
		if m.has("get gives its own values away") {
			sec.Fields[name] = v
		}
	}
	return sec, nil
}

func (m *memory) copy(v *secret.Value) *secret.Value {
	c, err := v.Clone()
	if err != nil {
		return nil
	}
	if m.has("values are escaped") {
		v.Use(func(b []byte) { c, _ = secret.New([]byte(html.EscapeString(string(b)))) })
	}
	return c
}

func (m *memory) Put(ctx context.Context, path string, f map[string]*secret.Value, cas int) (store.Version, error) {
	return m.write(ctx, path, f, cas, m.has("put keeps other fields"))
}

func (m *memory) Patch(ctx context.Context, path string, f map[string]*secret.Value, cas int) (store.Version, error) {
	leave, err := m.enter(ctx, path)
	if err != nil {
		return store.Version{}, err
	}
	p := m.paths[path]
	missing := p == nil || p.Current == 0
	if !missing && !p.Versions[len(p.Versions)-1].Readable() {
		missing = !m.has("patch revives what is deleted")
	}
	leave()
	switch {
	case cas < store.Any:
		return store.Version{}, m.fail(path, store.ErrInvalid)
	case missing && !m.has("patch creates"):
		return store.Version{}, m.fail(path, store.ErrNotFound)
	}
	return m.write(ctx, path, f, cas, !m.has("patch drops other fields"))
}

func (m *memory) write(ctx context.Context, path string, f map[string]*secret.Value, cas int, keep bool) (none store.Version, err error) {
	leave, err := m.enter(ctx, path)
	if err != nil {
		return none, err
	}
	defer func() { leave() }()
	data := map[string]*secret.Value{}
	p := m.paths[path]
	if p == nil {
		p = &mpath{data: map[int]map[string]*secret.Value{}}
	}
	if keep {
		maps.Copy(data, p.data[p.Current])
	}
	for name, v := range f {
		switch {
		case m.has("put keeps the caller's value"):
			data[name] = v
		case m.copy(v) == nil:
			if m.has("a destroyed value is left out") {
				continue
			}
			return none, m.fail(path, store.ErrInvalid)
		default:
			data[name] = m.copy(v)
		}
	}
	current := p.Current
	if m.has("cas 0 takes a deleted path for a new one") && current > 0 && !p.Versions[len(p.Versions)-1].Readable() && cas == 0 {
		current = 0
	}
	switch {
	case cas < store.Any:
		return none, m.fail(path, store.ErrInvalid)
	case cas != store.Any && cas != current && !m.has("cas ignored"):
		if m.has("errors hold values") {
			return none, fmt.Errorf("%s: cannot write %s: %w", path, text(f["k"]), store.ErrConflict)
		}
		return none, m.fail(path, store.ErrConflict)
	}
	if m.has("check and set with a gap") {
		leave()
		for range 100 {
			runtime.Gosched()
		}
		m.mu.Lock()
		leave = m.mu.Unlock
		if q := m.paths[path]; q != nil {
			p = q
		}
	}
	m.paths[path] = p
	return m.append(p, data), nil
}

func (m *memory) append(p *mpath, data map[string]*secret.Value) store.Version {
	p.Current++
	v := store.Version{Number: p.Current, Created: m.clock()}
	if m.has("times are local") {
		v.Created = v.Created.In(time.FixedZone("east", 3600))
	}
	p.data[v.Number] = data
	p.Versions = append(p.Versions, v)
	if limit := p.MaxVersions; limit > 0 && len(p.Versions) > limit && !m.has("every version is kept") {
		p.Versions = slices.Delete(p.Versions, 0, len(p.Versions)-limit)
	}
	return v
}

func (m *memory) Metadata(ctx context.Context, path string) (*store.Metadata, error) {
	leave, err := m.enter(ctx, path)
	if err != nil {
		return nil, err
	}
	defer leave()
	p := m.paths[path]
	if p == nil {
		return nil, m.fail(path, store.ErrNotFound)
	}
	if m.has("metadata is not a copy") {
		return &p.Metadata, nil
	}
	c := p.Metadata
	c.Versions, c.Custom = slices.Clone(c.Versions), maps.Clone(c.Custom)
	if m.has("versions sort as text") {
		slices.SortFunc(c.Versions, func(a, b store.Version) int { return strings.Compare(fmt.Sprint(a.Number), fmt.Sprint(b.Number)) })
	}
	return &c, nil
}

func (m *memory) SetMetadata(ctx context.Context, path string, custom map[string]string, maxVersions int) error {
	leave, err := m.enter(ctx, path)
	if err != nil {
		return err
	}
	defer leave()
	tooLong := slices.ContainsFunc(slices.Collect(maps.Values(custom)), func(s string) bool { return len(s) > 512 })
	if len(custom) > 64 && !m.has("any number of labels") || tooLong && !m.has("labels of any length") {
		return m.fail(path, store.ErrInvalid)
	}
	if len(custom) == 64 && m.has("63 labels") {
		return m.fail(path, store.ErrInvalid)
	}
	p := m.paths[path]
	if p == nil {
		p = &mpath{data: map[int]map[string]*secret.Value{}}
		m.paths[path] = p
	}
	switch {
	case m.has("metadata is merged") && p.Custom != nil:
		maps.Copy(p.Custom, custom)
	case m.has("the caller's map is kept"):
		p.Custom = custom
	case m.has("nil labels change nothing") && custom == nil:
	default:
		p.Custom = maps.Clone(custom)
	}
	if maxVersions > 0 || m.has("max versions 0 resets") {
		p.MaxVersions = maxVersions
	}
	return nil
}

func (m *memory) List(ctx context.Context, folder string) ([]string, error) {
	check := "root"
	if folder != "" {
		check = strings.TrimSuffix(folder, "/")
		folder = check + "/"
	}
	leave, err := m.enter(ctx, check)
	if err != nil {
		return nil, err
	}
	defer leave()
	var found []string
	for path := range m.paths {
		rest, ok := strings.CutPrefix(path, folder)
		if !ok {
			continue
		}
		if name, _, deeper := strings.Cut(rest, "/"); deeper && !m.has("list is recursive") {
			if rest = name + "/"; m.has("folders have no slash") {
				rest = name
			}
		}
		found = append(found, rest)
	}
	if slices.Sort(found); m.has("list is unsorted") {
		slices.Reverse(found)
	}
	if len(found) == 0 && m.has("an empty folder is an error") {
		return nil, m.fail(folder, store.ErrNotFound)
	}
	return slices.Compact(found), nil
}

func (m *memory) Destroy(ctx context.Context, path string, versions ...int) error {
	leave, err := m.enter(ctx, path)
	if err != nil {
		return err
	}
	defer leave()
	p := m.paths[path]
	if p == nil {
		return nil
	}
	for i := range p.Versions {
		v := &p.Versions[i]
		if !slices.Contains(versions, v.Number) && (len(versions) > 0 || !m.has("destroy of none is destroy of all")) && !m.has("destroy destroys all") {
			continue
		}
		if v.Destroyed && m.has("destroying twice fails") {
			return m.fail(path, store.ErrDeleted)
		}
		v.Destroyed = !m.has("destroy does nothing")
		if m.has("destroy forgets the time") {
			v.Created = m.clock()
		}
	}
	return nil
}

// SoftDelete deletes the newest version.
func (m *memory) SoftDelete(ctx context.Context, path string) error {
	leave, err := m.enter(ctx, path)
	if err != nil {
		return err
	}
	defer leave()
	p := m.paths[path]
	if !m.has("soft delete does nothing") {
		p.Versions[len(p.Versions)-1].Deleted = m.clock()
	}
	return nil
}

func (m *memory) Remove(ctx context.Context, path string) error {
	leave, err := m.enter(ctx, path)
	if err != nil {
		return err
	}
	defer leave()
	p := m.paths[path]
	switch {
	case p == nil && m.has("removing nothing fails"):
		return m.fail(path, store.ErrNotFound)
	case p != nil && m.has("remove keeps the numbering"):
		p.data, p.Versions, p.Custom = map[int]map[string]*secret.Value{}, nil, nil
		return nil
	case p != nil && m.has("remove keeps metadata"):
		m.paths[path] = &mpath{Metadata: store.Metadata{Custom: p.Custom}, data: map[int]map[string]*secret.Value{}}
		return nil
	}
	delete(m.paths, path)
	if m.has("remove takes what is below") {
		maps.DeleteFunc(m.paths, func(other string, _ *mpath) bool { return strings.HasPrefix(other, path+"/") })
	}
	return nil
}

func (m *memory) Now() time.Time {
	now := m.clock()
	switch m.fault {
	case "now goes back":
		return now.Add(-2 * time.Duration(now.Nanosecond()))
	case "now is another clock":
		return now.Add(time.Hour)
	}
	return now
}

func (m *memory) clock() time.Time {
	if m.has("times stand still") {
		return time.Unix(0, 0).UTC()
	}
	return time.Now().UTC()
}
