# postern: team-lead of prod, for px_acme, px_beta.
# May: view, rotate.

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
path "secret/data/postern/provider-keys/prod/px_acme/+" {
  capabilities = ["patch"]
}

# view, rotate: versions, labels, schedule; no value
path "secret/metadata/postern/provider-keys/prod/px_acme/+" {
  capabilities = ["read"]
}

# rotate: destroy the old version when all agents have left it
path "secret/destroy/postern/provider-keys/prod/px_acme/+" {
  capabilities = ["update"]
}

# view: names of keys
path "secret/metadata/postern/provider-keys/prod/px_acme/" {
  capabilities = ["list"]
}

# view: how far a rotation is
# rotate: say how traffic moves
path "secret/data/postern/rotations/prod/px_acme/+" {
  capabilities = ["create", "read", "update"]
}

# view, rotate: and whether there was one
path "secret/metadata/postern/rotations/prod/px_acme/+" {
  capabilities = ["read"]
}

# view: which keys rotate
path "secret/metadata/postern/rotations/prod/px_acme/" {
  capabilities = ["list"]
}

# view, rotate: agents' vetoes
path "secret/data/postern/halts/prod/px_acme/+" {
  capabilities = ["read"]
}

# view, rotate: what agents acknowledged
path "secret/data/postern/acks/prod/px_acme/+/+" {
  capabilities = ["read"]
}

# view, rotate: who did
path "secret/metadata/postern/acks/prod/px_acme/" {
  capabilities = ["list"]
}

# view, rotate: and with which agents
path "secret/metadata/postern/acks/prod/px_acme/+/" {
  capabilities = ["list"]
}

# rotate: one value, one environment: a hash of it, never the value
path "secret/data/postern/digests/+" {
  capabilities = ["create", "read"]
}

# rotate: append to the record of operations; an entry is written once
path "secret/data/postern/audit/prod/+" {
  capabilities = ["create", "read"]
}

# rotate: find its end
path "secret/metadata/postern/audit/prod/" {
  capabilities = ["list"]
}

# rotate: write the next version over the newest; no value can be read
path "secret/data/postern/provider-keys/prod/px_beta/+" {
  capabilities = ["patch"]
}

# view, rotate: versions, labels, schedule; no value
path "secret/metadata/postern/provider-keys/prod/px_beta/+" {
  capabilities = ["read"]
}

# rotate: destroy the old version when all agents have left it
path "secret/destroy/postern/provider-keys/prod/px_beta/+" {
  capabilities = ["update"]
}

# view: names of keys
path "secret/metadata/postern/provider-keys/prod/px_beta/" {
  capabilities = ["list"]
}

# view: how far a rotation is
# rotate: say how traffic moves
path "secret/data/postern/rotations/prod/px_beta/+" {
  capabilities = ["create", "read", "update"]
}

# view, rotate: and whether there was one
path "secret/metadata/postern/rotations/prod/px_beta/+" {
  capabilities = ["read"]
}

# view: which keys rotate
path "secret/metadata/postern/rotations/prod/px_beta/" {
  capabilities = ["list"]
}

# view, rotate: agents' vetoes
path "secret/data/postern/halts/prod/px_beta/+" {
  capabilities = ["read"]
}

# view, rotate: what agents acknowledged
path "secret/data/postern/acks/prod/px_beta/+/+" {
  capabilities = ["read"]
}

# view, rotate: who did
path "secret/metadata/postern/acks/prod/px_beta/" {
  capabilities = ["list"]
}

# view, rotate: and with which agents
path "secret/metadata/postern/acks/prod/px_beta/+/" {
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
