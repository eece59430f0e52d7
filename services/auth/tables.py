"""The tables of the auth service. `migrations` builds them; a test compares the two."""

from __future__ import annotations

from typing import Final

import sqlalchemy as sa

from services.shared.timestamps import Timestamp

metadata: Final = sa.MetaData()

workspaces: Final = sa.Table(
    "workspaces",
    metadata,
    sa.Column("workspace_id", sa.Text, primary_key=True),
    sa.Column("name", sa.Text, nullable=False, unique=True),
    sa.Column("create_time", Timestamp, nullable=False),
    # Number of the workspace's last audit record; its row lock is what makes the numbers dense.
    sa.Column("audit_seq", sa.BigInteger, nullable=False, server_default="0"),
    # Set when nothing new may begin in it, and when what auth had of it was deleted.
    sa.Column("close_time", Timestamp),
    sa.Column("delete_time", Timestamp),
    # Its choice about sealing payloads; null leaves it to the installation.
    sa.Column("seals_payloads", sa.Boolean),
)

api_keys: Final = sa.Table(
    "api_keys",
    metadata,
    sa.Column("workspace_id", sa.Text, sa.ForeignKey("workspaces.workspace_id"), primary_key=True),
    sa.Column("api_key_id", sa.Text, primary_key=True),
    sa.Column("display_name", sa.Text, nullable=False),
    # HMAC-SHA256 of the key's secret part; the secret itself is nowhere.
    sa.Column("digest", sa.LargeBinary, nullable=False),
    # In alphabetical order, separated by spaces.
    sa.Column("scopes", sa.Text, nullable=False),
    sa.Column("create_time", Timestamp, nullable=False),
    sa.Column("expire_time", Timestamp),
    sa.Column("revoke_time", Timestamp),
    sa.Column("last_use_time", Timestamp),
    # Networks from which it may be used, separated by spaces; empty means any.
    sa.Column("networks", sa.Text, nullable=False, server_default=""),
    sa.Index("api_keys_by_id", "api_key_id", unique=True),
    sa.Index("api_keys_by_time", "workspace_id", "create_time", "api_key_id"),
)

