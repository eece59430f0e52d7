from google.protobuf import field_mask_pb2 as _field_mask_pb2
from holdfast.api.common.v1 import workspace_pb2 as _workspace_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class GetWorkspaceSettingsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetWorkspaceSettingsResponse(_message.Message):
    __slots__ = ("settings",)
    SETTINGS_FIELD_NUMBER: _ClassVar[int]
    settings: _workspace_pb2.WorkspaceSettings
    def __init__(self, settings: _Optional[_Union[_workspace_pb2.WorkspaceSettings, _Mapping]] = ...) -> None: ...

class UpdateWorkspaceSettingsRequest(_message.Message):
    __slots__ = ("settings", "update_mask", "etag", "request_id")
    SETTINGS_FIELD_NUMBER: _ClassVar[int]
    UPDATE_MASK_FIELD_NUMBER: _ClassVar[int]
    ETAG_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    settings: _workspace_pb2.WorkspaceSettings
    update_mask: _field_mask_pb2.FieldMask
    etag: str
    request_id: str
    def __init__(self, settings: _Optional[_Union[_workspace_pb2.WorkspaceSettings, _Mapping]] = ..., update_mask: _Optional[_Union[_field_mask_pb2.FieldMask, _Mapping]] = ..., etag: _Optional[str] = ..., request_id: _Optional[str] = ...) -> None: ...

class UpdateWorkspaceSettingsResponse(_message.Message):
    __slots__ = ("settings",)
    SETTINGS_FIELD_NUMBER: _ClassVar[int]
    settings: _workspace_pb2.WorkspaceSettings
    def __init__(self, settings: _Optional[_Union[_workspace_pb2.WorkspaceSettings, _Mapping]] = ...) -> None: ...

class ExportWorkspaceDataRequest(_message.Message):
    __slots__ = ("scope", "cursor")
    SCOPE_FIELD_NUMBER: _ClassVar[int]
    CURSOR_FIELD_NUMBER: _ClassVar[int]
    scope: _workspace_pb2.DataScope
    cursor: str
    def __init__(self, scope: _Optional[_Union[_workspace_pb2.DataScope, _Mapping]] = ..., cursor: _Optional[str] = ...) -> None: ...

class ExportWorkspaceDataResponse(_message.Message):
    __slots__ = ("records", "cursor")
    RECORDS_FIELD_NUMBER: _ClassVar[int]
    CURSOR_FIELD_NUMBER: _ClassVar[int]
    records: _containers.RepeatedCompositeFieldContainer[_workspace_pb2.ExportRecord]
    cursor: str
    def __init__(self, records: _Optional[_Iterable[_Union[_workspace_pb2.ExportRecord, _Mapping]]] = ..., cursor: _Optional[str] = ...) -> None: ...

class EraseWorkspaceDataRequest(_message.Message):
    __slots__ = ("scope", "cancel_first", "validate_only", "request_id")
    SCOPE_FIELD_NUMBER: _ClassVar[int]
    CANCEL_FIRST_FIELD_NUMBER: _ClassVar[int]
    VALIDATE_ONLY_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    scope: _workspace_pb2.DataScope
    cancel_first: bool
    validate_only: bool
    request_id: str
    def __init__(self, scope: _Optional[_Union[_workspace_pb2.DataScope, _Mapping]] = ..., cancel_first: bool = ..., validate_only: bool = ..., request_id: _Optional[str] = ...) -> None: ...

class EraseWorkspaceDataResponse(_message.Message):
    __slots__ = ("erased", "is_done")
    ERASED_FIELD_NUMBER: _ClassVar[int]
    IS_DONE_FIELD_NUMBER: _ClassVar[int]
    erased: _workspace_pb2.DataCounts
    is_done: bool
    def __init__(self, erased: _Optional[_Union[_workspace_pb2.DataCounts, _Mapping]] = ..., is_done: bool = ...) -> None: ...

class GetWorkspaceStorageRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetWorkspaceStorageResponse(_message.Message):
    __slots__ = ("storage",)
    STORAGE_FIELD_NUMBER: _ClassVar[int]
    storage: _workspace_pb2.WorkspaceStorage
    def __init__(self, storage: _Optional[_Union[_workspace_pb2.WorkspaceStorage, _Mapping]] = ...) -> None: ...
