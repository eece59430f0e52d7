"""Where requests may go: one reading of each address, checked and pinned connections, nothing that leads elsewhere."""

from __future__ import annotations

import asyncio
import gzip
import json
import ssl
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpcore
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st

from services.shared.egress import (
    Answer,
    EgressClient,
    EgressFailed,
    EgressRule,
    Failure,
    TargetPolicy,
    TargetRefused,
    parse_allowed_targets,
    parse_destination,
)
from services.shared.egress.rules import allows_any

LOOPBACK = ("127.0.0.0/8", "::1")

# ------------------------------------------------------------------------------------------------------- the addresses


@pytest.mark.parametrize(
    ("url", "host", "authority"),
    [
        ("https://API.Example.com", "api.example.com", "api.example.com"),
        ("HTTPS://api.example.com:443/x", "api.example.com", "api.example.com"),
        ("https://api.example.com:8443/", "api.example.com", "api.example.com:8443"),
        ("https://api.example.com./x", "api.example.com", "api.example.com"),
        ("https://xn--bcher-kva.example/", "xn--bcher-kva.example", "xn--bcher-kva.example"),
        ("https://192.0.2.7/", "192.0.2.7", "192.0.2.7"),
        ("https://[2001:DB8:0::1]:8443/", "2001:db8::1", "[2001:db8::1]:8443"),
        ("https://a_b.example/", "a_b.example", "a_b.example"),
    ],
)
def test_address_has_one_spelling(url: str, host: str, authority: str) -> None:
    to = parse_destination(url)
    assert (to.host, to.authority) == (host, authority)
    assert parse_destination(to.url) == to


@pytest.mark.parametrize(
    "url",
    [
        "",
        "api.example.com",
        "//api.example.com/",
        "ftp://api.example.com/",
        "file:///etc/passwd",
        "javascript:alert(1)",
        "https://",
        "https:///x",
        "https://user@api.example.com/",
        "https://user:password@api.example.com/",
        "https://api.example.com@evil.example/",
        "https://api.example.com\\@evil.example/",
        "https://api.example.com\\.evil.example/",
        "https://api.example.com#@evil.example/",
        "https://api.example.com/#fragment",
        "https://api.example.com/a b",
        "https://api.example.com/\r\nX-Evil: 1",
        "https://api.example.com/\x00",
        "https://api.example.com/\t",
        " https://api.example.com/",
        "https://api.example.com:0/",
        "https://api.example.com:65536/",
        "https://api.example.com:/",
        "https://api.example.com:+1/",
        "https://api.example.com:٤٤٣/",
        "https://api..example.com/",
        "https://.example.com/",
        "https://-a.example/",
        "https://a-.example/",
        "https://a%2eexample/",
        "https://*.example.com/",
        f"https://{'a' * 64}.example/",
        f"https://{'a.' * 130}example/",
        # IDNA confusables: a name in another script is written as xn--….
        "https://аpi.example.com/",
        "https://api。example.com/",
        "https://ⓐpi.example.com/",
        "https://api.example.com/ü",
        # Odd spellings of 127.0.0.1, and what only looks like an address.
        "https://127.1/",
        "https://2130706433/",
        "https://0x7f000001/",
        "https://0x7f.0.0.1/",
        "https://0177.0.0.1/",
        "https://127.0.0.01/",
        "https://127.0.0.1.1/",
        "https://127.0.0.256/",
        "https://1.2.3/",
        "https://example.1/",
        "https://example.0x1/",
        "https://[::1/",
        "https://[::1]x/",
        "https://::1/",
        "https://[fe80::1%25eth0]/",
        "https://[127.0.0.1]/",
        "https://[v1.a]/",
        # What means "up" for a server that decodes once or more often.
        "https://api.example.com/v1/../admin",
        "https://api.example.com/v1/%2e%2e/admin",
        "https://api.example.com/v1/..%2fadmin",
        "https://api.example.com/v1/%252e%252e%252fadmin",
        "https://api.example.com/v1/..%5cadmin",
        "https://api.example.com/./x",
        f"https://api.example.com/{'a' * 9_000}",
    ],
)
def test_address_that_could_be_read_in_two_ways_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="expected"):
        parse_destination(url)
    assert not EgressRule("*.example.com").allows(url, "GET")


PIECES = (
    "https:// http:// a.example evil.example @ : \\ / // # ? %2f %2e . .. 443 127.0.0.1 [ ] ::1 é 。 x user 0x7f & %00"
)


