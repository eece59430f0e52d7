# Deleting a workspace deletes its key, and with it all that lies under it. Apart from the runtime's policy, so that it
# can be left out where only a person may do this.

path "holdfast-transit/keys/ws-*" {
  capabilities = ["create", "update", "delete"]
  allowed_parameters = {
    "type" = ["aes256-gcm96"]
    "auto_rotate_period" = []
    "deletion_allowed" = []
  }
}
