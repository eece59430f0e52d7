"""A secret is not shown, compared, copied or stored by accident."""

from __future__ import annotations

import copy
import json
import logging
import pickle
from dataclasses import asdict, dataclass

import pytest

from services.auth.sealing import MasterKey
from services.auth.secrets import Opaque, Secret

VALUE = "sk-canary-4711"


@pytest.fixture(params=["secret", "master key"])
def opaque(request: pytest.FixtureRequest) -> Opaque:
    """One of the values that must not leak."""
    return Secret(VALUE) if request.param == "secret" else MasterKey(VALUE.encode().ljust(32))


def test_its_texts_do_not_show_it(opaque: Opaque) -> None:
    for text in (repr(opaque), str(opaque), "%s" % opaque, "%r" % (opaque,), repr([opaque]), repr({"key": opaque})):  # noqa: UP031
        assert VALUE not in text


def test_formatting_it_is_a_crash(opaque: Opaque) -> None:
    with pytest.raises(TypeError):
        f"{opaque}"
    with pytest.raises(TypeError):
        "{:>10}".format(opaque)  # noqa: UP032


def test_copying_and_pickling_it_is_a_crash(opaque: Opaque) -> None:
    @dataclass
    class Holder:
        value: Opaque

    for act in (pickle.dumps, copy.copy, copy.deepcopy, lambda value: asdict(Holder(value)), json.dumps):
        with pytest.raises(TypeError):
            act(opaque)


def test_comparing_and_hashing_it_is_a_crash(opaque: Opaque) -> None:
    with pytest.raises(TypeError):
        _ = opaque == VALUE
    with pytest.raises(TypeError):
        _ = opaque != opaque
    with pytest.raises(TypeError):
        hash(opaque)


def test_it_has_no_attributes_to_walk(opaque: Opaque) -> None:
    assert not hasattr(opaque, "__dict__")


def test_a_log_line_does_not_show_it(opaque: Opaque, caplog: pytest.LogCaptureFixture) -> None:
    logging.getLogger("test").error("failed with %s", opaque)
    assert VALUE not in caplog.text


def test_only_reveal_gives_it() -> None:
    assert Secret(VALUE).reveal() == VALUE
    assert Secret("").is_empty
    assert not Secret(VALUE).is_empty
