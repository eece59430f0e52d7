"""One attempt to renew a token, R1 to R9 of docs/decisions/0005-refresh.md: the order of the lines matters."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Final, Protocol

from holdfast.errors import Conflict, HoldfastError, LeaseLost, NotFound, Reason, ResourceExhausted, Unavailable
from services.auth.connection_store import Connection, ConnectionState, CredentialKind
from services.auth.oauth.refusals import ReauthReason, RefusalKind, TokenRefused
from services.auth.oauth.tokens import OAuthApp, TokenSet
from services.auth.providers.schema import OAuthSpec, Rotation
from services.auth.refresh.documents import Fingerprint, StoredTokens, TokenDocument
from services.auth.refresh.escrow import Escrow, EscrowKey, Escrows
from services.auth.refresh.goal import Goal
from services.auth.refresh.lease import Lease, Leases
from services.auth.refresh.metrics import Outcome, RefreshMetrics
from services.auth.refresh.recovery import Recovery
from services.auth.refresh.rows import ConnectionRows, needs_reauth_error, unavailable_error
from services.auth.refresh.timing import backoff_seconds
from services.auth.secret_paths import connection_path
from services.auth.secrets import SecretStore
from services.shared.clock import Clock
from services.shared.crash_points import crash_point
from services.shared.telemetry import get_logger

CALL_SECONDS: Final = 20.0
"""For the whole call to the provider."""

COMMIT_SECONDS: Final = 10.0
"""What has to be left of the lease when the call ends."""

ABANDON_SECONDS: Final = 60.0
"""After the end of the lease, when the writing of tokens that lie in escrow is left to the recovery."""

_WRITE_PAUSE: Final = 0.1
_MOST_WRITE_PAUSE: Final = 2.0
_MALFORMED_LIMIT: Final = 3
_ROTATES_STRICTLY: Final = (Rotation.STRICT, Rotation.GRACE)

UNKNOWN_REASON: Final = ReauthReason.REFRESH_OUTCOME_UNKNOWN.value
MISCONFIGURED_REASON: Final = "integration_misconfigured"

log = get_logger(__name__)


class Held(Exception):
    """Another process refreshes this connection."""


class TokenEndpoint(Protocol):
    """The part of `OAuthClient` that renews."""

    async def refresh(
        self,
        app: OAuthApp,
        tokens: TokenSet,
        *,
        timeout_seconds: float = ...,
        redirect_uri: str | None = None,
        resource: str | None = None,
    ) -> TokenSet:
        """See `OAuthClient.refresh`."""

    async def client_credentials(
        self, app: OAuthApp, *, scopes: tuple[str, ...], resource: str | None = None, timeout_seconds: float = ...
    ) -> TokenSet:
        """See `OAuthClient.client_credentials`."""


class Apps(Protocol):
    """Where the workspaces' apps at providers come from, and who is told that a provider refuses one."""

    async def oauth_app(self, workspace_id: str, integration_id: str) -> OAuthApp:
        """Returns the app of an integration.

        Raises:
            NotFound: There is none.
            FailedPrecondition: It is disabled.
            Unavailable: It cannot be read at the moment.
        """

    async def record_client_failure(self, workspace_id: str, integration_id: str, reason: str) -> None:
        """Notes that the provider refuses the app itself."""

    async def record_client_success(self, workspace_id: str, integration_id: str) -> None:
        """Notes that the provider has accepted the app."""


class Progress:
    """How far an attempt is, for those who wait for it and for the drain."""

    def __init__(self, serve: Callable[[StoredTokens], None], is_draining: Callable[[], bool]) -> None:
        self.serve = serve
        """Hands tokens to the callers before they are confirmed: they lie in escrow."""
        self.is_draining = is_draining
        self.has_waited = False
        """Another process was met that held the lease."""


