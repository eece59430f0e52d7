"""Settings of the trace service."""

from __future__ import annotations

from dataclasses import dataclass

from services.shared.settings import (
    CommonSettings,
    auth_address_setting,
    database_pool_size_setting,
    database_url_setting,
    listen_setting,
    migrate_on_start_setting,
    setting,
    state_address_setting,
)


@dataclass(frozen=True, kw_only=True)
class TraceSettings(CommonSettings):
    """What the trace service needs to know."""

    listen: str = listen_setting(7403)
    database_url: str = database_url_setting()
    database_pool_size: int = database_pool_size_setting()
    migrate_on_start: bool = migrate_on_start_setting()
    state_address: str = state_address_setting()
    auth_address: str = auth_address_setting()
    feed_max_entries: int = setting(
        "HOLDFAST_FEED_MAX_ENTRIES",
        default=2_000,
        minimum=1,
        maximum=10_000,
        doc="Most events in one frame of the change feed. Frames that wait are stored in one transaction.",
    )
