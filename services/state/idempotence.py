"""Writes that may be repeated: two at the same moment with one request id are answered the same."""

from __future__ import annotations

from typing import ParamSpec, TypeVar

from sqlalchemy.exc import IntegrityError

from holdfast.errors import AlreadyExists
from services.shared.database import Database, StoreFunction

P = ParamSpec("P")
T = TypeVar("T")


async def write_once(db: Database, fn: StoreFunction[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Runs a store function that looks for what the same request made before, and else makes it.

    Raises:
        AlreadyExists: Its id is taken by something else.
    """
    try:
        return await db.write(fn, *args, **kwargs)
    except IntegrityError:
        pass
    try:
        # The other one has committed, or there would have been no clash: now it is found.
        return await db.write(fn, *args, **kwargs)
    except IntegrityError as error:
        raise AlreadyExists("the id is taken") from error
