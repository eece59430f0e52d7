"""The keys of one database: made once, sealed under the master key, opened at start, sealed anew at a rotation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import sqlalchemy as sa

from holdfast.errors import Reason, Unavailable
from holdfast.ids import new_uuid7
from services.auth.sealing import MasterKey, Sealed, Sealer
from services.auth.secrets import Opaque, SecretDamagedError
from services.auth.sql import insert_ignore
from services.auth.tables import seal, sealed_keys, secrets, workspace_keys
from services.shared.database import Database
from services.shared.server import EXIT_CONFIGURATION, StartupError

FIRST_EPOCH: Final = 1

SECRETS_PURPOSE: Final = "secrets"
WORKSPACE_KEYS_PURPOSE: Final = "workspace-keys"
_KEYRING_PURPOSE: Final = "keyring"
_SEAL_ID: Final = 1
_CHECK_PATH: Final = "check"
_CHECK_TEXT: Final = b"holdfast"
# Keys that have to outlive a rotation of the master key: what they made cannot be made again.
_KEPT_PURPOSES: Final = ("api-key-pepper", "audit", "requests", "run-grants", "system")
_ROTATION_BATCH: Final = 500


class Keyring(Opaque):
    """What the master key of one database opens."""

    __slots__ = ("audit_key", "epoch", "grant_key", "master", "pepper", "request_key", "store_id", "system_key")

    def __init__(self, master: MasterKey, store_id: str, epoch: int, kept: dict[str, bytes]) -> None:
        self.master = master
        self.store_id = store_id
        """Identity of the database, part of every sealed value."""
        self.epoch = epoch
        """Number of the master key."""
        self.pepper = kept["api-key-pepper"]
        """Key of the stored digests of API keys."""
        self.audit_key = kept["audit"]
        """Key of the fingerprints by which a secret can be matched."""
        self.request_key = kept["requests"]
        """Key of the fingerprints of idempotent requests."""
        self.grant_key = kept["run-grants"]
        """Key that signs the grants of runs."""
        self.system_key = kept["system"]
        """Key of texts that the service seals for itself."""

    def sealer(self, purpose: str) -> Sealer:
        """Returns the sealer of one purpose."""
        return Sealer(self.master, store_id=self.store_id, purpose=purpose, epoch=self.epoch)


@dataclass(frozen=True, slots=True)
class SealRow:
    """Which master key a database is sealed with."""

    store_id: str
    epoch: int
    check: Sealed

    def opens_with(self, master: MasterKey) -> bool:
        """Tells whether `master` is that key."""
        sealer = Sealer(master, store_id=self.store_id, purpose=_KEYRING_PURPOSE, epoch=self.epoch)
        try:
            return sealer.open(_CHECK_PATH, self.epoch, self.check) == _CHECK_TEXT
        except SecretDamagedError:
            return False


async def read_seal(db: Database) -> SealRow | None:
    """Returns which master key the database is sealed with; None for a new database."""
    return await db.read(_read_seal)


async def open_keyring(db: Database, master: MasterKey) -> Keyring:
    """Opens the database's keys, and makes them in a new database. Safe to run from several processes at once.

    Raises:
        StartupError: The database is sealed with another master key, or its keys are damaged.
    """
    if await read_seal(db) is None:
        await db.write(_initialise, master)
    try:
        keyring = await db.read(_open, master)
        if keyring is None:
            # Also for a database of an earlier release, which has fewer keys.
            keyring = await db.write(_complete, master)
    except SecretDamagedError as error:
        raise StartupError(f"the keys in {db.location} are damaged ({error}): restore it from a backup") from error
    if keyring is None:
        raise StartupError(
            f"the master key is not the one that {db.location} is sealed with: set HOLDFAST_MASTER_KEY or "
            "HOLDFAST_MASTER_KEY_FILE to that key, or restore the key file from its backup",
            exit_code=EXIT_CONFIGURATION,
        )
    return keyring


async def rotate(db: Database, keyring: Keyring, new_master: MasterKey) -> int:
    """Seals everything under `new_master`, in one transaction, and returns how many secrets there were.

    Processes that still have the old key can neither read nor write secrets from then on; they say so, and work again
    when they are restarted with the new one. API keys and fingerprints stay as they are.

    Raises:
        Unavailable: Somebody else has rotated meanwhile.
        SecretDamagedError: A stored value does not open; nothing was changed.
    """
    return await db.write(_rotate, keyring, new_master)


def require_epoch(connection: sa.Connection, epoch: int, *, is_read: bool = False) -> None:
    """Holds the seal until the end of the transaction, so that nothing is sealed with a key that was replaced.

    In a transaction that only reads, it is looked at and not held.

    Raises:
        Unavailable: It was replaced.
    """
    query = sa.select(seal.c.epoch).where(seal.c.seal_id == _SEAL_ID)
    found = connection.execute(query if is_read else query.with_for_update(read=True)).scalar_one()
    if found != epoch:
        raise superseded()


def superseded() -> Unavailable:
    """Returns the error of a process whose master key was replaced."""
    return Unavailable(
        "the credential store is sealed with a newer master key; auth has to be restarted with it",
        reason=Reason.STORAGE_UNAVAILABLE,
    )


# ------------------------------------------------------------------------------------------------------------- storage


def _read_seal(connection: sa.Connection) -> SealRow | None:
    row = connection.execute(sa.select(seal).where(seal.c.seal_id == _SEAL_ID)).one_or_none()
    if row is None:
        return None
    return SealRow(row.store_id, row.epoch, Sealed(bytes(row.nonce), bytes(row.ciphertext)))


def _initialise(connection: sa.Connection, master: MasterKey) -> None:
    store_id, epoch = new_uuid7(), FIRST_EPOCH
    sealer = Sealer(master, store_id=store_id, purpose=_KEYRING_PURPOSE, epoch=epoch)
    check = sealer.seal(_CHECK_PATH, epoch, _CHECK_TEXT)
    is_first = insert_ignore(
        connection,
        seal,
        seal_id=_SEAL_ID,
        store_id=store_id,
        epoch=epoch,
        nonce=check.nonce,
        ciphertext=check.ciphertext,
    )
    if not is_first:
        return
    _make_keys(connection, master, store_id, epoch)


def _make_keys(connection: sa.Connection, master: MasterKey, store_id: str, epoch: int) -> None:
    sealer = Sealer(master, store_id=store_id, purpose=_KEYRING_PURPOSE, epoch=epoch)
    for purpose in _KEPT_PURPOSES:
        sealed = sealer.seal(purpose, epoch, master.derive(store_id=store_id, purpose=purpose, epoch=epoch))
        insert_ignore(connection, sealed_keys, purpose=purpose, nonce=sealed.nonce, ciphertext=sealed.ciphertext)


def _open(connection: sa.Connection, master: MasterKey) -> Keyring | None:
    row = _read_seal(connection)
    if row is None or not row.opens_with(master):
        return None
    kept = _kept_keys(connection, master, row.store_id, row.epoch)
    return Keyring(master, row.store_id, row.epoch, kept) if kept.keys() >= set(_KEPT_PURPOSES) else None


def _complete(connection: sa.Connection, master: MasterKey) -> Keyring | None:
    row = _read_seal(connection)
    if row is None or not row.opens_with(master):
        return None
    # A rotation waits, and so finds the new keys too.
    require_epoch(connection, row.epoch)
    _make_keys(connection, master, row.store_id, row.epoch)
    return _open(connection, master)


def _kept_keys(connection: sa.Connection, master: MasterKey, store_id: str, epoch: int) -> dict[str, bytes]:
    sealer = Sealer(master, store_id=store_id, purpose=_KEYRING_PURPOSE, epoch=epoch)
    return {
        row.purpose: sealer.open(row.purpose, epoch, Sealed(bytes(row.nonce), bytes(row.ciphertext)))
        for row in connection.execute(sa.select(sealed_keys))
    }


def _rotate(connection: sa.Connection, keyring: Keyring, new_master: MasterKey) -> int:
    # The update takes the row's lock before anything is read: writers wait, and then find another epoch.
    epoch = keyring.epoch + 1
    sealer = Sealer(new_master, store_id=keyring.store_id, purpose=_KEYRING_PURPOSE, epoch=epoch)
    check = sealer.seal(_CHECK_PATH, epoch, _CHECK_TEXT)
    changed = connection.execute(
        seal.update()
        .where(seal.c.seal_id == _SEAL_ID, seal.c.epoch == keyring.epoch)
        .values(epoch=epoch, nonce=check.nonce, ciphertext=check.ciphertext)
    )
    if changed.rowcount != 1:
        raise superseded()
    kept = _kept_keys(connection, keyring.master, keyring.store_id, keyring.epoch)
    for purpose, key in kept.items():
        sealed = sealer.seal(purpose, epoch, key)
        connection.execute(
            sealed_keys.update()
            .where(sealed_keys.c.purpose == purpose)
            .values(nonce=sealed.nonce, ciphertext=sealed.ciphertext)
        )
    _reseal_workspace_keys(connection, keyring, new_master, epoch)
    old_sealer = keyring.sealer(SECRETS_PURPOSE)
    new_sealer = Sealer(new_master, store_id=keyring.store_id, purpose=SECRETS_PURPOSE, epoch=epoch)
    count, after = 0, ""
    while True:
        rows = connection.execute(
            sa.select(secrets).where(secrets.c.path > after).order_by(secrets.c.path).limit(_ROTATION_BATCH)
        ).all()
        if not rows:
            return count
        for row in rows:
            value = old_sealer.open(row.path, row.version, Sealed(bytes(row.nonce), bytes(row.ciphertext)))
            sealed = new_sealer.seal(row.path, row.version, value)
            connection.execute(
                secrets.update()
                .where(secrets.c.path == row.path)
                .values(epoch=epoch, nonce=sealed.nonce, ciphertext=sealed.ciphertext)
            )
        count += len(rows)
        after = rows[-1].path


def _reseal_workspace_keys(connection: sa.Connection, keyring: Keyring, new_master: MasterKey, epoch: int) -> None:
    old_sealer = keyring.sealer(WORKSPACE_KEYS_PURPOSE)
    new_sealer = Sealer(new_master, store_id=keyring.store_id, purpose=WORKSPACE_KEYS_PURPOSE, epoch=epoch)
    for row in connection.execute(sa.select(workspace_keys)).all():
        key = old_sealer.open(row.workspace_id, row.version, Sealed(bytes(row.nonce), bytes(row.ciphertext)))
        sealed = new_sealer.seal(row.workspace_id, row.version, key)
        connection.execute(
            workspace_keys.update()
            .where(workspace_keys.c.workspace_id == row.workspace_id, workspace_keys.c.version == row.version)
            .values(nonce=sealed.nonce, ciphertext=sealed.ciphertext)
        )
