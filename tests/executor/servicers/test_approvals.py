"""`ApprovalService` over gRPC: what a person may answer."""

from __future__ import annotations

import json
from typing import Any

import grpc
import pytest

from holdfast.api.common.v1 import agent_pb2, run_pb2
from holdfast.api.executor.v1 import approval_service_pb2 as api
from holdfast.errors import HoldfastError, Reason, from_rpc_error
from holdfast.ids import new_uuid7
from services.executor.call_approvals import sha256_of
from services.executor.idempotency import idempotency_key
from tests.executor.servicers.conftest import Client, Executor

DONE = run_pb2.IN_DOUBT_RESOLUTION_DONE
NOT_DONE = run_pb2.IN_DOUBT_RESOLUTION_NOT_DONE


@pytest.fixture
async def client(executor: Executor) -> Client:
    return await executor.client()


def ask(executor: Executor, schema: dict[str, Any] | None = None, **fields: Any) -> run_pb2.Approval:
    defaults: dict[str, Any] = {
        "approval_id": new_uuid7(),
        "run_id": new_uuid7(),
        "step": 1,
        "kind": run_pb2.APPROVAL_KIND_QUESTION,
        "state": run_pb2.APPROVAL_STATE_PENDING,
    }
    approval = run_pb2.Approval(**(defaults | fields))
    if schema is not None:
        approval.answer_schema.update(schema)
    executor.state.approvals["ws1", approval.approval_id] = approval
    return approval


def ask_in_doubt(executor: Executor) -> run_pb2.Approval:
    tool = agent_pb2.ToolSpec(name="refund")
    tool.output_schema.update({"type": "object", "required": ["id"]})
    executor.state.add_agent("ws1", agent_pb2.AgentSpec(name="support", tools=[tool]))
    run = executor.state.add_run("ws1", agent="support", revision="a" * 64)
    return ask(executor, kind=run_pb2.APPROVAL_KIND_IN_DOUBT, tool="refund", run_id=run.run.run_id)


async def decide(client: Client, approval: run_pb2.Approval, **fields: Any) -> run_pb2.Approval:
    request = api.DecideApprovalRequest(approval_id=approval.approval_id, **fields)
    return (await client.approvals.DecideApproval(request)).approval


async def error(awaitable: Any) -> HoldfastError:
    with pytest.raises(grpc.RpcError) as caught:
        await awaitable
    return from_rpc_error(caught.value)


@pytest.mark.parametrize(
    ("schema", "answer", "stored"),
    [
        (None, "yes, please", "yes, please"),
        (None, '"yes"', "yes"),
        (None, "42", "42"),
        (None, '{"a": 1', '{"a": 1'),
        (None, '"\\ud800"', '"\\ud800"'),
        (None, "", ""),
        ({"type": "integer"}, "42", 42),
        ({"type": "object", "required": ["a"]}, '{"a": 1.0}', {"a": 1}),
        ({"type": "string", "enum": ["yes", "42"]}, '"yes"', "yes"),
        ({"type": "string", "enum": ["yes", "42"]}, "yes", "yes"),
        ({"type": "string", "enum": ["yes", "42"]}, "42", "42"),
    ],
)
async def test_answer_that_fits_is_stored_as_json(
    executor: Executor, client: Client, schema: dict[str, Any] | None, answer: str, stored: Any
) -> None:
    decided = await decide(client, ask(executor, schema), answer_json=answer, comment="sure")
    assert decided.state == run_pb2.APPROVAL_STATE_DECIDED
    assert json.loads(decided.decision.answer_json) == stored
    assert (decided.decision.decided_by, decided.decision.comment) == ("key-ws1", "sure")


@pytest.mark.parametrize(
    ("schema", "answer"),
    [
        ({"type": "integer"}, '"x"'),
        ({"type": "integer"}, "x"),
        ({"type": "object", "required": ["a"]}, "{}"),
        ({"type": "object"}, "{"),
        ({"type": "string", "enum": ["yes", "no"]}, "maybe"),
    ],
)
async def test_answer_that_does_not_fit_is_refused_and_the_question_stays(
    executor: Executor, client: Client, schema: dict[str, Any], answer: str
) -> None:
    approval = ask(executor, schema)
    refused = await error(decide(client, approval, answer_json=answer))
    assert [violation.field for violation in refused.field_violations] == ["answer_json"]
    assert approval.state == run_pb2.APPROVAL_STATE_PENDING


