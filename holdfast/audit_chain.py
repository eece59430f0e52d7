"""The audit's hash chain: the bytes that a record's hash covers, and the check of a whole trail or of an export.

Each record's hash covers its content and the hash of the record before it, so that whoever knows one hash of a trail,
its anchor, can prove by it that nothing up to there was changed, removed, moved or put in. No key is needed for that.

The form (version 1): a JSON object of the record's fields without those that are unset, and of `previous_hash` and `v`;
keys in alphabetical order, no white space, everything beyond ASCII as `\\uXXXX`. The hash is SHA-256 over these bytes.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, Final

FORM_VERSION: Final = 1

NO_HASH: Final = bytes(32)
"""What the first record of a chain has in the place of the hash before it."""

_HASH_DIGITS: Final = 64
_INTEGERS: Final = ("seq", "step", "v")
FIELDS: Final = (
    "workspace_id",
    "seq",
    "record_id",
    "time",
    "actor",
    "action",
    "outcome",
    "api_key_id",
    "user_id",
    "connection",
    "connection_id",
    "fingerprint",
    "run_id",
    "step",
    "tool",
    "host",
    "details",
)
"""All that a record may hold beside its hashes; the first seven are always set."""
_REQUIRED: Final = FIELDS[:7]


def time_text(time: datetime) -> str:
    """Returns the one spelling of a time: UTC with six digits of a second."""
    return time.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def content_of(record: Mapping[str, Any], previous_hash: bytes | None) -> dict[str, Any]:
    """Returns what is hashed of a record, as JSON values.

    Args:
        record: `FIELDS` by name; `time` may be a datetime.
        previous_hash: Hash of the record before; None for a record from before there was a chain.
    """
    content = {name: value for name in FIELDS if (value := record.get(name)) is not None}
    if isinstance(content["time"], datetime):
        content["time"] = time_text(content["time"])
    if previous_hash is not None:
        content |= {"v": FORM_VERSION, "previous_hash": previous_hash.hex()}
    return content


def canonical(content: Mapping[str, Any]) -> bytes:
    """Returns the bytes that are hashed."""
    return json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()


def hash_of(content: Mapping[str, Any]) -> bytes:
    """Returns the hash of a record's content."""
    return hashlib.sha256(canonical(content)).digest()


def line_of(content: Mapping[str, Any], record_hash: bytes | None) -> str:
    """Returns a record as one line of an export: the canonical form, and the hash as the last field."""
    text = canonical(content).decode()
    return text if record_hash is None else f'{text[:-1]},"hash":"{record_hash.hex()}"}}'


def parse_line(line: str) -> tuple[dict[str, Any], bytes | None]:
    """Returns the content and the hash of a line of an export.

    Raises:
        ValueError: It is none.
    """
    content = json.loads(line, object_pairs_hook=_without_doubles)
    if not isinstance(content, dict):
        raise ValueError("it is no JSON object")
    stored = content.pop("hash", None)
    known = {*FIELDS, "v", "previous_hash"}
    for name, value in content.items():
        expected = int if name in _INTEGERS else str
        if name not in known or type(value) is not expected:
            raise ValueError(f"the field {name!r} is not one of a record, or of another type")
    if missing := [name for name in _REQUIRED if name not in content]:
        raise ValueError(f"the field {missing[0]!r} is missing")
    return content, None if stored is None else parse_hash(stored)


def parse_hash(text: Any) -> bytes:
    """Returns the bytes of a hash in hex digits.

    Raises:
        ValueError: It is none.
    """
    if not isinstance(text, str) or len(text) != _HASH_DIGITS:
        raise ValueError("a hash has 64 hex digits")
    return bytes.fromhex(text)


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        raise ValueError("a field is there twice")
    return values


class Flaw(StrEnum):
    """What is wrong with a trail."""

    MALFORMED = "MALFORMED"
    """It is no record, or of a form that this release does not know."""
    FOREIGN = "FOREIGN"
    """It belongs to another workspace."""
    MISSING = "MISSING"
    """Records are missing before it."""
    OUT_OF_ORDER = "OUT_OF_ORDER"
    """It stands behind one with the same or a higher number: moved, or put in."""
    NOT_CHAINED = "NOT_CHAINED"
    """It has no hash, although a record before it has one."""
    EDITED = "EDITED"
    """Its content is not what was hashed."""
    UNLINKED = "UNLINKED"
    """It was not written after the record that now stands before it: that one was put in, exchanged or rewritten."""
    TRUNCATED = "TRUNCATED"
    """Records are missing at the end."""
    ANCHOR_MISSING = "ANCHOR_MISSING"
    """No record has the hash of the anchor: the trail was cut off before it, or rewritten."""


