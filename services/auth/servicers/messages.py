"""Between auth's messages and its own values."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Final

from google.protobuf.timestamp_pb2 import Timestamp

from holdfast.api.auth.v1 import (
    api_key_service_pb2,
    connection_service_pb2,
    integration_service_pb2,
    workspace_service_pb2,
)
from holdfast.errors import InvalidArgument
from services.auth.callers import Caller
from services.auth.connection_store import Connection, ConnectionState, CredentialKind
from services.auth.store import ApiKey
from services.shared.identity import current_identity, current_workspace

CONNECTION_STATES: Final = {
    ConnectionState.ACTIVE: connection_service_pb2.CONNECTION_STATE_ACTIVE,
    ConnectionState.DEGRADED: connection_service_pb2.CONNECTION_STATE_DEGRADED,
    ConnectionState.UNAVAILABLE: connection_service_pb2.CONNECTION_STATE_UNAVAILABLE,
    ConnectionState.NEEDS_REAUTH: connection_service_pb2.CONNECTION_STATE_NEEDS_REAUTH,
    ConnectionState.DISABLED: connection_service_pb2.CONNECTION_STATE_DISABLED,
    ConnectionState.REVOKED: connection_service_pb2.CONNECTION_STATE_REVOKED,
}
CREDENTIAL_KINDS: Final = {
    CredentialKind.API_KEY: integration_service_pb2.CREDENTIAL_KIND_API_KEY,
    CredentialKind.BASIC: integration_service_pb2.CREDENTIAL_KIND_BASIC,
    CredentialKind.OAUTH2: integration_service_pb2.CREDENTIAL_KIND_OAUTH2,
    CredentialKind.CLIENT_CREDENTIALS: integration_service_pb2.CREDENTIAL_KIND_CLIENT_CREDENTIALS,
}

_PAYLOAD_SEALING: Final = {
    None: workspace_service_pb2.PAYLOAD_SEALING_UNSPECIFIED,
    True: workspace_service_pb2.PAYLOAD_SEALING_ON,
    False: workspace_service_pb2.PAYLOAD_SEALING_OFF,
}


def current_caller() -> Caller:
    """Returns who calls, in which workspace.

    Raises:
        PermissionDenied: The caller belongs to no workspace.
    """
    identity = current_identity()
    return Caller(current_workspace(), identity.name, identity.scopes)


def to_payload_sealing(seals_payloads: bool | None) -> workspace_service_pb2.PayloadSealing:
    """Returns the message of a workspace's choice; None is no choice."""
    return _PAYLOAD_SEALING[seals_payloads]


def from_payload_sealing(message: workspace_service_pb2.PayloadSealing) -> bool | None:
    """Returns the choice that a message stands for.

    Raises:
        InvalidArgument: It is none of this release.
    """
    for choice, known in _PAYLOAD_SEALING.items():
        if known == message:
            return choice
    raise InvalidArgument("the choice about sealing is unknown", field="payload_sealing")


def to_timestamp(time: datetime | None) -> Timestamp | None:
    """Returns the message of a time; None stays unset."""
    if time is None:
        return None
    message = Timestamp()
    message.FromDatetime(time)
    return message


def to_datetime(message: Timestamp, field: str) -> datetime:
    """Returns the time of a message.

    Raises:
        InvalidArgument: It is no time between the years 1 and 9999.
    """
    try:
        return message.ToDatetime(tzinfo=UTC)
    except (ValueError, OverflowError) as error:
        raise InvalidArgument(
            f"{field} is no time", field=field, description="expected a time between the years 1 and 9999"
        ) from error


def to_api_key(key: ApiKey) -> api_key_service_pb2.ApiKey:
    """Returns the message of a key."""
    return api_key_service_pb2.ApiKey(
        api_key_id=key.api_key_id,
        display_name=key.display_name,
        scopes=key.scopes,
        create_time=to_timestamp(key.create_time),
        expire_time=to_timestamp(key.expire_time),
        revoke_time=to_timestamp(key.revoke_time),
        last_use_time=to_timestamp(key.last_use_time),
        networks=key.networks,
    )


def to_connection(connection: Connection) -> connection_service_pb2.Connection:
    """Returns the message of a connection."""
    return connection_service_pb2.Connection(
        connection_id=connection.connection_id,
        name=connection.name,
        provider=connection.provider,
        state=CONNECTION_STATES[connection.state],
        base_url=connection.base_url,
        fingerprint=connection.fingerprint,
        create_time=to_timestamp(connection.create_time),
        update_time=to_timestamp(connection.update_time),
        user_id=connection.user_id,
        integration=connection.integration,
        kind=CREDENTIAL_KINDS[connection.kind],
        state_reason=connection.state_reason,
        account_label=connection.account_label,
        scopes=connection.scopes,
        missing_scopes=connection.missing_scopes,
        expire_time=to_timestamp(connection.expire_time),
        grant_expire_time=to_timestamp(connection.grant_expire_time),
        last_use_time=to_timestamp(connection.last_use_time),
        agents=connection.agents,
        allow_raw_token=connection.allow_raw_token,
        variables=connection.variables,
    )
