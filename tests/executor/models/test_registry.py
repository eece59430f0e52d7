"""The registry of providers, and what it costs to have providers that nobody calls."""

from __future__ import annotations

import subprocess
import sys

import pytest

from holdfast.errors import InvalidArgument
from services.executor.models import Credential, ModelRegistry
from tests.executor.models.calls import CANARY
from tests.repository.tree import ROOT


def test_unknown_provider_is_refused_with_the_known_ones(registry: ModelRegistry) -> None:
    with pytest.raises(InvalidArgument) as caught:
        registry.get("gpt")

    assert caught.value.reason == "MODEL_UNKNOWN"
    assert caught.value.field_violations[0].field == "model.provider"
    assert registry.known() == ("anthropic", "openai", "scripted")
    assert all(name in caught.value.message for name in registry.known())


def test_only_the_scripted_model_needs_no_credential(registry: ModelRegistry) -> None:
    assert [name for name in registry.known() if not registry.get(name).needs_credential] == ["scripted"]


def test_credential_does_not_show_its_secret() -> None:
    credential = Credential(CANARY, "https://example.com", "connection-1", 1)

    assert CANARY not in f"{credential!r} {credential}"


def test_sdks_and_prices_are_not_loaded_before_they_are_needed() -> None:
    heavy = ("openai", "anthropic", "httpx2", "genai_prices", "pydantic")
    program = (
        "import sys\n"
        "from services.executor import prices\n"
        "from services.executor.models import ModelRegistry\n"
        "from services.shared.clock import SystemClock\n"
        "ModelRegistry(SystemClock()).get('openai')\n"
        f"print(*sorted(set({heavy!r}) & set(sys.modules)))"
    )

    result = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60
    )

    assert result.stdout.split() == []
