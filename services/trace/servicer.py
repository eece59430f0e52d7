"""`QueryService` on the wire: translates, asks `Queries`, translates back."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from google.protobuf.duration_pb2 import Duration
from google.protobuf.struct_pb2 import ListValue, Struct
from google.protobuf.timestamp_pb2 import Timestamp

from holdfast.api.common.v1.content_pb2 import Failure
from holdfast.api.common.v1.run_pb2 import RUN_STATE_UNSPECIFIED, ApprovalDecided, RunState
from holdfast.api.trace.v1 import query_service_pb2 as pb
from holdfast.errors import InvalidArgument
from services.shared.access import Access, service_access
from services.shared.identity import current_workspace
from services.shared.paging import decode_page_token, encode_page_token, page_size
from services.shared.rpc_errors import Context
from services.trace.query import ModelDetail, Queries, StepDetail, ToolDetail
from services.trace.spans import AttributeValue, Span, trace_id_of
from services.trace.store import RunFilter, RunPosition
from services.trace.summary import RunRecord
from services.trace.timeline import Outcome

READ_SCOPE: Final = "trace:read"

ACCESS: Final[Mapping[str, Access]] = service_access(
    "holdfast.api.trace.v1.QueryService",
    {
        "ListRuns": Access(scope=READ_SCOPE),
        "GetRunTree": Access(scope=READ_SCOPE),
        "GetStep": Access(scope=READ_SCOPE),
    },
)

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_LISTED_STATES: Final = frozenset(RunState.values()) - {RUN_STATE_UNSPECIFIED}
_STATUSES: Final = {
    Outcome.OPEN: pb.SPAN_STATUS_UNSPECIFIED,
    Outcome.OK: pb.SPAN_STATUS_OK,
    Outcome.ERROR: pb.SPAN_STATUS_ERROR,
    Outcome.CANCELLED: pb.SPAN_STATUS_CANCELLED,
}


class QueryServicer:
    """Serves the queries.

    Args:
        queries: Answers them.
        page_key: Signs page tokens.
        default_deadline_seconds: For calls whose client gave no deadline.
    """

    def __init__(self, queries: Queries, *, page_key: bytes, default_deadline_seconds: float) -> None:
        self._queries = queries
        self._page_key = page_key
        self._default_deadline_seconds = default_deadline_seconds

    async def ListRuns(self, request: pb.ListRunsRequest, context: Context) -> pb.ListRunsResponse:
        """Runs, newest first."""
        workspace_id = current_workspace()
        bound_to = _list_identity(workspace_id, request)
        position = decode_page_token(self._page_key, request.page_token, bound_to=bound_to)
        runs, following = await self._queries.list_runs(
            workspace_id, _run_filter(request), after=_position(position), page_size=page_size(request.page_size)
        )
        token = ""
        if following is not None:
            token = encode_page_token(self._page_key, _shown_position(following), bound_to=bound_to)
        return pb.ListRunsResponse(runs=[_run_summary(run) for run in runs], next_page_token=token)

    async def GetRunTree(self, request: pb.GetRunTreeRequest, context: Context) -> pb.GetRunTreeResponse:
        """One run's spans."""
        if request.min_seq < 0:
            raise InvalidArgument("min_seq is negative", field="min_seq", description="expected 0 or more")
        tree = await self._queries.run_tree(
            current_workspace(),
            request.run_id,
            min_seq=request.min_seq,
            timeout_seconds=_seconds_left(context, self._default_deadline_seconds),
            with_children=request.include_children,
        )
        return pb.GetRunTreeResponse(
            run=_run_summary(tree.run),
            spans=[_span(span) for span in tree.spans],
            children=[_run_summary(child) for child in tree.children],
        )

    async def GetStep(self, request: pb.GetStepRequest, context: Context) -> pb.GetStepResponse:
        """One step with its full input and output."""
        return _step(await self._queries.step(current_workspace(), request.run_id, request.step))


# ------------------------------------------------------------------------------------------------------------ requests


def _seconds_left(context: Any, default: float) -> float:
    # None for a client that set no deadline, whatever the stubs say.
    remaining: float | None = context.time_remaining()
    return default if remaining is None else remaining


def _run_filter(request: pb.ListRunsRequest) -> RunFilter:
    for field in ("agent", "session_id", "user_id", "parent_run_id", "root_run_id"):
        if "\0" in getattr(request, field):
            raise InvalidArgument(f"{field} holds a NUL character", field=field, description="expected text")
    if not _LISTED_STATES.issuperset(request.states):
        raise InvalidArgument("a state of the filter is unknown", field="states", description="expected run states")
    return RunFilter(
        agent=request.agent,
        session_id=request.session_id,
        user_id=request.user_id,
        states=frozenset(request.states),
        created_from=_bound(request, "created_after"),
        created_before=_bound(request, "created_before"),
        parent_run_id=request.parent_run_id,
        root_run_id=request.root_run_id,
        include_children=request.include_children,
    )


