"""A wrong file is refused by name, place and reason: an operator's own as well as ours."""

from __future__ import annotations

from pathlib import Path

import pytest

from services.auth.providers import ProviderCatalog, ProviderFileError, load_provider
from services.auth.providers.schema import Rotation
from services.auth.providers.templates import UrlTemplate, VariableMissing

GOOD = """\
slug: acme
display_name: Acme
documentation_url: https://acme.example/docs
variables:
  tenant: {words: your tenant}
  base: {words: your address, is_url: true, hosts: ["*.acme.example"]}
oauth:
  authorize_url: https://{tenant}.acme.example/authorize
  token_url: "{base}/token"
  rotation: grace
  rotation_grace_seconds: 60
account:
  from: whoami
  url: "{base}/me"
  id: [/id]
inject:
  - {header: Authorization, value: "Bearer {access_token}"}
hosts:
  - {host: "{tenant}.acme.example"}
scopes:
  read: {words: read things}
"""


def test_good_file_is_understood() -> None:
    provider = load_provider(GOOD, "acme")
    assert provider.oauth is not None
    assert provider.oauth.rotation is Rotation.GRACE
    assert provider.egress_rules({"tenant": "ada"})[0].host == "ada.acme.example"


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("slug: acme", "slug: other", "acme.yaml: slug: expected the name of the file, 'acme'"),
        ("slug: acme", "slug: A b", "acme.yaml: slug: 'A b' does not match [a-z][a-z0-9-]{0,40}"),
        ("slug: acme\n", "", "acme.yaml: slug: is required"),
        ("display_name: Acme", "display_name: 7", "acme.yaml: display_name: expected a text, not 7"),
        ("display_name: Acme", "display_nam: Acme", "acme.yaml: display_name: is required"),
        ("scopes:", "scops: 1\nscopes:", "acme.yaml: scops: is not known"),
        ("  rotation: grace", "  rotatoin: grace", "acme.yaml: oauth.rotatoin: is not known"),
        (
            "rotation: grace\n",
            "rotation: sometimes\n",
            "acme.yaml: oauth.rotation: expected one of none, optional, grace, strict, not 'sometimes'",
        ),
        (
            "  rotation_grace_seconds: 60\n",
            "",
            "acme.yaml: oauth.rotation_grace_seconds: belongs to the rotation grace, and only to that",
        ),
        ("seconds: 60", "seconds: -1", "acme.yaml: oauth.rotation_grace_seconds: expected a positive number, not -1"),
        (
            "seconds: 60",
            "seconds: true",
            "acme.yaml: oauth.rotation_grace_seconds: expected a positive number, not True",
        ),
        (
            "https://{tenant}.acme.example/authorize",
            "http://acme.example/authorize",
            "acme.yaml: oauth.authorize_url: 'http://acme.example/authorize': expected an address that starts with https://",
        ),
        (
            "https://{tenant}.acme.example/authorize",
            "https://{Tenant}.acme.example/authorize",
            "acme.yaml: oauth.authorize_url: 'https://{Tenant}.acme.example/authorize': expected places",
        ),
        (
            "https://{tenant}.acme.example/authorize",
            "https://{realm}.acme.example/authorize",
            "acme.yaml: oauth.authorize_url: {realm} is neither a variable nor a capture",
        ),
        (
            "https://{tenant}.acme.example/authorize",
            "https://{base}.acme.example/authorize",
            "acme.yaml: oauth.authorize_url: an address stands in the middle of another",
        ),
        ('"{base}/token"', '"{tenant}/token"', "acme.yaml: oauth.token_url: {tenant} begins an address and is none"),
        ('  token_url: "{base}/token"\n', "", "acme.yaml: oauth.token_url: is required"),
        (
            "  authorize_url: https://{tenant}.acme.example/authorize\n",
            "",
            "acme.yaml: oauth.authorize_url: belongs to the flow authorization_code, and only to that",
        ),
        ('hosts: ["*.acme.example"]', 'hosts: ["*"]', "acme.yaml: variables.base.hosts: '*': expected a * only as the"),
        (
            'hosts: ["*.acme.example"]',
            'hosts: ["*.com"]',
            "acme.yaml: variables.base.hosts: '*.com': expected at least",
        ),
        (
            '"{tenant}.acme.example"}',
            '"*"}',
            "acme.yaml: hosts[0].host: expected a * only as the first label of a host",
        ),
        ('"{tenant}.acme.example"}', '"{nobody}.acme.example"}', "acme.yaml: hosts[0].host: {nobody} is neither a"),
        ("{access_token}", "{api_key}", "acme.yaml: inject[0]: {api_key} has no value"),
        ("{header: Authorization, ", "{", "acme.yaml: inject[0]: expected a value with a header or a query, or basic"),
        ("id: [/id]", "id: [id]", "acme.yaml: account.id: 'id' does not match (/[^/]+)+"),
        ("id: [/id]", "id: /id", "acme.yaml: account.id: expected a list that is not empty"),
        ("read: {words: read things}", "read: {}", "acme.yaml: scopes.read.words: is required"),
        ("read: {words", "re ad: {words", "acme.yaml: scopes.re ad: expected a scope as RFC 6749 has it"),
        ("oauth:", "kind: api_key\noauth:", "acme.yaml: oauth: belongs to the kind oauth2, and only to that"),
        (
            "tenant: {words: your tenant}",
            'tenant: {words: t, pattern: "["}',
            "acme.yaml: variables.tenant.pattern: is no",
        ),
        (
            "tenant: {words: your tenant}",
            "tenant: {words: your tenant, default: a b}",
            "acme.yaml: variables.tenant.default: expected your tenant",
        ),
        ("display_name: Acme", "slug: acme", "acme.yaml in line 2: the key 'slug' is there twice"),
        ("display_name: Acme", "display_name: [", "acme.yaml in line"),
        (GOOD, "[]", "acme.yaml: expected a mapping with texts as keys"),
        (GOOD, "", "acme.yaml: expected a mapping with texts as keys"),
        (GOOD, "!!python/object/apply:os.system [true]", "acme.yaml in line 1"),
    ],
)
def test_wrong_file_is_refused_with_place_and_reason(old: str, new: str, told: str) -> None:
    assert GOOD.count(old) >= 1
    with pytest.raises(ProviderFileError) as caught:
        load_provider(GOOD.replace(old, new, 1), "acme")
    assert str(caught.value).startswith(told)


