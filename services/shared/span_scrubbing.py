"""Spans without secrets: whatever an instrumentation puts into one is looked at before it leaves the process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from opentelemetry.context import Context
from opentelemetry.sdk.trace import Event, ReadableSpan, Span, SpanProcessor
from opentelemetry.trace import Link, Status

from services.shared.scrubber import Scrubber

# Headers and whole addresses are never attributes: instrumentations differ in what they take from a request.
_DROPPED: Final = (
    "http.request.header.",
    "http.response.header.",
    "rpc.request.metadata.",
    "rpc.response.metadata.",
    "rpc.grpc.request.metadata.",
    "rpc.grpc.response.metadata.",
)
_ADDRESSES: Final = frozenset({"http.url", "url.full", "http.target"})


class ScrubbedSpans(SpanProcessor):
    """Hands spans on to another processor when they end, without secrets.

    Args:
        inner: The processor that exports them.
        scrubber: Knows the secrets.
    """

    def __init__(self, inner: SpanProcessor, scrubber: Scrubber) -> None:
        self._inner = inner
        self._scrubber = scrubber

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        """Passes the beginning on."""
        self._inner.on_start(span, parent_context)

    def on_end(self, span: ReadableSpan) -> None:
        """Passes a copy on."""
        self._inner.on_end(self._scrubbed(span))

    def shutdown(self) -> None:
        """Ends the other processor."""
        self._inner.shutdown()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Has the other processor send what it has."""
        return self._inner.force_flush(timeout_millis)

    def _scrubbed(self, span: ReadableSpan) -> ReadableSpan:
        status = span.status
        if status.description:
            status = Status(status.status_code, self._text(status.description))
        return ReadableSpan(
            name=self._text(span.name),
            context=span.context,
            parent=span.parent,
            resource=span.resource,
            attributes=self._attributes(span.attributes),
            events=[
                Event(self._text(event.name), self._attributes(event.attributes), event.timestamp)
                for event in span.events
            ],
            links=[Link(link.context, self._attributes(link.attributes)) for link in span.links],
            kind=span.kind,
            status=status,
            start_time=span.start_time,
            end_time=span.end_time,
            instrumentation_scope=span.instrumentation_scope,
        )

    def _event(self, event: Event) -> Event:
        return Event(self._text(event.name), self._attributes(event.attributes), event.timestamp)

    def _attributes(self, attributes: Mapping[str, Any] | None) -> dict[str, Any]:
        return {
            name: self._value(name, value)
            for name, value in (attributes or {}).items()
            if not name.startswith(_DROPPED)
        }

    def _value(self, name: str, value: Any) -> Any:
        if isinstance(value, str):
            return self._text(value.partition("?")[0] if name in _ADDRESSES else value)
        if isinstance(value, Sequence) and not isinstance(value, bytes):
            return tuple(self._value(name, entry) for entry in value)
        return value

    def _text(self, text: str) -> str:
        return self._scrubber.everything(text, "span")
