"""Payloads that lie in a database sealed under data keys of their workspaces, so that destroying a key erases them all.

Which workspaces' payloads are sealed is in seal_choices.py.

A store function seals what it writes; what it reads is opened by the column's type. Neither asks anybody: a key that is
not at hand, or a choice that is not known, ends the transaction with `MissingKeyError`, `Database` has it brought, and
runs the function again.

A sealed payload says which data key it needs: mark, workspace, key, nonce, ciphertext (AES-256-GCM-SIV, RFC 8452:
random nonces may be used for as many payloads as a workspace ever writes). What is not sealed is stored as it is, or
compressed where that saves something and the database would not do it; no serialized message begins with the mark, and
other bodies that do are stored behind a mark of their own.
"""

from __future__ import annotations

import base64
import os
import uuid
from typing import Any, Final, Protocol

import sqlalchemy as sa
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCMSIV
from sqlalchemy.types import TypeDecorator

from holdfast.errors import NotFound
from services.shared.compression import WORTHWHILE_BYTES, compressed, expanded
from services.shared.seal_choices import ChoiceSource, SealChoices
from services.shared.telemetry import get_logger

OPTION: Final = "holdfast_seals"
"""Name of the execution option by which a store function's connection knows the seals of its database."""

_MARK: Final = b"\x00hf"
_SEALED: Final = _MARK + b"\x01"
_PLAIN: Final = _MARK + b"\x00"
_COMPRESSED: Final = _MARK + b"\x02"
# PostgreSQL compresses what is in a row of 2,000 bytes or more, and nothing in a shorter one.
_COMPRESSED_BELOW: Final = 2_000
_TEXT_MARK: Final = "\u2420hf:"
_ID: Final = 16
_NONCE: Final = 12
_HEADER: Final = len(_SEALED) + 2 * _ID

log = get_logger(__name__)


class MissingKeyError(Exception):
    """A data key is needed that this process does not have now.

    Args:
        workspace_id: The workspace.
        key_id: The key that a payload was sealed with; None for whichever is to be sealed with next, if any is.
    """

    def __init__(self, workspace_id: str, key_id: bytes | None) -> None:
        super().__init__(f"no data key of workspace {workspace_id} is at hand")
        self.workspace_id = workspace_id
        self.key_id = key_id


class PayloadDamagedError(Exception):
    """A stored payload was altered, or its key is another one's."""


class KeySource(ChoiceSource, Protocol):
    """Brings data keys."""

    async def current(self, workspace_id: str) -> tuple[bytes, bytes]:
        """Returns id and value of a key that the workspace's payloads may be sealed with: its wrapped form is stored.

        Raises:
            HoldfastError: There is no such workspace (any more), or the keys cannot be reached.
        """

    async def find(self, workspace_id: str, key_id: bytes) -> bytes | None:
        """Returns the value of a key; None when it was destroyed, and with it whatever it had sealed.

        Raises:
            HoldfastError: The keys cannot be reached.
            PayloadDamagedError: It is not known, or not what was wrapped.
        """


# Keys in the clear by their ids, which are random: services of one process do not meet. None: it was destroyed.
_open_keys: dict[bytes, AESGCMSIV | None] = {}
# What cannot be had by asking again.
_damaged_keys: set[bytes] = set()
# Since keys were looked at last.
_used_keys: set[bytes] = set()


