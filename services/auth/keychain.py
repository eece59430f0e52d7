"""The keychain of the operating system as the place of a generated master key; only where a real one is there."""

from __future__ import annotations

from typing import Any, Final

from services.auth.sealing import MasterKey
from services.shared.server import EXIT_TEMPORARY, StartupError

_SERVICE: Final = "holdfast"
# Keyring's own mark of backends that are safe: plaintext files, "null" and "fail" are below it.
_RECOMMENDED: Final = 1
_NEXT: Final = ".next"


class Keychain:
    """One entry of the keychain, and the one that is to take its place.

    Args:
        keyring: The `keyring` package.
        name: Of the entry: which database the key is of.
    """

    def __init__(self, keyring: Any, name: str) -> None:
        self._keyring = keyring
        self._name = name

    @classmethod
    def find(cls, name: str) -> Keychain | None:
        """Returns the entry, None where there is no keychain: not installed, or only backends that are not safe."""
        try:
            import keyring
        except ImportError:
            return None
        try:
            priority = float(keyring.get_keyring().priority)
        except Exception:
            # Backends come from the operating system and from packages; one that breaks is one that is not there.
            return None
        return cls(keyring, name) if priority >= _RECOMMENDED else None

    def __str__(self) -> str:
        return f"the entry {self._name} of the keychain"

    def read(self) -> MasterKey | None:
        """Returns the key, None when there is none.

        Raises:
            StartupError: The keychain cannot be read now, or its entry is no key.
        """
        return self._read(self._name)

    def create(self) -> MasterKey:
        """Makes a key and keeps it. The caller makes sure that nobody else does.

        Raises:
            StartupError: The keychain does not take it.
        """
        master = MasterKey.generate()
        self._write(self._name, master)
        return master

    def read_next(self) -> MasterKey | None:
        """Returns the key of a rotation that is not finished."""
        return self._read(self._name + _NEXT)

    def write_next(self, master: MasterKey) -> None:
        """Keeps the next key beside the current one.

        Raises:
            StartupError: The keychain does not take it.
        """
        self._write(self._name + _NEXT, master)

    def promote(self) -> None:
        """Makes the next key the current one."""
        master = self.read_next()
        if master is not None:
            self._write(self._name, master)
            self._call("delete_password", self._name + _NEXT)

    def _read(self, name: str) -> MasterKey | None:
        text = self._call("get_password", name)
        if text is None:
            return None
        try:
            return MasterKey.parse(text)
        except ValueError as error:
            raise StartupError(f"the entry {name} of the keychain is not valid: expected {error}") from None

    def _write(self, name: str, master: MasterKey) -> None:
        self._call("set_password", name, master.export())
        written = self._read(name)
        if written is None or written.export() != master.export():
            raise StartupError(f"the keychain did not keep the entry {name}")

    def _call(self, method: str, *arguments: str) -> Any:
        failed = False
        try:
            return getattr(self._keyring, method)(_SERVICE, *arguments)
        except Exception:
            # Below, so that the exception of a backend, which may name what it was given, does not stay attached.
            failed = True
        assert failed
        raise StartupError(
            "the keychain of this user cannot be used now: unlock it, or set HOLDFAST_MASTER_KEY_FILE",
            exit_code=EXIT_TEMPORARY,
        )
