package vault

import (
	"context"
	"log/slog"

	"github.com/postern-proxy/postern/agent/secret"
	"github.com/postern-proxy/postern/agent/store"
)

// As returns a Store that works with another token, that of a caller on whose
// behalf something is done: on the same server, through the same connections,
// limiter and clock. The token is neither renewed nor replaced, and is
// forgotten with the Store; it stays the caller's to destroy, after Close.
//
// It costs one request, a lookup of the token, when it is first used. A token
// that Vault does not know is store.ErrUnauthenticated. Close ends the calls
// under way and nothing that is shared; Start does nothing. It is of no use
// after the Store that it was made from is closed.
func (s *Store) As(token *secret.Value) *Store {
	parent := s
	if s.parent != nil {
		parent = s.parent
	}
	cfg := parent.cfg
	cfg.Auth, cfg.Token = Auth{}, token
	child := &Store{
		cfg:     cfg,
		opts:    parent.opts,
		log:     slog.New(slog.DiscardHandler), // what strangers present is no news of ours
		metrics: parent.metrics.ofCaller(),
		clock:   parent.clock,
		method:  callerMethod(token),
		parent:  parent,
		wake:    make(chan struct{}, 1),
		gate:    gate{min: parent.opts.BackoffMin, max: parent.opts.BackoffMax, rand: parent.opts.Rand},
		leases:  map[string]heldLease{},
	}
	child.ctx, child.stop = context.WithCancel(parent.ctx)
	parent.mu.Lock()
	defer parent.mu.Unlock()
	child.layout = parent.layout
	return child
}

// verified reports that the server is known to honour namespaces: the Store
// that this one was made from has logged in.
func (s *Store) verified() bool { return s.parent != nil && s.parent.session.Load() != nil }

// Identity implements store.Identifier. It logs in if need be; where that does
// not tell the display name, it looks the token up, once, if the token may.
func (s *Store) Identity(ctx context.Context) (store.Identity, error) {
	sess, err := s.current(ctx)
	if err != nil {
		return store.Identity{}, at(opLogin, s.endpoint(), err)
	}
	who := sess.who
	who.Expires = sess.expires()
	who.Policies = append([]string(nil), who.Policies...)
	if who.DisplayName != "" {
		return who, nil
	}
	if known := sess.life.name.Load(); known != nil {
		who.DisplayName = *known
		return who, nil
	}
	r, err := s.lookup(ctx, sess.token)
	if err != nil {
		return who, ctx.Err() // the rest is known all the same
	}
	defer r.release()
	var found session
	if e, err := parseEnvelope(r.body); err != nil || parseLookup(e.data, &found) != nil {
		return who, nil
	}
	who.DisplayName = found.who.DisplayName
	sess.life.name.Store(&who.DisplayName)
	return who, nil
}
