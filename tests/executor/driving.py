"""A run's journal as a test writes it, and the planner of each lease: the loop's decisions without any service."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime

from google.protobuf import json_format

from holdfast.api.common.v1 import agent_pb2, content_pb2, run_pb2
from services.executor.call_approvals import SessionApprovals
from services.executor.decide.plan import Outcome, Plan
from services.executor.decide.planner import Planner
from services.executor.journal_view import RunView

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
RUN_ID = "01900000-0000-7000-8000-000000000001"


def agent(**overrides: object) -> agent_pb2.AgentSpec:
    definition: dict[str, object] = {
        "name": "support",
        "model": {"provider": "scripted", "script": {"turns": [{"text": "ok"}]}},
        "tools": [
            {"name": "look", "effect": "EFFECT_CLASS_READ_ONLY", "http": {"url": "https://example.com/look"}},
            {"name": "pay", "http": {"url": "https://example.com/pay"}},
            {"name": "pay_or_tell", "in_doubt": "IN_DOUBT_POLICY_TELL_MODEL", "http": {"url": "https://example.com"}},
            {"name": "pay_or_fail", "in_doubt": "IN_DOUBT_POLICY_FAIL_RUN", "http": {"url": "https://example.com"}},
            {"name": "pack", "worker": {}, "input_schema": {"type": "object", "required": ["box"]}},
            {"name": "ask_user", "builtin": {"name": "ask_user"}},
            {"name": "sleep_until", "builtin": {"name": "sleep_until"}},
            {"name": "noop", "builtin": {"name": "noop"}},
        ],
    }
    definition.update(overrides)
    return json_format.ParseDict(definition, agent_pb2.AgentSpec())


class Journal:
    """A run's journal as the test writes it, and a planner for the lease that comes next."""

    def __init__(self, spec: agent_pb2.AgentSpec | None = None) -> None:
        self.spec = spec or agent()
        self.events: list[run_pb2.Event] = []
        self.epoch = 0
        created = run_pb2.RunCreated(session_id="s", agent="support", revision="r")
        created.input.message.role = content_pb2.ROLE_USER
        created.input.message.parts.add(text="help")
        self.write(0, [run_pb2.Change(run_created=created)])

    def write(self, epoch: int, changes: Iterable[run_pb2.Change]) -> None:
        self.events.append(run_pb2.Event(run_id=RUN_ID, seq=len(self.events) + 1, epoch=epoch, changes=changes))

    def claim(self, session_approvals: SessionApprovals | None = None) -> Drive:
        self.epoch += 1
        return Drive(self, session_approvals)


class Drive:
    """One lease: plans are committed to the journal at once."""

    def __init__(
        self,
        journal: Journal,
        session_approvals: SessionApprovals | None = None,
        *,
        prior: Sequence[content_pb2.Message] = (),
    ) -> None:
        self.journal = journal
        self.epoch = journal.epoch
        self.view = RunView()
        self.view.apply_events(journal.events)
        self.planner = Planner(
            self.view,
            journal.spec,
            run_id=RUN_ID,
            epoch=self.epoch,
            executor_id="e",
            prior=prior,
            session_approvals=session_approvals,
        )
        self.running: set[int] = set()

    def plan(self, *outcomes: Outcome, now: datetime = NOW) -> Plan:
        for outcome in outcomes:
            kind = outcome.change.WhichOneof("kind")
            assert kind is not None
            self.running.discard(getattr(outcome.change, kind).step)
        plan = self.planner.plan(outcomes, now, self.running)
        self.store(plan)
        self.running.update(call.step.number for call in plan.local_calls)
        return plan

    def store(self, plan: Plan) -> None:
        if plan.changes:
            self.journal.write(self.epoch, plan.changes)
            self.view.last_seq = len(self.journal.events)

    def model_says(self, *calls: tuple[str, dict[str, object]], text: str = "") -> Outcome:
        step = max(self.view.open_steps)
        message = content_pb2.Message(role=content_pb2.ROLE_ASSISTANT)
        if text:
            message.parts.add(text=text)
        for index, (tool, arguments) in enumerate(calls):
            message.parts.add(
                tool_call=content_pb2.ToolCall(
                    call_id=f"c{step}_{index}", tool=tool, arguments_json=json.dumps(arguments)
                )
            )
        finished = run_pb2.StepFinished(step=step, attempt=1, state=run_pb2.STEP_STATE_SUCCEEDED)
        finished.message.message.CopyFrom(message)
        return Outcome(run_pb2.Change(step_finished=finished))

    def result(self, step: int, content: str = "fine") -> Outcome:
        intent = self.view.steps[step].tool
        assert intent is not None
        finished = run_pb2.StepFinished(step=step, attempt=1, state=run_pb2.STEP_STATE_SUCCEEDED)
        finished.message.message.role = content_pb2.ROLE_TOOL
        finished.message.message.parts.add(
            tool_result=content_pb2.ToolResult(call_id=intent.call_id, tool=intent.tool, content=content)
        )
        return Outcome(run_pb2.Change(step_finished=finished))

    def failed(self, step: int, failure_class: content_pb2.FailureClass, retry_after_millis: int = 0) -> Outcome:
        failure = content_pb2.Failure(
            reason="X", message="it broke", failure_class=failure_class, retry_after_millis=retry_after_millis
        )
        attempt = self.view.steps[step].attempt
        return Outcome(
            run_pb2.Change(attempt_failed=run_pb2.AttemptFailed(step=step, attempt=attempt, failure=failure))
        )


def kinds(plan: Plan) -> list[str]:
    return [str(change.WhichOneof("kind")) for change in plan.changes]


def last_state(plan: Plan) -> run_pb2.RunStateChanged:
    return plan.changes[-1].run_state_changed


def results_by_call(view: RunView) -> dict[str, content_pb2.ToolResult]:
    found: dict[str, content_pb2.ToolResult] = {}
    for message in view.conversation():
        for part in message.parts:
            if part.WhichOneof("kind") == "tool_result":
                assert part.tool_result.call_id not in found, "one result for each call"
                found[part.tool_result.call_id] = part.tool_result
    return found
