"""Which connection a run means by a name: the user's own before a shared one, and never the first of several.

What was chosen is remembered for seconds, until something of its workspace changes: at once where the change was made
in this process, as soon as its event is read where it was made in another one.
"""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from holdfast.errors import FailedPrecondition, Reason
from services.auth.connection_store import Connection, ConnectionStore
from services.auth.connections import connection_not_found
from services.auth.discovered import described
from services.auth.integration_store import Integration, IntegrationState, IntegrationStore, integration_disabled
from services.auth.providers import Provider, ProviderCatalog
from services.shared.clock import Clock

CACHE_SECONDS: Final = 5.0
"""How long a change that no event tells of may go unnoticed in another process."""

_CACHE_ENTRIES: Final = 4_096


@dataclass(frozen=True, slots=True)
class Choice:
    """A connection with all that says how it may be used."""

    connection: Connection
    integration: Integration | None
    provider: Provider | None
    """None for a connection to something that no file describes."""


class ConnectionChoices:
    """Chooses connections for runs.

    Args:
        connections: The connections.
        integrations: Their integrations.
        catalog: The providers.
        clock: For the age of what is remembered.
    """

    def __init__(
        self, connections: ConnectionStore, integrations: IntegrationStore, catalog: ProviderCatalog, clock: Clock
    ) -> None:
        self._connections = connections
        self._integrations = integrations
        self._catalog = catalog
        self._clock = clock
        self._known: OrderedDict[tuple[str, str, str], tuple[float, Choice]] = OrderedDict()
        self._keys: defaultdict[str, set[tuple[str, str, str]]] = defaultdict(set)
        self._changes = 0

    async def choose(self, workspace_id: str, user_id: str, name: str) -> Choice:
        """Returns what a run of the user means by `name`.

        Raises:
            NotFound: There is none.
            FailedPrecondition: Several fit (CONNECTION_AMBIGUOUS), or the integration is off (INTEGRATION_DISABLED).
            Unavailable: The storage is away.
        """
        key = (workspace_id, user_id, name)
        known = self._known.get(key)
        if known is not None and known[0] > self._clock.monotonic():
            return known[1]
        changes, started = self._changes, self._clock.monotonic()
        choice = await self._read(workspace_id, user_id, name)
        # A change during the reading stops what was read from being remembered after it.
        if changes == self._changes:
            self._known[key] = (started + CACHE_SECONDS, choice)
            self._known.move_to_end(key)
            self._keys[workspace_id].add(key)
            if len(self._known) > _CACHE_ENTRIES:
                oldest, _ = self._known.popitem(last=False)
                self._keys[oldest[0]].discard(oldest)
        return choice

    def notice(self, connection: Connection) -> None:
        """Something has become of a connection: of its workspace nothing is remembered."""
        self.forget(connection.workspace_id)

    def forget(self, workspace_id: str) -> None:
        """Drops what is remembered of a workspace."""
        self._changes += 1
        for key in self._keys.pop(workspace_id, ()):
            self._known.pop(key, None)

    async def _read(self, workspace_id: str, user_id: str, name: str) -> Choice:
        connection = _pick(await self._connections.connections_for(workspace_id, user_id, name), user_id, name)
        if connection.integration_id is None:
            return Choice(connection, None, self._catalog.get(connection.provider))
        integration = await self._integrations.get_integration(workspace_id, connection.integration_id)
        if integration is None:
            raise connection_not_found()
        if integration.state is IntegrationState.DISABLED:
            raise integration_disabled(integration.name)
        provider = self._catalog.get(integration.provider)
        return Choice(
            connection, integration, None if provider is None else described(provider, integration.discovered)
        )


def _pick(found: Sequence[Connection], user_id: str, name: str) -> Connection:
    """Returns the one that is meant: the user's own before a shared one, by its name before its integration's."""
    for is_own in (True, False):
        candidates = [item for item in found if (item.user_id == user_id and user_id != "") is is_own]
        named = [item for item in candidates if item.name == name] or candidates
        if len(named) > 1:
            raise FailedPrecondition(
                f"several connections fit {name!r}: {', '.join(item.name for item in named)}",
                reason=Reason.CONNECTION_AMBIGUOUS,
            )
        if named:
            return named[0]
    raise connection_not_found()
