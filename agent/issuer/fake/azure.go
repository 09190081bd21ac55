package fake

import (
	"net/http"
	"strings"
	"time"
)

// azure: the two keys of one account, and the login in front of them.
type azure struct{}

func (azure) value() string { return random(84) }

func (azure) login(r *http.Request) bool { return strings.HasSuffix(r.URL.Path, "/oauth2/v2.0/token") }

func (v azure) refuse(w http.ResponseWriter, r *http.Request, status int, code, message string) {
	if v.login(r) {
		if code == "" {
			code = "temporarily_unavailable"
		}
		reply(w, status, map[string]any{
			"error": code, "error_description": "AADSTS90000: " + message + " Trace ID: " + random(32), "error_codes": []int{90000},
			"timestamp": time.Now().UTC().Format("2006-01-02 15:04:05Z"), "trace_id": random(32), "correlation_id": random(32),
		})
		return
	}
	if code == "" {
		code = map[int]string{
			400: "BadRequest", 401: "InvalidAuthenticationToken", 403: "AuthorizationFailed", 404: "ResourceNotFound", 409: "Conflict", 429: "TooManyRequests",
		}[status]
	}
	if code == "" {
		code = "InternalServerError"
	}
	reply(w, status, map[string]any{"error": map[string]any{"code": code, "message": message}})
}

func (v azure) serve(s *Server, w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if v.login(r) {
		v.token(s, w, r)
		return
	}
	w.Header().Set("X-Ms-Request-Id", random(32))
	w.Header().Set("X-Ms-Ratelimit-Remaining-Subscription-Writes", "1199")
	account := "/subscriptions/" + s.o.Subscription + "/resourceGroups/" + s.o.ResourceGroup + "/providers/Microsoft.CognitiveServices/accounts/" + s.o.Account
	what, ok := strings.CutPrefix(r.URL.Path, account+"/")
	switch {
	case !s.tokens[bearer(r)]:
		v.refuse(w, r, http.StatusUnauthorized, "", "The access token is invalid.")
		return
	case r.URL.Query().Get("api-version") == "":
		v.refuse(w, r, http.StatusBadRequest, "MissingApiVersionParameter", "The api-version query parameter (?api-version=) is required for all requests.")
		return
	case !ok || r.Method != http.MethodPost:
		v.refuse(w, r, http.StatusNotFound, "", "The Resource was not found.")
		return
	}
	switch what {
	case "listKeys":
	case "regenerateKey":
		slot := strings.ToLower(input(r)["keyName"])
		if slot != "key1" && slot != "key2" {
			v.refuse(w, r, http.StatusBadRequest, "InvalidKeyName", "The key name is invalid.")
			return
		}
		s.add(Key{ID: slot}) // and the one before ends at once
	default:
		v.refuse(w, r, http.StatusNotFound, "", "No such action.")
		return
	}
	reply(w, http.StatusOK, map[string]any{"key1": s.keys[s.find("key1")].Value, "key2": s.keys[s.find("key2")].Value})
}

// token is the client credentials grant; the caller holds mu.
func (v azure) token(s *Server, w http.ResponseWriter, r *http.Request) {
	deny := func(status int, code string, number int, why string) {
		reply(w, status, map[string]any{
			"error": code, "error_description": "AADSTS" + why, "error_codes": []int{number}, "timestamp": time.Now().UTC().Format("2006-01-02 15:04:05Z"),
			"trace_id": random(32), "correlation_id": random(32),
		})
	}
	switch {
	case r.Method != http.MethodPost || r.ParseForm() != nil || r.PostForm.Get("grant_type") != "client_credentials":
		deny(http.StatusBadRequest, "unsupported_grant_type", 70003, "70003: The app requested an unsupported grant type.")
	case r.URL.Path != "/"+s.o.Tenant+"/oauth2/v2.0/token":
		deny(http.StatusBadRequest, "invalid_request", 90002, "90002: Tenant not found.")
	case r.PostForm.Get("client_id") != s.o.Client:
		deny(http.StatusBadRequest, "unauthorized_client", 700016, "700016: Application was not found in the directory.")
	case r.PostForm.Get("client_secret") != s.o.Admin:
		deny(http.StatusUnauthorized, "invalid_client", 7000215, "7000215: Invalid client secret provided.")
	case !strings.HasSuffix(r.PostForm.Get("scope"), "/.default"):
		deny(http.StatusBadRequest, "invalid_scope", 70011, "70011: The provided value for the input parameter 'scope' is not valid.")
	default:
		token := "eyJ0eXAiOiJKV1QifQ." + random(200) + "." + random(86)
		s.tokens[token] = true
		reply(w, http.StatusOK, map[string]any{"token_type": "Bearer", "expires_in": 3599, "ext_expires_in": 3599, "access_token": token})
	}
}
