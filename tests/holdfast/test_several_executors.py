"""A client that knows several executors goes on with another one when its own is lost."""

from __future__ import annotations

import asyncio

import pytest

from holdfast import Agent, Client
from holdfast.errors import InvalidArgument
from holdfast.settings import resolve, split_addresses
from holdfast.testing import Suite, scripted, turn


def test_the_neighbours_of_several_executors_are_beside_the_first() -> None:
    settings = resolve(address="127.0.0.1:7400,127.0.0.1:7410", api_key="key")

    assert settings.auth_address == "127.0.0.1:7402"
    assert settings.trace_address == "127.0.0.1:7403"


@pytest.mark.parametrize(
    "addresses",
    ["localhost:7400,10.0.0.1:7400", "https://10.0.0.1:443,https://10.0.0.2:443", "10.0.0.1:7400,", "10.0.0.1:7400,x"],
)
def test_several_addresses_are_plain_ip_addresses(addresses: str) -> None:
    with pytest.raises(InvalidArgument):
        split_addresses(addresses)


@pytest.mark.slow
@pytest.mark.promise("P12")
async def test_a_client_of_two_executors_misses_no_event_when_its_own_is_killed() -> None:
    async with asyncio.timeout(100), Suite() as suite:
        second = await suite.start_executor()
        client = Client(
            f"{suite.address()},{suite.address(second)}",
            suite.api_key,
            auth_address=suite.address("auth"),
            trace_address=suite.address("trace"),
        )
        async with client:
            await client.apply(Agent("slow", model=scripted(turn("done", delay=1.0))))
            run = await client.start("slow", "go")
            seqs: list[int] = []
            async for event in run.events(deltas=False):
                if not seqs:
                    await suite.kill("executor")
                seqs.append(event.seq)

            assert seqs == list(range(1, (await run.get()).last_seq + 1))
            assert await run.result() == "done"