async def test_first_decision_counts(executor: Executor, client: Client) -> None:
    approval = ask(executor)
    first = await decide(client, approval, answer_json="yes")
    assert await decide(client, approval, answer_json="yes") == first
    refused = await error(decide(client, approval, answer_json="no"))
    assert (refused.code, refused.reason) == (
        grpc.StatusCode.FAILED_PRECONDITION,
        Reason.APPROVAL_ALREADY_DECIDED,
    )


@pytest.mark.parametrize(
    ("fields", "stored"),
    [
        ({"resolution": DONE, "answer_json": '{"id": 1}'}, '{"id":1}'),
        ({"resolution": NOT_DONE}, ""),
        ({"resolution": run_pb2.IN_DOUBT_RESOLUTION_TELL_MODEL}, ""),
        ({"resolution": run_pb2.IN_DOUBT_RESOLUTION_FAIL_RUN}, ""),
    ],
)
async def test_call_in_doubt_is_resolved(
    executor: Executor, client: Client, fields: dict[str, Any], stored: str
) -> None:
    decided = await decide(client, ask_in_doubt(executor), **fields)
    assert (decided.decision.resolution, decided.decision.answer_json) == (fields["resolution"], stored)


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({}, "resolution"),
        ({"resolution": 9}, "resolution"),
        ({"answer_json": "yes"}, "resolution"),
        ({"resolution": DONE, "answer_json": "{}"}, "answer_json"),
        ({"resolution": DONE, "answer_json": "oops"}, "answer_json"),
        ({"resolution": NOT_DONE, "answer_json": "{}"}, "answer_json"),
    ],
)
async def test_resolution_that_does_not_fit_is_refused(
    executor: Executor, client: Client, fields: dict[str, Any], field: str
) -> None:
    refused = await error(decide(client, ask_in_doubt(executor), **fields))
    assert [violation.field for violation in refused.field_violations] == [field]


async def test_question_takes_no_resolution(executor: Executor, client: Client) -> None:
    refused = await error(decide(client, ask(executor), answer_json="yes", resolution=DONE))
    assert [violation.field for violation in refused.field_violations] == ["resolution"]


@pytest.mark.parametrize(
    ("fields", "field"),
    [({"comment": "c" * 1_001}, "comment"), ({"request_id": "r" * 65}, "request_id")],
)
async def test_field_that_is_too_long_is_refused(
    executor: Executor, client: Client, fields: dict[str, Any], field: str
) -> None:
    refused = await error(decide(client, ask(executor), answer_json="yes", **fields))
    assert [violation.field for violation in refused.field_violations] == [field]


async def test_answer_that_is_too_large_names_the_limit(executor: Executor, client: Client) -> None:
    refused = await error(decide(client, ask(executor), answer_json="x" * (1024 * 1024 + 1)))
    assert (refused.reason, refused.metadata["limit_bytes"]) == (Reason.MESSAGE_TOO_LARGE, "1048576")


async def test_question_of_another_workspace_is_not_found(executor: Executor, client: Client) -> None:
    approval = ask(executor)
    theirs = await executor.client("ws2")
    for call in (
        theirs.approvals.GetApproval(api.GetApprovalRequest(approval_id=approval.approval_id)),
        decide(theirs, approval, answer_json="yes"),
        client.approvals.GetApproval(api.GetApprovalRequest(approval_id="x")),
        client.approvals.GetApproval(api.GetApprovalRequest(approval_id=new_uuid7())),
    ):
        assert (await error(call)).reason == Reason.APPROVAL_NOT_FOUND
    assert approval.state == run_pb2.APPROVAL_STATE_PENDING


async def test_questions_come_in_pages_with_their_filters(executor: Executor, client: Client) -> None:
    asked = [ask(executor) for _ in range(3)]
    await decide(client, asked[1], answer_json="yes")
    first = await client.approvals.ListApprovals(api.ListApprovalsRequest(page_size=2))
    rest = api.ListApprovalsRequest(page_size=2, page_token=first.next_page_token)
    found = [*first.approvals, *(await client.approvals.ListApprovals(rest)).approvals]
    assert [approval.approval_id for approval in found] == [approval.approval_id for approval in reversed(asked)]
    pending = api.ListApprovalsRequest(state=run_pb2.APPROVAL_STATE_PENDING)
    assert len((await client.approvals.ListApprovals(pending)).approvals) == 2
    of_run = api.ListApprovalsRequest(run_id=asked[0].run_id)
    assert len((await client.approvals.ListApprovals(of_run)).approvals) == 1
    unknown: Any = 77
    refused = await error(client.approvals.ListApprovals(api.ListApprovalsRequest(state=unknown)))
    assert refused.reason == Reason.INVALID_FIELD


