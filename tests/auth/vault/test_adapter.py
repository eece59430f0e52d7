"""The traps of hvac: what it does by itself, shown, and that the adapter does not."""

from __future__ import annotations

import asyncio
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hvac
import hvac.exceptions
import pytest
from hvac.api.secrets_engines import KvV2

from services.auth.secrets import Secret
from services.auth.vault.adapter import NodeAdapter, new_session
from services.auth.vault.client import Address, Wire
from services.auth.vault.failures import Redirected, Refused, Unreachable
from services.auth.vault.nodes import NodeState
from services.shared.clock import SystemClock
from tests.fakes.certificates import Authority
from tests.fakes.vault import Cluster, Fault

TOKEN = "hvs.the-token-of-auth"
PATH = "ws/0198/u/who-it-is/c/1"


@pytest.fixture
def elsewhere() -> Iterator[Cluster]:
    """A host that Vault's redirect names, and the operator did not."""
    with Cluster() as other:
        yield other


def adapter_of(cluster: Cluster, **options: Any) -> NodeAdapter:
    return NodeAdapter(new_session(None), cluster.addresses[0], token=Secret(TOKEN), **options)


def read(adapter: Any) -> Any:
    return KvV2(adapter).read_secret_version(PATH, mount_point="holdfast-conn", raise_on_deleted_version=False)


def redirect(cluster: Cluster, to: Cluster) -> None:
    cluster.faults.add(Fault(".*", status=307, location=f"{to.addresses[0]}/v1/holdfast-conn/data/{PATH}"))


def test_hvac_alone_gives_the_token_to_whatever_host_a_redirect_names(cluster: Cluster, elsewhere: Cluster) -> None:
    redirect(cluster, elsewhere)
    client = hvac.Client(url=cluster.addresses[0], token=TOKEN)
    with pytest.raises(hvac.exceptions.VaultError):
        read(client.adapter)
    assert [request.token for request in elsewhere.requests] == [TOKEN]


def test_a_redirect_takes_the_token_nowhere(cluster: Cluster, elsewhere: Cluster) -> None:
    redirect(cluster, elsewhere)
    with pytest.raises(Redirected):
        read(adapter_of(cluster))
    assert elsewhere.requests == []


@pytest.mark.parametrize("status", [412, 472, 473, 474, 530])
def test_hvac_alone_loses_the_status(cluster: Cluster, status: int) -> None:
    cluster.faults.add(Fault(".*", status=status))
    with pytest.raises(hvac.exceptions.UnexpectedError) as caught:
        read(hvac.Client(url=cluster.addresses[0], token=TOKEN).adapter)
    said = str(caught.value).replace(cluster.addresses[0], "")
    assert not hasattr(caught.value, "status") and str(status) not in said


@pytest.mark.parametrize("status", [400, 403, 404, 412, 429, 472, 473, 474, 500, 501, 502, 503, 530])
def test_a_refusal_has_its_status(cluster: Cluster, status: int) -> None:
    cluster.faults.add(Fault(".*", status=status))
    with pytest.raises(Refused) as caught:
        read(adapter_of(cluster))
    assert caught.value.status == status


def test_hvac_alone_shows_path_and_answer(cluster: Cluster) -> None:
    cluster.faults.add(Fault(".*", status=400, error="you sent sk-canary"))
    with pytest.raises(hvac.exceptions.InvalidRequest) as caught:
        read(hvac.Client(url=cluster.addresses[0], token=TOKEN).adapter)
    assert PATH in str(caught.value) and "sk-canary" in str(caught.value)


@pytest.mark.parametrize("status", [0, 400, 403, 500, 503])
def test_a_failure_names_neither_path_nor_answer_nor_token(cluster: Cluster, status: int) -> None:
    cluster.faults.add(Fault(".*", status=status, error="you sent sk-canary"))
    with pytest.raises((Refused, Unreachable)) as caught:
        read(adapter_of(cluster))
    shown: list[str] = []
    error: BaseException | None = caught.value
    while error is not None:
        shown += [str(error), repr(error), repr(error.args)]
        error = error.__cause__ or error.__context__
    assert not [text for text in shown if PATH in text or "canary" in text or TOKEN in text]


