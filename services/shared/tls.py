"""Certificates of the suite's services: read from files, and read again when those change.

A service is who its certificate says: the URI `spiffe://<trust domain>/<service>`, signed by the suite's own authority.
Certificates are replaced without a restart: servers look at the files before each handshake, clients every few seconds.
A file that is half written, or a key that is not its certificate's, leaves what was there before in use.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import grpc
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

from services.shared.clock import Clock, SystemClock
from services.shared.settings import CommonSettings
from services.shared.telemetry import get_logger

LOOK_EVERY_SECONDS: Final = 5.0
"""How often a client looks whether its files have changed."""

log = get_logger(__name__)

Stamp = tuple[tuple[int, int, int], ...]


class TlsError(Exception):
    """The files are not usable; the text says which and why, and nothing of what is in them."""


@dataclass(frozen=True, slots=True)
class Material:
    """What the files held at one moment, in PEM."""

    certificate: bytes
    key: bytes
    authority: bytes

    def __repr__(self) -> str:
        return "<Material>"

    @property
    def channel_credentials(self) -> grpc.ChannelCredentials:
        """For connections to other services."""
        return grpc.ssl_channel_credentials(self.authority, self.key, self.certificate)

    @property
    def server_configuration(self) -> Any:
        """For connections from clients, and from services, which are checked against the authority."""
        return grpc.ssl_server_certificate_configuration(
            [(self.key, self.certificate)], root_certificates=self.authority
        )


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """Where a service's certificate, its key, and the authority of the suite lie."""

    certificate: Path
    key: Path
    authority: Path

    @classmethod
    def of(cls, settings: CommonSettings) -> TlsFiles | None:
        """Returns the files of the settings, or None when the service speaks plain text."""
        if not settings.speaks_tls:
            return None
        assert settings.tls_cert_file and settings.tls_key_file and settings.tls_ca_file
        return cls(settings.tls_cert_file, settings.tls_key_file, settings.tls_ca_file)

    def stamp(self) -> Stamp:
        """Returns what differs as soon as one of the files is another one.

        Raises:
            TlsError: One cannot be looked at.
        """
        try:
            stats = [path.stat() for path in (self.certificate, self.key, self.authority)]
        except OSError as error:
            raise TlsError(f"{error.filename} cannot be read: {error.strerror}") from error
        return tuple((stat.st_mtime_ns, stat.st_size, stat.st_ino) for stat in stats)

    def read(self) -> Material:
        """Returns what is in the files.

        Raises:
            TlsError: One cannot be read or holds something else, or the key is not the certificate's.
        """
        try:
            material = Material(self.certificate.read_bytes(), self.key.read_bytes(), self.authority.read_bytes())
        except OSError as error:
            raise TlsError(f"{error.filename} cannot be read: {error.strerror}") from error
        certificate = _parsed(self.certificate, material.certificate)
        _parsed(self.authority, material.authority)
        try:
            public = load_pem_private_key(material.key, None).public_key()
        except (ValueError, TypeError):
            # Without the cause: it may show what is in the file.
            raise TlsError(f"{self.key} holds no private key in PEM without a passphrase") from None
        form = (Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        if public.public_bytes(*form) != certificate.public_key().public_bytes(*form):
            raise TlsError(f"{self.key} is not the key of {self.certificate}")
        return material

    def own_name(self) -> str:
        """Returns a name that the certificate is good for, under which this machine can call itself.

        Raises:
            TlsError: It has none.
        """
        certificate = _parsed(self.certificate, self.certificate.read_bytes())
        try:
            names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
            return str(names.get_values_for_type(x509.DNSName)[0])
        except (x509.ExtensionNotFound, IndexError) as error:
            raise TlsError(f"{self.certificate} has no DNS name") from error


def _parsed(path: Path, pem: bytes) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificates(pem)[0]
    except ValueError as error:
        raise TlsError(f"{path} holds no certificate in PEM") from error


class ServedCertificate:
    """A server's certificate, looked at before each handshake.

    grpc asks from a thread of its own. Of a client it demands a certificate or ignores it: services and clients
    without one therefore come to different ports.

    Args:
        files: Where it lies.

    Raises:
        TlsError: The files are not usable.
    """

    def __init__(self, files: TlsFiles) -> None:
        self._files = files
        self._stamp = files.stamp()
        self._first = files.read()

    def credentials(self, *, demands_certificate: bool) -> grpc.ServerCredentials:
        """Returns what a port is opened with.

        Args:
            demands_certificate: Connections without a certificate of the authority fail.
        """
        return grpc.dynamic_ssl_server_credentials(self._first.server_configuration, self._look, demands_certificate)

    def _look(self) -> Any:
        try:
            stamp = self._files.stamp()
            if stamp == self._stamp:
                return None
            material = self._files.read()
        except TlsError as error:
            # Replaced at this moment, most likely: the next connection looks again.
            log.warning("certificate_not_taken", detail=str(error))
            return None
        self._stamp = stamp
        log.info("certificate_replaced", path=str(self._files.certificate))
        return material.server_configuration


class ShownCertificate:
    """A client's certificate, looked at every few seconds while calls are made.

    Raises:
        TlsError: The files are not usable.
    """

    def __init__(self, files: TlsFiles, clock: Clock | None = None) -> None:
        self._files = files
        self._clock: Clock = SystemClock() if clock is None else clock
        self._stamp = files.stamp()
        self.material = files.read()
        self._look_at = self._clock.monotonic() + LOOK_EVERY_SECONDS

    def changed(self) -> bool:
        """Tells whether there is another certificate than at the last call; `material` is that one then."""
        now = self._clock.monotonic()
        if now < self._look_at:
            return False
        self._look_at = now + LOOK_EVERY_SECONDS
        try:
            stamp = self._files.stamp()
            if stamp == self._stamp:
                return False
            self.material = self._files.read()
        except TlsError as error:
            log.warning("certificate_not_taken", detail=str(error))
            return False
        self._stamp = stamp
        log.info("certificate_replaced", path=str(self._files.certificate))
        return True


def certified_service(auth_context: Mapping[str, Iterable[bytes]], trust_domain: str) -> str | None:
    """Returns the service that the peer of a connection has proved to be, or None.

    Args:
        auth_context: What the transport has verified of the connection.
        trust_domain: The suite's.
    """
    # Of a certificate with several URIs grpc takes none for an identity, as SPIFFE demands.
    identities = list(auth_context.get("peer_spiffe_id", ()))
    if len(identities) != 1:
        return None
    prefix = f"spiffe://{trust_domain}/"
    identity = identities[0].decode("ascii", "replace")
    return identity.removeprefix(prefix) if identity.startswith(prefix) else None
