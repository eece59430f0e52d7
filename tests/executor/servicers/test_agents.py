"""`AgentService` over gRPC: what clients see of definitions, revisions and labels."""

from __future__ import annotations

import grpc
import pytest
from google.protobuf import json_format

from holdfast.api.common.v1 import agent_pb2
from holdfast.api.executor.v1 import agent_service_pb2 as api
from holdfast.api.state.v1 import agent_store_service_pb2 as agent_store
from holdfast.errors import HoldfastError, InvalidArgument, NotFound, PermissionDenied, Reason, from_rpc_error
from tests.executor.servicers.conftest import Executor


def definition(name: str = "support", text: str = "hello") -> agent_pb2.AgentSpec:
    fields = {"name": name, "model": {"provider": "scripted", "script": {"turns": [{"text": text}]}}}
    return json_format.ParseDict(fields, agent_pb2.AgentSpec())


def error_of(caught: pytest.ExceptionInfo[grpc.RpcError]) -> HoldfastError:
    return from_rpc_error(caught.value)


async def test_applied_definition_is_a_revision_and_latest_points_to_it(executor: Executor) -> None:
    agents = (await executor.client()).agents
    first = await agents.ApplyAgent(api.ApplyAgentRequest(spec=definition()))
    assert first.created
    assert not (await agents.ApplyAgent(api.ApplyAgentRequest(spec=definition()))).created
    second = await agents.ApplyAgent(api.ApplyAgentRequest(spec=definition(text="bye")))
    assert second.revision.revision != first.revision.revision
    latest = await agents.GetAgentRevision(api.GetAgentRevisionRequest(agent="support"))
    assert latest.revision.revision == second.revision.revision
    by_prefix = api.GetAgentRevisionRequest(agent="support", revision=first.revision.revision[:8])
    assert (await agents.GetAgentRevision(by_prefix)).revision.spec == definition()
    agent = (await agents.GetAgent(api.GetAgentRequest(agent="support"))).agent
    assert agent.labels == {"latest": second.revision.revision}


async def test_check_alone_stores_nothing(executor: Executor) -> None:
    agents = (await executor.client()).agents
    checked = await agents.ApplyAgent(api.ApplyAgentRequest(spec=definition(), validate_only=True))
    assert checked.created
    assert executor.state.agents == {}
    applied = await agents.ApplyAgent(api.ApplyAgentRequest(spec=definition()))
    assert applied.revision.revision == checked.revision.revision
    again = await agents.ApplyAgent(api.ApplyAgentRequest(spec=definition(), validate_only=True))
    assert not again.created


async def test_wrong_definition_is_refused_with_every_field(executor: Executor) -> None:
    agents = (await executor.client()).agents
    spec = definition(name="Support")
    spec.tools.add(name="x")
    with pytest.raises(grpc.RpcError) as caught:
        await agents.ApplyAgent(api.ApplyAgentRequest(spec=spec))
    error = error_of(caught)
    assert isinstance(error, InvalidArgument)
    assert [violation.field for violation in error.field_violations] == ["name", "tools[0]"]
    assert executor.state.agents == {}


async def test_reused_request_id_with_other_content_is_refused(executor: Executor) -> None:
    agents = (await executor.client()).agents
    first = await agents.ApplyAgent(api.ApplyAgentRequest(spec=definition(), request_id="r1"))
    assert await agents.ApplyAgent(api.ApplyAgentRequest(spec=definition(), request_id="r1")) == first
    with pytest.raises(grpc.RpcError) as caught:
        await agents.ApplyAgent(api.ApplyAgentRequest(spec=definition(text="x"), request_id="r1"))
    assert error_of(caught).reason == Reason.REQUEST_ID_REUSED


@pytest.mark.parametrize("request_id", ["x" * 65, "a\nb", "a\x00"])
async def test_request_id_of_another_form_is_refused(executor: Executor, request_id: str) -> None:
    agents = (await executor.client()).agents
    with pytest.raises(grpc.RpcError) as caught:
        await agents.ApplyAgent(api.ApplyAgentRequest(spec=definition(), request_id=request_id))
    assert [violation.field for violation in error_of(caught).field_violations] == ["request_id"]


@pytest.mark.parametrize(
    ("agent", "revision", "reason"),
    [
        ("nobody", "", Reason.AGENT_NOT_FOUND),
        ("support", "prod", Reason.LABEL_NOT_FOUND),
        ("support", "0" * 64, Reason.REVISION_NOT_FOUND),
    ],
)
async def test_what_does_not_exist_is_not_found(executor: Executor, agent: str, revision: str, reason: Reason) -> None:
    agents = (await executor.client()).agents
    await agents.ApplyAgent(api.ApplyAgentRequest(spec=definition()))
    with pytest.raises(grpc.RpcError) as caught:
        await agents.GetAgentRevision(api.GetAgentRevisionRequest(agent=agent, revision=revision))
    assert isinstance(error_of(caught), NotFound)
    assert error_of(caught).reason == reason


