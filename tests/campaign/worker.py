"""The users' process of the campaign: two tools whose effects are counted where nothing kills the counter.

`python -m tests.campaign.worker URL`, with the suite in HOLDFAST_ADDRESS and HOLDFAST_API_KEY.
"""

from __future__ import annotations

import ctypes
import signal
import sys
import urllib.request
from typing import Any

from holdfast import Worker, tool
from holdfast.tool import ToolContext


def tools(url: str) -> list[Any]:
    """The tools, which count at `url`."""

    def count(name: str, context: ToolContext) -> None:
        request = urllib.request.Request(
            f"{url}/{name}",
            data=b"{}",
            headers={"Idempotency-Key": context.idempotency_key, "X-Holdfast-Run-Id": context.run_id},
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            answer.read()

    @tool(timeout=30)
    def pack(context: ToolContext, box: int) -> str:
        """Packs a box; twice would be two boxes."""
        count("pack", context)
        return f"packed {box}"

    @tool(effect="idempotent", timeout=30)
    def label(context: ToolContext, box: int) -> str:
        """Labels a box; the same label again changes nothing."""
        count("label", context)
        return f"labelled {box}"

    return [pack, label]


def main() -> None:
    """Serves until it is ended, at the latest with the campaign."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, int(signal.SIGKILL), 0, 0, 0)
    Worker(tools(sys.argv[1]), slots=16).run_forever()


if __name__ == "__main__":
    main()
