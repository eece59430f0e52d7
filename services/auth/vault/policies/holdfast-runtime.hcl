# The auth service: reads and writes secrets, uses keys. No list, no sys/, no export of keys.

path "holdfast-conn/data/ws/*" {
  capabilities = ["create", "read", "update"]
}
# Disconnecting an account removes all versions of its secret.
path "holdfast-conn/metadata/ws/*" {
  capabilities = ["delete"]
}

# Client secrets of integrations, which are made through the API as well.
path "holdfast-app/data/ws/+/i/*" {
  capabilities = ["create", "read", "update"]
}
path "holdfast-app/metadata/ws/+/i/*" {
  capabilities = ["delete"]
}

path "holdfast-lease/data/c/*" {
  capabilities = ["create", "read", "update"]
}
path "holdfast-lease/metadata/c/*" {
  capabilities = ["delete"]
}

# A workspace's key is made when it is first needed, and rotated. The pattern also covers keys/ws-…/config, which is
# why the parameters are named: nothing here makes a key exportable or deletable.
path "holdfast-transit/keys/ws-*" {
  capabilities = ["create", "update"]
  allowed_parameters = {
    "type" = ["aes256-gcm96"]
    "auto_rotate_period" = []
  }
}
path "holdfast-transit/datakey/plaintext/ws-*" {
  capabilities = ["create", "update"]
}
path "holdfast-transit/decrypt/ws-*" {
  capabilities = ["create", "update"]
}
path "holdfast-transit/rewrap/ws-*" {
  capabilities = ["create", "update"]
}
# Not "create", with which encryption makes a key that is missing.
path "holdfast-transit/encrypt/system" {
  capabilities = ["update"]
}
path "holdfast-transit/decrypt/system" {
  capabilities = ["create", "update"]
}

path "auth/token/lookup-self" {
  capabilities = ["read"]
}
path "auth/token/renew-self" {
  capabilities = ["create", "update"]
}
