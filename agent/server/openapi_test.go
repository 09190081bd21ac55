package server

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/postern-proxy/postern/agent/keys"
	"github.com/postern-proxy/postern/agent/rotation"
	"github.com/postern-proxy/postern/agent/store"
)

type object = map[string]any

// described is the served document.
type described struct {
	t    *testing.T
	root object
	// done are the statuses that each operation was made to answer with.
	done map[string]map[int]bool
}

// deref follows a reference within the document.
func (d *described) deref(v any) object {
	o, _ := v.(object)
	ref, ok := o["$ref"].(string)
	if !ok {
		return o
	}
	at := d.root
	for part := range strings.SplitSeq(strings.TrimPrefix(ref, "#/"), "/") {
		at, _ = at[part].(object)
	}
	if at == nil {
		d.t.Fatalf("%s leads nowhere", ref)
	}
	return at
}

// operation finds an operation by its id.
func (d *described) operation(id string) (method, path string, op object) {
	for path, item := range d.root["paths"].(object) {
		for method, op := range item.(object) {
			if o, ok := op.(object); ok && o["operationId"] == id {
				return strings.ToUpper(method), path, o
			}
		}
	}
	d.t.Fatalf("the document has no operation %s", id)
	return "", "", nil
}

// check holds an answer against the document.
func (d *described) check(id string, got said) {
	d.t.Helper()
	_, _, op := d.operation(id)
	response := d.deref(op["responses"].(object)[strconv.Itoa(got.status)])
	if response == nil {
		d.t.Errorf("%s answers %d, which is not in the document: %s", id, got.status, got.body)
		return
	}
	if d.done[id] == nil {
		d.done[id] = map[int]bool{}
	}
	d.done[id][got.status] = true
	headers, _ := response["headers"].(object)
	for name := range headers {
		if got.header.Get(name) == "" {
			d.t.Errorf("%s, %d: no %s", id, got.status, name)
		}
	}
	media, _, _ := strings.Cut(got.header.Get("Content-Type"), ";")
	content, ok := response["content"].(object)[media].(object)
	if !ok {
		d.t.Errorf("%s, %d: Content-Type %s is not in the document", id, got.status, media)
		return
	}
	if !strings.HasSuffix(media, "json") {
		return
	}
	var body any
	if err := json.Unmarshal([]byte(got.body), &body); err != nil {
		d.t.Errorf("%s, %d: %v", id, got.status, err)
		return
	}
	for _, wrong := range d.wrong(content["schema"], body, id) {
		d.t.Errorf("%d: %s", got.status, wrong)
	}
}

var durationForm = regexp.MustCompile(`^([0-9.]+(ns|us|µs|ms|s|m|h))+$`)

// wrong says what of a value is not as its schema says.
func (d *described) wrong(schema, value any, at string) (list []string) {
	s := d.deref(schema)
	complain := func(format string, args ...any) { list = append(list, at+": "+fmt.Sprintf(format, args...)) }
	switch s["type"] {
	case "object":
		o, ok := value.(object)
		if !ok {
			complain("%v is no object", value)
			return list
		}
		properties, _ := s["properties"].(object)
		required, _ := s["required"].([]any)
		for _, r := range required {
			if _, there := o[r.(string)]; !there {
				complain("%s is required", r)
			}
		}
		for _, name := range slices.Sorted(maps.Keys(o)) {
			sub, known := properties[name]
			if more, ok := s["additionalProperties"].(object); ok && !known {
				sub, known = more, true
			}
			if !known && s["additionalProperties"] == false {
				complain("%s is not in the document", name)
			}
			if known {
				list = append(list, d.wrong(sub, o[name], at+"."+name)...)
			}
		}
	case "array":
		a, ok := value.([]any)
		if !ok {
			complain("%v is no list", value)
		}
		for i, v := range a {
			list = append(list, d.wrong(s["items"], v, fmt.Sprintf("%s[%d]", at, i))...)
		}
	case "string":
		text, ok := value.(string)
		_, err := time.Parse(time.RFC3339Nano, text)
		switch enum, has := s["enum"].([]any); {
		case !ok:
			complain("%v is no string", value)
		case has && !slices.Contains(enum, value):
			complain("%v is none of %v", value, enum)
		case s["format"] == "date-time" && err != nil:
			complain("%v is no time", value)
		case strings.HasSuffix(at, ".for") && !durationForm.MatchString(text):
			complain("%v is no duration", value)
		}
	case "integer":
		if n, ok := value.(float64); !ok || n != float64(int64(n)) {
			complain("%v is no integer", value)
		}
	case "boolean":
		if _, ok := value.(bool); !ok {
			complain("%v is neither true nor false", value)
		}
	default:
		complain("the schema has no type that is known here: %v", s["type"])
	}
	return list
}

