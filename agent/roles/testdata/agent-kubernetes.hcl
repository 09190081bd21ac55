# postern: agent of prod, for every namespace and ServiceAccount that logs in by auth_kubernetes_0a1b2c3d.
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
path "kv/team/data/apps/postern/provider-keys/prod/px_{{identity.entity.aliases.auth_kubernetes_0a1b2c3d.metadata.service_account_namespace}}_{{identity.entity.aliases.auth_kubernetes_0a1b2c3d.metadata.service_account_name}}/+" {
  capabilities = ["read"]
}

# use: which versions there are
path "kv/team/metadata/apps/postern/provider-keys/prod/px_{{identity.entity.aliases.auth_kubernetes_0a1b2c3d.metadata.service_account_namespace}}_{{identity.entity.aliases.auth_kubernetes_0a1b2c3d.metadata.service_account_name}}/+" {
  capabilities = ["read"]
}

# use: how traffic moves between them
path "kv/team/data/apps/postern/rotations/prod/px_{{identity.entity.aliases.auth_kubernetes_0a1b2c3d.metadata.service_account_namespace}}_{{identity.entity.aliases.auth_kubernetes_0a1b2c3d.metadata.service_account_name}}/+" {
  capabilities = ["read"]
}

# use: veto a version that fails; a veto stands
path "kv/team/data/apps/postern/halts/prod/px_{{identity.entity.aliases.auth_kubernetes_0a1b2c3d.metadata.service_account_namespace}}_{{identity.entity.aliases.auth_kubernetes_0a1b2c3d.metadata.service_account_name}}/+" {
  capabilities = ["create", "read"]
}

# use: acknowledge a rotation, under the entity's own id
path "kv/team/data/apps/postern/acks/prod/px_{{identity.entity.aliases.auth_kubernetes_0a1b2c3d.metadata.service_account_namespace}}_{{identity.entity.aliases.auth_kubernetes_0a1b2c3d.metadata.service_account_name}}/{{identity.entity.id}}/+" {
  capabilities = ["create", "update"]
}

# use: and take that back at its end
path "kv/team/metadata/apps/postern/acks/prod/px_{{identity.entity.aliases.auth_kubernetes_0a1b2c3d.metadata.service_account_namespace}}_{{identity.entity.aliases.auth_kubernetes_0a1b2c3d.metadata.service_account_name}}/{{identity.entity.id}}/+" {
  capabilities = ["delete"]
}

# an entry keeps its one version
path "kv/team/metadata/apps/postern/audit/prod/+" {
  capabilities = ["deny"]
}

# an entry cannot be deleted
path "kv/team/delete/apps/postern/audit/prod/+" {
  capabilities = ["deny"]
}

# nor brought back
path "kv/team/undelete/apps/postern/audit/prod/+" {
  capabilities = ["deny"]
}

# nor destroyed
path "kv/team/destroy/apps/postern/audit/prod/+" {
  capabilities = ["deny"]
}

# admin credentials are the server's alone
path "kv/team/data/apps/postern/issuers/*" {
  capabilities = ["deny"]
}

# and where they are, too
path "kv/team/metadata/apps/postern/issuers/*" {
  capabilities = ["deny"]
}
