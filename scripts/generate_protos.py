"""Generates holdfast/api from proto/, always with the same generator, or checks that what is committed is current.

The generator's version is the floor of grpcio and protobuf for everybody who installs holdfast, so it is pinned here
and lives in an environment of its own: the environment Holdfast runs in may carry much newer ones.
"""

from __future__ import annotations

import argparse
import fcntl
import filecmp
import os
import shutil
import subprocess
import sys
import tempfile
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROTO_ROOT = ROOT / "proto"
PACKAGE = Path("holdfast/api")
TOOLS = ROOT / ".venv" / "proto-tools"

# Raising grpcio-tools raises the floors in pyproject.toml: generated code refuses to run on an older runtime.
REQUIREMENTS = ("grpcio-tools==1.76.0", "mypy-protobuf==5.1.0")

# An empty file would do; the sentence tells a reader who lands here that editing is pointless.
PACKAGE_INIT = '"""Generated from proto/ by `make proto`; never edited."""\n'


@contextmanager
def tools_environment() -> Iterator[Path]:
    """Yields the folder of the generator's executables, made on first use and again when the pins change."""
    TOOLS.parent.mkdir(exist_ok=True)
    with (TOOLS.parent / "proto-tools.lock").open("w") as lock:
        # Tests and people may ask at the same moment; the first builds, the others wait for it.
        fcntl.flock(lock, fcntl.LOCK_EX)
        stamp = TOOLS / "requirements.txt"
        wanted = "\n".join(REQUIREMENTS) + "\n"
        if not stamp.is_file() or stamp.read_text() != wanted:
            print(f"Preparing the generator in {TOOLS.relative_to(ROOT)} ...", file=sys.stderr)
            venv.create(TOOLS, clear=True, with_pip=True)
            pip = [str(TOOLS / "bin" / "python"), "-m", "pip", "--quiet", "--disable-pip-version-check"]
            subprocess.run([*pip, "install", *REQUIREMENTS], check=True)
            # Order matters: the stamp comes last, so that an interrupted installation is made again.
            stamp.write_text(wanted)
    yield TOOLS / "bin"


def generate(output: Path) -> None:
    """Writes the stubs of every proto below `output`, as output/holdfast/api/..."""
    sources = sorted(path.relative_to(PROTO_ROOT).as_posix() for path in (PROTO_ROOT / PACKAGE).rglob("*.proto"))
    if not sources:
        raise SystemExit(f"no .proto files under {(PROTO_ROOT / PACKAGE).relative_to(ROOT)}")
    with tools_environment() as executables:
        subprocess.run(
            # only_async: everything here speaks grpc.aio, and one stub class per service is the type people write down.
            [
                executables / "python",
                "-m",
                "grpc_tools.protoc",
                f"-I{PROTO_ROOT}",
                f"--python_out={output}",
                f"--pyi_out={output}",
                f"--grpc_python_out={output}",
                f"--mypy_grpc_out=quiet,only_async:{output}",
                *sources,
            ],
            check=True,
            # protoc finds its plugins on the PATH.
            env={**os.environ, "PATH": f"{executables}{os.pathsep}{os.environ.get('PATH', '')}"},
        )
    remove_stubs_without_services(output)
    generated = output / PACKAGE
    for folder in [generated, *(path for path in generated.rglob("*") if path.is_dir() and path.name != "__pycache__")]:
        (folder / "__init__.py").write_text(PACKAGE_INIT)


def remove_stubs_without_services(output: Path) -> None:
    """Drops the gRPC halves of protos that declare messages only: they hold nothing but boilerplate."""
    for stub in (output / PACKAGE).rglob("*_pb2_grpc.py"):
        if "class " not in stub.read_text():
            stub.unlink()
            stub.with_suffix(".pyi").unlink(missing_ok=True)


def stub_files(base: Path) -> set[str]:
    """Returns every file of the generated package under `base`, relative to it."""
    return {
        path.relative_to(base).as_posix()
        for path in (base / PACKAGE).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def stale_files(fresh: Path) -> list[str]:
    """Returns what differs between the committed stubs and `fresh`: changed, missing or left over."""
    committed_files, fresh_files = stub_files(ROOT), stub_files(fresh)
    changed = {
        name for name in committed_files & fresh_files if not filecmp.cmp(ROOT / name, fresh / name, shallow=False)
    }
    return sorted(changed | (committed_files ^ fresh_files))


def main() -> int:
    """Runs the command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 and list the files that are stale")
    arguments = parser.parse_args()

    with tempfile.TemporaryDirectory(prefix="holdfast-protos-") as temporary:
        fresh = Path(temporary)
        generate(fresh)
        stale = stale_files(fresh)
        if arguments.check:
            for name in stale:
                print(f"stale: {name}", file=sys.stderr)
            if stale:
                print("Run `make proto` and commit the result.", file=sys.stderr)
            return 1 if stale else 0
        # Only what changed is touched, so that a running type checker or server sees no half-written package.
        for name in stale:
            target = ROOT / name
            if (fresh / name).exists():
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(fresh / name, target)
            else:
                target.unlink()
        print(f"{PACKAGE}: {len(stub_files(fresh))} files, {len(stale)} changed")
    return 0


if __name__ == "__main__":
    sys.exit(main())