@given(st.lists(st.sampled_from([*PIECES.split(), "\t", "\n", " "]), max_size=10).map("".join))
def test_whatever_is_accepted_every_other_reader_takes_for_the_same_host(text: str) -> None:
    try:
        to = parse_destination(text)
    except ValueError:
        return
    assert parse_destination(to.url) == to
    split = urlsplit(to.url)
    assert (split.hostname, split.port or to.port, split.username) == (to.host, to.port, None)
    sent = httpcore.URL(to.url)
    assert sent.host.decode().strip("[]") == to.host
    assert (sent.port or to.port) == to.port


@given(st.text(max_size=200))
def test_any_text_is_an_address_or_a_value_error(text: str) -> None:
    for candidate in (text, f"https://{text}", f"https://a.example/{text}"):
        try:
            parse_destination(candidate)
        except ValueError as error:
            assert str(error).startswith("expected")


# ----------------------------------------------------------------------------------------------------------- the rules


@pytest.mark.parametrize(
    ("rule", "url", "is_allowed"),
    [
        (EgressRule("api.example.com"), "https://api.example.com/x?y=1", True),
        (EgressRule("api.example.com"), "https://API.EXAMPLE.COM./", True),
        (EgressRule("api.example.com"), "https://a.api.example.com/", False),
        (EgressRule("api.example.com"), "http://api.example.com/", False),
        (EgressRule("api.example.com"), "https://api.example.com:8443/", False),
        (EgressRule("api.example.com", port=8443), "https://api.example.com:8443/", True),
        (EgressRule("*.example.com"), "https://a.example.com/", True),
        (EgressRule("*.example.com"), "https://a.b.example.com/", True),
        (EgressRule("*.example.com"), "https://example.com/", False),
        (EgressRule("*.example.com"), "https://evil-example.com/", False),
        (EgressRule("*.example.com"), "https://aexample.com/", False),
        (EgressRule("*.example.com"), "https://a.example.com.evil.example/", False),
        (EgressRule("*.example.com"), "https://a.example.com@evil.example/", False),
        (EgressRule("*.example.com"), "https://evil.example/?https://a.example.com/", False),
        (EgressRule("*.example.com"), "https://evil.example/https://a.example.com/", False),
        (EgressRule("a.example", path_prefix="/v1"), "https://a.example/v1", True),
        (EgressRule("a.example", path_prefix="/v1"), "https://a.example/v1/x", True),
        (EgressRule("a.example", path_prefix="/v1"), "https://a.example/v10", False),
        (EgressRule("a.example", path_prefix="/v1/"), "https://a.example/v1", False),
        (EgressRule("a.example", path_prefix="/v1"), "https://a.example/v1/..%2fadmin", False),
        (EgressRule("a.example", path_prefix="/v1"), "https://a.example//v1/x", False),
        (EgressRule("[2001:db8::1]"), "https://[2001:DB8::1]/", True),
        (EgressRule("192.0.2.7"), "https://192.0.2.7/", True),
        (EgressRule("192.0.2.7"), "https://192.0.2.07/", False),
    ],
)
def test_rule_allows_what_it_says_and_nothing_else(rule: EgressRule, url: str, is_allowed: bool) -> None:
    assert rule.allows(url, "GET") is is_allowed


def test_methods_are_those_of_the_rule() -> None:
    reading = EgressRule("a.example", methods=frozenset({"GET", "HEAD"}))
    assert [
        method for method in ("GET", "HEAD", "POST", "get", "CONNECT") if reading.allows("https://a.example/", method)
    ] == [
        "GET",
        "HEAD",
    ]
    assert not EgressRule("a.example").allows("https://a.example/", "CONNECT")
    assert not EgressRule("a.example").allows("https://a.example/", "TRACE")


def test_without_rules_nothing_is_allowed() -> None:
    assert not allows_any((), "https://a.example/", "GET")
    assert allows_any((EgressRule("b.example"), EgressRule("a.example")), "https://a.example/", "GET")


def test_rule_survives_its_document() -> None:
    rule = EgressRule("*.example.com", port=8443, path_prefix="/v1", methods=frozenset({"GET", "POST"}))
    assert EgressRule.from_document(json.loads(json.dumps(rule.to_document()))) == rule
    for wrong in ({}, {**rule.to_document(), "host": 7}, {**rule.to_document(), "host": "*"}):
        with pytest.raises(ValueError, match="expected"):
            EgressRule.from_document(wrong)


