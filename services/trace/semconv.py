"""Names of span attributes, in one place: OpenTelemetry's GenAI conventions v0.1.0, and `holdfast.*` for the rest.

None of the GenAI names is stable yet. When they change, they change here.
"""

from __future__ import annotations

from typing import Final

SEMCONV_VERSION: Final = "gen-ai 0.1.0"

# ------------------------------------------------------------------------------------- GenAI conventions v0.1.0

OPERATION_NAME: Final = "gen_ai.operation.name"
OPERATION_INVOKE_AGENT: Final = "invoke_agent"
OPERATION_CHAT: Final = "chat"
OPERATION_EXECUTE_TOOL: Final = "execute_tool"

AGENT_NAME: Final = "gen_ai.agent.name"
CONVERSATION_ID: Final = "gen_ai.conversation.id"
PROVIDER_NAME: Final = "gen_ai.provider.name"
REQUEST_MODEL: Final = "gen_ai.request.model"
RESPONSE_MODEL: Final = "gen_ai.response.model"
RESPONSE_ID: Final = "gen_ai.response.id"
RESPONSE_FINISH_REASONS: Final = "gen_ai.response.finish_reasons"
RESPONSE_TIME_TO_FIRST_CHUNK: Final = "gen_ai.response.time_to_first_chunk"
"""Seconds."""

# Totals are inclusive: input contains cache reads and writes, output contains reasoning.
USAGE_INPUT_TOKENS: Final = "gen_ai.usage.input_tokens"
USAGE_OUTPUT_TOKENS: Final = "gen_ai.usage.output_tokens"
USAGE_CACHE_READ_INPUT_TOKENS: Final = "gen_ai.usage.cache_read.input_tokens"
USAGE_CACHE_WRITE_INPUT_TOKENS: Final = "gen_ai.usage.cache_write.input_tokens"
USAGE_REASONING_OUTPUT_TOKENS: Final = "gen_ai.usage.reasoning.output_tokens"

TOOL_NAME: Final = "gen_ai.tool.name"
TOOL_TYPE: Final = "gen_ai.tool.type"
TOOL_TYPE_FUNCTION: Final = "function"
"""Executed on the user's side: in a worker."""
TOOL_TYPE_EXTENSION: Final = "extension"
"""Executed on the runtime's side."""
TOOL_CALL_ID: Final = "gen_ai.tool.call.id"

# ------------------------------------------------------------------------------------------- general conventions

ERROR_TYPE: Final = "error.type"
ENDUSER_ID: Final = "enduser.id"

# ------------------------------------------------------------------------------------------------------- our own

RUN_ID: Final = "holdfast.run.id"
RUN_PREVIOUS_ID: Final = "holdfast.run.previous_id"
RUN_PARENT_ID: Final = "holdfast.run.parent_id"
RUN_ROOT_ID: Final = "holdfast.run.root_id"
RUN_DEPTH: Final = "holdfast.run.depth"
CHILD_RUN_ID: Final = "holdfast.child.run_id"
WORKSPACE_ID: Final = "holdfast.workspace.id"
AGENT_REVISION: Final = "holdfast.agent.revision"
CALLER_TRACEPARENT: Final = "holdfast.caller.traceparent"
"""The W3C trace context of whoever started the run. A run is a trace of its own, so that it is one whatever happens."""
CANCEL_REQUESTED_BY: Final = "holdfast.cancel.requested_by"
CANCEL_REASON: Final = "holdfast.cancel.reason"
CANCEL_REQUEST_TIME: Final = "holdfast.cancel.request_time"
RUN_TTL: Final = "holdfast.run.ttl_seconds"
# How often it was paused, and who asked last.
PAUSE_COUNT: Final = "holdfast.pause.count"
PAUSE_REQUESTED_BY: Final = "holdfast.pause.requested_by"
PAUSE_REASON: Final = "holdfast.pause.reason"
# Of a run with a budget, for each of its limits; the name of the limit comes after it.
BUDGET_LIMIT: Final = "holdfast.budget.limit."
BUDGET_USED: Final = "holdfast.budget.used."
BUDGET_RESERVED: Final = "holdfast.budget.reserved."
BUDGET_LEFT: Final = "holdfast.budget.left."

SEGMENT_NUMBER: Final = "holdfast.segment.number"
"""On a segment its number; on steps and attempts the segment that began them."""
SEGMENT_REASON: Final = "holdfast.segment.reason"
"""Why it began: `start`, `wake`, or `takeover` after an executor that did not finish its segment."""
SEGMENT_END: Final = "holdfast.segment.end"
"""Why it ended: `waiting`, `ended` or `lost`."""
EXECUTOR_ID: Final = "holdfast.executor.id"
LEASE_EPOCH: Final = "holdfast.lease.epoch"

STEP_NUMBER: Final = "holdfast.step.number"
STEP_IN_DOUBT: Final = "holdfast.step.in_doubt"
STEP_DURATION: Final = "holdfast.step.duration"
"""Seconds of the deciding attempt, as its executor measured them."""
MESSAGE_COUNT: Final = "holdfast.request.message_count"
COST_USD_NANOS: Final = "holdfast.usage.cost_usd_nanos"
PRICE_SOURCE: Final = "holdfast.usage.price_source"
# Of a model call in a run with a budget: what was set aside before it was made.
RESERVED_INPUT_TOKENS: Final = "holdfast.reserved.input_tokens"
RESERVED_OUTPUT_TOKENS: Final = "holdfast.reserved.output_tokens"
RESERVED_COST_USD_NANOS: Final = "holdfast.reserved.cost_usd_nanos"
TOOL_KIND: Final = "holdfast.tool.kind"
TOOL_EFFECT: Final = "holdfast.tool.effect"
IDEMPOTENCY_KEY: Final = "holdfast.idempotency_key"
WORKER_ID: Final = "holdfast.worker.id"
WAIT_DUE_TIME: Final = "holdfast.wait.due_time"
APPROVAL_ID: Final = "holdfast.approval.id"
APPROVAL_STATE: Final = "holdfast.approval.state"
APPROVAL_DECIDED_BY: Final = "holdfast.approval.decided_by"
APPROVAL_VERDICT: Final = "holdfast.approval.verdict"
APPROVAL_SCOPE: Final = "holdfast.approval.scope"
APPROVAL_EDITED: Final = "holdfast.approval.edited"
"""The call was made with other arguments than the model's."""
APPROVAL_WAIT: Final = "holdfast.approval.wait_seconds"
APPROVAL_STANDING_ID: Final = "holdfast.approval.standing_id"
"""The decision for the run or the session by which nobody was asked."""
LATE_RESULTS: Final = "holdfast.late_results"

ATTEMPT_COUNT: Final = "holdfast.attempt.count"
ATTEMPT_NUMBER: Final = "holdfast.attempt.number"
ATTEMPT_NOT_BEFORE: Final = "holdfast.attempt.not_before"
ATTEMPT_ACCEPT_TIME: Final = "holdfast.attempt.accept_time"
"""When a worker took the call; before it, the call waited for one."""
