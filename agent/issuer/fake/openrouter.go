package fake

import (
	"net/http"
	"strconv"
	"strings"
)

// openRouter: the keys of one management key's account.
type openRouter struct{}

func (openRouter) value() string { return "sk-or-v1-" + random(64) }

// refuse has the status in code's place, as OpenRouter has.
func (openRouter) refuse(w http.ResponseWriter, _ *http.Request, status int, code, message string) {
	var c any = status
	if code != "" {
		c = code
	}
	reply(w, status, map[string]any{"error": map[string]any{"code": c, "message": message, "metadata": nil}, "user_id": nil})
}

func describe(k Key) map[string]any {
	return map[string]any{
		"hash": k.ID, "name": k.Name, "label": masked(k.Value), "disabled": k.Revoked,
		"limit": nil, "limit_remaining": nil, "usage": 0, "created_at": k.Created.UTC().Format("2006-01-02T15:04:05Z"), "updated_at": nil, "expires_at": nil,
	}
}

func (v openRouter) serve(s *Server, w http.ResponseWriter, r *http.Request) {
	if bearer(r) != s.o.Admin {
		v.refuse(w, r, http.StatusUnauthorized, "", "Missing or invalid authentication")
		return
	}
	rest, ok := strings.CutPrefix(r.URL.Path, "/api/v1/keys")
	if !ok {
		v.refuse(w, r, http.StatusNotFound, "", "Not found")
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	hash := strings.TrimPrefix(rest, "/")
	switch {
	case r.Method == http.MethodPost && hash == "":
		name := input(r)["name"]
		if name == "" {
			v.refuse(w, r, http.StatusBadRequest, "", "name: required")
			return
		}
		k := s.add(Key{ID: random(64), Name: name})
		reply(w, http.StatusCreated, map[string]any{"data": describe(k), "key": k.Value})
	case r.Method == http.MethodDelete && hash != "":
		i := s.find(hash)
		if i < 0 {
			v.refuse(w, r, http.StatusNotFound, "", "API key does not exist")
			return
		}
		s.end(i)
		reply(w, http.StatusOK, map[string]any{"deleted": true})
	case r.Method == http.MethodGet && hash == "":
		v.list(s, w, r)
	case r.Method == http.MethodGet:
		i := s.find(hash)
		if i < 0 {
			v.refuse(w, r, http.StatusNotFound, "", "API key does not exist")
			return
		}
		reply(w, http.StatusOK, map[string]any{"data": describe(s.keys[i])})
	default:
		v.refuse(w, r, http.StatusMethodNotAllowed, "", "Method not allowed")
	}
}

// list is newest first, by offset; the caller holds mu.
func (v openRouter) list(s *Server, w http.ResponseWriter, r *http.Request) {
	offset := 0
	if text := r.URL.Query().Get("offset"); text != "" {
		var err error
		if offset, err = strconv.Atoi(text); err != nil || offset < 0 {
			v.refuse(w, r, http.StatusBadRequest, "", "offset: not a number")
			return
		}
	}
	data := []any{}
	for i := len(s.keys) - 1; i >= 0 && len(data) < s.o.PageSize; i-- {
		switch {
		case s.keys[i].Revoked:
		case offset > 0:
			offset--
		default:
			data = append(data, describe(s.keys[i]))
		}
	}
	reply(w, http.StatusOK, map[string]any{"data": data})
}
