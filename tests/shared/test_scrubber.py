"""A secret that the process has revealed leaves it in no form; and what merely looks like one is not logged."""

from __future__ import annotations

import base64
import io
import json
import logging
import re
import subprocess
import sys
import zlib
from collections.abc import Callable
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client import generate_latest

from holdfast.api.auth.v1 import credential_service_pb2
from holdfast.errors import InvalidArgument
from services.auth.api_keys import generate_key
from services.auth.secrets import Secret
from services.shared.rpc_errors import without_secrets
from services.shared.scrubber import LIFETIME_SECONDS, PROCESS, Scrubber, StreamScrubber, masked
from services.shared.telemetry import JsonFormatter, PrettyFormatter, build_telemetry
from tests.fakes.clock import FakeClock
from tests.repository.tree import ROOT

pytestmark = pytest.mark.promise("P8")

SECRET = 'canary/Xq7+TR"EE=9f27\\c1d0é4b'

FORMS: dict[str, Callable[[str], str]] = {
    "as it is": lambda secret: secret,
    "hex": lambda secret: secret.encode().hex(),
    "HEX": lambda secret: secret.encode().hex().upper(),
    "url": lambda secret: quote(secret, safe=""),
    "url, lower case": lambda secret: re.sub("%..", lambda match: match[0].lower(), quote(secret, safe="")),
    "url path": quote,
    "form": quote_plus,
    "json": json.dumps,
    "json, readable": lambda secret: json.dumps(secret, ensure_ascii=False),
    "json, slashes escaped": lambda secret: json.dumps(secret).replace("/", "\\/"),
    "json in json": lambda secret: json.dumps(json.dumps({"a": secret})),
    "base64": lambda secret: base64.b64encode(secret.encode()).decode(),
    "base64url": lambda secret: base64.urlsafe_b64encode(secret.encode()).decode(),
    "basic, empty user": lambda secret: base64.b64encode(f":{secret}".encode()).decode(),
    "basic, client": lambda secret: base64.b64encode(f"client-12:{secret}".encode()).decode(),
    "basic, user": lambda secret: base64.b64encode(f"{secret}:x".encode()).decode(),
    "bearer, base64": lambda secret: base64.b64encode(f"Bearer {secret}\n".encode()).decode(),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_known_secret_is_taken_out_in_every_form(form: str) -> None:
    scrubber = Scrubber()
    scrubber.learn(SECRET, "0123456789ab")
    text = f"before {FORMS[form](SECRET)} after"
    scrubbed = scrubber.exact(text, "log")
    assert scrubbed != text
    assert "[[secret:0123456789ab]]" in scrubbed
    assert scrubbed.startswith("before ")
    assert scrubbed.endswith(" after")
    assert "Xq7" not in scrubbed
    assert scrubber.counts == {"log": 1}


def test_nothing_else_is_touched() -> None:
    scrubber = Scrubber()
    text = "It is 42 o'clock: sk- and eyJ are no secrets, nor is 0198c0de-0000-7000-8000-000000000001"
    assert scrubber.exact(text, "log") is text
    for secret in ("short", "", "another-secret-of-some-length"):
        scrubber.learn(secret)
    assert scrubber.exact(text, "log") is text
    assert masked(text) == text
    assert not scrubber.counts


@pytest.mark.parametrize("others", [0, 50, 800])
def test_however_many_are_known_each_is_found(others: int) -> None:
    scrubber = Scrubber()
    for number in range(others):
        scrubber.learn(f"other-secret-{number:05d}-{zlib.crc32(b'%d' % number):x}")
    scrubber.learn(SECRET)
    scrubber.learn("two words and more")
    text = json.dumps(
        {"rows": [{"id": number, "secret": SECRET, "pass": "two words and more"} for number in range(50)]}
    )
    scrubbed = scrubber.exact(text, "journal")
    assert scrubbed.count("[[secret]]") == 100
    assert "Xq7" not in scrubbed


def test_the_longest_of_several_is_taken_out_whole() -> None:
    scrubber = Scrubber()
    scrubber.learn("refresh-12345678")
    scrubber.learn("refresh-12345678-and-more")
    assert scrubber.exact("<refresh-12345678-and-more>", "log") == "<[[secret]]>"


def test_a_documents_secrets_are_known_and_its_other_values_are_not() -> None:
    scrubber = Scrubber()
    document = {"access_token": "at-0123456789", "refresh": {"token": "rt-0123456789"}, "scope": "repo:status read"}
    scrubber.learn(json.dumps(document))
    assert (
        scrubber.exact("at-0123456789 rt-0123456789 repo:status read", "log")
        == "[[secret]] [[secret]] repo:status read"
    )


def test_each_text_of_a_list_is_known() -> None:
    scrubber = Scrubber()
    scrubber.learn('["first-0123456789", "second-0123456789"]')
    assert scrubber.exact("first-0123456789 second-0123456789", "log") == "[[secret]] [[secret]]"


async def test_a_secret_is_forgotten_an_hour_after_it_was_last_revealed() -> None:
    clock = FakeClock()
    scrubber = Scrubber(clock)
    scrubber.learn("old-secret-0001")
    scrubber.learn("old-secret-0002")
    await clock.advance(LIFETIME_SECONDS - 1)
    scrubber.learn("old-secret-0002")
    await clock.advance(2)
    assert scrubber.exact("old-secret-0001 old-secret-0002", "log") == "old-secret-0001 [[secret]]"
    await clock.advance(LIFETIME_SECONDS)
    assert scrubber.exact("old-secret-0002", "log") == "old-secret-0002"
    assert scrubber.is_empty


def test_memory_is_bounded_and_guessed_keys_push_nothing_out() -> None:
    scrubber = Scrubber()
    scrubber.learn("the-secret-that-matters")
    for _ in range(1_000):
        scrubber.learn(generate_key()[1].reveal())
    assert scrubber.exact("the-secret-that-matters", "log") == "[[secret]]"
    for number in range(1_000):
        scrubber.learn(f"{number:08d}" * 900)
    assert scrubber._form_characters <= 16 * 1024 * 1024


def test_holdfasts_own_keys_are_known_by_their_checksum() -> None:
    scrubber = Scrubber()
    _, key = generate_key()
    text = key.reveal()
    assert scrubber.exact(f"x {text} y", "journal") == f"x [[secret:hfst_{text[5:17]}]] y"
    wrong = text[:-1] + ("a" if text[-1] != "a" else "b")
    assert scrubber.exact(wrong, "journal") == wrong
    assert masked(wrong) == "[[secret]]"


@given(st.lists(st.integers(1, 12), max_size=12), st.sampled_from(sorted(FORMS)))
def test_a_secret_in_pieces_never_passes(cuts: list[int], form: str) -> None:
    scrubber = Scrubber()
    scrubber.learn(SECRET, "fp")
    text = f"so it begins: {FORMS[form](SECRET)} and ends, canary/Xq7"
    stream = StreamScrubber(scrubber)
    passed = []
    rest = text
    for cut in (*cuts, 3, 1, 7):
        passed.append(stream.add(rest[:cut]))
        rest = rest[cut:]
    passed += [stream.add(rest), stream.end()]
    assert "".join(passed) == scrubber.exact(text, "log")
    assert "[[secret:fp]]" in "".join(passed)


def test_pieces_of_an_innocent_text_are_not_held_back() -> None:
    scrubber = Scrubber()
    scrubber.learn(SECRET)
    stream = StreamScrubber(scrubber)
    assert [stream.add(piece) for piece in ("Hello ", "world. ", "I can", " say more")] == [
        "Hello ",
        "world. ",
        "I ",
        "can say more",
    ]


LOOKS = {
    "a token of GitHub": "ghp_" + "a1B2" * 9,
    "a fine token of GitHub": "github_pat_" + "a1B2_" * 9,
    "a token of GitLab": "glpat-" + "x7" * 10,
    "a token of Slack": "xoxb-1234567890-abcdef",
    "a rotated token of Slack": "xoxe.xoxp-1-Mi0yLTEyMzQ1",
    "a key of a model's provider": "sk-ant-api03-" + "q9" * 20,
    "a key of Stripe": "sk_live_" + "q9" * 12,
    "a key id of AWS": "AKIAIOSFODNN7EXAMPLE",
    "a key of Google": "AIza" + "x_9" * 12,
    "a token of Google": "ya29." + "x_9" * 12,
    "a token of Vault": "hvs." + "CAESI" * 6,
    "a JWT": "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.c2lnbmF0dXJl",
    "a private key": "-----BEGIN RSA PRIVATE KEY-----\nMIIE\nabc\n-----END RSA PRIVATE KEY-----",
    "half a private key": "-----BEGIN PRIVATE KEY-----\nMIIEabc",
}


@pytest.mark.parametrize("name", LOOKS)
def test_what_looks_like_a_credential_is_masked(name: str) -> None:
    scrubbed = masked(f"it said {LOOKS[name]}")
    assert scrubbed == "it said [[secret]]"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("authorization: Bearer opaque-0123456789abcdef", "authorization: Bearer [[secret]]"),
        ("Authorization: Basic dXNlcjpwYXNzd29yZA==0", "Authorization: Basic [[secret]]"),
        ("GET /cb?state=abc123def&code=s3cr3tc0de HTTP", "GET /cb?state=[[secret]]&code=[[secret]] HTTP"),
        ("the token characteristics and a basic understanding-of-things", None),
        ("state=RUNNING code=UNAVAILABLE", None),
    ],
)
def test_what_is_sent_as_a_credential_is_masked(text: str, expected: str | None) -> None:
    assert masked(text) == (text if expected is None else expected)


