package issuer

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"net/url"
	"regexp"
	"sync"
	"time"

	"github.com/postern-proxy/postern/agent/secret"
)

const (
	// maxAnswer bounds an answer: a page of a hundred entries is some 50 kB.
	maxAnswer = 1 << 20
	// maxPages bounds a list, and so what a vendor that never ends it can cost.
	maxPages = 1000
)

// vendor is what all of them that speak HTTP have in common. It never changes.
type vendor struct {
	name    string // begins each error
	base    string // of every URL, without a slash at its end
	where   string // the settings that say what is asked about
	rt      http.RoundTripper
	admin   func(context.Context) (map[string]*secret.Value, error)
	timeout time.Duration
	now     func() time.Time
}

// call is one request.
type call struct {
	what   string // for errors, as in "create a service account"
	method string
	url    string
	header http.Header
	body   []byte // wiped when the call is over; nil for none
	where  string // the settings to look at, where they are not the vendor's
	// secrets are what the request carries, so that no error repeats it.
	secrets []string
}

// credential reads the admin credential. The caller destroys the fields.
func (v *vendor) credential(ctx context.Context) (map[string]*secret.Value, error) {
	fields, err := v.admin(ctx)
	if err != nil {
		return nil, fromStore(ctx, v.name+": the admin credential (admin_key) cannot be read", err)
	}
	return fields, nil
}

// field is one field of the admin credential as the text that a header needs: a
// string cannot be wiped, so it is made anew for each call and kept nowhere.
func (v *vendor) field(fields map[string]*secret.Value, name string) (string, error) {
	value, ok := fields[name]
	if !ok {
		return "", fail(ErrRefused, "%s: the entry that admin_key names has no field %s: store one", v.name, name)
	}
	var text string
	bad := false
	value.Use(func(b []byte) {
		for _, c := range b {
			bad = bad || c < 0x21 || c > 0x7e // a line break would end the header, or begin another
		}
		if !bad {
			text = string(b)
		}
	})
	if bad || text == "" {
		return "", fail(ErrRefused, "%s: the field %s of the entry that admin_key names must be visible ASCII without spaces or line breaks", v.name, name)
	}
	return text, nil
}

// apiKey is the admin credential of vendors whose credential is one key.
func (v *vendor) apiKey(ctx context.Context) (string, error) {
	fields, err := v.credential(ctx)
	if err != nil {
		return "", err
	}
	defer destroy(fields)
	return v.field(fields, "api_key")
}

// adminFor is apiKey for an operation on the credential with this id, which is
// checked first: then nothing is read for one that is none.
func (v *vendor) adminFor(ctx context.Context, id string) (string, error) {
	if err := v.checkID(id); err != nil {
		return "", err
	}
	return v.apiKey(ctx)
}

func destroy(fields map[string]*secret.Value) {
	for _, value := range fields {
		value.Destroy()
	}
}

// do sends a request and decodes a successful answer into into, which may be
// nil. The answer's bytes are wiped; what is secret in it into must hold as hidden.
func (v *vendor) do(ctx context.Context, c call, into any) error {
	what := v.name + ": " + c.what
	defer wipe(c.body)
	limited, cancel := context.WithTimeout(ctx, v.timeout)
	defer cancel()
	sent := &body{b: c.body}
	defer sent.close() // before the wipe
	req, err := http.NewRequestWithContext(limited, c.method, c.url, nil)
	if err != nil {
		return fail(ErrRefused, "%s: the URL cannot be used: look at base_url", what)
	}
	for name, values := range c.header {
		req.Header[name] = values
	}
	req.Header.Set("Accept", "application/json")
	req.Header.Set("User-Agent", "postern")
	if c.body != nil {
		req.ContentLength = int64(len(c.body))
		req.Body = sent.reader()
		req.GetBody = func() (io.ReadCloser, error) { return sent.reader(), nil }
		if req.Header.Get("Content-Type") == "" {
			req.Header.Set("Content-Type", "application/json")
		}
	}
	resp, err := v.rt.RoundTrip(req)
	if err != nil {
		return unreachable(ctx, what, hostport(req.URL), err)
	}
	defer resp.Body.Close()
	answer, err := readAll(resp.Body)
	defer wipe(answer)
	if resp.StatusCode < 200 || resp.StatusCode > 299 { // told by what was read of it
		return refusal(what, cmp.Or(c.where, v.where), resp.StatusCode, resp.Header, answer, v.now(), c.secrets)
	}
	switch {
	case errors.Is(err, errTooLarge):
		return fail(ErrLimited, "%s: the answer is larger than %d MiB", what, maxAnswer>>20)
	case err != nil:
		return unreachable(ctx, what, hostport(req.URL), err)
	case into == nil:
		return nil
	}
	if json.Unmarshal(answer, into) != nil { // whose error may hold a part of it
		return v.unclear(c.what, "it is not what the documentation says")
	}
	return nil
}

