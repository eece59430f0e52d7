"""Calls to Vault from the event loop: which node, with which token, how often, and what a failure means to callers.

A call that may be repeated is repeated for a few seconds, over the configured nodes; any other is repeated only when
it is known that it took no effect. While Vault is away, a circuit answers at once, and one call in a while looks again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar

from services.auth.secrets import Secret
from services.auth.vault.adapter import (
    CONNECT_SECONDS,
    INCONSISTENT_HEADER,
    INDEX_HEADER,
    READ_SECONDS,
    THREADS,
    WRITE_SECONDS,
    NodeAdapter,
    new_session,
)
from services.auth.vault.failures import PolicyDenied, Redirected, Refused, Unreachable, VaultFailure
from services.auth.vault.nodes import HEALTH_PATH, Node, Nodes, NodeState
from services.shared.clock import Clock

T = TypeVar("T")

Operation = Callable[[NodeAdapter], T]
"""One call of hvac, run in a thread."""

RETRY_SECONDS: Final = 10.0
BEHIND_SECONDS: Final = 2.0
CIRCUIT_SECONDS: Final = 2.0

_FIRST_PAUSE_SECONDS: Final = 0.05
_LONGEST_PAUSE_SECONDS: Final = 1.0
_BEHIND_PAUSE_SECONDS: Final = 0.1
_MARGIN_SECONDS: Final = 1.0


@dataclass(frozen=True, slots=True)
class Address:
    """Where Vault is and how it is reached."""

    addresses: tuple[str, ...]
    ca_file: Path | None = None
    namespace: str = ""


class TokenKeeper(Protocol):
    """Has the token of the calls, and judges one that was refused."""

    async def token(self) -> Secret:
        """Returns the token; logs in when there is none.

        Raises:
            VaultFailure: There is none to be had.
        """

    async def is_replaced(self, token: Secret) -> bool:
        """Tells whether the refused token was bad and there is another one now; if not, policy refused the call.

        Raises:
            VaultFailure: It cannot be told, or there is no other one.
        """


class Wire:
    """Vault's nodes and the threads that talk to them, without any token.

    Args:
        address: Where Vault is.
        clock: Where time comes from.
    """

    def __init__(self, address: Address, clock: Clock) -> None:
        self.nodes = Nodes(address.addresses)
        self.clock = clock
        self._namespace = address.namespace
        self._session = new_session(address.ca_file)
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="vault")
        self._index = ""

    def close(self) -> None:
        """Closes the connections. Calls in flight end with their own time limits."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._session.close()

    async def once(
        self,
        operation: Operation[T],
        *,
        node: Node,
        token: Secret | None = None,
        is_write: bool = False,
        forward: bool = False,
        namespaced: bool = True,
    ) -> T:
        """Makes one call to one node and notes what its answer says of the node.

        Raises:
            VaultFailure: It failed.
        """
        seconds = WRITE_SECONDS if is_write else READ_SECONDS
        headers = {INDEX_HEADER: self._index} if self._index and not is_write else {}
        if forward:
            headers[INCONSISTENT_HEADER] = "forward-active-node"
        adapter = NodeAdapter(
            self._session,
            node.address,
            token=token,
            namespace=self._namespace if namespaced else "",
            timeout_seconds=seconds,
            headers=headers,
        )
        try:
            # A node that answers a byte now and then keeps within each of the adapter's limits, so there is one more.
            async with asyncio.timeout(CONNECT_SECONDS + seconds + _MARGIN_SECONDS):
                answer = await asyncio.get_running_loop().run_in_executor(self._pool, operation, adapter)
        except TimeoutError:
            failure = Unreachable("Vault does not answer in time", may_be_applied=True)
            self.nodes.learn(node, failure)
            raise failure from None
        except VaultFailure as failure:
            self.nodes.learn(node, failure)
            raise
        if is_write and adapter.index:
            self._index = adapter.index
        return answer

    async def probe(self) -> NodeState:
        """Asks every node how it is, and returns what the best one is."""
        await asyncio.gather(*(self._probe(node) for node in self.nodes.all))
        return self.nodes.summary

    async def _probe(self, node: Node) -> None:
        # GET: hvac's own call is a HEAD that loses its options, and a HEAD has no body to tell Vault from a proxy.
        try:
            answer: Any = await self.once(lambda adapter: adapter.get(HEALTH_PATH), node=node, namespaced=False)
        except (Refused, Unreachable, Redirected) as failure:
            answer = failure
        self.nodes.learn_health(node, answer)


