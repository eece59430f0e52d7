"""Integrations, connections of users, connect sessions, escrows, workspaces' keys, the audit's chain."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from services.shared.timestamps import Timestamp

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Adds the tables and columns; existing connections are shared by their workspaces."""
    op.create_table(
        "integrations",
        sa.Column("workspace_id", sa.Text, sa.ForeignKey("workspaces.workspace_id"), primary_key=True),
        sa.Column("integration_id", sa.Text, primary_key=True),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("provider", sa.Text, nullable=False),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("client_id", sa.Text, nullable=False),
        sa.Column("variables", sa.Text, nullable=False),
        sa.Column("scopes", sa.Text, nullable=False),
        sa.Column("agents", sa.Text, nullable=False),
        sa.Column("server_url", sa.Text, nullable=False),
        sa.Column("discovered", sa.Text, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("state_reason", sa.Text, nullable=False),
        sa.Column("secret_path", sa.Text),
        sa.Column("client_secret_count", sa.Integer, nullable=False),
        sa.Column("version", sa.BigInteger, nullable=False),
        sa.Column("create_time", Timestamp, nullable=False),
        sa.Column("update_time", Timestamp, nullable=False),
    )
    op.create_index("integrations_by_name", "integrations", ["workspace_id", "name"], unique=True)
    op.create_table(
        "connect_sessions",
        sa.Column("workspace_id", sa.Text, sa.ForeignKey("workspaces.workspace_id"), primary_key=True),
        sa.Column("session_id", sa.Text, primary_key=True),
        sa.Column("integration_id", sa.Text, nullable=False),
        sa.Column("user_id", sa.Text, nullable=False),
        sa.Column("connection", sa.Text, nullable=False),
        sa.Column("initiator", sa.Text, nullable=False),
        sa.Column("mode", sa.Text, nullable=False),
        sa.Column("scopes", sa.Text, nullable=False),
        sa.Column("return_url", sa.Text, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("failure_reason", sa.Text, nullable=False),
        sa.Column("state_hash", sa.LargeBinary, unique=True),
        sa.Column("browser_hash", sa.LargeBinary),
        sa.Column("confirm_hash", sa.LargeBinary),
        sa.Column("confirm_failures", sa.Integer, nullable=False),
        sa.Column("sealed", sa.Text),
        sa.Column("expected_issuer", sa.Text, nullable=False),
        sa.Column("secret_path", sa.Text),
        sa.Column("account_id", sa.Text, nullable=False),
        sa.Column("account_label", sa.Text, nullable=False),
        sa.Column("user_code", sa.Text, nullable=False),
        sa.Column("verification_url", sa.Text, nullable=False),
        sa.Column("poll_time", Timestamp),
        sa.Column("poll_interval_seconds", sa.Integer, nullable=False),
        sa.Column("run_id", sa.Text, nullable=False),
        sa.Column("create_time", Timestamp, nullable=False),
        sa.Column("update_time", Timestamp, nullable=False),
        sa.Column("expire_time", Timestamp, nullable=False),
    )
    op.create_index("connect_sessions_by_id", "connect_sessions", ["session_id"], unique=True)
    op.create_index("connect_sessions_by_poll_time", "connect_sessions", ["poll_time"])
    op.create_index("connect_sessions_by_expire_time", "connect_sessions", ["expire_time"])
    op.create_index("connect_sessions_by_run", "connect_sessions", ["workspace_id", "run_id"])
    op.create_table(
        "connection_events",
        sa.Column("event_id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True, autoincrement=True),
        sa.Column("workspace_id", sa.Text, nullable=False),
        sa.Column("connection_id", sa.Text, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("create_time", Timestamp, nullable=False),
    )
    op.create_index("connection_events_by_time", "connection_events", ["create_time"])
    op.create_table(
        "escrows",
        sa.Column("connection_id", sa.Text, primary_key=True),
        sa.Column("write_id", sa.Text, primary_key=True),
        sa.Column("workspace_id", sa.Text, nullable=False),
        sa.Column("token_version", sa.BigInteger, nullable=False),
        sa.Column("wrapped_key", sa.Text, nullable=False),
        sa.Column("nonce", sa.LargeBinary, nullable=False),
        sa.Column("ciphertext", sa.LargeBinary, nullable=False),
        sa.Column("create_time", Timestamp, nullable=False),
    )
    op.create_table(
        "workspace_keys",
        sa.Column("workspace_id", sa.Text, primary_key=True),
        sa.Column("version", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("nonce", sa.LargeBinary, nullable=False),
        sa.Column("ciphertext", sa.LargeBinary, nullable=False),
        sa.Column("create_time", Timestamp, nullable=False),
    )
    # The primary key grows by the user; SQLite makes the table anew for that.
    with op.batch_alter_table("connections") as batch:
        batch.add_column(sa.Column("user_id", sa.Text, nullable=False, server_default=""))
        batch.add_column(sa.Column("integration_id", sa.Text))
        batch.add_column(sa.Column("kind", sa.Text, nullable=False, server_default="API_KEY"))
        batch.add_column(sa.Column("state_reason", sa.Text, nullable=False, server_default=""))
        batch.add_column(sa.Column("token_version", sa.BigInteger, nullable=False, server_default="0"))
        batch.add_column(sa.Column("account_id", sa.Text, nullable=False, server_default=""))
        batch.add_column(sa.Column("account_label", sa.Text, nullable=False, server_default=""))
        batch.add_column(sa.Column("scopes", sa.Text, nullable=False, server_default=""))
        batch.add_column(sa.Column("missing_scopes", sa.Text, nullable=False, server_default=""))
        batch.add_column(sa.Column("agents", sa.Text, nullable=False, server_default=""))
        batch.add_column(sa.Column("allow_raw_token", sa.Boolean, nullable=False, server_default=sa.false()))
        batch.add_column(sa.Column("expire_time", Timestamp))
        batch.add_column(sa.Column("grant_expire_time", Timestamp))
        batch.add_column(sa.Column("refresh_time", Timestamp))
        batch.add_column(sa.Column("failure_count", sa.Integer, nullable=False, server_default="0"))
        batch.add_column(sa.Column("last_use_time", Timestamp))
    with op.batch_alter_table("connections", naming_convention={"pk": "%(table_name)s_pkey"}) as batch:
        batch.drop_constraint("connections_pkey", type_="primary")
        batch.create_primary_key("connections_pkey", ["workspace_id", "user_id", "name"])
    op.create_index("connections_by_refresh_time", "connections", ["refresh_time"])
    op.create_index("connections_by_integration", "connections", ["workspace_id", "integration_id"])
    op.add_column("api_keys", sa.Column("networks", sa.Text, nullable=False, server_default=""))
    op.add_column("audit_records", sa.Column("tool", sa.Text))
    op.add_column("audit_records", sa.Column("host", sa.Text))
    op.add_column("audit_records", sa.Column("user_id", sa.Text))
    op.add_column("audit_records", sa.Column("details", sa.Text))
    op.add_column("audit_records", sa.Column("previous_hash", sa.LargeBinary))
    op.add_column("audit_records", sa.Column("hash", sa.LargeBinary))
