# postern: server of prod, for every proxy id.
# May: view, rotate, revoke, validate, issue.

# who the token is
path "auth/token/lookup-self" {
  capabilities = ["read"]
}

# keep it alive
path "auth/token/renew-self" {
  capabilities = ["update"]
}

# what it may do: `postern whoami`
path "sys/capabilities-self" {
  capabilities = ["update"]
}

# rotate: write the next version over the newest; no value can be read
# validate: ask the provider about a key, which needs its value
# issue: write what a provider made, the first version too
path "secret/data/postern/provider-keys/prod/+/+" {
  capabilities = ["create", "patch", "read", "update"]
}

# view, rotate, revoke, validate, issue: versions, labels, schedule; no value
path "secret/metadata/postern/provider-keys/prod/+/+" {
  capabilities = ["read"]
}

# rotate: destroy the old version when all agents have left it
# revoke: and destroy it
path "secret/destroy/postern/provider-keys/prod/+/+" {
  capabilities = ["update"]
}

# view, revoke, validate: names of keys
path "secret/metadata/postern/provider-keys/prod/+/" {
  capabilities = ["list"]
}

# view: names of proxy ids
path "secret/metadata/postern/provider-keys/prod/" {
  capabilities = ["list"]
}

# view, validate: how far a rotation is
# rotate: say how traffic moves
# revoke: say that a version is compromised: no agent uses it from then on
# issue: claim a rotation that was asked for
path "secret/data/postern/rotations/prod/+/+" {
  capabilities = ["create", "read", "update"]
}

# view, rotate, revoke, issue: and whether there was one
path "secret/metadata/postern/rotations/prod/+/+" {
  capabilities = ["read"]
}

# view: which keys rotate
path "secret/metadata/postern/rotations/prod/+/" {
  capabilities = ["list"]
}

# view, rotate: agents' vetoes
path "secret/data/postern/halts/prod/+/+" {
  capabilities = ["read"]
}

# view, rotate: what agents acknowledged
path "secret/data/postern/acks/prod/+/+/+" {
  capabilities = ["read"]
}

# view, rotate: who did
path "secret/metadata/postern/acks/prod/+/" {
  capabilities = ["list"]
}

# view, rotate: and with which agents
path "secret/metadata/postern/acks/prod/+/+/" {
  capabilities = ["list"]
}

# rotate, issue: one value, one environment: a hash of it, never the value
# revoke: which key a leaked value is
path "secret/data/postern/digests/+" {
  capabilities = ["create", "read"]
}

# issue: the providers' admin credentials
path "secret/data/postern/issuers/prod/+" {
  capabilities = ["read"]
}

# rotate, revoke, validate, issue: append to the record of operations; an entry is written once
path "secret/data/postern/audit/prod/+" {
  capabilities = ["create", "read"]
}

# rotate, revoke, validate, issue: find its end
path "secret/metadata/postern/audit/prod/" {
  capabilities = ["list"]
}

# an entry keeps its one version
path "secret/metadata/postern/audit/prod/+" {
  capabilities = ["deny"]
}

# an entry cannot be deleted
path "secret/delete/postern/audit/prod/+" {
  capabilities = ["deny"]
}

# nor brought back
path "secret/undelete/postern/audit/prod/+" {
  capabilities = ["deny"]
}

# nor destroyed
path "secret/destroy/postern/audit/prod/+" {
  capabilities = ["deny"]
}

# admin credentials are the server's alone
path "secret/data/postern/issuers/*" {
  capabilities = ["deny"]
}

# and where they are, too
path "secret/metadata/postern/issuers/*" {
  capabilities = ["deny"]
}

# a secret that the configuration names by its path
path "openai/creds/checkout" {
  capabilities = ["read"]
}

# keep its lease alive, if it has one
path "sys/leases/renew" {
  capabilities = ["update"]

  allowed_parameters = {
    "*"        = []
    "lease_id" = ["openai/creds/checkout/*"]
  }
}

# and end it, which revokes the key at its provider
path "sys/leases/revoke" {
  capabilities = ["update"]

  allowed_parameters = {
    "*"        = []
    "lease_id" = ["openai/creds/checkout/*"]
  }
}