@pytest.mark.parametrize(
    "changes",
    [
        {"host": "*"},
        {"host": "*.com"},
        {"host": "a.*.com"},
        {"host": "*.1.2.3.4"},
        {"host": "A.example"},
        {"host": "127.1"},
        {"host": "a b"},
        {"host": "https://a.example"},
        {"host": ""},
        {"scheme": "ftp"},
        {"port": 0},
        {"path_prefix": "v1"},
        {"path_prefix": "/v1?x"},
        {"path_prefix": "/../x"},
        {"methods": frozenset({"get"})},
    ],
)
def test_rule_that_means_too_much_or_nothing_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="expected"):
        EgressRule(**{"host": "a.example", **changes})


# ---------------------------------------------------------------------------------------------------------- the policy


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "10.1.2.3",
        "172.16.0.1",
        "192.168.1.1",
        "169.254.1.1",
        "100.64.0.1",
        "0.0.0.0",
        "255.255.255.255",
        "224.0.0.1",
        "240.0.0.1",
        "::1",
        "::",
        "fe80::1",
        "fe80::1%eth0",
        "fc00::1",
        "ff02::1",
        "::ffff:127.0.0.1",
        "::ffff:10.0.0.1",
        "64:ff9b::7f00:1",
        "2002:7f00:1::",
        "64:ff9b:1::a00:1",
        "::10.0.0.1",
        "::ffff:0:10.0.0.1",
        "fec0::1",
        "192.88.99.1",
        "198.18.0.1",
    ],
)
def test_only_the_public_internet_may_be_called(address: str) -> None:
    with pytest.raises(TargetRefused, match="HOLDFAST_HTTP_TOOLS_ALLOW"):
        TargetPolicy().check("shop.example", [address])


@pytest.mark.parametrize("address", ["93.184.215.14", "2606:2800:21f:cb07:6820:80da:af6b:8b2c", "::ffff:93.184.215.14"])
def test_public_addresses_may_be_called(address: str) -> None:
    assert len(TargetPolicy().check("shop.example", [address])) == 1


def test_one_private_address_among_public_ones_is_enough_to_refuse() -> None:
    with pytest.raises(TargetRefused):
        TargetPolicy().check("shop.example", ["93.184.215.14", "10.0.0.1"])


@pytest.mark.parametrize(
    ("allowed", "host", "address"),
    [
        ("10.0.0.0/8", "crm", "10.9.9.9"),
        ("10.0.0.0/8", "crm", "::ffff:10.9.9.9"),
        ("10.9.9.9", "crm", "10.9.9.9"),
        ("crm.internal", "CRM.internal.", "10.9.9.9"),
        ("::1", "crm", "::1"),
        ("[::1]", "crm", "::1"),
    ],
)
def test_what_the_operator_allows_may_be_called(allowed: str, host: str, address: str) -> None:
    assert TargetPolicy((allowed,)).check(host, [address])
    with pytest.raises(TargetRefused):
        TargetPolicy((allowed,)).check("other.internal", ["192.168.0.1"])


@pytest.mark.parametrize(
    "address", ["169.254.169.254", "::ffff:169.254.169.254", "169.254.170.2", "100.100.100.200", "fd00:ec2::254"]
)
def test_metadata_services_are_never_called(address: str) -> None:
    policy = TargetPolicy(("0.0.0.0/0", "::/0", "metadata.internal"))
    with pytest.raises(TargetRefused, match="metadata"):
        policy.check("metadata.internal", [address])


@pytest.mark.parametrize("text", ["10.0.0.0/99", "http://crm", "crm:80", "a b"])
def test_bad_entry_of_the_setting_is_named(text: str) -> None:
    with pytest.raises(ValueError, match="a host, an address or a network"):
        parse_allowed_targets(f"127.0.0.1, {text}")


# ---------------------------------------------------------------------------------------------------------- the client

Reply = Callable[[asyncio.StreamWriter], Awaitable[None]]


@dataclass
class Server:
    """Notes what it is sent and replies as a test says."""

    reply: Reply
    port: int = 0
    heads: list[str] = field(default_factory=list)
    server_names: list[str | None] = field(default_factory=list)
    connections: int = 0
    open_connections: int = 0
    has_closed: asyncio.Event = field(default_factory=asyncio.Event)

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.open_connections += 1
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
                length = [line.partition(": ")[2] for line in head.split("\r\n") if line.startswith("content-length")]
                await reader.readexactly(int(length[0]) if length else 0)
                self.heads.append(head)
                await self.reply(writer)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()
            self.open_connections -= 1
            self.has_closed.set()

    def url(self, host: str = "127.0.0.1", scheme: str = "http") -> str:
        return f"{scheme}://{host}:{self.port}/x"


