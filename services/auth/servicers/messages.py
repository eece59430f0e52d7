"""Between auth's messages and its own values."""

from __future__ import annotations

from datetime import UTC, datetime

from google.protobuf.timestamp_pb2 import Timestamp

from holdfast.api.auth.v1 import api_key_service_pb2, connection_service_pb2
from holdfast.errors import InvalidArgument
from services.auth.callers import Caller
from services.auth.store import ApiKey, Connection, ConnectionState
from services.shared.interceptors import current_identity, current_workspace

_STATES = {
    ConnectionState.ACTIVE: connection_service_pb2.CONNECTION_STATE_ACTIVE,
    ConnectionState.REVOKED: connection_service_pb2.CONNECTION_STATE_REVOKED,
}


def current_caller() -> Caller:
    """Returns who calls, in which workspace.

    Raises:
        PermissionDenied: The caller belongs to no workspace.
    """
    identity = current_identity()
    return Caller(current_workspace(), identity.name, identity.scopes)


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
    )


def to_connection(connection: Connection) -> connection_service_pb2.Connection:
    """Returns the message of a connection."""
    return connection_service_pb2.Connection(
        connection_id=connection.connection_id,
        name=connection.name,
        provider=connection.provider,
        state=_STATES[connection.state],
        base_url=connection.base_url,
        fingerprint=connection.fingerprint,
        create_time=to_timestamp(connection.create_time),
        update_time=to_timestamp(connection.update_time),
    )
