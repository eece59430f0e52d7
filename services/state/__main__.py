"""`python -m services.state [migrate]`: state as a process."""

from __future__ import annotations

from services.shared.server import service_main
from services.state.app import migrate, run
from services.state.settings import StateSettings

if __name__ == "__main__":
    service_main(run, StateSettings, service="state", migrate=migrate)
