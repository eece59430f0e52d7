"""The tables of the auth service. `migrations` builds them; a test compares the two."""

from __future__ import annotations

from typing import Final

import sqlalchemy as sa

from services.shared.database import Timestamp

metadata: Final = sa.MetaData()

workspaces: Final = sa.Table(
    "workspaces",
    metadata,
    sa.Column("workspace_id", sa.Text, primary_key=True),
    sa.Column("name", sa.Text, nullable=False, unique=True),
    sa.Column("create_time", Timestamp, nullable=False),
    # Number of the workspace's last audit record; its row lock is what makes the numbers dense.
    sa.Column("audit_seq", sa.BigInteger, nullable=False, server_default="0"),
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
    sa.Index("api_keys_by_id", "api_key_id", unique=True),
    sa.Index("api_keys_by_time", "workspace_id", "create_time", "api_key_id"),
)

connections: Final = sa.Table(
    "connections",
    metadata,
    sa.Column("workspace_id", sa.Text, sa.ForeignKey("workspaces.workspace_id"), primary_key=True),
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("connection_id", sa.Text, nullable=False, unique=True),
    sa.Column("provider", sa.Text, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("base_url", sa.Text, nullable=False),
    sa.Column("fingerprint", sa.Text, nullable=False),
    # Null for a connection without a secret.
    sa.Column("secret_path", sa.Text),
    sa.Column("version", sa.BigInteger, nullable=False),
    sa.Column("create_time", Timestamp, nullable=False),
    sa.Column("update_time", Timestamp, nullable=False),
)

stray_secrets: Final = sa.Table(
    "stray_secrets",
    metadata,
    # A path of the secret store that no connection refers to: not yet, or not any more.
    sa.Column("path", sa.Text, primary_key=True),
    # It is being deleted: no connection may take it any more.
    sa.Column("is_condemned", sa.Boolean, nullable=False),
    sa.Column("create_time", Timestamp, nullable=False),
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
