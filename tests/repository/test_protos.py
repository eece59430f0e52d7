"""The contracts: the committed stubs are what the protos say, and the protos keep the conventions of the API."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from collections.abc import Iterator

import pytest
from google.protobuf.descriptor import FileDescriptor, MethodDescriptor

from tests.repository.tree import ROOT

PROTO_ROOT = ROOT / "proto"

# Methods that change nothing start with one of these; everything else writes, and needs a request_id.
READING_VERBS = (
    "Get",
    "List",
    "Watch",
    "Wait",
    "Query",
    "Search",
    "Find",
    "Explain",
    "Verify",
    "Check",
    "Resolve",
    "Export",
    "Unwrap",
    # Signs something; nothing is stored.
    "Issue",
)
# State is internal: its positions, epochs and leases are chosen by the services that call it.
INTERNAL = "holdfast.api.state."
# What a second one does is a newer token, which is as good.
REPEATABLE = {
    "holdfast.api.auth.v1.ConnectionService.RefreshConnection",
    "holdfast.api.auth.v1.ConnectionService.EraseUserConnections",
    # The same right, signed once more.
    "holdfast.api.auth.v1.GrantService.DeriveRunGrant",
    # Once more makes one more key, which nothing was sealed with.
    "holdfast.api.auth.v1.DataKeyService.CreateDataKey",
    "holdfast.api.auth.v1.WorkspaceService.SetPayloadSealing",
    "holdfast.api.auth.v1.WorkspaceService.CloseWorkspace",
    "holdfast.api.auth.v1.WorkspaceService.DeleteWorkspace",
}
# A lease, or the id of each record, makes it idempotent: the same report twice is answered the same.
BY_LEASE = {
    "holdfast.api.auth.v1.CredentialService.RecordCredentialUses",
    "holdfast.api.executor.v1.ToolWorkerService.CompleteCall",
}


# The first time, the generator's own environment is made.
@pytest.mark.timeout(400)
def test_committed_stubs_are_current() -> None:
    result = subprocess.run(
        [sys.executable, ROOT / "scripts" / "generate_protos.py", "--check"],
        capture_output=True,
        text=True,
        timeout=380,
    )
    assert result.returncode == 0, result.stderr


def test_every_package_is_its_folder() -> None:
    for path in PROTO_ROOT.rglob("*.proto"):
        package = ".".join(path.parent.relative_to(PROTO_ROOT).parts)
        assert f"package {package};" in path.read_text(), path


def test_protos_import_only_each_other_and_the_well_known_types() -> None:
    # Whoever generates a client in another language needs this folder and nothing else.
    for path in PROTO_ROOT.rglob("*.proto"):
        for name in re.findall(r'^import (?:public )?"([^"]+)";', path.read_text(), re.MULTILINE):
            assert name.startswith("google/protobuf/") or (PROTO_ROOT / name).is_file(), f"{path}: {name}"


def test_each_file_holds_at_most_one_service_named_after_the_file() -> None:
    for file in _files():
        stem = file.name.rpartition("/")[2].removesuffix(".proto")
        for service in file.services_by_name.values():
            assert len(file.services_by_name) == 1 or stem.endswith("_services"), file.name
            if len(file.services_by_name) == 1:
                assert _snake(service.name) == stem, f"{service.full_name} in {file.name}"


def test_every_list_has_pages() -> None:
    for method in _methods():
        if method.name.startswith("List") and not method.full_name.startswith(INTERNAL):
            assert {"page_size", "page_token"} <= set(method.input_type.fields_by_name), method.full_name
            assert "next_page_token" in method.output_type.fields_by_name, method.full_name


def test_every_writing_call_takes_a_request_id() -> None:
    for method in _methods():
        # A stream carries its own identity in every message: run, epoch and sequence.
        if method.client_streaming or method.name.startswith(READING_VERBS):
            continue
        if method.full_name.startswith(INTERNAL) or method.full_name in BY_LEASE | REPEATABLE:
            continue
        assert "request_id" in method.input_type.fields_by_name, method.full_name


def _files() -> Iterator[FileDescriptor]:
    for path in sorted(PROTO_ROOT.rglob("*.proto")):
        module = path.relative_to(PROTO_ROOT).with_suffix("").as_posix().replace("/", ".") + "_pb2"
        yield importlib.import_module(module).DESCRIPTOR


def _methods() -> list[MethodDescriptor]:
    methods = [method for file in _files() for service in file.services_by_name.values() for method in service.methods]
    assert methods, "no service found"
    return methods


def _snake(name: str) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()
