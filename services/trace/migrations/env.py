"""Alembic's entry: the shared code runs the revisions."""

from services.shared.migrations import run_env
from services.trace.tables import metadata

run_env(metadata)
