package fake

import (
	"encoding/json"
	"net/http"
	"strings"
)

// anthropic speaks Anthropic's formats: messages, token counts and models.
func (s *Server) anthropic(x *exchange) {
	x.Header().Set("Request-Id", s.id("req_"))
	path, post := x.r.URL.Path, x.r.Method == http.MethodPost
	key := x.r.Header.Get("X-Api-Key")
	if key == "" {
		key = bearer(x.r)
	}
	lists := !post && path == "/v1/models"
	switch st := x.judge(key, lists); {
	case key == "":
		anthropicError(x, http.StatusUnauthorized, "authentication_error", "x-api-key header is required")
	case st == Revoked:
		anthropicError(x, http.StatusUnauthorized, "authentication_error", "invalid x-api-key")
	case st == Forbidden:
		anthropicError(x, http.StatusForbidden, "permission_error", "this key may not use this resource")
	case st == Limited:
		anthropicError(x, http.StatusTooManyRequests, "rate_limit_error", "this request is over the account's limit")
	case x.r.Header.Get("Anthropic-Version") == "":
		anthropicError(x, http.StatusBadRequest, "invalid_request_error", "anthropic-version: header is required")
	case path == "/v1/messages" && post:
		s.messages(x)
	case path == "/v1/messages/count_tokens" && post:
		s.countTokens(x)
	case lists:
		x.json(http.StatusOK, obj{
			"data":     []obj{{"type": "model", "id": "claude-sonnet-4-5", "display_name": "Claude Sonnet 4.5", "created_at": "2025-09-29T00:00:00Z"}},
			"has_more": false, "first_id": "claude-sonnet-4-5", "last_id": "claude-sonnet-4-5",
		})
	default:
		anthropicError(x, http.StatusNotFound, "not_found_error", "unknown path: "+path)
	}
}

func anthropicError(x *exchange, status int, kind, message string) {
	x.json(status, obj{"type": "error", "error": obj{"type": kind, "message": message}, "request_id": x.Header().Get("Request-Id")})
}

type messagesRequest struct {
	Model     string            `json:"model"`
	Messages  []json.RawMessage `json:"messages"`
	MaxTokens int               `json:"max_tokens"`
	Stream    bool              `json:"stream"`
}

func (s *Server) countTokens(x *exchange) {
	var q messagesRequest
	if err := x.decode(&q); err != nil {
		anthropicError(x, http.StatusBadRequest, "invalid_request_error", err.Error())
		return
	}
	x.json(http.StatusOK, obj{"input_tokens": tokens(q.Messages)})
}

func (s *Server) messages(x *exchange) {
	var q messagesRequest
	if err := x.decode(&q); err != nil {
		anthropicError(x, http.StatusBadRequest, "invalid_request_error", err.Error())
		return
	}
	if q.Model == "" || len(q.Messages) == 0 || q.MaxTokens < 1 {
		anthropicError(x, http.StatusBadRequest, "invalid_request_error", "model, messages and max_tokens are required")
		return
	}
	words, short := cut(s.words(), q.MaxTokens)
	stop := "end_turn"
	if short {
		stop = "max_tokens"
	}
	usage := obj{
		"input_tokens": tokens(q.Messages), "output_tokens": len(words), "cache_creation_input_tokens": 0, "cache_read_input_tokens": 0, "service_tier": "standard",
	}
	m := obj{
		"id": s.id("msg_"), "type": "message", "role": "assistant", "model": q.Model, "stop_sequence": nil, "stop_reason": stop,
		"content": []obj{{"type": "text", "text": strings.Join(words, "")}}, "usage": usage,
	}
	if !q.Stream {
		x.json(http.StatusOK, m)
		return
	}
	m["content"], m["stop_reason"], usage["output_tokens"] = []any{}, nil, 1
	send := func(kind string, v obj) bool {
		v["type"] = kind
		return x.event(kind, v)
	}
	x.stream()
	if !send("message_start", obj{"message": m}) ||
		!send("content_block_start", obj{"index": 0, "content_block": obj{"type": "text", "text": ""}}) ||
		!send("ping", obj{}) {
		return
	}
	for _, w := range words {
		if !send("content_block_delta", obj{"index": 0, "delta": obj{"type": "text_delta", "text": w}}) {
			return
		}
	}
	_ = send("content_block_stop", obj{"index": 0}) &&
		send("message_delta", obj{"delta": obj{"stop_reason": stop, "stop_sequence": nil}, "usage": obj{"output_tokens": len(words)}}) &&
		send("message_stop", obj{})
}
