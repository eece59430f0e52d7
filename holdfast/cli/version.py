"""`holdfast version`."""

from __future__ import annotations

import platform

import google.protobuf
import grpc

from holdfast.cli.app import JsonOption, app
from holdfast.cli.console import print_json, say
from holdfast.version import __version__


@app.command()
def version(as_json: JsonOption = False) -> None:
    """Print the versions of holdfast and of what it stands on."""
    versions = {
        "holdfast": __version__,
        "python": platform.python_version(),
        "grpcio": grpc.__version__,
        "protobuf": google.protobuf.__version__,
    }
    if as_json:
        print_json(versions)
        return
    for name, number in versions.items():
        say(f"{name} {number}")
