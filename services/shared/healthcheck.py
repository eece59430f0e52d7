"""Asks a service of this machine for its health: `python -P -m services.shared.healthcheck [HOST:PORT]`.

Exit code 0 means SERVING. Without an address it asks the one that HOLDFAST_LISTEN names, as the service itself does.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from services.shared.settings import SettingsError, host_port, load, setting, split_address
from services.shared.tls import TlsError, TlsFiles

_DEADLINE_SECONDS = 3.0
_EVERY_INTERFACE = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}


@dataclass(frozen=True, kw_only=True)
class HealthcheckSettings:
    """Where to ask."""

    listen: str = setting("HOLDFAST_LISTEN", default="", parse=host_port, doc="Address of the service to ask.")
    tls_cert_file: Path | None = setting("HOLDFAST_TLS_CERT_FILE", default=None, doc="The service's certificate.")
    tls_key_file: Path | None = setting("HOLDFAST_TLS_KEY_FILE", default=None, doc="Its key.")
    tls_ca_file: Path | None = setting("HOLDFAST_TLS_CA_FILE", default=None, doc="The authority of the suite.")


def main(arguments: list[str]) -> int:
    """Returns 0 when the service serves, 1 when it does not, 64 when nobody says which service."""
    try:
        settings = load(HealthcheckSettings)
        listen = host_port(arguments[0]) if arguments else settings.listen
        if not listen:
            raise ValueError("HOLDFAST_LISTEN is required: Address of the service to ask.")
    except (SettingsError, ValueError) as error:
        sys.stderr.write(f"{error}\n")
        return 64
    host, port = split_address(listen)
    target = f"{_EVERY_INTERFACE.get(host, host)}:{port}"
    try:
        opened = _open(target, settings)
    except TlsError as error:
        sys.stderr.write(f"{target}: {error}\n")
        return 1
    with opened as channel:
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


def _open(target: str, settings: HealthcheckSettings) -> grpc.Channel:
    if not (settings.tls_cert_file and settings.tls_key_file and settings.tls_ca_file):
        return grpc.insecure_channel(target)
    # The service asks itself: by its own certificate, and by a name that this is good for.
    files = TlsFiles(settings.tls_cert_file, settings.tls_key_file, settings.tls_ca_file)
    options = [("grpc.ssl_target_name_override", files.own_name())]
    return grpc.secure_channel(target, files.read().channel_credentials, options=options)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
