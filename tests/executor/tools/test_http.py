"""`http` tools against a real server: what is sent, where it may go, and what each kind of failure may have done."""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from holdfast.api.common.v1 import agent_pb2, content_pb2
from services.executor.tools.http import HttpTools, ToolFailed
from services.executor.tools.url_template import UrlTemplate

RETRYABLE = content_pb2.FAILURE_CLASS_RETRYABLE
RATE_LIMITED = content_pb2.FAILURE_CLASS_RATE_LIMITED
PERMANENT = content_pb2.FAILURE_CLASS_PERMANENT
UNKNOWN = content_pb2.FAILURE_CLASS_UNKNOWN_OUTCOME
INVALID = content_pb2.FAILURE_CLASS_INVALID_ARGUMENTS

AT_MOST_ONCE = agent_pb2.EFFECT_CLASS_AT_MOST_ONCE
IDEMPOTENT = agent_pb2.EFFECT_CLASS_IDEMPOTENT
READ_ONLY = agent_pb2.EFFECT_CLASS_READ_ONLY

Reply = Callable[[asyncio.StreamWriter], Awaitable[None]]


@dataclass
class Received:
    method: str
    target: str
    headers: dict[str, str]
    body: bytes


@dataclass
class Endpoint:
    """A server that notes what it is sent and replies as a test says."""

    reply: Reply
    received: list[Received] = field(default_factory=list)
    port: int = 0
    connections: int = 0

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
                method, target, _ = head[0].split(" ")
                headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in head[1:-2])}
                body = await reader.readexactly(int(headers.get("content-length", 0)))
                self.received.append(Received(method, target, headers, body))
                await self.reply(writer)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    def url(self, path: str = "/") -> str:
        return f"http://127.0.0.1:{self.port}{path}"


def answer(status: int = 200, body: bytes = b"{}", **headers: str) -> Reply:
    async def reply(writer: asyncio.StreamWriter) -> None:
        fields = {"content-type": "application/json", "content-length": str(len(body))}
        fields |= {name.replace("_", "-"): value for name, value in headers.items()}
        lines = "".join(f"{name}: {value}\r\n" for name, value in fields.items() if value)
        writer.write(f"HTTP/1.1 {status} X\r\n{lines}\r\n".encode() + body)

    return reply


@asynccontextmanager
async def serving(reply: Reply) -> AsyncIterator[Endpoint]:
    endpoint = Endpoint(reply)
    server = await asyncio.start_server(endpoint.handle, "127.0.0.1", 0)
    endpoint.port = server.sockets[0].getsockname()[1]
    try:
        yield endpoint
    finally:
        server.close()


@pytest.fixture
async def tools() -> AsyncIterator[HttpTools]:
    made = HttpTools(("127.0.0.0/8", "::1"))
    yield made
    await made.close()


def spec(url: str, effect: agent_pb2.EffectClass = AT_MOST_ONCE, **http: Any) -> agent_pb2.ToolSpec:
    return agent_pb2.ToolSpec(name="shop", effect=effect, http=agent_pb2.HttpTool(url=url, **http))


async def call(tools: HttpTools, tool: agent_pb2.ToolSpec, **arguments: Any) -> str:
    async with asyncio.timeout(10):
        return await tools.call(tool, arguments, "the-key", {"traceparent": "00-1-2-01"})


async def failure(tools: HttpTools, tool: agent_pb2.ToolSpec, **arguments: Any) -> content_pb2.Failure:
    with pytest.raises(ToolFailed) as caught:
        await call(tools, tool, **arguments)
    return caught.value.failure


# ------------------------------------------------------------------------------------------------------- the request


async def test_arguments_fill_path_query_and_body(tools: HttpTools) -> None:
    async with serving(answer(body=b'{"ok": true}')) as shop:
        tool = spec(shop.url("/orders/{order}/refund?mode={mode}"), query=["dry"], headers={"X-Shop": "a"})
        assert json.loads(await call(tools, tool, order="a/b c", mode="x&y=1", dry=True, amount=5.0)) == {"ok": True}
    [request] = shop.received
    assert request.method == "POST"
    assert request.target == "/orders/a%2Fb%20c/refund?mode=x%26y%3D1&dry=true"
    assert json.loads(request.body) == {"amount": 5}
    assert request.headers["idempotency-key"] == "the-key"
    assert request.headers["traceparent"] == "00-1-2-01"
    assert request.headers["x-shop"] == "a"
    assert request.headers["content-type"] == "application/json"
    assert request.headers["host"] == f"127.0.0.1:{shop.port}"