# ---------------------------------------------------------------------------------------------------- the choke points


def formatted(formatter: logging.Formatter, **fields: object) -> str:
    record = logging.LogRecord("n", logging.INFO, __file__, 1, "%s", ("event",), None)
    record.fields = fields
    return formatter.format(record)


def test_logs_show_no_secret_whatever_is_logged() -> None:
    Secret(SECRET).reveal()
    message = credential_service_pb2.ResolveCredentialResponse(secret="another-secret", provider="github")
    message.headers.add(name="authorization", value="Bearer another-secret")
    for formatter in (JsonFormatter("auth"), PrettyFormatter("auth", colour=False)):
        text = formatted(formatter, value=SECRET, nested={"a": [SECRET]}, message=message, error=ValueError(SECRET))
        assert "Xq7" not in text
        assert "another-secret" not in text
        assert "github" in text
    entry = json.loads(formatted(JsonFormatter("auth"), value=SECRET, jwt=LOOKS["a JWT"]))
    assert (entry["value"], entry["jwt"]) == ("[[secret]]", "[[secret]]")


def test_a_traceback_shows_neither_secret_nor_locals() -> None:
    secret = Secret(SECRET).reveal()
    try:
        raise ValueError(f"could not use {secret}")
    except ValueError:
        record = logging.LogRecord("n", logging.ERROR, __file__, 1, "failed", (), sys.exc_info())
    text = JsonFormatter("auth").format(record)
    assert "could not use [[secret]]" in text
    assert "Xq7" not in text


