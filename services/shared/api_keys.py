"""Callers' API keys and persons' tokens, verified by the auth service and remembered for seconds.

A revoked key is refused everywhere when its few seconds are over; a burst of calls with one key asks auth once.
"""

from __future__ import annotations

import asyncio
import hashlib
import ipaddress
from collections import OrderedDict
from datetime import UTC
from typing import Final

import grpc.aio

from holdfast.api.auth.v1.api_key_service_pb2 import VerifyApiKeyRequest
from holdfast.api.auth.v1.api_key_service_pb2_grpc import ApiKeyServiceStub
from holdfast.errors import Reason, Unauthenticated
from services.shared.channels import calling
from services.shared.clock import Clock, SystemClock
from services.shared.identity import Identity, current_peer
from services.shared.key_form import is_credential

VALID_SECONDS: Final = 5.0
INVALID_SECONDS: Final = 1.0
VERIFY_DEADLINE_SECONDS: Final = 5.0

# Bounded, because anybody can send keys that do not exist.
_MAX_ENTRIES: Final = 10_000


class _Flight:
    """The callers that wait for the answer about one key."""

    __slots__ = ("callers", "turn")

    def __init__(self) -> None:
        self.turn = asyncio.Lock()
        self.callers = 0


class RemoteAuthenticator:
    """Asks `ApiKeyService.VerifyApiKey`. Keys and tokens are held only as their SHA-256.

    Args:
        channel: To the auth service.
        clock: Time for the expiry of what is remembered, and of keys.
    """

    def __init__(self, channel: grpc.aio.Channel, *, clock: Clock | None = None) -> None:
        self._stub = ApiKeyServiceStub(channel)
        self._clock: Clock = SystemClock() if clock is None else clock
        self._known: OrderedDict[bytes, tuple[float, Identity | Unauthenticated]] = OrderedDict()
        self._flights: dict[bytes, _Flight] = {}

    async def verify(self, api_key: str) -> Identity:
        """Returns who the key belongs to.

        Raises:
            Unauthenticated: It is not valid.
            Unavailable: Auth does not answer; the reason is AUTH_UNAVAILABLE.
        """
        digest = hashlib.sha256(api_key.encode()).digest()
        known = self._remembered(digest)
        if known is None:
            if not is_credential(api_key):
                raise Unauthenticated("it has not the form of a key or token", reason=Reason.API_KEY_INVALID)
            # Single flight: the first caller asks, the others wait for its answer. A lock, not a shared task: when
            # the first one is cancelled, the next one asks.
            flight = self._flights.setdefault(digest, _Flight())
            flight.callers += 1
            try:
                async with flight.turn:
                    known = self._remembered(digest)
                    if known is None:
                        known = await self._ask(digest, api_key)
            finally:
                flight.callers -= 1
                if not flight.callers:
                    del self._flights[digest]
        if isinstance(known, Unauthenticated):
            raise Unauthenticated(known.message, reason=known.reason)
        return known

    def _remembered(self, digest: bytes) -> Identity | Unauthenticated | None:
        entry = self._known.get(digest)
        if entry is None:
            return None
        if entry[0] <= self._clock.monotonic():
            del self._known[digest]
            return None
        return entry[1]

    async def _ask(self, digest: bytes, api_key: str) -> Identity | Unauthenticated:
        lifetime = VALID_SECONDS
        answer: Identity | Unauthenticated
        try:
            with calling("auth"):
                response = await self._stub.VerifyApiKey(
                    VerifyApiKeyRequest(secret=api_key, peer=current_peer()), timeout=VERIFY_DEADLINE_SECONDS
                )
        except Unauthenticated as error:
            if error.reason in (Reason.SERVICE_TOKEN_INVALID, Reason.SERVICE_CERTIFICATE_INVALID):
                raise
            answer, lifetime = Unauthenticated(error.message, reason=error.reason), INVALID_SECONDS
        else:
            expire_time = response.expire_time.ToDatetime(tzinfo=UTC) if response.HasField("expire_time") else None
            answer = Identity(
                "person" if response.user_id else "api_key",
                workspace_id=response.workspace_id,
                key_id=response.api_key_id or None,
                user_id=response.user_id or None,
                scopes=frozenset(response.scopes),
                expire_time=expire_time,
                networks=tuple(ipaddress.ip_network(network) for network in response.networks),
            )
            if expire_time is not None:
                lifetime = min(lifetime, (expire_time - self._clock.now()).total_seconds())
        self._known[digest] = (self._clock.monotonic() + lifetime, answer)
        while len(self._known) > _MAX_ENTRIES:
            self._known.popitem(last=False)
        return answer
