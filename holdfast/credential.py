"""`Credential`: what a tool in a worker is handed for one call, with its value in no representation of it.

`HandedOut` knows what a worker was handed lately, so that none of it leaves in a result, an error or a log.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from datetime import datetime
from typing import Final, NoReturn

from holdfast.secret_forms import MIN_FORM_CHARACTERS, forms_of

_REMEMBERED: Final = 32


class Credential:
    """The secret of a connection, for the requests of one call. Ask for it in each call rather than keep it.

    Attributes:
        fingerprint: Names the secret without telling it.
        expire_time: When it ends; None when unknown, or when it does not end.
        base_url: The API's address; empty means the provider's own.
    """

    __slots__ = ("_headers", "_query", "_value", "base_url", "expire_time", "fingerprint")

    def __init__(
        self,
        value: str,
        *,
        fingerprint: str = "",
        headers: Mapping[str, str] | None = None,
        query: Mapping[str, str] | None = None,
        expire_time: datetime | None = None,
        base_url: str = "",
    ) -> None:
        self._value = value
        self._headers = dict(headers or {})
        self._query = dict(query or {})
        self.fingerprint = fingerprint
        self.expire_time = expire_time
        self.base_url = base_url

    def reveal(self) -> str:
        """Returns the value. It belongs into requests to the third party: not into results, errors or logs."""
        return self._value

    @property
    def headers(self) -> dict[str, str]:
        """The headers in which the provider wants it, ready to be sent. They hold the value."""
        return dict(self._headers)

    @property
    def query(self) -> dict[str, str]:
        """The query parameters in which the provider wants it; mostly none. They hold the value."""
        return dict(self._query)

    def __repr__(self) -> str:
        return f"<Credential {self.fingerprint}>" if self.fingerprint else "<Credential>"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a credential is not copied or pickled")


class HandedOut:
    """The secrets that a worker was handed lately."""

    def __init__(self) -> None:
        self._known: OrderedDict[str, tuple[tuple[str, ...], str]] = OrderedDict()

    def learn(self, credential: Credential) -> None:
        """Makes a credential known."""
        value = credential.reveal()
        mark = f"[[secret:{credential.fingerprint}]]" if credential.fingerprint else "[[secret]]"
        self._learn(value, mark)
        for sent in (*credential.headers.values(), *credential.query.values()):
            # A pair of user and password in base64 is a secret of its own; `Bearer <value>` is not.
            if not value or value not in sent:
                self._learn(sent.rpartition(" ")[2], mark)

    def _learn(self, value: str, mark: str) -> None:
        if len(value) < MIN_FORM_CHARACTERS:
            return
        # Longest first: one form may be the beginning of another.
        self._known[value] = tuple(sorted(forms_of(value), key=len, reverse=True)), mark
        self._known.move_to_end(value)
        while len(self._known) > _REMEMBERED:
            self._known.popitem(last=False)

    def scrubbed(self, text: str) -> str:
        """Returns the text without what is known."""
        # A copy: other threads' tools are handed credentials meanwhile.
        for forms, mark in list(self._known.values()):
            for form in forms:
                if form in text:
                    text = text.replace(form, mark)
        return text
