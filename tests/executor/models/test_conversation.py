"""The shape that providers insist on: for any history, each call is followed by its one result, and ids differ."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from holdfast.api.common.v1 import content_pb2
from services.executor.models.conversation import Turn, arguments_object, turns_of
from tests.executor.models.calls import assistant, call, note, result, user

IDS = st.sampled_from(["a", "b", "functions.get:0", ""])

HISTORIES = st.lists(
    st.one_of(
        st.builds(user, st.just("hi")),
        st.builds(note, st.just("note")),
        st.lists(IDS, max_size=3, unique=True).map(lambda ids: assistant("t", *(call(id, "tool") for id in ids))),
        st.builds(result, IDS, st.just("tool"), st.text(max_size=3)),
    ),
    max_size=12,
)


@given(HISTORIES)
def test_any_history_becomes_one_that_providers_accept(history: list[content_pb2.Message]) -> None:
    turns = turns_of(history)

    ids = [call.call_id for turn in turns for call in turn.calls]
    assert len(set(ids)) == len(ids)
    expected: list[str] = []
    for turn in turns:
        if turn.result is not None:
            assert expected.pop(0) == turn.result.call_id
        else:
            assert expected == []
            expected = [call.call_id for call in turn.calls]
    assert expected == []


@given(HISTORIES)
def test_nothing_that_was_said_gets_lost(history: list[content_pb2.Message]) -> None:
    said = [(message.role, message.parts[0].text) for message in history if message.role != content_pb2.ROLE_TOOL]

    # Notes and questions may be moved behind results, never past each other.
    assert [(turn.role, turn.text) for turn in turns_of(history) if turn.result is None] == said


def test_call_without_a_result_is_answered_as_such() -> None:
    [_, _, answered] = turns_of([user("hi"), assistant("", call("a", "noop"))])

    assert answered.result is not None
    assert answered.result.is_error
    assert "No result" in answered.result.content


def test_result_belongs_to_the_call_of_its_own_turn() -> None:
    turns = turns_of(
        [
            assistant("", call("call_0", "x")),
            result("call_0", "x", "first"),
            assistant("", call("call_0", "x")),
            result("call_0", "x", "second"),
        ]
    )

    assert [_result(turn) for turn in turns if turn.result] == [("call_0", "first"), ("call_0_2", "second")]


def test_arguments_are_an_object_whatever_the_model_wrote() -> None:
    assert arguments_object('{"a": 1}') == {"a": 1}
    assert arguments_object("") == {}
    assert arguments_object("[1]") == {"invalid_json": "[1]"}
    assert arguments_object('{"a"') == {"invalid_json": '{"a"'}


def _result(turn: Turn) -> tuple[str, str]:
    assert turn.result is not None
    return turn.result.call_id, turn.result.content
