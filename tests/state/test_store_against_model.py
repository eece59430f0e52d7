"""Random histories of old and new lease holders, workers, people and sweeps: the databases do what the model does."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from holdfast.api.common.v1 import run_pb2
from holdfast.api.state.v1 import journal_service_pb2 as journal_pb2
from holdfast.errors import HoldfastError
from holdfast.ids import new_uuid7
from services.shared.database import Database
from services.state import tables as t
from services.state.invariants import Inspection
from services.state.transitions import ALLOWED
from tests.fakes.state_store import ModelStateStore, StateStore
from tests.state.builders import (
    BUDGET_EXCEEDED,
    CANCELLED,
    EXPIRED,
    FAILED,
    PAUSED,
    RUNNING,
    WORKSPACE,
    answers,
    asks,
    becomes_paused,
    call,
    ends,
    finishes,
    late,
    new_run,
    starts,
    tool_result,
    transition,
    waits,
)
from tests.state.sql_store import SqlStateStore, empty, migrated, opened

pytest_plugins = ["tests.state.sql_fixtures"]

EXECUTORS = [new_uuid7() for _ in range(3)]
WORKERS = ["worker-1", "worker-2"]
PAST = datetime.now(UTC) - timedelta(hours=1)
FUTURE = datetime.now(UTC) + timedelta(hours=1)
# Over before anything else happens.
INSTANT = 0.000_001

Step = tuple[Any, ...]

_index = st.integers(0, 7)
_executor = st.integers(0, len(EXECUTORS) - 1)
_worker = st.integers(0, len(WORKERS) - 1)
_kind = st.sampled_from(
    ["start", "finish", "end", "fail", "exceed", "wait", "rest", "nap", "ask", "queue", "queue_hasty", "close", "again"]
)

# Which run, under which of its epochs counted from the newest, how far from the next seq, what happens.
_write = st.tuples(st.just("write"), _index, st.just(0), st.just(0), _kind)
_bad_write = st.tuples(st.just("write"), _index, st.sampled_from([0, 1]), st.sampled_from([-1, 0, 1]), _kind)
_claim = st.tuples(st.just("claim"), _executor)
_worker_acts = [
    st.tuples(st.just("offer"), _worker, st.sampled_from([False, False, False, True])),
    st.tuples(st.just("start"), _worker, _index),
    st.tuples(st.just("complete"), _worker, _index),
]
_STEPS = [
    *[_write] * 7,
    *[_claim] * 4,
    # A holder of before that writes on as if nothing had happened: the fence is all that stops it.
    *[st.tuples(st.just("usurp"), _executor, _index, _kind)] * 3,
    *[st.tuples(st.just("serve"), _worker, _index, st.sampled_from(["report", "silence", "cancel"]))] * 3,
    *_worker_acts * 2,
    _bad_write,
    st.tuples(st.just("create"), st.sampled_from(["alone", "session", "reject", "again"]), _index),
    *[st.tuples(st.just("create"), st.sampled_from(["mortal", "mortal_session"]), _index)] * 2,
    st.tuples(st.just("lose"), _executor),
    st.tuples(st.just("leave"), _executor),
    st.tuples(st.just("give_back"), _executor, _index),
    st.tuples(st.just("sweep")),
    st.tuples(st.just("cancel"), _index),
    st.tuples(st.just("pause"), _index),
    st.tuples(st.just("resume"), _index),
    *[st.tuples(st.just("shelve"), _executor, _index, st.sampled_from(["ask", "nap", "queue"]))] * 2,
    *[st.tuples(st.just("drive"), _executor, _index, st.sampled_from(["end", "fail", "wait", "rest"]))] * 2,
    st.tuples(st.just("withdraw"), _index),
    st.tuples(st.just("decide"), _index, st.sampled_from(['"yes"', '"no"'])),
    st.tuples(st.just("beat"), _worker, _index),
    st.tuples(st.just("return"), _worker, _index),
]
# Without a beginning, most histories would be over before a run is driven.
_BEGINNING: list[Step] = [
    ("create", "alone", 0),
    ("create", "session", 0),
    ("create", "alone", 1),
    ("claim", 0),
    # Those that never begin, and those whose time is over while they rest or are driven: rare, and all different.
    ("create", "session", 0),
    ("pause", 3),
    ("resume", 3),
    ("pause", 3),
    ("cancel", 3),
    ("create", "mortal", 0),
    ("create", "mortal", 0),
    ("create", "alone", 2),
    ("create", "session", 0),
    ("cancel", 7),
    ("claim", 0),
    ("write", 6, 0, 0, "expire"),
    ("create", "alone", 3),
    ("claim", 0),
    ("write", 8, 0, 0, "exceed"),
    ("write", 4, 0, 0, "ask"),
    ("write", 5, 0, 0, "ask"),
    ("pause", 4),
    ("sweep",),
]
HISTORY = st.lists(st.integers(0, len(_STEPS) - 1).flatmap(_STEPS.__getitem__), min_size=10, max_size=60).map(
    lambda steps: [*_BEGINNING, *steps]
)


@dataclass
class History:
    """What happened so far, in the words of the test: both stores are told the same."""

    created: list[journal_pb2.NewRun] = field(default_factory=list)
    epochs: dict[str, int] = field(default_factory=dict)
    sent: list[journal_pb2.Transition] = field(default_factory=list)
    questions: list[str] = field(default_factory=list)
    # Leases by the place in this list; each store has its own.
    leases: list[tuple[str, int]] = field(default_factory=list)
    names: dict[int, list[str]] = field(default_factory=lambda: {0: [], 1: []})


class Pair:
    """The model and a database, which must agree about every answer."""

    def __init__(self, model: ModelStateStore, real: SqlStateStore) -> None:
        self.stores: tuple[StateStore, StateStore] = (model, real)
        self.history = History()

    async def both(self, act: Callable[[StateStore, int], Any]) -> Any:
        """Does the same on both; returns what they agree about."""
        found = []
        for side, store in enumerate(self.stores):
            try:
                found.append(await act(store, side))
            except HoldfastError as error:
                found.append(error.reason)
        assert found[0] == found[1]
        return found[1]

    def pick(self, items: list[Any], index: int) -> Any:
        return items[index % len(items)] if items else None

    async def take(self, step: Step) -> None:
        await getattr(self, f"do_{step[0]}")(*step[1:])

    async def do_create(self, how: str, index: int) -> None:
        known = self.pick(self.history.created, index)
        session_id = (known.session_id or known.new_session_id) if known is not None else ""
        if how.startswith("mortal"):
            new = new_run(session_id=session_id if how == "mortal_session" else "", ttl_seconds=INSTANT)
        elif how == "again" and known is not None:
            new = known
        elif how in ("session", "reject"):
            new = new_run(session_id=session_id, reject_when_busy=how == "reject")
        else:
            new = new_run(request_id=f"r-{index}", fingerprint=b"f")

        async def act(store: StateStore, side: int) -> Any:
            [answer] = await store.commit(new)
            if isinstance(answer, run_pb2.Run):
                return answer.run_id, answer.previous_run_id
            assert isinstance(answer, HoldfastError)
            return answer.reason

        answer = await self.both(act)
        if answer[0] == new.run_id and new not in self.history.created:
            self.history.created.append(new)

    async def do_claim(self, executor: int) -> None:
        async def act(store: StateStore, side: int) -> Any:
            await store.renew(EXECUTORS[executor])
            return await store.claim(EXECUTORS[executor])

        self.history.epochs.update(await self.both(act))

    async def do_write(self, index: int, older: int, offset: int, kind: str) -> None:
        new = self.pick(self.history.created, index)
        if new is None:
            return
        run_id = new.run_id
        run = await self.stores[0].run(run_id)
        epoch = self.history.epochs.get(run_id, 1) - older
        step = max(1, run.step_count)
        calls: list[journal_pb2.NewCall] = []
        if kind == "again" and self.history.sent:
            sent = self.pick(self.history.sent, index)
        else:
            changes: dict[str, list[run_pb2.Change]] = {
                "start": [starts(step + 1)],
                "finish": [finishes(step), starts(step + 1)],
                "end": [finishes(step), ends()],
                "fail": [ends(FAILED)],
                "expire": [ends(EXPIRED)],
                "exceed": [ends(BUDGET_EXCEEDED)],
                "wait": [waits()],
                "rest": [becomes_paused()],
                "nap": [waits(run_pb2.WAIT_REASON_TIMER, wake_at=PAST)],
                "close": [tool_result(step)],
            }
            if kind == "ask":
                self.history.questions.append(new_uuid7())
                changes["ask"] = [asks(self.history.questions[-1], step), waits()]
            if kind.startswith("queue"):
                is_hasty = kind == "queue_hasty"
                calls = [call(step + 1, start_deadline=FUTURE, timeout=INSTANT if is_hasty else 600)]
                changes[kind] = [starts(step + 1, tool="refund"), waits(run_pb2.WAIT_REASON_TOOL)]
            sent = transition(run_id, epoch, run.last_seq + 1 + offset, *changes.get(kind, [starts(step)]), calls=calls)
        self.history.sent.append(sent)

        async def act(store: StateStore, side: int) -> Any:
            [answer] = await store.commit(sent)
            return answer.reason if isinstance(answer, HoldfastError) else answer

        answer = await self.both(act)
        assert answer == sent.seq or isinstance(answer, str)

    async def do_usurp(self, executor: int, index: int, kind: str) -> None:
        # Whoever drives now loses everything, somebody else takes over, and the older one writes at the right place.
        for other in range(len(EXECUTORS)):
            await self.do_leave(other)
        await self.do_claim(executor)
        await self.do_write(index, 1, 0, kind)

    async def do_serve(self, worker: int, index: int, how: str) -> None:
        await self.do_write(index, 0, 0, "queue_hasty" if how == "silence" else "queue")
        known = len(self.history.leases)
        await self.do_offer(worker, False)
        if len(self.history.leases) == known:
            return
        await self.do_start(worker, known)
        await self.do_beat(worker, known)
        if how == "silence":
            await self.do_sweep()
        elif how == "cancel":
            await self.do_cancel(index)
        await self.do_complete(worker, known)

    async def do_lose(self, executor: int) -> None:
        await self.both(lambda store, side: store.lose(EXECUTORS[executor]))

    async def do_leave(self, executor: int) -> None:
        await self.both(lambda store, side: store.leave(EXECUTORS[executor]))

    async def do_give_back(self, executor: int, index: int) -> None:
        new = self.pick(self.history.created, index)
        if new is not None:
            named = {new.run_id: self.history.epochs.get(new.run_id, 1)}
            await self.both(lambda store, side: store.give_back(EXECUTORS[executor], named))

    async def do_sweep(self) -> None:
        await self.both(lambda store, side: store.sweep())

    async def do_cancel(self, index: int) -> None:
        new = self.pick(self.history.created, index)
        if new is None:
            return

        async def act(store: StateStore, side: int) -> Any:
            run = await store.cancel(new.run_id)
            return run.state, run.cancel_requested, run.last_seq

        await self.both(act)

    async def do_pause(self, index: int) -> None:
        await self.do_ask(index, lambda store, run_id: store.pause(run_id))

    async def do_resume(self, index: int) -> None:
        await self.do_ask(index, lambda store, run_id: store.resume(run_id))

    async def do_drive(self, executor: int, index: int, kind: str) -> None:
        await self.do_claim(executor)
        await self.do_write(index, 0, 0, kind)

    async def do_shelve(self, executor: int, index: int, kind: str) -> None:
        # A run waits for something and is paused; what it waits for may come before it is resumed, or not.
        await self.do_drive(executor, index, kind)
        await self.do_pause(index)

    async def do_withdraw(self, index: int) -> None:
        # A run that never began is taken out of its session's chain.
        known = len(self.history.created)
        await self.do_create("session", index)
        if len(self.history.created) > known:
            await self.do_cancel(known)

    async def do_ask(self, index: int, ask: Callable[[StateStore, str], Awaitable[run_pb2.Run]]) -> None:
        new = self.pick(self.history.created, index)
        if new is None:
            return

        async def act(store: StateStore, side: int) -> Any:
            run = await ask(store, new.run_id)
            return run.state, run.pause_requested, run.wait_reason, run.last_seq

        await self.both(act)

    async def do_decide(self, index: int, answer_json: str) -> None:
        approval_id = self.pick(self.history.questions, index)
        if approval_id is None:
            return

        async def act(store: StateStore, side: int) -> Any:
            approval = await store.decide(answers(approval_id, answer_json))
            return approval.state, approval.decision

        await self.both(act)

    async def do_offer(self, worker: int, is_void: bool) -> None:
        offer = timedelta() if is_void else timedelta(hours=1)

        async def act(store: StateStore, side: int) -> Any:
            leased = await store.lease_calls(WORKERS[worker], ["refund"], 10, offer)
            leased.sort(key=lambda one: (one.run_id, one.step))
            self.history.names[side] += [one.lease for one in leased]
            return [(one.run_id, one.step, one.attempt, one.last_heartbeat_details) for one in leased]

        self.history.leases += [(run_id, step) for run_id, step, _, _ in await self.both(act)]

    def lease(self, index: int, side: int) -> str:
        return str(self.history.names[side][index % len(self.history.leases)])

    async def do_start(self, worker: int, index: int) -> None:
        if self.history.leases:
            await self.both(lambda store, side: store.start_call(WORKERS[worker], self.lease(index, side)))

    async def do_beat(self, worker: int, index: int) -> None:
        if not self.history.leases:
            return

        async def act(store: StateStore, side: int) -> Any:
            gone, cancelled = await store.renew_calls(WORKERS[worker], {self.lease(index, side): "page 3"})
            return len(gone), len(cancelled)

        await self.both(act)

    async def do_return(self, worker: int, index: int) -> None:
        if self.history.leases:
            await self.both(lambda store, side: store.return_calls(WORKERS[worker], [self.lease(index, side)]))

    async def do_complete(self, worker: int, index: int) -> None:
        if self.history.leases:
            _, step = self.history.leases[index % len(self.history.leases)]
            await self.both(
                lambda store, side: store.complete_call(
                    WORKERS[worker], self.lease(index, side), tool_result(step), late()
                )
            )

    async def check(self) -> None:
        """Both hold the same, and what always holds, holds."""
        for new in self.history.created:
            await self.both(lambda store, side, run_id=new.run_id: self.picture(store, run_id))  # type: ignore[misc]
        model_feed, _ = await self.stores[0].feed()
        feed, _ = await self.stores[1].feed()
        assert sorted(feed) == sorted(model_feed)
        assert len(feed) == len(set(feed))
        for new in self.history.created:
            seqs = [seq for run_id, seq in feed if run_id == new.run_id]
            assert seqs == list(range(1, len(seqs) + 1))
        await self.check_sessions()

    @staticmethod
    async def picture(store: StateStore, run_id: str) -> Any:
        run = await store.run(run_id)
        events = await store.events(run_id)
        assert [event.seq for event in events] == list(range(1, run.last_seq + 1))
        for event in events:
            for change in event.changes:
                if change.HasField("attempt_failed"):
                    # The text for a person is the store's own.
                    change.attempt_failed.failure.ClearField("message")
        finished = [
            change.step_finished.step
            for event in events
            for change in event.changes
            if change.WhichOneof("kind") == "step_finished" and event.epoch == 0
        ]
        assert len(finished) == len(set(finished)), "a worker's step is finished once"
        return (
            (
                run.state,
                run.wait_reason,
                run.cancel_requested,
                run.pause_requested,
                run.step_count,
                run.previous_run_id,
                run.output,
            ),
            [(event.epoch, essential(event)) for event in events],
        )

    async def check_sessions(self) -> None:
        driven: dict[str, int] = {}
        for new in self.history.created:
            run = await self.stores[1].run(new.run_id)
            if run.state == RUNNING:
                driven[run.session_id] = driven.get(run.session_id, 0) + 1
        assert all(count == 1 for count in driven.values()), "two runs of a session are driven at once"


def essential(event: run_pb2.Event) -> list[run_pb2.Change]:
    """The changes of an event; of one by which the store ends a run, what it is and not what it found open."""
    is_expiry = event.changes[-1].run_state_changed.state == EXPIRED and event.epoch == 0
    changes = [
        change
        for change in event.changes
        if not is_expiry or change.WhichOneof("kind") in ("expiry_reached", "run_state_changed")
    ]
    for change in changes:
        if change.HasField("expiry_reached"):
            # By whose clock it was over.
            change.expiry_reached.ClearField("expire_time")
    return changes


# What a history breaks on purpose, or leaves to the sweep: the content of transitions is the executor's business.
_NOT_STATES = {
    "one_result_per_call",
    "attempts_in_order",
    "leases_are_swept",
    "timers_have_fired",
    "lifetimes_are_swept",
    "calls_are_swept",
}
_ON_PURPOSE = (
    "WAITING, and nothing can wake it",
    "PAUSED, and nobody asked for it",
    "whose step is over",
    "which is over",
)


async def check_invariants(db: Database) -> None:
    """What `holdfast doctor` looks at holds in the middle of any history."""
    # Small ranges where they cost nothing.
    inspection = Inspection(db, page=3 if db.dialect == "sqlite" else 500)
    async for _ in inspection.run():
        pass
    for name, found in inspection.findings.of.items():
        unexpected = [example for example in found.examples if not any(words in example for words in _ON_PURPOSE)]
        assert name in _NOT_STATES or not unexpected, (name, unexpected)


NEXT = {int(before): {int(after) for after in afters} for before, afters in ALLOWED.items()}


class States:
    """Which transitions of runs were seen."""

    def __init__(self, db: Database, seen: set[tuple[int, int]]) -> None:
        self._db = db
        self._seen = seen
        self._last: dict[str, int] = {}

    async def look(self) -> None:
        """Compares all runs with how they were; what one act does may be two transitions."""
        # The other database does what the model does, and so the same.
        if self._db.dialect != "sqlite":
            return

        def read(connection: sa.Connection) -> dict[str, int]:
            return {row.run_id: row.state for row in connection.execute(sa.select(t.runs.c.run_id, t.runs.c.state))}

        now = await self._db.read(read)
        for run_id, state in now.items():
            before = self._last.get(run_id, state)
            if before != state:
                assert state in reachable(before), f"{before} became {state}"
                self._seen.add((before, state))
        self._last = now


def reachable(state: int) -> set[int]:
    """What a run in a state may become, sooner or later."""
    found: set[int] = set()
    new = set(NEXT[state])
    while new - found:
        found |= new
        new = {after for before in found for after in NEXT[before]}
    return found


async def play(database_url: str, history: list[Step], seen: set[tuple[int, int]]) -> None:
    async with Database(database_url, schema="state", pool_size=2, synchronous="NORMAL") as db:
        await db.write(empty)
        async with opened(db) as real:
            pair = Pair(ModelStateStore(WORKSPACE), real)
            states = States(db, seen)
            for step in history:
                await pair.take(step)
                await states.look()
            await pair.check()
            await check_invariants(db)
            # Nothing is stranded: whatever happened, what has not ended and does not wait can be driven to its end.
            await pair.do_sweep()
            await states.look()
            for executor in EXECUTORS:
                await pair.both(lambda store, side, name=executor: store.leave(name))  # type: ignore[misc]
            for _ in range(len(pair.history.created)):
                epochs = await real.claim(EXECUTORS[0])
                await states.look()
                for run_id, epoch in epochs.items():
                    seq = (await real.run(run_id)).last_seq + 1
                    assert await real.commit(transition(run_id, epoch, seq, ends(CANCELLED))) == [seq]
                await states.look()
            left = [(await real.run(new.run_id)) for new in pair.history.created]
            waiting = {run.session_id for run in left if run.state in (run_pb2.RUN_STATE_WAITING, PAUSED)}
            ended = (run_pb2.RUN_STATE_SUCCEEDED, FAILED, CANCELLED, EXPIRED, BUDGET_EXCEEDED)
            assert all(run.state in ended or run.session_id in waiting for run in left)


@pytest.mark.promise("P3")
@pytest.mark.promise("P7")
@pytest.mark.timeout(400)
def test_random_histories_agree_with_the_model(either_url: str) -> None:
    async def prepare() -> None:
        async with migrated(either_url):
            pass

    asyncio.run(prepare())
    seen: set[tuple[int, int]] = set()

    @settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
    @given(HISTORY)
    def run(history: list[Step]) -> None:
        asyncio.run(play(either_url, history, seen))

    run()
    if either_url.startswith("sqlite"):
        missing = {(before, after) for before, afters in NEXT.items() for after in afters} - seen
        assert not missing, "every transition of the table was taken"
