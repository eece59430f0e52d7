"""Whose turn it is: weighted round robin between workspaces, and lanes inside one. Pure: rows and time are elsewhere.

In each round every workspace with ready runs gets as many claims as its weight says, one workspace after the other in
the order of their ids. Where the round stands is only a hint that each process keeps for itself: whatever it is, no
limit is exceeded and nobody is passed over for longer than a round.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final
from uuid import UUID

CHILD, INTERACTIVE, BATCH = 1, 2, 3

BATCH_SHARE: Final = 0.1
"""Of a workspace's claims, the part that goes to batch runs although others are ready, on average."""

_NIL: Final = str(UUID(int=0))


@dataclass(frozen=True, slots=True)
class Position:
    """Where the round stands.

    Attributes:
        workspace_id: Who had the last claim.
        used: How many claims of its turn that workspace has had; 0 when its turn is over.
    """

    workspace_id: str = _NIL
    used: int = 0

    @property
    def after(self) -> str:
        """The id after which the next workspace is looked for: that workspace itself while its turn goes on."""
        if self.used == 0 or self.workspace_id == _NIL:
            return self.workspace_id
        return str(UUID(int=UUID(self.workspace_id).int - 1))


BEGINNING: Final = Position()


@dataclass(frozen=True, slots=True)
class Tenant:
    """A workspace with ready runs.

    Attributes:
        workspace_id: The workspace.
        weight: How many claims a turn of it has.
        room: How many more of its runs may be driven; None is any number.
        first_lane: The first lane in which a run is ready.
        last_lane: The last one.
    """

    workspace_id: str
    weight: int = 1
    room: int | None = None
    first_lane: int = INTERACTIVE
    last_lane: int = INTERACTIVE


@dataclass(frozen=True, slots=True)
class Turn:
    """Claims for one workspace, from some of its lanes: in their order, and in each by the time at which a run became
    ready."""

    workspace_id: str
    first_lane: int
    last_lane: int
    quota: int


def share(tenants: Sequence[Tenant], limit: int, position: Position) -> tuple[list[int], Position]:
    """Divides claims among workspaces, which stand in the order of their turns.

    Returns:
        How many each gets, and where the round stands afterwards. What one of them cannot use is left to be divided
        again, as nobody knows yet how many runs are ready.
    """
    quotas = [0] * len(tenants)
    left = limit
    # The first goes on with a turn that it has begun.
    used = position.used if tenants and tenants[0].workspace_id == position.workspace_id else 0
    while left > 0:
        has_given = False
        for index, tenant in enumerate(tenants):
            room = left if tenant.room is None else min(left, tenant.room - quotas[index])
            given = max(0, min(room, tenant.weight - used))
            quotas[index] += given
            left -= given
            has_given |= given > 0
            if given:
                used += given
                position = Position(tenant.workspace_id, used if used < tenant.weight else 0)
            if left == 0:
                return quotas, position
            used = 0
        if not has_given:
            # Nobody has room; the next look begins behind those that were seen.
            return quotas, Position(tenants[-1].workspace_id) if tenants else position
    return quotas, position


def lanes(tenant: Tenant, quota: int, draw: float) -> list[Turn]:
    """Splits a workspace's claims, so that batch runs get their share while others are ready.

    Args:
        tenant: The workspace.
        quota: Its claims.
        draw: A random number from 0 to 1: whole claims have to stand for the share of less than one.
    """
    if quota <= 0:
        return []
    batch = int(quota * BATCH_SHARE + draw) if tenant.first_lane < BATCH <= tenant.last_lane else 0
    if batch == 0:
        return [Turn(tenant.workspace_id, CHILD, BATCH, quota)]
    turns = [Turn(tenant.workspace_id, BATCH, BATCH, batch)]
    if quota > batch:
        turns.insert(0, Turn(tenant.workspace_id, CHILD, INTERACTIVE, quota - batch))
    return turns
