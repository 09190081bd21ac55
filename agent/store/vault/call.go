package vault

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/vault/api"

	"github.com/postern-proxy/postern/agent/store"
)

// maxAnswer and maxBody bound an answer and a request, in bytes. A listing comes
// in one piece, however many names there are: maxListing is room for some
// four million entries of the record of operations.
const (
	maxAnswer  = 1 << 20
	maxListing = 64 << 20
	maxBody    = 1 << 20
)

// operation is what a request is for; the label of the metrics and a word of the errors.
type operation string

const (
	opGet         operation = "get"
	opPut         operation = "put"
	opPatch       operation = "patch"
	opMetadata    operation = "metadata"
	opSetMetadata operation = "set_metadata"
	opList        operation = "list"
	opDestroy     operation = "destroy"
	opRemove      operation = "remove"
	opReadPath    operation = "read_path"
	opRenewLease  operation = "renew_lease"
	opLogin       operation = "login"
	opRenew       operation = "renew_token"
	opLookup      operation = "lookup_token"
	opNamespace   operation = "check_namespace"
	opMount       operation = "check_mount"
	opRevokeLease operation = "revoke_lease"
	opCapable     operation = "capabilities"
)

// call is one request to Vault.
type call struct {
	op     operation
	method string
	path   string // the API path, below /v1/
	query  url.Values
	body   []byte // wiped once Vault has answered; nil for none
	// namespace replaces the configured one if it is not "".
	namespace string
}

// capability names what a policy must grant for a call.
func (c *call) capability() string {
	switch {
	case c.query.Get("list") != "":
		return "list"
	case c.method == http.MethodGet:
		return "read"
	case c.method == http.MethodDelete:
		return "delete"
	case c.method == http.MethodPatch:
		return "patch"
	case c.op == opPut:
		return "create or update"
	}
	return "update"
}

// limit is how large the answer may be.
func (c *call) limit() int {
	if c.op == opList {
		return maxListing
	}
	return maxAnswer
}

// reply is Vault's answer. Its body is wiped by release.
type reply struct {
	status int
	header http.Header
	body   []byte
	// sent is the local time just before the request: terms count from there.
	sent time.Time
	by   *session // whose request it answers; nil without a session
}

// release wipes the answer. It may be called on nil.
func (r *reply) release() {
	if r != nil {
		clear(r.body)
		r.body = nil
	}
}

// request sends a call as the current session and returns a successful answer,
// which the caller releases. If Vault does not know the token any more, it logs
// in anew, if another login may begin, and sends the call once more. The body
// is wiped.
func (s *Store) request(ctx context.Context, c *call) (*reply, error) {
	defer clear(c.body)
	sess, err := s.current(ctx)
	if err != nil {
		return nil, err
	}
	r, err := s.do(ctx, c, sess.token)
	var f *failure
	if errors.As(err, &f) && f.badToken {
		if sess, err = s.replace(ctx, sess); err != nil {
			return nil, err
		}
		r, err = s.do(ctx, c, sess.token)
	}
	if err != nil {
		return nil, err
	}
	r.by = sess
	return r, nil
}

// do sends a call with a token ("" for none) and counts it. Anything but
// success is an error.
func (s *Store) do(ctx context.Context, c *call, token string) (*reply, error) {
	r, err := s.send(ctx, c, token)
	s.note(err, token)
	return r, err
}

// note remembers whether Vault is away. A token that it does not know says
// nothing: that is how it comes back after it lost its state.
func (s *Store) note(err error, token string) {
	var f *failure
	switch {
	case errors.Is(err, store.ErrUnavailable):
		s.outage.Store(true)
	case token != "" && (err == nil || errors.As(err, &f) && !f.badToken):
		s.outage.Store(false)
	}
}

func (s *Store) send(ctx context.Context, c *call, token string) (*reply, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	limited, cancel := context.WithTimeout(ctx, s.opts.Timeout)
	defer cancel()
	defer context.AfterFunc(s.ctx, cancel)() // Close ends calls under way
	if err := s.opts.Limiter.Wait(limited); err != nil {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		return nil, fail(store.ErrUnavailable, "postern's own limit of %v requests a second to Vault is used up", s.opts.Limiter.Limit())
	}
	start := time.Now()
	r, err := s.exchange(ctx, limited, c, token)
	if err == nil && r.status >= 300 {
		err = s.explain(c, r, token)
		r.release()
		r = nil
	}
	s.metrics.observe(c.op, err, time.Since(start))
	return r, err
}

