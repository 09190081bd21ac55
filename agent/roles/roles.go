// Package roles says which of Vault's capabilities each role of postern needs,
// and writes them down as a policy. Vault enforces it: postern has no access
// control of its own.
package roles

import (
	"fmt"
	"slices"
	"strings"
)

// Role is who works with keys.
type Role string

// The roles of people, and of the two programs.
const (
	Developer Role = "developer"
	TeamLead  Role = "team-lead"
	DevOps    Role = "devops"
	Security  Role = "security"
	Agent     Role = "agent"
	Server    Role = "server"
)

// Verb is something that is done with keys.
type Verb string

// The verbs, each the commands that do it.
const (
	View     Verb = "view"     // keys list, keys show: never a value
	Use      Verb = "use"      // what an agent does: attach keys to requests
	Rotate   Verb = "rotate"   // keys rotate, keys resume
	Add      Verb = "add"      // keys add
	Schedule Verb = "schedule" // keys schedule
	Revoke   Verb = "revoke"   // keys revoke
	Validate Verb = "validate" // keys validate, which reads values
	Audit    Verb = "audit"    // audit verify, audit show
	Issue    Verb = "issue"    // what the server does: make keys at their providers
)

// may is what each role is for. Some verbs bring others with them, see docs/ROLES.md.
var may = []struct {
	role  Role
	verbs []Verb
}{
	{Developer, []Verb{View}},
	{TeamLead, []Verb{View, Rotate}},
	{DevOps, []Verb{View, Rotate}},
	{Security, []Verb{View, Rotate, Add, Schedule, Revoke, Audit}},
	{Agent, []Verb{Use}},
	{Server, []Verb{View, Rotate, Revoke, Validate, Issue}},
}

// Roles returns every role, people first.
func Roles() []Role {
	all := make([]Role, len(may))
	for i, m := range may {
		all[i] = m.role
	}
	return all
}

// Verbs returns every verb.
func Verbs() []Verb {
	return []Verb{View, Use, Rotate, Add, Schedule, Revoke, Validate, Audit, Issue}
}

// Verbs returns what a role is for; nil for none of Roles.
func (r Role) Verbs() []Verb {
	for _, m := range may {
		if m.role == r {
			return slices.Clone(m.verbs)
		}
	}
	return nil
}

// person reports whether people have the role, by a token of their own.
func (r Role) person() bool { return r != Agent && r != Server }

// bound reports whether the role is for proxy ids that must be named.
func (r Role) bound() bool { return r == Developer || r == TeamLead || r == Agent }

// list is "a, b or c".
func list[T ~string](of []T) string {
	var b strings.Builder
	for i, s := range of {
		switch {
		case i > 0 && i == len(of)-1:
			b.WriteString(" or ")
		case i > 0:
			b.WriteString(", ")
		}
		fmt.Fprint(&b, s)
	}
	return b.String()
}
