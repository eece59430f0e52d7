"""Holdfast's own API keys: their form, and how they are made, verified and revoked.

Making and revoking are one transaction each, with the audit record and the answer to the request id in it. A crash
before the commit leaves nothing. A crash between the commit and the answer leaves, of a revocation, a revoked key, and
its repetition is answered the same. Of a new key it leaves one whose secret was in this process only: nobody has it, it
opens nothing, it is listed until somebody revokes it, and the repetition is answered with it, without a secret, so that
the caller knows to make another one. Who must not lose a key to that gives `create` an escrow: see `key_file`.

When keys were used is in memory until it is written: a crash loses the last seconds of it. The write may be repeated.
"""

from __future__ import annotations

import dataclasses
import hashlib
import hmac
import ipaddress
import re
import secrets as random_source
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from holdfast.errors import AlreadyExists, InvalidArgument, NotFound, PermissionDenied, Reason, Unauthenticated
from services.auth.callers import Caller
from services.auth.keyring import Keyring
from services.auth.persons import Persons
from services.auth.refusals import RefusalCounter
from services.auth.requests import identify
from services.auth.roles import checked_scopes
from services.auth.secrets import Secret
from services.auth.store import ApiKey, AuthStore, FoundApiKey, NewApiKey
from services.shared.clock import Clock
from services.shared.identity import Identity, current_peer
from services.shared.key_form import ALPHABET, KEY_PREFIX, base62, checksum, is_token, parts_of_key
from services.shared.peers import is_within

OWN_WORKSPACE: Final = "workspace:read"
"""What every key may do: ask for the workspace that it belongs to. Not given to keys, but added when they are used."""

MAX_DISPLAY_NAME_CHARACTERS: Final = 100

MAX_NETWORKS: Final = 50

_ID_CHARACTERS: Final = 12
_SECRET_BYTES: Final = 32
_SECRET_CHARACTERS: Final = 43
_ID_FORM: Final = re.compile(r"[0-9A-Za-z]{12}")
_MAX_ID_ATTEMPTS: Final = 3


# ---------------------------------------------------------------------------------------------------------------- form


@dataclass(frozen=True, slots=True, eq=False)
class ParsedKey:
    """The parts of a well-formed key."""

    api_key_id: str
    secret: Secret


def generate_key() -> tuple[ParsedKey, Secret]:
    """Returns a new key: its parts, and the whole that its owner gets."""
    api_key_id = "".join(random_source.choice(ALPHABET) for _ in range(_ID_CHARACTERS))
    secret = base62(int.from_bytes(random_source.token_bytes(_SECRET_BYTES), "big"), _SECRET_CHARACTERS)
    body = f"{KEY_PREFIX}{api_key_id}_{secret}"
    return ParsedKey(api_key_id, Secret(secret)), Secret(body + checksum(body))


def parse_key(text: str) -> ParsedKey | None:
    """Returns the parts of a key, or None for what is no key. Most typing errors end here, without a look-up."""
    parts = parts_of_key(text)
    return None if parts is None else ParsedKey(parts[0], Secret(parts[1]))


# --------------------------------------------------------------------------------------------------------------- rules

Escrow = Callable[[Secret], Awaitable[None]]


@dataclass(frozen=True, slots=True, eq=False)
class CreatedKey:
    """A new key, with its secret unless the request was a repeated one."""

    key: ApiKey
    secret: Secret | None


