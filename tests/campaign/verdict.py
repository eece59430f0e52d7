"""What must be true after a campaign: of each run, of every effect, of all that is stored."""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC
from pathlib import Path

from holdfast.api.common.v1 import run_pb2
from holdfast.api.state.v1 import operator_service_pb2 as operator_pb2
from holdfast.api.state.v1.operator_service_pb2_grpc import OperatorServiceStub
from holdfast.cli.operator import operator_channel
from holdfast.runs import ENDED
from services.shared.run_budgets import Ledger, ledger_of
from tests.campaign.effects import APPROVED_FIRST, ONCE, Counted
from tests.campaign.load import Record, child_of
from tests.fakes.cluster import Cluster
from tests.suite.histories import check_history

_BEGINS = {"step_started", "attempt_started", "approval_requested", "step_in_doubt"}
_ENDS = set(ENDED)
# As services/shared/seals.py marks what it seals; in the clear a body begins with a field of a message.
_SEALED = b"\x00hf\x01"
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
    allowed = {run_pb2.RUN_STATE_SUCCEEDED}
    if record.is_cancelled or (record.parent is not None and record.may_be_stopped):
        allowed.add(run_pb2.RUN_STATE_CANCELLED)
    if record.expires_at is not None:
        allowed.add(run_pb2.RUN_STATE_EXPIRED)
    if record.is_limited:
        allowed.add(run_pb2.RUN_STATE_BUDGET_EXCEEDED)
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
        if step not in asked and not record.may_be_stopped:
            yield Violation(f"step {step}, attempt {attempt}, is in doubt and nobody was asked", record.run_id)


def pause_violations(record: Record, counted: Counted) -> Iterator[Violation]:
    """Whether a run rested while it was paused, and each pause and resume that was acknowledged is in its journal.

    What was begun before a pause may end in it: what a worker was given, and what arrives from outside.
    """
    is_asked = is_paused = is_ending = False
    began: dict[str, int] = {}
    written = {"pause_requested": 0, "resume_requested": 0}
    for event in record.events:
        if is_paused and event.epoch:
            yield Violation(f"event {event.seq} is of a driver, and the run is paused", record.run_id)
        for change in event.changes:
            kind = change.WhichOneof("kind") or ""
            if kind in written:
                written[kind] += 1
                is_asked = kind == "pause_requested"
                is_paused = is_paused and is_asked
            elif kind in ("cancel_requested", "expiry_reached"):
                # Its end goes first: it may have to be driven for that.
                is_ending, is_paused = True, False
            elif kind in _BEGINS and is_asked and not is_ending:
                yield Violation(f"event {event.seq} has {kind}, and the run is to rest", record.run_id)
            elif kind == "run_state_changed" and change.run_state_changed.state == run_pb2.RUN_STATE_PAUSED:
                if not is_asked:
                    yield Violation(f"event {event.seq} pauses it, and nobody asked for that", record.run_id)
                is_paused = True
            if kind == "step_started":
                began[change.step_started.tool.idempotency_key] = event.seq
    for what, acknowledged in (("pause_requested", len(record.pauses)), ("resume_requested", record.resumes)):
        if written[what] < acknowledged or (what == "pause_requested" and written[what] > acknowledged):
            yield Violation(f"{acknowledged} times {what} was acknowledged, {written[what]} are there", record.run_id)
    for rest in record.pauses:
        for key, arrived in counted.arrivals.get(record.run_id, ()):
            is_within = rest.began is not None and rest.began < arrived < (rest.ended or arrived)
            if is_within and began.get(key, 0) > rest.seq:
                yield Violation(f"{counted.tool_of[key]} was begun and called while it was paused", record.run_id)


def expiry_violations(record: Record) -> Iterator[Violation]:
    """Whether a run's time was over when it was ended for that, and nothing was begun behind it."""
    reached: run_pb2.Event | None = None
    for event in record.events:
        states = {change.run_state_changed.state for change in event.changes if change.HasField("run_state_changed")}
        kinds = {change.WhichOneof("kind") for change in event.changes}
        if "expiry_reached" in kinds:
            if reached is not None:
                yield Violation(f"event {event.seq}: its time is over for the second time", record.run_id)
            reached = event
            if record.expires_at is None or event.time.ToDatetime(tzinfo=UTC) < record.expires_at:
                yield Violation(f"event {event.seq}: its time is over too early", record.run_id)
        # With its end, calls that have no step get one.
        if reached is not None and not states & _ENDS and kinds & _BEGINS:
            yield Violation(f"event {event.seq} begins something, and its time is over", record.run_id)
        if states & _ENDS:
            if run_pb2.RUN_STATE_EXPIRED in states and reached is None:
                yield Violation("it is EXPIRED without a word of its time", record.run_id)
            if reached is not None and run_pb2.RUN_STATE_EXPIRED not in states:
                yield Violation("its time was over, and it ended as something else", record.run_id)