class Renewal:
    """Attempts to renew tokens. At most one attempt per connection at a time in a process: see `RefreshCoordinator`."""

    def __init__(
        self,
        *,
        secrets: SecretStore,
        leases: Leases,
        escrows: Escrows | None,
        apps: Apps,
        endpoint: TokenEndpoint,
        rows: ConnectionRows,
        recovery: Recovery,
        fingerprint: Fingerprint,
        clock: Clock,
        rng: random.Random,
        metrics: RefreshMetrics,
    ) -> None:
        self._secrets = secrets
        self._leases = leases
        self._escrows = escrows
        self._apps = apps
        self._endpoint = endpoint
        self._rows = rows
        self._recovery = recovery
        self._fingerprint = fingerprint
        self._clock = clock
        self._rng = rng
        self._metrics = metrics

    async def read(self, connection: Connection) -> StoredTokens:
        """Returns the tokens of a connection as they are stored.

        Raises:
            NotFound: There are none: it was revoked, or connected anew.
            SecretDamagedError: They are not this connection's.
            Unavailable: The store is away.
        """
        path = connection_path(connection)
        stored = None if path is None else await self._secrets.get(path)
        if stored is None:
            raise NotFound("there is no such connection", reason=Reason.CONNECTION_NOT_FOUND)
        document = TokenDocument.from_secret(stored.secret, connection)
        return StoredTokens(document, stored.version, self._fingerprint(document.tokens.access_token))

    async def attempt(self, connection: Connection, goal: Goal, progress: Progress) -> StoredTokens:
        """Returns tokens that meet the goal, or the ones that a refresh has just brought; the rejected ones, if nothing
        can renew them.

        Raises:
            Held: Another process is at it; look again in a while.
            FailedPrecondition: Only the user can help (CONNECTION_NEEDS_REAUTH), or the integration is disabled.
            Unavailable: The provider or the store is away.
        """
        stored = await self.read(connection)  # R1
        crash_point("auth.refresh.r1")
        if goal.is_met(stored.current, self._clock.now()):
            await self._rows.catch_up(connection, stored)
            if progress.has_waited:
                self._metrics.ended(Outcome.JOINED)
            return stored
        if connection.kind is CredentialKind.OAUTH2 and stored.tokens.refresh_token is None:
            if goal.rejected_fingerprint == stored.fingerprint and stored.works_at(self._clock.now()):
                # One rejection proves nothing. Whoever met it is told by the same token that renewing does not help.
                return stored
            raise await self._cannot_renew(connection, stored)
        app = await self._app(connection, stored)
        spec = app.provider.oauth or OAuthSpec()
        rotates = connection.kind is CredentialKind.OAUTH2 and spec.rotation is not Rotation.NONE
        key = None
        try:
            if rotates and self._escrows is not None:
                key = await self._escrows.key(connection.workspace_id)
            lease = await self._take(connection, stored)  # R2
        except Unavailable:
            self._metrics.ended(Outcome.STORE_UNAVAILABLE)
            raise
        crash_point("auth.refresh.r2")
        return await self._as_holder(connection, goal, progress, app, spec, lease, key, rotates=rotates)

    async def _take(self, connection: Connection, stored: StoredTokens) -> Lease:
        path = connection_path(connection)
        assert path is not None  # the tokens were read from there
        seen = await self._leases.look(connection.connection_id)
        lease = await self._leases.take(connection.connection_id, seen, secret_path=path, token_version=stored.version)
        if lease is None:
            raise Held
        if lease.was_stolen:
            self._metrics.steals.inc()
            log.warning(
                "refresh_lease_taken_over",
                connection_id=connection.connection_id,
                phase=seen.record.phase.value,
                token_version=stored.version,
            )
        return lease

    async def _as_holder(
        self,
        connection: Connection,
        goal: Goal,
        progress: Progress,
        app: OAuthApp,
        spec: OAuthSpec,
        lease: Lease,
        key: EscrowKey | None,
        *,
        rotates: bool,
    ) -> StoredTokens:
        is_sent = False
        try:
            stored = await self.read(connection)  # R3
            crash_point("auth.refresh.r3")
            if stored.version != lease.record.token_version:
                # Somebody has finished between R1 and R2.
                await self._free(lease, was_sent=False)
                raise Held
            is_unknown = lease.record.is_unknown(lease.record.secret_path, stored.version)
            if is_unknown:
                if await self._recovery.finish(connection):
                    await self._free(lease, was_sent=False)
                    return await self.read(connection)
                if rotates and not self._may_send_again(spec, stored, goal, lease.record.unknown_time):
                    await self._free(lease, was_sent=False)
                    raise await self._uses_up(connection, stored)
            if progress.is_draining():
                await self._free(lease, was_sent=False)
                raise Unavailable("auth is shutting down; try again", reason=Reason.DRAINING, retry_delay_seconds=1.0)
            if rotates:
                await lease.mark_sent()  # R4
            crash_point("auth.refresh.r4")
            # Order matters: nothing is awaited between this look and the call. A process that was stopped in between
            # finds the deadline of the call past when it goes on.
            if lease.seconds_left < CALL_SECONDS + COMMIT_SECONDS:
                await self._free(lease, was_sent=False)
                raise unavailable_error(connection, retry_delay_seconds=1.0)
            is_sent = True
        except Unavailable:
            if not is_sent:
                self._metrics.ended(Outcome.STORE_UNAVAILABLE)
            raise
        except LeaseLost:
            raise Held from None
        try:
            answer = await self._call(connection, app, stored)  # R5
        except TokenRefused as refused:
            return await self._refused(
                connection, goal, spec, stored, lease, refused, rotates=rotates, was_unknown=is_unknown
            )
        crash_point("auth.refresh.r6")
        if stored.document.brings_back_spent(answer, self._fingerprint):
            self._metrics.reuse.inc()
            log.warning("spent_refresh_token_returned", connection_id=connection.connection_id)
        # R6: nothing is checked before it is written down.
        document = stored.document.after(answer, self._fingerprint)
        renewed = StoredTokens(document, stored.version + 1, self._fingerprint(document.tokens.access_token))
        return await self._commit(connection, progress, lease, key, stored, renewed)

    async def _call(self, connection: Connection, app: OAuthApp, stored: StoredTokens) -> TokenSet:
        """Sends the one request of this attempt.

        Raises:
            TokenRefused: There are no tokens.
        """
        document = stored.document
        try:
            # The client keeps the deadline, and none is put around it: one by the clock would throw away an answer that
            # lies in the socket of a process that was stopped for long.
            if connection.kind is CredentialKind.CLIENT_CREDENTIALS:
                return await self._endpoint.client_credentials(
                    app, scopes=connection.scopes, resource=document.resource, timeout_seconds=CALL_SECONDS
                )
            return await self._endpoint.refresh(
                app,
                document.tokens,
                timeout_seconds=CALL_SECONDS,
                redirect_uri=document.redirect_uri,
                resource=document.resource,
            )
        except TimeoutError as error:
            raise TokenRefused(RefusalKind.UNKNOWN_OUTCOME, "the provider did not answer in time") from error
        except (TokenRefused, asyncio.CancelledError):
            raise
        except Exception as error:
            # A bug after the request may have left: what it did is not known.
            log.exception("refresh_crashed", connection_id=connection.connection_id)
            raise TokenRefused(RefusalKind.UNKNOWN_OUTCOME, "the answer could not be read") from error

    # ------------------------------------------------------------------------------------------------ R7, R8 and R9

    async def _commit(
        self,
        connection: Connection,
        progress: Progress,
        lease: Lease,
        key: EscrowKey | None,
        old: StoredTokens,
        new: StoredTokens,
    ) -> StoredTokens:
        """Writes tokens down until they are somewhere where they survive this process. There is no time limit."""
        path = lease.record.secret_path
        winner: StoredTokens | None = None
        escrow = None
        if key is not None:
            escrow = Escrow(
                connection_id=connection.connection_id,
                workspace_id=connection.workspace_id,
                write_id=new.document.write_id,
                token_version=old.version,
                secret_path=path,
                document=new.document.to_secret(connection),
            )
        is_escrowed = is_reported = False
        pause = _WRITE_PAUSE
        self._metrics.unsaved.inc()
        try:
            while True:
                if escrow is not None and key is not None and not is_escrowed:
                    is_escrowed = await self._keep(escrow, key)  # R7
                    if is_escrowed:
                        crash_point("auth.refresh.r7")
                try:
                    winner = await self._write(connection, path, old, new)  # R8
                    break
                except (Unavailable, ResourceExhausted) as error:
                    if not is_reported:
                        is_reported = True
                        log.error(
                            "tokens_not_stored_yet",
                            connection_id=connection.connection_id,
                            reason=error.reason,
                            is_escrowed=is_escrowed,
                        )
                if is_escrowed:
                    progress.serve(new)
                    if lease.seconds_left < -ABANDON_SECONDS:
                        return new
                await self._extend(lease)
                await self._clock.sleep(pause)
                pause = min(2 * pause, _MOST_WRITE_PAUSE)
        finally:
            self._metrics.unsaved.dec()
        crash_point("auth.refresh.r8")
        if escrow is not None and self._escrows is not None:
            try:
                await self._escrows.remove(escrow.connection_id, escrow.write_id)
            except Unavailable:
                log.info("escrow_left_for_the_recovery", connection_id=connection.connection_id)
        crash_point("auth.refresh.r9")
        await self._free(lease, is_settled=True)
        if winner is None:
            raise NotFound("there is no such connection", reason=Reason.CONNECTION_NOT_FOUND)
        await self._rows.publish(connection, winner)
        if connection.state_reason == MISCONFIGURED_REASON:
            await self._app_works(connection)
        left = old.seconds_left(self._clock.now())
        if left is not None:
            self._metrics.seconds_to_expiry.observe(left)
        self._metrics.ended(Outcome.REFRESHED if winner is new else Outcome.ADOPTED)
        log.info(
            "token_refreshed",
            connection_id=connection.connection_id,
            workspace_id=connection.workspace_id,
            provider=connection.provider,
            token_version=winner.version,
            fingerprint=winner.fingerprint,
        )
        return winner

    async def _keep(self, escrow: Escrow, key: EscrowKey) -> bool:
        assert self._escrows is not None  # the key came from there
        try:
            await self._escrows.keep(escrow, key)
        except (Unavailable, ResourceExhausted) as error:
            log.warning("escrow_failed", connection_id=escrow.connection_id, reason=error.reason)
            return False
        return True

    async def _write(
        self, connection: Connection, path: str, old: StoredTokens, new: StoredTokens
    ) -> StoredTokens | None:
        """Makes `new` the next version, and returns what is the current one afterwards; None when nothing is."""
        try:
            await self._secrets.put(path, new.document.to_secret(connection), expected_version=old.version)
        except Conflict:
            # An earlier try whose answer was lost, the recovery, or a winner.
            current = await self._secrets.get(path)
            if current is None:
                return None
            document = TokenDocument.from_secret(current.secret, connection)
            if document.write_id == new.document.write_id:
                return new
            log.warning("refresh_superseded", connection_id=connection.connection_id, token_version=current.version)
            return StoredTokens(document, current.version, self._fingerprint(document.tokens.access_token))
        return new

    async def _extend(self, lease: Lease) -> None:
        if lease.seconds_left > 2 * COMMIT_SECONDS:
            return
        try:
            await lease.extend()
        except (LeaseLost, Unavailable, ResourceExhausted):
            # What is written next is guarded by its own check-and-set.
            return

    async def _free(
        self, lease: Lease, *, is_unknown: bool = False, was_sent: bool = True, is_settled: bool = False
    ) -> None:
        """Gives the lease back if that can be done now; if not, it runs out."""
        try:
            if is_settled:
                await lease.settle()
            else:
                await lease.free(is_unknown=is_unknown, was_sent=was_sent)
        except (LeaseLost, Unavailable, ResourceExhausted) as error:
            log.info("lease_left", reason=error.reason)

    # ---------------------------------------------------------------------------------------------------- refusals

    async def _refused(
        self,
        connection: Connection,
        goal: Goal,
        spec: OAuthSpec,
        stored: StoredTokens,
        lease: Lease,
        refused: TokenRefused,
        *,
        rotates: bool,
        was_unknown: bool,
    ) -> StoredTokens:
        kind = refused.kind
        if kind is RefusalKind.PERMANENT and connection.kind is CredentialKind.CLIENT_CREDENTIALS:
            kind = RefusalKind.INTEGRATION
        self._metrics.ended(_OUTCOMES[kind])
        if kind in (RefusalKind.PERMANENT, RefusalKind.UNKNOWN_OUTCOME, RefusalKind.MALFORMED):
            # A verdict is about the version that was sent. Whoever wrote a later one has won, and is adopted.
            winner = await self._winner(connection, stored)
            if winner is not None:
                await self._free(lease)
                return winner
        is_spent = rotates and spec.rotation in _ROTATES_STRICTLY
        if kind is RefusalKind.PERMANENT:
            reason = refused.reauth_reason or ReauthReason.GRANT_REVOKED
            if was_unknown and reason is ReauthReason.GRANT_REVOKED:
                reason = ReauthReason.REFRESH_OUTCOME_UNKNOWN
            return await self._ends(connection, stored, lease, reason)
        is_unknown = kind in (RefusalKind.UNKNOWN_OUTCOME, RefusalKind.MALFORMED) and rotates
        if is_unknown and is_spent:
            self._metrics.unknown.inc()
        if (
            kind is RefusalKind.MALFORMED
            and not is_spent
            and connection.failure_count + 1 >= _MALFORMED_LIMIT
            and not self._works(stored, goal)
        ):
            return await self._ends(connection, stored, lease, ReauthReason.REFRESH_OUTCOME_UNKNOWN)
        if kind is RefusalKind.INTEGRATION:
            await self._app_fails(connection, refused)
        await self._free(lease, is_unknown=is_unknown and is_spent, was_sent=refused.was_sent)
        wait = backoff_seconds(
            connection.failure_count,
            self._rng,
            is_slow=kind is RefusalKind.INTEGRATION or _is_foreign(refused),
            asked=refused.retry_after_seconds,
        )
        refresh_time: datetime | None = self._clock.now() + timedelta(seconds=wait)
        if is_unknown and spec.rotation is Rotation.STRICT and self._works(stored, goal):
            # The old refresh token is tried once, when the access token has been used up.
            refresh_time = stored.tokens.expire_time
        await self._rows.fail(
            connection,
            stored,
            state=ConnectionState.DEGRADED if self._works(stored, goal) else ConnectionState.UNAVAILABLE,
            state_reason=UNKNOWN_REASON if is_unknown and is_spent else _REASONS[kind],
            refresh_time=refresh_time,
        )
        raise unavailable_error(connection, retry_delay_seconds=wait) from refused

    async def _winner(self, connection: Connection, stored: StoredTokens) -> StoredTokens | None:
        """Returns the tokens of whoever was faster, from the document or from an escrow; None when nobody was."""
        # If it cannot be told now there is no verdict either: whoever looks next decides.
        current = await self.read(connection)
        if current.version == stored.version and await self._recovery.finish(connection):
            current = await self.read(connection)
        if current.version == stored.version:
            return None
        self._metrics.ended(Outcome.ADOPTED)
        await self._rows.catch_up(connection, current)
        return current

    async def _ends(
        self, connection: Connection, stored: StoredTokens, lease: Lease, reason: ReauthReason
    ) -> StoredTokens:
        """Says that only the user can help, unless a winner shows up at the last moment."""
        await self._rows.needs_reauth(connection, stored, reason)
        await self._free(lease)
        current = await self.read(connection)
        if current.version != stored.version:
            await self._rows.publish(connection, current)
            return current
        raise needs_reauth_error(connection, reason.value)

    async def _uses_up(self, connection: Connection, stored: StoredTokens) -> HoldfastError:
        """Keeps a strict grant whose last refresh has no known outcome: its access token is used to the end first."""
        left = stored.seconds_left(self._clock.now())
        if connection.state_reason != UNKNOWN_REASON:
            self._metrics.ended(Outcome.UNKNOWN)
            self._metrics.unknown.inc()
            await self._rows.fail(
                connection,
                stored,
                state=ConnectionState.DEGRADED,
                state_reason=UNKNOWN_REASON,
                refresh_time=stored.tokens.expire_time,
            )
        return unavailable_error(connection, retry_delay_seconds=60.0 if left is None else left)

    async def _cannot_renew(self, connection: Connection, stored: StoredTokens) -> HoldfastError:
        """There is no refresh token. That is a proof once the access token has ended."""
        left = stored.seconds_left(self._clock.now())
        if left is None or left > 0:
            return unavailable_error(connection, retry_delay_seconds=60.0 if left is None else left)
        await self._rows.needs_reauth(connection, stored, ReauthReason.NO_REFRESH_TOKEN)
        return needs_reauth_error(connection, ReauthReason.NO_REFRESH_TOKEN.value)

    def _may_send_again(self, spec: OAuthSpec, stored: StoredTokens, goal: Goal, sent: datetime | None) -> bool:
        """Tells whether the old refresh token may be sent although nobody knows whether it is spent."""
        if spec.rotation not in _ROTATES_STRICTLY or not self._works(stored, goal):
            return True
        if spec.rotation is Rotation.GRACE and sent is not None:
            return timedelta(0) <= self._clock.now() - sent < timedelta(seconds=spec.rotation_grace_seconds)
        return False

    def _works(self, stored: StoredTokens, goal: Goal) -> bool:
        return stored.works_at(self._clock.now()) and stored.fingerprint != goal.rejected_fingerprint

    # ------------------------------------------------------------------------------------------------------- apps

    async def _app(self, connection: Connection, stored: StoredTokens) -> OAuthApp:
        if connection.integration_id is None:
            raise await self._cannot_renew(connection, stored)
        app = await self._apps.oauth_app(connection.workspace_id, connection.integration_id)
        # Also an application that gets a token for itself may do so at an address of the connection's own.
        return app.with_variables(stored.tokens.extra)

    async def _app_fails(self, connection: Connection, refused: TokenRefused) -> None:
        assert connection.integration_id is not None  # the app came from there
        try:
            await self._apps.record_client_failure(
                connection.workspace_id, connection.integration_id, refused.error or "refused"
            )
        except HoldfastError as error:
            log.info("integration_failure_not_recorded", reason=error.reason)

    async def _app_works(self, connection: Connection) -> None:
        assert connection.integration_id is not None  # the app came from there
        try:
            await self._apps.record_client_success(connection.workspace_id, connection.integration_id)
        except HoldfastError as error:
            log.info("integration_success_not_recorded", reason=error.reason)


_OUTCOMES: Final = {
    RefusalKind.PERMANENT: Outcome.PERMANENT,
    RefusalKind.INTEGRATION: Outcome.INTEGRATION,
    RefusalKind.TRANSIENT: Outcome.TRANSIENT,
    RefusalKind.UNKNOWN_OUTCOME: Outcome.UNKNOWN,
    RefusalKind.MALFORMED: Outcome.MALFORMED,
}

_REASONS: Final = {
    RefusalKind.INTEGRATION: MISCONFIGURED_REASON,
    RefusalKind.TRANSIENT: "provider_unavailable",
    RefusalKind.UNKNOWN_OUTCOME: "provider_unavailable",
    RefusalKind.MALFORMED: "provider_answer_malformed",
}


def _is_foreign(refused: TokenRefused) -> bool:
    """Tells whether a 4xx came from something in front of the token endpoint: it says nothing, and lasts longer."""
    status = refused.status
    return refused.error is None and status is not None and 400 <= status < 500 and status != 429
