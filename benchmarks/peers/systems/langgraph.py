"""LangGraph with AsyncPostgresSaver and durability="sync": a graph of ten nodes, one thread a run.

It has no worker that takes over what a killed process left, so there is no recovery to measure.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, TypedDict

import uvloop
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver  # type: ignore[import-not-found]
from langgraph.graph import END, START, StateGraph  # type: ignore[import-not-found]
from langgraph.types import interrupt  # type: ignore[import-not-found]
from psycopg.rows import dict_row
from psycopg_pool import AsyncConnectionPool

from benchmarks.peers.parking import PARKED_BEFORE, idle_percent, parked_row
from benchmarks.peers.postgres import WalCounters
from benchmarks.peers.task import STEPS, Task, run_program
from benchmarks.peers.workload import StepClock, bodies, closed_loop
from benchmarks.processes import resident_megabytes


class State(TypedDict):
    """Only the last result is kept: a list of messages that grows would cost more."""

    run: int
    result: str


@asynccontextmanager
async def _saver(task: Task) -> AsyncIterator[Any]:
    options = {"autocommit": True, "prepare_threshold": 0, "row_factory": dict_row}
    async with AsyncConnectionPool(task.database_url, min_size=4, max_size=32, kwargs=options) as pool:
        saver = AsyncPostgresSaver(pool)
        await saver.setup()
        yield saver


def steps(task: Task) -> dict[str, Any]:
    """Steps a second."""
    clock = StepClock()
    texts = bodies(task.body_bytes)

    def node(step: int) -> Callable[[State], Awaitable[dict[str, str]]]:
        async def body(state: State) -> dict[str, str]:
            run = state["run"]
            clock.entered(run)
            text = texts[(run + step) % len(texts)]
            clock.left(run)
            return {"result": text}

        return body

    async def measure() -> dict[str, Any]:
        builder = StateGraph(State)
        previous = START
        for step in range(1, STEPS + 1):
            name = f"{'model' if step % 2 else 'tool'}-{step}"
            builder.add_node(name, node(step))
            builder.add_edge(previous, name)
            previous = name
        builder.add_edge(previous, END)
        async with _saver(task) as saver:
            graph = builder.compile(checkpointer=saver)

            async def one_run(run: int) -> None:
                config = {"configurable": {"thread_id": str(run)}}
                await graph.ainvoke({"run": run, "result": ""}, config, durability="sync")
                clock.ended(run)

            processes = {"worker": os.getpid(), "postgres": task.postgres_pid}
            return await closed_loop(task, one_run, clock, processes, WalCounters(task.database_url))

    return uvloop.run(measure())


def parked(task: Task) -> dict[str, Any]:
    """Threads that stopped at `interrupt()`."""

    async def ask(state: State) -> dict[str, str]:
        return {"result": interrupt("approve?")}

    async def measure() -> dict[str, Any]:
        builder = StateGraph(State)
        builder.add_node("ask", ask)
        builder.add_edge(START, "ask")
        builder.add_edge("ask", END)
        async with _saver(task) as saver:
            graph = builder.compile(checkpointer=saver)

            async def park(run: int) -> None:
                config = {"configurable": {"thread_id": str(run)}}
                await graph.ainvoke({"run": run, "result": ""}, config, durability="sync")

            await asyncio.gather(*(park(-run) for run in range(1, PARKED_BEFORE + 1)))
            before = resident_megabytes(os.getpid())
            began, done = time.perf_counter(), 0
            while done < task.runs and time.perf_counter() - began < task.seconds:
                await asyncio.gather(*(park(done + index) for index in range(50)))
                done += 50
            took = time.perf_counter() - began
            grown = {"worker": resident_megabytes(os.getpid()) - before}
            idle = await idle_percent({"worker": os.getpid(), "postgres": task.postgres_pid})
            return parked_row(done, took, grown, idle)

    return uvloop.run(measure())


if __name__ == "__main__":
    run_program({"steps": steps, "parked": parked})
