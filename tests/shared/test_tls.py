"""Services that know each other by certificates: who is let in, as whom, and what happens when certificates change."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from holdfast.cli import certs
from holdfast.errors import HoldfastError, Reason, Unauthenticated, Unavailable, from_rpc_error
from holdfast.settings import ClientSettings
from holdfast.transport import Transport
from services.shared import healthcheck
from services.shared.access import Access, service_access
from services.shared.channels import ServiceChannel, open_channel
from services.shared.identity import Identity, current_identity
from services.shared.server import Server, StartupError
from services.shared.settings import CommonSettings, SettingsError, load
from services.shared.telemetry import build_telemetry
from services.shared.tls import LOOK_EVERY_SECONDS, TlsError, TlsFiles, certified_service
from tests.fakes.certificates import Authority
from tests.fakes.clock import FakeClock
from tests.shared.conftest import KINDS, SERVICE, TOKEN, Echo, add_echo_to_server, call

DOMAIN = "suite.test"
BOTH = service_access(SERVICE, {name: Access(scope="runs:read", services=("executor",)) for name in (*KINDS, "Held")})
INTERNAL = service_access(SERVICE, {name: Access(services=("executor",)) for name in (*KINDS, "Held")})


class Keys:
    async def verify(self, api_key: str) -> Identity:
        if api_key != "good":
            raise Unauthenticated("no")
        return Identity("api_key", workspace_id="w1", key_id="k1", scopes=frozenset({"runs:read"}))


class Suite:
    """An authority, certificates, and servers that use them."""

    def __init__(self, folder: Path, stack: AsyncExitStack) -> None:
        self.folder = folder
        self.authority = Authority()
        self._stack = stack
        self.echo = Echo()
        self.echo.act = self._whoami
        self.clock = FakeClock()

    async def _whoami(self, text: str) -> str:
        return current_identity().name

    def settings(
        self,
        name: str,
        *,
        uri: str = "",
        authority: Authority | None = None,
        expired: bool = False,
        into: str = "",
    ) -> CommonSettings:
        """Settings of a service with a certificate of its own."""
        signer = authority or self.authority
        leaf = signer.issue(uri or f"spiffe://{DOMAIN}/{name}", name=name, days=-1 if expired else 1)
        folder = self.folder / (into or f"{name}-{len(list(self.folder.iterdir()))}")
        folder.mkdir(exist_ok=True)
        # As tools replace files: a new file takes the name of the old one.
        for part, pem in (
            ("cert", leaf.certificate),
            ("key", leaf.key),
            ("ca", self.authority.pem),
        ):
            (folder / f"{part}.new").write_bytes(pem)
            (folder / f"{part}.new").replace(folder / f"{part}.pem")
        return CommonSettings(
            listen="127.0.0.1:0",
            service_token=TOKEN,
            drain_seconds=1,
            tls_cert_file=folder / "cert.pem",
            tls_key_file=folder / "key.pem",
            tls_ca_file=folder / "ca.pem",
            tls_trust_domain=DOMAIN,
        )

    async def serve(self, access: dict[str, Access] = BOTH, settings: CommonSettings | None = None) -> Server:
        server = Server(
            settings or self.settings("auth"),
            service="auth",
            access=access,
            telemetry=build_telemetry("test"),
            authenticator=Keys(),
            services_listen="127.0.0.1:0" if access is BOTH else "",
        )
        server.add(add_echo_to_server, self.echo)
        return await self._stack.enter_async_context(server)

    async def connect(self, port: int, settings: CommonSettings, service: str = "executor") -> ServiceChannel:
        channel = open_channel(f"127.0.0.1:{port}", service=service, settings=settings, peer="auth", clock=self.clock)
        return await self._stack.enter_async_context(channel)

    async def bare(self, port: int, *, ca: bool = True) -> grpc.aio.Channel:
        credentials = grpc.ssl_channel_credentials(self.authority.pem if ca else None)
        return await self._stack.enter_async_context(grpc.aio.secure_channel(f"localhost:{port}", credentials))


@pytest.fixture
async def suite(tmp_path: Path) -> AsyncIterator[Suite]:
    async with AsyncExitStack() as stack:
        yield Suite(tmp_path, stack)


async def refusal(channel: grpc.aio.Channel, **options: Any) -> HoldfastError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call(channel, "UnaryUnary", "x", **{"timeout": 5, **options})
    return from_rpc_error(caught.value)


def authorization(text: str) -> dict[str, Any]:
    return {"metadata": (("authorization", text),)}


@pytest.mark.parametrize("kind", KINDS)
async def test_a_service_is_who_its_certificate_says_and_shows_no_token(suite: Suite, kind: str) -> None:
    server = await suite.serve()
    channel = await suite.connect(server.services_port, suite.settings("executor"))
    assert "service:executor" in await call(channel, kind, "x")
    assert TOKEN not in str(channel.__dict__)


async def test_a_client_with_a_key_needs_no_certificate(suite: Suite) -> None:
    server = await suite.serve()
    channel = await suite.bare(server.port)
    assert await call(channel, "UnaryUnary", "x", **authorization("Bearer good")) == ["key:k1"]
    assert (await refusal(channel, **authorization("Bearer bad"))).reason == Reason.API_KEY_INVALID


async def test_without_a_certificate_nobody_is_a_service_whatever_the_token(suite: Suite) -> None:
    server = await suite.serve()
    channel = await suite.bare(server.port)
    for text in ("Service executor", f"Service executor:{TOKEN}"):
        assert (await refusal(channel, **authorization(text))).reason == Reason.SERVICE_CERTIFICATE_INVALID
    # A service that comes to the clients' port is not asked for its certificate.
    wrong_port = await suite.connect(server.port, suite.settings("executor"))
    assert (await refusal(wrong_port)).reason == Reason.SERVICE_CERTIFICATE_INVALID


async def test_the_services_port_lets_nobody_in_without_a_certificate(suite: Suite) -> None:
    server = await suite.serve()
    for channel in (
        await suite.bare(server.services_port),
        await suite.connect(server.services_port, suite.settings("executor", authority=Authority())),
        await suite.connect(server.services_port, suite.settings("executor", expired=True)),
    ):
        assert type(await refusal(channel, **authorization("Service executor"))) is Unavailable


async def test_state_takes_services_only_on_its_one_port(suite: Suite) -> None:
    server = await suite.serve(INTERNAL)
    assert server.services_port == 0
    assert await call(await suite.connect(server.port, suite.settings("executor")), "UnaryUnary", "x")
    assert type(await refusal(await suite.bare(server.port))) is Unavailable


@pytest.mark.parametrize(
    ("uri", "service", "reason"),
    [
        (f"spiffe://{DOMAIN}/trace", "executor", Reason.SERVICE_CERTIFICATE_INVALID),
        (f"spiffe://{DOMAIN}/trace", "trace", Reason.METHOD_NOT_ALLOWED),
        ("spiffe://other.test/executor", "executor", Reason.SERVICE_CERTIFICATE_INVALID),
        (f"spiffe://{DOMAIN}/executor/more", "executor", Reason.SERVICE_CERTIFICATE_INVALID),
        (f"spiffe://{DOMAIN}.evil/executor", "executor", Reason.SERVICE_CERTIFICATE_INVALID),
        (f"https://{DOMAIN}/executor", "executor", Reason.SERVICE_CERTIFICATE_INVALID),
    ],
)
async def test_the_right_authority_with_another_identity_is_refused(
    suite: Suite, uri: str, service: str, reason: Reason
) -> None:
    server = await suite.serve()
    channel = await suite.connect(server.services_port, suite.settings("executor", uri=uri), service)
    assert (await refusal(channel)).reason == reason


async def test_a_method_that_is_not_in_the_table_does_not_exist_with_a_certificate_either(suite: Suite) -> None:
    server = await suite.serve()
    channel = await suite.connect(server.services_port, suite.settings("executor"))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call(channel, "Missing", "x")
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_a_peer_that_is_another_service_is_not_talked_to(suite: Suite) -> None:
    server = await suite.serve(settings=suite.settings("trace"))
    channel = await suite.connect(server.services_port, suite.settings("executor"))
    assert type(await refusal(channel)) is Unavailable


async def test_a_certificate_is_replaced_while_calls_run(suite: Suite) -> None:
    served, shown = suite.settings("auth", into="auth"), suite.settings("executor", into="executor")
    server = await suite.serve(settings=served)
    channel = await suite.connect(server.services_port, shown)
    gate, entered = asyncio.Event(), asyncio.Event()

    async def wait(text: str) -> str:
        if text == "held":
            entered.set()
            await gate.wait()
        return current_identity().name

    suite.echo.act = wait
    held = asyncio.ensure_future(call(channel, "UnaryUnary", "held"))
    await asyncio.wait_for(entered.wait(), 5)

    # Both get certificates of an authority that nobody trusted before.
    suite.authority = Authority()
    suite.settings("auth", into="auth")
    suite.settings("executor", into="executor")
    await suite.clock.advance(LOOK_EVERY_SECONDS)
    assert await call(channel, "UnaryUnary", "x") == ["service:executor"]
    assert await call(await suite.connect(server.services_port, shown), "UnaryUnary", "x") == ["service:executor"]
    clients = await suite.bare(server.port)
    assert await call(clients, "UnaryUnary", "x", **authorization("Bearer good")) == ["key:k1"]
    assert not held.done()
    gate.set()
    assert await held == ["service:executor"]

    suite.settings("executor", into="executor")
    await suite.clock.advance(LOOK_EVERY_SECONDS)
    assert await call(channel, "UnaryUnary", "x") == ["service:executor"]


@pytest.mark.parametrize("damage", ["half a certificate", "another key", "gone"])
async def test_files_that_are_not_usable_leave_the_certificate_before_in_use(suite: Suite, damage: str) -> None:
    served, shown = suite.settings("auth", into="auth"), suite.settings("executor", into="executor")
    server = await suite.serve(settings=served)
    channel = await suite.connect(server.services_port, shown)
    assert await call(channel, "UnaryUnary", "x")
    for settings in (served, shown):
        assert settings.tls_cert_file is not None and settings.tls_key_file is not None
        match damage:
            case "half a certificate":
                settings.tls_cert_file.write_bytes(settings.tls_cert_file.read_bytes()[:100])
            case "another key":
                shutil.copy(suite.settings("other").tls_key_file or "", settings.tls_key_file)
            case _:
                settings.tls_cert_file.unlink()
    await suite.clock.advance(LOOK_EVERY_SECONDS)
    assert await call(channel, "UnaryUnary", "x") == ["service:executor"]
    other = await suite.connect(server.services_port, suite.settings("executor"))
    assert await call(other, "UnaryUnary", "x") == ["service:executor"]


def test_an_identity_is_exactly_one_uri_of_the_domain() -> None:
    def found(*uris: str) -> str | None:
        return certified_service({"peer_spiffe_id": [uri.encode() for uri in uris]}, DOMAIN)

    assert found(f"spiffe://{DOMAIN}/state") == "state"
    assert found() is None
    assert found(f"spiffe://{DOMAIN}/state", f"spiffe://{DOMAIN}/auth") is None
    assert found("spiffe://suite.tes/t/state") is None
    assert found(f"SPIFFE://{DOMAIN}/state") is None


# ------------------------------------------------------------------------------------------------ settings and start


def test_the_settings_go_together_and_make_plain_text_needless(suite_folder: Path) -> None:
    base = {"HOLDFAST_SERVICE_TOKEN": TOKEN, "HOLDFAST_LISTEN": "10.0.0.1:7400"}
    with pytest.raises(SettingsError, match="HOLDFAST_TLS_KEY_FILE is required"):
        load(CommonSettings, {**base, "HOLDFAST_TLS_CERT_FILE": "x", "HOLDFAST_TLS_CA_FILE": "x"})
    tls = {
        "HOLDFAST_TLS_CERT_FILE": "x",
        "HOLDFAST_TLS_KEY_FILE": "x",
        "HOLDFAST_TLS_CA_FILE": "x",
        "HOLDFAST_TLS_TRUST_DOMAIN": DOMAIN,
    }
    assert load(CommonSettings, {**base, **tls}).speaks_tls
    with pytest.raises(SettingsError, match="HOLDFAST_METRICS_LISTEN"):
        load(CommonSettings, {**base, **tls, "HOLDFAST_METRICS_LISTEN": "10.0.0.1:9000"})
    with pytest.raises(SettingsError, match="HOLDFAST_LISTEN"):
        load(CommonSettings, base)


@pytest.fixture
def suite_folder(tmp_path: Path) -> Path:
    return tmp_path


async def test_a_server_with_both_kinds_of_callers_needs_two_addresses(suite: Suite) -> None:
    server = Server(
        suite.settings("auth"), service="auth", access=BOTH, telemetry=build_telemetry("test"), authenticator=Keys()
    )
    server.add(add_echo_to_server, suite.echo)
    with pytest.raises(StartupError, match="HOLDFAST_SERVICES_LISTEN"):
        await server.start()
    await server.drain()


async def test_files_that_cannot_be_used_are_named_at_the_start(suite: Suite) -> None:
    settings = suite.settings("auth")
    other = suite.settings("auth")
    broken = replace(settings, tls_key_file=other.tls_key_file)
    server = Server(broken, service="auth", access=INTERNAL, telemetry=build_telemetry("test"))
    server.add(add_echo_to_server, suite.echo)
    with pytest.raises(StartupError, match="is not the key of"):
        await server.start()
    await server.drain()
    with pytest.raises(SettingsError, match="cannot be read"):
        open_channel("127.0.0.1:1", service="x", settings=replace(settings, tls_key_file=Path("/nowhere")))


async def test_the_health_check_of_a_container_has_the_services_certificate(
    suite: Suite, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = suite.settings("state")
    server = await suite.serve(INTERNAL, settings)
    for name, path in (("CERT", settings.tls_cert_file), ("KEY", settings.tls_key_file), ("CA", settings.tls_ca_file)):
        monkeypatch.setenv(f"HOLDFAST_TLS_{name}_FILE", str(path))
    assert await asyncio.to_thread(healthcheck.main, [server.address]) == 0


# ------------------------------------------------------------------------------------------------------- the client


async def sdk_error(address: str, ca_file: str = "") -> HoldfastError:
    settings = ClientSettings(address, address, address, "good", ca_file)
    transport = Transport(settings, timeout=5)
    multicallable: Callable[..., Any] = transport.channel("executor").unary_unary(f"/{SERVICE}/UnaryUnary")
    try:
        await transport.call("executor", multicallable, b"")  # type: ignore[arg-type]
    except HoldfastError as error:
        return error
    finally:
        await transport.close()
    raise AssertionError("the call succeeded")


async def test_the_client_says_what_is_wrong_between_tls_and_plain_text(suite: Suite, tmp_path: Path) -> None:
    server = await suite.serve()
    assert f"expects TLS: try https://{server.address}" in (await sdk_error(server.address)).message
    untrusted = await sdk_error(f"https://{server.address}")
    assert "HOLDFAST_CA_FILE" in untrusted.message
    plain = Server(
        CommonSettings(listen="127.0.0.1:0", service_token=TOKEN, drain_seconds=0),
        service="auth",
        access=BOTH,
        telemetry=build_telemetry("test"),
        authenticator=Keys(),
    )
    plain.add(add_echo_to_server, suite.echo)
    async with plain:
        assert "does not speak TLS" in (await sdk_error(f"https://{plain.address}")).message
    assert "can't be read" in (await sdk_error_of_file(str(tmp_path / "none.pem"))).message


async def sdk_error_of_file(ca_file: str) -> HoldfastError:
    transport = Transport(ClientSettings("https://127.0.0.1:1", "", "", "good", ca_file))
    with pytest.raises(HoldfastError) as caught:
        transport.channel("executor")
    await transport.close()
    return caught.value


# ------------------------------------------------------------------------------------------------ holdfast certs dev


def made(folder: Path, name: str, listen: str = "127.0.0.1:0") -> CommonSettings:
    return CommonSettings(
        listen=listen,
        service_token=TOKEN,
        drain_seconds=1,
        tls_cert_file=folder / f"{name}.pem",
        tls_key_file=folder / f"{name}.key",
        tls_ca_file=folder / "ca.pem",
        tls_trust_domain=DOMAIN,
    )


async def test_the_certificates_of_the_command_work_and_are_renewed(suite: Suite, tmp_path: Path) -> None:
    folder = tmp_path / "made"
    certs.dev(out=folder, trust_domain=DOMAIN, host=["agents.example", "10.1.2.3"], days=30, renew=False)
    for name in ("ca", *certs.NAMES):
        assert (folder / f"{name}.key").stat().st_mode & 0o777 == 0o600
    server = await suite.serve(settings=made(folder, "auth"))
    channel = await suite.connect(server.services_port, made(folder, "executor"))
    assert await call(channel, "UnaryUnary", "x") == ["service:executor"]
    before = (folder / "auth.pem").read_bytes()
    with pytest.raises(HoldfastError, match="has certificates already"):
        certs.dev(out=folder, trust_domain=DOMAIN, host=None, days=30, renew=False)
    assert (folder / "auth.pem").read_bytes() == before

    certs.dev(out=folder, trust_domain=DOMAIN, host=None, days=30, renew=True)
    assert (folder / "auth.pem").read_bytes() != before
    await suite.clock.advance(LOOK_EVERY_SECONDS)
    assert await call(channel, "UnaryUnary", "x") == ["service:executor"]
    with pytest.raises(HoldfastError, match="no authority"):
        certs.dev(out=tmp_path / "nothing", trust_domain=DOMAIN, host=None, days=30, renew=True)


def test_a_folder_without_the_files_is_named(tmp_path: Path) -> None:
    files = TlsFiles(tmp_path / "a", tmp_path / "b", tmp_path / "c")
    with pytest.raises(TlsError, match="cannot be read"):
        files.stamp()
