"""hvac's adapter without its traps: one call to one node, that answers in time or fails in our own terms.

What hvac 2.4 does by itself, and this adapter does not: follow a redirect with the token to whatever host it names; put
path and answer into the exception's text; make one class without a status of 412, 472, 473, 474 and 530; wait 30
seconds. Nor does it let the environment choose proxies, CA files or passwords of `.netrc` for these calls.
"""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import requests
import requests.adapters
from hvac.adapters import JSONAdapter

from services.auth.secrets import Secret
from services.auth.vault.failures import Redirected, Refused, Unreachable

THREADS: Final = 16
CONNECT_SECONDS: Final = 2.0
READ_SECONDS: Final = 2.0
WRITE_SECONDS: Final = 5.0

INDEX_HEADER: Final = "X-Vault-Index"
INCONSISTENT_HEADER: Final = "X-Vault-Inconsistent"

_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})


def new_session(ca_file: Path | None) -> requests.Session:
    """Returns the pool of connections that all calls share."""
    session = requests.Session()
    session.trust_env = False
    session.verify = True if ca_file is None else str(ca_file)
    # No retries below: a write that was repeated behind our back could not be told from another writer's.
    transport = requests.adapters.HTTPAdapter(pool_connections=8, pool_maxsize=THREADS, max_retries=0)
    session.mount("https://", transport)
    session.mount("http://", transport)
    return session


class NodeAdapter(JSONAdapter):
    """Calls of hvac's classes to one node with one token.

    Args:
        session: The pool of connections.
        address: The node, as https://host:port.
        token: The token; None for calls that need none.
        namespace: Namespace of every path.
        timeout_seconds: How long the node may take to answer.
        headers: Further headers.
    """

    def __init__(
        self,
        session: requests.Session,
        address: str,
        *,
        token: Secret | None = None,
        namespace: str = "",
        timeout_seconds: float = READ_SECONDS,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(
            base_uri=address,
            token=None if token is None else token.reveal(),
            # Both are handed to requests as they are, which takes more than the stubs of hvac say.
            verify=session.verify,  # type: ignore[arg-type]
            timeout=(CONNECT_SECONDS, timeout_seconds),  # type: ignore[arg-type]
            session=session,
            namespace=namespace or None,
            allow_redirects=False,
        )
        self._headers = dict(headers or {})
        self.index = ""
        """State of the storage after the last call, as its node said."""

    def request(self, method: str, url: str, headers: Any = None, raise_exception: bool = True, **options: Any) -> Any:
        """Makes one call.

        Raises:
            Unreachable: There was no answer.
            Redirected: The answer was a redirect.
            Refused: The answer was no success.
        """
        unreachable: Unreachable | None = None
        response: Any = None
        try:
            response = super(JSONAdapter, self).request(
                method, url, headers={**self._headers, **(headers or {})}, raise_exception=False, **options
            )
        except requests.RequestException as error:
            # Raised below, outside this block: the exception of requests names host and path, and would stay attached.
            unreachable = _unreachable(error)
        if unreachable is not None:
            raise unreachable
        self.index = response.headers.get(INDEX_HEADER, "")
        if response.status_code in _REDIRECTS:
            raise Redirected(response.headers.get("Location", ""))
        if not response.ok and raise_exception:
            raise _refused(response)
        if response.status_code == 204 or not response.content:
            return {}
        return _json(response)


def _unreachable(error: requests.RequestException) -> Unreachable:
    # A connection that was never made carried nothing. TLS failures are connection errors of requests as well.
    if isinstance(error, requests.exceptions.SSLError):
        return Unreachable(f"Vault's certificate is not accepted, or it speaks no TLS{_why_not(error)}")
    if isinstance(error, requests.ConnectTimeout):
        return Unreachable("Vault does not accept connections in time")
    if isinstance(error, requests.Timeout):
        return Unreachable("Vault does not answer in time", may_be_applied=True)
    is_unsent = isinstance(error, requests.ConnectionError) and "NewConnectionError" in repr(error)
    return Unreachable("Vault cannot be reached", may_be_applied=not is_unsent)


def _why_not(error: BaseException) -> str:
    """What OpenSSL has against a certificate, in its own words: they name the host at most."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, ssl.SSLCertVerificationError):
        # Of requests and urllib3, each holds the one before it.
        nested = (getattr(cause, "reason", None), *cause.args)
        cause = next((item for item in nested if isinstance(item, BaseException)), None)
    return "" if cause is None else f": {cause.verify_message}"


def _json(response: requests.Response) -> dict[str, Any]:
    try:
        found = response.json()
    except ValueError:
        found = None
    if not isinstance(found, dict):
        # Whatever answered is not Vault, and what became of the call is not known.
        raise Unreachable("what answered is not Vault", may_be_applied=True)
    return found


def _refused(response: requests.Response) -> Refused:
    try:
        body = response.json()
    except ValueError:
        body = {}
    body = body if isinstance(body, dict) else {}
    errors = body.get("errors")
    retry_after = response.headers.get("Retry-After", "")
    return Refused(
        response.status_code,
        tuple(text for text in errors if isinstance(text, str)) if isinstance(errors, list) else (),
        deleted_version=_deleted_version(body),
        retry_after_seconds=float(retry_after) if retry_after.isascii() and retry_after.isdigit() else None,
    )


def _deleted_version(body: dict[str, Any]) -> int | None:
    data = body.get("data")
    metadata = data.get("metadata") if isinstance(data, dict) else None
    if not isinstance(metadata, dict) or not (metadata.get("deletion_time") or metadata.get("destroyed")):
        return None
    version = metadata.get("version")
    return version if isinstance(version, int) else None
