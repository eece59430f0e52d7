"""What must be true after a campaign: of each run, of every effect, of all that is stored."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from holdfast.api.common.v1 import run_pb2
from holdfast.api.state.v1 import operator_service_pb2 as operator_pb2
from holdfast.api.state.v1.operator_service_pb2_grpc import OperatorServiceStub
from holdfast.cli.operator import operator_channel
from tests.campaign.effects import ONCE, Counted
from tests.campaign.load import Record
from tests.suite.histories import check_history

# While faults happen these may be late, for as long as nobody sweeps.
_SWEEPING = {"leases_are_swept", "timers_have_fired", "lifetimes_are_swept", "calls_are_swept"}


@dataclass(frozen=True, slots=True)
class Violation:
    """Something that must not be.

    Attributes:
        what: What it is.
        run_id: The run concerned; empty when it is no single one.
    """

    what: str
    run_id: str = ""


async def stored_violations(data: Path, *, under_faults: bool = False) -> list[Violation]:
    """What `holdfast doctor` finds.

    Args:
        data: The suite's folder.
        under_faults: Nobody may have swept for a while.
    """
    found: list[Violation] = []
    async with operator_channel(data) as channel:
        request = operator_pb2.CheckInvariantsRequest(all_journals=True)
        async for response in OperatorServiceStub(channel).CheckInvariants(request, timeout=300):
            result = response.result
            if result.violations and not (under_faults and result.name in _SWEEPING):
                found.extend(Violation(f"{result.name}: {text}", _run_in(text)) for text in result.examples)
    return found


def _run_in(example: str) -> str:
    words = example.split()
    return words[1].rstrip(":") if words[:1] == ["run"] else ""


def run_violations(record: Record, counted: Counted) -> Iterator[Violation]:
    """What is wrong with a run that has ended, as its watcher saw it, and with its effects."""
    for problem in record.problems:
        yield Violation(problem, record.run_id)
    try:
        view = check_history(record.events)
    except AssertionError as error:
        yield Violation(f"its journal: {error}", record.run_id)
        return
    allowed = {run_pb2.RUN_STATE_SUCCEEDED, *([run_pb2.RUN_STATE_CANCELLED] if record.is_cancelled else [])}
    if view.state not in allowed:
        yield Violation(f"it ended as {run_pb2.RunState.Name(view.state)}", record.run_id)
    for step in view.steps.values():
        if step.tool is None or step.tool.tool_kind not in ("http", "worker"):
            continue
        calls = counted.calls[step.tool.idempotency_key]
        where = f"step {step.number}, {step.tool.tool}"
        if step.tool.tool in ONCE and calls > 1:
            yield Violation(f"{where}: its effect happened {calls} times", record.run_id)
        if step.state == run_pb2.STEP_STATE_SUCCEEDED and not calls:
            yield Violation(f"{where}: it succeeded and its effect never happened", record.run_id)


def doubt_violations(record: Record) -> Iterator[Violation]:
    """Whether everything that was in doubt was asked about, and what was asked was decided before it was gone on."""
    in_doubt: set[tuple[int, int]] = set()
    asked: set[int] = set()
    for event in record.events:
        for change in event.changes:
            kind = change.WhichOneof("kind")
            if kind == "step_in_doubt":
                in_doubt.add((change.step_in_doubt.step, change.step_in_doubt.attempt))
            elif kind == "approval_requested":
                asked.add(change.approval_requested.approval.step)
    for step, attempt in sorted(in_doubt):
        if step not in asked and not record.is_cancelled:
            yield Violation(f"step {step}, attempt {attempt}, is in doubt and nobody was asked", record.run_id)


def effect_violations(records: Sequence[Record], counted: Counted) -> Iterator[Violation]:
    """Effects that no journal knows: something was done before its intent was stored."""
    known = {
        change.step_started.tool.idempotency_key
        for record in records
        for event in record.events
        for change in event.changes
        if change.HasField("step_started")
    }
    for key in counted.calls.keys() - known:
        yield Violation(f"{counted.tool_of[key]} was called with the key {key} of no step", counted.run_of[key])