def answer(status: int = 200, body: bytes = b"{}", **headers: str) -> Reply:
    async def reply(writer: asyncio.StreamWriter) -> None:
        fields = {"content-length": str(len(body))} | {name.replace("_", "-"): text for name, text in headers.items()}
        lines = "".join(f"{name}: {text}\r\n" for name, text in fields.items())
        writer.write(f"HTTP/1.1 {status} X\r\n{lines}\r\n".encode() + body)

    return reply


@asynccontextmanager
async def serving(reply: Reply, context: ssl.SSLContext | None = None) -> AsyncIterator[Server]:
    made = Server(reply)
    if context is not None:
        context.sni_callback = lambda _socket, name, _context: made.server_names.append(name)
    server = await asyncio.start_server(made.handle, "127.0.0.1", 0, ssl=context)
    made.port = server.sockets[0].getsockname()[1]
    try:
        yield made
    finally:
        server.close()


@asynccontextmanager
async def client(*allowed: str, **options: Any) -> AsyncIterator[EgressClient]:
    # Without authorities: most tests speak plain http, and reading the usual ones takes longer than they do.
    options = {"ssl_context": ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)} | options
    made = EgressClient(TargetPolicy(allowed or LOOPBACK, setting="THE_SETTING"), **options)
    try:
        yield made
    finally:
        await made.close()


def names(**addresses: Sequence[str]) -> Callable[[str, int], Awaitable[Sequence[str]]]:
    async def resolve(host: str, port: int) -> Sequence[str]:
        return addresses[host.replace(".", "_")]

    return resolve


async def ask(egress: EgressClient, url: str, method: str = "GET", seconds: float = 5, **options: Any) -> Answer:
    async with asyncio.timeout(10):
        return await egress.request(method, url, timeout_seconds=seconds, **options)


async def failed(egress: EgressClient, url: str, method: str = "GET", **options: Any) -> EgressFailed:
    with pytest.raises(EgressFailed) as caught:
        await ask(egress, url, method, **options)
    shown = "".join(traceback.format_exception(caught.value))
    assert "canary" not in shown, shown
    return caught.value


async def test_answer_comes_whole_and_shows_nothing() -> None:
    async with serving(answer(418, b'{"secret": "canary"}', set_cookie="a=1")) as server, client() as egress:
        got = await ask(egress, server.url(), headers={"X-Api-Key": "canary"})
    assert (got.status, got.body, got.headers["set-cookie"]) == (418, b'{"secret": "canary"}', "a=1")
    assert "canary" not in repr(got)
    assert "x-api-key: canary" in server.heads[0]


async def test_headers_that_steer_http_are_the_clients_own() -> None:
    headers = {"Host": "evil.example", "Content-Length": "0", "Transfer-Encoding": "chunked", "Connection": "upgrade"}
    async with serving(answer()) as server, client() as egress:
        await ask(egress, server.url(), "POST", headers=headers | {"Accept-Encoding": "gzip"}, body=b"abc")
    head = server.heads[0].lower()
    assert f"host: 127.0.0.1:{server.port}\r\n" in head
    assert "content-length: 3\r\n" in head
    assert "accept-encoding: identity\r\n" in head
    assert "evil" not in head
    assert "chunked" not in head


@pytest.mark.parametrize("value", ["canary\r\nX-Evil: 1", "canary\n", "canary\x00", "canaryé"])
async def test_header_that_would_begin_another_is_refused(value: str) -> None:
    async with serving(answer()) as server, client() as egress:
        refused = await failed(egress, server.url(), headers={"Authorization": value})
    assert (refused.kind, refused.was_sent, server.heads) == (Failure.REFUSED, False, [])


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_redirect_is_an_answer_and_the_credential_goes_nowhere(status: int) -> None:
    async with serving(answer()) as thief:
        async with serving(answer(status, b"", location=thief.url())) as server, client() as egress:
            got = await ask(egress, server.url(), "POST", headers={"Authorization": "Bearer canary"}, body=b"rt=canary")
        assert got.status == status
        assert thief.connections == 0


async def test_proxy_of_the_environment_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving(answer()) as proxy, serving(answer()) as server, client() as egress:
        for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
        await ask(egress, server.url())
        assert proxy.connections == 0


