"""Alembic's entry for the auth service."""

from services.auth.tables import metadata
from services.shared.migrations import run_env

run_env(metadata)
