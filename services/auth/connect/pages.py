"""The pages that people see while they connect an account, and the address to which providers answer.

No page holds anything of another site, runs a script, is kept by a cache or tells another site where it was come from.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime
from importlib import resources
from typing import Any, Final
from urllib.parse import parse_qsl, urlencode, urlsplit

from jinja2 import Environment, PackageLoader, StrictUndefined
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from holdfast.errors import HoldfastError, InvalidArgument, Unavailable
from holdfast.ids import is_uuid
from services.auth.connect.browser import (
    ConnectBrowser,
    NotHereError,
    OtherBrowserError,
    Outcome,
    OutOfDateError,
    is_cookie,
)
from services.auth.connect.keys import ConnectKeys, new_cookie
from services.auth.connect.landing import redirect_uri
from services.auth.connect.sessions import AUTHORIZE_SECONDS
from services.auth.connect.store import SessionState
from services.auth.discovered import described_app
from services.auth.oauth.refusals import TokenRefused
from services.auth.providers.schema import Sensitivity
from services.auth.secrets import SecretDamagedError
from services.shared.clock import Clock
from services.shared.telemetry import get_logger

MAX_BODY_BYTES: Final = 32 * 1024
MAX_QUERY_BYTES: Final = 12 * 1024
MAX_FIELDS: Final = 40
MAX_HEAD_BYTES: Final = 32 * 1024

_PARKED: Final = "parked"
_VARIABLE: Final = "variable."
_PARKED_SECONDS: Final = 120.0
_FINISHING_SECONDS: Final = 2
_STATIC: Final = {"style.css": "text/css; charset=utf-8", "favicon.svg": "image/svg+xml"}

SENSITIVITY_WORDS: Final[Mapping[Sensitivity, str]] = {
    Sensitivity.READ: "Reads",
    Sensitivity.WRITE: "Changes things",
    Sensitivity.ADMIN: "Administers",
    Sensitivity.MONEY: "Moves money",
    Sensitivity.SEND_AS_USER: "Speaks in your name",
}

FAILURE_WORDS: Final[Mapping[str, str]] = {
    "account_mismatch": "This is another account than the one that is connected so far. That one stays as it was. To "
    "connect this account too, begin again with a new name for the connection.",
    "account_unknown": "The provider did not say whose account this is.",
    "iss_mismatch": "The answer did not come from the provider that was asked.",
    "signature_mismatch": "The answer did not come from the provider that was asked.",
    "integration_mismatch": "The answer did not come from the provider that was asked.",
    "integration_changed": "The integration was changed in the meantime.",
    "interrupted": "It was interrupted at our end.",
    "too_many_codes": "A wrong code was given too often.",
    "invalid_client": "The provider does not accept the integration as it is set up. An admin has to look at it.",
    "unauthorized_client": "The provider does not accept the integration as it is set up. An admin has to look at it.",
    "invalid_scope": "The provider does not know a permission that was asked for. An admin has to look at it.",
    "invalid_grant": "The provider did not accept its own answer any more. Please begin again.",
}

log = get_logger(__name__)

Handler = Callable[[Request], Awaitable[Response]]


class ConnectPages:
    """The pages as an ASGI application.

    Args:
        browser: What they do.
        keys: Seals an answer that a provider posts.
        clock: Where time comes from.
        public_url: Where browsers reach them.
    """

    def __init__(self, browser: ConnectBrowser, keys: ConnectKeys, clock: Clock, *, public_url: str) -> None:
        self._browser = browser
        self._keys = keys
        self._clock = clock
        self._public_url = public_url
        self._is_https = urlsplit(public_url).scheme == "https"
        # Its prefix makes browsers refuse it from any other host and over plain http; there it cannot be used.
        self._cookie_name = "__Host-holdfast-connect" if self._is_https else "holdfast-connect"
        self._templates = Environment(
            loader=PackageLoader("services.auth.connect"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
        )
        self._templates.filters["minute"] = _minute
        self._static = {name: (_read_static(name), kind) for name, kind in _STATIC.items()}
        self.app: ASGIApp = _Frame(
            Starlette(
                routes=[
                    Route("/connect/{link}", self._guarded(self._connect), methods=["GET"]),
                    Route("/connect/{link}", self._guarded(self._proceed), methods=["POST"]),
                    Route("/connect/{link}/done", self._guarded(self._done), methods=["GET"]),
                    Route("/oauth/callback/{integration_id}", self._guarded(self._callback), methods=["GET"]),
                    Route("/oauth/callback/{integration_id}", self._guarded(self._posted_callback), methods=["POST"]),
                    Route("/oauth/client/{integration_id}", self._guarded(self._client_metadata), methods=["GET"]),
                    Route("/static/{name}", self._file, methods=["GET"]),
                    Route("/favicon.ico", self._favicon, methods=["GET"]),
                    Route("/healthz", self._health, methods=["GET"]),
                ],
                exception_handlers={HTTPException: self._http_error},
            ),
            is_https=self._is_https,
        )

    # ----------------------------------------------------------------------------------------------------------- pages

    async def _connect(self, request: Request) -> Response:
        """The link's page."""
        cookie = self._cookie(request) or new_cookie()
        look = await self._browser.look(request.path_params["link"], cookie)
        state = look.session.state
        if state.is_end or state is SessionState.CONFIRMING:
            return self._page("done.html", 200, **_outcome_fields(Outcome(look.session, look.target.title)))
        response = self._page(
            "connect.html",
            look=look,
            session=look.session,
            provider=look.target.title,
            agents=look.target.agents,
            words=SENSITIVITY_WORDS,
        )
        self._set_cookie(response, cookie)
        return response

    async def _proceed(self, request: Request) -> Response:
        """Continues to the provider."""
        fields = _unique(await _read_body(request))
        cookie = self._cookie(request)
        variables = {
            name.removeprefix(_VARIABLE): value for name, value in fields.items() if name.startswith(_VARIABLE)
        }
        url = await self._browser.proceed(request.path_params["link"], cookie, fields.get("form_token", ""), variables)
        response = RedirectResponse(url, status_code=303)
        self._set_cookie(response, cookie)
        return response

    async def _callback(self, request: Request) -> Response:
        """Takes the provider's answer from the query."""
        query = request.scope["query_string"]
        if len(query) > MAX_QUERY_BYTES:
            raise HTTPException(414)
        params = _unique(query.decode("latin-1"))
        if _PARKED in params:
            params = await self._unparked(params[_PARKED])
        return await self._answered(request, params)

    async def _posted_callback(self, request: Request) -> Response:
        """Takes an answer that the provider lets the browser post.

        Cookies do not travel with a post from another site. So the answer comes back to the browser, sealed, in an
        address of ours, and from there with the cookie.
        """
        params = _unique(await _read_body(request))
        sealed = await self._keys.seal(_PARKED, {"params": params, "since": self._clock.now().timestamp()})
        return RedirectResponse(_with_parked(request.url.path, sealed), status_code=303)

    async def _unparked(self, sealed: str) -> dict[str, str]:
        try:
            document = await self._keys.open(_PARKED, sealed)
        except (SecretDamagedError, ValueError):
            raise OutOfDateError from None
        if self._clock.now().timestamp() - document["since"] > _PARKED_SECONDS:
            raise OutOfDateError
        return dict(document["params"])

    async def _answered(self, request: Request, params: Mapping[str, str]) -> Response:
        cookie = self._cookie(request)
        to = await self._browser.answer(request.path_params["integration_id"], params, cookie)
        response = RedirectResponse(to, status_code=303)
        self._set_cookie(response, cookie)
        return response

    async def _done(self, request: Request) -> Response:
        """How it ended, and the code that confirms it."""
        outcome = await self._browser.outcome(request.path_params["link"], self._cookie(request))
        if outcome.return_url:
            return RedirectResponse(outcome.return_url, status_code=303)
        response = self._page("done.html", 200, **_outcome_fields(outcome))
        if outcome.session.is_consumed:
            response.headers["refresh"] = str(_FINISHING_SECONDS)
        return response

    async def _client_metadata(self, request: Request) -> Response:
        """What authorization servers read of an integration that names itself by this address (for MCP).

        It says nothing but the address itself, so that it need not be known whether there is such an integration.
        """
        integration_id = request.path_params["integration_id"]
        app = described_app(redirect_uri(self._public_url, integration_id))
        if app.metadata_url is None or not is_uuid(integration_id):
            raise HTTPException(404)
        return JSONResponse(app.metadata_document(), headers={"cache-control": "public, max-age=3600"})

    async def _file(self, request: Request) -> Response:
        name = request.path_params["name"]
        if name not in self._static:
            raise HTTPException(404)
        content, kind = self._static[name]
        return Response(content, media_type=kind, headers={"cache-control": "public, max-age=3600"})

    async def _favicon(self, request: Request) -> Response:
        return RedirectResponse("/static/favicon.svg", status_code=301)

    async def _health(self, request: Request) -> Response:
        return Response("ok\n", media_type="text/plain")

    # ---------------------------------------------------------------------------------------------------------- errors

    def _guarded(self, page: Handler) -> Handler:
        async def guarded(request: Request) -> Response:
            try:
                return await page(request)
            except HTTPException:
                raise
            except Exception as error:
                # Not left to the server, which would write it down in its own way.
                return self._failure(error)

        return guarded

    async def _http_error(self, request: Request, error: Exception) -> Response:
        status = error.status_code if isinstance(error, HTTPException) else 500
        titles = {
            404: "There is nothing here",
            405: "That cannot be done here",
            413: "That is too much",
            414: "That is too much",
        }
        return self._message(status, titles.get(status, "That did not work"), "Please go back to where you began.")

    def _failure(self, error: Exception) -> Response:
        match error:
            case NotHereError():
                return self._message(
                    404,
                    "There is nothing here",
                    "The link is not one of ours, or it belongs to another browser. Please begin again.",
                )
            case OutOfDateError():
                return self._message(
                    400,
                    "This sign-in is over",
                    "It was finished before, took too long, or goes on in another window. Please begin again.",
                )
            case OtherBrowserError():
                return self._message(
                    400,
                    "Please go on in the browser in which you began",
                    "The sign-in was begun in another browser, or cookies are blocked here. Nothing was connected.",
                )
            case TokenRefused():
                log.warning("sign_in_impossible", detail=str(error))
                return self._message(
                    502, "The integration is not set up", "An admin of the workspace has to look at it."
                )
            case InvalidArgument():
                # What was expected, in the provider's data's words.
                expected = "; ".join(item.description for item in error.field_violations)
                return self._message(
                    400, f"{error.message[:1].upper()}{error.message[1:]}", f"Please go back: {expected}."
                )
            case Unavailable():
                return self._message(503, "Just a moment", "A service that is needed is away. Please try again.")
            case HoldfastError():
                return self._message(409, "That did not work", f"{error.message[:1].upper()}{error.message[1:]}.")
            case _:
                log.error("page_failed", exc_info=error)
                return self._message(500, "That did not work", "Something went wrong at our end. Please begin again.")

    # ---------------------------------------------------------------------------------------------------------- making

    def _page(self, template: str, status: int = 200, **values: Any) -> Response:
        return HTMLResponse(self._templates.get_template(template).render(**values), status_code=status)

    def _message(self, status: int, title: str, text: str) -> Response:
        return self._page("message.html", status, title=title, text=text)

    def _cookie(self, request: Request) -> str:
        value = request.cookies.get(self._cookie_name, "")
        return value if is_cookie(value) else ""

    def _set_cookie(self, response: Response, cookie: str) -> None:
        if cookie:
            response.set_cookie(
                self._cookie_name,
                cookie,
                max_age=int(AUTHORIZE_SECONDS),
                path="/",
                secure=self._is_https,
                httponly=True,
                samesite="lax",
            )


