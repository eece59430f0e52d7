"""What the executor asks of a model and what it gets back; the same for every provider."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from holdfast.api.common.v1 import agent_pb2, content_pb2


@dataclass(frozen=True, slots=True)
class Credential:
    """A provider's key and address, resolved for one call; the secret is in no representation of it."""

    secret: str = field(repr=False)
    """The key. Empty for servers that want none."""
    base_url: str
    """Where the provider answers. Empty means the provider's own address."""
    connection_id: str
    version: int
    """Changes with every new secret of the connection."""


class ModelRequest(NamedTuple):
    """Everything that one model call depends on."""

    spec: agent_pb2.ModelSpec
    instructions: str
    messages: Sequence[content_pb2.Message]
    tools: Collection[agent_pb2.ToolSpec]
    model_steps_before: int
    """Model steps of this run that have already succeeded."""
    input_text: str
    """Text of the run's input."""


class ModelAnswer(NamedTuple):
    """A whole answer. Ids of its tool calls occur in no earlier message of the request."""

    message: content_pb2.Message
    usage: content_pb2.Usage | None
    """Inclusive totals without a price; None when the provider did not say."""
    finish_reason: str
    """In the provider's word."""
    response_id: str
    response_model: str


class ModelFailed(Exception):
    """One attempt brought no answer. Neither the text nor the context of the exception holds a credential."""

    def __init__(self, failure: content_pb2.Failure) -> None:
        super().__init__(f"{failure.reason}: {failure.message}")
        self.failure = failure


class Model(Protocol):
    """One provider. Safe for any number of calls at the same time."""

    needs_credential: bool

    async def answer(
        self, request: ModelRequest, credential: Credential | None, on_text: Callable[[str], None]
    ) -> ModelAnswer:
        """Makes one attempt: no retries, and no time limit but the caller's.

        Args:
            request: What is sent.
            credential: Resolved for this call; None only where `needs_credential` is false.
            on_text: Called with each piece of the answer's text as it arrives. What was given to it before a failure
                is void.

        Raises:
            ModelFailed: There is no complete answer; the failure says what may be done about it.
        """

    async def close(self) -> None:
        """Closes the connections. No call may be under way."""
