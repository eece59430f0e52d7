"""Workspaces, API keys, connections, the sealed store, idempotent requests and the audit."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from services.shared.timestamps import Timestamp

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Makes the tables."""
    op.create_table(
        "workspaces",
        sa.Column("workspace_id", sa.Text, primary_key=True),
        sa.Column("name", sa.Text, nullable=False, unique=True),
        sa.Column("create_time", Timestamp, nullable=False),
        sa.Column("audit_seq", sa.BigInteger, nullable=False, server_default="0"),
    )
    op.create_table(
        "api_keys",
        sa.Column("workspace_id", sa.Text, sa.ForeignKey("workspaces.workspace_id"), primary_key=True),
        sa.Column("api_key_id", sa.Text, primary_key=True),
        sa.Column("display_name", sa.Text, nullable=False),
        sa.Column("digest", sa.LargeBinary, nullable=False),
        sa.Column("scopes", sa.Text, nullable=False),
        sa.Column("create_time", Timestamp, nullable=False),
        sa.Column("expire_time", Timestamp),
        sa.Column("revoke_time", Timestamp),
        sa.Column("last_use_time", Timestamp),
    )
    op.create_index("api_keys_by_id", "api_keys", ["api_key_id"], unique=True)
    op.create_index("api_keys_by_time", "api_keys", ["workspace_id", "create_time", "api_key_id"])
    op.create_table(
        "connections",
        sa.Column("workspace_id", sa.Text, sa.ForeignKey("workspaces.workspace_id"), primary_key=True),
        sa.Column("name", sa.Text, primary_key=True),
        sa.Column("connection_id", sa.Text, nullable=False, unique=True),
        sa.Column("provider", sa.Text, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("base_url", sa.Text, nullable=False),
        sa.Column("fingerprint", sa.Text, nullable=False),
        sa.Column("secret_path", sa.Text),
        sa.Column("version", sa.BigInteger, nullable=False),
        sa.Column("create_time", Timestamp, nullable=False),
        sa.Column("update_time", Timestamp, nullable=False),
    )
    op.create_table(
        "stray_secrets",
        sa.Column("path", sa.Text, primary_key=True),
        sa.Column("is_condemned", sa.Boolean, nullable=False),
        sa.Column("create_time", Timestamp, nullable=False),
    )
    op.create_table(
        "requests",
        sa.Column("workspace_id", sa.Text, sa.ForeignKey("workspaces.workspace_id"), primary_key=True),
        sa.Column("request_id", sa.Text, primary_key=True),
        sa.Column("method", sa.Text, nullable=False),
        sa.Column("fingerprint", sa.Text, nullable=False),
        sa.Column("response", sa.Text, nullable=False),
        sa.Column("create_time", Timestamp, nullable=False),
    )
    op.create_index("requests_by_time", "requests", ["create_time"])
    op.create_table(
        "audit_records",
        sa.Column("workspace_id", sa.Text, sa.ForeignKey("workspaces.workspace_id"), primary_key=True),
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
    op.create_table(
        "seal",
        sa.Column("seal_id", sa.SmallInteger, primary_key=True, autoincrement=False),
        sa.Column("store_id", sa.Text, nullable=False),
        sa.Column("epoch", sa.BigInteger, nullable=False),
        sa.Column("nonce", sa.LargeBinary, nullable=False),
        sa.Column("ciphertext", sa.LargeBinary, nullable=False),
    )
    op.create_table(
        "sealed_keys",
        sa.Column("purpose", sa.Text, primary_key=True),
        sa.Column("nonce", sa.LargeBinary, nullable=False),
        sa.Column("ciphertext", sa.LargeBinary, nullable=False),
    )
    op.create_table(
        "secrets",
        sa.Column("path", sa.Text, primary_key=True),
        sa.Column("version", sa.BigInteger, nullable=False),
        sa.Column("epoch", sa.BigInteger, nullable=False),
        sa.Column("nonce", sa.LargeBinary, nullable=False),
        sa.Column("ciphertext", sa.LargeBinary, nullable=False),
        sa.Column("update_time", Timestamp, nullable=False),
    )


def downgrade() -> None:
    """Removes the tables."""
    for table in (
        "secrets",
        "sealed_keys",
        "seal",
        "audit_records",
        "requests",
        "stray_secrets",
        "connections",
        "api_keys",
        "workspaces",
    ):
        op.drop_table(table)
