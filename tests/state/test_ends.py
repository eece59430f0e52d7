"""Who waits for the end of a run is told what a reader would find, by the answer to the run's last transition."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import sqlalchemy as sa
from google.protobuf.duration_pb2 import Duration

from holdfast.api.common.v1 import content_pb2, run_pb2
from holdfast.errors import HoldfastError, NotFound
from holdfast.ids import new_uuid7
from services.shared.clock import SystemClock
from services.state import run_store
from services.state.ends import Ends
from services.state.hub import Ended
from tests.state.support import Store, becomes, finished, message_blob, new_run, started

USAGE = content_pb2.Usage(input_tokens=7, output_tokens=5, reasoning_output_tokens=2, cost_usd_nanos=1_500)
UNPRICED = content_pb2.Usage(cache_read_input_tokens=3, cache_write_input_tokens=4)
BROKEN = content_pb2.Failure(reason="MODEL_FAILED", message='it\'s "broken" \\ {here}, NULL')
SUCCEEDED = becomes(run_pb2.RUN_STATE_SUCCEEDED)


@pytest.mark.parametrize(
    ("usage", "last"),
    [
        (USAGE, [finished(2, "all {well}", usage=USAGE), SUCCEEDED]),
        (UNPRICED, [finished(2, "", usage=USAGE), SUCCEEDED]),
        (USAGE, [becomes(run_pb2.RUN_STATE_FAILED, failure=BROKEN)]),
        (USAGE, [becomes(run_pb2.RUN_STATE_CANCELLED)]),
        (None, [becomes(run_pb2.RUN_STATE_EXPIRED)]),
    ],
)
async def test_the_run_that_is_told_is_the_one_that_is_read(
    store: Store, usage: content_pb2.Usage | None, last: list[run_pb2.Change]
) -> None:
    run = await store.claimed(user_id="ada", ttl=Duration(seconds=3_600))
    await store.advance(run, started(1), finished(1, usage=usage), started(2))
    told: list[Ended | None] = []
    store.hub.await_end(run.run_id, told.append)
    await store.advance(run, *last)
    read = await store.db.read(run_store.get_run, store.workspace, run.run_id)
    # SQLite is in this process: there the run is read.
    is_told = store.db.dialect == "postgresql"
    assert told == [Ended(store.workspace, read) if is_told else None]
    assert read.state == last[-1].run_state_changed.state


async def test_an_output_that_is_a_body_of_its_own_is_read(store: Store) -> None:
    run = await store.claimed()
    output, body = message_blob("a long story")
    told: list[Ended | None] = []
    store.hub.await_end(run.run_id, told.append)
    await store.advance(run, started(1), finished(1, message=output), SUCCEEDED, blobs=[body])
    assert told == [None]


async def test_nobody_is_told_the_run_of_another_workspace(store: Store) -> None:
    run = await store.claimed()
    ends = Ends(store.db, store.hub, SystemClock())
    own: asyncio.Future[run_pb2.Run | HoldfastError] = asyncio.get_running_loop().create_future()
    others: asyncio.Future[run_pb2.Run | HoldfastError] = asyncio.get_running_loop().create_future()
    ends.add(store.workspace, run.run_id, own.set_result)
    ends.add(new_uuid7(), run.run_id, others.set_result)
    await store.advance(run, started(1), finished(1, "mine"), SUCCEEDED)
    if store.db.dialect == "postgresql":
        assert own.done()
    assert not others.done()
    looking = asyncio.create_task(ends.run())
    async with asyncio.timeout(20):
        found = await own
        assert isinstance(await others, NotFound)
    looking.cancel()
    assert isinstance(found, run_pb2.Run) and found.output.parts[0].text == "mine"


async def test_grants_of_runs_are_stored_in_the_transaction_of_their_runs(store: Store) -> None:
    new = [new_run(store.workspace, run_grant=grant) for grant in ('a.b."c"', "", "d.e.f")]
    answers = await store.submit(*new)
    assert all(answer.HasField("run") for answer in answers), answers
    found = [await store.db.read(run_store.get_run_grant, store.workspace, run.run_id) for run in new]
    assert found == ['a.b."c"', "", "d.e.f"]
    if store.db.dialect == "postgresql":
        assert len(await store.db.read(_transactions)) == 1


def _transactions(connection: sa.Connection) -> set[Any]:
    """Those that wrote a run or a grant, by their ids."""
    query = sa.text("SELECT xmin::text FROM runs UNION SELECT xmin::text FROM run_grants")
    return set(connection.execute(query).scalars())