// call is a request of one operation that is made to answer with a status.
type call struct {
	op     string
	status int
	body   string
	more   string // of the query
	header map[string]string
	token  string
	id     string // openaiID by default
	before func(r *rig)
}

func (d *described) make(r *rig, c call) {
	d.t.Helper()
	method, path, op := d.operation(c.op)
	id := c.id
	if id == "" {
		id = openaiID
	}
	if c.before != nil {
		c.before(r)
	}
	if _, has := op["requestBody"]; !has {
		c.body = ""
	}
	got := r.do(ask{method: method, path: strings.Replace(path, "{id}", id, 1) + c.more, body: c.body, header: c.header, token: c.token})
	if got.status != c.status {
		d.t.Errorf("%s answers %d, want %d: %s", c.op, got.status, c.status, got.body)
	}
	d.check(c.op, got)
}

// sound is a body that each operation takes.
var sound = map[string]string{
	"createProviderKey": `{"provider":"openai","api_key":"` + nextKey + `","proxy_id":"px_acme_prod","name":"second"}`,
	"rotateProviderKey": `{"api_key":"` + nextKey + `"}`,
	"revokeProviderKey": `{"reason":"leaked"}`,
}

// Every operation of the document is made to answer with every status that it
// lists, and every answer is held against its schema: what the document does not
// have fails, and so does what it has and nothing answers with.
func TestEveryOperationIsAsDescribed(t *testing.T) {
	r := newRig(t)
	d := &described{t: t, done: map[string]map[int]bool{}}
	if err := json.Unmarshal([]byte(r.want(http.StatusOK, ask{method: "GET", path: "/openapi.json", token: "-"}).body), &d.root); err != nil {
		t.Fatal(err)
	}
	var ids []string
	for _, op := range operations {
		ids = append(ids, op.name)
		if method, path, _ := d.operation(op.name); method != op.method || path != op.path {
			t.Errorf("%s is %s %s in the document", op.name, method, path)
		}
	}
	for _, c := range successes() {
		fresh := newRig(t)
		fresh.add("openai", seedKey)
		d.make(fresh, c)
	}
	for _, op := range operations {
		fresh := newRig(t)
		fresh.add("openai", seedKey)
		for _, c := range failures(op) {
			d.make(fresh, c)
			fresh.restore()
		}
	}
	for path, item := range d.root["paths"].(object) {
		for method, v := range item.(object) {
			op, ok := v.(object)
			if !ok {
				continue // parameters
			}
			id, _ := op["operationId"].(string)
			if !slices.Contains(ids, id) {
				t.Errorf("%s %s: there is no operation %s", method, path, id)
			}
			for status := range op["responses"].(object) {
				if n, _ := strconv.Atoi(status); !d.done[id][n] {
					t.Errorf("%s: nothing was seen to answer %s", id, status)
				}
			}
			d.parameters(id, path, item.(object), op)
		}
	}
}

// restore takes back what a call changed of the rig.
func (r *rig) restore() {
	r.intercept(nil)
	r.mu.Lock()
	r.away = false
	r.now = r.now.Add(time.Hour)
	r.mu.Unlock()
	for len(r.api.places) > 0 {
		<-r.api.places
	}
}