# ------------------------------------------------------------------------------------------------- approvals of calls

APPROVED = run_pb2.APPROVAL_VERDICT_APPROVED
REJECTED = run_pb2.APPROVAL_VERDICT_REJECTED
ARGUMENTS = '{"amount":5}'


def ask_for_approval(executor: Executor, workspace: str = "ws1") -> run_pb2.Approval:
    tool = agent_pb2.ToolSpec(name="refund")
    tool.input_schema.update({"type": "object", "properties": {"amount": {"type": "integer", "maximum": 10}}})
    executor.state.add_agent(workspace, agent_pb2.AgentSpec(name="support", tools=[tool]))
    run = executor.state.add_run(workspace, agent="support", revision="a" * 64)
    return ask(
        executor,
        kind=run_pb2.APPROVAL_KIND_TOOL_CALL,
        tool="refund",
        run_id=run.run.run_id,
        step=2,
        arguments_json=ARGUMENTS,
        arguments_sha256=sha256_of(ARGUMENTS),
    )


async def test_an_approval_is_bound_to_the_arguments_and_to_who_decided(executor: Executor, client: Client) -> None:
    approval = ask_for_approval(executor)
    decided = await decide(client, approval, verdict=APPROVED, arguments_sha256=sha256_of(ARGUMENTS), comment="fine")
    decision = decided.decision
    assert (decision.verdict, decision.scope) == (APPROVED, run_pb2.APPROVAL_SCOPE_ONCE)
    assert (decision.arguments_sha256, decision.edited_arguments_json) == (sha256_of(ARGUMENTS), "")
    assert (decision.decided_by, decision.comment) == ("key-ws1", "fine")


async def test_a_decision_about_other_arguments_than_those_of_the_call_is_refused(
    executor: Executor, client: Client
) -> None:
    approval = ask_for_approval(executor)
    refused = await error(decide(client, approval, verdict=APPROVED, arguments_sha256=sha256_of('{"amount":4}')))
    assert (refused.code, refused.reason) == (grpc.StatusCode.FAILED_PRECONDITION, Reason.APPROVAL_HASH_MISMATCH)
    assert refused.metadata["arguments_sha256"] == approval.arguments_sha256
    assert approval.state == run_pb2.APPROVAL_STATE_PENDING


async def test_edited_arguments_are_checked_hashed_and_given_a_key_of_their_own(
    executor: Executor, client: Client
) -> None:
    approval = ask_for_approval(executor)
    decided = await decide(client, approval, verdict=APPROVED, edited_arguments_json='{ "amount": 4.0 }')
    assert decided.decision.edited_arguments_json == '{"amount":4}'
    assert decided.decision.arguments_sha256 == sha256_of('{"amount":4}')
    assert decided.decision.idempotency_key == idempotency_key(approval.run_id, 2, "refund", '{"amount":4}')


async def test_the_same_arguments_in_another_form_are_no_edit(executor: Executor, client: Client) -> None:
    approval = ask_for_approval(executor)
    decided = await decide(
        client,
        approval,
        verdict=APPROVED,
        edited_arguments_json='{ "amount": 5.0 }',
        scope=run_pb2.APPROVAL_SCOPE_RUN,
    )
    assert (decided.decision.edited_arguments_json, decided.decision.idempotency_key) == ("", "")
    assert decided.decision.scope == run_pb2.APPROVAL_SCOPE_RUN