@pytest.mark.parametrize("method", ["GET", "DELETE"])
async def test_methods_without_a_body_put_everything_into_the_query(tools: HttpTools, method: str) -> None:
    async with serving(answer()) as shop:
        await call(tools, spec(shop.url("/o?a=1"), method=method), tags=["x", "y z"], none=None, deep={"k": 1})
    [request] = shop.received
    assert (request.method, request.body) == (method, b"")
    assert parse_qs(urlsplit(request.target).query) == {"a": ["1"], "tags": ["x", "y z"], "deep": ['{"k":1}']}


async def test_connection_is_used_again(tools: HttpTools) -> None:
    async with serving(answer()) as shop:
        for _ in range(3):
            await call(tools, spec(shop.url()))
    assert (len(shop.received), shop.connections) == (3, 1)


async def test_connections_of_many_calls_at_once_are_used_again(tools: HttpTools) -> None:
    # Each answer waits until as many calls are under way, so that none has another's connection.
    together = asyncio.Barrier(40)
    now = answer()

    async def reply(writer: asyncio.StreamWriter) -> None:
        await together.wait()
        await now(writer)

    async with serving(reply) as shop:
        for _ in range(3):
            await asyncio.gather(*(call(tools, spec(shop.url())) for _ in range(40)))
    assert (len(shop.received), shop.connections) == (120, 40)


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ("..", "may not be"),
        (".", "may not be"),
        ("../../admin", "may not be"),
        ("..\\admin", "may not be"),
        ("%2e%2e", "may not be"),
        ("%252e%252e/x", "may not be"),
        ("", "may not be empty"),
        (None, "is required"),
        ([1], "expected a text or a number"),
        ({"a": 1}, "expected a text or a number"),
        ("x" * 9_000, "8192 characters"),
    ],
)
async def test_value_that_would_lead_elsewhere_is_refused_before_anything_is_sent(
    tools: HttpTools, value: Any, told: str
) -> None:
    async with serving(answer()) as shop:
        refused = await failure(tools, spec(shop.url("/orders/{order}")), order=value)
    assert refused.failure_class == INVALID
    assert told in refused.message
    assert shop.received == []


@pytest.mark.parametrize(
    "value", ["/evil.example", "//evil.example/", "@evil.example", "\\\\evil.example", "?a=b#c", "a\r\nX-Evil: 1", "☃"]
)
async def test_no_value_can_change_host_path_query_or_headers(tools: HttpTools, value: str) -> None:
    async with serving(answer()) as shop:
        await call(tools, spec(shop.url("/{order}/x")), order=value)
    [request] = shop.received
    assert request.target.count("/") == 2
    assert "?" not in request.target
    assert request.target.endswith("/x")
    assert "x-evil" not in request.headers


@pytest.mark.parametrize(
    "url",
    [
        "ftp://example.com/",
        "//example.com/",
        "/orders",
        "http://",
        "http://user:secret@example.com/",
        "http://{host}/",
        "http://example{tld}/",
        "http://example.com:{port}/",
        "http://example.com{path}",
        "http://example.com:0/",
        "http://example.com:99999/",
        "http://example.com/#{name}",
        "http://example.com/{name",
        "http://example.com/name}",
        "http://example.com/{}",
        "http://example.com/{na me}",
        "http://example.com/{1}",
        "http://example.com/../{name}",
        "http://example.com/a b",
        "http://example.com\\@evil.example/",
        "http://bücher.example/",
        "http://example.com/\n",
    ],
)
def test_unusable_template_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="expected"):
        UrlTemplate.parse(url)


def test_template_keeps_its_own_text_and_names_its_places() -> None:
    template = UrlTemplate.parse("HTTPS://Example.COM:8443/a%20b/ü/{x}?q={y}&z=1")
    assert template.names == {"x", "y"}
    assert template.expand({"x": 1.0, "y": True}) == "https://example.com:8443/a%20b/%C3%BC/1?q=true&z=1"
    assert UrlTemplate.parse("http://[::1]:80").expand({}) == "http://[::1]:80/"


# -------------------------------------------------------------------------------------------------------- the answer


