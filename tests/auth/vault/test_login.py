"""The life of auth's token: renewed, replaced in time, lost, and never sought in a storm."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from holdfast.errors import Unavailable
from services.auth.secrets import Secret
from services.auth.vault.client import Wire
from services.auth.vault.failures import LoginRefused
from services.auth.vault.login import AppRoleLogin, KubernetesLogin, TokenLogin
from services.auth.vault.session import Session
from services.auth.vault.setup import Setup
from tests.auth.vault.support import Server, approle, as_root, of_double, opened, set_up
from tests.fakes.clock import FakeClock
from tests.fakes.vault import Cluster, Fault

PATH = "ws/0198/shared/c/1"


class Steady(random.Random):
    """Renews exactly at two thirds."""

    def random(self) -> float:
        return 0.5


async def until(is_so: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not is_so():
            await asyncio.sleep(0.005)


class Life:
    """A session on a clock that the test moves together with the cluster's."""

    def __init__(self, cluster: Cluster, method: AppRoleLogin | TokenLogin) -> None:
        self.cluster = cluster
        self.clock = FakeClock()
        self.wire = Wire(of_double(cluster).address(), self.clock)
        self.session = Session(self.wire, method, spread=Steady())

    async def __aenter__(self) -> Life:
        self.task = asyncio.create_task(self.session.run())
        return self

    async def __aexit__(self, *_: object) -> None:
        self.task.cancel()
        self.wire.close()

    async def pass_time(self, seconds: float) -> None:
        await self.clock.wait_for_sleepers()
        self.cluster.advance(seconds)
        await self.clock.advance(seconds)


async def test_a_token_is_renewed_at_two_thirds_of_its_life(cluster: Cluster, tmp_path: Path) -> None:
    async with Life(cluster, await approle(of_double(cluster), tmp_path)) as life:
        token = await life.session.token()
        cluster.requests.clear()
        await life.pass_time(3600 * 2 / 3 - 1)
        assert cluster.paths() == []
        await life.pass_time(2)
        await until(lambda: "auth/token/renew-self" in cluster.paths())
        assert (await life.session.token()) is token


async def test_a_token_near_its_longest_life_is_replaced_and_nobody_waits(cluster: Cluster, tmp_path: Path) -> None:
    async with Life(cluster, await approle(of_double(cluster), tmp_path)) as life:
        first = (await life.session.token()).reveal()
        seen = {first}
        for _ in range(60):
            renewals = len(cluster.paths())
            await life.pass_time(2401)
            await until(lambda renewals=renewals: len(cluster.paths()) > renewals)  # type: ignore[misc]
            await life.clock.wait_for_sleepers()
            token = (await life.session.token()).reveal()
            # At no moment is the token that callers get a dead one.
            assert cluster.tokens.find(token) is not None
            seen.add(token)
            if len(seen) > 1:
                break
        assert len(seen) == 2 and cluster.tokens.logins == 2


async def test_a_token_that_cannot_be_renewed_is_replaced_before_it_ends(cluster: Cluster, tmp_path: Path) -> None:
    method = await approle(of_double(cluster), tmp_path)
    cluster.tokens.roles["approle", "holdfast"]["token_type"] = "batch"
    async with Life(cluster, method) as life:
        first = (await life.session.token()).reveal()
        await life.pass_time(2401)
        await until(lambda: cluster.tokens.logins == 2)
        await life.clock.wait_for_sleepers()
        assert cluster.tokens.find(first) is not None
        assert (await life.session.token()).reveal() != first


async def test_a_renewal_that_fails_for_a_moment_is_tried_again(cluster: Cluster, tmp_path: Path) -> None:
    async with Life(cluster, await approle(of_double(cluster), tmp_path)) as life:
        await life.session.token()
        fault = cluster.faults.add(Fault("auth/token/renew-self", status=503, times=4))
        await life.pass_time(2401)
        await until(lambda: fault.times == 0)
        await life.clock.wait_for_sleepers()
        cluster.requests.clear()
        await life.pass_time(6)
        await until(lambda: "auth/token/renew-self" in cluster.paths())
        assert cluster.tokens.logins == 1


