"""Who may call which method: one table for each service, and nobody what is not in it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

ADMIN_SCOPE: Final = "admin"


@dataclass(frozen=True, slots=True)
class Access:
    """Who may call a method. With neither of the first three, nobody.

    Attributes:
        public: Anybody, without a key: health and reflection.
        services: Names of the suite's services that may call it.
        scope: Scope that an API key needs.
        long_poll: The unary call is made to wait, so that the server sets no deadline of its own.
        traced: Has a span of its own; off for streams that live long and carry many messages.
    """

    public: bool = False
    services: tuple[str, ...] = ()
    scope: str | None = None
    long_poll: bool = False
    traced: bool = True


NOBODY: Final = Access()

INFRASTRUCTURE_ACCESS: Final[Mapping[str, Access]] = {
    "/grpc.health.v1.Health/Check": Access(public=True, traced=False),
    "/grpc.health.v1.Health/List": Access(public=True, traced=False),
    "/grpc.health.v1.Health/Watch": Access(public=True, traced=False),
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": Access(public=True, traced=False),
}


def service_access(service: str, methods: Mapping[str, Access]) -> dict[str, Access]:
    """Returns the part of an access table that belongs to one proto service, from method names without their prefix."""
    return {f"/{service}/{method}": access for method, access in methods.items()}


def check_access_table(methods: Iterable[str], table: Mapping[str, Access]) -> None:
    """Refuses a server whose table and methods differ; called at start, so that a gap is a failing start, not a hole.

    Args:
        methods: Full names of all methods that the server has, such as `/grpc.health.v1.Health/Check`.
        table: The access table.

    Raises:
        ValueError: A method is not in the table, the table names one that does not exist, or an entry admits nobody.
    """
    served = set(methods)
    missing = sorted(served - table.keys())
    stale = sorted(table.keys() - served)
    closed = sorted(name for name in served & table.keys() if table[name] == NOBODY)
    problems = []
    if missing:
        problems.append(f"methods without an entry in the access table: {', '.join(missing)}")
    if stale:
        problems.append(f"entries of the access table without a method: {', '.join(stale)}")
    if closed:
        problems.append(f"entries of the access table that admit nobody: {', '.join(closed)}")
    if problems:
        raise ValueError("; ".join(problems))
