"""Makes the attempts that run in the executor itself: model calls, `http` tools, `noop`. One attempt, one outcome."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from holdfast.api.common.v1 import agent_pb2, content_pb2, run_pb2
from services.executor.call_approvals import note_of
from services.executor.credentials import (
    REJECTED,
    SCOPE_INSUFFICIENT,
    CredentialMissing,
    Credentials,
    Need,
    ResolvedCredential,
)
from services.executor.decide.plan import LocalCall, Outcome
from services.executor.models import ModelAnswer, ModelFailed, ModelRegistry, ModelRequest
from services.executor.models.scripted import ScriptedModel
from services.executor.prices import price_of
from services.executor.run_grants import model_connection
from services.executor.state_client import JournalClient
from services.executor.stored_messages import store_message_in
from services.executor.tools.builtin import effective_tools
from services.executor.tools.http import DEFAULT_METHOD, CredentialRejected, HttpTools, ToolFailed
from services.executor.tools.output import SettledResult, settle_result, settle_value, without_secrets
from services.executor.tools.url_template import UrlTemplate
from services.executor.trace_context import traceparent_of_step
from services.shared.clock import Clock
from services.shared.scrubber import PROCESS, StreamScrubber
from services.shared.telemetry import get_logger

DEFAULT_MODEL_TIMEOUT_SECONDS = 120.0
# Pieces of an answer are passed on this often: often enough to read along, seldom enough to cost nothing.
DELTA_INTERVAL_SECONDS = 0.03

log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class RunContext:
    """What every call of a run knows about it."""

    workspace_id: str
    run_id: str
    agent: str
    spec: agent_pb2.AgentSpec
    input_text: str
    user_id: str = ""
    used_call_ids: set[str] = field(default_factory=set)
    root_run_id: str = ""


class LocalCalls:
    """Executes attempts; never raises but for cancellation."""

    def __init__(
        self,
        *,
        models: ModelRegistry,
        credentials: Credentials,
        http_tools: HttpTools,
        journal: JournalClient,
        clock: Clock,
    ) -> None:
        self._models = models
        self._credentials = credentials
        self._http_tools = http_tools
        self._journal = journal
        self._clock = clock

    def is_instant(self, context: RunContext, call: LocalCall, model_steps_before: int) -> bool:
        """Whether the call takes no time, so that a task for it would cost more than the call."""
        if call.tool is not None:
            return bool(call.tool.WhichOneof("kind") == "builtin")
        spec = _model_spec(context, call)
        if spec.provider != "scripted":
            return False
        model = self._models.get("scripted")
        return isinstance(model, ScriptedModel) and not model.delay_seconds(spec, model_steps_before)

    def execute_instantly(
        self, context: RunContext, call: LocalCall, messages: Sequence[content_pb2.Message], model_steps_before: int
    ) -> Outcome:
        """Executes a call that takes no time."""
        if call.tool is not None:
            assert call.step.tool is not None
            settled = settle_value(call.tool, call.step.tool.call_id, call.arguments, note=note_of(call.step))
            return _tool_outcome(call, settled, 0.0)
        model = self._models.get("scripted")
        assert isinstance(model, ScriptedModel)
        pieces: list[str] = []
        answer = model.play(_model_request(context, call, messages, model_steps_before), pieces.append)
        spec = _model_spec(context, call)
        if spec.HasField("price"):
            _put_price(spec, answer, "", self._clock.now())
        if pieces:
            deltas = _Deltas(self._journal, context.run_id, call)
            deltas.add("".join(pieces))
            deltas.flush()
        return _model_outcome(context, call, answer, 0.0, None)

    async def execute(
        self, context: RunContext, call: LocalCall, messages: Sequence[content_pb2.Message], model_steps_before: int
    ) -> Outcome:
        """Executes one attempt and says what came of it."""
        try:
            if call.tool is None:
                return await self._call_model(context, call, messages, model_steps_before)
            return await self._call_http(context, call)
        except Exception as error:
            # Whatever a library did: the attempt is over, the run goes on by its policy, the log has the cause.
            log.error("attempt_crashed", run_id=context.run_id, step=call.step.number, exc_info=error)
            failure_class = (
                content_pb2.FAILURE_CLASS_PERMANENT if call.tool is None else content_pb2.FAILURE_CLASS_UNKNOWN_OUTCOME
            )
            return _failed(
                call,
                content_pb2.Failure(
                    reason="INTERNAL",
                    message="The runtime failed while it made this call.",
                    failure_class=failure_class,
                ),
            )

    async def _call_model(
        self, context: RunContext, call: LocalCall, messages: Sequence[content_pb2.Message], model_steps_before: int
    ) -> Outcome:
        spec = _model_spec(context, call)
        model = self._models.get(spec.provider)
        timeout = (
            spec.timeout.ToTimedelta().total_seconds() if spec.HasField("timeout") else DEFAULT_MODEL_TIMEOUT_SECONDS
        )
        deltas = _Deltas(self._journal, context.run_id, call)
        started = self._clock.monotonic()
        try:
            async with asyncio.timeout(timeout):
                credential = None
                if model.needs_credential:
                    credential = await self._credentials.resolve(_need(context, call, model_connection(spec)))
                request = _model_request(context, call, messages, model_steps_before)
                answer = await model.answer(request, credential, deltas.add)
        except ModelFailed as error:
            return _failed(call, error.failure)
        except CredentialMissing as missing:
            return _failed(call, missing.failure, missing.sign_in)
        except TimeoutError:
            return _failed(
                call,
                content_pb2.Failure(
                    reason="PROVIDER_TIMEOUT",
                    message=f"The model did not finish within {timeout:g} s (model.timeout).",
                    failure_class=content_pb2.FAILURE_CLASS_RETRYABLE,
                ),
            )
        finally:
            deltas.flush()
        duration = self._clock.monotonic() - started
        if answer.usage is not None and (spec.provider != "scripted" or spec.HasField("price")):
            base_url = credential.base_url if credential is not None else ""
            # In a thread: the price data takes a third of a second to load, once.
            await asyncio.to_thread(_put_price, spec, answer, base_url, self._clock.now())
        return _model_outcome(context, call, answer, duration, deltas.first_after(started))

    async def _call_http(self, context: RunContext, call: LocalCall) -> Outcome:
        tool = call.tool
        assert tool is not None and call.arguments is not None and call.step.tool is not None
        headers = {
            "X-Holdfast-Run-Id": context.run_id,
            "traceparent": traceparent_of_step(context.run_id, call.step.number, context.root_run_id),
        }
        started = self._clock.monotonic()
        key = call.step.tool.idempotency_key
        try:
            # It keeps the tool's timeout itself: only it knows whether anything was sent when the time was up.
            if not tool.HasField("auth"):
                result = await self._http_tools.call(tool, call.arguments, key, headers)
            else:
                result = await self._call_with_credential(context, call, tool, call.arguments, key, headers)
        except ToolFailed as error:
            return _failed(call, error.failure)
        except CredentialMissing as missing:
            return _failed(call, missing.failure, missing.sign_in)
        settled = settle_result(tool, call.step.tool.call_id, result, note=note_of(call.step))
        return _tool_outcome(call, settled, self._clock.monotonic() - started)

    async def _call_with_credential(
        self,
        context: RunContext,
        call: LocalCall,
        tool: agent_pb2.ToolSpec,
        arguments: Mapping[str, object],
        key: str,
        headers: Mapping[str, str],
    ) -> str:
        need = _need(
            context,
            call,
            tool.auth.connection,
            tool=tool.name,
            target=UrlTemplate.parse(tool.http.url).origin,
            method=tool.http.method or DEFAULT_METHOD,
            scopes=tuple(tool.auth.scopes),
        )
        credential = await self._credentials.resolve(need)
        try:
            return await self._http_tools.call(tool, arguments, key, headers, credential)
        except CredentialRejected as rejected:
            if rejected.missing_scopes is not None:
                raise await self._given_up(need, rejected, credential) from None
            renewed = await self._credentials.resolve(need, rejected_fingerprint=credential.fingerprint)
            if renewed.fingerprint == credential.fingerprint:
                raise await self._given_up(need, rejected, renewed) from None
        try:
            # Once: what a new credential does not open is not about its age.
            return await self._http_tools.call(tool, arguments, key, headers, renewed)
        except CredentialRejected as rejected:
            raise await self._given_up(need, rejected, renewed) from None

    async def _given_up(
        self, need: Need, rejected: CredentialRejected, credential: ResolvedCredential
    ) -> CredentialMissing:
        """Returns what a person has to do about a credential that renewing does not help: replace it, or grant more."""
        if rejected.missing_scopes is not None:
            scopes = tuple(dict.fromkeys((*need.scopes, *rejected.missing_scopes)))
            return CredentialMissing(
                rejected.failure, await self._credentials.sign_in(need, SCOPE_INSUFFICIENT, scopes)
            )
        if not credential.fingerprint:
            # Nothing was sent that somebody could replace.
            return CredentialMissing(rejected.failure)
        sign_in = await self._credentials.sign_in(
            need, REJECTED, need.scopes, rejected_fingerprint=credential.fingerprint
        )
        return CredentialMissing(rejected.failure, sign_in)


class _Deltas:
    """Gathers an answer's pieces for a moment and passes them on together."""

    def __init__(self, journal: JournalClient, run_id: str, call: LocalCall) -> None:
        self._journal = journal
        self._run_id = run_id
        self._step = call.step.number
        self._attempt = call.attempt
        self._index = 0
        self._pieces: list[str] = []
        self._scrubber = StreamScrubber(PROCESS)
        self._timer: asyncio.TimerHandle | None = None
        self._first: float | None = None
        self._loop = asyncio.get_running_loop()

    def add(self, text: str) -> None:
        """Takes the next piece."""
        if self._first is None:
            self._first = self._loop.time()
        self._pieces.append(text)
        if self._timer is None:
            self._timer = self._loop.call_later(DELTA_INTERVAL_SECONDS, self._pass_on)

    def flush(self) -> None:
        """Passes on what is left, at the end of the answer."""
        if self._timer is not None:
            self._timer.cancel()
        self._pass_on(is_end=True)

    def _pass_on(self, *, is_end: bool = False) -> None:
        self._timer = None
        text = self._scrubber.add("".join(self._pieces))
        self._pieces.clear()
        if is_end:
            text += self._scrubber.end()
        if text:
            self._journal.send_delta(
                run_pb2.Delta(run_id=self._run_id, step=self._step, attempt=self._attempt, index=self._index, text=text)
            )
            self._index += 1

    def first_after(self, started: float) -> float | None:
        """Seconds from `started` to the first piece."""
        return None if self._first is None else max(0.0, self._first - started)


