package provider

import (
	"bytes"
	"encoding/json"
	"net/http"
)

// ErrorBody builds the body of an error that postern answers itself, in the
// shape that a provider's SDKs parse, so that they raise their typed error with
// this message: spec.Shapes, where "" and "problem" are RFC 9457. code is
// postern's stable code, status the answer's, and retry whether the same
// request may succeed later; shapes that cannot say so leave it to the header.
// Message must hold no key. A shape that is not known is answered as a problem.
func ErrorBody(shape, code string, status int, message string, retry bool) (contentType string, body []byte) {
	contentType = "application/json"
	var v any
	switch shape {
	case "openai":
		v = openaiError{openaiFault{Message: message, Type: openaiType(status), Code: code}}
	case "anthropic":
		v = anthropicError{Type: "error", Error: anthropicFault{anthropicType(status, retry), message}}
	case "google":
		v = googleError{googleFault{
			Code: status, Message: message, Status: googleStatus(status),
			Details: []googleDetail{{"type.googleapis.com/google.rpc.ErrorInfo", code, "postern"}},
		}}
	case "aws":
		v = awsError{awsType(status), message}
	case "cohere":
		v = cohereError{message, code}
	default:
		contentType = "application/problem+json"
		v = problem{"about:blank", http.StatusText(status), status, message, code, retry}
	}
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false) // some SDKs print the body as it is
	if err := enc.Encode(v); err != nil {
		panic(err) // strings, integers and booleans only
	}
	return contentType, bytes.TrimSuffix(b.Bytes(), []byte("\n"))
}

type problem struct {
	Type   string `json:"type"`
	Title  string `json:"title"`
	Status int    `json:"status"`
	Detail string `json:"detail"`
	Code   string `json:"code"`
	Retry  bool   `json:"retry"`
}

// The openai SDKs read error.message, .type, .param and .code; the Vercel AI
// SDK wants a string in message. So do Azure's, Groq's, Together's and Mistral's.
type openaiError struct {
	Error openaiFault `json:"error"`
}

type openaiFault struct {
	Message string  `json:"message"`
	Type    string  `json:"type"`
	Param   *string `json:"param"`
	Code    string  `json:"code"`
}

func openaiType(status int) string {
	switch {
	case status == http.StatusTooManyRequests:
		return "rate_limit_error"
	case status >= 500:
		return "server_error"
	}
	return "invalid_request_error"
}

// The anthropic SDKs choose the error's class by status and read
// error.type and error.message; the outer type must be "error".
type anthropicError struct {
	Type  string         `json:"type"`
	Error anthropicFault `json:"error"`
}

type anthropicFault struct {
	Type    string `json:"type"`
	Message string `json:"message"`
}

func anthropicType(status int, retry bool) string {
	switch status {
	case http.StatusUnauthorized:
		return "authentication_error"
	case http.StatusPaymentRequired:
		return "billing_error"
	case http.StatusForbidden:
		return "permission_error"
	case http.StatusNotFound:
		return "not_found_error"
	case http.StatusRequestEntityTooLarge:
		return "request_too_large"
	case http.StatusTooManyRequests:
		return "rate_limit_error"
	case http.StatusGatewayTimeout:
		return "timeout_error"
	}
	switch {
	case status < 500:
		return "invalid_request_error"
	case retry:
		return "overloaded_error"
	}
	return "api_error"
}

// The genai SDKs read error.code, .message, .status and .details; the JavaScript
// one only where the content type is application/json.
type googleError struct {
	Error googleFault `json:"error"`
}

type googleFault struct {
	Code    int            `json:"code"`
	Message string         `json:"message"`
	Status  string         `json:"status"`
	Details []googleDetail `json:"details"`
}

type googleDetail struct {
	Type   string `json:"@type"`
	Reason string `json:"reason"`
	Domain string `json:"domain"`
}

// googleStatus is the google.rpc.Code that Google's APIs pair with a status.
func googleStatus(status int) string {
	switch status {
	case http.StatusUnauthorized:
		return "UNAUTHENTICATED"
	case http.StatusForbidden:
		return "PERMISSION_DENIED"
	case http.StatusNotFound:
		return "NOT_FOUND"
	case http.StatusConflict:
		return "ABORTED"
	case http.StatusTooManyRequests:
		return "RESOURCE_EXHAUSTED"
	case http.StatusNotImplemented:
		return "UNIMPLEMENTED"
	case http.StatusBadGateway, http.StatusServiceUnavailable:
		return "UNAVAILABLE"
	case http.StatusGatewayTimeout:
		return "DEADLINE_EXCEEDED"
	}
	if status < 500 {
		return "INVALID_ARGUMENT"
	}
	return "INTERNAL"
}

// AWS's SDKs take the exception's name from __type where no header names it. A
// member "code" would be taken for that name, so there is none.
type awsError struct {
	Type    string `json:"__type"`
	Message string `json:"message"`
}

func awsType(status int) string {
	switch status {
	case http.StatusUnauthorized, http.StatusForbidden:
		return "AccessDeniedException"
	case http.StatusNotFound:
		return "ResourceNotFoundException"
	case http.StatusTooManyRequests:
		return "ThrottlingException"
	case http.StatusBadGateway, http.StatusServiceUnavailable:
		return "ServiceUnavailableException"
	case http.StatusGatewayTimeout:
		return "ModelTimeoutException"
	}
	if status < 500 {
		return "ValidationException"
	}
	return "InternalServerException"
}

// Cohere's SDKs print status and body; the API itself has message.
type cohereError struct {
	Message string `json:"message"`
	Code    string `json:"code"`
}
