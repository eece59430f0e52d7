"""Which workspaces have their payloads sealed, as far as this process knows: each chooses, and the installation for it.

Writers look into memory only. A workspace that is met is asked about before anything of it is written; those in use
are asked about again every few seconds, and one that nobody uses is forgotten. A change needs no agreement between
processes, as each stored payload says whether it is sealed.

Invariant: while those who know are away, a workspace that was ever sealed goes on being sealed, and one that never was
does not wait.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Final, Protocol

from holdfast.errors import HoldfastError
from services.shared.telemetry import get_logger

MOST_AT_ONCE: Final = 500
"""How many workspaces are asked about in one call."""

log = get_logger(__name__)


class ChoiceSource(Protocol):
    """Knows what workspaces have chosen."""

    async def choices(self, workspace_ids: Sequence[str]) -> list[bool | None]:
        """Returns the choices of at most `MOST_AT_ONCE` workspaces, in their order; None for the installation's.

        Raises:
            HoldfastError: They cannot be asked for.
        """

    async def has_key(self, workspace_id: str) -> bool:
        """Tells whether anything of the workspace may ever have been sealed; known to this service itself.

        Raises:
            HoldfastError: The storage is away.
        """


class SealChoices:
    """Remembers choices.

    Args:
        source: Where they come from.
        default: What holds for workspaces that have chosen nothing.
    """

    def __init__(self, source: ChoiceSource, *, default: bool) -> None:
        self._source = source
        self._default = default
        self._known: dict[str, bool] = {}
        self._used: set[str] = set()
        self._is_away = False

    @property
    def is_away(self) -> bool:
        """Whether the source could not be asked when it was needed last: changes of choices are not followed."""
        return self._is_away

    def of(self, workspace_id: str) -> bool | None:
        """Tells whether payloads of a workspace are sealed; None when it is to be asked about first."""
        found = self._known.get(workspace_id)
        if found is not None:
            self._used.add(workspace_id)
        return found

    def settle(self, workspace_id: str, is_sealed: bool) -> None:
        """Remembers a choice until it is asked for again."""
        self._known[workspace_id] = is_sealed
        self._used.add(workspace_id)

    async def ask(self, workspace_id: str) -> bool:
        """Returns the choice of a workspace that is met for the first time, and does not remember it yet.

        Raises:
            HoldfastError: Neither the source nor the storage can tell.
        """
        if not self._is_away:
            try:
                (choice,) = await self._source.choices([workspace_id])
                return self._default if choice is None else choice
            except HoldfastError as error:
                self._went_away(error)
        # Not asked for every workspace anew: the next to ask is `refresh`.
        return self._default or await self._source.has_key(workspace_id)

    async def refresh(self, turn_on: Callable[[str], Awaitable[None]]) -> None:
        """Asks about the workspaces in use.

        Args:
            turn_on: Makes what sealing a workspace needs ready; while it fails, the workspace stays as it was, so
                that nobody who is being served has to wait for a key.
        """
        for workspace_id in self._known.keys() - self._used:
            del self._known[workspace_id]
        self._used.clear()
        asked = list(self._known)
        if not (asked or self._is_away):
            return
        try:
            # While they are away also about nobody, so that the next workspace that is met is asked about again.
            for at in range(0, len(asked) or 1, MOST_AT_ONCE):
                batch = asked[at : at + MOST_AT_ONCE]
                for workspace_id, choice in zip(batch, await self._source.choices(batch), strict=True):
                    await self._follow(workspace_id, self._default if choice is None else choice, turn_on)
        except HoldfastError as error:
            self._went_away(error)
            return
        if self._is_away:
            self._is_away = False
            log.info("sealing_choices_known_again")

    async def _follow(self, workspace_id: str, is_sealed: bool, turn_on: Callable[[str], Awaitable[None]]) -> None:
        was = self._known[workspace_id]
        if was == is_sealed:
            return
        if is_sealed:
            try:
                await turn_on(workspace_id)
            except HoldfastError as error:
                log.warning("sealing_not_turned_on", workspace_id=workspace_id, reason=error.reason)
                return
            except Exception as error:
                # One workspace's damaged key is not the trouble of the others.
                log.error("sealing_not_turned_on", workspace_id=workspace_id, exc_info=error)
                return
        self._known[workspace_id] = is_sealed
        log.info("sealing_changed", workspace_id=workspace_id, is_sealed=is_sealed)

    def _went_away(self, error: HoldfastError) -> None:
        if not self._is_away:
            self._is_away = True
            log.warning("sealing_choices_not_known", reason=error.reason, detail=error.message)
