"""Which faults happen, in which order: the same seed gives the same list."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Final

KILL_EXECUTOR: Final = "kill executor"
DRAIN_EXECUTOR: Final = "drain executor"
PAUSE_EXECUTOR: Final = "pause executor"
CRASH_EXECUTOR: Final = "crash executor at"
KILL_STATE: Final = "kill state"
PAUSE_STATE: Final = "pause state"
CRASH_STATE: Final = "crash state at"
KILL_WORKER: Final = "kill worker"
PAUSE_WORKER: Final = "pause worker"
KILL_TRACE: Final = "kill trace"
KILL_AUTH: Final = "kill auth"
CUT_CONNECTIONS: Final = "cut connections to state"
LOSE_ANSWERS: Final = "lose state's answers"
RESTART_POSTGRES: Final = "crash PostgreSQL"

# How often each comes beside the others.
_WEIGHTS: Final = {
    KILL_EXECUTOR: 6,
    DRAIN_EXECUTOR: 2,
    PAUSE_EXECUTOR: 5,
    CRASH_EXECUTOR: 6,
    KILL_STATE: 4,
    PAUSE_STATE: 3,
    CRASH_STATE: 5,
    KILL_WORKER: 4,
    PAUSE_WORKER: 2,
    KILL_TRACE: 1,
    KILL_AUTH: 2,
    CUT_CONNECTIONS: 8,
    LOSE_ANSWERS: 8,
    RESTART_POSTGRES: 3,
}
_EXECUTOR_POINTS: Final = ("before_commit", "after_commit", "after_intent", "after_call")
# With how often they are passed within seconds.
_STATE_POINTS: Final = {"before_commit": 30, "after_commit": 30, "outside.after_commit": 4, "expiry.after_commit": 1}
# A lease lasts 5 s: some pauses end before that, some behind it.
_SHORT_PAUSE: Final = (0.2, 3.0)
_LONG_PAUSE: Final = (5.5, 8.0)


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault.

    Attributes:
        number: Its place in the schedule, from 1.
        kind: What happens.
        target: To which process of its kind, counted from 0.
        gap: Seconds after the fault before.
        seconds: How long it lasts.
        point: The crash point, with its visits.
    """

    number: int
    kind: str
    target: int
    gap: float
    seconds: float
    point: str = ""

    def __str__(self) -> str:
        point = f" {self.point}" if self.point else ""
        return f"#{self.number} +{self.gap:.2f} s: {self.kind}{point} [{self.target}] for {self.seconds:.2f} s"


def plan(
    seed: int, count: int, *, executors: int, states: int, workers: int, has_postgres: bool, longest_pause: float = 8.0
) -> list[Fault]:
    """Returns the faults of a campaign.

    Args:
        seed: Decides everything.
        count: How many.
        executors: How many processes of each kind there are.
        states: As above.
        workers: As above.
        has_postgres: Whether there is a server to crash.
        longest_pause: No process is stopped for longer.
    """
    chance = random.Random(f"faults {seed}")
    kinds = [kind for kind in _WEIGHTS if has_postgres or kind != RESTART_POSTGRES]
    weights = [_WEIGHTS[kind] for kind in kinds]
    faults = []
    for number in range(1, count + 1):
        (kind,) = chance.choices(kinds, weights)
        targets = executors if "executor" in kind else workers if "worker" in kind else states
        gap, seconds, point = chance.uniform(0.05, 0.8), chance.uniform(0.0, 1.0), ""
        if kind in (PAUSE_EXECUTOR, PAUSE_WORKER, PAUSE_STATE):
            low, high = _LONG_PAUSE if chance.random() < 0.3 and kind != PAUSE_STATE else _SHORT_PAUSE
            seconds = min(chance.uniform(low, high), longest_pause)
        elif kind == CRASH_EXECUTOR:
            point = f"executor.{chance.choice(_EXECUTOR_POINTS)}:{chance.randint(1, 12)}"
        elif kind == CRASH_STATE:
            name = chance.choice(list(_STATE_POINTS))
            point = f"state.{name}:{chance.randint(1, _STATE_POINTS[name])}"
        elif kind == LOSE_ANSWERS:
            seconds = chance.uniform(0.02, 0.5)
        faults.append(Fault(number, kind, chance.randrange(targets), gap, seconds, point))
    return faults
