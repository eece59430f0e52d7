"""`python -m services.executor`: the executor as a process."""

from __future__ import annotations

from services.executor.app import run
from services.executor.settings import ExecutorSettings
from services.shared.server import service_main

if __name__ == "__main__":
    service_main(run, ExecutorSettings, service="executor")
