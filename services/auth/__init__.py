"""The auth service: workspaces, API keys, connections, and the credential of each call."""
