"""Run grants: the signed right of one run to use given connections for its user (P11).

Auth signs a grant when a run is started, for a caller whose own credential is shown, and checks it at every use. The
executor carries it but cannot make one: it can name no other user, run or connection than callers have. A grant lives
as long as a run may reasonably wait; what it allows is looked at again at each use, so that a connection that was
revoked, an agent that was shut out or an integration that was switched off ends the right at once. The reasons are in
docs/decisions/0004.

Nothing is written: a crash behind the signature leaves a grant that nobody has got, or that the executor stores with
the first event of its run; signing again makes another one for the same run, which allows the same.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import OctKey

from holdfast.errors import InvalidArgument, PermissionDenied, Reason
from holdfast.ids import is_uuid
from services.auth.keyring import Keyring
from services.auth.requests import is_name
from services.shared.clock import Clock
from services.shared.identity import IMPERSONATE_SCOPE, Identity

GRANT_LIFETIME: Final = timedelta(days=30)
"""How long a run may use connections after it was started: longer than any question stays open."""

MAX_USER_ID_CHARACTERS: Final = 256
MAX_CONNECTIONS: Final = 200

RUNS_WRITE: Final = "runs:write"

_MAX_SCOPES: Final = 100
_MAX_CHECKED: Final = 4_096
_SCOPE: Final = re.compile(r"[\x21\x23-\x5b\x5d-\x7e]{1,256}")  # RFC 6749 §3.3
_ALGORITHM: Final = "HS256"
_TYPE: Final = "run-grant+jwt"
_AUDIENCE: Final = "holdfast-auth"


@dataclass(frozen=True, slots=True)
class GrantedConnection:
    """A connection that a run may use.

    Attributes:
        name: Of the connection, or of an integration.
        scopes: Permissions that may be asked for; empty means those that the connection has.
    """

    name: str
    scopes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class RunGrant:
    """The right of one run."""

    workspace_id: str
    run_id: str
    user_id: str
    """On whose behalf; empty: only shared connections can be used."""
    agent: str
    connections: tuple[GrantedConnection, ...]
    issued_to: str
    """Who started the run: `key:<id>` or `user:<subject>`."""
    expire_time: datetime

    def connection(self, name: str) -> GrantedConnection | None:
        """Returns what is granted under the name, or None."""
        return next((granted for granted in self.connections if granted.name == name), None)


class RunGrants:
    """Signs and checks run grants.

    Args:
        keyring: Has the key; no other service does.
        clock: For the end of grants.
    """

    def __init__(self, keyring: Keyring, clock: Clock) -> None:
        self._key = OctKey.import_key(keyring.grant_key)
        self._clock = clock
        # Invariant: only grants whose signature was checked. A run uses its grant again and again.
        self._checked: OrderedDict[str, RunGrant] = OrderedDict()

    def issue(
        self,
        caller: Identity,
        *,
        run_id: str,
        user_id: str,
        agent: str,
        connections: Sequence[GrantedConnection],
    ) -> tuple[str, datetime]:
        """Returns a signed grant and its end.

        Raises:
            InvalidArgument: A field is wrong.
            PermissionDenied: The caller may start no runs, or is a person and not the user.
        """
        if caller.workspace_id is None or not caller.has_scope(RUNS_WRITE):
            raise PermissionDenied(
                f"the caller lacks the scope {RUNS_WRITE}", reason=Reason.SCOPE_MISSING, metadata={"scope": RUNS_WRITE}
            )
        if caller.kind == "person" and not caller.may_act_for(user_id):
            # What an executor says about a person is not enough: it may name whoever it likes.
            raise PermissionDenied(
                "a person starts runs for themselves only",
                reason=Reason.SCOPE_MISSING,
                metadata={"scope": IMPERSONATE_SCOPE},
            )
        if len(user_id) > MAX_USER_ID_CHARACTERS:
            raise InvalidArgument(
                "user_id is too long", field="user_id", description=f"at most {MAX_USER_ID_CHARACTERS} characters"
            )
        _check_run(run_id, agent)
        _check_connections(connections)
        grant = RunGrant(
            workspace_id=caller.workspace_id,
            run_id=run_id,
            user_id=user_id,
            agent=agent,
            connections=tuple(connections),
            issued_to=caller.name,
            expire_time=(self._clock.now() + GRANT_LIFETIME).replace(microsecond=0),
        )
        return self._sign(grant), grant.expire_time

    def derive(
        self,
        parent_grant: str,
        *,
        workspace_id: str,
        parent_run_id: str,
        run_id: str,
        agent: str,
        connections: Sequence[GrantedConnection],
    ) -> tuple[str, datetime] | None:
        """Returns the grant of a run that another run starts, and its end; None where it would allow nothing.

        Invariant: it allows no more than the other grant, to nobody else, and no longer.

        Raises:
            InvalidArgument: A field is wrong.
            PermissionDenied: The other grant is not valid, or not that run's.
        """
        _check_run(run_id, agent)
        _check_connections(connections)
        parent = self.verify(parent_grant, workspace_id=workspace_id, run_id=parent_run_id)
        common = [
            shared
            for wanted in connections
            if (has := parent.connection(wanted.name)) is not None and (shared := _in_common(has, wanted)) is not None
        ]
        if not common:
            return None
        child = replace(parent, run_id=run_id, agent=agent, connections=tuple(common))
        return self._sign(child), child.expire_time

    def _sign(self, grant: RunGrant) -> str:
        claims: dict[str, Any] = {
            "aud": _AUDIENCE,
            "iat": int(self._clock.now().timestamp()),
            "exp": int(grant.expire_time.timestamp()),
            "ws": grant.workspace_id,
            "run": grant.run_id,
            "sub": grant.user_id,
            "agent": grant.agent,
            "uses": [[granted.name, list(granted.scopes)] for granted in grant.connections],
            "to": grant.issued_to,
        }
        return jwt.encode({"alg": _ALGORITHM, "typ": _TYPE}, claims, self._key, [_ALGORITHM])

    def verify(self, grant: str, *, workspace_id: str, run_id: str = "") -> RunGrant:
        """Returns what a grant says.

        Args:
            grant: As `issue` returned it.
            workspace_id: The workspace that it has to be of.
            run_id: The run that it has to be of; empty when only the grant says which.

        Raises:
            PermissionDenied: It is missing, altered, expired, or of another workspace or run (RUN_GRANT_INVALID).
        """
        found = self._checked.get(grant)
        if found is None:
            found = self._checked[grant] = self._read(grant)
            if len(self._checked) > _MAX_CHECKED:
                self._checked.popitem(last=False)
        is_of_another = found.workspace_id != workspace_id or (run_id and found.run_id != run_id)
        if is_of_another or found.expire_time <= self._clock.now():
            raise _invalid()
        return found

    def _read(self, grant: str) -> RunGrant:
        try:
            token = jwt.decode(grant, self._key, algorithms=[_ALGORITHM])
        except (JoseError, ValueError) as error:
            raise _invalid() from error
        claims = token.claims
        if token.header.get("typ") != _TYPE or claims.get("aud") != _AUDIENCE:
            raise _invalid()
        return RunGrant(
            workspace_id=claims["ws"],
            run_id=claims["run"],
            user_id=claims["sub"],
            agent=claims["agent"],
            connections=tuple(GrantedConnection(name, tuple(scopes)) for name, scopes in claims["uses"]),
            issued_to=claims["to"],
            expire_time=datetime.fromtimestamp(claims["exp"], UTC),
        )


def _in_common(has: GrantedConnection, wanted: GrantedConnection) -> GrantedConnection | None:
    # Without scopes, one stands for all that the connection has.
    if not has.scopes or not wanted.scopes:
        return GrantedConnection(has.name, has.scopes or wanted.scopes)
    scopes = tuple(scope for scope in wanted.scopes if scope in has.scopes)
    return GrantedConnection(has.name, scopes) if scopes else None


def _check_run(run_id: str, agent: str) -> None:
    if not is_uuid(run_id):
        raise InvalidArgument("run_id is not a UUID", field="run_id")
    if not is_name(agent):
        raise InvalidArgument("agent is no name of an agent", field="agent")


def _check_connections(connections: Sequence[GrantedConnection]) -> None:
    if not 1 <= len(connections) <= MAX_CONNECTIONS:
        raise InvalidArgument(
            "a grant names no connection, or too many",
            field="connections",
            description=f"expected 1 to {MAX_CONNECTIONS}",
        )
    for index, granted in enumerate(connections):
        if not is_name(granted.name):
            raise InvalidArgument("not the name of a connection", field=f"connections[{index}].name")
        if len(granted.scopes) > _MAX_SCOPES or not all(map(_SCOPE.fullmatch, granted.scopes)):
            raise InvalidArgument("not permissions of a provider", field=f"connections[{index}].scopes")


def _invalid() -> PermissionDenied:
    return PermissionDenied(
        "the run has no valid grant for connections: start it anew", reason=Reason.RUN_GRANT_INVALID
    )