async def test_plain_http_is_spoken_to_this_machine_only() -> None:
    resolver = names(lan_example=["10.0.0.1"], here_example=["127.0.0.1"], both_example=["127.0.0.1", "10.0.0.1"])
    async with serving(answer()) as server, client("127.0.0.0/8", "10.0.0.0/8", resolver=resolver) as egress:
        assert (await ask(egress, server.url("here.example"))).status == 200
        for host in ("lan.example", "both.example"):
            refused = await failed(egress, server.url(host))
            assert (refused.kind, refused.was_sent) == (Failure.REFUSED, False)
            assert "plain http" in str(refused)


async def test_this_machine_is_called_only_where_the_operator_allows_it() -> None:
    async with serving(answer()) as server:
        egress = EgressClient(TargetPolicy(setting="THE_SETTING"))
        refused = await failed(egress, server.url())
        await egress.close()
    assert (refused.kind, server.connections) == (Failure.REFUSED, 0)
    assert "THE_SETTING" in str(refused)


@pytest.mark.parametrize(
    "url", ["https://user:canary@a.example/", "https://127.1/", "ftp://a.example/", "https://a.example/\r\nX: canary"]
)
async def test_address_that_is_none_is_refused_and_not_repeated(url: str) -> None:
    async with client() as egress:
        assert (await failed(egress, url)).kind is Failure.REFUSED


@pytest.mark.parametrize(
    "addresses",
    [
        ["10.0.0.1"],
        ["93.184.215.14", "10.0.0.1"],
        ["93.184.215.14", "::ffff:169.254.169.254"],
        ["64:ff9b::a00:1"],
        ["2002:a00:1::"],
        ["fd00::1"],
        ["100.64.0.1"],
        ["0.0.0.0"],
    ],
)
async def test_name_with_one_private_address_is_not_called(addresses: list[str]) -> None:
    async with client("127.0.0.1", resolver=names(a_example=addresses)) as egress:
        refused = await failed(egress, "https://a.example/")
    assert (refused.kind, refused.was_sent) == (Failure.REFUSED, False)


async def test_name_is_resolved_once_and_the_checked_address_is_called() -> None:
    """A name that is rebound between the check and the connection leads nowhere else: there is nothing between them."""
    answers = [["127.0.0.1"], ["10.0.0.1"]]
    asked: list[str] = []

    async def rebinding(host: str, port: int) -> Sequence[str]:
        asked.append(host)
        return answers[len(asked) - 1]

    async with serving(answer(200, b"", connection="close")) as server, client(resolver=rebinding) as egress:
        await ask(egress, server.url("a.example"))
        assert f"host: a.example:{server.port}" in server.heads[0]
        # The next connection asks again, and is refused.
        assert (await failed(egress, server.url("a.example"))).kind is Failure.REFUSED
        assert server.connections == 1