class ApiKeys:
    """Makes, lists, revokes and verifies keys. Of a key's secret only a keyed hash is stored.

    The secret is 256 random bits, so that the hash needs no stretching.
    """

    def __init__(self, store: AuthStore, keyring: Keyring, refusals: RefusalCounter, clock: Clock) -> None:
        self._store = store
        self._refusals = refusals
        self._pepper = keyring.pepper
        self._request_key = keyring.request_key
        self._clock = clock
        self._uses: dict[tuple[str, str], datetime] = {}
        # Compared with when there is no such key, so that the answer takes as long as for a wrong secret.
        self._nobodys_digest = self._digest(generate_key()[0].secret)

    async def create(
        self,
        caller: Caller,
        *,
        display_name: str,
        scopes: Iterable[str],
        expire_time: datetime | None = None,
        networks: Iterable[str] = (),
        request_id: str = "",
        escrow: Escrow | None = None,
    ) -> CreatedKey:
        """Makes a key in the caller's workspace.

        Args:
            caller: Who gives the scopes away.
            display_name: For people.
            scopes: What the key may do: scopes, and roles that stand for them.
            expire_time: When it ends; None means never.
            networks: From where it may be used, as CIDR; none means from everywhere.
            request_id: Makes the call idempotent.
            escrow: Is given the whole key before it is valid, for a caller that must not lose it to a crash.

        Raises:
            InvalidArgument: A field is wrong.
            PermissionDenied: A scope is beyond the caller's.
        """
        wanted = checked_scopes(scopes)
        allowed = checked_networks(networks)
        _check_display_name(display_name)
        request = identify(
            self._request_key,
            "CreateApiKey",
            request_id,
            # Without networks the content is what it was before there were any.
            [
                display_name,
                wanted,
                None if expire_time is None else expire_time.isoformat(),
                *([allowed] if allowed else []),
            ],
        )
        for scope in wanted:
            if not caller.may_grant(scope):
                raise PermissionDenied(
                    f"a key cannot be given the scope {scope} by a caller that lacks it",
                    reason=Reason.SCOPE_MISSING,
                    metadata={"scope": scope},
                )
        if request is not None:
            # Before the time is looked at: the answer stays the same after the key has ended.
            answered = await self._store.find_answered_api_key(caller.workspace_id, request)
            if answered is not None:
                return CreatedKey(answered, None)
        if expire_time is not None and expire_time <= self._clock.now():
            raise InvalidArgument("expire_time is past", field="expire_time", description="expected a time to come")
        for attempt in range(1, _MAX_ID_ATTEMPTS + 1):
            parsed, whole = generate_key()
            new = NewApiKey(
                workspace_id=caller.workspace_id,
                api_key_id=parsed.api_key_id,
                display_name=display_name,
                scopes=wanted,
                digest=self._digest(parsed.secret),
                expire_time=expire_time,
                networks=allowed,
            )
            if escrow is not None:
                await escrow(whole)
            try:
                key, is_new = await self._store.create_api_key(new, actor=caller.actor, request=request)
            except AlreadyExists:
                # An id of 71 random bits was taken: try another one.
                if attempt == _MAX_ID_ATTEMPTS:
                    raise
            else:
                return CreatedKey(key, whole if is_new else None)
        raise AssertionError("unreachable")

    async def page(self, workspace_id: str, *, limit: int, after: tuple[datetime, str] | None) -> list[ApiKey]:
        """Returns up to `limit` keys, newest first, that come after the given time and id."""
        return await self._store.list_api_keys(workspace_id, limit=limit, after=after)

    async def revoke(self, caller: Caller, api_key_id: str, *, request_id: str = "") -> ApiKey:
        """Makes a key useless. May be repeated.

        Raises:
            NotFound: The workspace has no such key.
        """
        request = identify(self._request_key, "RevokeApiKey", request_id, api_key_id)
        key = None
        if _ID_FORM.fullmatch(api_key_id):
            key = await self._store.revoke_api_key(caller.workspace_id, api_key_id, actor=caller.actor, request=request)
        if key is None:
            raise NotFound("there is no such API key", reason=Reason.API_KEY_NOT_FOUND)
        return key

    async def verify(self, presented: Secret, *, peer: str = "") -> ApiKey:
        """Returns the key that `presented` is.

        Args:
            presented: What was shown.
            peer: Who has shown it, as grpc calls it, for the record.

        Raises:
            Unauthenticated: It is not valid (API_KEY_INVALID, whatever the cause), or it has ended (API_KEY_EXPIRED).
        """
        parsed = parse_key(presented.reveal())
        if parsed is None:
            raise _invalid()
        found = await self._store.find_api_key(parsed.api_key_id)
        stored = self._nobodys_digest if found is None else found.digest
        is_right = hmac.compare_digest(self._digest(parsed.secret), stored)
        if found is None:
            self._refusals.note_nobodys_key(peer=peer, outcome=Reason.API_KEY_INVALID, why="unknown")
            raise _invalid()
        if not is_right or found.key.revoke_time is not None:
            why = "revoked" if is_right else "wrong_secret"
            self._refusals.note_key(found.key, peer=peer, outcome=Reason.API_KEY_INVALID, why=why)
            raise _invalid()
        if found.key.expire_time is not None and found.key.expire_time <= found.now:
            self._refusals.note_key(found.key, peer=peer, outcome=Reason.API_KEY_EXPIRED, why="expired")
            raise Unauthenticated("the API key has expired", reason=Reason.API_KEY_EXPIRED)
        if found.key.networks and peer and not is_within(peer, map(ipaddress.ip_network, found.key.networks)):
            # Whoever asks refuses it for that; here it is put on record.
            self._refusals.note_key(found.key, peer=peer, outcome=Reason.ADDRESS_NOT_ALLOWED, why="address")
        self._note_use(found)
        return found.key

    def _digest(self, secret: Secret) -> bytes:
        return hmac.digest(self._pepper, secret.reveal().encode(), hashlib.sha256)

    def _note_use(self, found: FoundApiKey) -> None:
        minute = found.now.replace(second=0, microsecond=0)
        if found.key.last_use_time is None or found.key.last_use_time < minute:
            self._uses[found.key.workspace_id, found.key.api_key_id] = minute

    async def write_uses(self) -> None:
        """Stores when keys were last used; called every few seconds, because a write for each use would cost more
        than the use."""
        uses = dict(self._uses)
        await self._store.record_key_uses(uses)
        for key, minute in uses.items():
            if self._uses.get(key) == minute:
                del self._uses[key]


