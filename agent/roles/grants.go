package roles

import "strings"

// resource is something in Vault that capabilities are for: a kind of KV v2's
// API and the path below the store's root, with places in braces to be filled
// in; without a kind a full path of Vault's API.
type resource struct{ kind, path string }

var (
	lookupSelf       = resource{"", "auth/token/lookup-self"}
	renewSelf        = resource{"", "auth/token/renew-self"}
	capabilitiesSelf = resource{"", "sys/capabilities-self"}

	keyData      = resource{"data", "provider-keys/{env}/{px}/{name}"}
	keyMetadata  = resource{"metadata", "provider-keys/{env}/{px}/{name}"}
	keyDestroy   = resource{"destroy", "provider-keys/{env}/{px}/{name}"}
	keyNames     = resource{"metadata", "provider-keys/{env}/{px}/"}
	keyProxies   = resource{"metadata", "provider-keys/{env}/"}
	rotation     = resource{"data", "rotations/{env}/{px}/{name}"}
	rotationMeta = resource{"metadata", "rotations/{env}/{px}/{name}"}
	rotations    = resource{"metadata", "rotations/{env}/{px}/"}
	halt         = resource{"data", "halts/{env}/{px}/{name}-{to}"}
	ack          = resource{"data", "acks/{env}/{px}/{entity}/{agent}"}
	ackMetadata  = resource{"metadata", "acks/{env}/{px}/{entity}/{agent}"}
	ackEntities  = resource{"metadata", "acks/{env}/{px}/"}
	ackAgents    = resource{"metadata", "acks/{env}/{px}/{entity}/"}
	digest       = resource{"data", "digests/{digest}"}
	issuer       = resource{"data", "issuers/{env}/{issuer}"}
	entry        = resource{"data", "audit/{env}/{seq}"}
	entryMeta    = resource{"metadata", "audit/{env}/{seq}"}
	entries      = resource{"metadata", "audit/{env}/"}
	entryDelete  = resource{"delete", "audit/{env}/{seq}"}
	entryUndo    = resource{"undelete", "audit/{env}/{seq}"}
	entryDestroy = resource{"destroy", "audit/{env}/{seq}"}
	issuersAll   = resource{"data", "issuers/*"}
	issuersMeta  = resource{"metadata", "issuers/*"}
)

// layout is every resource that verbs need, in the order in which policies list them.
var layout = []resource{
	keyData, keyMetadata, keyDestroy, keyNames, keyProxies, rotation, rotationMeta, rotations,
	halt, ack, ackMetadata, ackEntities, ackAgents, digest, issuer, entry, entryMeta, entries,
}

// grant is one need of a verb.
type grant struct {
	on   resource
	caps string // Vault's names, separated by spaces, sorted
	why  string
	// core: without it nothing of the verb can be done.
	core bool
	// wide: only whoever is for every proxy id needs it.
	wide bool
}

// self is what everybody may know of their own token. Vault's default policy
// says the same, but a token need not have it.
var self = []grant{
	{on: lookupSelf, caps: "read", why: "who the token is"},
	{on: renewSelf, caps: "update", why: "keep it alive"},
	{on: capabilitiesSelf, caps: "update", why: "what it may do: `postern whoami`"},
}

// recording is what everybody needs who writes: each entry of the record carries
// the hash of the one before, so that the newest must be found and read.
func recording() []grant {
	return []grant{
		{on: entry, caps: "create read", why: "append to the record of operations; an entry is written once"},
		{on: entries, caps: "list", why: "find its end"},
	}
}

// following is what shows how far rotations are.
func following() []grant {
	return []grant{
		{on: keyMetadata, caps: "read", why: "versions, labels, schedule; no value", core: true},
		{on: keyNames, caps: "list", why: "names of keys"},
		{on: keyProxies, caps: "list", why: "names of proxy ids", wide: true},
		{on: rotation, caps: "read", why: "how far a rotation is"},
		{on: rotationMeta, caps: "read", why: "and whether there was one"},
		{on: rotations, caps: "list", why: "which keys rotate"},
		{on: halt, caps: "read", why: "agents' vetoes"},
		{on: ack, caps: "read", why: "what agents acknowledged"},
		{on: ackEntities, caps: "list", why: "who did"},
		{on: ackAgents, caps: "list", why: "and with which agents"},
	}
}