async def test_a_storm_of_refusals_is_at_most_one_login_in_five_seconds(cluster: Cluster, tmp_path: Path) -> None:
    async with Life(cluster, await approle(of_double(cluster), tmp_path)) as life:
        token = await life.session.token()
        for _ in range(3):
            cluster.advance(100_000)
            await asyncio.gather(*(life.session.is_replaced(token) for _ in range(20)), return_exceptions=True)
        # The first login, and none after it: its five seconds have not passed on our clock.
        assert cluster.tokens.logins == 1
        await life.clock.advance(6)
        replaced = await asyncio.gather(*(life.session.is_replaced(token) for _ in range(20)))
        assert all(replaced) and cluster.tokens.logins == 2


async def test_calls_go_on_over_a_revoked_token(cluster: Cluster, tmp_path: Path) -> None:
    server, clock = of_double(cluster), FakeClock()
    async with opened(server, await approle(server, tmp_path), clock=clock) as vault:
        await vault.secrets.put(PATH, Secret("one"), expected_version=0)
        await clock.advance(6)
        cluster.revoke((await vault.session.token()).reveal())
        stored = await asyncio.gather(*(vault.secrets.get(PATH) for _ in range(30)))
        assert [found.secret.reveal() for found in stored if found] == ["one"] * 30
        assert cluster.tokens.logins == 2


async def test_the_longest_life_reached_under_load_interrupts_no_call(cluster: Cluster, tmp_path: Path) -> None:
    server, clock = of_double(cluster), FakeClock()
    async with opened(server, await approle(server, tmp_path), clock=clock) as vault:
        await vault.secrets.put(PATH, Secret("one"), expected_version=0)
        await clock.advance(6)

        async def load() -> int:
            return len([await vault.secrets.get(PATH) for _ in range(25)])

        work = [asyncio.create_task(load()) for _ in range(4)]
        await until(lambda: cluster.paths("GET").count(f"holdfast-conn/data/{PATH}") > 10)
        cluster.advance(90_000)
        assert await asyncio.gather(*work) == [25] * 4
        assert cluster.tokens.logins == 2


async def test_a_changed_policy_is_felt_and_its_mending_too(cluster: Cluster, tmp_path: Path) -> None:
    server, clock = of_double(cluster), FakeClock()
    async with opened(server, await approle(server, tmp_path), clock=clock) as vault:
        await vault.secrets.put(PATH, Secret("one"), expected_version=0)
        kept = cluster.tokens.policies.pop("holdfast-runtime")
        with pytest.raises(Unavailable, match="does not allow"):
            await vault.secrets.get(PATH)
        cluster.tokens.policies["holdfast-runtime"] = kept
        assert await vault.secrets.get(PATH) is not None
        assert cluster.tokens.logins == 1


async def wrapped(server: Server, folder: Path) -> AppRoleLogin:
    role_id, _, _ = await set_up(server)
    async with as_root(server) as client:
        token = await Setup(client, server.mounts, server.role, lambda line: None).secret_id(is_wrapped=True)
    path = folder / "wrapped-secret-id"
    path.write_text(token.reveal())
    return AppRoleLogin(role_id, path, server.role.name, is_wrapped=True)


async def test_a_wrapped_secret_id_logs_in_again_and_again_in_one_process(server: Server, tmp_path: Path) -> None:
    method = await wrapped(server, tmp_path)
    async with opened(server, method) as vault:
        first = await method.login(vault.wire)
        second = await method.login(vault.wire)
        assert first.token.reveal() != second.token.reveal()
        assert await vault.secrets.get(PATH) is None


