"""What `import holdfast` gives and costs."""

from __future__ import annotations

import subprocess
import sys

import holdfast
from tests.repository.tree import ROOT


def test_every_public_name_can_be_imported() -> None:
    for name in holdfast.__all__:
        assert getattr(holdfast, name) is not None
    assert set(holdfast.__all__) <= set(dir(holdfast))


def test_decorator_is_not_replaced_by_the_module_of_its_name() -> None:
    program = (
        "import holdfast.worker, holdfast.agent, holdfast.tool\n"
        "from holdfast import tool\n"
        "@tool(effect='read_only')\n"
        "def f() -> int: return 1\n"
        "print(f.name)"
    )
    assert _run(program).strip() == "f"


def test_import_takes_less_than_three_tenths_of_a_second() -> None:
    # The best of three, in the interpreter's own count: a busy machine is no slow import.
    program = "import time; t = time.process_time(); import holdfast; print(time.process_time() - t)"
    assert min(float(_run(program)) for _ in range(3)) < 0.3


def test_import_does_not_load_grpc() -> None:
    assert _run("import sys, holdfast; print('grpc' in sys.modules)").strip() == "False"


def _run(program: str) -> str:
    result = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60
    )
    return result.stdout