@pytest.mark.parametrize(
    ("reply", "result"),
    [
        (answer(200, b'{"a": 1}'), {"a": 1}),
        (answer(201, b'{"a": 1}', content_type="application/problem+json; charset=utf-8"), {"a": 1}),
        (answer(200, b"hello", content_type="text/plain"), "hello"),
        (answer(200, "é".encode("latin-1"), content_type="text/plain; charset=iso-8859-1"), "é"),
        (answer(200, b"\xff", content_type="text/plain; charset=nonsense"), "\ufffd"),
        (answer(200, b"hello", content_type=""), "hello"),
        (answer(204, b""), None),
        (answer(200, b"\x01", content_type="image/png"), {"media_type": "image/png", "base64": "AQ=="}),
        (answer(200, gzip.compress(b'{"a": 1}'), content_encoding="gzip"), {"a": 1}),
    ],
)
async def test_answer_becomes_json(tools: HttpTools, reply: Reply, result: Any) -> None:
    async with serving(reply) as shop:
        assert json.loads(await call(tools, spec(shop.url()))) == result


@pytest.mark.parametrize(
    ("reply", "effect", "reason", "failure_class"),
    [
        (answer(302, location="http://127.0.0.1/"), READ_ONLY, "TOOL_REDIRECTED", PERMANENT),
        (answer(404, b"no such order", content_type="text/plain"), AT_MOST_ONCE, "TOOL_ANSWERED_ERROR", PERMANENT),
        (answer(500), AT_MOST_ONCE, "TOOL_ANSWERED_ERROR", UNKNOWN),
        (answer(500), agent_pb2.EFFECT_CLASS_UNSPECIFIED, "TOOL_ANSWERED_ERROR", UNKNOWN),
        (answer(500), IDEMPOTENT, "TOOL_ANSWERED_ERROR", RETRYABLE),
        (answer(502), READ_ONLY, "TOOL_ANSWERED_ERROR", RETRYABLE),
        (answer(503), AT_MOST_ONCE, "TOOL_ANSWERED_ERROR", UNKNOWN),
        (answer(503, retry_after="2"), AT_MOST_ONCE, "TOOL_RATE_LIMITED", RATE_LIMITED),
        (answer(429), AT_MOST_ONCE, "TOOL_RATE_LIMITED", RATE_LIMITED),
        (answer(200, b"{oops"), AT_MOST_ONCE, "INVALID_RESULT", PERMANENT),
        (answer(200, b"x" * 20, content_encoding="gzip"), IDEMPOTENT, "TOOL_CONNECTION_BROKEN", RETRYABLE),
    ],
)
async def test_failed_answer_is_classified_by_what_it_may_have_done(
    tools: HttpTools,
    reply: Reply,
    effect: agent_pb2.EffectClass,
    reason: str,
    failure_class: content_pb2.FailureClass,
) -> None:
    async with serving(reply) as shop:
        failed = await failure(tools, spec(shop.url(), effect))
    assert (failed.reason, failed.failure_class) == (reason, failure_class)
    assert len(shop.received) == 1, "nothing is repeated or followed here"


async def test_body_of_an_error_is_shown_shortened(tools: HttpTools) -> None:
    async with serving(answer(422, b"why: " + b"x" * 100_000, content_type="text/plain")) as shop:
        failed = await failure(tools, spec(shop.url()))
    assert failed.message.startswith("shop answered 422: why: xxx")
    assert len(failed.message) < 1_200


@pytest.mark.parametrize(
    ("value", "millis"), [("7", 7_000), ("0.5", 500), ("soon", 0), ("-3", 0), ("999999999", 86_400_000)]
)
async def test_wish_to_wait_is_passed_on(tools: HttpTools, value: str, millis: int) -> None:
    async with serving(answer(429, retry_after=value)) as shop:
        assert (await failure(tools, spec(shop.url()))).retry_after_millis == millis


