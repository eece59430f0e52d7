"""`holdfast certs`: certificates for the suite's own services, signed by an authority of the suite's own."""

from __future__ import annotations

import ipaddress
import os
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from holdfast.cli.app import JsonOption, group
from holdfast.cli.console import note, print_json, say
from holdfast.cli.launch import SERVICES, check_server_is_installed
from holdfast.errors import FailedPrecondition, InvalidArgument
from holdfast.settings import write_private

if TYPE_CHECKING:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

certs = group("certs", "Certificates of the suite's own services.")

NAMES: Final = (*SERVICES, "operator")
"""Who gets a certificate: the services, and whoever runs them (`holdfast doctor`, `holdfast storage`)."""

_AUTHORITY_DAYS: Final = 3650
_MAX_LEAF_DAYS: Final = 825


@certs.callback()
def default(context: typer.Context, as_json: JsonOption = False) -> None:
    """Certificates of the suite's own services."""
    if context.invoked_subcommand is None:
        if as_json:
            print_json({"commands": ["dev"]})
        else:
            say(context.get_help())


@certs.command()
def dev(
    out: Annotated[Path, typer.Option(help="Folder of the certificates.")] = Path("certs"),
    trust_domain: Annotated[
        str,
        typer.Option(help="Name of the suite in the certificates; every suite that must not trust another has one."),
    ] = "holdfast.internal",
    host: Annotated[
        list[str] | None,
        typer.Option(help="Further name or address that clients call the services by; give it several times."),
    ] = None,
    days: Annotated[int, typer.Option(min=1, max=_MAX_LEAF_DAYS, help="How long the certificates are good.")] = 90,
    renew: Annotated[
        bool, typer.Option("--renew", help="Replace the services' certificates, signed by the authority that is there.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Make an authority, and certificates for the four services and the operator. Nothing is overwritten.

    For development and small installations: whoever reads ca.key can be any service.
    """
    check_server_is_installed()
    if not re.fullmatch(r"[a-z0-9._-]{1,255}", trust_domain):
        raise InvalidArgument(
            "a trust domain has lower-case letters, digits, dots, hyphens and underscores", field="--trust-domain"
        )
    folder = out.expanduser().resolve()
    try:
        if renew:
            key, authority = _read_authority(folder)
        else:
            _refuse_to_overwrite(folder)
            key, authority = _make_authority(folder, trust_domain)
        for name in NAMES:
            _issue(folder, name, trust_domain, host or [], days, key, authority)
    except OSError as error:
        raise FailedPrecondition(f"{error.filename or folder} can't be written: {error.strerror}") from error
    if as_json:
        print_json({"folder": str(folder), "names": list(NAMES), "trust_domain": trust_domain, "days": days})
        return
    say(f"{'Renewed' if renew else 'Made'}: {', '.join(NAMES)} in {folder}, good for {days} days")
    if renew:
        note("Services that run take them by themselves, at their next connections.")
        return
    note("For each service NAME, set:")
    for line in (
        f"HOLDFAST_TLS_CERT_FILE={folder}/NAME.pem",
        f"HOLDFAST_TLS_KEY_FILE={folder}/NAME.key",
        f"HOLDFAST_TLS_CA_FILE={folder}/ca.pem",
        f"HOLDFAST_TLS_TRUST_DOMAIN={trust_domain}",
    ):
        say(line)
    note(
        "For auth, HOLDFAST_SERVICES_LISTEN as well, and for the others HOLDFAST_AUTH_ADDRESS with its port. "
        "For clients:"
    )
    say(f"HOLDFAST_CA_FILE={folder}/ca.pem")
    say("HOLDFAST_ADDRESS=https://127.0.0.1:7400")
    note(
        "Keep ca.key away from the services: who has it can be any of them. Before the end: holdfast certs dev --renew"
    )


def _refuse_to_overwrite(folder: Path) -> None:
    there = [name for name in ("ca", *NAMES) for end in (".pem", ".key") if (folder / f"{name}{end}").exists()]
    if there:
        raise FailedPrecondition(
            f"{folder} has certificates already ({', '.join(dict.fromkeys(there))}): choose another folder with "
            "--out, or give the services new ones with --renew"
        )


def _make_authority(folder: Path, trust_domain: str) -> tuple[EllipticCurvePrivateKey, x509.Certificate]:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"Holdfast authority of {trust_domain}"[:64])])
    usage = x509.KeyUsage(
        digital_signature=False,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=True,
        crl_sign=True,
        encipher_only=False,
        decipher_only=False,
    )
    authority = (
        _begun(name, name, key, _AUTHORITY_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    _write(folder, "ca", key, authority)
    return key, authority


def _read_authority(folder: Path) -> tuple[EllipticCurvePrivateKey, x509.Certificate]:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        key = load_pem_private_key((folder / "ca.key").read_bytes(), None)
        authority = x509.load_pem_x509_certificate((folder / "ca.pem").read_bytes())
    except (OSError, ValueError) as error:
        raise FailedPrecondition(
            f"{folder} has no authority (ca.pem, ca.key) to sign with: run it without --renew"
        ) from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise FailedPrecondition(f"{folder}/ca.key was not made by this command")
    return key, authority


def _issue(
    folder: Path,
    name: str,
    trust_domain: str,
    hosts: list[str],
    days: int,
    authority_key: EllipticCurvePrivateKey,
    authority: x509.Certificate,
) -> None:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

    key = ec.generate_private_key(ec.SECP256R1())
    names: list[x509.GeneralName] = [
        # One URI, which is who it is; the name of the service, by which the others know it wherever it runs.
        x509.UniformResourceIdentifier(f"spiffe://{trust_domain}/{name}"),
        x509.DNSName(name),
        x509.DNSName("localhost"),
    ]
    for text in ("127.0.0.1", "::1", *hosts):
        try:
            names.append(x509.IPAddress(ipaddress.ip_address(text)))
        except ValueError:
            if not re.fullmatch(r"(\*\.)?[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?", text):
                raise InvalidArgument(f"{text!r} is no host name or address", field="--host") from None
            names.append(x509.DNSName(text.lower()))
    certificate = (
        _begun(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]), authority.subject, key, days)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(
            x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False
        )
        .sign(authority_key, hashes.SHA256())
    )
    _write(folder, name, key, certificate)


def _begun(subject: x509.Name, issuer: x509.Name, key: EllipticCurvePrivateKey, days: int) -> x509.CertificateBuilder:
    from cryptography import x509

    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        # Clocks differ: what is made now is good everywhere now.
        .not_valid_before(now - timedelta(minutes=5))
        .not_valid_after(now + timedelta(days=days))
    )


def _write(folder: Path, name: str, key: EllipticCurvePrivateKey, certificate: x509.Certificate) -> None:
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
    write_private(folder / f"{name}.key", pem)
    path = folder / f"{name}.pem"
    write_private(path, certificate.public_bytes(Encoding.PEM).decode())
    # Certificates are public, and clients read the authority's.
    os.chmod(path, 0o644)
