"""Every field of the contracts that can carry a secret is marked, and what is marked is never shown."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator

import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from services.shared.redaction import redacted, secret_fields
from tests.repository.tree import ROOT

pytestmark = pytest.mark.promise("P8")

CANARY = "canary-4711"

# How fields are called that carry secrets.
SECRET_NAME = re.compile(
    r"secret|password|passphrase|private_key|api_key|credential|authorization|cookie|verifier|assertion|run_grant"
    r"|(access|refresh|id|bearer|service|connect|device|session|proxy|raw)_token$|^token$|^grant$|(device|auth)_code$"
)
# Those among them that carry none, each with why.
HARMLESS = {
    "api_key_id": "names a key",
    "client_secret_count": "a number",
    "secret_path": "where it lies",
}


def descriptors() -> Iterator[Descriptor]:
    """All messages of the contracts."""
    for path in sorted((ROOT / "holdfast" / "api").rglob("*_pb2.py")):
        module = importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts))
        stack = list(module.DESCRIPTOR.message_types_by_name.values())
        while stack:
            descriptor = stack.pop()
            stack.extend(descriptor.nested_types)
            yield descriptor


def is_text(field: FieldDescriptor) -> bool:
    return field.type in (FieldDescriptor.TYPE_STRING, FieldDescriptor.TYPE_BYTES)


def test_a_field_that_is_called_like_a_secret_is_marked() -> None:
    unmarked = [
        field.full_name
        for descriptor in descriptors()
        for field in descriptor.fields
        if is_text(field)
        and SECRET_NAME.search(field.name)
        and field.name not in HARMLESS
        and field.name not in secret_fields(descriptor)
    ]
    assert unmarked == [], "mark them with [debug_redact = true], or say above why they carry no secret"


@pytest.mark.parametrize("descriptor", [d for d in descriptors() if secret_fields(d)], ids=lambda d: d.name)
def test_a_marked_field_is_not_shown(descriptor: Descriptor) -> None:
    message = GetMessageClass(descriptor)()
    assert isinstance(message, Message)
    for field in descriptor.fields:
        if field.name not in secret_fields(descriptor):
            continue
        assert is_text(field), f"{field.full_name}: only texts are redacted"
        value: str | bytes = CANARY if field.type == FieldDescriptor.TYPE_STRING else CANARY.encode()
        if field.is_repeated:
            getattr(message, field.name).append(value)
        else:
            setattr(message, field.name, value)
    # What this is for: protobuf's own text shows it.
    assert CANARY in str(message)
    assert CANARY not in redacted(message)
    assert redacted(message).count("[redacted]") == len(message.ListFields())


def test_a_marked_field_is_hidden_inside_of_other_messages_too() -> None:
    from holdfast.api.auth.v1 import credential_service_pb2

    message = credential_service_pb2.ResolveCredentialResponse(provider="github", version=3)
    message.headers.add(name="authorization", value=CANARY)
    assert redacted(message) == (
        "ResolveCredentialResponse(provider='github', version=3, headers=[(name='authorization', value=[redacted])])"
    )
