"""The move of secrets from the embedded store to another one: each is copied, read back, and may then be removed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import sqlalchemy as sa

from services.auth.secrets import SecretStore, StoredSecret
from services.auth.tables import secrets
from services.shared.database import Database
from services.shared.server import StartupError

_BATCH: Final = 200


@dataclass(slots=True)
class Exported:
    """What an export did."""

    written: int = 0
    found: int = 0
    different: int = 0
    removed: int = 0


async def export_secrets(
    db: Database,
    source: SecretStore,
    target: SecretStore,
    *,
    overwrite: bool = False,
    remove: bool = False,
    report: Callable[[str], None],
) -> Exported:
    """Copies every secret. May be stopped anywhere and started again: what is there already is found.

    Args:
        db: Where the source's secrets lie.
        source: The embedded store. Nothing else writes to it meanwhile.
        target: The other one.
        overwrite: Replace other values of the target.
        remove: Delete from the source what the target has for certain.
        report: Told the paths that were left alone.

    Raises:
        StartupError: What was written is not what is read back.
        HoldfastError: One of the stores cannot be used; run it again later.
        SecretDamagedError: A secret of the source does not open.
    """
    done, after = Exported(), ""
    while paths := await db.read(_paths, after):
        for path in paths:
            stored = await source.get(path)
            if stored is not None and await _copy(path, stored, target, done, overwrite=overwrite, report=report):
                if remove:
                    await source.delete(path)
                    done.removed += 1
        after = paths[-1]
    return done


async def _copy(
    path: str,
    stored: StoredSecret,
    target: SecretStore,
    done: Exported,
    *,
    overwrite: bool,
    report: Callable[[str], None],
) -> bool:
    there = await target.get(path)
    if there is not None and there.secret.reveal() == stored.secret.reveal():
        done.found += 1
        return True
    if there is not None and not overwrite:
        done.different += 1
        report(f"another value is at {path}")
        return False
    await target.put(path, stored.secret, expected_version=0 if there is None else there.version)
    again = await target.get(path)
    if again is None or again.secret.reveal() != stored.secret.reveal():
        raise StartupError(f"what was written to {path} is not what is read back: nothing was removed; look at Vault")
    done.written += 1
    return True


def _paths(connection: sa.Connection, after: str) -> list[str]:
    query = sa.select(secrets.c.path).where(secrets.c.path > after).order_by(secrets.c.path).limit(_BATCH)
    return list(connection.execute(query).scalars())
