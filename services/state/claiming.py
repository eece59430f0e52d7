"""Claims of one process: one at a time, spread over the executors that are connected here, and none without a reason.

A claim that leaves nothing to claim is remembered: until the hub tells that runs became ready, nobody claims again,
however many executors have free slots.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Final

from services.shared.database import Database
from services.state import claims
from services.state.hub import Hub
from services.state.turns import BEGINNING, Position

MAX_CLAIMS_AT_ONCE: Final = 100

MAX_CLAIMS_BESIDE_OTHERS: Final = 16
"""While several executors have free slots, each gets so many at a time."""

BUSY_SECONDS: Final = 0.02
"""When a claim is tried again that another replica's stood in the way of."""


class Claiming:
    """Whose turn it is, and whether there is anything to claim.

    Args:
        db: Where the runs are.
        hub: Tells of runs that became ready.
        draw: Gives random numbers from 0 to 1.
    """

    def __init__(self, db: Database, hub: Hub, *, draw: Callable[[], float] = random.random) -> None:
        self._db = db
        self._hub = hub
        self._draw = draw
        # Claims go one after the other: two at once would only lock each other's rows.
        self._turn = asyncio.Lock()
        self._position: Position = BEGINNING
        # How many hints had been given when the last claim left nothing; None when there may be something.
        self._exhausted_at: int | None = None
        self._has_limits = False
        self._free: dict[str, int] = {}

    @property
    def is_exhausted(self) -> bool:
        """Whether nothing has become ready since a claim left nothing."""
        return self._exhausted_at == self._hub.ready_hints

    def set_free_slots(self, stream_id: str, free_slots: int) -> None:
        """An executor has so many free slots now."""
        before = self._free.get(stream_id, 0)
        if free_slots > 0:
            self._free[stream_id] = free_slots
        else:
            self._free.pop(stream_id, None)
        if free_slots > before and self._has_limits:
            # A run that has ended here may have made room in a workspace with a limit: nothing else tells of that.
            self._exhausted_at = None

    async def claim(self, executor_id: str, stream_id: str) -> claims.Claimed | None:
        """Claims for an executor, at most its free slots; no rows when there is nothing to claim.

        Returns:
            None when the stream does not speak for the executor (any more).

        Raises:
            HoldfastError: Nobody knows what was claimed.
        """
        async with self._turn:
            free = self._free.get(stream_id, 0)
            if free == 0 or self.is_exhausted:
                return claims.Claimed([], self._position, True)
            limit = min(free, MAX_CLAIMS_AT_ONCE if len(self._free) == 1 else MAX_CLAIMS_BESIDE_OTHERS)
            hints = self._hub.ready_hints
            claimed = await self._db.write_by_keys(
                claims.claim, self._db, executor_id, stream_id, limit, self._position, self._draw()
            )
            if claimed is None:
                return None
            self._position, self._has_limits = claimed.position, claimed.has_limits
            if claimed.was_busy or not (claimed.rows or claimed.is_exhausted):
                # Others claim there now, or nobody has room far and wide: not at once again.
                self._exhausted_at = hints
                asyncio.get_running_loop().call_later(BUSY_SECONDS, self._hub.runs_seen_ready)
            elif claimed.is_exhausted:
                # What became ready during the claim may have been missed: then there is a newer hint.
                self._exhausted_at = hints
            # Not from the number before: the executor may have told another one since.
            self.set_free_slots(stream_id, self._free.get(stream_id, 0) - len(claimed.rows))
            return claimed
