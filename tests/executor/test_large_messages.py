"""Messages that are stored as bodies: the driver that stores one goes on with the whole of it, as another would."""

from __future__ import annotations

import json
from datetime import UTC, datetime

from google.protobuf import json_format

from holdfast.api.common.v1 import agent_pb2, content_pb2, run_pb2
from services.executor.decide.plan import Outcome
from services.executor.decide.planner import Planner
from services.executor.journal_view import RunView
from services.executor.stored_messages import store_message
from services.executor.tools.output import settle_result

NOW = datetime(2026, 1, 2, tzinfo=UTC)
LONG = "x" * 20_000


def planner() -> tuple[RunView, Planner]:
    definition = {
        "name": "support",
        "model": {"provider": "scripted", "script": {"turns": [{"text": "ok"}]}},
        "tools": [{"name": "look", "http": {"url": "https://example.com/"}}],
    }
    view = RunView()
    created = run_pb2.RunCreated(agent="support")
    created.input.message.parts.add(text="help")
    view.apply_events([run_pb2.Event(seq=1, changes=[run_pb2.Change(run_created=created)])])
    spec = json_format.ParseDict(definition, agent_pb2.AgentSpec())
    return view, Planner(view, spec, run_id="01900000-0000-7000-8000-000000000001", epoch=1, executor_id="e")


def answered(message: content_pb2.Message, step: int) -> Outcome:
    stored, blobs = store_message(message)
    assert stored.WhichOneof("body") == "blob"
    finished = run_pb2.StepFinished(step=step, attempt=1, state=run_pb2.STEP_STATE_SUCCEEDED, message=stored)
    return Outcome(run_pb2.Change(step_finished=finished), tuple(blobs))


def test_long_answer_and_long_result_reach_the_next_model_call_whole() -> None:
    view, plans = planner()
    plans.plan([], NOW, [])
    call = content_pb2.ToolCall(call_id="c1", tool="look", arguments_json="{}")
    answer = content_pb2.Message(
        role=content_pb2.ROLE_ASSISTANT,
        parts=[content_pb2.Part(text=LONG), content_pb2.Part(tool_call=call)],
    )
    second = plans.plan([answered(answer, 1)], NOW, [])
    assert [local.step.number for local in second.local_calls] == [2], "the calls of a long answer are made"
    assert second.changes[-2].step_finished.message.WhichOneof("body") == "blob", "what is stored stays a reference"

    settled = settle_result(agent_pb2.ToolSpec(name="look"), "c1", json.dumps(LONG))
    finished = run_pb2.StepFinished(step=2, attempt=1, state=run_pb2.STEP_STATE_SUCCEEDED, message=settled.message)
    third = plans.plan([Outcome(run_pb2.Change(step_finished=finished), tuple(settled.blobs))], NOW, [])
    assert [blob.hash for blob in third.blobs] == [blob.hash for blob in settled.blobs]
    assert view.conversation()[1] == answer
    assert view.conversation()[2].parts[0].tool_result.content == LONG
