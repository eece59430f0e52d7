from holdfast.api.common.v1 import agent_pb2 as _agent_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class PutAgentRevisionRequest(_message.Message):
    __slots__ = ("workspace_id", "revision", "spec", "request_id", "request_fingerprint")
    WORKSPACE_ID_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    SPEC_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    REQUEST_FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    workspace_id: str
    revision: str
    spec: _agent_pb2.AgentSpec
    request_id: str
    request_fingerprint: bytes
    def __init__(self, workspace_id: _Optional[str] = ..., revision: _Optional[str] = ..., spec: _Optional[_Union[_agent_pb2.AgentSpec, _Mapping]] = ..., request_id: _Optional[str] = ..., request_fingerprint: _Optional[bytes] = ...) -> None: ...

class PutAgentRevisionResponse(_message.Message):
    __slots__ = ("revision", "created")
    REVISION_FIELD_NUMBER: _ClassVar[int]
    CREATED_FIELD_NUMBER: _ClassVar[int]
    revision: _agent_pb2.AgentRevision
    created: bool
    def __init__(self, revision: _Optional[_Union[_agent_pb2.AgentRevision, _Mapping]] = ..., created: bool = ...) -> None: ...

class GetAgentRequest(_message.Message):
    __slots__ = ("workspace_id", "agent")
    WORKSPACE_ID_FIELD_NUMBER: _ClassVar[int]
    AGENT_FIELD_NUMBER: _ClassVar[int]
    workspace_id: str
    agent: str
    def __init__(self, workspace_id: _Optional[str] = ..., agent: _Optional[str] = ...) -> None: ...

class GetAgentResponse(_message.Message):
    __slots__ = ("agent",)
    AGENT_FIELD_NUMBER: _ClassVar[int]
    agent: _agent_pb2.Agent
    def __init__(self, agent: _Optional[_Union[_agent_pb2.Agent, _Mapping]] = ...) -> None: ...

class ListAgentsRequest(_message.Message):
    __slots__ = ("workspace_id", "page_size", "after_name")
    WORKSPACE_ID_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    AFTER_NAME_FIELD_NUMBER: _ClassVar[int]
    workspace_id: str
    page_size: int
    after_name: str
    def __init__(self, workspace_id: _Optional[str] = ..., page_size: _Optional[int] = ..., after_name: _Optional[str] = ...) -> None: ...

class ListAgentsResponse(_message.Message):
    __slots__ = ("agents", "has_more")
    AGENTS_FIELD_NUMBER: _ClassVar[int]
    HAS_MORE_FIELD_NUMBER: _ClassVar[int]
    agents: _containers.RepeatedCompositeFieldContainer[_agent_pb2.Agent]
    has_more: bool
    def __init__(self, agents: _Optional[_Iterable[_Union[_agent_pb2.Agent, _Mapping]]] = ..., has_more: bool = ...) -> None: ...

class GetAgentRevisionRequest(_message.Message):
    __slots__ = ("workspace_id", "agent", "revision")
    WORKSPACE_ID_FIELD_NUMBER: _ClassVar[int]
    AGENT_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    workspace_id: str
    agent: str
    revision: str
    def __init__(self, workspace_id: _Optional[str] = ..., agent: _Optional[str] = ..., revision: _Optional[str] = ...) -> None: ...

class GetAgentRevisionResponse(_message.Message):
    __slots__ = ("revision",)
    REVISION_FIELD_NUMBER: _ClassVar[int]
    revision: _agent_pb2.AgentRevision
    def __init__(self, revision: _Optional[_Union[_agent_pb2.AgentRevision, _Mapping]] = ...) -> None: ...

class ListAgentRevisionsRequest(_message.Message):
    __slots__ = ("workspace_id", "agent", "page_size", "position")
    WORKSPACE_ID_FIELD_NUMBER: _ClassVar[int]
    AGENT_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    workspace_id: str
    agent: str
    page_size: int
    position: str
    def __init__(self, workspace_id: _Optional[str] = ..., agent: _Optional[str] = ..., page_size: _Optional[int] = ..., position: _Optional[str] = ...) -> None: ...

class ListAgentRevisionsResponse(_message.Message):
    __slots__ = ("revisions", "next_position")
    REVISIONS_FIELD_NUMBER: _ClassVar[int]
    NEXT_POSITION_FIELD_NUMBER: _ClassVar[int]
    revisions: _containers.RepeatedCompositeFieldContainer[_agent_pb2.AgentRevision]
    next_position: str
    def __init__(self, revisions: _Optional[_Iterable[_Union[_agent_pb2.AgentRevision, _Mapping]]] = ..., next_position: _Optional[str] = ...) -> None: ...

class PutAgentLabelRequest(_message.Message):
    __slots__ = ("workspace_id", "agent", "label", "revision", "request_id", "request_fingerprint")
    WORKSPACE_ID_FIELD_NUMBER: _ClassVar[int]
    AGENT_FIELD_NUMBER: _ClassVar[int]
    LABEL_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    REQUEST_FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    workspace_id: str
    agent: str
    label: str
    revision: str
    request_id: str
    request_fingerprint: bytes
    def __init__(self, workspace_id: _Optional[str] = ..., agent: _Optional[str] = ..., label: _Optional[str] = ..., revision: _Optional[str] = ..., request_id: _Optional[str] = ..., request_fingerprint: _Optional[bytes] = ...) -> None: ...

class PutAgentLabelResponse(_message.Message):
    __slots__ = ("agent",)
    AGENT_FIELD_NUMBER: _ClassVar[int]
    agent: _agent_pb2.Agent
    def __init__(self, agent: _Optional[_Union[_agent_pb2.Agent, _Mapping]] = ...) -> None: ...
