"""Connect sessions as stored, and the contract of whatever stores them: every step of a session is one such method.

A session moves forward only, by updates that hold on to the state it was seen in. Whoever comes second changes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Final, Protocol

from services.auth.connection_store import NewConnection, SavedConnection
from services.auth.store import Request


class ConnectMode(StrEnum):
    """How the person consents."""

    BROWSER = "BROWSER"
    DEVICE = "DEVICE"


class SessionState(StrEnum):
    """Where a session stands. The last five are ends."""

    PENDING = "PENDING"
    """Nobody has continued from the link's page yet."""
    AUTHORIZING = "AUTHORIZING"
    """The person is at the provider; or, once the `state` is consumed, the provider is being asked for the tokens."""
    CONFIRMING = "CONFIRMING"
    """The tokens are stored; whoever began has to confirm."""
    CONNECTED = "CONNECTED"
    DECLINED = "DECLINED"
    FAILED = "FAILED"
    EXPIRED = "EXPIRED"
    CANCELLED = "CANCELLED"

    @property
    def is_end(self) -> bool:
        """Tells whether nothing follows."""
        return self not in OPEN_STATES


OPEN_STATES: Final = (SessionState.PENDING, SessionState.AUTHORIZING, SessionState.CONFIRMING)


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectSession:
    """One attempt to connect an account."""

    workspace_id: str
    session_id: str
    integration_id: str
    user_id: str
    connection: str
    """Name of the connection that it makes or reconnects."""
    initiator: str
    """`key:<id>`, `user:<subject>` or `run:<id>`: who may confirm."""
    mode: ConnectMode = ConnectMode.BROWSER
    scopes: tuple[str, ...] = ()
    return_url: str = ""
    state: SessionState = SessionState.PENDING
    failure_reason: str = ""
    state_hash: bytes | None = None
    """Of the `state` that the provider brings back; None before there is one, and from the moment it is consumed."""
    browser_hash: bytes | None = None
    """Of the cookie of the one browser that may go on."""
    confirm_hash: bytes | None = None
    confirm_failures: int = 0
    sealed: str | None = None
    """What must stay secret until it is used: the PKCE verifier and nonce, or the device code."""
    expected_issuer: str = ""
    secret_path: str | None = None
    """Where the tokens lie that were granted, or will if they are. Set before they are asked for; a session that ended
    without a connection keeps it until they are revoked and deleted."""
    account_id: str = ""
    account_label: str = ""
    user_code: str = ""
    verification_url: str = ""
    poll_time: datetime | None = None
    """When the next thing is due that no request does: asking for a device's tokens, or clearing up."""
    poll_interval_seconds: int = 0
    run_id: str = ""
    variables: Mapping[str, str] = field(default_factory=dict)
    """Values of the provider's variables that the connection will have."""
    create_time: datetime
    update_time: datetime
    expire_time: datetime
    workspace: str = ""
    integration: str = ""
    """Names of the workspace and the integration, read with the row."""

    @property
    def is_consumed(self) -> bool:
        """Tells whether the provider has answered, and only the tokens are missing."""
        return self.state is SessionState.AUTHORIZING and self.state_hash is None


@dataclass(frozen=True, slots=True, kw_only=True)
class NewSession:
    """A session that is to be stored."""

    workspace_id: str
    session_id: str
    integration_id: str
    user_id: str
    connection: str
    initiator: str
    mode: ConnectMode
    scopes: tuple[str, ...]
    return_url: str
    run_id: str
    lifetime_seconds: float
    variables: Mapping[str, str] = field(default_factory=dict)
    sealed: str | None = None
    secret_path: str | None = None
    user_code: str = ""
    verification_url: str = ""
    poll_interval_seconds: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Authorization:
    """What a session remembers of a request to the provider."""

    browser_hash: bytes
    state_hash: bytes
    sealed: str
    expected_issuer: str


class AccountDiffersError(Exception):
    """The connection belongs to another account at the provider than the one that was granted now."""


