package fake

import "net/http"

// cohere speaks the part of Cohere's API that tells whether a key is valid: it
// answers 200 either way.
func (s *Server) cohere(x *exchange) {
	key := bearer(x.r)
	st := x.judge(key, true)
	switch {
	case key == "":
		x.json(http.StatusUnauthorized, obj{"message": "no api key supplied"})
	case x.r.URL.Path != "/v1/check-api-key":
		x.json(http.StatusNotFound, obj{"message": "unknown path: " + x.r.URL.Path})
	case x.r.Method != http.MethodPost:
		x.json(http.StatusMethodNotAllowed, obj{"message": "use POST"})
	default:
		x.json(http.StatusOK, obj{"valid": st != Revoked, "organization_id": "org-0", "owner_id": "owner-0"})
	}
}