// exchange sends one request and takes the answer, whatever its status. Limited
// is ctx with the request's own time limit.
func (s *Store) exchange(ctx, limited context.Context, c *call, token string) (*reply, error) {
	body := &outgoing{b: c.body}
	defer body.close()
	x := &exchange{body: body, limit: c.limit()}
	// Vault's library builds the request (address, headers); the exchanger
	// below it sends the body and takes the answer, so that the library holds neither.
	client := s.connections().api
	req := client.NewRequest(c.method, "/v1/"+c.path)
	req.ClientToken = token
	if c.query != nil {
		req.Params = c.query
	}
	if c.namespace != "" {
		client = client.WithNamespace(c.namespace)
	}
	if c.method == http.MethodPatch {
		req.Headers.Set("Content-Type", "application/merge-patch+json")
	} else if c.body != nil {
		req.Headers.Set("Content-Type", "application/json")
	}
	x.reply.sent = s.opts.Now()
	//lint:ignore SA1019 the library's typed calls decode answers into Go strings, which cannot be wiped
	_, err := client.RawRequestWithContext(context.WithValue(limited, exchangeKey{}, x), req)
	received := s.opts.Now()
	// The library also calls a status an error; what counts is whether there was an answer.
	var status *api.ResponseError
	if err != nil && !errors.As(err, &status) {
		x.reply.release()
		if errors.Is(err, errTooLarge) {
			return nil, fail(store.ErrTooLarge, "the answer of %s to %s is larger than %d MiB", s.endpoint(), c.path, c.limit()>>20)
		}
		return nil, s.unreachable(ctx, err)
	}
	s.clock.observe(x.reply.header, x.reply.sent, received)
	return &x.reply, nil
}

// exchange carries the body of a request down to the exchanger, and the answer back.
type exchange struct {
	body  *outgoing
	limit int // of the answer
	reply reply
}

type exchangeKey struct{}

// exchanger is the transport below Vault's library.
type exchanger struct{ transport *http.Transport }

func (e exchanger) RoundTrip(req *http.Request) (*http.Response, error) {
	x, ok := req.Context().Value(exchangeKey{}).(*exchange)
	if !ok {
		return nil, errors.New("a request of another origin")
	}
	if n := len(x.body.b); n > 0 {
		req = req.WithContext(req.Context())
		req.ContentLength = int64(n)
		req.Body = x.body.reader()
		req.GetBody = func() (io.ReadCloser, error) { return x.body.reader(), nil }
	}
	resp, err := e.transport.RoundTrip(req)
	if err != nil {
		return nil, err
	}
	expected := 0
	if resp.ContentLength > 0 {
		expected = int(min(resp.ContentLength, int64(x.limit))) + 1
	}
	x.reply.status, x.reply.header = resp.StatusCode, resp.Header
	x.reply.body, err = readAll(resp.Body, expected, x.limit)
	resp.Body.Close()
	if err != nil {
		return nil, err
	}
	resp.Body = http.NoBody
	return resp, nil
}

// outgoing is the body of a request. The transport may go on reading a body
// after the answer came or the call was given up; close makes that fail, so
// that the bytes can be wiped.
type outgoing struct {
	mu     sync.Mutex
	b      []byte
	closed bool
}

func (o *outgoing) close() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.closed = true
}

func (o *outgoing) reader() io.ReadCloser { return &outgoingReader{o: o} }

type outgoingReader struct {
	o    *outgoing
	next int
}

func (r *outgoingReader) Read(p []byte) (int, error) {
	r.o.mu.Lock()
	defer r.o.mu.Unlock()
	if r.o.closed {
		return 0, errors.New("the request was given up")
	}
	n := copy(p, r.o.b[r.next:])
	r.next += n
	if r.next == len(r.o.b) {
		return n, io.EOF
	}
	return n, nil
}

func (r *outgoingReader) Close() error { return nil }

// apiPath joins the parts of an API path.
func apiPath(parts ...string) string { return strings.Join(parts, "/") }
