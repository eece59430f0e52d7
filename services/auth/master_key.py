"""Where the master key comes from: the settings, or a file beside the database that is generated once."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from services.auth.files import publish, replace, write_private
from services.auth.keyring import Keyring, SealRow, open_keyring, read_seal
from services.auth.sealing import MasterKey
from services.auth.settings import StorageSettings, private_file_problem
from services.shared.database import Database
from services.shared.server import StartupError
from services.shared.telemetry import get_logger

log = get_logger(__name__)


async def unlock(db: Database, settings: StorageSettings) -> Keyring:
    """Opens the database's keys with the master key of the settings, or with the generated one.

    Raises:
        StartupError: There is no key, its file is not private, or it is not the key of this database.
    """
    master = settings.master_key
    if master is None:
        path = settings.generated_key_path
        assert path is not None  # refused by the settings
        seal = await read_seal(db)
        master = await asyncio.to_thread(_generated_key, path, seal)
        log.warning(
            "the master key lies beside the data it protects: keep it out of backups of the database, and set "
            "HOLDFAST_MASTER_KEY_FILE in production",
            path=str(path),
        )
    return await open_keyring(db, master)


def read_key_file(path: Path) -> MasterKey:
    """Reads a master key from a private file.

    Raises:
        StartupError: It cannot be read, others can read it, or it holds no key.
    """
    problem = private_file_problem(path)
    if problem is not None:
        raise StartupError(f"the master key file {path} {problem}")
    try:
        return MasterKey.parse(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise StartupError(f"the master key file {path} cannot be read: {error}") from error
    except ValueError as error:
        raise StartupError(f"the master key file {path} is not valid: expected {error}") from None


def next_key_path(path: Path) -> Path:
    """Where the next master key lies while a rotation is going on."""
    return path.with_name(f"{path.name}.next")


def _generated_key(path: Path, seal: SealRow | None) -> MasterKey:
    upcoming = next_key_path(path)
    if seal is not None and upcoming.exists():
        master = read_key_file(upcoming)
        if seal.opens_with(master):
            # A rotation was committed, and its process died before it could put the key in its place.
            replace(upcoming, path)
            return master
    if path.exists():
        return read_key_file(path)
    if seal is not None:
        raise StartupError(
            f"the master key file {path} is gone, and the stored credentials cannot be opened without it: restore it "
            "from its backup, or set HOLDFAST_MASTER_KEY"
        )
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    write_private(temporary, MasterKey.generate().export() + "\n")
    if publish(temporary, path):
        log.info("master_key_generated", path=str(path))
    return read_key_file(path)