async def test_answer_is_read_up_to_its_limit() -> None:
    async with serving(answer(200, b"x" * 1_000)) as server, client(max_body_bytes=1_000) as egress:
        assert len((await ask(egress, server.url())).body) == 1_000

    async def endless(writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        while not writer.is_closing():
            writer.write(b"x" * 65_536)
            await writer.drain()

    async with serving(endless) as server, client() as egress:
        refused = await failed(egress, server.url())
    assert (refused.kind, refused.was_sent, refused.status) == (Failure.TOO_LARGE, True, 200)


async def test_compressed_answer_stays_compressed() -> None:
    bomb = gzip.compress(b"x" * 10_000_000)
    async with serving(answer(200, bomb, content_encoding="gzip")) as server, client() as egress:
        assert (await ask(egress, server.url())).body == bomb


async def test_silence_is_told_apart_by_whether_anything_was_sent() -> None:
    async def silent(writer: asyncio.StreamWriter) -> None:
        await asyncio.Event().wait()

    async with serving(silent) as server, client() as egress:
        late = await failed(egress, server.url(), "POST", seconds=0.2)
        assert (late.kind, late.was_sent) == (Failure.TIMED_OUT, True)

    async def never(host: str, port: int) -> Sequence[str]:
        await asyncio.Event().wait()
        return []

    async with client(resolver=never) as egress:
        late = await failed(egress, "https://a.example/", seconds=0.2)
        assert (late.kind, late.was_sent) == (Failure.UNREACHABLE, False)


async def test_drip_of_bytes_does_not_outlast_the_deadline() -> None:
    async def drip(writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 100000\r\n\r\n")
        while not writer.is_closing():
            writer.write(b"x")
            await writer.drain()
            await asyncio.sleep(0.01)

    async with serving(drip) as server, client() as egress:
        late = await failed(egress, server.url(), seconds=0.3)
    assert (late.kind, late.was_sent) == (Failure.TIMED_OUT, True)


async def test_broken_connection_leaves_doubt_only_after_sending() -> None:
    async def broken(writer: asyncio.StreamWriter) -> None:
        writer.close()

    async with serving(broken) as server, client() as egress:
        lost = await failed(egress, server.url(), "POST", body=b"rt=canary")
        assert (lost.kind, lost.was_sent) == (Failure.BROKEN, True)
    async with client() as egress:
        lost = await failed(egress, server.url(), "POST", body=b"rt=canary")
        assert (lost.kind, lost.was_sent) == (Failure.UNREACHABLE, False)


async def test_many_requests_at_once_share_few_connections_and_a_slow_server_holds_up_nobody_else() -> None:
    async def silent(writer: asyncio.StreamWriter) -> None:
        await asyncio.Event().wait()

    async with serving(silent) as slow, serving(answer()) as server, client() as egress:
        stuck = [asyncio.create_task(egress.request("GET", slow.url(), timeout_seconds=300)) for _ in range(60)]
        async with asyncio.timeout(60):
            served = (egress.request("GET", server.url(), timeout_seconds=60) for _ in range(300))
            assert len(await asyncio.gather(*served)) == 300
        assert not any(task.done() for task in stuck)
        assert server.connections <= 16
        assert slow.connections <= 16
        for task in stuck:
            task.cancel()
        await asyncio.gather(*stuck, return_exceptions=True)
        assert (await ask(egress, server.url())).status == 200


async def test_connections_to_servers_seen_once_are_not_kept() -> None:
    async def anywhere(host: str, port: int) -> Sequence[str]:
        return ["127.0.0.1"]

    async with serving(answer()) as server, client(resolver=anywhere) as egress:
        for number in range(100):
            await ask(egress, server.url(f"s{number}.example"))
        async with asyncio.timeout(20):
            while server.open_connections > 32:
                server.has_closed.clear()
                await server.has_closed.wait()
        assert server.connections == 100


# ----------------------------------------------------------------------------------------------------------------- TLS


@dataclass(frozen=True)
class Authority:
    """Makes certificates that only this test's clients trust."""

    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate
    folder: Path

    @classmethod
    def create(cls, folder: Path) -> Authority:
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "tests")])
        builder = _builder(name, name, key).add_extension(
            x509.BasicConstraints(ca=True, path_length=None), critical=True
        )
        return cls(key, builder.sign(key, hashes.SHA256()), folder)

    def server_context(self, host: str) -> ssl.SSLContext:
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, host)])
        builder = _builder(subject, self.certificate.subject, key)
        builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName(host)]), critical=False)
        path = self.folder / f"{host}.pem"
        pem = builder.sign(self.key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
        path.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
            + pem
        )
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(path)
        return context

    def client_context(self) -> ssl.SSLContext:
        return ssl.create_default_context(cadata=self.certificate.public_bytes(serialization.Encoding.PEM).decode())


def _builder(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(hours=1))
    )


async def test_pinned_connection_verifies_the_name_and_tells_it_to_the_server(tmp_path: Path) -> None:
    authority = Authority.create(tmp_path)
    options = {"resolver": names(a_example=["127.0.0.1"]), "ssl_context": authority.client_context()}
    async with serving(answer(), authority.server_context("a.example")) as server, client(**options) as egress:
        assert (await ask(egress, server.url("a.example", "https"))).status == 200
    assert server.server_names == ["a.example"]
    assert f"host: a.example:{server.port}" in server.heads[0]


@pytest.mark.parametrize("trusts", [True, False])
async def test_server_with_another_certificate_gets_nothing(tmp_path: Path, trusts: bool) -> None:
    authority = Authority.create(tmp_path)
    # Without one of its own the client trusts the usual authorities, of which the test's is none.
    context = authority.client_context() if trusts else None
    options: dict[str, Any] = {"resolver": names(a_example=["127.0.0.1"]), "ssl_context": context}
    host = "b.example" if trusts else "a.example"
    async with serving(answer(), authority.server_context(host)) as server, client(**options) as egress:
        refused = await failed(egress, server.url("a.example", "https"), "POST", body=b"rt=canary")
    assert (refused.kind, refused.was_sent, server.heads) == (Failure.UNREACHABLE, False, [])
