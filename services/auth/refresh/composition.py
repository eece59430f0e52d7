"""The parts of the refresh, put together in their order."""

from __future__ import annotations

import random
from dataclasses import dataclass

from prometheus_client import CollectorRegistry

from holdfast.ids import new_uuid7
from services.auth.connection_store import ConnectionStore
from services.auth.refresh.access_tokens import AccessTokens
from services.auth.refresh.coordinator import RefreshCoordinator
from services.auth.refresh.documents import Fingerprint
from services.auth.refresh.escrow import Escrows
from services.auth.refresh.lease import Leases
from services.auth.refresh.limits import RefreshLimits
from services.auth.refresh.metrics import RefreshMetrics
from services.auth.refresh.recovery import Recovery
from services.auth.refresh.renewal import Apps, Renewal, TokenEndpoint
from services.auth.refresh.rows import ConnectionRows, Listener, SpecOf
from services.auth.refresh.scheduler import RefreshScheduler
from services.auth.secrets import SecretStore
from services.shared.clock import Clock


@dataclass(frozen=True, slots=True)
class Refreshing:
    """What the rest of the service uses of it."""

    access_tokens: AccessTokens
    coordinator: RefreshCoordinator
    scheduler: RefreshScheduler
    recovery: Recovery
    rows: ConnectionRows


def compose_refresh(
    *,
    store: ConnectionStore,
    secrets: SecretStore,
    escrows: Escrows | None,
    apps: Apps,
    endpoint: TokenEndpoint,
    spec_of: SpecOf,
    fingerprint: Fingerprint,
    clock: Clock,
    registry: CollectorRegistry,
    on_change: Listener,
    rng: random.Random | None = None,
) -> Refreshing:
    """Builds the parts.

    Args:
        store: Rows of connections.
        secrets: Their tokens, and the leases.
        escrows: Between answer and write; None when tokens and escrows would lie in the same database.
        apps: The workspaces' apps at providers.
        endpoint: The OAuth client.
        spec_of: The provider's data of a connection.
        fingerprint: Keyed hash of a token.
        clock: Where time comes from.
        registry: The process's metrics.
        on_change: Is told each row that has changed.
        rng: Jitter.
    """
    rng = random.Random() if rng is None else rng
    metrics = RefreshMetrics(registry)
    rows = ConnectionRows(store, spec_of, clock, rng, on_change=on_change)
    recovery = Recovery(store, secrets, escrows, rows, fingerprint, clock, metrics)
    renewal = Renewal(
        secrets=secrets,
        leases=Leases(secrets, clock, owner=new_uuid7()),
        escrows=escrows,
        apps=apps,
        endpoint=endpoint,
        rows=rows,
        recovery=recovery,
        fingerprint=fingerprint,
        clock=clock,
        rng=rng,
        metrics=metrics,
    )
    coordinator = RefreshCoordinator(renewal, RefreshLimits(clock), clock)
    return Refreshing(
        access_tokens=AccessTokens(renewal, coordinator, rows, clock),
        coordinator=coordinator,
        scheduler=RefreshScheduler(store, renewal, coordinator, rows, clock, rng),
        recovery=recovery,
        rows=rows,
    )
