"""What a sign-in handles (client secret, code, verifier, tokens) is found nowhere but with the provider."""

from __future__ import annotations

import io
import json
import logging
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from holdfast.audit_chain import content_of, line_of
from services.auth.audit_store_sql import SqlAuditStore
from services.auth.connect.store import SessionState
from services.shared.telemetry import JsonFormatter, quiet_libraries
from tests.auth.connect.support import Browser, Stage, code_on, query_of, staged
from tests.auth.support import sqlite_url
from tests.fakes.oauth_provider import CLIENT_SECRET, FakeOAuthProvider, Fault
from tests.suite.canary import Canaries, rows_of

pytestmark = pytest.mark.promise("P8")


@pytest.fixture
def logged() -> Iterator[io.StringIO]:
    """Every log record of the process at DEBUG, as the service writes them."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter("auth"))
    root = logging.getLogger()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    quiet_libraries("debug")
    yield stream
    root.setLevel(level)
    root.removeHandler(handler)


async def sign_in(stage: Stage, canaries: Canaries, seen: list[str], *faults: Fault) -> str:
    """Goes the whole way, and notes what nobody may find; returns the session's id."""
    browser = Browser(stage.url)
    try:
        view = await stage.start(user_id="u1", connection=f"c{len(seen)}")
        seen.append(str(view))
        asked = await browser.to_provider(view.connect_url)
        callback = await browser.consent(asked)
        canaries.add("code", query_of(callback)["code"])
        canaries.add("state", query_of(callback)["state"])
        stage.provider.faults.extend(faults)
        answer = await browser.open(callback)
        # Again, as after the back button: it is used up.
        seen.append((await browser.open(callback)).text)
        page = await browser.open(answer.headers["location"])
        session = await stage.session(view.session.session_id)
        if session.state is SessionState.CONFIRMING:
            seen.append(str(await stage.sessions.confirm(stage.alice, session.session_id, code_on(page))))
        seen.append(re.sub(r"<output.*?</output>", "", page.text))
        canaries.add("cookie", *(cookie.value for cookie in browser.http.cookies.jar if cookie.value))
        return session.session_id
    finally:
        await browser.close()


async def test_what_a_sign_in_handles_is_found_nowhere(tmp_path: Path, logged: io.StringIO) -> None:
    canaries = Canaries()
    canaries.add("client secret", CLIENT_SECRET)
    seen: list[str] = []
    async with FakeOAuthProvider() as provider, staged(sqlite_url(tmp_path), provider) as stage:
        await stage.integration()
        states = []
        echo = json.dumps({"error": "server_error", "error_description": f"secret was {CLIENT_SECRET}"}).encode()
        for faults in (
            (),
            (Fault.error("invalid_grant"),),
            (Fault.error("invalid_client", 401),),
            (Fault(400, echo, {"content-type": "application/json"}),),
            (Fault.html(),),
            (Fault.dropped(),),
            (Fault.answer(CLIENT_SECRET.encode()),),
            (Fault.huge(),),
        ):
            session_id = await sign_in(stage, canaries, seen, *faults)
            states.append((await stage.session(session_id)).state)
        assert states[0] is SessionState.CONNECTED
        assert SessionState.CONNECTED not in states[1:]
        for request in provider.requests:
            if "code_verifier" in request.params:
                canaries.add("verifier", request.params["code_verifier"])
        for grant in provider.grants:
            if grant.access_token:
                canaries.add("access token", grant.access_token)
            if grant.refresh_token:
                canaries.add("refresh token", grant.refresh_token)
        trail = await SqlAuditStore(stage.db).read_audit_trail(stage.workspace_id, first_seq=1, limit=500)
        lines = [line_of(content_of(vars_of(record), record.previous_hash), record.hash).encode() for record in trail]
        assert any(b"connect.start" in line for line in lines)
        # Before the last connection closes, what is in the write-ahead log is there too.
        files = {path.name: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
        rows = [row for path in tmp_path.rglob("*.db") for row in rows_of(path)]
    assert {"verifier", "access token", "refresh token", "code", "state", "cookie"} <= canaries.kinds
    assert len(rows) > 10
    canaries.assert_absent(files.items())
    canaries.assert_absent(rows)
    canaries.assert_absent(("the audit", line) for line in lines)
    canaries.assert_absent(("an answer", text.encode()) for text in seen)
    canaries.assert_absent((line, line.encode()) for line in logged.getvalue().splitlines())
    assert len(logged.getvalue()) > 1_000


def vars_of(record: object) -> dict[str, object]:
    """The fields of a record."""
    return {name: getattr(record, name) for name in record.__slots__}  # type: ignore[attr-defined]