// parameters holds an operation's parameters and body fields against the handlers'.
func (d *described) parameters(id, path string, item, op object) {
	var query []string
	both, _ := item["parameters"].([]any)
	own, _ := op["parameters"].([]any)
	for _, p := range append(slices.Clone(both), own...) {
		if p := d.deref(p); p["in"] == "query" {
			query = append(query, p["name"].(string))
		}
	}
	row := operations[slices.IndexFunc(operations, func(o *operation) bool { return o.name == id })]
	slices.Sort(query)
	if known := slices.Sorted(slices.Values(row.params)); !slices.Equal(query, known) {
		d.t.Errorf("%s: the document has the parameters %v, the handler %v", path, query, known)
	}
	requestBody, has := op["requestBody"].(object)
	if has != row.body {
		d.t.Errorf("%s: with a body in the document: %v", path, has)
	}
	if !has {
		return
	}
	// The handler names the fields that it takes when it is given another one.
	r := newRig(d.t)
	r.add("openai", seedKey)
	detail := r.refused(codeInvalid, ask{method: row.method, path: strings.Replace(path, "{id}", openaiID, 1), body: `{"colour":1}`})["detail"].(string)
	_, known, _ := strings.Cut(detail, "there are ")
	schema := d.deref(requestBody["content"].(object)[jsonType].(object)["schema"])
	if described := strings.Join(slices.Sorted(maps.Keys(schema["properties"].(object))), ", "); described != known {
		d.t.Errorf("%s: the document has the fields %s, the handler %s", path, described, known)
	}
}

// successes are calls that succeed, with answers as full as they get.
func successes() []call {
	scheduled := func(r *rig) {
		m := *r.own
		m.Scope.ProxyID = "px_acme_prod"
		if err := m.Schedule(r.t.Context(), "openai", 720*time.Hour); err != nil {
			r.t.Fatal(err)
		}
		r.want(http.StatusAccepted, ask{method: "POST", path: "/v1/provider-keys/" + openaiID + "/rotate",
			body: `{"api_key":"` + nextKey + `","ramp":[{"weight":10,"for":"1h"}],"grace":"1h","reason":"a test"}`})
		r.add("second", "sk-proj-2nd00000000000000000000")
		fields, err := (&rotation.Record{}).Encode() // an acknowledgement, as an agent writes it
		if err != nil {
			r.t.Fatal(err)
		}
		fields["agent"], fields["at"] = []byte("pod-1"), []byte(r.store.Now().UTC().Format(time.RFC3339Nano))
		md, err := r.store.Metadata(r.t.Context(), "provider-keys/prod/px_acme_prod/openai")
		if err != nil {
			r.t.Fatal(err)
		}
		to, _ := json.Marshal(rotation.ID{Number: 2, Created: md.Versions[1].Created})
		fields["keys"] = fmt.Appendf(nil, `{"openai":{"to":%s,"to_state":"pending","from_state":"active","reason":""}}`, to)
		if _, err := store.PutText(r.t.Context(), r.store, "acks/prod/px_acme_prod/local/pod-1", fields, 0); err != nil {
			r.t.Fatal(err)
		}
	}
	return []call{
		{op: "createProviderKey", status: 201, body: sound["createProviderKey"]},
		{op: "listProviderKeys", status: 200, more: "?limit=1", before: scheduled},
		{op: "getProviderKey", status: 200, before: scheduled},
		{op: "deleteProviderKey", status: 200},
		{op: "rotateProviderKey", status: 202, body: `{"api_key":"` + nextKey + `","ramp":[{"weight":10,"for":"1m"}],"grace":"1m"}`},
		{op: "rotateProviderKey", status: 202, body: `{"managed":true}`},
		{op: "validateProviderKey", status: 200},
		{op: "validateProviderKey", status: 200, before: func(r *rig) { r.provider.Close() }},
		{op: "revokeProviderKey", status: 200, body: `{"reason":"leaked","all":true}`},
		{op: "listRotations", status: 200, before: scheduled},
		{op: "listAudit", status: 200, more: "?limit=1", before: scheduled},
		{op: "getOpenAPI", status: 200}, {op: "getLiveness", status: 200}, {op: "getReadiness", status: 200}, {op: "getMetrics", status: 200},
		{op: "getReadiness", status: 503, before: func(r *rig) { r.away = true }},
	}
}

