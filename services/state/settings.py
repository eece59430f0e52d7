"""The state service's settings."""

from __future__ import annotations

from dataclasses import dataclass

from services.shared.settings import (
    CommonSettings,
    database_pool_size_setting,
    database_url_setting,
    listen_setting,
    migrate_on_start_setting,
)


@dataclass(frozen=True, kw_only=True)
class StateSettings(CommonSettings):
    """What state needs beyond what every service has."""

    listen: str = listen_setting(7401)
    database_url: str = database_url_setting()
    database_pool_size: int = database_pool_size_setting()
    migrate_on_start: bool = migrate_on_start_setting()