def _model_spec(context: RunContext, call: LocalCall) -> agent_pb2.ModelSpec:
    return context.spec.limits.cheaper_model if call.is_cheaper else context.spec.model


def _model_request(
    context: RunContext, call: LocalCall, messages: Sequence[content_pb2.Message], model_steps_before: int
) -> ModelRequest:
    tools: Collection[agent_pb2.ToolSpec] = effective_tools(context.spec).values()
    if call.final_note:
        note = content_pb2.Message(role=content_pb2.ROLE_RUNTIME, parts=[content_pb2.Part(text=call.final_note)])
        messages, tools = [*messages, note], ()
    return ModelRequest(
        spec=_model_spec(context, call),
        instructions=context.spec.instructions,
        messages=messages,
        tools=tools,
        model_steps_before=model_steps_before,
        input_text=context.input_text,
    )


def _put_price(spec: agent_pb2.ModelSpec, answer: ModelAnswer, base_url: str, at: datetime) -> None:
    if answer.usage is None:
        return
    cost, source = price_of(spec, answer.response_model or spec.name, answer.usage, base_url, at)
    if cost is not None:
        answer.usage.cost_usd_nanos, answer.usage.price_source = cost, source


def _model_outcome(
    context: RunContext, call: LocalCall, answer: ModelAnswer, duration: float, time_to_first_token: float | None
) -> Outcome:
    _clean(answer.message)
    _make_call_ids_unique(answer.message, context.used_call_ids, call.step.number)
    change, finished = _finished(call, run_pb2.STEP_STATE_SUCCEEDED, duration)
    blobs = store_message_in(finished.message, answer.message)
    if answer.usage is not None:
        finished.usage.CopyFrom(answer.usage)
    finished.finish_reason = PROCESS.exact(answer.finish_reason, "journal")
    finished.response_id = PROCESS.exact(answer.response_id, "journal")
    finished.response_model = PROCESS.exact(answer.response_model, "journal")
    if time_to_first_token is not None:
        finished.time_to_first_token.FromNanoseconds(int(time_to_first_token * 1e9))
    return Outcome(change, tuple(blobs))