func hostport(u *url.URL) string { return net.JoinHostPort(u.Hostname(), cmp.Or(u.Port(), "443")) }

// unclear is an answer that says success and cannot be used.
func (v *vendor) unclear(what, why string) *Error {
	return fail(ErrLimited, "%s: %s: the answer cannot be used: %s", v.name, what, why)
}

// gone turns "there is no such thing" into success.
func gone(err error) error {
	if e, ok := errors.AsType[*Error](err); ok && (e.Status == http.StatusNotFound || e.Status == http.StatusGone) {
		return nil
	}
	return err
}

// idForm is what every vendor's ids look like. What else comes could change a path.
var idForm = regexp.MustCompile(`^[A-Za-z0-9_~-][A-Za-z0-9_.~-]{0,255}$`)

// checkID refuses ids that are none.
func (v *vendor) checkID(id string) error {
	if !idForm.MatchString(id) {
		return fail(ErrRefused, "%s: the id of the credential is none that it gives out", v.name)
	}
	return nil
}

// issued makes the result of Create of an answer's parts.
func (v *vendor) issued(what, id string, key *hidden, expires time.Time) (*Issued, error) {
	if !idForm.MatchString(id) {
		return nil, v.unclear(what, "it holds no id")
	}
	value, err := key.take()
	if err != nil {
		return nil, v.unclear(what, err.Error())
	}
	return &Issued{ID: id, Fields: map[string]*secret.Value{"api_key": value}, Expires: expires}, nil
}

func bearer(token string) http.Header {
	return http.Header{"Authorization": {"Bearer " + token}}
}

var errTooLarge = errors.New("too large")

// readAll reads to the end. The bytes are the caller's to wipe, also beside an
// error; what it outgrew is wiped here.
func readAll(r io.Reader) ([]byte, error) {
	b := make([]byte, 0, 16<<10)
	for {
		if len(b) == cap(b) {
			grown := append(make([]byte, 0, 2*cap(b)), b...)
			wipe(b)
			b = grown
		}
		n, err := r.Read(b[len(b):cap(b)])
		b = b[:len(b)+n]
		switch {
		case len(b) > maxAnswer:
			return b, errTooLarge
		case errors.Is(err, io.EOF):
			return b, nil
		case err != nil:
			return b, err
		}
	}
}

// body is what a request sends. A transport may go on reading it after it gave
// up the request; close ends that, so that the bytes can be wiped.
type body struct {
	mu     sync.Mutex
	b      []byte
	closed bool
}

func (o *body) close() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.closed = true
}

func (o *body) reader() io.ReadCloser { return &bodyReader{of: o} }

type bodyReader struct {
	of   *body
	next int
}

func (r *bodyReader) Read(p []byte) (int, error) {
	r.of.mu.Lock()
	defer r.of.mu.Unlock()
	if r.of.closed {
		return 0, errors.New("the request is over")
	}
	n := copy(p, r.of.b[r.next:])
	if r.next += n; r.next == len(r.of.b) {
		return n, io.EOF
	}
	return n, nil
}

func (r *bodyReader) Close() error { return nil }

// sweep revokes the entries that are labelled so and not kept, all of them even
// if one fails.
func sweep(ids, keep []string, revoke func(id string) error) error {
	kept := map[string]bool{}
	for _, id := range keep {
		kept[id] = true
	}
	var first error
	for _, id := range ids {
		if kept[id] {
			continue
		}
		if err := revoke(id); err != nil && first == nil {
			first = err
		}
	}
	return first
}

func unix(seconds int64) time.Time {
	if seconds <= 0 {
		return time.Time{}
	}
	return time.Unix(seconds, 0).UTC()
}