integrations: Final = sa.Table(
    "integrations",
    metadata,
    sa.Column("workspace_id", sa.Text, sa.ForeignKey("workspaces.workspace_id"), primary_key=True),
    sa.Column("integration_id", sa.Text, primary_key=True),
    sa.Column("name", sa.Text, nullable=False),
    # Slug of the provider, and how its connections' credentials come about.
    sa.Column("provider", sa.Text, nullable=False),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("client_id", sa.Text, nullable=False),
    # JSON object: values of the provider's variables.
    sa.Column("variables", sa.Text, nullable=False),
    # Separated by spaces: permissions that are always asked for, and agents that may use it (empty: all).
    sa.Column("scopes", sa.Text, nullable=False),
    sa.Column("agents", sa.Text, nullable=False),
    # For discovered providers: the server or issuer, and JSON of what was discovered and registered there.
    sa.Column("server_url", sa.Text, nullable=False),
    sa.Column("discovered", sa.Text, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("state_reason", sa.Text, nullable=False),
    # Where its client secrets lie, all in one document; null when there are none.
    sa.Column("secret_path", sa.Text),
    sa.Column("client_secret_count", sa.Integer, nullable=False),
    # From 1, one higher with each change: the etag.
    sa.Column("version", sa.BigInteger, nullable=False),
    sa.Column("create_time", Timestamp, nullable=False),
    sa.Column("update_time", Timestamp, nullable=False),
    sa.Index("integrations_by_name", "workspace_id", "name", unique=True),
)

connections: Final = sa.Table(
    "connections",
    metadata,
    sa.Column("workspace_id", sa.Text, sa.ForeignKey("workspaces.workspace_id"), primary_key=True),
    # Whose it is; empty for one that the workspace shares.
    sa.Column("user_id", sa.Text, primary_key=True, server_default=""),
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("connection_id", sa.Text, nullable=False, unique=True),
    # Null for a key that was stored without an integration.
    sa.Column("integration_id", sa.Text),
    sa.Column("provider", sa.Text, nullable=False),
    sa.Column("kind", sa.Text, nullable=False, server_default="API_KEY"),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("state_reason", sa.Text, nullable=False, server_default=""),
    sa.Column("base_url", sa.Text, nullable=False),
    sa.Column("fingerprint", sa.Text, nullable=False),
    # Null for a connection without a secret. A key's path is new with each replacement; an OAuth grant keeps its path
    # and is rewritten in place, by check-and-set.
    sa.Column("secret_path", sa.Text),
    sa.Column("version", sa.BigInteger, nullable=False),
    # Version of the secret at its path that this row describes; the secret may be one ahead after a crash.
    sa.Column("token_version", sa.BigInteger, nullable=False, server_default="0"),
    # Who it is at the provider: its id there, and its name for people.
    sa.Column("account_id", sa.Text, nullable=False, server_default=""),
    sa.Column("account_label", sa.Text, nullable=False, server_default=""),
    # Separated by spaces: granted, asked for but not granted, and agents that may use it (empty: all).
    sa.Column("scopes", sa.Text, nullable=False, server_default=""),
    sa.Column("missing_scopes", sa.Text, nullable=False, server_default=""),
    sa.Column("agents", sa.Text, nullable=False, server_default=""),
    sa.Column("allow_raw_token", sa.Boolean, nullable=False, server_default=sa.false()),
    # End of the access token and of the grant; null when unknown, or without an end.
    sa.Column("expire_time", Timestamp),
    sa.Column("grant_expire_time", Timestamp),
    # When the next refresh is due; null when none is.
    sa.Column("refresh_time", Timestamp),
    sa.Column("failure_count", sa.Integer, nullable=False, server_default="0"),
    sa.Column("last_use_time", Timestamp),
    sa.Column("create_time", Timestamp, nullable=False),
    sa.Column("update_time", Timestamp, nullable=False),
    # JSON object: values of the provider's variables, to be shown. What decides is sealed beside the secret.
    sa.Column("variables", sa.Text, nullable=False, server_default="{}"),
    sa.Index("connections_by_refresh_time", "refresh_time"),
    sa.Index("connections_by_integration", "workspace_id", "integration_id"),
)

connect_sessions: Final = sa.Table(
    "connect_sessions",
    metadata,
    sa.Column("workspace_id", sa.Text, sa.ForeignKey("workspaces.workspace_id"), primary_key=True),
    sa.Column("session_id", sa.Text, primary_key=True),
    sa.Column("integration_id", sa.Text, nullable=False),
    sa.Column("user_id", sa.Text, nullable=False),
    # Name of the connection that it makes or reconnects.
    sa.Column("connection", sa.Text, nullable=False),
    # Who began it and alone may confirm it: `key:<id>`, `user:<subject>` or `run:<id>`.
    sa.Column("initiator", sa.Text, nullable=False),
    sa.Column("mode", sa.Text, nullable=False),
    sa.Column("scopes", sa.Text, nullable=False),
    sa.Column("return_url", sa.Text, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("failure_reason", sa.Text, nullable=False),
    # SHA-256 of the `state` parameter (null once consumed), of the browser's cookie and of the confirm code.
    sa.Column("state_hash", sa.LargeBinary, unique=True),
    sa.Column("browser_hash", sa.LargeBinary),
    sa.Column("confirm_hash", sa.LargeBinary),
    sa.Column("confirm_failures", sa.Integer, nullable=False),
    # Sealed JSON: PKCE verifier, nonce, device code.
    sa.Column("sealed", sa.Text),
    sa.Column("expected_issuer", sa.Text, nullable=False),
    # Where the granted tokens lie until they are confirmed; an announced secret.
    sa.Column("secret_path", sa.Text),
    sa.Column("account_id", sa.Text, nullable=False),
    sa.Column("account_label", sa.Text, nullable=False),
    # For a device: what the person types, where, and when to ask the provider next.
    sa.Column("user_code", sa.Text, nullable=False),
    sa.Column("verification_url", sa.Text, nullable=False),
    sa.Column("poll_time", Timestamp),
    sa.Column("poll_interval_seconds", sa.Integer, nullable=False),
    # The run and step that asked for it; empty when a caller did.
    sa.Column("run_id", sa.Text, nullable=False),
    sa.Column("create_time", Timestamp, nullable=False),
    sa.Column("update_time", Timestamp, nullable=False),
    # Of the link while it is PENDING, of what follows afterwards.
    sa.Column("expire_time", Timestamp, nullable=False),
    # JSON object: values of the provider's variables that the connection will have.
    sa.Column("variables", sa.Text, nullable=False, server_default="{}"),
    sa.Index("connect_sessions_by_id", "session_id", unique=True),
    sa.Index("connect_sessions_by_poll_time", "poll_time"),
    sa.Index("connect_sessions_by_expire_time", "expire_time"),
    sa.Index("connect_sessions_by_run", "workspace_id", "run_id"),
)

connection_events: Final = sa.Table(
    "connection_events",
    metadata,
    # What became usable or stopped to be, for those who follow; a hint, trimmed after a day.
    sa.Column("event_id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True, autoincrement=True),
    sa.Column("workspace_id", sa.Text, nullable=False),
    sa.Column("connection_id", sa.Text, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("create_time", Timestamp, nullable=False),
    sa.Index("connection_events_by_time", "create_time"),
)

escrows: Final = sa.Table(
    "escrows",
    metadata,
    # Tokens that a provider has handed out and that the secret store has not confirmed yet, sealed with a data key
    # whose wrapped form stands beside them: what a crash in the middle of a refresh leaves to whoever recovers it.
    sa.Column("connection_id", sa.Text, primary_key=True),
    sa.Column("write_id", sa.Text, primary_key=True),
    sa.Column("workspace_id", sa.Text, nullable=False),
    # Version of the token document that the tokens replace.
    sa.Column("token_version", sa.BigInteger, nullable=False),
    sa.Column("wrapped_key", sa.Text, nullable=False),
    sa.Column("nonce", sa.LargeBinary, nullable=False),
    sa.Column("ciphertext", sa.LargeBinary, nullable=False),
    sa.Column("create_time", Timestamp, nullable=False),
)

workspace_keys: Final = sa.Table(
    "workspace_keys",
    metadata,
    # The embedded store's key of a workspace, sealed under the master key: without the row nothing under it opens.
    sa.Column("workspace_id", sa.Text, primary_key=True),
    sa.Column("version", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("nonce", sa.LargeBinary, nullable=False),
    sa.Column("ciphertext", sa.LargeBinary, nullable=False),
    sa.Column("create_time", Timestamp, nullable=False),
)

stray_secrets: Final = sa.Table(
    "stray_secrets",
    metadata,
    # A path of the secret store that no connection refers to: not yet, or not any more.
    sa.Column("path", sa.Text, primary_key=True),
    # It is being deleted: no connection may take it any more.
    sa.Column("is_condemned", sa.Boolean, nullable=False),
    sa.Column("create_time", Timestamp, nullable=False),
    # Whose provider has to be told that the grant has ended, before its tokens are deleted; null when there is nothing
    # to tell.
    sa.Column("workspace_id", sa.Text),
    sa.Column("integration_id", sa.Text),
    # When to tell it next; null means now.
    sa.Column("attempt_time", Timestamp),
    sa.Column("failure_count", sa.Integer, nullable=False, server_default="0"),
    sa.Index("stray_secrets_by_integration", "integration_id"),
)

requests: Final = sa.Table(
    "requests",
    metadata,
    sa.Column("workspace_id", sa.Text, sa.ForeignKey("workspaces.workspace_id"), primary_key=True),
    sa.Column("request_id", sa.Text, primary_key=True),
    sa.Column("method", sa.Text, nullable=False),
    # Keyed hash of what was asked for, because that may hold a secret.
    sa.Column("fingerprint", sa.Text, nullable=False),
    # JSON of the answer, without secrets.
    sa.Column("response", sa.Text, nullable=False),
    sa.Column("create_time", Timestamp, nullable=False),
    sa.Index("requests_by_time", "create_time"),
)

audit_records: Final = sa.Table(
    "audit_records",
    metadata,
    sa.Column("workspace_id", sa.Text, sa.ForeignKey("workspaces.workspace_id"), primary_key=True),
    # Dense from 1 in each workspace.
    sa.Column("seq", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("record_id", sa.Text, nullable=False, unique=True),
    sa.Column("time", Timestamp, nullable=False),
    sa.Column("actor", sa.Text, nullable=False),
    sa.Column("action", sa.Text, nullable=False),
    sa.Column("outcome", sa.Text, nullable=False),
    sa.Column("api_key_id", sa.Text),
    sa.Column("connection", sa.Text),
    sa.Column("connection_id", sa.Text),
    sa.Column("fingerprint", sa.Text),
    sa.Column("run_id", sa.Text),
    sa.Column("step", sa.BigInteger),
    sa.Column("tool", sa.Text),
    # Where a credential was sent, as `https://host[:port]`.
    sa.Column("host", sa.Text),
    # The user on whose behalf.
    sa.Column("user_id", sa.Text),
    # JSON object: what else belongs to the action.
    sa.Column("details", sa.Text),
    # The chain: SHA-256 over the record's canonical form, which holds the hash before. Null before there was a chain.
    sa.Column("previous_hash", sa.LargeBinary),
    sa.Column("hash", sa.LargeBinary),
)

seal: Final = sa.Table(
    "seal",
    metadata,
    # One row, 1: which master key this database is sealed with.
    sa.Column("seal_id", sa.SmallInteger, primary_key=True, autoincrement=False),
    sa.Column("store_id", sa.Text, nullable=False),
    sa.Column("epoch", sa.BigInteger, nullable=False),
    # A known text, sealed: opens with the right master key only.
    sa.Column("nonce", sa.LargeBinary, nullable=False),
    sa.Column("ciphertext", sa.LargeBinary, nullable=False),
)

sealed_keys: Final = sa.Table(
    "sealed_keys",
    metadata,
    sa.Column("purpose", sa.Text, primary_key=True),
    sa.Column("nonce", sa.LargeBinary, nullable=False),
    sa.Column("ciphertext", sa.LargeBinary, nullable=False),
)

secrets: Final = sa.Table(
    "secrets",
    metadata,
    sa.Column("path", sa.Text, primary_key=True),
    sa.Column("version", sa.BigInteger, nullable=False),
    sa.Column("epoch", sa.BigInteger, nullable=False),
    sa.Column("nonce", sa.LargeBinary, nullable=False),
    sa.Column("ciphertext", sa.LargeBinary, nullable=False),
    sa.Column("update_time", Timestamp, nullable=False),
)