def _tool_outcome(call: LocalCall, settled: SettledResult, seconds: float) -> Outcome:
    state = run_pb2.STEP_STATE_FAILED if settled.failure is not None else run_pb2.STEP_STATE_SUCCEEDED
    change, finished = _finished(call, state, seconds)
    finished.message.CopyFrom(settled.message)
    if settled.failure is not None:
        finished.failure.CopyFrom(settled.failure)
    if settled.output is not None:
        finished.output.CopyFrom(settled.output)
    return Outcome(change, tuple(settled.blobs))


def _finished(call: LocalCall, state: run_pb2.StepState, seconds: float) -> tuple[run_pb2.Change, run_pb2.StepFinished]:
    """A change and what is to be filled in there: a message that is put into another one is copied."""
    change = run_pb2.Change()
    finished = change.step_finished
    finished.step, finished.attempt, finished.state = call.step.number, call.attempt, state
    duration = finished.duration
    duration.seconds, duration.nanos = divmod(int(seconds * 1e9), 1_000_000_000)
    # Also where it is nothing.
    duration.SetInParent()
    return change, finished


def _need(context: RunContext, call: LocalCall, connection: str, **of_tool: Any) -> Need:
    return Need(
        workspace_id=context.workspace_id,
        run_id=context.run_id,
        user_id=context.user_id,
        step=call.step.number,
        connection=connection,
        **of_tool,
    )


