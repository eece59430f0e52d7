import datetime

from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class GetStatusRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetStatusResponse(_message.Message):
    __slots__ = ("database_time", "service_time", "dialect", "schema_revision", "expected_schema_revision", "unfinished_runs", "executors", "database_connections", "warnings")
    DATABASE_TIME_FIELD_NUMBER: _ClassVar[int]
    SERVICE_TIME_FIELD_NUMBER: _ClassVar[int]
    DIALECT_FIELD_NUMBER: _ClassVar[int]
    SCHEMA_REVISION_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_SCHEMA_REVISION_FIELD_NUMBER: _ClassVar[int]
    UNFINISHED_RUNS_FIELD_NUMBER: _ClassVar[int]
    EXECUTORS_FIELD_NUMBER: _ClassVar[int]
    DATABASE_CONNECTIONS_FIELD_NUMBER: _ClassVar[int]
    WARNINGS_FIELD_NUMBER: _ClassVar[int]
    database_time: _timestamp_pb2.Timestamp
    service_time: _timestamp_pb2.Timestamp
    dialect: str
    schema_revision: str
    expected_schema_revision: str
    unfinished_runs: int
    executors: int
    database_connections: int
    warnings: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, database_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., service_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., dialect: _Optional[str] = ..., schema_revision: _Optional[str] = ..., expected_schema_revision: _Optional[str] = ..., unfinished_runs: _Optional[int] = ..., executors: _Optional[int] = ..., database_connections: _Optional[int] = ..., warnings: _Optional[_Iterable[str]] = ...) -> None: ...

class CheckInvariantsRequest(_message.Message):
    __slots__ = ("max_journals", "all_journals")
    MAX_JOURNALS_FIELD_NUMBER: _ClassVar[int]
    ALL_JOURNALS_FIELD_NUMBER: _ClassVar[int]
    max_journals: int
    all_journals: bool
    def __init__(self, max_journals: _Optional[int] = ..., all_journals: bool = ...) -> None: ...

class CheckInvariantsResponse(_message.Message):
    __slots__ = ("progress", "result")
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    RESULT_FIELD_NUMBER: _ClassVar[int]
    progress: CheckProgress
    result: CheckResult
    def __init__(self, progress: _Optional[_Union[CheckProgress, _Mapping]] = ..., result: _Optional[_Union[CheckResult, _Mapping]] = ...) -> None: ...

class CheckProgress(_message.Message):
    __slots__ = ("runs", "journals")
    RUNS_FIELD_NUMBER: _ClassVar[int]
    JOURNALS_FIELD_NUMBER: _ClassVar[int]
    runs: int
    journals: int
    def __init__(self, runs: _Optional[int] = ..., journals: _Optional[int] = ...) -> None: ...

class CheckResult(_message.Message):
    __slots__ = ("name", "claim", "examined", "violations", "examples", "advice", "incomplete_because")
    NAME_FIELD_NUMBER: _ClassVar[int]
    CLAIM_FIELD_NUMBER: _ClassVar[int]
    EXAMINED_FIELD_NUMBER: _ClassVar[int]
    VIOLATIONS_FIELD_NUMBER: _ClassVar[int]
    EXAMPLES_FIELD_NUMBER: _ClassVar[int]
    ADVICE_FIELD_NUMBER: _ClassVar[int]
    INCOMPLETE_BECAUSE_FIELD_NUMBER: _ClassVar[int]
    name: str
    claim: str
    examined: int
    violations: int
    examples: _containers.RepeatedScalarFieldContainer[str]
    advice: str
    incomplete_because: str
    def __init__(self, name: _Optional[str] = ..., claim: _Optional[str] = ..., examined: _Optional[int] = ..., violations: _Optional[int] = ..., examples: _Optional[_Iterable[str]] = ..., advice: _Optional[str] = ..., incomplete_because: _Optional[str] = ...) -> None: ...
