"""The forms in which a secret is commonly written, so that an echo of it is recognised."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterable
from typing import Final
from urllib.parse import quote, quote_plus

MIN_FORM_CHARACTERS: Final = 8
"""Shorter texts are not looked for: they are found in innocent ones."""


def forms_of(secret: str) -> Iterable[str]:
    """Returns the forms in which a secret may be written: as it is, in hex, for URLs, in JSON, in base64.

    Base64 writes the same bytes in three ways, by where they begin, so that these also find the secret in a `Basic`
    pair; letters at the edges, which depend on the neighbours, are left out.
    """
    raw = secret.encode(errors="surrogatepass")
    found = {
        secret,
        raw.hex(),
        raw.hex().upper(),
        quote(secret, safe="", errors="surrogatepass"),
        quote(secret, safe="/", errors="surrogatepass"),
        quote_plus(secret, errors="surrogatepass"),
        json.dumps(secret)[1:-1],
        json.dumps(secret, ensure_ascii=False)[1:-1],
        json.dumps(secret)[1:-1].replace("/", "\\/"),
        repr(secret)[1:-1],
    }
    found |= {_lower_escapes(form) for form in found if "%" in form}
    # JSON inside of JSON, as in a tool's result that quotes an answer.
    found |= {
        json.dumps(form, ensure_ascii=ascii_only)[1:-1]
        for form in found
        if "\\" in form or '"' in form
        for ascii_only in (True, False)
    }
    for offset in range(3):
        for encode in (base64.b64encode, base64.urlsafe_b64encode):
            encoded = encode(b"\0" * offset + raw).decode()
            # The last group holds padding, or bytes that come after the secret.
            end = len(encoded) - (4 if (offset + len(raw)) % 3 else 0)
            found.add(encoded[4 if offset else 0 : end])
    return [form for form in found if len(form) >= MIN_FORM_CHARACTERS]


def _lower_escapes(text: str) -> str:
    return re.sub(r"%[0-9A-F]{2}", lambda match: match[0].lower(), text)
