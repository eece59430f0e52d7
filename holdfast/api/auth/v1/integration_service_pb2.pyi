import datetime

from google.protobuf import field_mask_pb2 as _field_mask_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class CredentialKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    CREDENTIAL_KIND_UNSPECIFIED: _ClassVar[CredentialKind]
    CREDENTIAL_KIND_API_KEY: _ClassVar[CredentialKind]
    CREDENTIAL_KIND_BASIC: _ClassVar[CredentialKind]
    CREDENTIAL_KIND_OAUTH2: _ClassVar[CredentialKind]
    CREDENTIAL_KIND_CLIENT_CREDENTIALS: _ClassVar[CredentialKind]

class IntegrationState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    INTEGRATION_STATE_UNSPECIFIED: _ClassVar[IntegrationState]
    INTEGRATION_STATE_ACTIVE: _ClassVar[IntegrationState]
    INTEGRATION_STATE_MISCONFIGURED: _ClassVar[IntegrationState]
    INTEGRATION_STATE_DISABLED: _ClassVar[IntegrationState]

class ScopeSensitivity(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    SCOPE_SENSITIVITY_UNSPECIFIED: _ClassVar[ScopeSensitivity]
    SCOPE_SENSITIVITY_READ: _ClassVar[ScopeSensitivity]
    SCOPE_SENSITIVITY_WRITE: _ClassVar[ScopeSensitivity]
    SCOPE_SENSITIVITY_ADMIN: _ClassVar[ScopeSensitivity]
    SCOPE_SENSITIVITY_MONEY: _ClassVar[ScopeSensitivity]
    SCOPE_SENSITIVITY_SEND_AS_USER: _ClassVar[ScopeSensitivity]
CREDENTIAL_KIND_UNSPECIFIED: CredentialKind
CREDENTIAL_KIND_API_KEY: CredentialKind
CREDENTIAL_KIND_BASIC: CredentialKind
CREDENTIAL_KIND_OAUTH2: CredentialKind
CREDENTIAL_KIND_CLIENT_CREDENTIALS: CredentialKind
INTEGRATION_STATE_UNSPECIFIED: IntegrationState
INTEGRATION_STATE_ACTIVE: IntegrationState
INTEGRATION_STATE_MISCONFIGURED: IntegrationState
INTEGRATION_STATE_DISABLED: IntegrationState
SCOPE_SENSITIVITY_UNSPECIFIED: ScopeSensitivity
SCOPE_SENSITIVITY_READ: ScopeSensitivity
SCOPE_SENSITIVITY_WRITE: ScopeSensitivity
SCOPE_SENSITIVITY_ADMIN: ScopeSensitivity
SCOPE_SENSITIVITY_MONEY: ScopeSensitivity
SCOPE_SENSITIVITY_SEND_AS_USER: ScopeSensitivity

class ProviderScope(_message.Message):
    __slots__ = ("scope", "description", "sensitivity")
    SCOPE_FIELD_NUMBER: _ClassVar[int]
    DESCRIPTION_FIELD_NUMBER: _ClassVar[int]
    SENSITIVITY_FIELD_NUMBER: _ClassVar[int]
    scope: str
    description: str
    sensitivity: ScopeSensitivity
    def __init__(self, scope: _Optional[str] = ..., description: _Optional[str] = ..., sensitivity: _Optional[_Union[ScopeSensitivity, str]] = ...) -> None: ...

class Provider(_message.Message):
    __slots__ = ("slug", "display_name", "kinds", "scopes", "variables", "hosts", "documentation_url", "connection_variables")
    SLUG_FIELD_NUMBER: _ClassVar[int]
    DISPLAY_NAME_FIELD_NUMBER: _ClassVar[int]
    KINDS_FIELD_NUMBER: _ClassVar[int]
    SCOPES_FIELD_NUMBER: _ClassVar[int]
    VARIABLES_FIELD_NUMBER: _ClassVar[int]
    HOSTS_FIELD_NUMBER: _ClassVar[int]
    DOCUMENTATION_URL_FIELD_NUMBER: _ClassVar[int]
    CONNECTION_VARIABLES_FIELD_NUMBER: _ClassVar[int]
    slug: str
    display_name: str
    kinds: _containers.RepeatedScalarFieldContainer[CredentialKind]
    scopes: _containers.RepeatedCompositeFieldContainer[ProviderScope]
    variables: _containers.RepeatedScalarFieldContainer[str]
    hosts: _containers.RepeatedScalarFieldContainer[str]
    documentation_url: str
    connection_variables: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, slug: _Optional[str] = ..., display_name: _Optional[str] = ..., kinds: _Optional[_Iterable[_Union[CredentialKind, str]]] = ..., scopes: _Optional[_Iterable[_Union[ProviderScope, _Mapping]]] = ..., variables: _Optional[_Iterable[str]] = ..., hosts: _Optional[_Iterable[str]] = ..., documentation_url: _Optional[str] = ..., connection_variables: _Optional[_Iterable[str]] = ...) -> None: ...

