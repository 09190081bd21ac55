# postern: developer of prod, for px_acme.
# May: view.

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

# view: versions, labels, schedule; no value
path "secret/metadata/postern/provider-keys/prod/px_acme/+" {
  capabilities = ["read"]
}

# view: names of keys
path "secret/metadata/postern/provider-keys/prod/px_acme/" {
  capabilities = ["list"]
}

# view: how far a rotation is
path "secret/data/postern/rotations/prod/px_acme/+" {
  capabilities = ["read"]
}

# view: and whether there was one
path "secret/metadata/postern/rotations/prod/px_acme/+" {
  capabilities = ["read"]
}

# view: which keys rotate
path "secret/metadata/postern/rotations/prod/px_acme/" {
  capabilities = ["list"]
}

# view: agents' vetoes
path "secret/data/postern/halts/prod/px_acme/+" {
  capabilities = ["read"]
}

# view: what agents acknowledged
path "secret/data/postern/acks/prod/px_acme/+/+" {
  capabilities = ["read"]
}

# view: who did
path "secret/metadata/postern/acks/prod/px_acme/" {
  capabilities = ["list"]
}

# view: and with which agents
path "secret/metadata/postern/acks/prod/px_acme/+/" {
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