async def test_a_wrapping_token_that_was_used_before_is_refused(server: Server, tmp_path: Path) -> None:
    method = await wrapped(server, tmp_path)
    thief = AppRoleLogin(method.role_id, method.secret_id_file, server.role.name, is_wrapped=True)
    async with opened(server, method) as vault:
        await thief.login(vault.wire)
        with pytest.raises(LoginRefused, match="somebody else has the secret id"):
            await method.login(vault.wire)
        with pytest.raises(Unavailable, match="cannot log in"):
            await vault.secrets.get(PATH)


async def test_a_wrapping_token_that_was_made_for_something_else_is_refused(server: Server, tmp_path: Path) -> None:
    method = await wrapped(server, tmp_path)
    async with as_root(server) as client:
        answer: Any = await client.write(
            lambda adapter: adapter.post("/v1/auth/token/create", json={"ttl": "5m"}, wrap_ttl="5m")
        )
    method.secret_id_file.write_text(answer["wrap_info"]["token"])
    async with opened(server, method) as vault:
        with pytest.raises(LoginRefused, match="swapped"):
            await method.login(vault.wire)


async def test_a_new_wrapped_secret_id_is_taken_without_a_restart(server: Server, tmp_path: Path) -> None:
    method = await wrapped(server, tmp_path)
    async with opened(server, method) as vault:
        await method.login(vault.wire)
        again = await wrapped(server, tmp_path)
        await method.login(vault.wire)
        assert again.secret_id_file == method.secret_id_file


@pytest.mark.parametrize("content", [None, "", "not-a-secret-id"])
async def test_a_bad_secret_id_is_refused_in_words(server: Server, tmp_path: Path, content: str | None) -> None:
    method = await approle(server, tmp_path)
    if content is None:
        method.secret_id_file.unlink()
    else:
        method.secret_id_file.write_text(content)
    async with opened(server, method) as vault:
        with pytest.raises(Unavailable, match="cannot log in"):
            await vault.secrets.get(PATH)


async def test_a_login_that_hangs_ends_in_time_and_is_not_needed_again(cluster: Cluster, tmp_path: Path) -> None:
    server, clock, hold = of_double(cluster), FakeClock(), threading.Event()
    method = await approle(server, tmp_path)
    cluster.faults.add(Fault("auth/approle/login", hold=hold))
    async with opened(server, method, clock=clock) as vault:
        with pytest.raises(Unavailable):
            await vault.secrets.get(PATH)
        hold.set()
        await clock.advance(6)
        await vault.wire.probe()
        assert await vault.secrets.get(PATH) is None


async def test_a_pod_logs_in_with_the_token_that_lies_there_now(cluster: Cluster, tmp_path: Path) -> None:
    server = of_double(cluster)
    await set_up(server)
    cluster.auth_methods["kubernetes"] = "kubernetes"
    cluster.tokens.roles["kubernetes", "holdfast"] = {
        "bound_service_account_names": ["auth"],
        "bound_service_account_namespaces": ["holdfast"],
        "token_policies": ["holdfast-runtime"],
    }
    cluster.tokens.service_accounts = {"jwt-1": ("auth", "holdfast"), "jwt-x": ("other", "holdfast")}
    file = tmp_path / "token"
    file.write_text("jwt-1")
    method = KubernetesLogin("holdfast", file)
    async with opened(server, method) as vault:
        await vault.secrets.put(PATH, Secret("one"), expected_version=0)
        file.write_text("jwt-x")
        with pytest.raises(LoginRefused):
            await method.login(vault.wire)


async def test_a_token_in_a_file_is_read_anew_when_it_was_replaced(cluster: Cluster, tmp_path: Path) -> None:
    server, clock = of_double(cluster), FakeClock()
    await set_up(server)
    file = tmp_path / "sink"
    old = cluster.tokens.make(("holdfast-runtime",))
    file.write_text(old.value)
    async with opened(server, TokenLogin(file=file), clock=clock) as vault:
        assert await vault.secrets.get(PATH) is None
        await clock.advance(6)
        file.write_text(cluster.tokens.make(("holdfast-runtime",)).value)
        cluster.revoke(old.value)
        assert await vault.secrets.get(PATH) is None