def _outcome_fields(outcome: Outcome) -> dict[str, Any]:
    session = outcome.session
    return {
        "session": session,
        "provider": outcome.title,
        "confirm_code": outcome.confirm_code,
        "reason": FAILURE_WORDS.get(session.failure_reason, ""),
        "is_finishing": session.is_consumed,
    }


# ------------------------------------------------------------------------------------------------------------- requests


async def _read_body(request: Request) -> str:
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BODY_BYTES:
            raise HTTPException(413)
    return body.decode("latin-1")


def _unique(text: str) -> dict[str, str]:
    """Returns the parameters of a query or a form, of which none may be there twice (RFC 6749 §3.1)."""
    try:
        pairs = parse_qsl(text, keep_blank_values=True, max_num_fields=MAX_FIELDS)
    except ValueError:
        raise HTTPException(400) from None
    params = dict(pairs)
    if len(params) != len(pairs):
        raise HTTPException(400)
    return params


def _with_parked(path: str, sealed: str) -> str:
    return f"{path}?{urlencode({_PARKED: sealed})}"


def _minute(time: datetime) -> str:
    return f"{time.astimezone(UTC):%Y-%m-%d %H:%M} UTC"


def _read_static(name: str) -> bytes:
    return (resources.files("services.auth.connect") / "static" / name).read_bytes()


