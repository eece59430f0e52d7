"""The executor's settings."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import urlsplit

from services.shared.egress.addresses import parse_allowed_targets
from services.shared.settings import (
    CommonSettings,
    auth_address_setting,
    duration_seconds,
    host_port,
    is_loopback,
    listen_setting,
    setting,
    state_address_setting,
)


def parse_base_url(text: str) -> str:
    """Parses `http(s)://host[:port]`."""
    parts = urlsplit(text.strip())
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.username:
        raise ValueError("an address of the form http(s)://host[:port]")
    if parts.path.strip("/") or parts.query or parts.fragment:
        raise ValueError("an address without path, query and fragment")
    return text.strip().rstrip("/")


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
        doc="Hosts and networks (CIDR) beyond the public internet that http tools, and tools in workers by the egress "
        "proxy, may call, such as 10.0.0.0/8.",
    )
    egress_listen: str = setting(
        "HOLDFAST_EGRESS_LISTEN",
        default="",
        parse=host_port,
        doc="Address, as host:port, on which requests of tools in workers are taken, in plain HTTP, and forwarded with "
        "their credential; port 0: a free one. Without it there is no egress proxy.",
    )
    egress_url: str = setting(
        "HOLDFAST_EGRESS_URL",
        default="",
        parse=parse_base_url,
        doc="Where workers reach it, when that is another address: http(s)://host[:port].",
    )

    def problems(self) -> list[str]:
        """Returns what is wrong in the combination of the settings, one line each."""
        problems = super().problems()
        if self.egress_url and not self.egress_listen:
            problems.append("HOLDFAST_EGRESS_URL is set, but HOLDFAST_EGRESS_LISTEN is not: set both, or neither")
        if self.egress_listen and not is_loopback(self.egress_listen):
            if not self.allow_plaintext:
                problems.append(
                    f"HOLDFAST_EGRESS_LISTEN={self.egress_listen!r} reaches beyond this machine, and is not encrypted: "
                    "use a loopback address with a proxy before it, or set HOLDFAST_ALLOW_PLAINTEXT=true if nobody "
                    "else can read that network"
                )
            if not self.egress_url:
                problems.append("HOLDFAST_EGRESS_URL is required when HOLDFAST_EGRESS_LISTEN is no loopback address")
        return problems
