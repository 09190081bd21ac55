# postern: devops of prod, for every proxy id.
# May: view, rotate, validate.

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
path "secret/data/postern/provider-keys/prod/+/+" {
  capabilities = ["patch", "read"]
}

# view, rotate, validate: versions, labels, schedule; no value
path "secret/metadata/postern/provider-keys/prod/+/+" {
  capabilities = ["read"]
}

# rotate: destroy the old version when all agents have left it
path "secret/destroy/postern/provider-keys/prod/+/+" {
  capabilities = ["update"]
}

# view, validate: names of keys
path "secret/metadata/postern/provider-keys/prod/+/" {
  capabilities = ["list"]
}

# view: names of proxy ids
path "secret/metadata/postern/provider-keys/prod/" {
  capabilities = ["list"]
}

# view, validate: how far a rotation is
# rotate: say how traffic moves
path "secret/data/postern/rotations/prod/+/+" {
  capabilities = ["create", "read", "update"]
}

# view, rotate: and whether there was one
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

# rotate: one value, one environment: a hash of it, never the value
path "secret/data/postern/digests/+" {
  capabilities = ["create", "read"]
}

# rotate, validate: append to the record of operations; an entry is written once
path "secret/data/postern/audit/prod/+" {
  capabilities = ["create", "read"]
}

# rotate, validate: find its end
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
