"""Answers of providers' token endpoints in the shapes that their documentation shows, with what has to be read in them.

Values are invented. A provider without an entry here fails a test.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any, Final

from services.auth.oauth.refusals import ReauthReason, RefusalKind

AT: Final = "at-canary-1"
RT: Final = "rt-canary-1"

STANDARD: Final = {"access_token": AT, "token_type": "Bearer", "expires_in": 3600, "refresh_token": RT, "scope": "a b"}
WITHOUT_REFRESH: Final = {"access_token": AT, "token_type": "Bearer", "expires_in": 3600, "scope": "a b"}


@dataclass(frozen=True)
class Refusal:
    """An answer that refuses."""

    status: int
    body: Any
    kind: RefusalKind
    error: str | None
    reauth_reason: ReauthReason | None = None


@dataclass(frozen=True)
class Shape:
    """A success, and refusals."""

    success: Any
    refusals: tuple[Refusal, ...]
    lifetime: float | None = 3600.0
    """Seconds from the request to the end of the access token."""
    refresh_token: str | None = RT
    refresh_lifetime: float | None = None
    scopes: tuple[str, ...] = ("a", "b")
    extra: dict[str, str] = field(default_factory=dict)
    account: tuple[Any, str, str] | None = None
    """What the question whose account it is is answered with, and what follows."""


def body(value: Any) -> bytes:
    """Returns the bytes of an answer."""
    return value.encode() if isinstance(value, str) else json.dumps(value).encode()


def revoked(status: int = 400, answer: Any = None) -> Refusal:
    """The grant is over."""
    said = {"error": "invalid_grant", "error_description": "canary"} if answer is None else answer
    return Refusal(status, said, RefusalKind.PERMANENT, "invalid_grant", ReauthReason.GRANT_REVOKED)


def expired(status: int, answer: Any) -> Refusal:
    """The refresh token has ended."""
    return Refusal(status, answer, RefusalKind.PERMANENT, "invalid_grant", ReauthReason.REFRESH_TOKEN_EXPIRED)


def policy(status: int, answer: Any, error: str = "interaction_required") -> Refusal:
    """The provider wants to see the user."""
    return Refusal(status, answer, RefusalKind.PERMANENT, error, ReauthReason.PROVIDER_POLICY)


def wrong_client(status: int = 401, answer: Any = None) -> Refusal:
    """The app is set up wrongly."""
    said = {"error": "invalid_client"} if answer is None else answer
    return Refusal(status, said, RefusalKind.INTEGRATION, "invalid_client")


def later(status: int, answer: Any, error: str | None) -> Refusal:
    """Nothing is proved."""
    return Refusal(status, answer, RefusalKind.TRANSIENT, error)


def entra(*codes: int, error: str = "invalid_grant") -> dict[str, Any]:
    """An error of Microsoft."""
    return {"error": error, "error_description": f"AADSTS{codes[0]}: canary", "error_codes": list(codes)}


DAY: Final = 86_400.0

SHAPES: Final[dict[str, Shape]] = {
    "google": Shape(
        STANDARD | {"id_token": "x.y.z"},
        (
            revoked(answer={"error": "invalid_grant", "error_description": "Token has been expired or revoked."}),
            policy(400, {"error": "invalid_grant", "error_subtype": "invalid_rapt"}),
            policy(400, {"error": "admin_policy_enforced"}, "consent_required"),
            wrong_client(),
            wrong_client(401, {"error": "deleted_client"}),
            Refusal(403, {"error": "org_internal"}, RefusalKind.INTEGRATION, "unauthorized_client"),
        ),
    ),
    "microsoft": Shape(
        STANDARD | {"ext_expires_in": 3600, "id_token": "x.y.z"},
        (
            expired(400, entra(700082)),
            expired(400, entra(70043)),
            policy(400, entra(50076, error="interaction_required")),
            policy(400, entra(65001), "consent_required"),
            Refusal(400, entra(50057), RefusalKind.PERMANENT, "invalid_grant", ReauthReason.USER_DISABLED),
            revoked(400, entra(50173)),
            revoked(400, entra(999_999_999)),
            wrong_client(401, entra(7000215, error="invalid_client")),
            later(400, entra(50196), "temporarily_unavailable"),
        ),
    ),
    "github": Shape(
        {"access_token": AT, "scope": "a,b", "token_type": "bearer"},
        (
            revoked(200, {"error": "bad_verification_code", "error_description": "canary"}),
            wrong_client(200, {"error": "incorrect_client_credentials"}),
            # Without its Accept header the answer is a form.
            revoked(200, "error=bad_verification_code&error_description=canary"),
        ),
        lifetime=None,
        refresh_token=None,
        account=({"id": 583231, "login": "octocat"}, "583231", "octocat"),
    ),
    "github-app": Shape(
        {
            "access_token": AT,
            "expires_in": 28800,
            "refresh_token": RT,
            "refresh_token_expires_in": 15897600,
            "scope": "",
            "token_type": "bearer",
        },
        (revoked(200, {"error": "bad_refresh_token"}), wrong_client(200, {"error": "incorrect_client_credentials"})),
        lifetime=28800,
        refresh_lifetime=15897600,
        scopes=(),
        account=({"id": 1, "login": "octocat"}, "1", "octocat"),
    ),
    "gitlab": Shape(
        STANDARD | {"created_at": 1607635748, "expires_in": 7200},
        (revoked(), wrong_client()),
        lifetime=7200,
        account=({"id": 7, "username": "ada"}, "7", "ada"),
    ),
    "slack": Shape(
        {
            "ok": True,
            "app_id": "A1",
            "team": {"id": "T012", "name": "Analytical Engines"},
            "authed_user": {
                "id": "U012",
                "scope": "a,b",
                "access_token": AT,
                "refresh_token": RT,
                "expires_in": 43200,
                "token_type": "user",
            },
        },
        (
            revoked(200, {"ok": False, "error": "invalid_refresh_token"}),
            expired(200, {"ok": False, "error": "token_expired"}),
            Refusal(
                200,
                {"ok": False, "error": "account_inactive"},
                RefusalKind.PERMANENT,
                "invalid_grant",
                ReauthReason.USER_DISABLED,
            ),
            wrong_client(200, {"ok": False, "error": "bad_client_secret"}),
            later(200, {"ok": False, "error": "ratelimited"}, "temporarily_unavailable"),
            later(200, {"ok": False, "error": "something_new"}, None),
            # Not a success, whatever else it holds.
            later(200, {"ok": False, "error": "something_new", "access_token": AT}, None),
        ),
        lifetime=43200,
        extra={"team_id": "T012", "team_name": "Analytical Engines", "user_id": "U012"},
        account=(None, "T012:U012", "Analytical Engines"),
    ),
    "notion": Shape(
        {
            "access_token": AT,
            "token_type": "bearer",
            "refresh_token": RT,
            "bot_id": "b" * 32,
            "workspace_id": "a" * 32,
            "workspace_name": "Ada's Notes",
            "owner": {"type": "user", "user": {"id": "c" * 32}},
        },
        (revoked(), wrong_client()),
        lifetime=None,
        scopes=(),
        extra={"bot_id": "b" * 32, "workspace_id": "a" * 32, "workspace_name": "Ada's Notes"},
        account=(None, f"{'a' * 32}:{'b' * 32}", "Ada's Notes"),
    ),
    "salesforce": Shape(
        {
            "access_token": AT,
            "refresh_token": RT,
            "signature": "canary",
            "scope": "a b",
            "instance_url": "https://acme.my.salesforce.com",
            "id": "https://login.salesforce.com/id/00D/005",
            "token_type": "Bearer",
            "issued_at": "1558553873237",
        },
        (
            revoked(answer={"error": "invalid_grant", "error_description": "expired access/refresh token"}),
            Refusal(
                400, {"error": "inactive_user"}, RefusalKind.PERMANENT, "invalid_grant", ReauthReason.USER_DISABLED
            ),
            wrong_client(400, {"error": "invalid_client_id"}),
            later(400, {"error": "rate_limit_exceeded"}, "temporarily_unavailable"),
        ),
        lifetime=None,
        extra={
            "instance_url": "https://acme.my.salesforce.com",
            "identity_url": "https://login.salesforce.com/id/00D/005",
        },
        account=({"user_id": "005", "organization_id": "00D", "username": "ada@acme"}, "00D:005", "ada@acme"),
    ),
    "atlassian": Shape(
        STANDARD,
        (
            revoked(403, {"error": "invalid_grant", "error_description": "Unknown or invalid refresh token."}),
            wrong_client(401, {"error": "access_denied", "error_description": "Unauthorized"}),
        ),
        account=({"account_id": "a:1", "email": "ada@example.com"}, "a:1", "ada@example.com"),
    ),
    "hubspot": Shape(
        {"access_token": AT, "refresh_token": RT, "expires_in": 1800, "hub_id": 62515, "scopes": ["a", "b"]},
        (
            revoked(400, {"error": "invalid_grant", "status": "BAD_REFRESH_TOKEN", "message": "canary"}),
            revoked(400, {"status": "BAD_REFRESH_TOKEN", "message": "canary"}),
            wrong_client(400, {"error": "invalid_client", "status": "BAD_CLIENT_SECRET"}),
        ),
        lifetime=1800,
        extra={"hub_id": "62515"},
        account=(None, "62515", "62515"),
    ),
    "xero": Shape(STANDARD | {"expires_in": 1800, "id_token": "x.y.z"}, (revoked(), wrong_client(400)), lifetime=1800),
    "quickbooks": Shape(
        {
            "access_token": AT,
            "refresh_token": RT,
            "expires_in": 3600,
            "x_refresh_token_expires_in": 8726400,
            "token_type": "bearer",
        },
        (revoked(), wrong_client()),
        refresh_lifetime=8726400,
        scopes=(),
    ),
    "linear": Shape(
        STANDARD | {"expires_in": 86399},
        (revoked(), wrong_client(400)),
        lifetime=86399,
        account=(
            {"data": {"viewer": {"id": "u1", "email": "ada@example.com", "organization": {"id": "o1"}}}},
            "o1:u1",
            "ada@example.com",
        ),
    ),
    "figma": Shape(
        {"access_token": AT, "token_type": "bearer", "expires_in": 7776000, "user_id_string": "1"},
        (revoked(), wrong_client()),
        lifetime=7776000,
        refresh_token=None,
        scopes=(),
        account=({"id": "1", "email": "ada@example.com"}, "1", "ada@example.com"),
    ),
    "zoom": Shape(
        STANDARD,
        (
            revoked(400, {"reason": "Invalid Token!", "error": "invalid_grant"}),
            revoked(401, {"reason": "Invalid Token!"}),
            wrong_client(400, {"reason": "Invalid client_id or client_secret", "error": "invalid_client"}),
        ),
        refresh_lifetime=90 * DAY,
        account=({"id": "z1", "email": "ada@example.com"}, "z1", "ada@example.com"),
    ),
    "box": Shape(
        {"access_token": AT, "expires_in": 4169, "refresh_token": RT, "restricted_to": [], "token_type": "bearer"},
        (
            revoked(answer={"error": "invalid_grant", "error_description": "Refresh token has expired"}),
            wrong_client(400),
        ),
        lifetime=4169,
        refresh_lifetime=60 * DAY,
        scopes=(),
        account=({"id": "9", "login": "ada@example.com"}, "9", "ada@example.com"),
    ),
    "dropbox": Shape(
        {"access_token": AT, "token_type": "bearer", "expires_in": 14400, "scope": "a b", "account_id": "dbid:1"},
        (revoked(), wrong_client(400)),
        lifetime=14400,
        refresh_token=None,
        account=({"account_id": "dbid:1", "email": "ada@example.com"}, "dbid:1", "ada@example.com"),
    ),
    "airtable": Shape(
        STANDARD | {"refresh_expires_in": 5184000},
        (revoked(), wrong_client()),
        refresh_lifetime=5184000,
        account=({"id": "usr1", "email": "ada@example.com"}, "usr1", "ada@example.com"),
    ),
    "x": Shape(
        STANDARD | {"expires_in": 7200, "token_type": "bearer"},
        (
            revoked(400, {"error": "invalid_request", "error_description": "Value passed for the token was invalid."}),
            Refusal(
                400,
                {"error": "invalid_request", "error_description": "Missing required parameter [client_id]."},
                RefusalKind.INTEGRATION,
                "invalid_request",
            ),
            Refusal(
                401,
                {"error": "unauthorized_client", "error_description": "Missing valid authorization header"},
                RefusalKind.INTEGRATION,
                "unauthorized_client",
            ),
        ),
        lifetime=7200,
        refresh_lifetime=180 * DAY,
        account=({"data": {"id": "2244994945", "username": "ada"}}, "2244994945", "ada"),
    ),
    "fitbit": Shape(
        STANDARD | {"expires_in": 28800, "user_id": "GGNJL9"},
        (
            revoked(
                400,
                {
                    "errors": [{"errorType": "invalid_grant", "message": "Refresh token invalid: canary"}],
                    "success": False,
                },
            ),
            wrong_client(401, {"errors": [{"errorType": "invalid_client", "message": "canary"}], "success": False}),
        ),
        lifetime=28800,
        extra={"user_id": "GGNJL9"},
        account=(None, "GGNJL9", "GGNJL9"),
    ),
    "shopify": Shape(
        {
            "access_token": AT,
            "scope": "a,b",
            "expires_in": 3600,
            "refresh_token": RT,
            "refresh_token_expires_in": 7776000,
        },
        (
            revoked(),
            Refusal(400, {"error": "application_cannot_be_found"}, RefusalKind.INTEGRATION, "unauthorized_client"),
        ),
        refresh_lifetime=7776000,
    ),
    "zoho": Shape(
        {
            "access_token": AT,
            "refresh_token": RT,
            "scope": "a b",
            "api_domain": "https://www.zohoapis.eu",
            "token_type": "Bearer",
            "expires_in": 3600,
        },
        (
            revoked(200, {"error": "invalid_code"}),
            wrong_client(200, {"error": "invalid_client_secret"}),
            later(400, {"error": "Access Denied", "error_description": "too many requests"}, "temporarily_unavailable"),
        ),
        extra={"api_domain": "https://www.zohoapis.eu"},
        account=({"ZUID": 1234, "Email": "ada@example.com"}, "1234", "ada@example.com"),
    ),
    "exact-online": Shape(
        {"access_token": AT, "token_type": "bearer", "expires_in": "600", "refresh_token": RT},
        (revoked(), later(401, "Rate limit exceeded: access_token not expired", None)),
        lifetime=600,
        refresh_lifetime=30 * DAY,
        scopes=(),
        account=({"d": {"results": [{"UserID": "g1", "UserName": "ada"}]}}, "g1", "ada"),
    ),
    "tiktok": Shape(
        {
            "access_token": AT,
            "expires_in": 86400,
            "open_id": "open-1",
            "refresh_expires_in": 31536000,
            "refresh_token": RT,
            "scope": "a,b",
            "token_type": "Bearer",
        },
        (
            revoked(200, {"error": "invalid_grant", "error_description": "canary", "log_id": "1"}),
            wrong_client(400, {"error": "invalid_client", "error_description": "canary", "log_id": "1"}),
        ),
        lifetime=86400,
        refresh_lifetime=31536000,
        extra={"open_id": "open-1"},
        account=({"data": {"user": {"open_id": "open-1", "display_name": "Ada"}}}, "open-1", "Ada"),
    ),
    "twitch": Shape(
        {"access_token": AT, "expires_in": 14124, "refresh_token": RT, "scope": ["a", "b"], "token_type": "bearer"},
        (
            revoked(400, {"error": "Bad Request", "status": 400, "message": "Invalid refresh token"}),
            wrong_client(403, {"status": 403, "message": "invalid client secret"}),
        ),
        lifetime=14124,
        account=({"data": [{"id": "141981764", "login": "ada"}]}, "141981764", "ada"),
    ),
    "square": Shape(
        {
            "access_token": AT,
            "token_type": "bearer",
            "expires_at": "2026-01-31T00:00:00Z",
            "merchant_id": "MERCHANT1",
            "refresh_token": RT,
        },
        (
            revoked(),
            wrong_client(401, {"errors": [{"category": "AUTHENTICATION_ERROR", "code": "UNAUTHORIZED"}]}),
            wrong_client(401, {"message": "Not Authorized", "type": "service.not_authorized"}),
        ),
        # The tests' requests begin on January 1, 2026.
        lifetime=30 * DAY,
        scopes=(),
        extra={"merchant_id": "MERCHANT1"},
        account=(None, "MERCHANT1", "MERCHANT1"),
    ),
    "reddit": Shape(
        STANDARD,
        (revoked(200, {"error": "invalid_grant"}), later(401, {"message": "Unauthorized", "error": 401}, None)),
        account=({"id": "abc", "name": "ada"}, "abc", "ada"),
    ),
    "discord": Shape(
        STANDARD | {"expires_in": 604800},
        (revoked(), wrong_client()),
        lifetime=604800,
        account=({"id": "80351110224678912", "username": "ada"}, "80351110224678912", "ada"),
    ),
    "spotify": Shape(
        WITHOUT_REFRESH,
        (
            revoked(answer={"error": "invalid_grant", "error_description": "Refresh token revoked"}),
            wrong_client(400, {"error": "invalid_client", "error_description": "Invalid client secret"}),
        ),
        refresh_token=None,
        account=({"id": "ada", "display_name": "Ada"}, "ada", "Ada"),
    ),
    "asana": Shape(
        {
            "access_token": AT,
            "token_type": "bearer",
            "expires_in": 3600,
            "data": {"id": 4673218951, "name": "Ada", "email": "ada@example.com"},
        },
        (revoked(), wrong_client()),
        refresh_token=None,
        scopes=(),
        account=({"data": {"gid": "1", "email": "ada@example.com"}}, "1", "ada@example.com"),
    ),
    "strava": Shape(
        # 21,600 seconds after January 1, 2026.
        {
            "token_type": "Bearer",
            "access_token": AT,
            "expires_at": 1767247200,
            "expires_in": 20566,
            "refresh_token": RT,
        },
        (
            revoked(),
            later(
                400,
                {"message": "Bad Request", "errors": [{"resource": "RefreshToken", "field": "refresh_token"}]},
                None,
            ),
        ),
        lifetime=21600,
        scopes=(),
        account=({"id": 227615, "username": None, "firstname": "Ada"}, "227615", "Ada"),
    ),
    "intercom": Shape(
        {"token_type": "Bearer", "token": AT, "access_token": AT},
        (revoked(), wrong_client()),
        lifetime=None,
        refresh_token=None,
        scopes=(),
        account=({"id": "5", "email": "ada@example.com", "app": {"id_code": "w1"}}, "w1:5", "ada@example.com"),
    ),
    "calendly": Shape(
        STANDARD | {"expires_in": 7200, "owner": "https://api.calendly.com/users/A"},
        (revoked(), wrong_client()),
        lifetime=7200,
        account=(
            {"resource": {"uri": "https://api.calendly.com/users/A", "email": "ada@example.com"}},
            "https://api.calendly.com/users/A",
            "ada@example.com",
        ),
    ),
    "mailchimp": Shape(
        {"access_token": AT, "expires_in": 0, "scope": None},
        (revoked(), wrong_client()),
        lifetime=None,
        refresh_token=None,
        scopes=(),
        account=({"dc": "us6", "user_id": 6, "login": {"email": "ada@example.com"}}, "6", "ada@example.com"),
    ),
    "mcp": Shape(STANDARD, (revoked(), wrong_client())),
    "oauth2": Shape(STANDARD, (revoked(), wrong_client())),
    "oidc": Shape(STANDARD | {"id_token": "x.y.z"}, (revoked(), wrong_client())),
}
"""By slug."""
