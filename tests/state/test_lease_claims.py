"""Claims: fair between workspaces, in the order of lanes, never beyond a limit, cheap however many runs are ready."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast.ids import new_uuid7
from services.shared.database import Database
from services.state import claims, expiry, lease_store
from services.state import tables as t
from services.state.claims import Claimed
from services.state.turns import BATCH, BEGINNING, CHILD, INTERACTIVE, Position
from tests.state.lease_rows import insert_many_runs, insert_runs, put_workspace
from tests.state.support import QUEUED, RUNNING, SUCCEEDED, WAITING, Store, migrated, sqlite_url


class Claimer:
    """An executor, and where the round stands for its process of state."""

    def __init__(self, db: Database) -> None:
        self.db = db
        self.executor, self.stream = new_uuid7(), new_uuid7()
        self.position: Position = BEGINNING
        self.got: Counter[str] = Counter()

    async def open(self) -> Claimer:
        await self.db.write(lease_store.open_stream, self.db, self.executor, self.stream, {})
        return self

    async def claim(self, limit: int, draw: float = 0.0) -> Claimed:
        claimed = await self.db.write(claims.claim, self.db, self.executor, self.stream, limit, self.position, draw)
        assert claimed is not None
        assert len(claimed.rows) <= limit
        assert all(row.state == RUNNING and row.holder == self.executor for row in claimed.rows)
        self.position = claimed.position
        self.got.update(row.workspace_id for row in claimed.rows)
        return claimed


def workspaces(count: int) -> list[str]:
    return sorted(new_uuid7() for _ in range(count))


async def end(db: Database, run_ids: list[str]) -> None:
    def set_ended(connection: sa.Connection) -> None:
        ended = sa.update(t.runs).where(t.runs.c.run_id.in_(run_ids))
        connection.execute(ended.values(state=SUCCEEDED, holder=None))

    await db.write(set_ended)


async def running(db: Database) -> dict[tuple[str, str], int]:
    def count(connection: sa.Connection) -> dict[tuple[str, str], int]:
        r = t.runs.c
        query = sa.select(r.workspace_id, r.agent, sa.func.count()).where(r.state == RUNNING)
        return {(row[0], row[1]): row[2] for row in connection.execute(query.group_by(r.workspace_id, r.agent))}

    return await db.read(count)


# -------------------------------------------------------------------------------------------------------- workspaces


async def test_one_run_beside_another_tenants_thousands_is_next(store: Store) -> None:
    crowd, alone = workspaces(2)
    await store.db.write(insert_runs, crowd, 3_000)
    claimer = await Claimer(store.db).open()
    await claimer.claim(50)
    await store.db.write(insert_runs, alone, 1)
    await claimer.claim(1)
    await claimer.claim(1)
    assert claimer.got[alone] == 1


async def test_claims_follow_the_weights(store: Store) -> None:
    light, heavy = workspaces(2)
    await store.db.write(put_workspace, heavy, weight=3)
    for workspace in (light, heavy):
        await store.db.write(insert_runs, workspace, 100)
    claimer = await Claimer(store.db).open()
    for limit in (1, 1, 1, 1, 7, 1, 20, 8):
        await claimer.claim(limit)
    assert claimer.got == {light: 10, heavy: 30}


async def test_what_one_tenant_cannot_use_goes_to_the_others_in_the_same_claim(store: Store) -> None:
    one, many, few = workspaces(3)
    for workspace, count in ((one, 1), (many, 200), (few, 5)):
        await store.db.write(insert_runs, workspace, count)
    claimer = await Claimer(store.db).open()
    assert not (await claimer.claim(90)).is_exhausted
    assert claimer.got == {one: 1, few: 5, many: 84}
    assert (await claimer.claim(150)).is_exhausted
    assert claimer.got[many] == 200


async def test_exhausted_is_told_by_the_claim_that_leaves_nothing(store: Store) -> None:
    claimer = await Claimer(store.db).open()
    assert (await claimer.claim(5)).is_exhausted
    await store.db.write(insert_runs, workspaces(1)[0], 3)
    assert (await claimer.claim(5)).is_exhausted
    assert sum(claimer.got.values()) == 3


async def test_runs_that_are_not_ready_are_left_alone(store: Store) -> None:
    (workspace,) = workspaces(1)
    await store.db.write(insert_runs, workspace, 1, blocked=True)
    await store.db.write(insert_runs, workspace, 1, state=WAITING)
    await store.db.write(insert_runs, workspace, 1, state=SUCCEEDED)
    assert (await (await Claimer(store.db).open()).claim(9)).rows == []


_case = st.fixed_dictionaries(
    {
        "tenants": st.lists(
            st.tuples(st.integers(0, 30), st.integers(1, 4), st.integers(0, 6), st.integers(0, 3)),
            min_size=1,
            max_size=6,
        ),
        "limits": st.lists(st.integers(1, 12), min_size=1, max_size=12),
        "seed": st.integers(0, 1_000),
    }
)


def test_any_claims_are_fair_and_complete_and_keep_the_limits(tmp_path: Path) -> None:
    """Against what fairness means: nothing is left over, limits hold, and shares differ by turns, not by backlogs."""

    async def scenario(db: Database, case: dict[str, Any]) -> None:
        def fill(connection: sa.Connection) -> dict[str, dict[str, int]]:
            for table in (t.runs, t.workspaces, t.executors):
                connection.execute(sa.delete(table))
            made = {}
            tenants = zip(workspaces(len(case["tenants"])), case["tenants"], strict=True)
            for workspace, (ready, weight, most, agent_limit) in tenants:
                put_workspace(connection, workspace, weight=weight, max_running=most)
                insert_runs(connection, workspace, ready)
                if agent_limit:
                    insert_runs(connection, workspace, ready, agent="slow", agent_limit=agent_limit)
                limited = min(ready, agent_limit) if agent_limit else 0
                # While nothing ends, a limit is also how many are claimed at all.
                claimable = ready + limited if not most else min(most, ready + limited)
                made[workspace] = {"weight": weight, "claimable": claimable, "most": most}
            return made

        made = await db.write(fill)
        claimer = await Claimer(db).open()
        rng = random.Random(case["seed"])
        for limit in case["limits"]:
            before = sum(claimer.got.values())
            claimed = await claimer.claim(limit, rng.random())
            left = sum(one["claimable"] for one in made.values()) - before
            assert len(claimed.rows) == min(limit, left)
            if claimed.is_exhausted:
                assert len(claimed.rows) == left
            order = [row.ready_at for row in claimed.rows if row.agent == "support"]
            for workspace in made:
                mine = [row for row in claimed.rows if row.workspace_id == workspace and row.agent == "support"]
                assert [row.ready_at for row in mine] == sorted(row.ready_at for row in mine)
            assert order == sorted(order)
            for (workspace, agent), count in (await running(db)).items():
                most = made[workspace]["most"]
                assert count <= (most or count)
                if agent == "slow":
                    assert count <= max(agent_limit for *_, agent_limit in case["tenants"])
            backlogged = [id_ for id_, one in made.items() if claimer.got[id_] < one["claimable"]]
            turns = [claimer.got[id_] / made[id_]["weight"] for id_ in backlogged]
            if turns:
                # One turn for the round that is under way, and one for each time that a claim divided what was left.
                assert max(turns) - min(turns) <= 1 + len(case["limits"]) * (len(made) - len(backlogged) > 0)

    with asyncio.Runner() as runner:
        database = migrated(sqlite_url(tmp_path))
        db = runner.run(database.__aenter__())

        @settings(max_examples=60)
        @given(_case)
        def check(case: dict[str, Any]) -> None:
            runner.run(scenario(db, case))

        try:
            check()
        finally:
            runner.run(database.__aexit__(None, None, None))


# ------------------------------------------------------------------------------------------------------------- lanes


async def test_children_go_before_interactive_runs_and_those_before_batch_runs(store: Store) -> None:
    (workspace,) = workspaces(1)
    # The other way round in time.
    for lane in (BATCH, INTERACTIVE, CHILD):
        await store.db.write(insert_runs, workspace, 4, lane=lane)
    claimer = await Claimer(store.db).open()
    claimed = [row.lane for _ in range(12) for row in (await claimer.claim(1)).rows]
    assert claimed == [CHILD] * 4 + [INTERACTIVE] * 4 + [BATCH] * 4


async def test_one_tenants_children_do_not_delay_another_tenants_batch(store: Store) -> None:
    parents, quiet = workspaces(2)
    await store.db.write(insert_runs, parents, 500, lane=CHILD)
    await store.db.write(insert_runs, quiet, 5, lane=BATCH)
    claimer = await Claimer(store.db).open()
    await claimer.claim(10)
    assert claimer.got == {parents: 5, quiet: 5}


async def test_batch_runs_get_their_share_while_others_are_ready(store: Store) -> None:
    (workspace,) = workspaces(1)
    for lane in (INTERACTIVE, BATCH):
        await store.db.write(insert_runs, workspace, 200, lane=lane)
    claimer = await Claimer(store.db).open()
    rows = [row for number in range(10) for row in (await claimer.claim(1, draw=number / 10 + 0.05)).rows]
    rows += (await claimer.claim(50, draw=0.5)).rows
    assert Counter(row.lane for row in rows) == {INTERACTIVE: 9 + 45, BATCH: 1 + 5}


async def test_limited_agents_batch_runs_get_their_share_too(store: Store) -> None:
    (workspace,) = workspaces(1)
    for lane in (INTERACTIVE, BATCH):
        await store.db.write(insert_runs, workspace, 20, lane=lane, agent_limit=30)
    claimer = await Claimer(store.db).open()
    claimed = [row.lane for number in range(20) for row in (await claimer.claim(1, draw=number / 20)).rows]
    assert Counter(claimed) == {INTERACTIVE: 18, BATCH: 2}


# ------------------------------------------------------------------------------------------------------------ limits


async def test_workspace_never_has_more_runs_than_it_may(store: Store) -> None:
    capped, free = workspaces(2)
    await store.db.write(put_workspace, capped, max_running=3)
    for workspace in (capped, free):
        await store.db.write(insert_runs, workspace, 10)
    claimer = await Claimer(store.db).open()
    claimed = await claimer.claim(20)
    assert claimed.is_exhausted
    assert claimed.has_limits
    assert claimer.got == {capped: 3, free: 10}
    assert (await claimer.claim(20)).rows == []
    await end(store.db, [row.run_id for row in claimed.rows if row.workspace_id == capped][:2])
    assert [row.workspace_id for row in (await claimer.claim(20)).rows] == [capped, capped]


async def test_agent_at_its_limit_is_passed_over_however_many_of_its_runs_are_ready(store: Store) -> None:
    (workspace,) = workspaces(1)
    await store.db.write(insert_runs, workspace, 1_000, agent="slow", agent_limit=2)
    await store.db.write(insert_runs, workspace, 3)
    claimer = await Claimer(store.db).open()
    claimed = await claimer.claim(20)
    assert Counter(row.agent for row in claimed.rows) == {"slow": 2, "support": 3}
    assert claimed.is_exhausted
    await end(store.db, [row.run_id for row in claimed.rows if row.agent == "slow"])
    assert [row.agent for row in (await claimer.claim(20)).rows] == ["slow", "slow"]


async def test_runs_of_agents_with_and_without_a_limit_go_in_the_order_in_which_they_became_ready(store: Store) -> None:
    (workspace,) = workspaces(1)
    first = await store.db.write(insert_runs, workspace, 2, agent="slow", agent_limit=9)
    rest = await store.db.write(insert_runs, workspace, 3, lane=INTERACTIVE)
    claimer = await Claimer(store.db).open()
    order = [row.run_id for _ in range(5) for row in (await claimer.claim(1)).rows]
    # Equal times: the first of each, then the second of each, then the last.
    assert set(order[:2]) == {first[0], rest[0]}
    assert set(order[2:4]) == {first[1], rest[1]}
    assert order[4] == rest[2]


async def test_limit_counts_the_runs_of_all_revisions_of_the_agent(store: Store) -> None:
    (workspace,) = workspaces(1)
    await store.db.write(insert_runs, workspace, 2)
    claimer = await Claimer(store.db).open()
    await claimer.claim(2)
    await store.db.write(insert_runs, workspace, 5, agent_limit=3)
    assert len((await claimer.claim(9)).rows) == 1


async def test_smaller_limit_of_a_newer_revision_holds_for_its_own_runs(store: Store) -> None:
    (workspace,) = workspaces(1)
    await store.db.write(insert_runs, workspace, 3, agent_limit=10)
    await store.db.write(insert_runs, workspace, 3, agent_limit=2, lane=BATCH)
    claimer = await Claimer(store.db).open()
    rows = (await claimer.claim(9)).rows
    assert [row.agent_limit for row in rows] == [10, 10, 10]
    assert (await claimer.claim(9)).rows == []


async def test_hundreds_of_workspaces_at_their_limits_hide_nobody(store: Store) -> None:
    def fill(connection: sa.Connection) -> None:
        for workspace in full:
            put_workspace(connection, workspace, max_running=1)
            insert_runs(connection, workspace, 1)
            insert_runs(connection, workspace, 1, state=RUNNING, holder=claimer.executor)
        insert_runs(connection, last, 1)

    *full, last = workspaces(301)
    claimer = await Claimer(store.db).open()
    await store.db.write(fill)
    # However long that took.
    await store.db.write(lease_store.extend_all, store.db, lease_store.LEASE_DURATION)
    assert [row.workspace_id for row in (await claimer.claim(1)).rows] == [last]
    assert (await claimer.claim(1)).is_exhausted


@pytest.mark.parametrize("limited_by", ["workspace", "agent"])
async def test_limits_hold_while_several_replicas_claim_at_once(postgres_database: str, limited_by: str) -> None:
    (workspace,) = workspaces(1)
    most = 7
    highest = 0
    done: list[str] = []
    is_over = asyncio.Event()

    async def drive(claimer: Claimer, rng: random.Random) -> None:
        while not is_over.is_set():
            claimed = await claimer.claim(rng.randint(1, 5))
            held = [row.run_id for row in claimed.rows]
            rng.shuffle(held)
            await end(claimer.db, held)
            done.extend(held)
            if len(done) >= 150:
                is_over.set()

    async def observe(db: Database) -> None:
        nonlocal highest
        while not is_over.is_set():
            highest = max([highest, *(await running(db)).values()])

    async with migrated(postgres_database) as first, migrated(postgres_database) as second:
        if limited_by == "workspace":
            await first.write(put_workspace, workspace, max_running=most)
        await first.write(insert_runs, workspace, 200, agent_limit=most if limited_by == "agent" else 0)
        claimers = [await Claimer(db).open() for db in (first, second) for _ in range(3)]
        # However long it takes: nobody renews them.
        await first.write(lease_store.extend_all, first, timedelta(minutes=5))
        async with asyncio.timeout(40), asyncio.TaskGroup() as tasks:
            for number, claimer in enumerate(claimers):
                tasks.create_task(drive(claimer, random.Random(number)))
            tasks.create_task(observe(first))
    assert len(done) == len(set(done))
    assert 1 < highest <= most
    assert all(sum(claimer.got.values()) > 0 for claimer in claimers)


async def test_replicas_that_claim_at_once_take_each_run_once(postgres_database: str) -> None:
    tenants = workspaces(5)
    async with migrated(postgres_database) as first, migrated(postgres_database) as second:
        for workspace in tenants:
            await first.write(insert_runs, workspace, 40)
        claimers = [await Claimer(db).open() for db in (first, second) for _ in range(2)]
        await first.write(lease_store.extend_all, first, timedelta(minutes=5))
        taken: list[str] = []
        async with asyncio.timeout(30):
            while len(taken) < 200:
                for claimed in await asyncio.gather(*(claimer.claim(7) for claimer in claimers)):
                    taken += [row.run_id for row in claimed.rows]
    assert len(set(taken)) == 200


# -------------------------------------------------------------------------------------------------------------- cost


@contextmanager
def plans(connection: sa.Connection) -> Iterator[list[dict[str, Any]]]:
    """Runs EXPLAIN before each statement of the block."""
    found: list[dict[str, Any]] = []
    is_explaining = False

    def explain(_: sa.Connection, cursor: Any, statement: str, parameters: Any, *__: Any) -> None:
        nonlocal is_explaining
        if is_explaining or not statement.lstrip().startswith(("SELECT", "WITH", "UPDATE", "DELETE")):
            return
        is_explaining = True
        savepoint = connection.begin_nested()
        explained = "EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) " + statement
        ((plan,),) = connection.exec_driver_sql(explained, parameters).scalars()
        # What was explained was also done.
        savepoint.rollback()
        found.append(plan["Plan"])
        is_explaining = False

    sa.event.listen(connection, "before_cursor_execute", explain)
    try:
        yield found
    finally:
        sa.event.remove(connection, "before_cursor_execute", explain)


def nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for child in plan.get("Plans", ()):
        yield from nodes(child)


def check_plans(found: list[dict[str, Any]], most_pages: int) -> None:
    assert found, "nothing was explained"
    for plan in found:
        for node in nodes(plan):
            assert (node["Node Type"], node.get("Relation Name")) != ("Seq Scan", "runs")
        assert plan["Shared Hit Blocks"] + plan["Shared Read Blocks"] <= most_pages


async def test_cost_of_a_claim_does_not_grow_with_the_ready_runs(postgres_database: str) -> None:
    async with migrated(postgres_database) as db:
        crowd, *others = workspaces(51)
        claimer = await Claimer(db).open()

        def fill(connection: sa.Connection) -> None:
            insert_many_runs(connection, [crowd], 100_000)
            insert_many_runs(connection, others, 500)
            insert_runs(connection, others[0], 300, agent="slow", agent_limit=2)
            put_workspace(connection, others[1], max_running=2)
            connection.execute(sa.text("ANALYZE runs"))

        def explain(connection: sa.Connection, limit: int) -> list[dict[str, Any]]:
            with plans(connection) as found:
                claims.claim(connection, db, claimer.executor, claimer.stream, limit, Position(others[0]))
            return found

        await db.write(fill)
        # A handful of pages for each index probe: for one claim, and for 60 from as many workspaces.
        check_plans(await db.write(explain, 1), 150)
        check_plans(await db.write(explain, 60), 4_000)


async def test_look_of_the_pulse_does_not_grow_with_waiting_or_ready_runs(postgres_database: str) -> None:
    async with migrated(postgres_database) as db:

        def fill(connection: sa.Connection) -> None:
            insert_many_runs(connection, workspaces(10), 100_000, state=WAITING)
            insert_many_runs(connection, workspaces(1), 20_000, state=QUEUED)
            # Those that wait have a time, too; it is not over.
            connection.execute(sa.text("UPDATE runs SET expire_at = now() + interval '1 day' WHERE state = 3"))
            connection.execute(sa.text("ANALYZE runs"))

        def explain(connection: sa.Connection) -> list[dict[str, Any]]:
            with plans(connection) as found:
                lease_store.glance(connection, db)
                lease_store.sweep(connection, db)
                expiry.expired_runs(connection, db)
            return found

        await db.write(fill)
        check_plans(await db.write(explain), 100)