class ConnectStore(Protocol):
    """Sessions. Transactions, errors and times are as in `AuthStore`."""

    async def create_session(self, new: NewSession, *, request: Request | None) -> ConnectSession:
        """Stores a session: PENDING, or AUTHORIZING for a device. A repeated request gets the session as it is now.

        For a run there is one open session per integration, user and connection: a second one gets the first, whose
        life is extended to the later of both ends.
        """

    async def get_session(self, workspace_id: str, session_id: str) -> ConnectSession | None:
        """Returns a session of the workspace, or None."""

    async def find_session(self, session_id: str) -> ConnectSession | None:
        """Returns a session of whatever workspace, or None: for its page, whose link names no workspace."""

    async def find_session_by_state(self, state_hash: bytes) -> ConnectSession | None:
        """Returns the session whose unconsumed `state` this is, or None."""

    async def begin_authorizing(
        self, session_id: str, authorization: Authorization, *, seconds: float
    ) -> ConnectSession | None:
        """Binds a session to a browser and remembers what was asked, instead of an earlier, unanswered try.

        Allowed while it is PENDING, or AUTHORIZING and not consumed, with the same browser or without a sign of life of
        the other one for `seconds`. Afterwards it lives for `seconds`, or as long as before if that is longer. Returns
        None when it is not allowed, or too late.
        """

    async def consume_state(
        self,
        session_id: str,
        state_hash: bytes,
        *,
        confirm_hash: bytes,
        secret_path: str,
        variables: Mapping[str, str],
        seconds: float,
    ) -> ConnectSession | None:
        """Takes the `state`, once: whoever gets the session asks for the tokens, and nobody else ever does.

        Also notes where they will lie, the hash of the code that confirms them, and with which variables they are asked
        for. Returns None when the state was taken before, is older than `seconds`, or the session is over.
        """

    async def ask_again(self, session_id: str, authorization: Authorization, *, seconds: float) -> bool:
        """Sends a consumed session to the provider once more, without the tokens it had; False when it is over."""

    async def grant(
        self, session_id: str, *, account_id: str, account_label: str, seconds: float
    ) -> ConnectSession | None:
        """From AUTHORIZING to CONFIRMING: the tokens are stored. None when the session is not there any more."""

    async def end_session(self, session_id: str, state: SessionState, reason: str) -> ConnectSession | None:
        """Ends an open session; None when it has ended before. What it was granted becomes due for clearing up."""

    async def end_expired(self, *, limit: int) -> int:
        """Ends sessions whose time is over, and returns how many."""

    async def count_attempt(self, session_id: str) -> int:
        """Counts an attempt to confirm a CONFIRMING session, before it is looked at, and returns how many there are."""

    async def forgive_attempts(self, session_id: str) -> None:
        """Counts from the beginning: the last attempt was right."""

    async def connect(
        self, session: ConnectSession, new: NewConnection, *, actor: str
    ) -> tuple[ConnectSession, SavedConnection] | None:
        """From CONFIRMING to CONNECTED, in one transaction with the connection, which takes the tokens.

        A connection of the name that is not revoked keeps its id. None when the session is not CONFIRMING any more.

        Raises:
            AccountDiffersError: That connection is of another account; nothing was changed.
            AlreadyExists: It is of another integration, or has no account (CONNECTION_EXISTS); nothing was changed.
        """

    async def claim_due(self, *, seconds: float, limit: int) -> list[ConnectSession]:
        """Takes sessions whose `poll_time` has come, for `seconds`: no other replica gets them before."""

    async def set_poll(self, session_id: str, *, in_seconds: float, interval_seconds: int | None = None) -> None:
        """Sets when a session is due next, and the device's interval."""

    async def forget_tokens(self, session_id: str) -> None:
        """Notes that the tokens of a session that has ended are revoked and deleted."""

    async def is_grant_shared(self, session: ConnectSession) -> bool:
        """Tells whether revoking the whole grant of the session's account may end a connection that is in use.

        That is one of the same integration and account; of any account, when the session's is not known.
        """

    async def forget_sessions(self, *, older_than_seconds: float) -> int:
        """Deletes sessions that ended long ago and hold nothing, and returns how many."""
