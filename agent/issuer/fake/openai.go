package fake

import (
	"net/http"
	"strconv"
	"strings"
)

// openAI: the service accounts of one project.
type openAI struct{}

func (openAI) value() string { return "sk-svcacct-" + random(48) }

func (openAI) refuse(w http.ResponseWriter, _ *http.Request, status int, code, message string) {
	kind := "invalid_request_error"
	switch {
	case status == http.StatusTooManyRequests:
		kind = "requests"
		if code == "" {
			code = "rate_limit_exceeded"
		}
	case status >= 500:
		kind = "server_error"
	}
	var c any
	if code != "" {
		c = code
	}
	reply(w, status, map[string]any{"error": map[string]any{"message": message, "type": kind, "param": nil, "code": c}})
}

func (v openAI) serve(s *Server, w http.ResponseWriter, r *http.Request) {
	w.Header().Set("X-Request-Id", "req_"+random(32))
	w.Header().Set("X-Ratelimit-Limit-Requests", "60")
	w.Header().Set("X-Ratelimit-Remaining-Requests", "59")
	w.Header().Set("X-Ratelimit-Reset-Requests", "1s")
	if given := bearer(r); given != s.o.Admin {
		v.refuse(w, r, http.StatusUnauthorized, "invalid_api_key", "Incorrect API key provided: "+masked(given)+".")
		return
	}
	rest, ok := strings.CutPrefix(r.URL.Path, "/v1/organization/projects/"+s.o.Project+"/service_accounts")
	if !ok {
		v.refuse(w, r, http.StatusNotFound, "not_found", "Project not found.")
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	id := strings.TrimPrefix(rest, "/")
	switch {
	case r.Method == http.MethodPost && rest == "":
		name := input(r)["name"]
		if name == "" {
			v.refuse(w, r, http.StatusBadRequest, "missing_required_parameter", "Missing required parameter: 'name'.")
			return
		}
		k := s.add(Key{ID: "svc_acct_" + random(24), Name: name})
		reply(w, http.StatusOK, map[string]any{
			"object": "organization.project.service_account", "id": k.ID, "name": k.Name, "role": "member", "created_at": k.Created.Unix(),
			"api_key": map[string]any{
				"object": "organization.project.service_account.api_key", "value": k.Value, "name": "Secret Key",
				"created_at": k.Created.Unix(), "id": "key_" + random(16), "expires_at": nil,
			},
		})
	case r.Method == http.MethodDelete && id != "":
		i := s.find(id)
		if i < 0 {
			v.refuse(w, r, http.StatusNotFound, "not_found", "No such service account.")
			return
		}
		s.end(i)
		reply(w, http.StatusOK, map[string]any{"object": "organization.project.service_account.deleted", "id": id, "deleted": true})
	case r.Method == http.MethodGet && rest == "":
		v.list(s, w, r)
	case r.Method == http.MethodGet && id != "":
		i := s.find(id)
		if i < 0 {
			v.refuse(w, r, http.StatusNotFound, "not_found", "No such service account.")
			return
		}
		reply(w, http.StatusOK, v.describe(s.keys[i]))
	default:
		v.refuse(w, r, http.StatusMethodNotAllowed, "", "Not allowed.")
	}
}

func (openAI) describe(k Key) map[string]any {
	return map[string]any{
		"object": "organization.project.service_account", "id": k.ID, "name": k.Name, "role": "member", "created_at": k.Created.Unix(),
	}
}

// list pages by the id of the last entry seen; the caller holds mu.
func (v openAI) list(s *Server, w http.ResponseWriter, r *http.Request) {
	limit, err := strconv.Atoi(r.URL.Query().Get("limit"))
	if err != nil {
		limit = 20
	}
	if limit < 1 || limit > 100 {
		v.refuse(w, r, http.StatusBadRequest, "invalid_value", "limit must be between 1 and 100.")
		return
	}
	limit = min(limit, s.o.PageSize)
	after := r.URL.Query().Get("after")
	data, more := []any{}, false
	var first, last any
	for _, k := range s.keys {
		switch {
		case after != "":
			if k.ID == after {
				after = ""
			}
		case k.Revoked:
		case len(data) == limit:
			more = true
		default:
			if first == nil {
				first = k.ID
			}
			last = k.ID
			data = append(data, v.describe(k))
		}
	}
	reply(w, http.StatusOK, map[string]any{"object": "list", "data": data, "first_id": first, "last_id": last, "has_more": more})
}
