# Whoever checks backups or counts secrets: names, versions and times, and no secret.

path "holdfast-conn/metadata/*" {
  capabilities = ["read", "list"]
}
path "holdfast-app/metadata/*" {
  capabilities = ["read", "list"]
}
path "holdfast-lease/metadata/*" {
  capabilities = ["read", "list"]
}