@dataclass(frozen=True, slots=True)
class Problem:
    """The first thing that is wrong."""

    flaw: Flaw
    seq: int
    """Number of the first record that cannot be trusted."""
    detail: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the check of a trail has found."""

    records: int
    """Records that were read and are in order."""
    before_chain: int
    """Those among them that are from before there was a chain: nothing proves them."""
    first_seq: int
    last_seq: int
    head_hash: bytes | None
    """Hash of the last one; to be kept elsewhere as the next anchor."""
    anchor_seq: int | None
    """The record that the anchor is the hash of."""
    problem: Problem | None
    """None when nothing is wrong."""


class ChainCheck:
    """Takes a trail's records in their order, and finds the first that is not as it was written.

    Args:
        first_seq: Number of the first record; None takes any, as in an export of a part.
        previous_hash: Hash of the record before that one, where it is known.
        anchor: A hash that was noted earlier and has to be in the trail.
    """

    def __init__(
        self, *, first_seq: int | None = 1, previous_hash: bytes | None = None, anchor: bytes | None = None
    ) -> None:
        self._expected_seq = first_seq
        self._first_seq = 0
        self._last_seq = 0
        self._previous_hash = NO_HASH if first_seq == 1 else previous_hash
        self._anchor = anchor
        self._anchor_seq: int | None = None
        self._workspace_id: str | None = None
        self._records = 0
        self._before_chain = 0
        self._is_chained = previous_hash is not None
        self._problem: Problem | None = None

    @property
    def has_failed(self) -> bool:
        """Whether something was found; what follows is not looked at."""
        return self._problem is not None

    @property
    def last_seq(self) -> int:
        """Number of the last record that is in order."""
        return self._last_seq

    def take(self, content: Mapping[str, Any], stored_hash: bytes | None) -> None:
        """Looks at the next record: its content with `previous_hash`, and its hash."""
        if self._problem is None:
            self._problem = self._problem_of(content, stored_hash)
            if self._problem is None:
                self._accept(content, stored_hash)

    def take_line(self, line: str) -> None:
        """Looks at the next line of an export."""
        if self._problem is not None:
            return
        try:
            content, stored_hash = parse_line(line)
        except ValueError as error:
            self._problem = Problem(Flaw.MALFORMED, self._last_seq + 1, f"this is no record of an audit: {error}")
            return
        self.take(content, stored_hash)

    def finish(self, *, last_seq: int | None = None) -> Verdict:
        """Returns what was found.

        Args:
            last_seq: Number of the last record that was ever written, where it is known.
        """
        problem = self._problem
        if problem is None and last_seq is not None and self._last_seq < last_seq:
            problem = Problem(
                Flaw.TRUNCATED, self._last_seq + 1, f"{last_seq} records were written, the last is {self._last_seq}"
            )
        if problem is None and self._anchor is not None and self._anchor_seq is None:
            problem = Problem(
                Flaw.ANCHOR_MISSING,
                self._last_seq + 1,
                f"no record has the hash {self._anchor.hex()}: the trail was cut off before it, or rewritten",
            )
        return Verdict(
            records=self._records,
            before_chain=self._before_chain,
            first_seq=self._first_seq,
            last_seq=self._last_seq,
            head_hash=self._previous_hash if self._is_chained else None,
            anchor_seq=self._anchor_seq,
            problem=problem,
        )

    def _problem_of(self, content: Mapping[str, Any], stored_hash: bytes | None) -> Problem | None:
        seq: int = content["seq"]
        if self._workspace_id not in (None, content["workspace_id"]):
            return Problem(Flaw.FOREIGN, seq, "this record belongs to another workspace")
        if self._expected_seq is not None and seq > self._expected_seq:
            missing = self._expected_seq
            return Problem(Flaw.MISSING, missing, f"after record {missing - 1} comes record {seq}")
        if self._expected_seq is not None and seq < self._expected_seq:
            return Problem(Flaw.OUT_OF_ORDER, seq, f"after record {self._expected_seq - 1} comes record {seq}")
        if stored_hash is None:
            if self._is_chained:
                return Problem(Flaw.NOT_CHAINED, seq, "this record has no hash, although one before it has")
            return None
        if content.get("v") != FORM_VERSION:
            return Problem(Flaw.MALFORMED, seq, "this record is of a form that this release does not know")
        if not hmac.compare_digest(hash_of(content), stored_hash):
            return Problem(Flaw.EDITED, seq, "this record's content is not what was hashed when it was written")
        if self._previous_hash is not None and content.get("previous_hash") != self._previous_hash.hex():
            return Problem(Flaw.UNLINKED, seq, f"this record was not written after the record {seq - 1} that is there")
        return None

    def _accept(self, content: Mapping[str, Any], stored_hash: bytes | None) -> None:
        seq: int = content["seq"]
        self._workspace_id = content["workspace_id"]
        self._first_seq = self._first_seq or seq
        self._last_seq = seq
        self._expected_seq = seq + 1
        self._records += 1
        if stored_hash is None:
            # The first hashed record after these begins the chain.
            self._before_chain += 1
            self._previous_hash = NO_HASH
            return
        self._is_chained = True
        self._previous_hash = stored_hash
        if stored_hash == self._anchor:
            self._anchor_seq = seq