class Seals:
    """The seals of one database.

    Args:
        source: Where keys come from; None where nothing is sealed and nothing sealed can be opened.
        is_on: Whether what is written is sealed of a workspace that has not chosen. What was sealed is opened in any
            case.
    """

    def __init__(self, source: KeySource | None = None, *, is_on: bool = False) -> None:
        assert source is not None or not is_on
        self._source = source
        self._choices = None if source is None else SealChoices(source, default=is_on)
        self._current: dict[str, tuple[bytes, AESGCMSIV]] = {}
        # Workspaces of the keys that were brought here and are in memory.
        self._brought: dict[bytes, str] = {}

    def is_ready(self, workspace_id: str) -> bool:
        """Tells whether `seal` has what it needs, and keeps it for whoever asks."""
        if self._choices is None:
            return True
        is_on = self._choices.of(workspace_id)
        if not is_on:
            return is_on is not None
        found = self._current.get(workspace_id)
        if found is None:
            return False
        _used_keys.add(found[0])
        return True

    def is_on(self, workspace_id: str) -> bool:
        """Tells whether payloads of a workspace are to be sealed.

        Raises:
            MissingKeyError: That is not known; see the module.
        """
        if self._choices is None:
            return False
        is_on = self._choices.of(workspace_id)
        if is_on is None:
            raise MissingKeyError(workspace_id, None)
        return is_on

    def seal(self, workspace_id: str, payload: bytes) -> bytes:
        """Returns a payload in the form in which it is stored.

        Raises:
            MissingKeyError: See the module.
        """
        if not self.is_on(workspace_id):
            return _in_the_clear(payload)
        found = self._current.get(workspace_id)
        if found is None:
            raise MissingKeyError(workspace_id, None)
        key_id, key = found
        _used_keys.add(key_id)
        header = _SEALED + uuid.UUID(workspace_id).bytes + key_id
        nonce = os.urandom(_NONCE)
        return header + nonce + key.encrypt(nonce, payload, header)

    def seal_text(self, workspace_id: str, text: str) -> str:
        """Returns a text in the form in which it is stored. Raises as `seal`. An empty text stays empty."""
        if not text or not (text.startswith(_TEXT_MARK) or self.is_on(workspace_id)):
            return text
        return _TEXT_MARK + base64.b64encode(self.seal(workspace_id, text.encode())).decode()

    async def bring(self, missing: MissingKeyError) -> None:
        """Makes a key ready, so that what needed it can be tried again.

        Raises:
            HoldfastError: It cannot be had; see `KeySource`.
        """
        if self._source is None or self._choices is None:
            raise PayloadDamagedError("a payload is sealed, and this process has no way to its keys") from missing
        if missing.key_id is not None:
            try:
                value = await self._source.find(missing.workspace_id, missing.key_id)
            except PayloadDamagedError:
                log.error("data_key_damaged", workspace_id=missing.workspace_id)
                _damaged_keys.add(missing.key_id)
                return
            self._keep(missing.workspace_id, missing.key_id, value)
            return
        workspace_id = missing.workspace_id
        known = self._choices.of(workspace_id)
        is_on = known
        if is_on is None:
            is_on = await self._choices.ask(workspace_id)
        if is_on:
            try:
                await self._bring_current(workspace_id)
            except NotFound:
                # It is closed, and nothing of it was ever sealed: what is written now is how its runs are cancelled.
                if await self._source.has_key(workspace_id):
                    raise
                is_on = False
        if is_on is not known:
            self._choices.settle(workspace_id, is_on)

    async def _bring_current(self, workspace_id: str) -> None:
        assert self._source is not None
        key_id, value = await self._source.current(workspace_id)
        self._keep(workspace_id, key_id, value)
        self._current[workspace_id] = (key_id, AESGCMSIV(value))

    def is_out_of_touch(self) -> bool:
        """Whether nobody could say lately what workspaces have chosen."""
        return self._choices is not None and self._choices.is_away

    async def refresh_choices(self) -> None:
        """Follows what workspaces have chosen, once their keys are at hand."""
        if self._choices is not None:
            await self._choices.refresh(self._bring_current)

    async def refresh(self) -> None:
        """Drops keys that were not used since the last time, and those that were destroyed meanwhile.

        Raises:
            HoldfastError: The keys cannot be reached: those that are at hand stay.
        """
        assert self._source is not None
        for key_id, workspace_id in list(self._brought.items()):
            if key_id not in _used_keys:
                self._drop(workspace_id, key_id)
                continue
            _used_keys.discard(key_id)
            value = await self._source.find(workspace_id, key_id)
            if value is None:
                self._drop(workspace_id, key_id)
                self._keep(workspace_id, key_id, None)

    def _keep(self, workspace_id: str, key_id: bytes, value: bytes | None) -> None:
        _open_keys[key_id] = None if value is None else AESGCMSIV(value)
        if value is None:
            log.info("data_key_destroyed", workspace_id=workspace_id)
        else:
            self._brought[key_id] = workspace_id
            _used_keys.add(key_id)

    def _drop(self, workspace_id: str, key_id: bytes) -> None:
        del self._brought[key_id]
        _open_keys.pop(key_id, None)
        current = self._current.get(workspace_id)
        if current is not None and current[0] == key_id:
            del self._current[workspace_id]


