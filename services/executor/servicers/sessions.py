"""`SessionService`: conversations and their messages."""

from __future__ import annotations

from typing import Any

from holdfast.api.executor.v1 import session_service_pb2 as api
from holdfast.api.executor.v1.session_service_pb2_grpc import SessionServiceServicer
from holdfast.api.state.v1 import run_store_service_pb2 as store
from holdfast.errors import Reason
from holdfast.ids import new_uuid7
from services.executor.servicers.fields import fingerprint, request_id_field, user_field, uuid_field
from services.executor.state_stubs import StateStubs
from services.shared.channels import calling
from services.shared.identity import acting_user, current_workspace
from services.shared.paging import decode_page_token, encode_page_token, page_size


class SessionServicer(SessionServiceServicer):
    """Translates between clients and state.

    Args:
        state: The state service.
        page_key: Signs page tokens.
    """

    def __init__(self, state: StateStubs, *, page_key: bytes) -> None:
        self._runs = state.runs
        self._page_key = page_key

    async def CreateSession(self, request: api.CreateSessionRequest, context: Any) -> api.CreateSessionResponse:
        """Begins a conversation."""
        with calling("state"):
            made = await self._runs.CreateSession(
                store.CreateSessionRequest(
                    workspace_id=current_workspace(),
                    session_id=new_uuid7(),
                    user_id=acting_user(user_field(request.user_id)),
                    request_id=request_id_field(request.request_id),
                    request_fingerprint=fingerprint(request),
                )
            )
        return api.CreateSessionResponse(session=_session(made.session))

    async def GetSession(self, request: api.GetSessionRequest, context: Any) -> api.GetSessionResponse:
        """One conversation."""
        session_id = uuid_field("session_id", request.session_id, Reason.SESSION_NOT_FOUND)
        with calling("state"):
            found = await self._runs.GetSession(
                store.GetSessionRequest(workspace_id=current_workspace(), session_id=session_id)
            )
        return api.GetSessionResponse(session=_session(found.session))

    async def ListSessions(self, request: api.ListSessionsRequest, context: Any) -> api.ListSessionsResponse:
        """Conversations, newest first."""
        workspace_id, user_id = current_workspace(), user_field(request.user_id)
        bound_to = ("ListSessions", workspace_id, user_id)
        after = decode_page_token(self._page_key, request.page_token, bound_to=bound_to) or {"before": ""}
        with calling("state"):
            page = await self._runs.ListSessions(
                store.ListSessionsRequest(
                    workspace_id=workspace_id,
                    page_size=page_size(request.page_size),
                    before_session_id=after["before"],
                    user_id=user_id,
                )
            )
        response = api.ListSessionsResponse(sessions=[_session(session) for session in page.sessions])
        if page.has_more and page.sessions:
            position = {"before": page.sessions[-1].session_id}
            response.next_page_token = encode_page_token(self._page_key, position, bound_to=bound_to)
        return response

    async def ListMessages(self, request: api.ListMessagesRequest, context: Any) -> api.ListMessagesResponse:
        """The messages of a conversation in order."""
        workspace_id = current_workspace()
        session_id = uuid_field("session_id", request.session_id, Reason.SESSION_NOT_FOUND)
        bound_to = ("ListMessages", workspace_id, session_id)
        after = decode_page_token(self._page_key, request.page_token, bound_to=bound_to) or {"position": ""}
        with calling("state"):
            page = await self._runs.ListSessionMessages(
                store.ListSessionMessagesRequest(
                    workspace_id=workspace_id,
                    session_id=session_id,
                    page_size=page_size(request.page_size),
                    position=after["position"],
                )
            )
        response = api.ListMessagesResponse(messages=[_message(message) for message in page.messages])
        if page.next_position:
            position = {"position": page.next_position}
            response.next_page_token = encode_page_token(self._page_key, position, bound_to=bound_to)
        return response


def _session(stored: store.StoredSession) -> api.Session:
    return api.Session(
        session_id=stored.session_id,
        user_id=stored.user_id,
        last_run_id=stored.last_run_id,
        create_time=stored.create_time,
    )


def _message(stored: store.StoredSessionMessage) -> api.SessionMessage:
    return api.SessionMessage(
        run_id=stored.run_id, seq=stored.seq, step=stored.step, message=stored.message, time=stored.time
    )
