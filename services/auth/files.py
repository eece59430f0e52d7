"""Files that hold a key: readable by their owner only, and never half written, whenever the process or machine dies."""

from __future__ import annotations

import os
from pathlib import Path


def write_private(path: Path, text: str) -> None:
    """Writes a file of mode 0600 and returns when it is on the disk. An existing file of the name is replaced."""
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        # The mode given above is subject to the umask, which may have taken the owner's rights away.
        os.fchmod(file.fileno(), 0o600)
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Returns when the folder's entries are on the disk: names that were added, replaced or removed."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace(source: Path, target: Path) -> None:
    """Gives `source` the name of `target` in one step, for good."""
    os.replace(source, target)
    sync_folder(target.parent)


def publish(source: Path, target: Path) -> bool:
    """Gives `source` the name of `target` unless that is taken, and tells which; `source` is gone afterwards."""
    try:
        # Unlike a rename, a link never replaces what another process has just put there.
        os.link(source, target)
    except FileExistsError:
        return False
    finally:
        source.unlink()
    sync_folder(target.parent)
    return True
