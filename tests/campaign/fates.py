"""What happens to each run from outside: the same seed gives the same, whenever it is started."""

from __future__ import annotations

import random
from dataclasses import dataclass

# Of runs.
_CANCELLED = 0.04
_PAUSED = 0.2
_EXPIRING = 0.1
_LIMITED = 0.15
# Of those that are paused.
_PAUSED_TWICE = 0.3
# Of those whose time is short: so many rest, or are to rest, when it is over.
_PAUSED_BEYOND_ITS_TIME = 0.4
# Of those that are limited: so many in their calls of the model, the others in those of tools.
_LIMITED_IN_MODEL_CALLS = 0.3
# A run may be given no less.
_SHORTEST_TTL, _LONGEST_TTL = 1.0, 3.0


@dataclass(frozen=True, slots=True)
class Pause:
    """One pause.

    Attributes:
        after: Seconds after the start, or after the pause before.
        seconds: How long until the run is resumed.
    """

    after: float
    seconds: float


@dataclass(frozen=True, slots=True)
class Fate:
    """What is done to a run.

    Attributes:
        cancelled_after: Seconds after its start; None where nobody cancels it.
        pauses: When it is paused.
        ttl: Seconds that it is given; None for as many as it takes.
        max_model_calls: How many it is given; 0 for as many as it takes.
        max_tool_calls: The same of calls of tools.
    """

    cancelled_after: float | None = None
    pauses: tuple[Pause, ...] = ()
    ttl: float | None = None
    max_model_calls: int = 0
    max_tool_calls: int = 0

    @property
    def is_limited(self) -> bool:
        """Whether it is given a budget."""
        return bool(self.max_model_calls or self.max_tool_calls)

    @property
    def must_expire(self) -> bool:
        """Whether it is asked to rest from its first moment until its time is over."""
        pause = self.pauses[0] if self.pauses else None
        return self.ttl is not None and pause is not None and not pause.after and pause.seconds > self.ttl


def fate_of(seed: int, number: int) -> Fate:
    """The fate of one run of a campaign."""
    chance = random.Random(f"fate {seed} {number}")
    cancelled_after = chance.uniform(0.0, 2.0) if chance.random() < _CANCELLED else None
    pauses: tuple[Pause, ...] = ()
    if chance.random() < _PAUSED:
        pauses = tuple(_pause(chance) for _ in range(2 if chance.random() < _PAUSED_TWICE else 1))
    ttl = chance.uniform(_SHORTEST_TTL, _LONGEST_TTL) if chance.random() < _EXPIRING else None
    if ttl is not None and chance.random() < _PAUSED_BEYOND_ITS_TIME:
        pauses = (Pause(0.0, ttl + 1.0),)
    model_calls = tool_calls = 0
    if chance.random() < _LIMITED:
        if chance.random() < _LIMITED_IN_MODEL_CALLS:
            model_calls = chance.randint(1, 3)
        else:
            tool_calls = chance.randint(1, 4)
    return Fate(cancelled_after, pauses, ttl, model_calls, tool_calls)


def _pause(chance: random.Random) -> Pause:
    # As it begins, while it is at its work, or when it may be over. Some are resumed before their drivers know.
    after = chance.choice((0.0, chance.uniform(0.0, 1.0), chance.uniform(0.0, 3.0)))
    return Pause(after, chance.choice((0.0, chance.uniform(0.0, 1.0), chance.uniform(1.0, 4.0))))
