"""What an embedded start makes when it is missing: the first workspace, and a key for it in the user's file.

The workspace is one commit and the key another. A crash between the two leaves a workspace without a key, which the
next start finds; what one in the middle of the key leaves is said in `key_file`.
"""

from __future__ import annotations

from services.auth.api_keys import ApiKeys
from services.auth.callers import ADMIN, Caller
from services.auth.key_file import KeyFile
from services.auth.settings import AuthSettings
from services.auth.store import ApiKey
from services.auth.workspaces import Workspaces
from services.shared.clock import Clock
from services.shared.crash_points import crash_point
from services.shared.telemetry import get_logger

_ACTOR = "bootstrap"

log = get_logger(__name__)


async def bootstrap(settings: AuthSettings, workspaces: Workspaces, api_keys: ApiKeys, clock: Clock) -> None:
    """Makes the workspace and the key file of the settings. May run again, from several processes, after any crash.

    A valid key in the file is kept. A key that a killed start left unfinished is used, not doubled.

    Raises:
        StartupError: The key file cannot be read or written.
    """
    if not settings.bootstrap_workspace:
        return
    workspace = await workspaces.ensure(settings.bootstrap_workspace, actor=_ACTOR)
    crash_point("auth.bootstrap.after_workspace")
    if settings.bootstrap_key_file is None:
        return
    caller = Caller(workspace.workspace_id, _ACTOR, frozenset({ADMIN}))
    file = KeyFile(settings.bootstrap_key_file, api_keys)

    def is_good(key: ApiKey) -> bool:
        return key.workspace_id == workspace.workspace_id and ADMIN in key.scopes

    async with file.locked(clock):
        held = await file.read()
        if held is not None and is_good(held):
            await file.withdraw(_ACTOR)
            return
        adopted = await file.adopt(is_good)
        if adopted is None:
            await file.withdraw(_ACTOR)
            adopted = await file.create(caller, display_name=_ACTOR, scopes=[ADMIN])
        log.info(
            "bootstrap_key_written",
            workspace=workspace.name,
            api_key_id=adopted.api_key_id,
            path=str(settings.bootstrap_key_file),
        )