async def test_a_rejection_keeps_its_reason_for_the_model(executor: Executor, client: Client) -> None:
    decided = await decide(client, ask_for_approval(executor), verdict=REJECTED, reason="Too much.")
    assert (decided.decision.verdict, decided.decision.reason) == (REJECTED, "Too much.")


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({}, "verdict"),
        ({"verdict": 9}, "verdict"),
        ({"verdict": APPROVED, "answer_json": "yes"}, "answer_json"),
        ({"verdict": APPROVED, "resolution": DONE}, "resolution"),
        ({"verdict": APPROVED, "reason": "because"}, "reason"),
        ({"verdict": APPROVED, "scope": 9}, "scope"),
        ({"verdict": APPROVED, "edited_arguments_json": "{"}, "edited_arguments_json"),
        ({"verdict": APPROVED, "edited_arguments_json": "[]"}, "edited_arguments_json"),
        ({"verdict": APPROVED, "edited_arguments_json": '{"amount": 11}'}, "edited_arguments_json"),
        ({"verdict": APPROVED, "edited_arguments_json": '{"a": "' + "x" * 300_000 + '"}'}, "edited_arguments_json"),
        (
            {"verdict": APPROVED, "edited_arguments_json": '{"amount": 4}', "scope": run_pb2.APPROVAL_SCOPE_SESSION},
            "scope",
        ),
        ({"verdict": REJECTED, "edited_arguments_json": "{}"}, "edited_arguments_json"),
        ({"verdict": REJECTED, "scope": run_pb2.APPROVAL_SCOPE_RUN}, "scope"),
        ({"verdict": REJECTED, "reason": "x" * 1_001}, "reason"),
    ],
)
async def test_what_is_no_verdict_is_refused(
    executor: Executor, client: Client, fields: dict[str, Any], field: str
) -> None:
    approval = ask_for_approval(executor)
    refused = await error(decide(client, approval, **fields))
    assert [violation.field for violation in refused.field_violations] == [field]
    assert approval.state == run_pb2.APPROVAL_STATE_PENDING


@pytest.mark.parametrize("fields", [{"verdict": APPROVED}, {"scope": 1}, {"reason": "no"}, {"arguments_sha256": "a"}])
async def test_a_question_takes_no_verdict(executor: Executor, client: Client, fields: dict[str, Any]) -> None:
    refused = await error(decide(client, ask(executor), answer_json="yes", **fields))
    assert [violation.field for violation in refused.field_violations] == ["verdict"]


async def test_nobody_of_another_workspace_decides(executor: Executor) -> None:
    approval = ask_for_approval(executor)
    stranger = await executor.client("ws2")
    refused = await error(decide(stranger, approval, verdict=APPROVED))
    assert (refused.code, refused.reason) == (grpc.StatusCode.NOT_FOUND, Reason.APPROVAL_NOT_FOUND)


async def test_large_arguments_are_read_whole(executor: Executor, client: Client) -> None:
    whole = json.dumps({"note": "n" * 10_000}, separators=(",", ":"))
    approval = ask_for_approval(executor)
    approval.arguments_json, approval.arguments_shortened = whole[:4_000], True
    approval.arguments_sha256 = sha256_of(whole)
    executor.state.blobs["ws1", bytes.fromhex(sha256_of(whole))] = whole.encode()
    found = (await client.approvals.GetApproval(api.GetApprovalRequest(approval_id=approval.approval_id))).approval
    assert (found.arguments_json, found.arguments_shortened) == (whole, False)


# ----------------------------------------------------------------------------------------------------------- budgets


def ask_for_more(executor: Executor, limit: str) -> run_pb2.Approval:
    return ask(executor, kind=run_pb2.APPROVAL_KIND_BUDGET, budget=run_pb2.BudgetShortfall(limit=limit))


@pytest.mark.promise("P10")
@pytest.mark.parametrize(
    ("limit", "answer", "stored"),
    [
        ("max_total_tokens", "2000", "2000"),
        ("max_total_tokens", '" 7 "', "7"),
        ("max_cost_usd_nanos", "5", "5"),
        ("max_cost_usd_nanos", "$0.25", "250000000"),
        ("max_cost_usd_nanos", '"$2"', "2000000000"),
    ],
)
async def test_more_of_a_budget_is_stored_in_the_limits_unit(
    executor: Executor, client: Client, limit: str, answer: str, stored: str
) -> None:
    decided = await decide(client, ask_for_more(executor, limit), answer_json=answer)
    assert decided.decision.answer_json == stored


@pytest.mark.parametrize("answer", ["", "0", "-5", "1.5", "true", "$1", "a lot", "9" * 20, "{}"])
async def test_more_that_is_no_amount_is_refused(executor: Executor, client: Client, answer: str) -> None:
    refused = await error(decide(client, ask_for_more(executor, "max_tool_calls"), answer_json=answer))
    assert [violation.field for violation in refused.field_violations] == ["answer_json"]


async def test_more_is_declined_by_a_word_and_by_no_other(executor: Executor, client: Client) -> None:
    approval = ask_for_more(executor, "max_tool_calls")
    assert (await error(decide(client, approval, resolution=DONE))).field_violations[0].field == "resolution"
    declined = await decide(client, approval, resolution=run_pb2.IN_DOUBT_RESOLUTION_FAIL_RUN)
    assert (declined.decision.answer_json, declined.decision.resolution) == (
        "null",
        run_pb2.IN_DOUBT_RESOLUTION_FAIL_RUN,
    )