// failures are calls that fail in every way that an operation can.
func failures(op *operation) []call {
	cross := map[string]string{"Sec-Fetch-Site": "cross-site"}
	all := []call{{op: op.name, status: 403, header: cross}}
	if op.open != nil {
		return all
	}
	failing := func(err error) func(*rig) {
		return func(r *rig) {
			r.intercept(func(_ context.Context, method, path string) error {
				if method == "identity" {
					return nil
				}
				return fmt.Errorf("%s %s: %w", method, path, err)
			})
		}
	}
	body := sound[op.name]
	all = append(all,
		call{op: op.name, status: 400, more: "?colour=red", body: body},
		call{op: op.name, status: 401, token: "-", body: body},
		call{op: op.name, status: 401, token: "hvs.stranger000000000000000000", body: body},
		call{op: op.name, status: 403, body: body, before: failing(store.ErrForbidden)},
		call{op: op.name, status: 401, body: body, before: failing(store.ErrUnauthenticated)},
		call{op: op.name, status: 504, body: body, before: failing(context.DeadlineExceeded)},
		call{op: op.name, status: 503, body: body, before: func(r *rig) { r.away = true }},
		call{op: op.name, status: 429, body: body, before: func(r *rig) {
			for range maxInFlight {
				r.api.places <- struct{}{}
			}
		}},
		call{op: op.name, status: 500, body: body, before: func(r *rig) {
			r.intercept(func(context.Context, string, string) error { panic("a mistake") })
		}})
	if op.name != "revokeProviderKey" && op.name != "deleteProviderKey" { // which do not give up so soon
		all = append(all, call{op: op.name, status: 503, body: body, before: failing(store.ErrUnavailable)})
	}
	if strings.Contains(op.path, "{id}") {
		all = append(all, call{op: op.name, status: 404, id: "staging.px_acme_prod.openai", body: body}, call{op: op.name, status: 404, id: "prod.px_acme_prod.other", body: body})
	}
	if op.body {
		all = append(all,
			call{op: op.name, status: 400, body: `{"colour":"red"}`},
			call{op: op.name, status: 413, body: `{"x":"` + strings.Repeat("x", maxBody) + `"}`},
			call{op: op.name, status: 415, body: `{}`, header: map[string]string{"Content-Type": "text/plain"}})
	}
	switch op.name {
	case "createProviderKey":
		all = append(all, call{op: op.name, status: 409, body: seeded("")},
			call{op: op.name, status: 422, body: strings.Replace(sound[op.name], `"second"`, `"third","service":"Not A Service"`, 1)})
	case "rotateProviderKey":
		all = append(all, call{op: op.name, status: 422, body: `{"api_key":"` + deadKey + `"}`},
			call{op: op.name, status: 409, body: body, before: func(r *rig) {
				m := *r.own
				m.Scope.ProxyID, m.Issuer = "px_acme_prod", nil // as the command line asks for it
				if _, err := m.Rotate(r.t.Context(), "openai", nil, keys.RotateOptions{Managed: true}); err != nil {
					r.t.Fatal(err)
				}
			}})
	case "validateProviderKey":
		all = append(all, call{op: op.name, status: 422, body: `{"versions":[99]}`})
	case "revokeProviderKey":
		all = append(all, call{op: op.name, status: 422, body: `{"reason":"x","versions":[99]}`})
	}
	return all
}
