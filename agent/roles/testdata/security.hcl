# postern: security of prod, for every proxy id.
# May: view, rotate, add, schedule, revoke, audit.

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
# add: write the first and the next version; no value can be read
path "secret/data/postern/provider-keys/prod/+/+" {
  capabilities = ["create", "patch", "update"]
}

# view, rotate, revoke: versions, labels, schedule; no value
# add: label, provider, and how many versions are kept
# schedule: how often a key rotates
path "secret/metadata/postern/provider-keys/prod/+/+" {
  capabilities = ["create", "read", "update"]
}

# rotate: destroy the old version when all agents have left it
# revoke: and destroy it
path "secret/destroy/postern/provider-keys/prod/+/+" {
  capabilities = ["update"]
}

# view, add, revoke: names of keys
path "secret/metadata/postern/provider-keys/prod/+/" {
  capabilities = ["list"]
}

# view: names of proxy ids
path "secret/metadata/postern/provider-keys/prod/" {
  capabilities = ["list"]
}

# view: how far a rotation is
# rotate: say how traffic moves
# add: whether a rotation is under way
# revoke: say that a version is compromised: no agent uses it from then on
path "secret/data/postern/rotations/prod/+/+" {
  capabilities = ["create", "read", "update"]
}

# view, rotate, add, revoke: and whether there was one
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

# rotate, add: one value, one environment: a hash of it, never the value
# revoke: which key a leaked value is
path "secret/data/postern/digests/+" {
  capabilities = ["create", "read"]
}

# rotate, add, schedule, revoke: append to the record of operations; an entry is written once
# audit: the record of operations
path "secret/data/postern/audit/prod/+" {
  capabilities = ["create", "read"]
}

# audit: who wrote each entry, as Vault recorded it
path "secret/metadata/postern/audit/prod/+" {
  capabilities = ["read"]
}

# rotate, add, schedule, revoke: find its end
# audit: how long it is
path "secret/metadata/postern/audit/prod/" {
  capabilities = ["list"]
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
