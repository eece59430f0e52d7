import datetime

from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class AuditFlaw(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    AUDIT_FLAW_UNSPECIFIED: _ClassVar[AuditFlaw]
    AUDIT_FLAW_MALFORMED: _ClassVar[AuditFlaw]
    AUDIT_FLAW_FOREIGN: _ClassVar[AuditFlaw]
    AUDIT_FLAW_MISSING: _ClassVar[AuditFlaw]
    AUDIT_FLAW_OUT_OF_ORDER: _ClassVar[AuditFlaw]
    AUDIT_FLAW_NOT_CHAINED: _ClassVar[AuditFlaw]
    AUDIT_FLAW_EDITED: _ClassVar[AuditFlaw]
    AUDIT_FLAW_UNLINKED: _ClassVar[AuditFlaw]
    AUDIT_FLAW_TRUNCATED: _ClassVar[AuditFlaw]
    AUDIT_FLAW_ANCHOR_MISSING: _ClassVar[AuditFlaw]
AUDIT_FLAW_UNSPECIFIED: AuditFlaw
AUDIT_FLAW_MALFORMED: AuditFlaw
AUDIT_FLAW_FOREIGN: AuditFlaw
AUDIT_FLAW_MISSING: AuditFlaw
AUDIT_FLAW_OUT_OF_ORDER: AuditFlaw
AUDIT_FLAW_NOT_CHAINED: AuditFlaw
AUDIT_FLAW_EDITED: AuditFlaw
AUDIT_FLAW_UNLINKED: AuditFlaw
AUDIT_FLAW_TRUNCATED: AuditFlaw
AUDIT_FLAW_ANCHOR_MISSING: AuditFlaw

class AuditRecord(_message.Message):
    __slots__ = ("seq", "record_id", "event_time", "actor", "action", "outcome", "api_key_id", "user_id", "connection", "connection_id", "fingerprint", "run_id", "step", "tool", "host", "details", "previous_hash", "hash")
    class DetailsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    SEQ_FIELD_NUMBER: _ClassVar[int]
    RECORD_ID_FIELD_NUMBER: _ClassVar[int]
    EVENT_TIME_FIELD_NUMBER: _ClassVar[int]
    ACTOR_FIELD_NUMBER: _ClassVar[int]
    ACTION_FIELD_NUMBER: _ClassVar[int]
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    API_KEY_ID_FIELD_NUMBER: _ClassVar[int]
    USER_ID_FIELD_NUMBER: _ClassVar[int]
    CONNECTION_FIELD_NUMBER: _ClassVar[int]
    CONNECTION_ID_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    TOOL_FIELD_NUMBER: _ClassVar[int]
    HOST_FIELD_NUMBER: _ClassVar[int]
    DETAILS_FIELD_NUMBER: _ClassVar[int]
    PREVIOUS_HASH_FIELD_NUMBER: _ClassVar[int]
    HASH_FIELD_NUMBER: _ClassVar[int]
    seq: int
    record_id: str
    event_time: _timestamp_pb2.Timestamp
    actor: str
    action: str
    outcome: str
    api_key_id: str
    user_id: str
    connection: str
    connection_id: str
    fingerprint: str
    run_id: str
    step: int
    tool: str
    host: str
    details: _containers.ScalarMap[str, str]
    previous_hash: str
    hash: str
    def __init__(self, seq: _Optional[int] = ..., record_id: _Optional[str] = ..., event_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., actor: _Optional[str] = ..., action: _Optional[str] = ..., outcome: _Optional[str] = ..., api_key_id: _Optional[str] = ..., user_id: _Optional[str] = ..., connection: _Optional[str] = ..., connection_id: _Optional[str] = ..., fingerprint: _Optional[str] = ..., run_id: _Optional[str] = ..., step: _Optional[int] = ..., tool: _Optional[str] = ..., host: _Optional[str] = ..., details: _Optional[_Mapping[str, str]] = ..., previous_hash: _Optional[str] = ..., hash: _Optional[str] = ...) -> None: ...

class AuditFilter(_message.Message):
    __slots__ = ("start_time", "end_time", "action", "actor", "user_id", "connection", "run_id", "outcome", "tool", "api_key_id", "fingerprint")
    START_TIME_FIELD_NUMBER: _ClassVar[int]
    END_TIME_FIELD_NUMBER: _ClassVar[int]
    ACTION_FIELD_NUMBER: _ClassVar[int]
    ACTOR_FIELD_NUMBER: _ClassVar[int]
    USER_ID_FIELD_NUMBER: _ClassVar[int]
    CONNECTION_FIELD_NUMBER: _ClassVar[int]
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    TOOL_FIELD_NUMBER: _ClassVar[int]
    API_KEY_ID_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    start_time: _timestamp_pb2.Timestamp
    end_time: _timestamp_pb2.Timestamp
    action: str
    actor: str
    user_id: str
    connection: str
    run_id: str
    outcome: str
    tool: str
    api_key_id: str
    fingerprint: str
    def __init__(self, start_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., end_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., action: _Optional[str] = ..., actor: _Optional[str] = ..., user_id: _Optional[str] = ..., connection: _Optional[str] = ..., run_id: _Optional[str] = ..., outcome: _Optional[str] = ..., tool: _Optional[str] = ..., api_key_id: _Optional[str] = ..., fingerprint: _Optional[str] = ...) -> None: ...

class ListAuditRecordsRequest(_message.Message):
    __slots__ = ("page_size", "page_token", "filter", "oldest_first")
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    FILTER_FIELD_NUMBER: _ClassVar[int]
    OLDEST_FIRST_FIELD_NUMBER: _ClassVar[int]
    page_size: int
    page_token: str
    filter: AuditFilter
    oldest_first: bool
    def __init__(self, page_size: _Optional[int] = ..., page_token: _Optional[str] = ..., filter: _Optional[_Union[AuditFilter, _Mapping]] = ..., oldest_first: bool = ...) -> None: ...

class ListAuditRecordsResponse(_message.Message):
    __slots__ = ("records", "next_page_token")
    RECORDS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    records: _containers.RepeatedCompositeFieldContainer[AuditRecord]
    next_page_token: str
    def __init__(self, records: _Optional[_Iterable[_Union[AuditRecord, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class ExportAuditRecordsRequest(_message.Message):
    __slots__ = ("after_seq",)
    AFTER_SEQ_FIELD_NUMBER: _ClassVar[int]
    after_seq: int
    def __init__(self, after_seq: _Optional[int] = ...) -> None: ...

class ExportAuditRecordsResponse(_message.Message):
    __slots__ = ("lines", "last_seq")
    LINES_FIELD_NUMBER: _ClassVar[int]
    LAST_SEQ_FIELD_NUMBER: _ClassVar[int]
    lines: _containers.RepeatedScalarFieldContainer[str]
    last_seq: int
    def __init__(self, lines: _Optional[_Iterable[str]] = ..., last_seq: _Optional[int] = ...) -> None: ...

class VerifyAuditTrailRequest(_message.Message):
    __slots__ = ("first_seq", "last_seq", "anchor_hash")
    FIRST_SEQ_FIELD_NUMBER: _ClassVar[int]
    LAST_SEQ_FIELD_NUMBER: _ClassVar[int]
    ANCHOR_HASH_FIELD_NUMBER: _ClassVar[int]
    first_seq: int
    last_seq: int
    anchor_hash: str
    def __init__(self, first_seq: _Optional[int] = ..., last_seq: _Optional[int] = ..., anchor_hash: _Optional[str] = ...) -> None: ...

class VerifyAuditTrailResponse(_message.Message):
    __slots__ = ("record_count", "before_chain_count", "last_seq", "head_hash", "anchor_seq", "flaw", "flaw_seq", "flaw_detail")
    RECORD_COUNT_FIELD_NUMBER: _ClassVar[int]
    BEFORE_CHAIN_COUNT_FIELD_NUMBER: _ClassVar[int]
    LAST_SEQ_FIELD_NUMBER: _ClassVar[int]
    HEAD_HASH_FIELD_NUMBER: _ClassVar[int]
    ANCHOR_SEQ_FIELD_NUMBER: _ClassVar[int]
    FLAW_FIELD_NUMBER: _ClassVar[int]
    FLAW_SEQ_FIELD_NUMBER: _ClassVar[int]
    FLAW_DETAIL_FIELD_NUMBER: _ClassVar[int]
    record_count: int
    before_chain_count: int
    last_seq: int
    head_hash: str
    anchor_seq: int
    flaw: AuditFlaw
    flaw_seq: int
    flaw_detail: str
    def __init__(self, record_count: _Optional[int] = ..., before_chain_count: _Optional[int] = ..., last_seq: _Optional[int] = ..., head_hash: _Optional[str] = ..., anchor_seq: _Optional[int] = ..., flaw: _Optional[_Union[AuditFlaw, str]] = ..., flaw_seq: _Optional[int] = ..., flaw_detail: _Optional[str] = ...) -> None: ...

class CheckAuditTrailsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class CheckAuditTrailsResponse(_message.Message):
    __slots__ = ("workspace", "verdict")
    WORKSPACE_FIELD_NUMBER: _ClassVar[int]
    VERDICT_FIELD_NUMBER: _ClassVar[int]
    workspace: str
    verdict: VerifyAuditTrailResponse
    def __init__(self, workspace: _Optional[str] = ..., verdict: _Optional[_Union[VerifyAuditTrailResponse, _Mapping]] = ...) -> None: ...
