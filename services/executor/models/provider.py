"""One attempt at a provider that streams server-sent events through its official SDK: what is the same for all."""

from __future__ import annotations

import ssl
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Final

from holdfast.api.common.v1 import content_pb2
from services.executor import prices
from services.executor.models.addresses import OWN_ADDRESSES, host_of, is_own_address, problem_of
from services.executor.models.clients import ClientCache, Sdk, SdkLoader
from services.executor.models.conversation import CallIds
from services.executor.models.failures import FailureReporter
from services.executor.models.protocol import Credential, ModelAnswer, ModelFailed, ModelRequest
from services.shared.clock import Clock
from services.shared.telemetry import get_logger

_log = get_logger(__name__)

# Far above any model's longest answer; a server that never stops must not fill the memory.
_MAX_ANSWER_CHARACTERS: Final = 16 * 1024 * 1024
# What reading a decoded event raises when it is JSON of another shape.
_MALFORMED: Final = (AttributeError, KeyError, IndexError, TypeError, ValueError)

SECRET_OF_NONE: Final = "none"
"""Sent as the key to servers that want none: the SDKs insist on one."""


class Assembly(ABC):
    """Puts the events of one stream together to an answer. Reads decoded JSON, and raises when it has another shape."""

    def __init__(self, call_ids: CallIds) -> None:
        self.call_ids = call_ids
        self.message = content_pb2.Message(role=content_pb2.ROLE_ASSISTANT)
        self.usage: content_pb2.Usage | None = None
        self.finish_reason = ""
        self.response_id = ""
        self.response_model = ""

    @abstractmethod
    def absorb(self, event: Any) -> str:
        """Takes one event in and returns the text that it adds to the answer."""

    @property
    @abstractmethod
    def is_complete(self) -> bool:
        """Whether the provider has said that the answer ends here."""

    @abstractmethod
    def finish(self) -> None:
        """Completes `message` and `usage`."""


