"""An API key in a file: at every moment of its making, either nobody has the key or the file does.

Making one is three writes, in an order that a crash can interrupt anywhere:

| after a crash behind | there is | and the next one who works on the file |
|---|---|---|
| `auth.key.after_escrow` | a file beside it with a key that is none | overwrites it |
| `auth.key.after_row` | the same file, whose key is good | adopts it (bootstrap), or revokes it (`create-key`) |
| `auth.key.after_file` | the file with its key | is done |

Withdrawing one is a revocation and then the removal of its file: a crash in between leaves a revoked key in a file that
is nobody's, which is removed the next time.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from pathlib import Path
from typing import Final

from holdfast.errors import Unauthenticated
from services.auth.api_keys import ApiKeys
from services.auth.callers import Caller
from services.auth.files import replace, sync_folder, write_private
from services.auth.secrets import Secret
from services.auth.store import ApiKey
from services.shared.clock import Clock
from services.shared.crash_points import crash_point
from services.shared.server import EXIT_TEMPORARY, StartupError
from services.shared.telemetry import get_logger

_LOCK_SECONDS: Final = 30.0
_LOCK_POLL_SECONDS: Final = 0.05
_MAX_FILE_BYTES: Final = 4096

log = get_logger(__name__)


class KeyFile:
    """A file that holds one API key, mode 0600.

    A new key is first written to a file beside it, then stored, then given its name. A process that dies in between
    leaves the key in that file: `adopt` or `withdraw` says what becomes of it.
    """

    def __init__(self, path: Path, api_keys: ApiKeys) -> None:
        self.path = path
        self._upcoming = path.with_name(f"{path.name}.new")
        self._api_keys = api_keys

    @asynccontextmanager
    async def locked(self, clock: Clock) -> AsyncIterator[None]:
        """Keeps other processes of this machine away from the file; a process that dies lets go.

        Raises:
            StartupError: The folder cannot be used, or another process keeps the lock.
        """
        folder = self.path.parent
        try:
            descriptor = await asyncio.to_thread(_open_folder, folder)
        except OSError as error:
            raise StartupError(f"the folder {folder} of the key file cannot be used: {error.strerror}") from error
        try:
            deadline = clock.monotonic() + _LOCK_SECONDS
            while not _try_lock(descriptor):
                if clock.monotonic() > deadline:
                    raise StartupError(f"another process works on {self.path}", exit_code=EXIT_TEMPORARY)
                await clock.sleep(_LOCK_POLL_SECONDS)
            yield
        finally:
            os.close(descriptor)

    async def read(self) -> ApiKey | None:
        """Returns the key in the file when it is valid, and makes sure that only its owner can read the file."""
        key = await self._read(self.path)
        if key is not None:
            await asyncio.to_thread(_make_private, self.path)
        return key

    async def adopt(self, is_wanted: Callable[[ApiKey], bool]) -> ApiKey | None:
        """Gives the file the key that a process left when it died; returns it, or None when there is none that is
        wanted. Another one is left for `withdraw`."""
        key = await self._read(self._upcoming)
        if key is None or not is_wanted(key):
            return None
        await asyncio.to_thread(replace, self._upcoming, self.path)
        return key

    async def withdraw(self, actor: str) -> None:
        """Revokes the key that a process left when it died, of whatever workspace: its file goes, so nobody has it."""
        key = await self._read(self._upcoming)
        if key is not None:
            await self._api_keys.revoke(Caller(key.workspace_id, actor, frozenset()), key.api_key_id)
            log.info("unfinished_key_revoked", api_key_id=key.api_key_id)
        crash_point("auth.key.after_withdrawal")
        await asyncio.to_thread(_remove, self._upcoming)

    async def create(
        self,
        caller: Caller,
        *,
        display_name: str,
        scopes: Sequence[str],
        expire_time: datetime | None = None,
        networks: Sequence[str] = (),
    ) -> ApiKey:
        """Makes a key and puts it into the file.

        Raises:
            StartupError: The file cannot be written; no key was made.
        """
        created = await self._api_keys.create(
            caller,
            display_name=display_name,
            scopes=scopes,
            expire_time=expire_time,
            networks=networks,
            escrow=self._write_upcoming,
        )
        crash_point("auth.key.after_row")
        await asyncio.to_thread(replace, self._upcoming, self.path)
        crash_point("auth.key.after_file")
        return created.key

    async def _write_upcoming(self, key: Secret) -> None:
        try:
            await asyncio.to_thread(_write, self._upcoming, key)
        except OSError as error:
            raise StartupError(f"the key file {self.path} cannot be written: {error.strerror}") from error
        crash_point("auth.key.after_escrow")

    async def _read(self, path: Path) -> ApiKey | None:
        text = await asyncio.to_thread(_text_of, path)
        if text is None:
            return None
        try:
            return await self._api_keys.verify(text)
        except Unauthenticated:
            return None


def _open_folder(folder: Path) -> int:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return os.open(folder, os.O_RDONLY)


def _try_lock(descriptor: int) -> bool:
    # The folder itself is locked: a lock file of its own would stay behind.
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _write(path: Path, key: Secret) -> None:
    write_private(path, key.reveal() + "\n")
    sync_folder(path.parent)


def _text_of(path: Path) -> Secret | None:
    try:
        with path.open("rb") as file:
            return Secret(file.read(_MAX_FILE_BYTES).decode("ascii").strip())
    except FileNotFoundError:
        return None
    except UnicodeDecodeError:
        return Secret("")
    except OSError as error:
        raise StartupError(f"the key file {path} cannot be read: {error.strerror}") from error


def _make_private(path: Path) -> None:
    if path.stat().st_mode & 0o077:
        path.chmod(0o600)


def _remove(path: Path) -> None:
    path.unlink(missing_ok=True)
