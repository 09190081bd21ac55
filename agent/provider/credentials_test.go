package provider

import (
	"slices"
	"testing"

	"github.com/postern-proxy/postern/agent/provider/spec"
)

func TestCredentials(t *testing.T) {
	for name, c := range map[string]struct {
		attach spec.Attach
		also   []spec.Attach
		want   []string
	}{
		"the key alone": {attach: spec.Attach{Header: "X-Api-Key", Format: "{api_key}"}},
		"basic":         {attach: spec.Attach{Basic: &spec.Basic{Username: "{user}", Password: "{api_key}{pepper}"}}, want: []string{"pepper"}},
		"beside it": {
			attach: spec.Attach{Header: "Authorization", Format: "Bearer {api_key}.{part}"},
			also:   []spec.Attach{{Header: "X-Second", Format: "{second}"}, {Header: "X-Organization", Format: "{organization}", Pass: true}},
			want:   []string{"part", "second"},
		},
	} {
		p := &Provider{spec: spec.Spec{Attach: c.attach, Also: c.also}}
		if got := p.Credentials(); !slices.Equal(got, c.want) {
			t.Errorf("%s: %v, want %v", name, got, c.want)
		}
	}
}
