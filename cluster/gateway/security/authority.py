"""A certificate authority of one's own, for clusters that no public one knows. Keys are ECDSA on P-256."""

from __future__ import annotations

import datetime
import ipaddress
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from cluster.errors import ConfigError

CA_NAME, CA_CERTIFICATE, CA_KEY = "moemesh authority", "ca.pem", "ca.key"
CA_DAYS, LEAF_DAYS = 3650, 90
BACKDATED = datetime.timedelta(minutes=10)
"""Clocks of small devices differ."""


@dataclass(frozen=True)
class Pair:
    """PEM bytes."""

    certificate: bytes
    key: bytes


def make_authority(now: datetime.datetime, days: int = CA_DAYS) -> Pair:
    key = ec.generate_private_key(ec.SECP256R1())
    name = _name(CA_NAME)
    usage = _usage(signs=True)
    certificate = (
        _begin(name, name, key, now, days)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .sign(key, hashes.SHA256())
    )
    return _pem(certificate, key)


def make_certificate(
    authority: Pair, name: str, hosts: Sequence[str], now: datetime.datetime, days: int = LEAF_DAYS
) -> Pair:
    """Good for servers at `hosts` (names and addresses) and for clients alike: `name` says who it is.

    Raises ConfigError if `authority` is none.
    """
    signer, signer_key = _load(authority)
    key = ec.generate_private_key(ec.SECP256R1())
    extended = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH])
    builder = (
        _begin(_name(name), signer.subject, key, now, days)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs=False), critical=True)
        .add_extension(extended, critical=False)
        .add_extension(_issuer(signer), critical=False)
    )
    if hosts:
        names = x509.SubjectAlternativeName([_host(host) for host in hosts])
        builder = builder.add_extension(names, critical=False)
    return _pem(builder.sign(signer_key, hashes.SHA256()), key)


def _begin(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePrivateKey,
    now: datetime.datetime,
    days: int,
) -> x509.CertificateBuilder:
    identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BACKDATED)
        .not_valid_after(now + datetime.timedelta(days=days))
        .add_extension(identifier, critical=False)
    )


def _issuer(signer: x509.Certificate) -> x509.AuthorityKeyIdentifier:
    identifier = signer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier)


def _usage(signs: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        key_cert_sign=signs,
        crl_sign=signs,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])


def _host(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _load(authority: Pair) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    try:
        certificate = x509.load_pem_x509_certificate(authority.certificate)
        key = serialization.load_pem_private_key(authority.key, password=None)
    except ValueError as error:
        raise ConfigError(
            f"the authority cannot be read ({error}); make one with `moemesh keys ca`"
        ) from None
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != certificate.public_key():
        raise ConfigError("the authority's key does not belong to its certificate; restore both from a copy")
    return certificate, key


def _pem(certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> Pair:
    return Pair(
        certificate.public_bytes(serialization.Encoding.PEM),
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        ),
    )


def write(pair: Pair, certificate: Path, key: Path) -> None:
    """Only the owner may read the key. A server that watches the files sees both or keeps what it had."""
    certificate.parent.mkdir(parents=True, exist_ok=True)
    for path, data, mode in ((key, pair.key, 0o600), (certificate, pair.certificate, 0o644)):
        draft = path.with_name(f"{path.name}.new")
        with open(os.open(draft, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, mode), "wb") as file:
            file.write(data)
        draft.replace(path)
