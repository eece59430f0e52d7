"""A double of Vault's HTTP API: real HTTP on a port of its own, as much of the wire protocol as auth uses.

It is held to a real server by running the same suites on both: see docs/vault.md for the last one and its version.
"""

from tests.fakes.vault.cluster import Cluster
from tests.fakes.vault.faults import Fault, Point

__all__ = ["Cluster", "Fault", "Point"]
