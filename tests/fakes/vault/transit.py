"""The transit engine, with real AES-GCM."""

from __future__ import annotations

import base64
import binascii
import os
from dataclasses import dataclass, field
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from tests.fakes.vault.wire import Answer, Refusal, Request, data, not_found, nothing


@dataclass(slots=True)
class Key:
    """A named key with its versions from 1."""

    options: dict[str, Any]
    versions: list[bytes] = field(default_factory=lambda: [os.urandom(32)])


class TransitEngine:
    """One mount."""

    def __init__(self) -> None:
        self.keys: dict[str, Key] = {}

    def exists(self, path: str) -> bool:
        """Tells whether a write would be an update: only encryption makes keys and knows the difference."""
        kind, _, name = path.partition("/")
        return kind != "encrypt" or name in self.keys

    def handle(self, request: Request, path: str) -> Answer:
        """Answers a call to the mount."""
        parts, body = path.split("/"), request.body
        method = "POST" if request.method == "PUT" else request.method
        match (method, *parts):
            case ("POST", "keys", name):
                self._make(name, body)
                return self._describe(name)
            case ("GET", "keys", name):
                return self._describe(name)
            case ("DELETE", "keys", name):
                if name not in self.keys:
                    raise Refusal(400, f"error deleting policy {name}: could not delete key; not found")
                if not self.keys[name].options["deletion_allowed"]:
                    raise Refusal(400, f"error deleting policy {name}: deletion is not allowed for this key")
                del self.keys[name]
                return nothing()
            case ("POST", "keys", name, "config"):
                if name not in self.keys:
                    raise Refusal(400, f"no existing key named {name} could be found")
                self.keys[name].options.update(body)
                return self._describe(name)
            case ("POST", "keys", name, "rotate"):
                self._key(name).versions.append(os.urandom(32))
                return self._describe(name)
            case ("POST", "encrypt", name):
                if name not in self.keys:
                    self._make(name, {})
                return data(self._encrypt(name, _decoded(body.get("plaintext", "")), _associated(body)))
            case ("POST", "decrypt", name):
                plaintext = self._decrypt(name, str(body.get("ciphertext", "")), _associated(body))
                return data({"plaintext": base64.b64encode(plaintext).decode()})
            case ("POST", "datakey", "plaintext", name):
                value = os.urandom(32)
                wrapped = self._encrypt(name, value, b"")
                return data({**wrapped, "plaintext": base64.b64encode(value).decode()})
            case ("POST", "rewrap", name):
                return data(self._encrypt(name, self._decrypt(name, str(body.get("ciphertext", "")), b""), b""))
        raise Refusal(404, "unsupported path")

    def _make(self, name: str, body: dict[str, Any]) -> None:
        if name not in self.keys:
            options = {"type": "aes256-gcm96", "deletion_allowed": False, "exportable": False}
            self.keys[name] = Key(options | body)

    def _key(self, name: str) -> Key:
        found = self.keys.get(name)
        if found is None:
            raise Refusal(400, "encryption key not found")
        return found

    def _describe(self, name: str) -> Answer:
        if name not in self.keys:
            raise not_found()
        key = self.keys[name]
        return data({"name": name, "latest_version": len(key.versions), **key.options})

    def _encrypt(self, name: str, plaintext: bytes, associated: bytes) -> dict[str, Any]:
        key = self._key(name)
        nonce = os.urandom(12)
        sealed = nonce + AESGCM(key.versions[-1]).encrypt(nonce, plaintext, associated)
        version = len(key.versions)
        return {"ciphertext": f"vault:v{version}:{base64.b64encode(sealed).decode()}", "key_version": version}

    def _decrypt(self, name: str, ciphertext: str, associated: bytes) -> bytes:
        key = self._key(name)
        prefix, _, rest = ciphertext.partition(":v")
        number, separator, text = rest.partition(":")
        if prefix != "vault" or not separator or not number.isdigit():
            raise Refusal(400, "invalid ciphertext: no prefix")
        if not 1 <= int(number) <= len(key.versions):
            raise Refusal(400, "invalid ciphertext: version is too new")
        sealed = _decoded(text)
        try:
            return AESGCM(key.versions[int(number) - 1]).decrypt(sealed[:12], sealed[12:], associated)
        except (InvalidTag, ValueError):
            raise Refusal(400, "cipher: message authentication failed") from None


def _decoded(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise Refusal(400, "failed to base64-decode") from None


def _associated(body: dict[str, Any]) -> bytes:
    return _decoded(body.get("associated_data") or "")