def test_an_echo_is_counted_and_reported_once_a_minute() -> None:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter("auth"))
    logger = logging.getLogger("services.shared.scrubber")
    logger.addHandler(handler)
    try:
        PROCESS.learn(SECRET, "0123456789ab")
        before = PROCESS.counts["journal"]
        for _ in range(3):
            PROCESS.exact(f"x {SECRET}", "journal")
    finally:
        logger.removeHandler(handler)
    (line,) = stream.getvalue().splitlines()
    entry = json.loads(line)
    assert (entry["event"], entry["sink"], entry["fingerprint"]) == ("secret_scrubbed", "journal", "0123456789ab")
    assert PROCESS.counts["journal"] == before + 3
    metrics = generate_latest(build_telemetry("auth").registry).decode()
    assert f'holdfast_secrets_scrubbed_total{{sink="journal"}} {before + 3}.0' in metrics


def test_spans_leave_without_secrets() -> None:
    exporter = InMemorySpanExporter()
    telemetry = build_telemetry("auth", span_processor=SimpleSpanProcessor(exporter))
    Secret(SECRET).reveal()
    with (
        pytest.raises(ValueError, match="could"),
        telemetry.tracer("t").start_as_current_span(f"call {SECRET}") as span,
    ):
        span.set_attribute("note", SECRET)
        span.set_attribute("list", ["a", SECRET])
        span.set_attribute("http.url", "https://a.example/cb?code=1")
        span.set_attribute("http.request.header.authorization", "x")
        span.add_event(SECRET, {"quoted": quote(SECRET, safe="")})
        raise ValueError(f"could not use {SECRET}")
    telemetry.close()
    (exported,) = exporter.get_finished_spans()
    assert isinstance(exported, ReadableSpan)
    assert "Xq7" not in exported.to_json()
    assert exported.attributes == {
        "note": "[[secret]]",
        "list": ("a", "[[secret]]"),
        "http.url": "https://a.example/cb",
    }
    assert exported.name == "call [[secret]]"
    assert len(exported.events) == 2


def test_errors_leave_without_secrets() -> None:
    Secret(SECRET).reveal()
    error = InvalidArgument(f"bad {SECRET}", field="key", description=f"not {SECRET}", metadata={"key": SECRET})
    clean = without_secrets(error)
    assert type(clean) is InvalidArgument
    assert (clean.message, clean.metadata) == ("bad [[secret]]", {"key": "[[secret]]"})
    assert [tuple(item) for item in clean.field_violations] == [("key", "not [[secret]]")]
    innocent = InvalidArgument("bad")
    assert without_secrets(innocent) is innocent


CRASH = """
import resource, sys, threading
from services.shared.scrubber import PROCESS
from services.shared.telemetry import configure_logging, log_crashes

secret = sys.stdin.buffer.read().decode()
PROCESS.learn(secret)
configure_logging("auth", log_format="json")
log_crashes()
assert resource.getrlimit(resource.RLIMIT_CORE)[0] == 0


class Broken:
    def __del__(self):
        raise ValueError(f"ignored {secret}")


def fail():
    raise ValueError(f"in a thread {secret}")


Broken()
thread = threading.Thread(target=fail)
thread.start()
thread.join()
raise ValueError(f"at the end {secret}")
"""


def test_a_crash_leaves_neither_secrets_nor_an_image_of_the_memory() -> None:
    crashed = subprocess.run(
        [sys.executable, "-c", CRASH], input=SECRET.encode(), cwd=ROOT, capture_output=True, timeout=60, check=False
    )
    assert crashed.returncode == 1, crashed.stderr
    entries = [json.loads(line) for line in crashed.stderr.decode().splitlines()]
    assert [entry["event"] for entry in entries if entry["event"] != "secret_scrubbed"] == [
        "error_ignored",
        "crashed",
        "crashed",
    ]
    assert b"Xq7" not in crashed.stderr
    assert b"ValueError: at the end [[secret]]" in crashed.stderr
