"""An agent with one Python tool: start `holdfast up` in another terminal, then `python examples/hello.py`."""

import asyncio

from holdfast import Agent, Client, Worker, tool
from holdfast.testing import call, scripted


@tool(effect="read_only")
def weather(city: str) -> dict[str, int]:
    """Returns the temperature of a city in degrees Celsius."""
    return {"celsius": len(city)}


async def main() -> None:
    """Applies the agent, serves its tool and prints the answer."""
    # A real model is `model="openai/gpt-5-mini"`, with its key in `holdfast connections create openai`.
    model = scripted(call("weather", city="Lübeck"), "I looked it up: {{result}}")
    agent = Agent("hello", model=model, tools=[weather])
    async with Client() as client, asyncio.TaskGroup() as group:
        worker = Worker([weather])
        serving = group.create_task(worker.run())
        await client.apply(agent)
        run = await client.start(agent, "How warm is it?")
        print(await run.result())
        worker.drain()
        await serving


asyncio.run(main())
