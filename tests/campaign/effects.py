"""What the campaign's tools did, counted where no fault reaches: calls by idempotency key."""

from __future__ import annotations

import asyncio
import random
from collections import Counter

from tests.suite.effects import Answer, HttpCall, HttpEffects

TOOLS = ("look", "put", "pay", "wire", "pack", "label")
ONCE = ("pay", "wire", "pack")
"""Of these a second call would be a second effect."""
APPROVED_FIRST = ("wire",)
"""Of these each call needs a person's yes."""


class Counted:
    """Counts the calls that arrive at an endpoint.

    Args:
        http: The endpoint.
        chance: Decides how long each answer takes.
    """

    def __init__(self, http: HttpEffects, chance: random.Random) -> None:
        self._chance = chance
        self.calls: Counter[str] = Counter()
        self.tool_of: dict[str, str] = {}
        self.run_of: dict[str, str] = {}
        self.arrivals: dict[str, list[tuple[str, float]]] = {}
        """By run: keys, and when their calls arrived by the loop's clock."""
        for tool in TOOLS:
            http.on(f"/{tool}", self._answer)

    async def _answer(self, made: HttpCall) -> Answer:
        tool = made.path.removeprefix("/")
        # The effect happens on arrival, whether or not anybody hears the answer.
        self.calls[made.key] += 1
        self.tool_of[made.key], self.run_of[made.key] = tool, made.run_id
        self.arrivals.setdefault(made.run_id, []).append((made.key, asyncio.get_running_loop().time()))
        await asyncio.sleep(self._chance.choice((0.0, 0.0, 0.01, 0.05, 0.2)))
        return Answer(f"{tool} done")
