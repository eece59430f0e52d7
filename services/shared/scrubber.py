"""Takes secrets out of texts on their way to a log, a span, an error or the journal.

It knows every secret that this process has revealed lately, in each form in which one is commonly written, and the look
of credentials in general. There is one per process, as for logging: what it guards is the process's memory.
"""

from __future__ import annotations

import json
import re
import threading
from collections import Counter, OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from holdfast.secret_forms import MIN_FORM_CHARACTERS, forms_of
from services.shared.clock import Clock, SystemClock
from services.shared.key_form import checksum

Sink = Literal["log", "span", "error", "journal", "stream"]

LIFETIME_SECONDS: Final = 3600.0
"""So long after a secret was last revealed an echo of it is recognised."""

MIN_SECRET_CHARACTERS: Final = 8
"""Shorter ones are not looked for: they are found in innocent texts."""

MAX_SECRET_CHARACTERS: Final = 8 * 1024
_MAX_FORM_CHARACTERS: Final = 16 * 1024 * 1024
"""Of all forms together; beyond, the secrets that were used longest ago are forgotten."""

_GRAM: Final = MIN_FORM_CHARACTERS
_ALERT_SECONDS: Final = 60.0
_MASK: Final = "[[secret]]"
# Most of a text are words that are too short to begin a secret.
_RUN: Final = re.compile(r"[^\s\",{}\[\]]{8,}")
_SECRET_NAME: Final = re.compile(r"token|secret|password|key|assertion|code|verifier", re.IGNORECASE)
_OWN_KEY: Final = re.compile(r"(?P<body>hfst_(?P<id>[0-9A-Za-z]{12})_[0-9A-Za-z]{43})(?P<checksum>[0-9A-Za-z]{6})")

