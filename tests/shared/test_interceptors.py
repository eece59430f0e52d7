"""What leaves a server: statuses with details, nothing of an unexpected error, and nobody who may not."""

from __future__ import annotations

import asyncio
import json
import logging
from typing import Any

import grpc
import grpc.aio
import pytest

from holdfast.errors import (
    Conflict,
    DeadlineExceeded,
    HoldfastError,
    Internal,
    InvalidArgument,
    LeaseLost,
    NotFound,
    PermissionDenied,
    Reason,
    Unauthenticated,
    Unavailable,
    from_rpc_error,
)
from services.shared.access import Access, check_access_table, service_access
from services.shared.channels import calling
from services.shared.identity import Identity, current_identity, current_workspace
from services.shared.interceptors import WORKSPACE_KEY, RpcMetrics, ServerChain
from tests.shared.conftest import INTERNAL_ACCESS, KINDS, SERVICE, TOKEN, Suite, add_echo_to_server, call

SECRET = "postgresql://holdfast:hunter2@db/state"


class Keys:
    """An authenticator with two keys."""

    def __init__(self) -> None:
        self.identities = {
            "reader": Identity("api_key", workspace_id="w1", key_id="k1", scopes=frozenset({"runs:read"})),
            "admin": Identity("api_key", workspace_id="w2", key_id="k2", scopes=frozenset({"admin"})),
        }
        self.error: HoldfastError | None = None

    async def verify(self, api_key: str) -> Identity:
        if self.error is not None:
            raise self.error
        identity = self.identities.get(api_key)
        if identity is None:
            raise Unauthenticated("no key with this id in workspace w1", reason=Reason.API_KEY_REVOKED)
        return identity


SCOPED_ACCESS = service_access(
    SERVICE,
    {name: Access(scope="runs:read" if name != "StreamUnary" else "runs:write") for name in (*KINDS, "Held")},
)


def bearer(key: str) -> dict[str, Any]:
    return {"metadata": (("authorization", f"Bearer {key}"),)}


async def refusal(channel: grpc.aio.Channel, kind: str, text: str = "x", **options: Any) -> HoldfastError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call(channel, kind, text, **options)
    return from_rpc_error(caught.value)


@pytest.mark.parametrize("kind", KINDS)
async def test_an_error_of_ours_arrives_as_the_same_class_with_its_details(suite: Suite, kind: str) -> None:
    async def act(text: str) -> str:
        raise LeaseLost("epoch 3 is not the current one", metadata={"run_id": "r1"}, retry_delay_seconds=0.25)

    suite.echo.act = act
    channel = await suite.connect(await suite.serve())

    error = await refusal(channel, kind)

    assert type(error) is LeaseLost
    assert error.code is grpc.StatusCode.ABORTED
    assert (error.reason, error.message) == ("LEASE_LOST", "epoch 3 is not the current one")
    assert error.metadata == {"run_id": "r1"}
    assert error.retry_delay_seconds == 0.25
    assert error.origin == "remote"


async def test_field_violations_arrive(suite: Suite) -> None:
    async def act(text: str) -> str:
        raise InvalidArgument("the agent has no name", field="agent.name", description="expected 1 to 100 characters")

    suite.echo.act = act
    channel = await suite.connect(await suite.serve())

    error = await refusal(channel, "UnaryUnary")

    assert error.reason == Reason.INVALID_FIELD
    assert error.field_violations == (("agent.name", "expected 1 to 100 characters"),)


