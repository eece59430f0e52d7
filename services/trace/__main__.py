"""`python -m services.trace`: serves; with `migrate`, brings the database's schema up to date."""

from __future__ import annotations

from services.shared.server import service_main
from services.trace.app import SERVICE, migrate, run
from services.trace.settings import TraceSettings

if __name__ == "__main__":
    service_main(run, TraceSettings, service=SERVICE, migrate=migrate)
