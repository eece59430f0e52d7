# One node of Vault with its storage on disk. Three nodes: the same file with a node_id and retry_join of each.

ui           = false
api_addr     = "https://vault:8200"
cluster_addr = "https://vault:8201"
# Vault wants it said with this storage; turn swap off instead. OpenBao has no mlock: remove this line there.
disable_mlock = true

storage "raft" {
  path    = "/vault/file"
  node_id = "vault-1"
}

listener "tcp" {
  address       = "0.0.0.0:8200"
  tls_cert_file = "/vault/tls/vault.pem"
  tls_key_file  = "/vault/tls/vault-key.pem"
}
