"""Idempotent requests in SQL: an id is taken in the transaction that does what is asked for, and answered there."""

from __future__ import annotations

import dataclasses
import json
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from holdfast.errors import InvalidArgument, Reason
from services.auth.sql import insert_ignore
from services.auth.store import Request
from services.auth.tables import requests


def claim_request(connection: sa.Connection, workspace_id: str, request: Request | None, now: datetime) -> str | None:
    """Takes the request's id for this transaction; returns the stored answer when it has been answered before."""
    if request is None:
        return None
    is_first = insert_ignore(
        connection,
        requests,
        workspace_id=workspace_id,
        request_id=request.request_id,
        method=request.method,
        fingerprint=request.fingerprint,
        response="",
        create_time=now,
    )
    return None if is_first else answer_to(connection, workspace_id, request)


def answer_to(connection: sa.Connection, workspace_id: str, request: Request) -> str | None:
    """Returns the stored answer of the request, None when it has not been answered.

    Raises:
        InvalidArgument: The id was used for something else (REQUEST_ID_REUSED).
    """
    row = connection.execute(
        sa.select(requests).where(requests.c.workspace_id == workspace_id, requests.c.request_id == request.request_id)
    ).one_or_none()
    if row is None:
        return None
    if (row.method, row.fingerprint) != (request.method, request.fingerprint):
        raise InvalidArgument(
            "the request_id was used before, with another method or content",
            reason=Reason.REQUEST_ID_REUSED,
            field="request_id",
            description="expected a new one for a new request",
        )
    response: str = row.response
    return response


def answer_request(connection: sa.Connection, workspace_id: str, request: Request | None, answer: Any) -> None:
    """Stores the answer, a dataclass without secrets, in the transaction that did what was asked for."""
    if request is not None:
        connection.execute(
            requests.update()
            .where(requests.c.workspace_id == workspace_id, requests.c.request_id == request.request_id)
            .values(response=json.dumps(dataclasses.asdict(answer), default=datetime.isoformat))
        )


def release_request(connection: sa.Connection, workspace_id: str, request: Request | None) -> None:
    """Gives the id back: a call that found nothing has done nothing, and may find something later."""
    if request is not None:
        connection.execute(
            requests.delete().where(
                requests.c.workspace_id == workspace_id, requests.c.request_id == request.request_id
            )
        )
