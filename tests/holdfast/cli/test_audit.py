"""`holdfast audit verify --file`: an export is checked without a suite, and the exit code says how it went."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from holdfast.cli import __main__ as entry
from tests.holdfast.test_audit_chain import head_of, trail


@pytest.fixture(autouse=True)
def no_suite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There is no suite to be asked, and no key."""
    monkeypatch.setenv("HOLDFAST_CONFIG", str(tmp_path / "config.toml"))
    monkeypatch.setenv("HOLDFAST_ADDRESS", "127.0.0.1:9")


def export_of(lines: list[str], path: Path, **end: Any) -> Path:
    ending = {"records": len(lines), "last_seq": len(lines), "head_hash": "", **end}
    path.write_text("\n".join([*lines, json.dumps({"end": ending})]) + "\n")
    return path


def verify(path: Path, *arguments: str) -> tuple[int, dict[str, Any]]:
    result: Result = CliRunner().invoke(entry.app, ["audit", "verify", "--file", str(path), *arguments, "--json"])
    return result.exit_code, json.loads(result.stdout)


def test_an_intact_export_is_proved_without_a_suite(tmp_path: Path) -> None:
    lines = trail(12)
    path = export_of(lines, tmp_path / "audit.ndjson")
    code, found = verify(path, "--anchor", head_of(lines[:5]).hex())
    assert (code, found["result"], found["records"], found["anchor_seq"]) == (0, "OK", 12, 5)
    assert found["head_hash"] == head_of(lines).hex()
    shown = CliRunner().invoke(entry.app, ["audit", "verify", "--file", str(path)])
    assert "The trail is intact: 12 records" in shown.stdout
    assert f"anchor: {head_of(lines).hex()}" in shown.stdout


def test_a_part_of_a_trail_is_checked_too(tmp_path: Path) -> None:
    code, found = verify(export_of(trail(12)[6:], tmp_path / "part.ndjson", last_seq=12))
    assert (code, found["records"], found["last_seq"]) == (0, 6, 12)


@pytest.mark.parametrize(
    ("change", "flaw", "seq"),
    [
        (lambda lines: [*lines[:4], lines[4].replace("key:a", "key:b"), *lines[5:]], "EDITED", 5),
        (lambda lines: [*lines[:4], *lines[5:]], "MISSING", 5),
        (lambda lines: lines[:8], "TRUNCATED", 9),
        (lambda lines: [*lines[:4], "nonsense", *lines[5:]], "MALFORMED", 5),
    ],
)
def test_a_changed_export_is_named_and_ends_with_1(tmp_path: Path, change: Any, flaw: str, seq: int) -> None:
    code, found = verify(export_of(change(trail(10)), tmp_path / "audit.ndjson", last_seq=10))
    assert (code, found["result"]) == (1, "BROKEN")
    assert (found["flaw"]["kind"], found["flaw"]["seq"]) == (flaw, seq)


def test_a_file_that_was_cut_off_on_its_way_is_not_intact(tmp_path: Path) -> None:
    path = tmp_path / "audit.ndjson"
    path.write_text("\n".join(trail(10)))
    code, found = verify(path)
    assert (code, found["flaw"]["kind"]) == (1, "TRUNCATED")


def test_an_anchor_that_is_nowhere_is_a_rewritten_trail(tmp_path: Path) -> None:
    path = export_of(trail(10), tmp_path / "audit.ndjson")
    code, found = verify(path, "--anchor", "ab" * 32)
    assert (code, found["flaw"]["kind"]) == (1, "ANCHOR_MISSING")


def test_what_cannot_be_checked_ends_with_2(tmp_path: Path) -> None:
    path = export_of(trail(2), tmp_path / "audit.ndjson")
    for arguments in ([str(tmp_path / "absent")], [str(path), "--anchor", "xyz"]):
        result = CliRunner().invoke(entry.app, ["audit", "verify", "--file", *arguments, "--json"])
        assert (result.exit_code, json.loads(result.stdout)["result"]) == (2, "NOT_CHECKED")
    assert CliRunner().invoke(entry.app, ["audit", "verify"]).exit_code == 2