# ---------------------------------------------------------------------------------------------------------------- frame


class _Frame:
    """Around every request: the headers that keep a page to itself, and a log line without link, query and body."""

    def __init__(self, app: ASGIApp, *, is_https: bool) -> None:
        self._app = app
        # A browser holds redirects that follow a form to `form-action` too: to the provider, and on to a return URL.
        targets = "'self' https: http://127.0.0.1:* http://localhost:*"
        headers = {
            "cache-control": "no-store",
            "content-security-policy": "default-src 'none'; style-src 'self'; img-src 'self'; base-uri 'none'; "
            f"form-action {targets}; frame-ancestors 'none'",
            "cross-origin-opener-policy": "same-origin",
            "referrer-policy": "no-referrer",
            "x-content-type-options": "nosniff",
            "x-frame-options": "DENY",
        }
        if is_https:
            headers["strict-transport-security"] = "max-age=31536000"
        self._headers = [(name.encode(), value.encode()) for name, value in headers.items()]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        status = 0
        app = self._app
        if sum(len(name) + len(value) for name, value in scope["headers"]) > MAX_HEAD_BYTES:
            app = Response("the head of the request is too long\n", status_code=431, media_type="text/plain")

        async def framed(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                given = {name for name, _ in message["headers"]}
                message["headers"] = [
                    *message["headers"],
                    *((name, value) for name, value in self._headers if name not in given),
                ]
            await send(message)

        try:
            await app(scope, receive, framed)
        finally:
            # The first part of the path says which page it was; what follows may be a link that somebody could use.
            page = "/".join(scope["path"].split("/")[:2])
            log.info("http_request", method=scope["method"], page=page[:20], status=status)
