"""The state service's settings."""

from __future__ import annotations

from dataclasses import dataclass

from services.shared.settings import (
    CommonSettings,
    auth_address_setting,
    database_pool_size_setting,
    database_url_setting,
    duration_seconds,
    listen_setting,
    migrate_on_start_setting,
    setting,
)


@dataclass(frozen=True, kw_only=True)
class StateSettings(CommonSettings):
    """What state needs beyond what every service has."""

    listen: str = listen_setting(7401)
    database_url: str = database_url_setting()
    database_pool_size: int = database_pool_size_setting()
    migrate_on_start: bool = migrate_on_start_setting()
    auth_address: str = auth_address_setting()
    seal_payloads: bool = setting(
        "HOLDFAST_SEAL_PAYLOADS",
        default=False,
        doc="Store payloads sealed under their workspace's key, of workspaces that have not chosen for themselves. "
        "What is stored already stays as it is, and what was sealed is read also when this is off.",
    )
    housekeeping_interval_seconds: float = setting(
        "HOLDFAST_HOUSEKEEPING_INTERVAL",
        default=60.0,
        parse=duration_seconds,
        minimum=0.1,
        maximum=86_400,
        doc="How often state looks for what the workspaces' settings let be removed.",
    )
