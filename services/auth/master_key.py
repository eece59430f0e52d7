"""Where the master key comes from: the settings, the keychain, or a file beside the database that is generated once."""

from __future__ import annotations

import asyncio
import fcntl
import os
from pathlib import Path

from services.auth.files import publish, replace, write_private
from services.auth.keychain import Keychain
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
        master = await asyncio.to_thread(_keychain_key, path, seal)
        if master is None:
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


def keychain_of(path: Path) -> Keychain | None:
    """Returns the entry of the keychain that holds the key of a database, None when the key lies elsewhere.

    A key that was generated as a file stays one.
    """
    if path.exists() or next_key_path(path).exists():
        return None
    return Keychain.find(str(path.absolute()))


def _keychain_key(path: Path, seal: SealRow | None) -> MasterKey | None:
    keychain = keychain_of(path)
    if keychain is None:
        return None
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor = os.open(path.parent, os.O_RDONLY)
    try:
        # Of two processes that start at once, one makes the key and the other finds it.
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        if seal is not None and (upcoming := keychain.read_next()) is not None and seal.opens_with(upcoming):
            # A rotation was committed, and its process died before it could put the key in its place.
            keychain.promote()
        master = keychain.read()
        if master is None and seal is None and not path.exists():
            try:
                master = keychain.create()
                log.info("master_key_generated", place=str(keychain))
            except StartupError:
                log.warning("keychain_not_used", place=str(keychain))
        return master
    finally:
        os.close(descriptor)


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
            "from its backup, start auth as the user whose keychain has it, or set HOLDFAST_MASTER_KEY"
        )
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    write_private(temporary, MasterKey.generate().export() + "\n")
    if publish(temporary, path):
        log.info("master_key_generated", path=str(path))
    return read_key_file(path)