# What a credential looks like, with the letters that it cannot do without: the search for those costs next to nothing.
# Order matters: a private key is one thing, whatever stands in it.
_PATTERNS: Final[tuple[tuple[tuple[str, ...], re.Pattern[str]], ...]] = (
    (
        ("PRIVATE KEY",),
        re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.DOTALL),
    ),
    (("hfst_",), re.compile(r"\bhfst_[0-9A-Za-z]{12}_[0-9A-Za-z]{20,}")),
    (("eyJ",), re.compile(r"\beyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]*")),
    (("gh", "github_pat_"), re.compile(r"\b(?:gh[pousr]_[A-Za-z0-9]{20,}|github_pat_[A-Za-z0-9_]{20,})")),
    (("glpat-",), re.compile(r"\bglpat-[A-Za-z0-9_-]{16,}")),
    (("xox", "xapp-"), re.compile(r"\b(?:xox[abceoprs](?:\.xox[a-z])?-|xapp-)[A-Za-z0-9-]{10,}")),
    (("sk-", "sk_", "rk_"), re.compile(r"\b(?:sk-[A-Za-z0-9_-]{16,}|[sr]k_(?:live|test)_[A-Za-z0-9]{10,})")),
    (("AKIA", "ASIA"), re.compile(r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b")),
    (
        ("AIza", "ya29.", "GOCSPX-"),
        re.compile(r"\b(?:AIza[\w-]{30,}|ya29\.[\w-]{20,}|GOCSPX-[\w-]{20,})"),
    ),
    (("hvs.", "hvb.", "hvr."), re.compile(r"\bhv[sbr]\.[A-Za-z0-9_-]{20,}")),
    (
        ("pat", "ntn_", "lin_"),
        re.compile(r"\b(?:pat-[a-z0-9]{2,4}-[0-9a-f-]{30,}|ntn_\w{20,}|lin_api_\w{20,})"),
    ),
)
# The value alone: that there was one, and of which kind, helps whoever reads the log.
_AUTHORIZATION: Final = re.compile(r"(?i)\b(bearer|basic|token)(\s+|%20)(?=\S*[0-9])([A-Za-z0-9._~+/=-]{16,})")
_QUERY: Final = re.compile(
    r"(?i)([?&](?:access_token|refresh_token|id_token|client_secret|api_?key|code|state|code_verifier)=)[^&\s\"'#]{6,}"
)


@dataclass(slots=True)
class _Entry:
    forms: tuple[str, ...]
    fingerprint: str
    last_seen: float

    @property
    def mark(self) -> str:
        return f"[[secret:{self.fingerprint}]]" if self.fingerprint else _MASK


@dataclass(slots=True)
class _Forms:
    """Forms with the same first letters: many, where tokens have a head in common, as all JSON Web Tokens do."""

    entries: dict[str, list[_Entry]] = field(default_factory=dict)
    lengths: Counter[int] = field(default_factory=Counter)

    def add(self, form: str, entry: _Entry) -> None:
        """Adds a form of a secret."""
        self.entries.setdefault(form, []).append(entry)
        self.lengths[len(form)] += 1

    def remove(self, form: str, entry: _Entry) -> None:
        """Removes it."""
        holders = self.entries[form]
        # By identity: two secrets may look alike in every field.
        holders[:] = [holder for holder in holders if holder is not entry]
        if not holders:
            del self.entries[form]
        self.lengths[len(form)] -= 1
        if not self.lengths[len(form)]:
            del self.lengths[len(form)]

    def has_beginning(self, text: str) -> bool:
        """Tells whether one of the forms begins with the text."""
        return any(form.startswith(text) for form in self.entries)

    def longest_at(self, text: str, at: int) -> tuple[str, _Entry] | None:
        """Returns the longest form that stands at a place of the text."""
        for length in sorted(self.lengths, reverse=True):
            form = text[at : at + length]
            holders = self.entries.get(form)
            if holders is not None:
                return form, holders[0]
        return None


class Scrubber:
    """Knows secrets, and replaces them. Safe for use by several threads."""

    def __init__(self, clock: Clock | None = None) -> None:
        self._clock: Clock = SystemClock() if clock is None else clock
        self._lock = threading.RLock()
        # Invariant: in the order in which they were last seen.
        self._entries: OrderedDict[str, _Entry] = OrderedDict()
        # By their first letters; most forms have those for themselves.
        self._by_gram: dict[str, _Forms] = {}
        self._forms: dict[str, int] = {}
        self._odd_forms: dict[str, int] = {}
        """Those among them that begin with more than one word."""
        self._form_characters = 0
        self._beginnings: frozenset[str] | None = None
        self._alerted: dict[tuple[str, str], float] = {}
        self.counts: Counter[str] = Counter()
        """How many secrets were taken out, by sink."""

    # ------------------------------------------------------------------------------------------------- what is known

    @property
    def is_empty(self) -> bool:
        """Whether no secret is known."""
        return not self._entries

    def learn(self, secret: str, fingerprint: str = "") -> None:
        """Makes a secret known for an hour, or for another hour.

        Args:
            secret: The secret. Of a JSON document, what its names call secret is learnt; of a list, each text.
            fingerprint: By which an incident can be matched with the connection; empty when it is not known.
        """
        # The look of Holdfast's own keys is proof enough; whoever guesses at them must not push the others out.
        if len(secret) < MIN_SECRET_CHARACTERS or secret.startswith("hfst_"):
            return
        with self._lock:
            known = self._entries.get(secret)
            if known is not None:
                known.last_seen = self._clock.monotonic()
                known.fingerprint = fingerprint or known.fingerprint
                self._entries.move_to_end(secret)
                return
            if (secret[0], secret[-1]) in (("{", "}"), ("[", "]")):
                for value in _values_of(secret):
                    self.learn(value, fingerprint)
                return
            if len(secret) > MAX_SECRET_CHARACTERS:
                return
            entry = _Entry(tuple(forms_of(secret)), fingerprint, self._clock.monotonic())
            self._entries[secret] = entry
            for form in entry.forms:
                forms = self._by_gram.get(form[:_GRAM])
                if forms is None:
                    forms = self._by_gram[form[:_GRAM]] = _Forms()
                forms.add(form, entry)
                for counted in self._counted(form):
                    counted[form] = counted.get(form, 0) + 1
                self._form_characters += len(form)
            self._beginnings = None
            while self._form_characters > _MAX_FORM_CHARACTERS:
                self._forget(next(iter(self._entries)))

    def forget_all(self) -> None:
        """Forgets every secret; for the end of a process, and between tests."""
        with self._lock:
            for secret in list(self._entries):
                self._forget(secret)

    def _forget(self, secret: str) -> None:
        entry = self._entries.pop(secret)
        for form in entry.forms:
            forms = self._by_gram[form[:_GRAM]]
            forms.remove(form, entry)
            if not forms.entries:
                del self._by_gram[form[:_GRAM]]
            for counted in self._counted(form):
                counted[form] -= 1
                if not counted[form]:
                    del counted[form]
            self._form_characters -= len(form)
        self._beginnings = None

    def _counted(self, form: str) -> tuple[dict[str, int], ...]:
        return (self._forms,) if _RUN.match(form) else (self._forms, self._odd_forms)

    def _forget_old(self) -> None:
        limit = self._clock.monotonic() - LIFETIME_SECONDS
        while self._entries:
            secret, entry = next(iter(self._entries.items()))
            if entry.last_seen > limit:
                return
            self._forget(secret)

    # ------------------------------------------------------------------------------------------------ what is taken out

    def exact(self, text: str, sink: Sink) -> str:
        """Returns the text without the secrets that are known, and without Holdfast's own keys.

        What it finds is counted and reported: somebody has sent or printed what they must not.
        """
        if self._entries and len(text) >= _GRAM:
            with self._lock:
                self._forget_old()
                if self._finds_any(text):
                    text = self._replaced(text, sink)
        if "hfst_" in text:
            text = _OWN_KEY.sub(lambda match: self._own_key_mark(match, sink), text)
        return text

    def everything(self, text: str, sink: Sink) -> str:
        """Returns the text also without what merely looks like a credential; for what is no user's content."""
        return masked(self.exact(text, sink))

    def value(self, value: Any, sink: Sink) -> Any:
        """As `exact`, for texts inside of lists and mappings."""
        if isinstance(value, str):
            return self.exact(value, sink)
        if isinstance(value, Mapping):
            return {self.value(name, sink): self.value(entry, sink) for name, entry in value.items()}
        if isinstance(value, list | tuple):
            return type(value)(self.value(entry, sink) for entry in value)
        return value

    def _finds_any(self, text: str) -> bool:
        # Few forms are searched one by one; many are looked up at each place of the text.
        if len(self._forms) * (60 + len(text) // 12) < len(text) * 35:
            return any(form in text for form in self._forms)
        if any(form in text for form in self._odd_forms):
            return True
        grams = self._by_gram
        for run in _RUN.findall(text):
            for at in range(len(run) - _GRAM + 1):
                if run[at : at + _GRAM] in grams:
                    return True
        return False

    def _replaced(self, text: str, sink: Sink) -> str:
        pieces: list[str] = []
        done = at = 0
        while at <= len(text) - _GRAM:
            found = self._at(text, at)
            if found is None:
                at += 1
                continue
            form, entry = found
            pieces += (text[done:at], entry.mark)
            at = done = at + len(form)
            self._report(sink, entry.fingerprint)
        return "".join([*pieces, text[done:]])

    def _at(self, text: str, at: int) -> tuple[str, _Entry] | None:
        forms = self._by_gram.get(text[at : at + _GRAM])
        return None if forms is None else forms.longest_at(text, at)

    def _own_key_mark(self, match: re.Match[str], sink: Sink) -> str:
        if match["checksum"] != checksum(match["body"]):
            return match[0]
        self._report(sink, f"hfst_{match['id']}")
        return f"[[secret:hfst_{match['id']}]]"

    def _report(self, sink: Sink, fingerprint: str) -> None:
        # Imported here: the log's own formatter is one of those that scrub.
        from services.shared.telemetry import get_logger

        self.counts[sink] += 1
        now = self._clock.monotonic()
        alerted = self._alerted.get((sink, fingerprint))
        if alerted is not None and now - alerted < _ALERT_SECONDS:
            return
        if len(self._alerted) > 1_000:
            self._alerted.clear()
        self._alerted[sink, fingerprint] = now
        get_logger(__name__).error("secret_scrubbed", sink=sink, fingerprint=fingerprint)

    # ------------------------------------------------------------------------------------------------------- in pieces

    def held_back(self, text: str) -> int:
        """Returns how many characters at the end of a text may be the beginning of a secret that goes on."""
        if not self._entries:
            return 0
        with self._lock:
            if self._beginnings is None:
                self._beginnings = frozenset(gram[:length] for gram in self._by_gram for length in range(1, _GRAM))
            longest = max(map(len, self._forms), default=1) - 1
            for length in range(min(longest, len(text)), 0, -1):
                end = text[-length:]
                if length < _GRAM:
                    if end in self._beginnings:
                        return length
                elif end[:_GRAM] in self._by_gram and self._by_gram[end[:_GRAM]].has_beginning(end):
                    return length
        return 0


class StreamScrubber:
    """Takes secrets out of a text that comes in pieces, also where one begins in a piece and ends in another."""

    def __init__(self, scrubber: Scrubber) -> None:
        self._scrubber = scrubber
        self._held = ""

    def add(self, piece: str) -> str:
        """Takes the next piece; returns what may be passed on by now."""
        if self._scrubber.is_empty and not self._held:
            return piece
        text = self._scrubber.exact(self._held + piece, "stream")
        count = self._scrubber.held_back(text)
        self._held = text[len(text) - count :]
        return text[: len(text) - count]

    def end(self) -> str:
        """Returns what was held back: nothing follows it."""
        rest, self._held = self._held, ""
        return rest


PROCESS: Final = Scrubber()
"""The scrubber of this process."""


def masked(text: str) -> str:
    """Returns the text without what looks like a credential."""
    for needed, pattern in _PATTERNS:
        if any(letters in text for letters in needed):
            text = pattern.sub(_MASK, text)
    if "=" in text:
        text = _QUERY.sub(lambda match: match[1] + _MASK, text)
    lowered = text.lower()
    if "bearer" in lowered or "basic" in lowered or "token" in lowered:
        text = _AUTHORIZATION.sub(lambda match: f"{match[1]}{match[2]}{_MASK}", text)
    return text


def _values_of(document: str) -> Iterator[str]:
    try:
        stack = [("secret", json.loads(document))]
    except ValueError:
        return
    while stack:
        name, value = stack.pop()
        if isinstance(value, dict):
            stack.extend((str(inner), entry) for inner, entry in value.items())
        elif isinstance(value, list):
            stack.extend((name, entry) for entry in value)
        elif isinstance(value, str) and _SECRET_NAME.search(name) and not value.startswith("{"):
            yield value