def _bound(request: pb.ListRunsRequest, field: str) -> datetime | None:
    if not request.HasField(field):
        return None
    stamp: Timestamp = getattr(request, field)
    try:
        # Up to the next microsecond, which is what is stored: right for "at or after" and for "before" alike.
        return _EPOCH + timedelta(seconds=stamp.seconds, microseconds=-(-stamp.nanos // 1_000))
    except OverflowError as error:
        raise InvalidArgument(f"{field} is out of range", field=field, description="expected a timestamp") from error


def _list_identity(workspace_id: str, request: pb.ListRunsRequest) -> tuple[str, ...]:
    filters = pb.ListRunsRequest()
    filters.CopyFrom(request)
    filters.ClearField("page_size")
    filters.ClearField("page_token")
    del filters.states[:]
    filters.states.extend(sorted(set(request.states)))
    return ("trace.ListRuns", workspace_id, filters.SerializeToString(deterministic=True).hex())


def _position(token: Mapping[str, Any] | None) -> RunPosition | None:
    if token is None:
        return None
    return RunPosition(_EPOCH + timedelta(microseconds=token["t"]), token["r"])


def _shown_position(position: RunPosition) -> dict[str, str | int | None]:
    return {"t": (position.created_at - _EPOCH) // timedelta(microseconds=1), "r": position.run_id}


# ------------------------------------------------------------------------------------------------------------- answers


def _timestamp(time: datetime | None) -> Timestamp | None:
    if time is None:
        return None
    since = time - _EPOCH
    return Timestamp(seconds=since.days * 86_400 + since.seconds, nanos=since.microseconds * 1_000)


def _duration(micros: int | None) -> Duration | None:
    if micros is None:
        return None
    return Duration(seconds=micros // 1_000_000, nanos=micros % 1_000_000 * 1_000)


def _run_summary(run: RunRecord) -> pb.RunSummary:
    summary = pb.RunSummary(
        run_id=run.run_id,
        trace_id=trace_id_of(run.root_run_id or run.run_id),
        parent_run_id=run.parent_run_id,
        parent_step=run.parent_step,
        root_run_id=run.root_run_id,
        depth=run.depth,
        session_id=run.session_id,
        agent=run.agent,
        revision=run.revision,
        user_id=run.user_id,
        state=run.state,  # type: ignore[arg-type]
        wait_reason=run.wait_reason,  # type: ignore[arg-type]
        create_time=_timestamp(run.created_at),
        end_time=_timestamp(run.ended_at),
        queued_duration=_duration(run.queued_micros),
        active_duration=_duration(run.active_so_far_micros),
        waiting_duration=_duration(run.waiting_micros),
        paused_duration=_duration(run.paused_micros),
        model_calls=run.model_calls,
        tool_calls=run.tool_calls,
        failed_attempts=run.failed_attempts,
        claims=run.claims,
        failure=None if run.failure is None else Failure.FromString(run.failure),
        last_seq=run.last_seq,
    )
    usage = summary.usage
    usage.SetInParent()
    usage.input_tokens = run.input_tokens
    usage.output_tokens = run.output_tokens
    usage.cache_read_input_tokens = run.cache_read_input_tokens
    usage.cache_write_input_tokens = run.cache_write_input_tokens
    usage.reasoning_output_tokens = run.reasoning_output_tokens
    usage.price_source = run.price_source
    if run.unpriced_calls == 0:
        usage.cost_usd_nanos = run.cost_usd_nanos
    return summary


def _span(span: Span) -> pb.Span:
    return pb.Span(
        trace_id=span.trace_id,
        span_id=span.span_id,
        parent_span_id=span.parent_span_id,
        name=span.name,
        kind=int(span.kind),  # type: ignore[arg-type]
        step=span.step,
        attempt=span.attempt,
        start_time=_timestamp(span.started_at),
        end_time=_timestamp(span.ended_at),
        status=_STATUSES[span.outcome],
        failure=span.failure,
        attributes=_struct(span.attributes),
    )


def _struct(attributes: Mapping[str, AttributeValue]) -> Struct:
    struct = Struct()
    fields = struct.fields
    for name, value in attributes.items():
        match value:
            case bool():
                fields[name].bool_value = value
            case str():
                fields[name].string_value = value
            case list():
                entries = ListValue()
                for item in value:
                    entries.values.add().string_value = item
                fields[name].list_value.CopyFrom(entries)
            case _:
                fields[name].number_value = value
    return struct


def _step(found: StepDetail) -> pb.GetStepResponse:
    response = pb.GetStepResponse(span=_span(found.span), attempts=[_span(span) for span in found.attempts])
    match found.detail:
        case ModelDetail():
            response.model.CopyFrom(_model_detail(found.detail))
        case ToolDetail():
            response.tool.CopyFrom(_tool_detail(found.detail))
    return response


def _model_detail(found: ModelDetail) -> pb.ModelStepDetail:
    detail = pb.ModelStepDetail(
        spec=found.spec,
        input=[
            pb.InputMessage(run_id=item.said.run_id, step=item.said.step, message=item.said.message, is_new=item.is_new)
            for item in found.input
        ],
        output=found.output,
    )
    if found.finished is not None:
        if found.finished.HasField("usage"):
            detail.usage.CopyFrom(found.finished.usage)
        detail.finish_reason = found.finished.finish_reason
        detail.response_model = found.finished.response_model
        detail.response_id = found.finished.response_id
    return detail


def _tool_detail(found: ToolDetail) -> pb.ToolStepDetail:
    approved = found.approved or ApprovalDecided()
    return pb.ToolStepDetail(
        tool=found.intent.tool,
        call_id=found.intent.call_id,
        arguments_json=found.arguments_json,
        effect=found.intent.effect,
        idempotency_key=approved.idempotency_key or found.intent.idempotency_key,
        shown=found.shown,
        output=found.output,
        approvals=found.approvals,
        edited_arguments_json=approved.edited_arguments_json,
        approval_id=found.intent.approval_id,
    )