class Integration(_message.Message):
    __slots__ = ("integration_id", "name", "provider", "kind", "client_id", "variables", "scopes", "agents", "state", "state_reason", "redirect_uri", "client_secret_count", "server_url", "etag", "create_time", "update_time")
    class VariablesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    INTEGRATION_ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    PROVIDER_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    CLIENT_ID_FIELD_NUMBER: _ClassVar[int]
    VARIABLES_FIELD_NUMBER: _ClassVar[int]
    SCOPES_FIELD_NUMBER: _ClassVar[int]
    AGENTS_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    STATE_REASON_FIELD_NUMBER: _ClassVar[int]
    REDIRECT_URI_FIELD_NUMBER: _ClassVar[int]
    CLIENT_SECRET_COUNT_FIELD_NUMBER: _ClassVar[int]
    SERVER_URL_FIELD_NUMBER: _ClassVar[int]
    ETAG_FIELD_NUMBER: _ClassVar[int]
    CREATE_TIME_FIELD_NUMBER: _ClassVar[int]
    UPDATE_TIME_FIELD_NUMBER: _ClassVar[int]
    integration_id: str
    name: str
    provider: str
    kind: CredentialKind
    client_id: str
    variables: _containers.ScalarMap[str, str]
    scopes: _containers.RepeatedScalarFieldContainer[str]
    agents: _containers.RepeatedScalarFieldContainer[str]
    state: IntegrationState
    state_reason: str
    redirect_uri: str
    client_secret_count: int
    server_url: str
    etag: str
    create_time: _timestamp_pb2.Timestamp
    update_time: _timestamp_pb2.Timestamp
    def __init__(self, integration_id: _Optional[str] = ..., name: _Optional[str] = ..., provider: _Optional[str] = ..., kind: _Optional[_Union[CredentialKind, str]] = ..., client_id: _Optional[str] = ..., variables: _Optional[_Mapping[str, str]] = ..., scopes: _Optional[_Iterable[str]] = ..., agents: _Optional[_Iterable[str]] = ..., state: _Optional[_Union[IntegrationState, str]] = ..., state_reason: _Optional[str] = ..., redirect_uri: _Optional[str] = ..., client_secret_count: _Optional[int] = ..., server_url: _Optional[str] = ..., etag: _Optional[str] = ..., create_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., update_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class ListProvidersRequest(_message.Message):
    __slots__ = ("page_size", "page_token")
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    page_size: int
    page_token: str
    def __init__(self, page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListProvidersResponse(_message.Message):
    __slots__ = ("providers", "next_page_token")
    PROVIDERS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    providers: _containers.RepeatedCompositeFieldContainer[Provider]
    next_page_token: str
    def __init__(self, providers: _Optional[_Iterable[_Union[Provider, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class CreateIntegrationRequest(_message.Message):
    __slots__ = ("name", "provider", "kind", "client_id", "client_secret", "variables", "scopes", "agents", "server_url", "request_id")
    class VariablesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    NAME_FIELD_NUMBER: _ClassVar[int]
    PROVIDER_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    CLIENT_ID_FIELD_NUMBER: _ClassVar[int]
    CLIENT_SECRET_FIELD_NUMBER: _ClassVar[int]
    VARIABLES_FIELD_NUMBER: _ClassVar[int]
    SCOPES_FIELD_NUMBER: _ClassVar[int]
    AGENTS_FIELD_NUMBER: _ClassVar[int]
    SERVER_URL_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    name: str
    provider: str
    kind: CredentialKind
    client_id: str
    client_secret: str
    variables: _containers.ScalarMap[str, str]
    scopes: _containers.RepeatedScalarFieldContainer[str]
    agents: _containers.RepeatedScalarFieldContainer[str]
    server_url: str
    request_id: str
    def __init__(self, name: _Optional[str] = ..., provider: _Optional[str] = ..., kind: _Optional[_Union[CredentialKind, str]] = ..., client_id: _Optional[str] = ..., client_secret: _Optional[str] = ..., variables: _Optional[_Mapping[str, str]] = ..., scopes: _Optional[_Iterable[str]] = ..., agents: _Optional[_Iterable[str]] = ..., server_url: _Optional[str] = ..., request_id: _Optional[str] = ...) -> None: ...

class CreateIntegrationResponse(_message.Message):
    __slots__ = ("integration",)
    INTEGRATION_FIELD_NUMBER: _ClassVar[int]
    integration: Integration
    def __init__(self, integration: _Optional[_Union[Integration, _Mapping]] = ...) -> None: ...

class GetIntegrationRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class GetIntegrationResponse(_message.Message):
    __slots__ = ("integration",)
    INTEGRATION_FIELD_NUMBER: _ClassVar[int]
    integration: Integration
    def __init__(self, integration: _Optional[_Union[Integration, _Mapping]] = ...) -> None: ...

class ListIntegrationsRequest(_message.Message):
    __slots__ = ("page_size", "page_token")
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    page_size: int
    page_token: str
    def __init__(self, page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListIntegrationsResponse(_message.Message):
    __slots__ = ("integrations", "next_page_token")
    INTEGRATIONS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    integrations: _containers.RepeatedCompositeFieldContainer[Integration]
    next_page_token: str
    def __init__(self, integrations: _Optional[_Iterable[_Union[Integration, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class UpdateIntegrationRequest(_message.Message):
    __slots__ = ("name", "integration", "update_mask", "client_secret", "remove_old_secrets", "etag", "request_id")
    NAME_FIELD_NUMBER: _ClassVar[int]
    INTEGRATION_FIELD_NUMBER: _ClassVar[int]
    UPDATE_MASK_FIELD_NUMBER: _ClassVar[int]
    CLIENT_SECRET_FIELD_NUMBER: _ClassVar[int]
    REMOVE_OLD_SECRETS_FIELD_NUMBER: _ClassVar[int]
    ETAG_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    name: str
    integration: Integration
    update_mask: _field_mask_pb2.FieldMask
    client_secret: str
    remove_old_secrets: bool
    etag: str
    request_id: str
    def __init__(self, name: _Optional[str] = ..., integration: _Optional[_Union[Integration, _Mapping]] = ..., update_mask: _Optional[_Union[_field_mask_pb2.FieldMask, _Mapping]] = ..., client_secret: _Optional[str] = ..., remove_old_secrets: bool = ..., etag: _Optional[str] = ..., request_id: _Optional[str] = ...) -> None: ...

class UpdateIntegrationResponse(_message.Message):
    __slots__ = ("integration",)
    INTEGRATION_FIELD_NUMBER: _ClassVar[int]
    integration: Integration
    def __init__(self, integration: _Optional[_Union[Integration, _Mapping]] = ...) -> None: ...

class DeleteIntegrationRequest(_message.Message):
    __slots__ = ("name", "request_id")
    NAME_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    name: str
    request_id: str
    def __init__(self, name: _Optional[str] = ..., request_id: _Optional[str] = ...) -> None: ...

class DeleteIntegrationResponse(_message.Message):
    __slots__ = ("revoked_connections",)
    REVOKED_CONNECTIONS_FIELD_NUMBER: _ClassVar[int]
    revoked_connections: int
    def __init__(self, revoked_connections: _Optional[int] = ...) -> None: ...
