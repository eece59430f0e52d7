"""The executor's settings."""

from __future__ import annotations

from dataclasses import dataclass

from services.shared.egress.addresses import parse_allowed_targets
from services.shared.settings import (
    CommonSettings,
    auth_address_setting,
    duration_seconds,
    listen_setting,
    setting,
    state_address_setting,
)


@dataclass(frozen=True, kw_only=True)
class ExecutorSettings(CommonSettings):
    """What the executor needs beyond what every service has."""

    listen: str = listen_setting(7400)
    state_address: str = state_address_setting()
    auth_address: str = auth_address_setting()
    max_runs: int = setting(
        "HOLDFAST_MAX_RUNS", default=1_000, minimum=1, maximum=100_000, doc="How many runs this process drives at once."
    )
    park_after_seconds: float = setting(
        "HOLDFAST_PARK_AFTER",
        default=1.0,
        parse=duration_seconds,
        maximum=60,
        doc="How long a run that only waits for a worker stays in memory before it becomes rows.",
    )
    http_tools_allow: tuple[str, ...] = setting(
        "HOLDFAST_HTTP_TOOLS_ALLOW",
        default=(),
        parse=parse_allowed_targets,
        doc="Hosts and networks (CIDR) beyond the public internet that http tools may call, such as 10.0.0.0/8.",
    )