def _failed(call: LocalCall, failure: content_pb2.Failure, sign_in: run_pb2.SignInNeeded | None = None) -> Outcome:
    failed = run_pb2.AttemptFailed(
        step=call.step.number, attempt=call.attempt, failure=without_secrets(failure), sign_in=sign_in
    )
    return Outcome(run_pb2.Change(attempt_failed=failed))


def _clean(message: content_pb2.Message) -> None:
    """Takes out secrets that a provider, or a gateway before it, has put into its answer."""
    if PROCESS.is_empty:
        return
    for part in message.parts:
        match part.WhichOneof("kind"):
            case "text":
                part.text = PROCESS.exact(part.text, "journal")
            case "reasoning":
                part.reasoning.text = PROCESS.exact(part.reasoning.text, "journal")
            case "tool_call":
                part.tool_call.call_id = PROCESS.exact(part.tool_call.call_id, "journal")
                part.tool_call.tool = PROCESS.exact(part.tool_call.tool, "journal")
                part.tool_call.arguments_json = PROCESS.exact(part.tool_call.arguments_json, "journal")


def _make_call_ids_unique(message: content_pb2.Message, used: set[str], step: int) -> None:
    """Renames calls whose id the run has had before: some servers count from zero in each answer."""
    for index, part in enumerate(message.parts):
        if part.WhichOneof("kind") != "tool_call":
            continue
        call = part.tool_call
        if not call.call_id or call.call_id in used:
            call.call_id = f"{call.call_id or 'call'}_{step}_{index}"
        used.add(call.call_id)