async def test_hvac_alone_waits_for_half_a_minute_and_the_wire_does_not(cluster: Cluster) -> None:
    adapter: Any = hvac.Client(url=cluster.addresses[0], token=TOKEN).adapter
    assert adapter._kwargs["timeout"] == 30
    hold = threading.Event()
    fault = cluster.faults.add(Fault("holdfast-conn/.*", hold=hold))
    wire = Wire(Address(cluster.addresses), SystemClock())
    try:
        async with asyncio.timeout(20):
            with pytest.raises(Unreachable) as caught:
                await wire.once(read, node=wire.nodes.best(), token=Secret(TOKEN))
    finally:
        hold.set()
        wire.close()
    assert fault.reached.is_set() and caught.value.may_be_applied


async def test_calls_that_hang_hold_up_neither_the_loop_nor_each_other(cluster: Cluster) -> None:
    hold = threading.Event()
    faults = [cluster.faults.add(Fault(f"holdfast-conn/data/ws/{n}", status=404, hold=hold)) for n in range(4)]
    wire = Wire(Address(cluster.addresses), SystemClock())

    def call(n: int) -> Any:
        return wire.once(
            lambda adapter: adapter.get(f"/v1/holdfast-conn/data/ws/{n}"), node=wire.nodes.all[0], token=Secret(TOKEN)
        )

    try:
        async with asyncio.timeout(20):
            calls = [asyncio.create_task(call(n)) for n in range(4)]
            while not all(fault.reached.is_set() for fault in faults):
                await asyncio.sleep(0.005)
            hold.set()
            answers = await asyncio.gather(*calls, return_exceptions=True)
    finally:
        hold.set()
        wire.close()
    assert [answer.status for answer in answers if isinstance(answer, Refused)] == [404] * 4


def test_hvac_alone_takes_proxies_of_the_environment(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    with Cluster() as proxy:
        monkeypatch.setenv("http_proxy", proxy.addresses[0])
        monkeypatch.setenv("no_proxy", "")
        for adapter in (hvac.Client(url=cluster.addresses[0], token=TOKEN).adapter, adapter_of(cluster)):
            with pytest.raises((Refused, hvac.exceptions.VaultError)):
                read(adapter)
        # Hvac's call went through it with the token; ours did not.
        assert len(proxy.requests) == 1 and proxy.requests[0].token == TOKEN


def test_every_call_has_the_namespace_and_says_what_it_is(cluster: Cluster) -> None:
    with pytest.raises(Refused):
        read(adapter_of(cluster, namespace="team-a"))
    [request] = cluster.requests
    assert request.headers["x-vault-namespace"] == "team-a"
    assert request.headers["x-vault-request"] == "true"


def test_an_answer_that_is_not_of_vault_is_no_answer(cluster: Cluster) -> None:
    cluster.faults.add(Fault(".*", status=200))
    assert read(adapter_of(cluster)) == {"errors": [""]}
    with pytest.raises(Unreachable):
        NodeAdapter(new_session(None), "http://127.0.0.1:9", token=Secret(TOKEN)).get("/v1/sys/health")


async def test_a_certificate_that_is_not_accepted_says_why(tmp_path: Path) -> None:
    issued = Authority().issue(name="vault")
    for name, pem in (("vault.pem", issued.certificate), ("vault.key", issued.key), ("ca.pem", Authority().pem)):
        (tmp_path / name).write_bytes(pem)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "vault.pem", tmp_path / "vault.key")
    server = await asyncio.start_server(lambda reader, writer: writer.close(), "127.0.0.1", 0, ssl=context)
    async with server:
        port = server.sockets[0].getsockname()[1]
        wire = Wire(Address((f"https://127.0.0.1:{port}",), ca_file=tmp_path / "ca.pem"), SystemClock())
        try:
            async with asyncio.timeout(10):
                assert await wire.probe() is NodeState.UNREACHABLE
        finally:
            wire.close()
    [node] = wire.nodes.all
    assert node.trouble.startswith("Vault's certificate is not accepted")
    assert "certificate" in node.trouble.partition("TLS: ")[2], "OpenSSL's own words"
