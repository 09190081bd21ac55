package vault

import (
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/postern-proxy/postern/agent/agenttest/vaulttest"
)

// Vault lists a folder in one answer, and a record of operations grows for years.
func TestALongListingIsReadWhole(t *testing.T) {
	const names = 200_000 // 3 MB
	v := vaulttest.Start(t, vaulttest.Options{})
	f := vaulttest.NewFront(t, v)
	f.Intercept(func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.Contains(r.URL.Path, "/metadata/") {
			return false
		}
		var b strings.Builder
		for n := range names {
			fmt.Fprintf(&b, `,"%012d"`, n+1)
		}
		fmt.Fprintf(w, `{"request_id":"x","data":{"keys":[%s]}}`, b.String()[1:])
		return true
	})
	s := open(t, withToken(t, f.URL, v.RootToken), quick())
	got, err := s.List(t.Context(), "audit/prod/")
	if err != nil || len(got) != names || got[names-1] != "000000200000" {
		t.Errorf("%d names, %v", len(got), err)
	}
}
