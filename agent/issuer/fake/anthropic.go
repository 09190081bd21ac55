package fake

import (
	"net/http"
	"strings"
)

// anthropic: the API keys of an organization, which Add makes.
type anthropic struct{}

func (anthropic) value() string { return "sk-ant-api03-" + random(80) + "-" + random(6) + "AA" }

func (anthropic) refuse(w http.ResponseWriter, _ *http.Request, status int, code, message string) {
	if code == "" {
		code = map[int]string{
			400: "invalid_request_error", 401: "authentication_error", 403: "permission_error", 404: "not_found_error",
			429: "rate_limit_error", 529: "overloaded_error",
		}[status]
	}
	if code == "" {
		code = "api_error"
	}
	reply(w, status, map[string]any{"type": "error", "error": map[string]any{"type": code, "message": message}, "request_id": "req_" + random(24)})
}

func (v anthropic) serve(s *Server, w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Request-Id", "req_"+random(24))
	w.Header().Set("Anthropic-Ratelimit-Requests-Remaining", "49")
	id, ok := strings.CutPrefix(r.URL.Path, "/v1/organizations/api_keys/")
	switch {
	case r.Header.Get("X-Api-Key") != s.o.Admin:
		v.refuse(w, r, http.StatusUnauthorized, "", "invalid x-api-key")
		return
	case r.Header.Get("Anthropic-Version") == "":
		v.refuse(w, r, http.StatusBadRequest, "", "anthropic-version: header is required")
		return
	case !ok || r.Method != http.MethodPost && r.Method != http.MethodGet:
		v.refuse(w, r, http.StatusNotFound, "", "Not found")
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	at := -1
	for i, k := range s.keys { // what is inactive is still there
		if k.ID == id {
			at = i
		}
	}
	if at < 0 {
		v.refuse(w, r, http.StatusNotFound, "", "API key not found")
		return
	}
	if r.Method == http.MethodPost {
		switch input(r)["status"] {
		case "inactive", "archived":
			if !s.keys[at].Revoked {
				s.end(at)
			}
		default:
			v.refuse(w, r, http.StatusBadRequest, "", "status: must be active, inactive or archived")
			return
		}
	}
	k := s.keys[at]
	reply(w, http.StatusOK, map[string]any{
		"id": k.ID, "type": "api_key", "name": k.Name, "status": map[bool]string{true: "inactive", false: "active"}[k.Revoked], "workspace_id": nil,
		"created_at": k.Created.UTC().Format("2006-01-02T15:04:05.000000Z"), "created_by": map[string]any{"id": "user_" + random(16), "type": "user"},
		"partial_key_hint": masked(k.Value),
	})
}
