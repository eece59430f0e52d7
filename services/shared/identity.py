"""Who is calling: what was proved of the caller of the RPC that is being served."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass
from datetime import datetime
from typing import Final, Literal, Protocol

from holdfast.errors import PermissionDenied, Reason
from services.shared.access import ADMIN_SCOPE
from services.shared.peers import IPNetwork

IMPERSONATE_SCOPE: Final = "connections:impersonate"
"""Lets a caller name a user other than its own."""


@dataclass(frozen=True, slots=True)
class Identity:
    """Who is calling, as far as it was proved."""

    kind: Literal["api_key", "person", "service", "anonymous"]
    workspace_id: str | None = None
    key_id: str | None = None
    service: str | None = None
    scopes: frozenset[str] = frozenset()
    user_id: str | None = None
    """Who the person is, in the words of the issuer of the token; a key is nobody's."""
    expire_time: datetime | None = None
    """When the credential ends by itself."""
    networks: tuple[IPNetwork, ...] = ()
    """Where it may be used from; empty means everywhere."""

    def has_scope(self, scope: str) -> bool:
        """Tells whether the key carries `scope`; `admin` carries all of its workspace's."""
        return scope in self.scopes or ADMIN_SCOPE in self.scopes

    def may_act_for(self, user_id: str) -> bool:
        """Tells whether the caller may act as a user: a person as themselves, everybody else by a scope of its own."""
        return (self.user_id is not None and user_id == self.user_id) or self.has_scope(IMPERSONATE_SCOPE)

    @property
    def name(self) -> str:
        """Short form for logs; holds no secret."""
        if self.kind == "service":
            return f"service:{self.service}"
        if self.kind == "person":
            return f"user:{self.user_id}"
        return f"key:{self.key_id}" if self.kind == "api_key" else "anonymous"


ANONYMOUS: Final = Identity("anonymous")

caller: ContextVar[Identity] = ContextVar("holdfast_identity")
caller_peer: ContextVar[str] = ContextVar("holdfast_peer", default="")


def current_peer() -> str:
    """Returns who has shown a credential in this call, as grpc calls a peer; empty outside of one."""
    return caller_peer.get()


def current_identity() -> Identity:
    """Returns the caller of the RPC that is being served.

    Raises:
        LookupError: No RPC is being served.
    """
    return caller.get()


def current_workspace() -> str:
    """Returns the workspace of the caller of the RPC that is being served.

    Raises:
        PermissionDenied: The caller belongs to none: a service that did not say for whom it calls.
    """
    workspace_id = caller.get().workspace_id
    if workspace_id is None:
        raise PermissionDenied("the caller belongs to no workspace")
    return workspace_id


def acting_user(named: str) -> str:
    """Returns for which user the caller acts: a person for themselves unless they may name others.

    Args:
        named: The user whom the request names; empty when it names none.

    Raises:
        PermissionDenied: A person named somebody else and lacks the scope for it.
    """
    identity = current_identity()
    # What a key names is its owner's own word for a user: the workspace's programs tell their users apart themselves.
    if identity.kind != "person":
        return named
    if not named:
        return identity.user_id or ""
    if not identity.may_act_for(named):
        raise PermissionDenied(
            "a person acts for themselves only: leave user_id empty",
            reason=Reason.SCOPE_MISSING,
            metadata={"scope": IMPERSONATE_SCOPE},
        )
    return named


class Authenticator(Protocol):
    """Turns an API key, or a person's token, into an identity."""

    async def verify(self, api_key: str) -> Identity:
        """Returns who the key or token belongs to.

        Raises:
            Unauthenticated: It is not valid; why is said by the reason.
            Unavailable: It cannot be told at the moment.
        """
