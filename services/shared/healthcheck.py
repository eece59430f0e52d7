"""Asks a service of this machine for its health: `python -P -m services.shared.healthcheck [HOST:PORT]`.

Exit code 0 means SERVING. Without an address it asks the one that HOLDFAST_LISTEN names, as the service itself does.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from services.shared.settings import SettingsError, host_port, load, setting, split_address

_DEADLINE_SECONDS = 3.0
_EVERY_INTERFACE = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}


@dataclass(frozen=True, kw_only=True)
class HealthcheckSettings:
    """Where to ask."""

    listen: str = setting("HOLDFAST_LISTEN", parse=host_port, doc="Address of the service to ask.")


def main(arguments: list[str]) -> int:
    """Returns 0 when the service serves, 1 when it does not, 64 when nobody says which service."""
    try:
        listen = host_port(arguments[0]) if arguments else load(HealthcheckSettings).listen
    except (SettingsError, ValueError) as error:
        sys.stderr.write(f"{error}\n")
        return 64
    host, port = split_address(listen)
    target = f"{_EVERY_INTERFACE.get(host, host)}:{port}"
    with grpc.insecure_channel(target) as channel:
        try:
            response = health_pb2_grpc.HealthStub(channel).Check(
                health_pb2.HealthCheckRequest(), timeout=_DEADLINE_SECONDS
            )
        except grpc.RpcError as error:
            sys.stderr.write(f"{target}: {error.code().name}\n")
            return 1
    name = health_pb2.HealthCheckResponse.ServingStatus.Name(response.status)
    sys.stderr.write(f"{target}: {name}\n")
    return 0 if name == "SERVING" else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