NO_SEALS: Final = Seals()
"""Of a database in which nothing is sealed."""


def seals_of(connection: sa.Connection) -> Seals:
    """Returns the seals of the database that a store function runs on."""
    found: Seals = connection.get_execution_options().get(OPTION, NO_SEALS)
    return found


def _in_the_clear(payload: bytes) -> bytes:
    if WORTHWHILE_BYTES <= len(payload) < _COMPRESSED_BELOW:
        shorter = compressed(payload)
        if len(_COMPRESSED) + len(shorter) < len(payload):
            return _COMPRESSED + shorter
    return _PLAIN + payload if payload.startswith(_MARK) else payload


def is_sealed(stored: bytes) -> bool:
    """Tells whether a stored payload is sealed."""
    return stored.startswith(_SEALED)


def opened(stored: bytes, *, gone: bytes = b"") -> bytes:
    """Returns a stored payload in the clear.

    Args:
        stored: As `Seals.seal` made it.
        gone: What is returned for a payload whose key was destroyed.

    Raises:
        MissingKeyError: See the module.
        PayloadDamagedError: It was altered.
    """
    if not stored.startswith(_MARK):
        return stored
    if stored.startswith(_PLAIN):
        return stored[len(_PLAIN) :]
    if stored.startswith(_COMPRESSED):
        try:
            return expanded(stored[len(_COMPRESSED) :])
        except ValueError as error:
            raise PayloadDamagedError("a stored payload was altered") from error
    header = stored[:_HEADER]
    key_id = header[-_ID:]
    try:
        key = _open_keys[key_id]
    except KeyError:
        if key_id in _damaged_keys:
            raise PayloadDamagedError("the data key of a stored payload is damaged") from None
        workspace = uuid.UUID(bytes=header[len(_SEALED) : -_ID])
        raise MissingKeyError(str(workspace), key_id) from None
    if key is None:
        return gone
    _used_keys.add(key_id)
    try:
        return key.decrypt(stored[_HEADER : _HEADER + _NONCE], stored[_HEADER + _NONCE :], header)
    except InvalidTag:
        raise PayloadDamagedError("a stored payload was altered") from None


class SealedBytes(TypeDecorator[bytes]):
    """Bytes that `Seals.seal` made when they are written, in the clear when they are read.

    Args:
        gone: What is read when the key was destroyed.
    """

    impl = sa.LargeBinary
    cache_ok = True

    def __init__(self, gone: bytes = b"") -> None:
        super().__init__()
        self.gone = gone

    def process_result_value(self, value: bytes | None, dialect: sa.Dialect) -> bytes | None:
        """Opens what was stored."""
        return None if value is None else opened(bytes(value), gone=self.gone)


class SealedText(TypeDecorator[str]):
    """A text that `Seals.seal_text` made when it is written, in the clear when it is read; empty when it is gone."""

    impl = sa.Text
    cache_ok = True

    def process_result_value(self, value: str | None, dialect: sa.Dialect) -> Any:
        """Opens what was stored."""
        if value is None or not value.startswith(_TEXT_MARK):
            return value
        return opened(base64.b64decode(value[len(_TEXT_MARK) :])).decode()
