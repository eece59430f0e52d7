"""The tree of errors on the wire and back, and new identifiers."""

from __future__ import annotations

import copy
import pickle
import uuid
from urllib.parse import quote

import grpc
import grpc.aio
import pytest
from google.rpc import error_details_pb2, status_pb2

from holdfast import errors
from holdfast.errors import (
    Aborted,
    Conflict,
    FieldViolation,
    HoldfastError,
    Internal,
    InvalidArgument,
    LeaseLost,
    NotFound,
    Reason,
    Unavailable,
    from_rpc_error,
    to_status,
)
from holdfast.ids import is_uuid, new_uuid7


def subclasses(cls: type[HoldfastError]) -> list[type[HoldfastError]]:
    # The tree itself: what other modules derive from it depends on what has been imported.
    children = [child for child in cls.__subclasses__() if child.__module__ == HoldfastError.__module__]
    return [cls, *(leaf for child in children for leaf in subclasses(child))]


def over_the_wire(error: HoldfastError) -> grpc.aio.AioRpcError:
    code, message, details = to_status(error)
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(*details), message)


@pytest.mark.parametrize("cls", subclasses(HoldfastError)[1:])
def test_the_client_raises_what_the_server_raised(cls: type[HoldfastError]) -> None:
    sent = cls(
        "what happened",
        metadata={"run_id": "r1"},
        field_violations=[FieldViolation("a.b", "expected c")],
        retry_delay_seconds=1.5,
    )
    received = from_rpc_error(over_the_wire(sent))
    assert type(received) is cls
    assert (received.message, received.reason, received.metadata) == ("what happened", sent.reason, {"run_id": "r1"})
    assert (received.field_violations, received.retry_delay_seconds) == ((("a.b", "expected c"),), 1.5)
    assert str(received) == "what happened"


def test_every_class_is_drawn_and_owns_a_code_and_a_reason() -> None:
    assert errors.__doc__ is not None
    for cls in subclasses(HoldfastError):
        assert cls.__name__ in errors.__doc__
        assert isinstance(cls.code, grpc.StatusCode)
        assert cls("x").reason == cls.default_reason


def test_details_are_those_that_googles_classes_read() -> None:
    code, _, ((key, serialized),) = to_status(NotFound("no", reason=Reason.RUN_NOT_FOUND, metadata={"run_id": "r1"}))
    status = status_pb2.Status.FromString(serialized)
    info = error_details_pb2.ErrorInfo()
    assert key == "grpc-status-details-bin"
    assert (status.code, code) == (5, grpc.StatusCode.NOT_FOUND)
    assert status.details[0].Unpack(info)
    assert (info.domain, info.reason, info.metadata["run_id"]) == ("holdfast.dev", "RUN_NOT_FOUND", "r1")


@pytest.mark.parametrize("character", ["m", "界", "\N{GRINNING FACE}"])
def test_an_error_always_fits_into_a_header_and_keeps_its_reason(character: str) -> None:
    text = character * 2000
    error = InvalidArgument(
        text,
        metadata={f"{index}{text}": text for index in range(100)},
        field_violations=[FieldViolation(text, text)] * 100,
        reason=Reason.TOOL_UNKNOWN,
    )
    _, message, ((_, serialized),) = to_status(error)
    # On the wire the message is percent-encoded and the details are base64; grpc refuses headers from 8 KiB on.
    assert len(quote(message)) + len(serialized) * 4 / 3 < 8_000
    received = from_rpc_error(over_the_wire(error))
    assert received.reason == Reason.TOOL_UNKNOWN
    assert received.field_violations


def test_text_that_has_no_form_on_the_wire_is_replaced() -> None:
    error = from_rpc_error(over_the_wire(NotFound("no \ud800", metadata={"name": "\udfff"})))
    assert (error.message, error.metadata) == ("no ?", {"name": "?"})


def test_a_field_makes_it_an_invalid_field_unless_a_reason_is_given() -> None:
    assert InvalidArgument("x", field="a").reason == Reason.INVALID_FIELD
    assert InvalidArgument("x", field="a", reason=Reason.TOOL_UNKNOWN).reason == Reason.TOOL_UNKNOWN
    assert InvalidArgument("x", field="a").field_violations == (("a", "x"),)


def test_a_foreign_server_without_details_still_has_a_class() -> None:
    error = from_rpc_error(grpc.aio.AioRpcError(grpc.StatusCode.ABORTED, details="busy"))
    assert (type(error), error.reason, error.message, error.origin) == (Aborted, "ABORTED", "busy", "foreign")
    assert type(from_rpc_error(grpc.aio.AioRpcError(grpc.StatusCode.UNKNOWN))) is Internal
    garbage = grpc.aio.Metadata(("grpc-status-details-bin", b"\xff\xff"))
    assert type(from_rpc_error(grpc.aio.AioRpcError(grpc.StatusCode.NOT_FOUND, None, garbage))) is NotFound


def test_a_reason_of_a_newer_server_is_kept() -> None:
    error = from_rpc_error(over_the_wire(Conflict("x", reason="SOMETHING_NEW")))
    assert (type(error), error.reason) == (Aborted, "SOMETHING_NEW")


def test_a_peer_that_is_away_is_named() -> None:
    error = from_rpc_error(grpc.aio.AioRpcError(grpc.StatusCode.UNAVAILABLE, details="10.0.0.1: refused"), peer="auth")
    assert (type(error), error.reason, error.message) == (Unavailable, Reason.AUTH_UNAVAILABLE, "auth is unavailable")


def test_errors_can_be_copied_and_pickled() -> None:
    error = LeaseLost("x", metadata={"a": "b"}, retry_delay_seconds=2)
    for other in (copy.copy(error), pickle.loads(pickle.dumps(error))):
        assert type(other) is LeaseLost
        assert vars(other) == vars(error)


def test_new_ids_are_uuids_of_version_7_in_the_order_they_were_made() -> None:
    made = [new_uuid7() for _ in range(10_000)]
    assert made == sorted(set(made))
    assert all(is_uuid(item) for item in made)
    assert {(uuid.UUID(item).version, uuid.UUID(item).variant) for item in made} == {(7, uuid.RFC_4122)}


@pytest.mark.parametrize("text", ["", "x", "01A20B0A-BC9F-740C-B836-BE468DBE0858", "01a20b0abc9f740cb836be468dbe0858"])
def test_only_the_canonical_form_is_a_uuid(text: str) -> None:
    assert not is_uuid(text)