class VaultClient:
    """Calls with the service's token, repeated where that is safe.

    Args:
        wire: The nodes.
        keeper: Has the token.
    """

    def __init__(self, wire: Wire, keeper: TokenKeeper) -> None:
        self._wire = wire
        self._keeper = keeper
        self._clock = wire.clock
        self._open_until = 0.0
        self._last: VaultFailure = Unreachable("Vault cannot be reached")

    async def read(self, operation: Operation[T]) -> T:
        """Makes a call that changes nothing."""
        return await self._call(operation, is_write=False, may_repeat=True)

    async def write(self, operation: Operation[T], *, may_repeat: bool = False) -> T:
        """Makes a call that changes something.

        Args:
            operation: The call.
            may_repeat: Whether doing it twice is the same as doing it once.

        Raises:
            VaultFailure: It failed; `may_be_applied` says whether it may have taken effect.
        """
        return await self._call(operation, is_write=True, may_repeat=may_repeat)

    async def _call(self, operation: Operation[T], *, is_write: bool, may_repeat: bool) -> T:
        state = self._wire.nodes.summary
        if self._clock.monotonic() < self._open_until and state is not NodeState.ACTIVE:
            raise type(self._last)(*self._last_arguments())
        # Nobody waits for what was found away already: one look, and the answer.
        is_known_away = self._open_until > 0 or state in (NodeState.SEALED, NodeState.UNINITIALISED)
        patience = 0.0 if is_known_away and state is not NodeState.ACTIVE else RETRY_SECONDS
        try:
            answer = await self._repeat(operation, is_write=is_write, may_repeat=may_repeat, patience=patience)
        except (Unreachable, Redirected) as failure:
            self._trip(failure)
            raise
        except Refused as failure:
            if failure.is_failover:
                self._trip(failure)
            raise
        self._open_until = 0.0
        return answer

    def _trip(self, failure: VaultFailure) -> None:
        self._last = failure
        self._open_until = self._clock.monotonic() + CIRCUIT_SECONDS

    def _last_arguments(self) -> tuple[Any, ...]:
        # A new exception each time: one that is raised again collects the tracebacks of all its callers.
        if isinstance(self._last, Refused):
            return (self._last.status,)
        return (self._last.location,) if isinstance(self._last, Redirected) else (str(self._last),)

    async def _repeat(self, operation: Operation[T], *, is_write: bool, may_repeat: bool, patience: float) -> T:
        deadline = self._clock.monotonic() + patience
        behind_deadline: float | None = None
        pause, attempts = _FIRST_PAUSE_SECONDS, 0
        forward = has_new_token = is_doubtful = False
        while True:
            attempts += 1
            token = await self._keeper.token()
            try:
                return await self._wire.once(
                    operation, node=self._wire.nodes.best(), token=token, is_write=is_write, forward=forward
                )
            except VaultFailure as failure:
                now = self._clock.monotonic()
                is_doubtful = is_doubtful or failure.may_be_applied
                failure.may_be_applied, failure.is_repetition = is_doubtful, attempts > 1
                if isinstance(failure, Refused) and failure.status == 403:
                    # A token that has just been made and is refused as well: no second round.
                    if has_new_token or not await self._keeper.is_replaced(token):
                        raise PolicyDenied(
                            "Vault's policies do not allow this call", may_be_applied=is_doubtful
                        ) from None
                    has_new_token = True
                    continue
                if isinstance(failure, Refused) and failure.status == 412:
                    behind_deadline = now + BEHIND_SECONDS if behind_deadline is None else behind_deadline
                    if now < behind_deadline:
                        await self._clock.sleep(_BEHIND_PAUSE_SECONDS)
                        continue
                    if forward:
                        raise
                    forward = True
                    continue
                if not _is_worth_repeating(failure, may_repeat=may_repeat) or now + pause >= deadline:
                    raise
                wanted = failure.retry_after_seconds if isinstance(failure, Refused) else None
                await self._clock.sleep(max(pause, min(wanted or 0.0, deadline - now)))
                pause = min(pause * 2, _LONGEST_PAUSE_SECONDS)
            if self._wire.nodes.summary not in (NodeState.ACTIVE, NodeState.STANDBY):
                await self._wire.probe()


def _is_worth_repeating(failure: VaultFailure, *, may_repeat: bool) -> bool:
    if failure.may_be_applied and not may_repeat:
        return False
    if isinstance(failure, Refused):
        return failure.is_failover or failure.is_not_ready or failure.status == 429
    return isinstance(failure, Unreachable | Redirected)