class ProviderModel(ABC):
    """A model behind a provider's API.

    Args:
        clock: Time against which the provider's `Retry-After` dates are measured.
    """

    provider: ClassVar[str]
    path: ClassVar[str]
    loggers: ClassVar[tuple[str, ...]] = ()
    needs_credential = True

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._loader: SdkLoader[Any] = SdkLoader(self._import, *self.loggers)
        self._clients = ClientCache(self._build_client)

    async def answer(
        self, request: ModelRequest, credential: Credential | None, on_text: Callable[[str], None]
    ) -> ModelAnswer:
        """Makes one attempt; see `Model.answer`."""
        outcome = await self._attempt(request, credential, on_text)
        if isinstance(outcome, content_pb2.Failure):
            # Raised here, where no exception is handled: those of the SDKs hold the request with its credential, and
            # would be the context of this one.
            raise ModelFailed(outcome)
        return outcome

    async def close(self) -> None:
        """Closes the connections."""
        await self._clients.close()

    @abstractmethod
    def import_sdk(self) -> Any:
        """Imports the SDK and returns its module."""

    @abstractmethod
    def build_client(self, sdk: Any, secret: str, address: str, http: Any) -> Any:
        """Makes an SDK client that never retries, sends the secret to the address, and takes nothing from the
        environment."""

    @abstractmethod
    def body(self, request: ModelRequest, address: str) -> dict[str, Any]:
        """Returns the request in the provider's format."""

    @abstractmethod
    def assembly(self, request: ModelRequest, call_ids: CallIds) -> Assembly:
        """Returns what puts the answer together."""

    def _import(self) -> Any:
        sdk = self.import_sdk()
        # Every answer of a provider is priced next; here it does not hold up the event loop.
        prices.load()
        return sdk

    def _build_client(self, sdk: Sdk[Any], credential: Credential, address: str, http: Any) -> Any:
        return self.build_client(sdk.module, credential.secret.strip() or SECRET_OF_NONE, address, http)

    async def _attempt(
        self, request: ModelRequest, credential: Credential | None, on_text: Callable[[str], None]
    ) -> ModelAnswer | content_pb2.Failure:
        if credential is None:
            return FailureReporter(self.provider, "", self._clock).auth("there is no credential")
        secret = credential.secret.strip()
        address = credential.base_url.strip() or OWN_ADDRESSES[self.provider]
        problem = problem_of(address)
        if problem:
            return FailureReporter(self.provider, secret, self._clock).address_invalid(problem)
        whom = self.provider if is_own_address(self.provider, address) else f"{self.provider} at {host_of(address)}"
        report = FailureReporter(whom, secret, self._clock)
        # The HTTP library would say so too, quoting the header.
        if not (secret.isascii() and secret.isprintable()) or " " in secret:
            return report.auth("the credential contains characters that cannot be sent")
        body = self.body(request, address)
        assembly = self.assembly(request, CallIds(request.messages, request.model_steps_before))
        sdk = await self._loader.get()
        async with self._clients.lend(sdk, credential, address) as client:
            failure = await self._stream(sdk.module, client, body, assembly, report, on_text)
        if failure is not None:
            return failure
        assembly.finish()
        return ModelAnswer(
            message=assembly.message,
            usage=assembly.usage,
            finish_reason=assembly.finish_reason,
            response_id=assembly.response_id,
            response_model=assembly.response_model,
        )

    async def _stream(
        self,
        sdk: Any,
        client: Any,
        body: Mapping[str, Any],
        assembly: Assembly,
        report: FailureReporter,
        on_text: Callable[[str], None],
    ) -> content_pb2.Failure | None:
        """Feeds the assembly until the stream ends; returns what went wrong."""
        try:
            # The typed methods of the SDKs name the parameters of their day and build an object for every piece of the
            # answer. Raw JSON keeps to the wire format, which all their versions and all compatible servers share.
            stream = await client.post(
                self.path, cast_to=object, body=body, stream=True, stream_cls=sdk.AsyncStream[object]
            )
        except Exception as error:
            return _failure_of(sdk, error, report, began=False)
        characters = 0
        async with stream:
            try:
                failure = await _not_a_stream(stream.response, report)
            except Exception as error:
                return _failure_of(sdk, error, report, began=True)
            if failure is not None:
                return failure
            events = aiter(stream)
            while True:
                try:
                    event = await anext(events)
                except StopAsyncIteration:
                    break
                except Exception as error:
                    failure = _failure_of(sdk, error, report, began=True)
                    # What was lost after the last word is a pleasantry; the answer would be paid for twice.
                    return None if assembly.is_complete and _is_lost_connection(sdk, error) else failure
                try:
                    text = assembly.absorb(event)
                except _MALFORMED as error:
                    return report.bad_response(f"an event of an unknown shape ({type(error).__name__})")
                characters += len(text)
                if characters > _MAX_ANSWER_CHARACTERS:
                    return report.bad_response("an answer that does not end")
                if text:
                    on_text(text)
        return None if assembly.is_complete else report.stream_broken(None)


def _is_lost_connection(sdk: Any, error: Exception) -> bool:
    import anyio
    import httpx2

    # The SDKs wrap some of these, some of the time.
    return isinstance(error, sdk.APIConnectionError | httpx2.RequestError | ssl.SSLError | OSError | anyio.EndOfStream)


def _failure_of(sdk: Any, error: Exception, report: FailureReporter, *, began: bool) -> content_pb2.Failure:
    if isinstance(error, sdk.APIStatusError):
        return report.of_answer(error.status_code, error.response.headers, error.body)
    if _is_lost_connection(sdk, error):
        return report.stream_broken(error) if began else report.unreachable(error)
    if isinstance(error, sdk.APIError):
        return report.of_answer(None, {}, error.body)
    if isinstance(error, ValueError):
        # JSONDecodeError quotes nothing; UnicodeDecodeError does.
        return report.bad_response("an event that is not JSON")
    # Only the name: the rest of an exception that nobody foresaw may hold the request with its headers.
    _log.warning("model call failed in an unforeseen way", error=f"{type(error).__module__}.{type(error).__name__}")
    return report.bad_response(f"something that its SDK cannot read ({type(error).__name__})")


async def _not_a_stream(response: Any, report: FailureReporter) -> content_pb2.Failure | None:
    """Recognises an answer that is one JSON object or a web page, which the SDKs read as an empty stream."""
    media_type = response.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type == "application/json":
        await response.aread()
        try:
            body = response.json()
        except ValueError:
            return report.bad_response("something that is not JSON")
        if isinstance(body, dict) and body.get("error"):
            return report.of_answer(None, {}, body)
        return report.bad_response("an answer that is no stream")
    if media_type == "text/html":
        return report.bad_response("a web page")
    return None
