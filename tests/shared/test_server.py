"""Start, health, drain and the frame of the process."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import sys
import textwrap
import urllib.request
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from holdfast.errors import Conflict, Unavailable
from services.shared.channels import open_channel, wait_for_channel_ready
from services.shared.server import EXIT_TEMPORARY, Server, StartupError
from services.shared.settings import CommonSettings, SettingsError
from services.shared.telemetry import build_telemetry
from tests.shared.conftest import SERVICE, TOKEN, Suite, call

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


async def test_health_needs_no_identity_and_knows_the_services(suite: Suite) -> None:
    health = health_pb2_grpc.HealthStub(await suite.connect_bare(await suite.serve()))

    for service in ("", SERVICE, "grpc.health.v1.Health"):
        assert (await health.Check(health_pb2.HealthCheckRequest(service=service))).status == SERVING
    assert set((await health.List(health_pb2.HealthListRequest())).statuses) >= {"", SERVICE}
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await health.Check(health_pb2.HealthCheckRequest(service="no.such.Service"))
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


async def test_reflection_lists_every_service(suite: Suite) -> None:
    reflection = reflection_pb2_grpc.ServerReflectionStub(await suite.connect_bare(await suite.serve()))
    request = reflection_pb2.ServerReflectionRequest(list_services="")
    answers = [answer async for answer in reflection.ServerReflectionInfo(iter([request]))]
    assert {item.name for item in answers[0].list_services_response.service} >= {SERVICE, "grpc.health.v1.Health"}


async def test_a_drain_says_not_serving_then_hands_back_then_ends_what_is_in_flight(suite: Suite) -> None:
    order: list[str] = []
    release = asyncio.Event()

    async def act(text: str) -> str:
        await release.wait()
        return text

    suite.echo.act = act
    server = await suite.serve()
    channel = await suite.connect(server)
    health = health_pb2_grpc.HealthStub(await suite.connect_bare(server))
    watch = health.Watch(health_pb2.HealthCheckRequest())

    async def hand_back() -> None:
        assert server.draining.is_set()
        order.append(f"not serving: {(await watch.read()).status == NOT_SERVING}")
        order.append("handed back")
        release.set()

    async def fail() -> None:
        raise RuntimeError("cannot hand back")

    server.on_drain(fail)
    server.on_drain(hand_back)
    async with asyncio.timeout(20), asyncio.TaskGroup() as group:
        assert (await watch.read()).status == SERVING
        in_flight = group.create_task(call(channel, "UnaryUnary", "kept"))
        await suite.echo.started.wait()
        await server.drain()
        order.append("stopped")

    assert in_flight.result() == ["kept"]
    assert order == ["not serving: True", "handed back", "stopped"]
    assert await watch.read() == grpc.aio.EOF


async def test_a_stream_that_does_not_end_is_cut_after_the_grace(suite: Suite) -> None:
    async def act(text: str) -> str:
        await asyncio.Event().wait()
        return text

    suite.echo.act = act
    server = await suite.serve(drain_seconds=0.05)
    channel = await suite.connect(server)
    stream = channel.unary_stream(f"/{SERVICE}/UnaryStream")(b"")
    async with asyncio.timeout(20):
        await stream.read()
        await server.drain()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stream.read()
        assert caught.value.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
        await suite.echo.closed.wait()


async def test_a_port_in_use_is_named_with_its_setting(suite: Suite) -> None:
    taken = (await suite.serve()).address
    with pytest.raises(StartupError, match=rf"^{taken} is already in use .* choose another HOLDFAST_LISTEN$") as caught:
        async with Server(
            CommonSettings(listen=taken, service_token=TOKEN),
            service="test",
            access={},
            telemetry=build_telemetry("test"),
        ):
            pass
    assert caught.value.exit_code == EXIT_TEMPORARY


async def test_the_metrics_page_counts_calls(suite: Suite) -> None:
    server = await suite.serve(metrics_listen="127.0.0.1:0")
    await call(await suite.connect(server), "UnaryUnary", "x")

    def read() -> str:
        with urllib.request.urlopen(f"http://{server.metrics_address}/metrics", timeout=5) as answer:
            return str(answer.read(), "utf-8")

    page = await asyncio.to_thread(read)
    assert f'grpc_server_handled_total{{grpc_code="OK",grpc_method="UnaryUnary",grpc_service="{SERVICE}"}} 1.0' in page
    assert "process_resident_memory_bytes" in page


def test_a_stream_written_by_hand_is_refused_at_start() -> None:
    class Written:
        async def Unary(self, request: Any, context: Any) -> Any:
            return request

        async def Watch(self, request: Any, context: Any) -> None:
            await context.write(request)

    def register(servicer: Written, server: Any) -> None:
        handlers: dict[str, Any] = {"Watch": grpc.unary_stream_rpc_method_handler(servicer.Watch)}
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.v1.Written", handlers),))

    async def build() -> None:
        server = Server(
            CommonSettings(service_token=TOKEN), service="test", access={}, telemetry=build_telemetry("test")
        )
        server.add(register, Written())

    with pytest.raises(TypeError, match=r"/test\.v1\.Written/Watch: .* async generator"):
        asyncio.run(build())


# ----------------------------------------------------------------------------------------------------------- channels


async def test_plain_text_beyond_this_machine_needs_permission(suite: Suite) -> None:
    with pytest.raises(SettingsError, match="HOLDFAST_ALLOW_PLAINTEXT"):
        open_channel("state.example.com:7401", service="executor", settings=suite.settings)


async def test_a_caller_waits_for_a_peer_that_starts_later_and_says_so(suite: Suite, unused_tcp_port: int) -> None:
    address = f"127.0.0.1:{unused_tcp_port}"
    said = asyncio.Event()

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.getMessage() == f"waiting for state at {address}":
                said.set()

    logger, listener = logging.getLogger("services.shared.channels"), Listener()
    logger.addHandler(listener)
    logger.setLevel(logging.INFO)
    try:
        channel = open_channel(address, service="executor", settings=suite.settings)
        async with channel, asyncio.timeout(10), asyncio.TaskGroup() as group:
            waiting = group.create_task(wait_for_channel_ready(channel, "state", asyncio.Event()))
            await said.wait()
            await suite.serve(listen=address)
    finally:
        logger.removeHandler(listener)
        logger.setLevel(logging.NOTSET)
    assert waiting.result() is True


async def test_waiting_for_a_peer_ends_when_the_process_is_told_to_stop(suite: Suite, unused_tcp_port: int) -> None:
    stop = asyncio.Event()
    async with open_channel(f"127.0.0.1:{unused_tcp_port}", service="executor", settings=suite.settings) as channel:
        async with asyncio.timeout(20), asyncio.TaskGroup() as group:
            waiting = group.create_task(wait_for_channel_ready(channel, "state", stop))
            stop.set()
    assert waiting.result() is False


async def test_only_unavailable_is_repeated(suite: Suite) -> None:
    attempts: list[str] = []

    async def act(text: str) -> str:
        attempts.append(text)
        if text == "unavailable" and len(attempts) < 3:
            raise Unavailable("not yet")
        if text == "conflict":
            raise Conflict("no")
        return text

    suite.echo.act = act
    channel = await suite.connect(await suite.serve())

    assert await call(channel, "UnaryUnary", "unavailable") == ["unavailable"]
    assert attempts == ["unavailable"] * 3
    attempts.clear()
    with pytest.raises(grpc.aio.AioRpcError):
        await call(channel, "UnaryUnary", "conflict")
    assert attempts == ["conflict"]


async def test_a_unary_call_without_a_deadline_gets_the_channels(suite: Suite) -> None:
    async def act(text: str) -> str:
        await asyncio.Event().wait()
        return text

    suite.echo.act = act
    channel = await suite.connect(await suite.serve(), unary_deadline_seconds=0.05)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call(channel, "UnaryUnary", "x")
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED


# ------------------------------------------------------------------------------------------------------------ process

PROGRAM = """
    from services.shared.server import Process, Server, service_main
    from services.shared.settings import CommonSettings

    async def run(settings: CommonSettings, process: Process) -> None:
        server = Server(settings, service="probe", access={}, telemetry=process.telemetry)
        await server.run(process.stop)

    service_main(run, CommonSettings, service="probe")