// needs are the grants of each verb, all that its commands use.
var needs = map[Verb][]grant{
	View: following(),
	Use: {
		{on: keyData, caps: "read", why: "the keys that the agent attaches", core: true},
		{on: keyMetadata, caps: "read", why: "which versions there are"},
		{on: rotation, caps: "read", why: "how traffic moves between them"},
		{on: halt, caps: "create read", why: "veto a version that fails; a veto stands"},
		{on: ack, caps: "create update", why: "acknowledge a rotation, under the entity's own id"},
		{on: ackMetadata, caps: "delete", why: "and take that back at its end"},
	},
	Rotate: join(
		[]grant{
			{on: keyData, caps: "patch", why: "write the next version over the newest; no value can be read", core: true},
			{on: keyDestroy, caps: "update", why: "destroy the old version when all agents have left it"},
			{on: rotation, caps: "create read update", why: "say how traffic moves"},
			{on: digest, caps: "create read", why: "one value, one environment: a hash of it, never the value"},
		},
		only(following(), keyMetadata, rotationMeta, halt, ack, ackEntities, ackAgents), recording()),
	Add: join(
		[]grant{
			{on: keyData, caps: "create patch update", why: "write the first and the next version; no value can be read", core: true},
			{on: keyMetadata, caps: "create read update", why: "label, provider, and how many versions are kept"},
			{on: rotation, caps: "read", why: "whether a rotation is under way"},
			{on: digest, caps: "create read", why: "one value, one environment: a hash of it, never the value"},
		}, only(following(), keyNames, rotationMeta), recording()),
	Schedule: join([]grant{{on: keyMetadata, caps: "read update", why: "how often a key rotates", core: true}}, recording()),
	Revoke: join(
		[]grant{
			{on: rotation, caps: "create read update", why: "say that a version is compromised: no agent uses it from then on", core: true},
			{on: keyDestroy, caps: "update", why: "and destroy it"},
			{on: digest, caps: "read", why: "which key a leaked value is"},
		},
		only(following(), keyMetadata, keyNames, rotationMeta), recording()),
	Validate: join(
		[]grant{{on: keyData, caps: "read", why: "ask the provider about a key, which needs its value", core: true}},
		only(following(), keyMetadata, keyNames, rotation), recording()),
	Audit: {
		{on: entry, caps: "read", why: "the record of operations", core: true},
		{on: entries, caps: "list", why: "how long it is"},
		{on: entryMeta, caps: "read", why: "who wrote each entry, as Vault recorded it"},
	},
	Issue: join(
		[]grant{
			{on: issuer, caps: "read", why: "the providers' admin credentials", core: true},
			{on: keyData, caps: "create patch update", why: "write what a provider made, the first version too"},
			{on: rotation, caps: "create read update", why: "claim a rotation that was asked for"},
			{on: digest, caps: "create read", why: "one value, one environment: a hash of it, never the value"},
		},
		only(following(), keyMetadata, rotationMeta), recording()),
}

// guards are what no role may, whatever another policy says of the same path:
// only `deny` wins over that.
var guards = []grant{
	{on: entryMeta, caps: "deny", why: "an entry keeps its one version"},
	{on: entryDelete, caps: "deny", why: "an entry cannot be deleted"},
	{on: entryUndo, caps: "deny", why: "nor brought back"},
	{on: entryDestroy, caps: "deny", why: "nor destroyed"},
	{on: issuersAll, caps: "deny", why: "admin credentials are the server's alone"},
	{on: issuersMeta, caps: "deny", why: "and where they are, too"},
}

func join(parts ...[]grant) []grant {
	var all []grant
	for _, p := range parts {
		all = append(all, p...)
	}
	return all
}

// only keeps the grants on these resources.
func only(from []grant, on ...resource) []grant {
	var kept []grant
	for _, g := range from {
		for _, r := range on {
			if g.on == r {
				g.core = false
				kept = append(kept, g)
			}
		}
	}
	return kept
}

// at is the full API path of a resource, its places filled in by fill.
func (r resource) at(mount, prefix string, fill *strings.Replacer) string {
	p := fill.Replace(r.path)
	if r.kind == "" {
		return p
	}
	return mount + "/" + r.kind + "/" + prefix + "/" + p
}
