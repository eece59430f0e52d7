"""The list of what must be true of everything that state keeps, and what was found of each."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta
from typing import Final

MAX_EXAMPLES: Final = 10
# The feed's sample, from its beginning.
FEED_ENTRIES: Final = 20_000
# The sweep comes several times a second; what is due for longer was overlooked.
SWEPT_WITHIN: Final = timedelta(seconds=10)
# Many timers may be due at once.
FIRED_WITHIN: Final = timedelta(seconds=60)
# A body is stored with the event that refers to it; what nothing refers to any more goes with housekeeping.
ORPHANS_KEPT: Final = timedelta(days=2)


@dataclass(frozen=True, slots=True)
class Check:
    """One invariant.

    Attributes:
        name: Stable name.
        claim: What must be true.
        advice: What it means when it is not, and what to do.
    """

    name: str
    claim: str
    advice: str


_REPORT: Final = "Keep a copy of the database and of the logs, and report it with `holdfast doctor --json`."

CHECKS: Final[tuple[Check, ...]] = (
    Check(
        "dense_sequences",
        "The events of each run are numbered 1, 2, 3, … without a gap, and its row names the last of them.",
        f"History is missing or was written twice: was the database put back in parts, or written by hand? {_REPORT}",
    ),
    Check(
        "events_have_a_run",
        "Every event, question, worker's call and reference to a body belongs to a run that is there, or is being "
        "removed.",
        f"A run was deleted by hand, or its deletion was cut short. {_REPORT}",
    ),
    Check(
        "a_way_forward",
        "Every unfinished run can go on: it is ready, driven, behind an unfinished run, waits for what may still come, "
        "or somebody asked to pause it.",
        f"These runs stay where they are for ever. `holdfast cancel RUN` ends one. {_REPORT}",
    ),
    Check(
        "one_holder",
        "A run has a holder exactly while it is RUNNING.",
        f"Two executors might drive it, or none. {_REPORT}",
    ),
    Check(
        "leases_are_swept",
        f"No lease of an executor has been over for more than {SWEPT_WITHIN.seconds} s.",
        "No state process sweeps: is one running, and does its log say sweep_failed? The runs are taken over as soon "
        "as one does.",
    ),
    Check(
        "timers_have_fired",
        f"No run waits for a time that was over {FIRED_WITHIN.seconds} s ago.",
        "No state process sweeps, or more became due at once than it wakes. They are woken as soon as it does.",
    ),
    Check(
        "lifetimes_are_swept",
        f"No unfinished run's time has been over for more than {SWEPT_WITHIN.seconds} s, unless its driver was told.",
        "No state process sweeps: is one running, and does its log say sweep_failed? They end as soon as one does.",
    ),
    Check(
        "calls_are_swept",
        f"No offer, start or sign of life of a worker's call is overdue for more than {SWEPT_WITHIN.seconds} s.",
        "No state process sweeps: is one running, and does its log say sweep_failed?",
    ),
    Check(
        "one_result_per_call",
        "Every step begins once and has at most one result, and exactly one in a run that has ended; so does every "
        "call that a model made.",
        f"Something was done twice, or a model was not told what became of its call. {_REPORT}",
    ),
    Check(
        "attempts_in_order",
        "The attempts of a step are numbered in their order, none comes after its result, and each fails at most once.",
        f"An executor went on with a step that was not its own. {_REPORT}",
    ),
    Check(
        "lease_epochs",
        "Nobody wrote under an older lease than somebody before, and no lease is announced twice.",
        f"A stale executor wrote to the journal. {_REPORT}",
    ),
    Check(
        "nothing_after_the_end",
        "A run has ended as its last event of state says, and nothing but late results follows.",
        f"A run was driven on after its end. {_REPORT}",
    ),
    Check(
        "totals_add_up",
        "Tokens, cost and steps of a run's row are the sums over its events.",
        f"What is shown and billed for these runs is wrong; their journals are right. {_REPORT}",
    ),
    Check(
        "budgets_hold",
        "Before each model call of a run with a budget the most that it can use was reserved and fitted, tools were "
        "called only while calls were left, and a run that has ended holds no reservation.",
        f"A run may have spent more than it was given. {_REPORT}",
    ),
    Check(
        "questions_are_open",
        "A question is pending only while its run is unfinished and its step has no result; every question that was "
        "asked is stored.",
        f"People are asked for nothing, or nobody is asked. {_REPORT}",
    ),
    Check(
        "approved_before_dispatch",
        "A call that needs approval is asked about as it begins, and is made only after a stored approval of exactly "
        "its arguments; one that needs none any more names the decision for its run or session.",
        f"Something was done that nobody has allowed, or not in this form. {_REPORT}",
    ),
    Check(
        "calls_are_closed",
        "A worker's call is open only while its run is unfinished and its step has no result.",
        f"Workers execute what nobody waits for. {_REPORT}",
    ),
    Check(
        "children_are_told_of",
        "A run that another one started is known there as over exactly when it is; its parent, while it is unfinished, "
        "waits for no run that is over or missing; and none goes on for long whose parent has ended.",
        "A run waits for ever, or works for nobody: is a state process running, and does its log say sweep_failed? "
        f"`holdfast cancel RUN` ends either. {_REPORT}",
    ),
    Check(
        "session_chains",
        "The runs of a session are numbered without doubles, each knows its neighbours, the session knows its last.",
        f"A conversation may be read in the wrong order, or not be gone on with. {_REPORT}",
    ),
    Check(
        "bodies_are_there",
        "Every large body that an event refers to is stored, and known to be in use.",
        "A part of a conversation or of a tool's output is lost, or housekeeping may remove it: was the database put "
        "back in parts? Runs that still need it fail when they read it.",
    ),
    Check(
        "no_orphan_bodies",
        f"No body without a reference is kept for more than {ORPHANS_KEPT.days} days.",
        "It costs space and nothing else; housekeeping removes it. If it stays, look for housekeeping in state's log.",
    ),
    Check(
        "feed_in_order",
        f"The change feed tells each event once, those of a run in their order (of its first {FEED_ENTRIES:,}).",
        f"Trace and other followers have holes or doubles. {_REPORT}",
    ),
    Check(
        "feed_goes_on",
        "Every committed event can be reached by the change feed.",
        "The events say that they are of transactions still to come, so that followers wait: the database was put back "
        "from a dump while state was running. Restart state, which lets the feed go on.",
    ),
)


@dataclass(slots=True)
class Finding:
    """What one check has found so far."""

    examined: int = 0
    violations: int = 0
    examples: list[str] = field(default_factory=list)
    incomplete_because: str = ""


class Findings:
    """What the checks have found so far, by name."""

    def __init__(self) -> None:
        self.of: dict[str, Finding] = {check.name: Finding() for check in CHECKS}

    def looked_at(self, name: str, count: int = 1) -> None:
        """More things were looked at."""
        self.of[name].examined += count

    def broken(self, name: str, example: str) -> None:
        """One of them breaks the claim."""
        finding = self.of[name]
        finding.violations += 1
        if len(finding.examples) < MAX_EXAMPLES:
            finding.examples.append(example)

    def add(self, other: Findings) -> None:
        """Takes over what another part has found."""
        for name, found in other.of.items():
            finding = self.of[name]
            finding.examined += found.examined
            finding.violations += found.violations
            finding.examples.extend(found.examples[: MAX_EXAMPLES - len(finding.examples)])
