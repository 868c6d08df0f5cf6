"""Certificates and keys for trials: a CA, the SuperLink's certificate, and a key pair for each SuperNode.

Real sites bring their own, of the same kinds.
"""

import datetime
import ipaddress
import os
import re
from collections.abc import Sequence
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from fedistill.errors import ExperimentError

_CURVE = ec.SECP384R1()
_PEM = serialization.Encoding.PEM
_LOOPBACK = ("127.0.0.1", "localhost")
_DNS_NAME = re.compile(r"(?!-)[A-Za-z0-9-]{1,63}(?<!-)(\.(?!-)[A-Za-z0-9-]{1,63}(?<!-))*")


def make_keys(folder: Path, nodes: int, hosts: Sequence[str], days: int = 365) -> list[Path]:
    """Write ``ca.crt``, ``server.crt``, ``server.key`` and, for each node, ``node-N.key`` and ``node-N.pub``.

    Args:
        hosts: names or addresses under which nodes will reach the SuperLink. The loopback is always added:
            a SuperLink that listens on all addresses connects to itself there.

    Raises:
        ExperimentError: the folder contains keys already, or a host is not a name or an address.
    """
    names = [_host(host) for host in dict.fromkeys([*hosts, *_LOOPBACK])]
    if (folder / "ca.crt").exists():
        raise ExperimentError(f"{folder} contains keys already; choose another folder, or move them away")
    folder.mkdir(parents=True, exist_ok=True)
    authority, server = (ec.generate_private_key(_CURVE) for _ in range(2))
    issuer = _name("fedistill trial CA")
    root = _certificate(issuer, issuer, authority.public_key(), days)
    root = root.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    root = root.add_extension(_signs_certificates(), critical=True)
    leaf = _certificate(_name("fedistill trial SuperLink"), issuer, server.public_key(), days)
    leaf = leaf.add_extension(x509.SubjectAlternativeName(names), critical=False)
    known = x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.public_key())
    leaf = leaf.add_extension(known, critical=False)
    written = [
        _write(folder / "ca.crt", root.sign(authority, hashes.SHA384()).public_bytes(_PEM)),
        _write(folder / "server.crt", leaf.sign(authority, hashes.SHA384()).public_bytes(_PEM)),
        _write(folder / "server.key", _private(server, serialization.PrivateFormat.PKCS8), secret=True),
    ]
    for node in range(nodes):
        key = ec.generate_private_key(_CURVE)
        public = key.public_key().public_bytes(
            serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
        )
        private = _private(key, serialization.PrivateFormat.OpenSSH)
        written.append(_write(folder / f"node-{node}.key", private, secret=True))
        written.append(_write(folder / f"node-{node}.pub", public + b"\n"))
    return written


def _certificate(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, days: int
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(minutes=5))  # clocks differ
        .not_valid_after(now + datetime.timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _signs_certificates() -> x509.KeyUsage:
    """Key usage of a CA by RFC 5280 (section 4.2.1.3), which Python 3.13 and later require."""
    uses = ("digital_signature", "content_commitment", "key_encipherment", "data_encipherment")
    others = ("key_agreement", "crl_sign", "encipher_only", "decipher_only")
    return x509.KeyUsage(key_cert_sign=True, **dict.fromkeys((*uses, *others), False))


def _name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])


def _host(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        if not _DNS_NAME.fullmatch(host) or len(host) > 253:
            raise ExperimentError(
                f"{host!r} is not a host: give a name such as hub.example, or an address, without a port"
            ) from None
        return x509.DNSName(host)


def _private(key: ec.EllipticCurvePrivateKey, form: serialization.PrivateFormat) -> bytes:
    return key.private_bytes(_PEM, form, serialization.NoEncryption())


def _write(path: Path, data: bytes, secret: bool = False) -> Path:
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600 if secret else 0o644), "wb") as file:
        file.write(data)
    return path