async def test_huge_answer_is_not_read_to_its_end(tools: HttpTools) -> None:
    async def endless(writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\n\r\n")
        while not writer.is_closing():
            writer.write(b"x" * 65_536)
            await writer.drain()

    async with serving(endless) as shop:
        failed = await failure(tools, spec(shop.url()))
    assert (failed.reason, failed.failure_class) == ("RESULT_TOO_LARGE", PERMANENT)


async def test_answer_that_expands_to_too_much_is_refused(tools: HttpTools) -> None:
    bomb = gzip.compress(b"x" * (9 * 1024 * 1024))
    async with serving(answer(200, bomb, content_type="text/plain", content_encoding="gzip")) as shop:
        assert (await failure(tools, spec(shop.url()))).reason == "RESULT_TOO_LARGE"


async def broken_off(writer: asyncio.StreamWriter) -> None:
    writer.close()


async def broken_half_way(writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nabc")
    await writer.drain()
    writer.close()


async def no_http(writer: asyncio.StreamWriter) -> None:
    writer.write(b"\x00\x01 what?\r\n\r\n")


@pytest.mark.parametrize("reply", [broken_off, broken_half_way, no_http])
@pytest.mark.parametrize(("effect", "failure_class"), [(AT_MOST_ONCE, UNKNOWN), (IDEMPOTENT, RETRYABLE)])
async def test_connection_that_breaks_after_sending_leaves_doubt_only_where_it_matters(
    tools: HttpTools, reply: Reply, effect: agent_pb2.EffectClass, failure_class: content_pb2.FailureClass
) -> None:
    async with serving(reply) as shop:
        failed = await failure(tools, spec(shop.url(), effect))
    assert (failed.reason, failed.failure_class) == ("TOOL_CONNECTION_BROKEN", failure_class)


@pytest.mark.parametrize(("effect", "failure_class"), [(AT_MOST_ONCE, UNKNOWN), (READ_ONLY, RETRYABLE)])
async def test_slow_answer_times_out(
    tools: HttpTools, effect: agent_pb2.EffectClass, failure_class: content_pb2.FailureClass
) -> None:
    asked = asyncio.Event()

    async def silent(writer: asyncio.StreamWriter) -> None:
        asked.set()
        await asyncio.Event().wait()

    async with serving(silent) as shop:
        tool = spec(shop.url(), effect)
        tool.timeout.FromMilliseconds(200)
        failed = await failure(tools, tool)
    assert asked.is_set()
    assert (failed.reason, failed.failure_class) == ("CALL_TIMEOUT", failure_class)


async def test_refused_connection_left_no_doubt(tools: HttpTools) -> None:
    async with serving(answer()) as shop:
        pass
    failed = await failure(tools, spec(shop.url(), AT_MOST_ONCE))
    assert (failed.reason, failed.failure_class) == ("TOOL_UNREACHABLE", RETRYABLE)


async def test_name_that_does_not_resolve_left_no_doubt() -> None:
    async def unknown(host: str, port: int) -> Sequence[str]:
        raise OSError("no such name")

    tools = HttpTools(resolver=unknown)
    failed = await failure(tools, spec("http://nowhere.example/"))
    assert (failed.reason, failed.failure_class) == ("TOOL_UNREACHABLE", RETRYABLE)
    await tools.close()


# ------------------------------------------------------------------------------------------------------- the targets


async def test_private_target_is_refused_without_a_connection() -> None:
    async with serving(answer()) as shop:
        tools = HttpTools()
        failed = await failure(tools, spec(shop.url(), READ_ONLY))
        await tools.close()
    assert (failed.reason, failed.failure_class) == ("TOOL_TARGET_REFUSED", PERMANENT)
    assert shop.received == []


async def test_connection_goes_to_the_address_that_was_checked() -> None:
    """A name that is rebound after the check cannot lead the connection elsewhere: it is resolved once."""
    answers = [["127.0.0.1"], ["10.0.0.1"]]
    asked: list[str] = []

    async def rebinding(host: str, port: int) -> Sequence[str]:
        asked.append(host)
        return answers[len(asked) - 1]

    tools = HttpTools(("127.0.0.1",), resolver=rebinding)
    async with serving(answer()) as shop:
        tool = spec(f"http://shop.example:{shop.port}/")
        await call(tools, tool)
        assert asked == ["shop.example"]
        assert shop.received[0].headers["host"] == f"shop.example:{shop.port}"
    await tools.close()


async def test_name_that_is_rebound_to_a_private_address_is_refused_at_the_next_connection() -> None:
    answers = [["127.0.0.1"], ["10.0.0.1"]]

    async def rebinding(host: str, port: int) -> Sequence[str]:
        return answers.pop(0)

    tools = HttpTools(("127.0.0.1",), resolver=rebinding)
    async with serving(answer(200, b"{}", connection="close")) as shop:
        tool = spec(f"http://shop.example:{shop.port}/")
        await call(tools, tool)
        assert (await failure(tools, tool)).reason == "TOOL_TARGET_REFUSED"
    await tools.close()


async def test_cancelled_call_ends_at_once(tools: HttpTools) -> None:
    asked = asyncio.Event()

    async def silent(writer: asyncio.StreamWriter) -> None:
        asked.set()
        await asyncio.Event().wait()

    async with serving(silent) as shop:
        task = asyncio.create_task(call(tools, spec(shop.url())))
        async with asyncio.timeout(20):
            await asked.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