def test_error_code_has_to_be_one_of_the_registry() -> None:
    wrong = GOOD.replace("  rotation: grace", "  answer: {errors: {gone: it_is_over}}\n  rotation: grace")
    with pytest.raises(ProviderFileError, match=r"oauth\.answer\.errors\.gone\.as: 'it_is_over' is no code"):
        load_provider(wrong, "acme")


def test_discovery_needs_a_place_to_begin() -> None:
    wrong = GOOD.replace("oauth:\n", "oauth:\n  discovery: mcp\n")
    with pytest.raises(ProviderFileError, match=r"variables\.server_url: is required"):
        load_provider(wrong, "acme")


def test_operators_files_are_added_and_win(tmp_path: Path) -> None:
    (tmp_path / "acme.yaml").write_text(GOOD)
    (tmp_path / "github.yaml").write_text(GOOD.replace("slug: acme", "slug: github"))
    catalog = ProviderCatalog.load(tmp_path)
    github = catalog.get("github")
    assert github is not None
    assert github.display_name == "Acme"
    assert catalog.get("acme") is not None
    assert catalog.get("nothing") is None
    assert [item.slug for item in catalog] == sorted(item.slug for item in catalog)


def test_operators_wrong_file_stops_the_start(tmp_path: Path) -> None:
    (tmp_path / "acme.yaml").write_text("slug: acme")
    with pytest.raises(ProviderFileError, match=r"acme\.yaml"):
        ProviderCatalog.load(tmp_path)


# ---------------------------------------------------------------------------------------------------------- templates


def test_value_stays_in_its_place() -> None:
    template = UrlTemplate.parse("https://{shop}.acme.example/{path}?v=1")
    assert template.expand({"shop": "ada", "path": "x"}).url == "https://ada.acme.example/x?v=1"
    with pytest.raises(VariableMissing, match="shop"):
        template.expand({"path": "x"})
    for value in ("evil.example/", "a@b", "a:1", "a#", "a?b", "a%2f", "ä", "a b", "", ".."):
        with pytest.raises(ValueError, match=r"."):
            template.expand({"shop": value, "path": value})


def test_address_takes_the_beginning_with_or_without_its_slash() -> None:
    template = UrlTemplate.parse("{base}/token")
    assert template.expand({"base": "https://acme.example/v1/"}).url == "https://acme.example/v1/token"
    whole = UrlTemplate.parse("{base}")
    assert whole.expand({"base": "https://acme.example/token/"}).url == "https://acme.example/token/"
