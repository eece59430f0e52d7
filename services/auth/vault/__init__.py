"""HashiCorp Vault, or OpenBao, as the keeper of secrets and envelope keys. The only place that knows hvac."""