async def test_another_workspace_sees_nothing(executor: Executor) -> None:
    mine, theirs = await executor.client("ws1"), await executor.client("ws2")
    applied = await mine.agents.ApplyAgent(api.ApplyAgentRequest(spec=definition()))
    assert list((await theirs.agents.ListAgents(api.ListAgentsRequest())).agents) == []
    for revision in ("", applied.revision.revision):
        with pytest.raises(grpc.RpcError) as caught:
            await theirs.agents.GetAgentRevision(api.GetAgentRevisionRequest(agent="support", revision=revision))
        assert error_of(caught).reason == Reason.AGENT_NOT_FOUND


async def test_moved_label_is_followed_at_once(executor: Executor) -> None:
    agents = (await executor.client()).agents
    ids = [
        (await agents.ApplyAgent(api.ApplyAgentRequest(spec=definition(text=text)))).revision.revision
        for text in ("a", "b")
    ]
    for revision in ids:
        request = api.SetAgentLabelRequest(agent="support", label="prod", revision=revision)
        assert (await agents.SetAgentLabel(request)).agent.labels["prod"] == revision
        found = await agents.GetAgentRevision(api.GetAgentRevisionRequest(agent="support", revision="prod"))
        assert found.revision.revision == revision


async def test_known_revision_is_not_read_again(executor: Executor) -> None:
    agents = (await executor.client()).agents
    revision = (await agents.ApplyAgent(api.ApplyAgentRequest(spec=definition()))).revision.revision
    for _ in range(3):
        await agents.GetAgentRevision(api.GetAgentRevisionRequest(agent="support", revision=revision))
    assert len(executor.state.of(agent_store.GetAgentRevisionRequest)) == 1


@pytest.mark.parametrize("label", ["latest", "Prod", "", "a" * 64])
async def test_label_that_nobody_may_set_is_refused(executor: Executor, label: str) -> None:
    agents = (await executor.client()).agents
    await agents.ApplyAgent(api.ApplyAgentRequest(spec=definition()))
    with pytest.raises(grpc.RpcError) as caught:
        await agents.SetAgentLabel(api.SetAgentLabelRequest(agent="support", label=label))
    assert [violation.field for violation in error_of(caught).field_violations] == ["label"]


async def test_lists_come_in_pages_to_their_end(executor: Executor) -> None:
    agents = (await executor.client()).agents
    for name in ("a", "b", "c", "d", "e"):
        await agents.ApplyAgent(api.ApplyAgentRequest(spec=definition(name)))
    names: list[str] = []
    token = ""
    while True:
        page = await agents.ListAgents(api.ListAgentsRequest(page_size=2, page_token=token))
        names.extend(agent.name for agent in page.agents)
        token = page.next_page_token
        if not token:
            break
    assert names == ["a", "b", "c", "d", "e"]

    for text in ("1", "2", "3"):
        await agents.ApplyAgent(api.ApplyAgentRequest(spec=definition("a", text)))
    first = await agents.ListAgentRevisions(api.ListAgentRevisionsRequest(agent="a", page_size=3))
    rest = api.ListAgentRevisionsRequest(agent="a", page_size=3, page_token=first.next_page_token)
    assert len({r.revision for r in (*first.revisions, *(await agents.ListAgentRevisions(rest)).revisions)}) == 4


async def test_page_token_of_another_list_is_refused(executor: Executor) -> None:
    mine, theirs = await executor.client("ws1"), await executor.client("ws2")
    for name in ("a", "b"):
        await mine.agents.ApplyAgent(api.ApplyAgentRequest(spec=definition(name)))
    token = (await mine.agents.ListAgents(api.ListAgentsRequest(page_size=1))).next_page_token
    for call in (
        theirs.agents.ListAgents(api.ListAgentsRequest(page_token=token)),
        mine.agents.ListAgentRevisions(api.ListAgentRevisionsRequest(agent="a", page_token=token)),
        mine.agents.ListAgents(api.ListAgentsRequest(page_token="made up")),
    ):
        with pytest.raises(grpc.RpcError) as caught:
            await call
        assert error_of(caught).reason == Reason.INVALID_PAGE_TOKEN


async def test_key_without_the_scope_is_refused(executor: Executor) -> None:
    worker = await executor.client("ws1/worker")
    with pytest.raises(grpc.RpcError) as caught:
        await worker.agents.ListAgents(api.ListAgentsRequest())
    assert isinstance(error_of(caught), PermissionDenied)
