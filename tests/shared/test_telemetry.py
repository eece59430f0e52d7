"""Log lines: one JSON object each, or for people; never a secret."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator

import pytest

from services.shared.telemetry import build_telemetry, configure_logging, get_logger


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def root_logger() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


def test_a_record_is_one_json_object_with_its_fields_and_its_trace() -> None:
    stream = io.StringIO()
    configure_logging("state", stream=stream)
    with build_telemetry("state").tracer("test").start_as_current_span("span") as span:
        get_logger("services.state.leases").info("run_claimed", run_id="r1", epoch=3, text="two\nlines", level="x")

    (line,) = stream.getvalue().splitlines()
    entry = json.loads(line)
    assert (entry["level"], entry["service"], entry["event"]) == ("info", "state", "run_claimed")
    assert (entry["run_id"], entry["epoch"], entry["text"], entry["field_level"]) == ("r1", 3, "two\nlines", "x")
    assert entry["time"].endswith("Z")
    assert int(entry["trace_id"], 16) == span.get_span_context().trace_id


def test_an_exception_stays_on_its_line() -> None:
    stream = io.StringIO()
    configure_logging("state", stream=stream)
    try:
        raise LookupError("gone")
    except LookupError:
        get_logger("test").exception("failed", path=object)
    (line,) = stream.getvalue().splitlines()
    assert "LookupError: gone" in json.loads(line)["exception"]


@pytest.mark.parametrize("log_format", ["json", "pretty"])
def test_fields_that_name_a_secret_are_not_written(log_format: str) -> None:
    stream = io.StringIO()
    configure_logging("auth", log_format=log_format, stream=stream)
    get_logger("test").info("call", authorization="Bearer hunter2", api_key="hunter2", Password="hunter2")
    assert "hunter2" not in stream.getvalue()
    assert stream.getvalue().count("[redacted]") == 3


def test_a_terminal_gets_lines_for_people_and_a_pipe_gets_json() -> None:
    terminal, pipe = Terminal(), io.StringIO()
    for stream in (terminal, pipe):
        configure_logging("state", stream=stream)
        get_logger("test").info("listening", address="127.0.0.1:7401", note="two words")
    assert terminal.getvalue().rstrip().endswith('state    listening  address=127.0.0.1:7401 note="two words"')
    assert json.loads(pipe.getvalue())["event"] == "listening"


def test_the_level_holds() -> None:
    stream = io.StringIO()
    configure_logging("state", level="warning", stream=stream)
    log = get_logger("test")
    log.info("quiet")
    log.warning("loud")
    assert [json.loads(line)["event"] for line in stream.getvalue().splitlines()] == ["loud"]
    assert not log.is_enabled_for(logging.INFO)
