"""The KV engine, version 2."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from tests.fakes.vault.wire import Answer, Refusal, Request, data, not_found, nothing

_TIME = "2026-01-01T00:00:00.000000000Z"


@dataclass(slots=True)
class Version:
    """One version of a secret."""

    value: dict[str, Any] | None
    deletion_time: str = ""
    destroyed: bool = False


@dataclass(slots=True)
class Entry:
    """A secret with its versions by number."""

    current: int = 0
    versions: dict[int, Version] = field(default_factory=dict)

    def metadata(self, number: int) -> dict[str, Any]:
        """What Vault tells of a version."""
        version = self.versions[number]
        return {
            "created_time": _TIME,
            "custom_metadata": None,
            "deletion_time": version.deletion_time,
            "destroyed": version.destroyed,
            "version": number,
        }


class KvEngine:
    """One mount."""

    def __init__(self) -> None:
        self.config: dict[str, Any] = {"cas_required": False, "delete_version_after": "0s", "max_versions": 0}
        self.entries: dict[str, Entry] = {}
        self._calls_until_ready = 2
        """A real engine is not ready for a moment after it was mounted."""

    def exists(self, path: str) -> bool:
        """Tells whether a write would be an update."""
        kind, _, name = path.partition("/")
        return kind in ("data", "metadata") and name in self.entries

    def handle(self, request: Request, path: str) -> Answer:
        """Answers a call to the mount."""
        if self._calls_until_ready:
            self._calls_until_ready -= 1
            raise Refusal(
                400,
                "Upgrading from non-versioned to versioned data. This backend will be unavailable for a brief period "
                "and will resume service shortly.",
            )
        kind, _, name = path.partition("/")
        match request.method, kind:
            case "GET", "config":
                return data(dict(self.config))
            case "POST" | "PUT", "config":
                self.config.update(request.body)
                return nothing()
            case "GET", "data":
                return self._read(name, int(request.query.get("version") or 0))
            case "POST" | "PUT", "data":
                return self._write(name, request.body)
            case "DELETE", "data":
                if (entry := self.entries.get(name)) and entry.current in entry.versions:
                    entry.versions[entry.current].deletion_time = _TIME
                return nothing()
            case "POST" | "PUT", "destroy":
                for number in request.body.get("versions", []):
                    if (entry := self.entries.get(name)) and int(number) in entry.versions:
                        entry.versions[int(number)] = Version(None, "", True)
                return nothing()
            case "DELETE", "metadata":
                self.entries.pop(name, None)
                return nothing()
            case "GET", "metadata":
                return self._metadata(name)
            case "LIST", "metadata":
                prefix = f"{name.rstrip('/')}/" if name else ""
                rests = [path.removeprefix(prefix) for path in self.entries if path.startswith(prefix)]
                if not rests:
                    raise not_found()
                return data({"keys": sorted({r.split("/")[0] + ("/" if "/" in r else "") for r in rests})})
        raise Refusal(405, "unsupported operation")

    def _read(self, name: str, number: int) -> Answer:
        entry = self.entries.get(name)
        if entry is None or (number or entry.current) not in entry.versions:
            raise not_found()
        number = number or entry.current
        version, metadata = entry.versions[number], entry.metadata(number)
        if version.deletion_time or version.destroyed:
            raise Refusal(404, body=data({"data": None, "metadata": metadata}).body)
        return data({"data": version.value, "metadata": metadata})

    def _metadata(self, name: str) -> Answer:
        entry = self.entries.get(name)
        if entry is None:
            raise not_found()
        versions = {str(number): entry.metadata(number) for number in entry.versions}
        return data({"current_version": entry.current, "versions": versions, **self.config})

    def _write(self, name: str, body: dict[str, Any]) -> Answer:
        entry = self.entries.get(name, Entry())
        cas = (body.get("options") or {}).get("cas")
        if cas is None and self.config["cas_required"]:
            raise Refusal(400, "check-and-set parameter required for this call")
        if cas is not None and int(cas) != entry.current:
            raise Refusal(400, "check-and-set parameter did not match the current version")
        if not isinstance(body.get("data"), dict):
            raise Refusal(400, "no data provided")
        entry.current += 1
        entry.versions[entry.current] = Version(body["data"])
        for number in sorted(entry.versions)[: -(int(self.config["max_versions"]) or 10)]:
            del entry.versions[number]
        self.entries[name] = entry
        return data(entry.metadata(entry.current))
