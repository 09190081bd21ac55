# postern: agent of prod, for px_acme.
# May: use.

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

# use: the keys that the agent attaches
path "secret/data/postern/provider-keys/prod/px_acme/+" {
  capabilities = ["read"]
}

# use: which versions there are
path "secret/metadata/postern/provider-keys/prod/px_acme/+" {
  capabilities = ["read"]
}

# use: how traffic moves between them
path "secret/data/postern/rotations/prod/px_acme/+" {
  capabilities = ["read"]
}

# use: veto a version that fails; a veto stands
path "secret/data/postern/halts/prod/px_acme/+" {
  capabilities = ["create", "read"]
}

# use: acknowledge a rotation, under the entity's own id
path "secret/data/postern/acks/prod/px_acme/{{identity.entity.id}}/+" {
  capabilities = ["create", "update"]
}

# use: and take that back at its end
path "secret/metadata/postern/acks/prod/px_acme/{{identity.entity.id}}/+" {
  capabilities = ["delete"]
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
path "secret/data/team/openai" {
  capabilities = ["read"]
}

# keep its lease alive, if it has one
path "sys/leases/renew" {
  capabilities = ["update"]

  allowed_parameters = {
    "*"        = []
    "lease_id" = ["secret/data/team/openai/*"]
  }
}
