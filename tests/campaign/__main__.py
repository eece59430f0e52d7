"""`python -m tests.campaign`: one campaign, or many, by hand. Exit code 1 when something was found."""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
from collections.abc import Sequence

from tests.campaign.campaign import SEALINGS, Plan, run_campaign


def plan_of(arguments: Sequence[str]) -> tuple[Plan, bool]:
    """The campaign that is asked for, and whether only its result is to be printed."""
    parser = argparse.ArgumentParser(prog="python -m tests.campaign", description=__doc__)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1_000_000))
    parser.add_argument("--faults", type=int, default=500)
    parser.add_argument("--runs", type=int, default=300, help="at least so many; more when the faults take longer")
    parser.add_argument("--window", type=int, default=40, help="runs that are under way at once")
    parser.add_argument("--database", choices=("postgresql", "sqlite"), default="postgresql")
    parser.add_argument("--executors", type=int, default=2)
    parser.add_argument("--states", type=int, default=2, help="one with sqlite")
    parser.add_argument("--longest-pause", type=float, default=8.0, help="no process is stopped for longer, in seconds")
    parser.add_argument(
        "--seal",
        dest="seals",
        choices=SEALINGS,
        default="never",
        help="whether what state stores is sealed; `switching` lets the workspace choose anew all the time",
    )
    parser.add_argument("--only", dest="kinds", action="append", default=[], help="faults of this kind; several times")
    parser.add_argument("--quiet", action="store_true", help="print the result only")
    given = vars(parser.parse_args(arguments))
    is_quiet: bool = given.pop("quiet")
    return Plan(**{**given, "kinds": tuple(given["kinds"])}), is_quiet


def main() -> int:
    """Runs the campaign of the arguments."""
    plan, is_quiet = plan_of(sys.argv[1:])

    def say(line: str) -> None:
        if not is_quiet:
            print(line, flush=True)

    say(f"seed {plan.seed}")
    outcome = asyncio.run(run_campaign(plan, say=say))
    print(outcome.report(), flush=True)
    return 1 if outcome.violations else 0


if __name__ == "__main__":
    sys.exit(main())
