"""Writes the table of docs/security.md: every RPC, and who may call it; --check only says whether it is current."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from services.auth.access import ACCESS as AUTH  # noqa: E402
from services.auth.api_keys import OWN_WORKSPACE  # noqa: E402
from services.auth.roles import ROLES, SCOPES  # noqa: E402
from services.executor.access import ACCESS as EXECUTOR  # noqa: E402
from services.shared.access import Access  # noqa: E402
from services.shared.identity import Identity  # noqa: E402
from services.state.access import ACCESS as STATE  # noqa: E402
from services.trace.servicer import ACCESS as TRACE  # noqa: E402

TABLES: Mapping[str, Mapping[str, Access]] = {"executor": EXECUTOR, "auth": AUTH, "trace": TRACE, "state": STATE}
DOCUMENT = ROOT / "docs" / "security.md"
_BEGIN, _END = "<!-- access table: scripts/access_table.py -->", "<!-- end of the access table -->"


def admits(access: Access, role: str) -> bool:
    """Tells whether a key of a role may call a method."""
    return access.scope is not None and Identity("api_key", scopes=frozenset({*ROLES[role], OWN_WORKSPACE})).has_scope(
        access.scope
    )


def rows() -> list[str]:
    """Returns the lines of both tables: of roles, and of RPCs."""
    lines = ["| scope | what it allows | " + " | ".join(ROLES) + " |", "|---|---|" + "---|" * len(ROLES)]
    for scope, text in SCOPES.items():
        marks = ("✓" if Identity("api_key", scopes=ROLES[role]).has_scope(scope) else "" for role in ROLES)
        lines.append(f"| `{scope}` | {text} | " + " | ".join(marks) + " |")
    for service, table in TABLES.items():
        lines += ["", f"### {service}", "", "| RPC | needs | " + " | ".join(ROLES) + " |"]
        lines.append("|---|---|" + "---|" * len(ROLES))
        for method, access in table.items():
            name = method.rpartition(".")[2].replace("/", ".")
            needs = [f"`{access.scope}`"] if access.scope else []
            needs += [f"service {service}" for service in access.services]
            marks = ("✓" if admits(access, role) else "" for role in ROLES)
            lines.append(f"| `{name}` | {', '.join(needs)} | " + " | ".join(marks) + " |")
    return lines


def document() -> str:
    """Returns the document as it should be."""
    before, _, rest = DOCUMENT.read_text(encoding="utf-8").partition(_BEGIN)
    after = rest.partition(_END)[2]
    return "\n".join((before + _BEGIN, *rows(), _END)) + after


if __name__ == "__main__":
    if "--check" in sys.argv[1:]:
        sys.exit(document() != DOCUMENT.read_text(encoding="utf-8"))
    DOCUMENT.write_text(document(), encoding="utf-8")
