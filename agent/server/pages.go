package server

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"iter"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/postern-proxy/postern/agent/keys"
	"github.com/postern-proxy/postern/agent/store"
)

// Pages.
const (
	defaultPage = 50
	maxPage     = 200
)

// limit is how many entries a page has.
func (r *request) limit() (int, error) {
	if !r.query.Has("limit") {
		return defaultPage, nil
	}
	n, err := strconv.Atoi(r.query.Get("limit"))
	if err != nil || n < 1 || n > maxPage {
		return 0, badField("limit", "must be a number from 1 to %d", maxPage)
	}
	return n, nil
}

// cursor is the place behind which a page begins; "" is the beginning.
func (r *request) cursor() (string, error) {
	s := r.query.Get("cursor")
	b, err := base64.RawURLEncoding.DecodeString(s)
	place, ok := strings.CutPrefix(string(b), r.op.name+":")
	if r.query.Has("cursor") && (err != nil || !ok || place == "") {
		return "", badField("cursor", `is not one that this operation gave out as "next"`)
	}
	return place, nil
}

// next is the cursor of the page behind a place.
func (r *request) next(place string) string {
	return base64.RawURLEncoding.EncodeToString([]byte(r.op.name + ":" + place))
}

// page describes the keys of the page that the request asks for, several at
// once. look reports whether a key belongs on it. next is the following page's
// cursor, "" for the last page.
func page[T any](ctx context.Context, r *request, look func(m *keys.Manager, name string) (T, bool, error)) (found []T, next string, err error) {
	limit, err := r.limit()
	if err != nil {
		return nil, "", err
	}
	after, err := r.cursor()
	if err != nil {
		return nil, "", err
	}
	one := r.query.Get("proxy_id")
	if r.query.Has("proxy_id") {
		if err := checkProxyID(one); err != nil {
			return nil, "", badField("proxy_id", "%v", err)
		}
	}
	more, stop := iter.Pull2(walk(ctx, r.m, one, after))
	defer stop()
	found = []T{}
	k, err, ok := more()
	for ok && err == nil {
		if len(found) == limit {
			return found, r.next(after), nil
		}
		var some []keyName
		for ok && err == nil && len(some) < limit-len(found) {
			some = append(some, k)
			k, err, ok = more()
		}
		if err != nil {
			break
		}
		after = some[len(some)-1].String()
		looked, lerr := lookAt(r.m, some, look)
		if lerr != nil {
			return nil, "", lerr
		}
		found = append(found, looked...)
	}
	return found, "", err
}

// atOnce is how many keys of a page are looked at together.
const atOnce = 8

// lookAt looks at keys several at once and returns what belongs on the page, in order.
func lookAt[T any](m *keys.Manager, some []keyName, look func(m *keys.Manager, name string) (T, bool, error)) ([]T, error) {
	type outcome struct {
		value T
		ok    bool
		err   error
		panic any
	}
	outcomes := make([]outcome, len(some))
	var wg sync.WaitGroup
	places := make(chan struct{}, atOnce)
	for i, k := range some {
		places <- struct{}{}
		wg.Go(func() {
			o := &outcomes[i]
			defer func() {
				o.panic = recover() // it is the request's, not the process's
				<-places
			}()
			o.value, o.ok, o.err = look(scoped(m, k.proxyID), k.name)
		})
	}
	wg.Wait()
	var found []T
	for _, o := range outcomes {
		switch {
		case o.panic != nil:
			panic(o.panic)
		case o.err != nil:
			return nil, o.err
		case o.ok:
			found = append(found, o.value)
		}
	}
	return found, nil
}

// scoped is m for the keys of one proxy id.
func scoped(m *keys.Manager, proxyID string) *keys.Manager {
	o := *m
	o.Scope.ProxyID = proxyID
	return &o
}

// keyName names a key within the environment.
type keyName struct{ proxyID, name string }

func (k keyName) String() string { return k.proxyID + "/" + k.name }

// walk yields the keys of one proxy id, or of all (""), in order, from behind a place.
func walk(ctx context.Context, m *keys.Manager, proxyID, after string) iter.Seq2[keyName, error] {
	return func(yield func(keyName, error) bool) {
		scopes, err := []string{proxyID}, error(nil)
		if proxyID == "" {
			if scopes, err = proxyIDs(ctx, m); err != nil {
				yield(keyName{}, err)
				return
			}
		}
		behind, _, _ := strings.Cut(after, "/")
		for _, scope := range scopes {
			if scope < behind {
				continue
			}
			names, err := scoped(m, scope).Names(ctx)
			if err != nil {
				yield(keyName{}, err)
				return
			}
			for _, name := range names {
				k := keyName{scope, name}
				if scope == behind && k.String() <= after {
					continue
				}
				if !yield(k, nil) {
					return
				}
			}
		}
	}
}

// proxyIDs are the scopes of the environment that have keys.
func proxyIDs(ctx context.Context, m *keys.Manager) ([]string, error) {
	scopes, err := m.Scopes(ctx)
	if errors.Is(err, store.ErrForbidden) {
		return nil, fmt.Errorf("%w (with ?proxy_id=px_… only that proxy id's keys are listed)", err)
	}
	var ids []string
	for _, s := range scopes {
		if checkProxyID(s.ProxyID) == nil {
			ids = append(ids, s.ProxyID)
		}
	}
	slices.Sort(ids)
	return ids, err
}
