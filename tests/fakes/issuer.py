"""An OpenID Connect issuer on a real socket: metadata, keys, and tokens with whatever claims a test needs."""

from __future__ import annotations

import asyncio
import json
import time
import warnings
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from joserfc import jwt
from joserfc.jwk import ECKey, Key, OctKey, OKPKey, RSAKey

AUDIENCE = "holdfast"


def new_key(algorithm: str, kid: str) -> Key:
    """A private key for an algorithm."""
    parameters: Any = {"kid": kid}
    if algorithm.startswith("ES"):
        return ECKey.generate_key("P-256", parameters=parameters)
    if algorithm.startswith("Ed"):
        return OKPKey.generate_key("Ed25519", parameters=parameters)
    if algorithm.startswith("HS"):
        return OctKey.generate_key(256, parameters=parameters)
    return RSAKey.generate_key(2048, parameters=parameters)


class Issuer:
    """One issuer. Its keys may be replaced while it runs."""

    def __init__(self) -> None:
        self.url = ""
        self.keys: list[Key] = [new_key("ES256", "first")]
        self.asked: list[str] = []
        self.metadata: dict[str, Any] = {}
        self.is_broken = False

    def token(self, *, key: Key | None = None, header: Any = None, **claims: Any) -> str:
        """A good token, but for what is given; a claim of None is left out."""
        now = int(time.time())
        signing = key or self.keys[0]
        merged = {
            "iss": self.url,
            "aud": AUDIENCE,
            "sub": "ada",
            "exp": now + 300,
            "iat": now,
            "roles": ["developer"],
            "holdfast_workspace": "acme",
            **claims,
        }
        head = {"alg": "ES256", "kid": signing.kid, "typ": "JWT", **(header or {})}
        head = {name: value for name, value in head.items() if value is not None}
        body = {name: value for name, value in merged.items() if value is not None}
        with warnings.catch_warnings():
            # Issuers use the old name of Ed25519.
            warnings.filterwarnings("ignore", message="EdDSA is deprecated")
            return jwt.encode(head, body, signing, algorithms=[head["alg"]])

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            path = (await reader.readuntil(b"\r\n\r\n")).split(b" ")[1].decode()
            self.asked.append(path)
            documents: dict[str, Any] = {
                "/.well-known/openid-configuration": {
                    "issuer": self.url,
                    "jwks_uri": f"{self.url}/keys",
                    **self.metadata,
                },
                "/keys": {"keys": [key.as_dict(private=False) for key in self.keys if not isinstance(key, OctKey)]},
            }
            is_known = path in documents and not self.is_broken
            body = json.dumps(documents[path]).encode() if is_known else b"<html>away</html>"
            status = b"200 OK" if is_known else b"503 Away"
            writer.write(
                b"HTTP/1.1 %s\r\nconnection: close\r\ncontent-length: %d\r\n\r\n%s" % (status, len(body), body)
            )
            await writer.drain()
        finally:
            writer.close()


@asynccontextmanager
async def serving() -> AsyncIterator[Issuer]:
    """An issuer that answers."""
    issuer = Issuer()
    server = await asyncio.start_server(issuer._serve, "127.0.0.1", 0)
    issuer.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with server:
        yield issuer
