"""Alembic's entry for the state service."""

from services.shared.migrations import run_env
from services.state.tables import metadata

run_env(metadata)
