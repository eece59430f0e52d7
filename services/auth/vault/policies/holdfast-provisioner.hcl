# Whoever runs `holdfast vault setup`, now and then, with a token that lives for minutes. It reads no secret, but who may
# write policies can give themselves any: keep it for people.

path "sys/mounts" {
  capabilities = ["read"]
}
path "sys/mounts/holdfast-*" {
  capabilities = ["create", "read", "update"]
}
path "holdfast-conn/config" {
  capabilities = ["create", "read", "update"]
}
path "holdfast-app/config" {
  capabilities = ["create", "read", "update"]
}
path "holdfast-lease/config" {
  capabilities = ["create", "read", "update"]
}
path "holdfast-transit/keys/system" {
  capabilities = ["create", "read", "update"]
}
path "sys/auth" {
  capabilities = ["read"]
}
path "sys/auth/approle" {
  capabilities = ["create", "read", "update", "sudo"]
}
path "auth/approle/role/holdfast" {
  capabilities = ["create", "read", "update"]
}
path "auth/approle/role/holdfast/role-id" {
  capabilities = ["read"]
}
path "auth/approle/role/holdfast/secret-id" {
  capabilities = ["create", "update"]
}
path "sys/policies/acl/holdfast-*" {
  capabilities = ["create", "read", "update"]
}
