"""Third parties as data: one file each, read once, wrong files refused at the start and by name."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from importlib import resources
from pathlib import Path
from types import MappingProxyType

from services.auth.providers.loading import ProviderFileError, load_provider
from services.auth.providers.schema import Provider

__all__ = ["Provider", "ProviderCatalog", "ProviderFileError", "load_provider"]


class ProviderCatalog:
    """The providers that this installation knows."""

    def __init__(self, providers: Iterable[Provider]) -> None:
        self._by_slug: Mapping[str, Provider] = MappingProxyType({item.slug: item for item in providers})

    @classmethod
    def load(cls, extra_folder: Path | None = None) -> ProviderCatalog:
        """Reads the files beside this module, and those of the operator, which come last and win.

        Raises:
            ProviderFileError: A file is wrong.
        """
        found = list(_beside_this_module())
        if extra_folder is not None:
            try:
                added = sorted(extra_folder.glob("*.yaml"))
                found += [load_provider(path.read_text(encoding="utf-8"), path.stem) for path in added]
            except (OSError, UnicodeDecodeError) as error:
                raise ProviderFileError(f"{extra_folder}: the folder of providers cannot be read") from error
        return cls(sorted(found, key=lambda item: item.slug))

    def get(self, slug: str) -> Provider | None:
        """Returns a provider; None when there is none of that name."""
        return self._by_slug.get(slug)

    def __iter__(self) -> Iterator[Provider]:
        return iter(self._by_slug.values())

    def __len__(self) -> int:
        return len(self._by_slug)


@cache
def _beside_this_module() -> tuple[Provider, ...]:
    files = [item for item in resources.files(__name__).iterdir() if item.name.endswith(".yaml")]
    return tuple(load_provider(item.read_text(encoding="utf-8"), item.name.removesuffix(".yaml")) for item in files)
