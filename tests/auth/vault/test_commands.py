"""`vault-setup` and `export-to-vault` as processes, as the operator runs them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from services.auth.sealing import MasterKey
from services.auth.secrets import Secret
from services.auth.vault.login import AppRoleLogin
from services.shared.clock import SystemClock
from tests.auth.support import new_connection, running, settings_for, sqlite_url
from tests.auth.vault.support import Server, of_double, opened, set_up
from tests.fakes.vault import Cluster
from tests.repository.tree import ROOT


def run(arguments: list[str], environment: dict[str, str], *, cli: bool = False) -> subprocess.CompletedProcess[str]:
    module = "holdfast.cli" if cli else "services.auth"
    return subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/"), "NO_COLOR": "1", **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_the_command_line_sets_vault_up_twice_and_auth_can_log_in(cluster: Cluster, tmp_path: Path) -> None:
    environment = {"HOLDFAST_VAULT_ADDR": cluster.addresses[0], "HOLDFAST_VAULT_TOKEN": cluster.root_token}
    file = tmp_path / "secret-id"
    first = run(["vault", "setup", "--secret-id-file", str(file), "--wrapped"], environment, cli=True)
    assert first.returncode == 0, first.stderr
    assert "mount holdfast-conn: made" in first.stdout and "HOLDFAST_VAULT_ROLE_ID=role-" in first.stdout
    assert cluster.root_token not in first.stdout + first.stderr
    assert file.stat().st_mode & 0o777 == 0o600 and file.read_text().strip() in cluster.tokens.wrapped

    second = run(["vault-setup"], environment)
    assert second.returncode == 0
    assert "made" not in second.stdout

    third = run(["vault-setup", "--secret-id-file", str(file)], environment)
    assert third.returncode == 78 and "exists already" in third.stderr


def test_a_setup_that_may_not_or_cannot_says_so_in_one_line(cluster: Cluster) -> None:
    weak = cluster.tokens.make(())
    cases: list[tuple[dict[str, str], int, str]] = [
        ({"HOLDFAST_VAULT_ADDR": cluster.addresses[0], "HOLDFAST_VAULT_TOKEN": weak.value}, 78, "does not allow"),
        ({"HOLDFAST_VAULT_ADDR": cluster.addresses[0], "HOLDFAST_VAULT_TOKEN": "no-token"}, 75, "take the token"),
        ({"HOLDFAST_VAULT_ADDR": "http://vault.example:8200", "HOLDFAST_VAULT_TOKEN": "t"}, 78, "not encrypted"),
        ({}, 78, "HOLDFAST_VAULT_ADDR is required"),
    ]
    for environment, code, said in cases:
        result = run(["vault-setup"], environment)
        assert (result.returncode, result.stdout) == (code, ""), result.stderr
        assert said in result.stderr and "Traceback" not in result.stderr


async def test_secrets_move_to_vault_and_the_database_keeps_none(cluster: Cluster, tmp_path: Path) -> None:
    server: Server = of_double(cluster)
    master = MasterKey.generate()
    settings = settings_for(sqlite_url(tmp_path), master_key=master)
    async with running(settings) as auth:
        client, _ = await auth.workspace("w1")
        for name in ("one", "two", "three"):
            await client.connections.CreateConnection(new_connection(name, key=f"sk-{name}"))
    role_id, secret_id, _ = await set_up(server)
    file = tmp_path / "secret-id"
    file.touch(0o600)
    file.write_text(secret_id)
    environment = {
        "HOLDFAST_DATABASE_URL": sqlite_url(tmp_path),
        "HOLDFAST_MASTER_KEY": master.export(),
        "HOLDFAST_VAULT_ADDR": cluster.addresses[0],
        "HOLDFAST_VAULT_ROLE_ID": role_id,
        "HOLDFAST_VAULT_SECRET_ID_FILE": str(file),
    }
    first = run(["vault", "import"], environment, cli=True)
    assert first.returncode == 0, first.stderr
    assert "3 secrets written to Vault and read back, 0 were there already" in first.stdout

    entries = cluster.mounts["holdfast-conn"].entries  # type: ignore[union-attr]
    [path, *_] = sorted(entries)
    async with opened(server, AppRoleLogin(role_id, file, "holdfast"), clock=SystemClock()) as vault:
        await vault.secrets.put(path, Secret("changed"), expected_version=1)
    second = run(["export-to-vault", "--remove"], environment)
    assert second.returncode == 1 and "1 have another value in Vault" in second.stdout
    assert "0 secrets written to Vault and read back, 2 were there already, 2 removed" in second.stdout

    third = run(["export-to-vault", "--overwrite", "--remove"], environment)
    assert third.returncode == 0 and "1 secrets written" in third.stdout and "1 removed" in third.stdout
    assert "0 secrets written" in run(["export-to-vault"], environment).stdout