def _invalid() -> Unauthenticated:
    return Unauthenticated("the API key is not valid", reason=Reason.API_KEY_INVALID)


def checked_networks(networks: Iterable[str]) -> tuple[str, ...]:
    """Returns networks in their usual spelling, each once; an address is the network of itself.

    Raises:
        InvalidArgument: One is none, or there are too many.
    """
    wanted = list(networks)
    if len(wanted) > MAX_NETWORKS:
        raise InvalidArgument(
            "there are too many networks", field="networks", description=f"expected at most {MAX_NETWORKS}"
        )
    try:
        return tuple(dict.fromkeys(str(ipaddress.ip_network(text.strip(), strict=False)) for text in wanted))
    except ValueError as error:
        raise InvalidArgument(
            "a network is not valid",
            field="networks",
            description="expected networks such as 10.0.0.0/8 or 2001:db8::/32",
        ) from error


def _check_display_name(text: str) -> None:
    if len(text) > MAX_DISPLAY_NAME_CHARACTERS or (text and not text.isprintable()):
        raise InvalidArgument(
            "display_name is not valid",
            field="display_name",
            description=f"expected up to {MAX_DISPLAY_NAME_CHARACTERS} printable characters",
        )


class LocalAuthenticator:
    """The `Authenticator` of auth's own server: verifies in the process instead of calling itself.

    Args:
        api_keys: The keys.
        persons: Who shows a token; nobody when not given.
    """

    def __init__(self, api_keys: ApiKeys, persons: Persons | None = None) -> None:
        self._api_keys = api_keys
        self._persons = persons

    async def verify(self, api_key: str, *, peer: str | None = None) -> Identity:
        """Returns who the key or token belongs to.

        Args:
            api_key: What was shown.
            peer: Who has shown it, as grpc calls it; whoever calls now when not given.

        Raises:
            Unauthenticated: It is not valid.
        """
        peer = current_peer() if peer is None else peer
        if self._persons is not None and is_token(api_key):
            person = await self._persons.verify(api_key, peer=peer)
            return dataclasses.replace(person, scopes=person.scopes | {OWN_WORKSPACE})
        key = await self._api_keys.verify(Secret(api_key), peer=peer)
        return Identity(
            "api_key",
            workspace_id=key.workspace_id,
            key_id=key.api_key_id,
            scopes=frozenset({*key.scopes, OWN_WORKSPACE}),
            expire_time=key.expire_time,
            networks=tuple(ipaddress.ip_network(network) for network in key.networks),
        )