def approval_violations(record: Record, counted: Counted) -> Iterator[Violation]:
    """Whether each call that needs approval was made only with it, with the arguments that were approved."""
    approved: set[str] = set()
    asked: dict[int, str] = {}
    for event in record.events:
        for change in event.changes:
            if change.HasField("step_started") and change.step_started.tool.tool in APPROVED_FIRST:
                intent = change.step_started.tool
                asked[change.step_started.step] = intent.idempotency_key
                if intent.approval_id:
                    approved.add(intent.idempotency_key)
            elif change.HasField("approval_decided") and change.approval_decided.step in asked:
                decided = change.approval_decided
                if decided.verdict == run_pb2.APPROVAL_VERDICT_APPROVED:
                    approved.add(decided.idempotency_key or asked[decided.step])
    for key, arrivals in counted.calls.items():
        is_its = counted.run_of[key] == record.run_id and counted.tool_of[key] in APPROVED_FIRST
        if is_its and arrivals and key not in approved:
            yield Violation(
                f"{counted.tool_of[key]} was called with the key {key}, and nobody approved it", record.run_id
            )


def child_violations(records: Sequence[Record], children: Sequence[Record]) -> Iterator[Violation]:
    """Whether each run that another one started has ended, and that was told of this once, and as it is.

    A run that has ended itself is told nothing more.
    """
    ends = {child.run_id: _state_at_end(child.events) for child in children}
    known: set[str] = set()
    for record in records:
        started: set[str] = set()
        told: Counter[str] = Counter()
        for event in record.events:
            for change in event.changes:
                if run_id := child_of(change):
                    started.add(run_id)
                if change.HasField("child_ended"):
                    ended = change.child_ended
                    told[ended.child_run_id] += 1
                    if ended.child_run_id not in started or ended.state != ends.get(ended.child_run_id):
                        yield Violation(f"what it was told of {ended.child_run_id} is not so", record.run_id)
        for run_id in started:
            if told[run_id] > 1 or (not told[run_id] and not record.may_be_stopped and not record.is_limited):
                yield Violation(f"it was told {told[run_id]} times that {run_id} has ended", record.run_id)
        known |= started
    for run_id in ends.keys() - known:
        yield Violation("nobody started it", run_id)


def _state_at_end(events: Sequence[run_pb2.Event]) -> run_pb2.RunState | None:
    states = [change.run_state_changed.state for event in events for change in event.changes]
    return next((state for state in states if state in _ENDS), None)


def budget_violations(record: Record, counted: Counted, below: Sequence[Record] = ()) -> Iterator[Violation]:
    """Whether a run kept to its budget: in its journal at every event, and in what was really called.

    Args:
        record: The run.
        counted: What was called.
        below: The runs that it has started: what they use is its own.
    """
    ledger: Ledger | None = None
    for event in record.events:
        for change in event.changes:
            if change.HasField("run_created"):
                ledger = ledger_of(change.run_created)
            elif ledger is not None:
                ledger.take(change.WhichOneof("kind") or "", change)
        for line in ledger.lines() if ledger is not None and not _is_end(event) else ():
            if line.left < 0:
                yield Violation(f"event {event.seq}: {line.limit} is exceeded by {-line.left}", record.run_id)
    if ledger is None:
        if record.is_limited:
            yield Violation("it was given a budget, and its journal has none", record.run_id)
        return
    tree = {record.run_id, *(child.run_id for child in below)}
    called = sum(run_id in tree for run_id in counted.run_of.values())
    if called > ledger.limits.get("max_tool_calls", called):
        yield Violation(f"it made {called} calls of tools, more than its budget has", record.run_id)


def _is_end(event: run_pb2.Event) -> bool:
    # Its calls that come to nothing begin and end in it: until it is read whole, they look as if they were made.
    return any(change.run_state_changed.state in _ENDS for change in event.changes)


def effect_violations(records: Sequence[Record], counted: Counted) -> Iterator[Violation]:
    """Effects that no journal knows: something was done before its intent was stored."""
    known = {
        # With arguments that a person edited, a call has another key.
        change.step_started.tool.idempotency_key or change.approval_decided.idempotency_key
        for record in records
        for event in record.events
        for change in event.changes
    }
    for key in counted.calls.keys() - known:
        yield Violation(f"{counted.tool_of[key]} was called with the key {key} of no step", counted.run_of[key])


@dataclass(frozen=True, slots=True)
class StoredEvent:
    """An event as it lies in the database.

    Attributes:
        run_id: The run.
        seq: Its number.
        is_sealed: Whether its body is sealed.
    """

    run_id: str
    seq: int
    is_sealed: bool


def stored_events(data: Path, cluster: Cluster | None) -> Iterator[StoredEvent]:
    """All events.

    Args:
        data: The suite's folder.
        cluster: Its PostgreSQL, if it has one.
    """
    if cluster is not None:
        rows = cluster.execute("SELECT run_id, seq, body FROM state.journal", database="campaign")
    else:
        with closing(sqlite3.connect(f"file:{data / 'state.db'}?mode=ro", uri=True)) as connection:
            rows = connection.execute("SELECT run_id, seq, body FROM journal").fetchall()
    for run_id, seq, body in rows:
        yield StoredEvent(str(run_id), seq, body.startswith(_SEALED))


def seal_violations(stored: Iterable[StoredEvent], *, seals: bool) -> list[Violation]:
    """Whether every event is stored as it is to be: none was written in the clear because its key was not at hand.

    Args:
        stored: All events.
        seals: Whether payloads are sealed.
    """
    how = "in the clear" if seals else "sealed"
    return [
        Violation(f"event {event.seq} is stored {how}", event.run_id)
        for event in stored
        if event.is_sealed is not seals
    ]
