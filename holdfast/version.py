"""The version of this package; the one place in the code that knows it."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("holdfast")
except PackageNotFoundError:  # a checkout on the path that was never installed
    __version__ = "0.0.0+unknown"