"""


async def start_process(folder: Path, environment: dict[str, str], *arguments: str) -> asyncio.subprocess.Process:
    program = folder / "probe.py"
    await asyncio.to_thread(program.write_text, textwrap.dedent(PROGRAM))
    root = str(Path(__file__).resolve().parents[2])
    return await asyncio.create_subprocess_exec(
        sys.executable,
        str(program),
        *arguments,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": root, **environment},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )


async def test_a_process_listens_and_ends_cleanly_on_sigterm(tmp_path: Path) -> None:
    environment = {"HOLDFAST_LISTEN": "127.0.0.1:0", "HOLDFAST_SERVICE_TOKEN": TOKEN, "HOLDFAST_LISTNE": "x"}
    process = await start_process(tmp_path, environment)
    assert process.stderr is not None
    async with asyncio.timeout(20):
        events: list[dict[str, Any]] = []
        while not events or events[-1]["event"] != "listening":
            events.append(json.loads(await process.stderr.readline()))
        async with grpc.aio.insecure_channel(events[-1]["address"]) as channel:
            answer = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
        process.send_signal(signal.SIGTERM)
        _, rest = await process.communicate()
    assert answer.status == SERVING
    assert process.returncode == 0
    assert events[0]["event"] == "unknown_setting"
    assert "HOLDFAST_LISTEN" in events[0]["detail"]
    assert [json.loads(line)["event"] for line in rest.splitlines()] == ["signal", "draining", "stopped"]


async def test_a_process_refuses_bad_settings_and_names_each(tmp_path: Path) -> None:
    process = await start_process(tmp_path, {"HOLDFAST_LISTEN": "nowhere", "HOLDFAST_SERVICE_TOKEN": "hunter2"})
    async with asyncio.timeout(20):
        output, errors = await process.communicate()
    assert process.returncode == 78
    lines = errors.decode().splitlines()
    assert [line.split()[1].partition("=")[0] for line in lines] == ["HOLDFAST_LISTEN", "HOLDFAST_SERVICE_TOKEN"]
    assert "hunter2" not in errors.decode()
    assert output == b""


async def test_a_process_whose_port_is_taken_says_which(tmp_path: Path, suite: Suite) -> None:
    taken = (await suite.serve()).address
    process = await start_process(tmp_path, {"HOLDFAST_LISTEN": taken, "HOLDFAST_SERVICE_TOKEN": TOKEN})
    async with asyncio.timeout(20):
        _, errors = await process.communicate()
    assert process.returncode == 75
    expected = f"probe: {taken} is already in use by another process; stop it or choose another HOLDFAST_LISTEN"
    assert expected in errors.decode()
    assert "Traceback" not in errors.decode()


async def test_help_lists_every_setting_and_a_wrong_argument_is_refused(tmp_path: Path) -> None:
    async with asyncio.timeout(20):
        helping = await start_process(tmp_path, {}, "--help")
        output, _ = await helping.communicate()
        wrong = await start_process(tmp_path, {}, "migrate")
        _, errors = await wrong.communicate()
    assert (helping.returncode, wrong.returncode) == (0, 64)
    assert b"HOLDFAST_DRAIN_SECONDS" in output
    assert b"unknown arguments: migrate" in errors
