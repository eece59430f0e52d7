"""The scripted model: plays its script, fills in its placeholders, and does the same in every run."""

from __future__ import annotations

import asyncio

import pytest
from google.protobuf.duration_pb2 import Duration

from holdfast.api.common.v1 import agent_pb2, content_pb2
from services.executor.models import Model, ModelAnswer, ModelRegistry
from tests.executor.models.calls import Heard, assistant, call, calls_of, request, result, text_of, user
from tests.fakes.clock import FakeClock


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def model(clock: FakeClock) -> Model:
    return ModelRegistry(clock).get("scripted")


def script(*turns: agent_pb2.ScriptTurn, loop: bool = False) -> agent_pb2.ModelSpec:
    return agent_pb2.ModelSpec(provider="scripted", script=agent_pb2.Script(turns=turns, loop=loop))


def says(text: str) -> agent_pb2.ScriptTurn:
    return agent_pb2.ScriptTurn(text=text)


def calls(*tools: str) -> agent_pb2.ScriptTurn:
    turn = agent_pb2.ScriptTurn()
    for tool in tools:
        turn.tool_calls.add(tool=tool).arguments.update({"to": tool, "times": 2, "share": 0.5, "tags": ["x", None]})
    return turn


async def play(model: Model, spec: agent_pb2.ModelSpec, turn: int) -> ModelAnswer:
    return await model.answer(request(spec=spec, model_steps_before=turn), None, Heard())


async def test_turns_are_played_in_order_and_then_nothing_is_said(model: Model) -> None:
    spec = script(calls("a"), says("done"))

    first, second, third = [await play(model, spec, turn) for turn in range(3)]

    assert calls_of(first) == [("call_0_0", "a", '{"share": 0.5, "tags": ["x", null], "times": 2, "to": "a"}')]
    assert first.finish_reason == "tool_calls"
    assert (text_of(second), second.finish_reason) == ("done", "stop")
    assert (third.message, third.finish_reason) == (content_pb2.Message(role=content_pb2.ROLE_ASSISTANT), "stop")


async def test_loop_begins_again_with_new_ids(model: Model) -> None:
    spec = script(calls("a", "b"), says("again"), loop=True)

    answers = [await play(model, spec, turn) for turn in range(4)]

    assert [text_of(answer) for answer in answers] == ["", "again", "", "again"]
    assert [[call_id for call_id, _, _ in calls_of(answer)] for answer in answers] == [
        ["call_0_0", "call_0_1"],
        [],
        ["call_2_0", "call_2_1"],
        [],
    ]


async def test_same_request_gets_the_same_answer(model: Model, clock: FakeClock) -> None:
    turn = calls("a")
    turn.text = "For {{input}}."
    # Another executor, which has read the definition again.
    again = ModelRegistry(clock).get("scripted")
    copy = agent_pb2.ModelSpec.FromString(script(turn).SerializeToString())

    first = await model.answer(request(spec=script(turn), input_text="you"), None, Heard())
    second = await again.answer(request(spec=copy, input_text="you"), None, Heard())

    assert first == second


async def test_scripts_do_not_get_mixed_up(model: Model) -> None:
    # Short-lived definitions can have the identity of an earlier one.
    for number in range(2_000):
        assert text_of(await play(model, script(says(f"{number}")), 0)) == f"{number}"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{{input}}", "two words"),
        ("<{{result}}>", "<second b>"),
        ("{{result.a}} / {{result.b}}", "first a / second b"),
        ("{{result.unknown}}!", "!"),
        ("{{other}} {{result.}} {input}", "{{other}} {{result.}} {input}"),
        ("{{input}}{{input}}", "two wordstwo words"),
    ],
)
async def test_placeholders_are_filled_in(model: Model, text: str, expected: str) -> None:
    conversation = [
        user("two words"),
        assistant("", call("1", "a"), call("2", "b")),
        result("1", "a", "first a"),
        result("2", "b", "first b"),
        assistant("", call("3", "b")),
        result("3", "b", "second b"),
    ]

    answer = await model.answer(request(*conversation, spec=script(says(text)), input_text="two words"), None, Heard())

    assert text_of(answer) == expected


async def test_what_is_filled_in_is_not_read_as_a_template(model: Model) -> None:
    conversation = [user("{{result}}"), assistant("", call("1", "a")), result("1", "a", "secret")]

    answer = await model.answer(
        request(*conversation, spec=script(says("{{input}}")), input_text="{{result}}"), None, Heard()
    )

    assert text_of(answer) == "{{result}}"


@pytest.mark.parametrize("text", ["one", "one two  three\n", "  led by space", "\n\n", "línea año"])
async def test_text_arrives_word_by_word(model: Model, text: str) -> None:
    heard = Heard()

    answer = await model.answer(request(spec=script(says(text))), None, heard)

    assert heard.text == text_of(answer) == text
    assert all(len(piece.split()) <= 1 for piece in heard.pieces)


async def test_usage_counts_the_words_since_the_models_last_message(model: Model) -> None:
    conversation = [user("not counted here"), assistant("", call("1", "a")), result("1", "a", "three new words")]

    answer = await model.answer(request(*conversation, spec=script(says("a full answer of six"))), None, Heard())

    assert answer.usage == content_pb2.Usage(input_tokens=3, output_tokens=5)


async def test_delay_passes_on_the_clock_before_the_first_word(model: Model, clock: FakeClock) -> None:
    turn = says("late")
    turn.delay.CopyFrom(Duration(seconds=30))
    heard = Heard()

    async with asyncio.timeout(20):
        answering = asyncio.create_task(model.answer(request(spec=script(turn)), None, heard))
        await clock.wait_for_sleepers()
        assert heard.pieces == []
        await clock.advance(30)
        answer = await answering

    assert text_of(answer) == heard.text == "late"


async def test_answer_without_delay_never_waits(model: Model) -> None:
    answering = model.answer(request(spec=script(calls("a"))), None, Heard())

    # The first step of the coroutine is its last: it gives the event loop nothing to do.
    with pytest.raises(StopIteration) as ended:
        answering.send(None)

    assert calls_of(ended.value.value)


async def test_script_without_turns_says_nothing(model: Model) -> None:
    for loop in (False, True):
        assert (await play(model, script(loop=loop), 0)).finish_reason == "stop"