@pytest.mark.parametrize("kind", KINDS)
async def test_an_unexpected_exception_leaks_nothing_and_is_found_by_its_id(
    suite: Suite, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def act(text: str) -> str:
        raise ConnectionError(SECRET)

    suite.echo.act = act
    channel = await suite.connect(await suite.serve())

    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call(channel, kind, "x")

    assert "hunter2" not in repr(caught.value)
    assert b"hunter2" not in b"".join(
        value if isinstance(value, bytes) else value.encode() for _, value in caught.value.trailing_metadata()
    )
    error = from_rpc_error(caught.value)
    assert type(error) is Internal
    errors = [record for record in caplog.records if record.getMessage() == "internal_error"]
    assert [record.fields["error_id"] for record in errors] == [error.metadata["error_id"]]  # type: ignore[attr-defined]
    assert errors[0].exc_info is not None and SECRET in str(errors[0].exc_info[1])


async def test_an_error_inside_a_task_group_keeps_its_class(suite: Suite) -> None:
    async def act(text: str) -> str:
        async def fail() -> None:
            raise Conflict("something else was written first")

        async with asyncio.TaskGroup() as group:
            group.create_task(fail())
        return text

    suite.echo.act = act
    channel = await suite.connect(await suite.serve())

    assert type(await refusal(channel, "UnaryUnary")) is Conflict


async def test_a_stream_delivers_what_came_before_the_error(suite: Suite) -> None:
    async def act(text: str) -> str:
        raise NotFound("no such run", reason=Reason.RUN_NOT_FOUND)

    suite.echo.act = act
    channel = await suite.connect(await suite.serve())
    stream = channel.unary_stream(f"/{SERVICE}/UnaryStream")(b"", timeout=5)

    assert await stream.read() != grpc.aio.EOF
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stream.read()
    assert from_rpc_error(caught.value).reason == Reason.RUN_NOT_FOUND


async def test_the_peers_refusal_of_our_own_token_is_not_the_callers_fault(suite: Suite) -> None:
    async def act(text: str) -> str:
        error = Unauthenticated("the service token is not valid", reason=Reason.SERVICE_TOKEN_INVALID)
        error.origin = "remote"
        raise error

    suite.echo.act = act
    channel = await suite.connect(await suite.serve())

    assert type(await refusal(channel, "UnaryUnary")) is Internal


async def test_a_peer_that_is_away_is_named_and_its_address_is_not(suite: Suite, unused_tcp_port: int) -> None:
    async def act(text: str) -> str:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{unused_tcp_port}") as away:
            with calling("state"):
                await call(away, "UnaryUnary", "x")
        return text

    suite.echo.act = act
    channel = await suite.connect(await suite.serve())

    # The service config would repeat UNAVAILABLE; a single answer is enough here.
    error = await refusal(channel, "UnaryUnary")

    assert type(error) is Unavailable
    assert error.reason == Reason.STATE_UNAVAILABLE
    assert str(unused_tcp_port) not in error.message
    assert error.retry_delay_seconds == 1.0


# ------------------------------------------------------------------------------------------------------------- access


@pytest.mark.parametrize("kind", [*KINDS, "Held"])
async def test_a_server_whose_table_lacks_a_method_does_not_start(suite: Suite, kind: str) -> None:
    access = {name: entry for name, entry in INTERNAL_ACCESS.items() if not name.endswith(f"/{kind}")}
    with pytest.raises(ValueError, match=f"without an entry in the access table: /{SERVICE}/{kind}$"):
        await suite.serve(access=access)


async def test_a_method_without_an_entry_is_denied_by_the_chain_too(suite: Suite) -> None:
    # The check at start is one lock; the chain alone must hold as well.
    chain = ServerChain(
        access={},
        service_token=TOKEN,
        authenticator=Keys(),
        metrics=RpcMetrics(suite.telemetry.registry),
        max_message_bytes=1000,
        default_deadline_seconds=1,
    )
    server = grpc.aio.server(interceptors=[chain])
    add_echo_to_server(suite.echo, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            for authorization in (f"Service executor:{TOKEN}", "Bearer admin"):
                error = await refusal(channel, "UnaryUnary", metadata=(("authorization", authorization),))
                assert (type(error), error.reason) == (PermissionDenied, Reason.METHOD_NOT_ALLOWED)
    finally:
        await server.stop(None)


async def test_a_method_that_does_not_exist_is_unimplemented(suite: Suite) -> None:
    channel = await suite.connect(await suite.serve())
    assert (await refusal(channel, "Missing")).code is grpc.StatusCode.UNIMPLEMENTED


def test_the_table_names_only_methods_that_exist_and_admits_somebody() -> None:
    with pytest.raises(ValueError, match="without a method: /b"):
        check_access_table(["/a"], {"/a": Access(public=True), "/b": Access(public=True)})
    with pytest.raises(ValueError, match="admit nobody: /a"):
        check_access_table(["/a"], {"/a": Access()})


async def test_only_the_listed_services_may_call_an_internal_method(suite: Suite) -> None:
    server = await suite.serve()
    bare = await suite.connect_bare(server)

    assert await call(await suite.connect(server), "UnaryUnary", "x") == ["x"]
    assert (await refusal(await suite.connect(server, service="trace"), "UnaryUnary")).reason == "METHOD_NOT_ALLOWED"
    for authorization in ("Service executor:wrong-token", f"Service :{TOKEN}x", "Service executor", "Basic eDp5", ""):
        error = await refusal(bare, "UnaryUnary", metadata=(("authorization", authorization),))
        assert (type(error), error.reason) == (Unauthenticated, Reason.SERVICE_TOKEN_INVALID), authorization
    assert (await refusal(bare, "UnaryUnary", **bearer("admin"))).reason == Reason.METHOD_NOT_ALLOWED


async def test_an_api_key_needs_the_scope_of_the_method(suite: Suite) -> None:
    seen: list[tuple[str, str]] = []

    async def act(text: str) -> str:
        seen.append((current_identity().name, current_workspace()))
        return text

    suite.echo.act = act
    server = await suite.serve(access=SCOPED_ACCESS, authenticator=Keys())
    channel = await suite.connect_bare(server)

    await call(channel, "UnaryUnary", "x", **bearer("reader"))
    await call(channel, "UnaryStream", "x", **bearer("reader"))
    await call(channel, "StreamUnary", "x", **bearer("admin"))
    error = await refusal(channel, "StreamUnary", **bearer("reader"))

    assert seen == [("key:k1", "w1"), ("key:k1", "w1"), ("key:k2", "w2")]
    assert (type(error), error.reason) == (PermissionDenied, Reason.SCOPE_MISSING)
    assert error.metadata == {"scope": "runs:write"}


@pytest.mark.parametrize("kind", KINDS)
async def test_a_missing_key_is_told_how_to_be_sent(suite: Suite, kind: str) -> None:
    channel = await suite.connect_bare(await suite.serve(access=SCOPED_ACCESS, authenticator=Keys()))
    error = await refusal(channel, kind)
    assert (type(error), error.reason) == (Unauthenticated, Reason.API_KEY_MISSING)


async def test_every_wrong_key_gets_the_same_answer(suite: Suite) -> None:
    channel = await suite.connect_bare(await suite.serve(access=SCOPED_ACCESS, authenticator=Keys()))
    answers = {
        (error.reason, error.message, tuple(error.metadata.items()))
        for error in [await refusal(channel, "UnaryUnary", **bearer(key)) for key in ("unknown", "k" * 600, "r" * 40)]
    }
    assert answers == {("API_KEY_INVALID", "the API key is not valid", ())}


async def test_an_expired_key_is_told_so(suite: Suite) -> None:
    keys = Keys()
    keys.error = Unauthenticated("key k1 of workspace w1 expired", reason=Reason.API_KEY_EXPIRED)
    channel = await suite.connect_bare(await suite.serve(access=SCOPED_ACCESS, authenticator=keys))
    error = await refusal(channel, "UnaryUnary", **bearer("reader"))
    assert (error.reason, error.message) == (Reason.API_KEY_EXPIRED, "the API key has expired")


async def test_a_service_says_for_which_workspace_it_calls_and_a_key_cannot(suite: Suite) -> None:
    seen: list[str | None] = []

    async def act(text: str) -> str:
        seen.append(current_identity().workspace_id)
        return text

    suite.echo.act = act
    access = {name: Access(scope="runs:read", services=("executor",)) for name in INTERNAL_ACCESS}
    server = await suite.serve(access=access, authenticator=Keys())
    await call(await suite.connect(server), "UnaryUnary", "x", metadata=((WORKSPACE_KEY, "w9"),))
    foreign = (("authorization", "Bearer reader"), (WORKSPACE_KEY, "w9"))
    await call(await suite.connect_bare(server), "UnaryUnary", "x", metadata=foreign)

    assert seen == ["w9", "w1"]


# ----------------------------------------------------------------------------------------------- deadlines, sizes, logs


async def test_a_unary_call_without_a_deadline_gets_the_servers(suite: Suite) -> None:
    async def act(text: str) -> str:
        await asyncio.Event().wait()
        return text

    suite.echo.act = act
    server = await suite.serve(default_deadline_seconds=0.05)
    bare = await suite.connect_bare(server)
    error = await refusal(bare, "UnaryUnary", metadata=(("authorization", f"Service executor:{TOKEN}"),))

    assert type(error) is DeadlineExceeded
    assert "0.05 s" in error.message


async def test_long_polls_streams_and_calls_with_a_deadline_outlive_the_servers(suite: Suite) -> None:
    ended = asyncio.Event()

    async def act(text: str) -> str:
        await ended.wait()
        return text

    suite.echo.act = act
    access = {**INTERNAL_ACCESS, f"/{SERVICE}/UnaryUnary": Access(services=("executor",), long_poll=True)}
    server = await suite.serve(access=access, default_deadline_seconds=0.05)
    bare = await suite.connect_bare(server)
    service = (("authorization", f"Service executor:{TOKEN}"),)
    async with asyncio.TaskGroup() as group:
        polling = group.create_task(call(bare, "UnaryUnary", "polled", metadata=service))
        streaming = group.create_task(call(bare, "StreamStream", "streamed", metadata=service))
        given = group.create_task(call(bare, "Held", "given", metadata=service, timeout=5))
        # A call that came later than these three is cut by the server's deadline while they go on.
        await suite.echo.started.wait()
        assert type(await refusal(bare, "Held", metadata=service)) is DeadlineExceeded
        ended.set()
    assert [task.result() for task in (polling, streaming, given)] == [["polled"], ["streamed"], ["given"]]


@pytest.mark.parametrize("kind", KINDS)
async def test_a_message_above_the_limit_is_an_invalid_argument_that_names_it(suite: Suite, kind: str) -> None:
    limit = 64 * 1024
    server = await suite.serve(max_message_bytes=limit)
    # A client of somebody else, whose own limit is higher than the server's.
    bare = await suite.connect_bare(server)
    service = (("authorization", f"Service executor:{TOKEN}"),)

    assert len((await call(bare, kind, "x" * (limit - 100), metadata=service))[-1]) == limit - 100
    error = await refusal(bare, kind, "x" * limit, metadata=service)

    assert (type(error), error.reason) == (InvalidArgument, Reason.MESSAGE_TOO_LARGE)
    assert str(limit) in error.message
    assert error.metadata["limit_bytes"] == str(limit)


async def test_bytes_that_are_no_message_are_an_invalid_argument(suite: Suite) -> None:
    channel = await suite.connect(await suite.serve())
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await channel.unary_unary(f"/{SERVICE}/UnaryUnary")(b"\xff\xff\xff")
    assert from_rpc_error(caught.value).reason == Reason.MALFORMED_REQUEST


async def test_one_log_line_per_call_says_who_called_what_and_never_with_what(
    suite: Suite, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    server = await suite.serve(access=SCOPED_ACCESS, authenticator=Keys())
    channel = await suite.connect_bare(server)
    await call(channel, "UnaryUnary", "a-payload", **bearer("reader"))
    await refusal(channel, "StreamUnary", "a-payload", **bearer("reader"))

    lines = [record for record in caplog.records if record.getMessage() == "rpc"]
    fields = [record.fields for record in lines]  # type: ignore[attr-defined]
    assert [(item["method"], item["code"], item["caller"], item["workspace_id"]) for item in fields] == [
        (f"{SERVICE}/UnaryUnary", "OK", "key:k1", "w1"),
        (f"{SERVICE}/StreamUnary", "PERMISSION_DENIED", "key:k1", "w1"),
    ]
    assert all(record.levelno == logging.INFO for record in lines)
    assert "a-payload" not in json.dumps([str(record.__dict__) for record in caplog.records])


async def test_calls_are_counted_by_method_and_code(suite: Suite) -> None:
    async def act(text: str) -> str:
        raise NotFound("no")

    channel = await suite.connect(await suite.serve())
    await call(channel, "UnaryUnary", "x")
    suite.echo.act = act
    await refusal(channel, "StreamStream")

    def counted(method: str, code: str) -> float | None:
        labels = {"grpc_service": SERVICE, "grpc_method": method, "grpc_code": code}
        return suite.telemetry.registry.get_sample_value("grpc_server_handled_total", labels)

    assert counted("UnaryUnary", "OK") == 1
    assert counted("StreamStream", "NOT_FOUND") == 1


# ------------------------------------------------------------------------------------------------------------ tracing


@pytest.mark.parametrize("kind", KINDS)
async def test_the_callers_trace_goes_on_in_the_server(suite: Suite, kind: str) -> None:
    channel = await suite.connect(await suite.serve(), telemetry=suite.telemetry)
    with suite.telemetry.tracer("test").start_as_current_span("caller") as caller:
        await call(channel, kind, "x")

    spans = [span for span in suite.spans.finished if SERVICE in span.name]
    assert any(span.kind.name == "SERVER" for span in spans)
    assert {span.context.trace_id for span in spans} == {caller.get_span_context().trace_id}


async def test_a_cancelled_call_ends_its_span_on_both_sides(suite: Suite) -> None:
    async def act(text: str) -> str:
        await asyncio.Event().wait()
        return text

    suite.echo.act = act
    channel = await suite.connect(await suite.serve(), telemetry=suite.telemetry)
    calling_task = asyncio.ensure_future(call(channel, "UnaryUnary", "x"))
    async with asyncio.timeout(20):
        await suite.echo.started.wait()
        calling_task.cancel()
        await suite.echo.closed.wait()
    with pytest.raises(asyncio.CancelledError):
        await calling_task

    await suite.spans.wait_for(2)
    kinds = sorted(span.kind.name for span in suite.spans.finished)
    assert kinds == ["CLIENT", "SERVER"]


async def test_a_cancelled_stream_closes_its_handler_in_its_own_task(
    suite: Suite, caplog: pytest.LogCaptureFixture
) -> None:
    ended_in: list[asyncio.Task[Any] | None] = []
    started_in: asyncio.Future[asyncio.Task[Any] | None] = asyncio.get_running_loop().create_future()

    async def act(text: str) -> str:
        started_in.set_result(asyncio.current_task())
        try:
            await asyncio.Event().wait()
        finally:
            ended_in.append(asyncio.current_task())
        return text

    suite.echo.act = act
    channel = await suite.connect(await suite.serve())
    stream = channel.unary_stream(f"/{SERVICE}/UnaryStream")(b"")
    async with asyncio.timeout(20):
        await stream.read()
        task = await started_in
        stream.cancel()
        await suite.echo.closed.wait()
        await suite.spans.wait_for(1)

    assert ended_in == [task]
    assert not [record for record in caplog.records if "detach" in record.getMessage()]


async def test_an_untraced_method_has_no_span(suite: Suite) -> None:
    access = {name: Access(services=("executor",), traced=False) for name in INTERNAL_ACCESS}
    untraced = frozenset(INTERNAL_ACCESS)
    channel = await suite.connect(await suite.serve(access=access), telemetry=suite.telemetry, untraced=untraced)
    for kind in KINDS:
        await call(channel, kind, "x")
    assert suite.spans.finished == []
